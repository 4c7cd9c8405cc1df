#!/usr/bin/env python3
"""Signflash next to PyTorch on this machine's CPU, forward and backward, with and without dropout.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/cpu.py                  about 12 minutes; writes benchmarks/cpu.md, cpu.json, README's table
    python3 benchmarks/cpu.py --quick          a smoke run, under a minute; writes nothing
    python3 benchmarks/cpu.py --name cpu_avx2 --isa avx2    another table: writes benchmarks/cpu_avx2.md and cpu_avx2.json

Ours is `signflash bench --json`, the binary that users run; PyTorch's is `scaled_dot_product_attention`. In every round
ours runs, then PyTorch's on the same shapes; a result is the median of the rounds. Rows that take PyTorch longer than
1.5 s a call are called in two rounds only. A round is repeated if the machine was disturbed: other processes used more
than 5 % of the cores, or the multiply-add rate that signflash measures beside every row lies more than 15 % below the
best one seen.

Operations are counted as the field does: 4 * batch * heads * seqlen^2 * head_dim for the forward, half of it if causal,
2.5 times for the backward. Extra memory is what a call takes beyond operands and results: ours as its allocator
counts it, PyTorch's as the growth of the peak resident memory of a fresh process for each row, in a training step: what
its forward keeps for the backward counts.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True  # Else importing neighbours leaves a folder in the checkout.
from cpu_tables import BATCH, COLUMNS, DROPOUT, HEADS, SLOW_ROUNDS, SLOW_SECONDS, cells, heading, report, selection
from pages import fill_readme

ROOT = pathlib.Path(__file__).resolve().parent.parent
PASSES = ("fwd", "bwd")
TORCH_DTYPE = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
MIB = 1024.0 * 1024.0

FOREIGN_LIMIT = 0.05  # share of all cores that others may use
PEAK_LIMIT = 0.15  # how far the multiply-add rate may lie below the best
MIN_ROUNDS, MAX_ROUNDS, MAX_REPEATED = 3, 7, 4


# ---------------------------------------------------------------------------------------------------- the machine


def busy_seconds():
    """Processor time used on this machine, stolen time included; None where the system does not tell."""
    try:
        with open("/proc/stat") as f:
            ticks = [int(x) for x in f.readline().split()[1:9]]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Foreign:
    """The share of the cores that other processes used since `start`."""

    def __init__(self):
        self.wall, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def share(self):
        if self.busy is None:
            return 0.0
        wall = time.monotonic() - self.wall
        others = (busy_seconds() - self.busy) - (own_seconds() - self.own)
        return max(others, 0.0) / (wall * os.cpu_count())


def cpu_name(fallback):
    fields = {}
    try:
        for line in open("/proc/cpuinfo"):
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    family, model = fields.get("cpu family"), fields.get("model")
    number = f" (family {family}, model {model})" if family and model else ""
    return fields.get("model name", fallback) + number


# ---------------------------------------------------------------------------------------------------- ours


class Ours:
    def __init__(self, binary, threads, isa):
        self.command = [str(binary), "bench", "--json", "--quiet", "--threads", str(threads)]
        self.command += ["--isa", isa] if isa else []
        self.command += ["--batch", str(BATCH), "--heads", str(HEADS)]

    def memory(self, *shape, p):
        """{pass: MiB}. A process for each: what one row has allocated, the next would find there."""
        return {pass_: self.round(*shape, 1, [p], [pass_])[p, pass_]["extra_mib"] for pass_ in PASSES}

    def round(self, dtype, head_dim, seqlen, causal, reps, dropout=DROPOUT, passes=PASSES):
        """{(dropout_p, pass): row} of one run of the command."""
        shape = ["--dtype", dtype, "--head-dim", str(head_dim), "--seqlen", str(seqlen)]
        shape += ["--causal", str(causal).lower(), "--reps", str(reps), "--pass", ",".join(passes)]
        shape += ["--dropout-p", ",".join(f"{p:g}" for p in dropout)]
        done = subprocess.run(self.command + shape, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(self.command + shape)}\nexited with {done.returncode}: {done.stderr.strip()}")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {(row["dropout_p"], row["pass"]): row for row in rows}


# ---------------------------------------------------------------------------------------------------- PyTorch


def torch_operands(torch, dtype, head_dim, seqlen):
    dtype = getattr(torch, TORCH_DTYPE[dtype])
    q, k, v = (torch.randn(BATCH, HEADS, seqlen, head_dim, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v, torch.randn(BATCH, HEADS, seqlen, head_dim, dtype=dtype)


def status_bytes(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def torch_memory(torch, dtype, head_dim, seqlen, causal, p):
    """Growth of the peak in the forward, and in forward and backward, beyond operands and results."""
    attention = torch.nn.functional.scaled_dot_product_attention
    small = torch.randn(1, 1, 64, head_dim, dtype=getattr(torch, TORCH_DTYPE[dtype]), requires_grad=True)
    attention(small, small, small, dropout_p=p, is_causal=causal).sum().backward()  # the libraries' own set-up
    q, k, v, dout = torch_operands(torch, dtype, head_dim, seqlen)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before, tensor = status_bytes("VmRSS:"), q.numel() * q.element_size()
    out = attention(q, k, v, dropout_p=p, is_causal=causal)
    forward = status_bytes("VmHWM:") - before - tensor
    torch.autograd.grad(out, (q, k, v), dout)
    backward = status_bytes("VmHWM:") - before - 4 * tensor
    return [max(forward, 0) / MIB, max(backward, 0) / MIB]


class MemoryMeter:
    """Forks a fresh process for each case from one that has loaded PyTorch but never used it."""

    def __init__(self, threads):
        command = [sys.executable, __file__, "--memory-meter", "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, *case):
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        return dict(zip(PASSES, json.loads(answer) if answer else [None, None]))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def memory_meter(threads):
    import torch

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(threads)
                answer = torch_memory(torch, *json.loads(line))
            except Exception as error:  # a case that PyTorch refuses, or a system without /proc
                print(error, file=sys.stderr)
                answer = [None, None]
            print(json.dumps(answer), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            print("[null, null]", flush=True)


class Peer:
    """PyTorch on one (shape, dropout_p)."""

    def __init__(self, torch, dtype, head_dim, seqlen, causal, p):
        self.torch, self.p, self.causal = torch, p, causal
        self.q, self.k, self.v, self.dout = torch_operands(torch, dtype, head_dim, seqlen)
        self.seconds = {"fwd": 0.0, "bwd": 0.0}  # a call's, as last measured
        start = time.perf_counter()
        self.out = self.forward()
        self.seconds["fwd"] = time.perf_counter() - start

    def forward(self):
        attention = self.torch.nn.functional.scaled_dot_product_attention
        return attention(self.q, self.k, self.v, dropout_p=self.p, is_causal=self.causal)

    def forward_alone(self):
        with self.torch.no_grad():
            self.forward()

    def backward(self):
        self.torch.autograd.grad(self.out, (self.q, self.k, self.v), self.dout, retain_graph=True)

    def round(self, first_rounds):
        """{pass: ms}; slow passes only in the first rounds."""
        calls = {"fwd": self.forward_alone, "bwd": self.backward}
        due = [name for name in PASSES if first_rounds or self.seconds[name] <= SLOW_SECONDS]
        return {name: self.time(name, calls[name]) for name in due}

    def time(self, name, call):
        if self.seconds[name] < 0.3:
            self.seconds[name] = self.once(call)
        reps = max(1, min(9, int(0.3 / self.seconds[name])))
        self.seconds[name] = statistics.median(self.once(call) for _ in range(reps))
        return self.seconds[name] * 1e3

    @staticmethod
    def once(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


# ---------------------------------------------------------------------------------------------------- measuring


class Run:
    def __init__(self, args, torch):
        self.torch, self.seconds, self.quick = torch, args.seconds, args.quick
        self.ours = Ours(args.signflash, args.threads, args.isa)
        self.meter = MemoryMeter(args.threads)
        self.best_peak = {}
        self.repeated = self.disturbed = 0

    def group(self, dtype, head_dim, seqlen, causal):
        """All rows of one shape: rounds of ours, then PyTorch's, until the time is spent."""
        shape = (dtype, head_dim, seqlen, causal)
        extra = {p: (self.ours.memory(*shape, p=p), self.meter.measure(*shape, p)) for p in DROPOUT}
        peers = [Peer(self.torch, *shape, p) for p in DROPOUT]
        rounds, repeated, begin = [], 0, time.monotonic()
        while not self.enough(len(rounds), time.monotonic() - begin):
            round_, why = self.round(shape, peers, first_rounds=len(rounds) < SLOW_ROUNDS)
            if why and repeated < MAX_REPEATED:
                repeated += 1
                print(f"# round repeated: {why}", flush=True)
                continue
            self.disturbed += bool(why)
            rounds.append(round_)
        self.repeated += repeated
        return [self.row(shape, p, pass_, rounds, extra[p]) for p in DROPOUT for pass_ in PASSES]

    def enough(self, rounds, spent):
        if self.quick:
            return rounds >= 1
        return rounds >= MAX_ROUNDS or rounds >= MIN_ROUNDS and spent > self.seconds

    def round(self, shape, peers, first_rounds):
        """(ours, PyTorch's), and what disturbed it."""
        dtype, _, seqlen, _ = shape
        foreign = Foreign()
        ours = self.ours.round(*shape, reps=max(1, 8192 // seqlen - 1))
        theirs = {(peer.p, pass_): ms for peer in peers for pass_, ms in peer.round(first_rounds).items()}
        peak = next(iter(ours.values()))["peak_gflops"]
        best = self.best_peak[dtype] = max(peak, self.best_peak.get(dtype, 0.0))
        why = None
        if (share := foreign.share()) > FOREIGN_LIMIT:
            why = f"others used {share:.0%} of the cores"
        elif peak < (1 - PEAK_LIMIT) * best:
            why = f"{peak:.0f} GFLOP/s of multiply-adds, {best:.0f} before"
        return (ours, theirs), why

    def row(self, shape, p, pass_, rounds, extra):
        dtype, head_dim, seqlen, causal = shape
        mine = [ours[p, pass_] for ours, _ in rounds]
        theirs = [torch_ms[p, pass_] for _, torch_ms in rounds if (p, pass_) in torch_ms]
        ms, torch_ms = statistics.median(row["ms"] for row in mine), statistics.median(theirs)
        peak = statistics.median(row["peak_gflops"] for row in mine)
        flops = 4.0 * BATCH * HEADS * seqlen**2 * head_dim
        flops *= (0.5 if causal else 1.0) * (2.5 if pass_ == "bwd" else 1.0)
        base = statistics.median(ours[0.0, pass_]["ms"] for ours, _ in rounds)
        extra_mib, torch_extra_mib = (of[pass_] for of in extra)
        return {
            "pass": pass_, "dtype": dtype, "head_dim": head_dim, "seqlen": seqlen, "causal": causal, "dropout_p": p,
            "batch": BATCH, "heads": HEADS, "rounds": len(mine), "torch_rounds": len(theirs),
            "ms": ms, "torch_ms": torch_ms, "ratio": torch_ms / ms, "dropout_overhead": ms / base - 1,
            "gflops": flops / ms / 1e6, "torch_gflops": flops / torch_ms / 1e6, "peak_gflops": peak,
            "percent_of_peak": 100 * flops / ms / 1e6 / peak,
            "torch_percent_of_peak": 100 * flops / torch_ms / 1e6 / peak,
            "extra_mib": extra_mib, "torch_extra_mib": torch_extra_mib,
        }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- main


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--isa", help="the instruction set of ours [default: the fastest]")
    parser.add_argument("--name", default="cpu", help="of the files written; README's table is written for cpu only [cpu]")
    parser.add_argument("--seconds", type=float, default=6.0, help="per shape, once every row has its rounds [6]")
    parser.add_argument("--quick", action="store_true", help="one round of a few small shapes; writes nothing")
    parser.add_argument("--signflash", type=pathlib.Path, help="the binary [default: built here by cargo]")
    parser.add_argument("--render", action="store_true", help="only write the tables again, from the JSON file")
    parser.add_argument("--memory-meter", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.signflash or args.memory_meter or args.render):
        build = ["cargo", "build", "--release", "--package", "signflash-cli", "--message-format", "json"]
        done = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        messages = map(json.loads, done.stdout.splitlines())
        args.signflash = pathlib.Path([m["executable"] for m in messages if m.get("executable")][-1])
    return args


def measure(args):
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shapes = itertools.product(("f32", "bf16", "f16"), (64, 128), (1024, 2048, 4096), (False, True))
    if args.quick:
        shapes = itertools.product(("f32", "bf16", "f16"), (64,), (512,), (False,))
    run, rows = Run(args, torch), []
    print("  ".join(COLUMNS), flush=True)
    for shape in shapes:
        for row in run.group(*shape):
            rows.append(row)
            print("  ".join(f"{cell:>{len(name)}}" for name, cell in zip(COLUMNS, cells(row))), flush=True)
    run.meter.close()
    one = run.ours.round(*shape, reps=1)[DROPOUT[0], "fwd"]
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "crates", "Cargo.lock"], cwd=ROOT, capture_output=True, text=True
    )
    counts = sorted({row["rounds"] for row in rows})
    about = {
        "cpu": cpu_name(one["machine"]), "cores": os.cpu_count(), "threads": args.threads, "isa": one["isa"],
        "torch": torch.__version__, "python": sys.version.split()[0],
        "commit": one["commit"] + (" with local changes" if changed.stdout.strip() else ""),
        "date": datetime.date.today().isoformat(), "command": " ".join(["python3 benchmarks/cpu.py", *sys.argv[1:]]),
        "peak_gflops": {
            dtype: statistics.median(row["peak_gflops"] for row in rows if row["dtype"] == dtype)
            for dtype in dict.fromkeys(row["dtype"] for row in rows)
        },
        "rounds": "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
        "repeated_rounds": run.repeated, "disturbed_rounds": run.disturbed,
    }  # fmt: skip
    print(heading(about))
    print(f"{run.repeated} rounds repeated because the machine was disturbed, {run.disturbed} kept although it was")
    return about, rows


def main():
    args = arguments()
    if args.memory_meter:
        memory_meter(args.threads)
        return
    folder = ROOT / "benchmarks"
    if args.render:
        stored = json.loads((folder / f"{args.name}.json").read_text())
        about, rows = stored["about"], stored["rows"]
    else:
        about, rows = measure(args)
        if args.quick:
            return
        lines = ",\n".join("  " + json.dumps(row) for row in rows)
        (folder / f"{args.name}.json").write_text(f'{{"about": {json.dumps(about, indent=1)}, "rows": [\n{lines}\n]}}\n')
    (folder / f"{args.name}.md").write_text(report(about, rows))
    if args.name == "cpu":
        fill_readme("results", selection(about, rows))


if __name__ == "__main__":
    main()
