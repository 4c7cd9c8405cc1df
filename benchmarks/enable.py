#!/usr/bin/env python3
"""Models of PyTorch and of libraries before and after `signflash.enable()`: what is taken, and what it saves.

    pip install timm torchvision x-transformers transformers torch-geometric
    python3 benchmarks/enable.py                     writes enable.json and enable.md; with `--device cuda`
                                                     enable_gpu.json and enable_gpu.md
    python3 benchmarks/enable.py --only BERT         rows whose names have it; prints, writes nothing
    python3 benchmarks/enable.py --again BERT        the same, in place of what there is of these rows
    python3 benchmarks/enable.py --losses            100 steps of two models with several seeds; writes enable_losses.json and .md
    python3 benchmarks/enable.py --render            the pages from the results there

A row is a model's training step, forward and backward, in train() with attention dropout, weights at random, on the CPU in
float32, on a GPU in bfloat16 under autocast. `signflash.explain` says of each attention of one step whether it is taken and why not. Then both sides take turns, in another order each round: the whole step; and the calls that were
seen, again, alone, forward and backward. A time is the median of the rounds; on the CPU it is processor time of one thread, which
says what is computed on machines that others use, too (`--threads`: the sum of more). Extra memory is the growth of the peak in a step, in
a process of its own for each side: of resident memory, on a GPU of what PyTorch allocated.
"""

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
import warnings

import enable_cases
import enable_losses
import torch
from cpu import cpu_name, status_bytes
from enable_calls import watched
from enable_cases import CASES, P

FOLDER = pathlib.Path(__file__).resolve().parent
MIB = 1024.0 * 1024.0
SIDES = ("pytorch", "signflash")
PACKAGES = ("torch", "timm", "torchvision", "x-transformers", "transformers", "torch-geometric")
LEAST_ROUNDS = 3
#: Times as fast as PyTorch, for attention alone: PyTorch stores all probabilities on the CPU, and has kernels on GPUs.
GOALS = {"cpu": 3, "cuda": 1}
#: Files of results, without their endings.
NAMES = {"cpu": "enable", "cuda": "enable_gpu"}
LOSSES = {"cpu": "enable_losses", "cuda": "enable_losses_gpu"}
#: Sequences of a step: on a GPU so many that its time is not the host's.
BATCHES = {"cpu": 2, "cuda": 16}


# ------------------------------------------------------------------------------------------------------ both sides


def switch(side):
    """Outside of what is timed."""
    import signflash

    if side == "signflash":
        signflash.enable(transformers=False)
    else:
        signflash.disable()


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(run, device):
    """By the clock on a GPU; on the CPU of the process's own processor time, which others on the machine change little."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    synchronize(device)
    began = clock()
    run()
    synchronize(device)
    return (clock() - began) * 1e3


def in_turns(prepare, device, seconds):
    """{side: {"median": ms, "least": ms}}; prepare() makes what is timed, anew each time, and its first two are not counted."""
    times, order = {side: [] for side in SIDES}, random.Random(1)
    until, rounds = time.monotonic() + seconds, 0
    while rounds < 1 + LEAST_ROUNDS or time.monotonic() < until:
        for side in order.sample(SIDES, len(SIDES)):
            switch(side)
            took = milliseconds(prepare(), device)
            if rounds:
                times[side].append(took)
        rounds += 1
    switch("pytorch")
    found = {side: {"median": statistics.median(took), "least": min(took)} for side, took in times.items()}
    return {**found, "rounds": rounds - 1}


def peak_growth(run, device):
    """Bytes by which the peak in run() lies above what there was before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what is free inside the allocator would hide growth
    before = status_bytes("VmRSS:")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from here
    run()
    return max(status_bytes("VmHWM:") - before, 0)


# ------------------------------------------------------------------------------------------------------------ rows


class Step:
    """A case's training step on a device."""

    def __init__(self, case, device):
        torch.manual_seed(0)
        self.device, self.loss = device, case.make(device)

    def __call__(self):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss()
        loss.backward()


def row_of(case, device, seconds):
    import signflash

    step = Step(case, device)
    step()  # gradients are there, and what libraries make once
    with watched() as calls:
        step()
    attentions = signflash.explain(step).attentions
    own = {f"own softmax, p={x.dropout_p:g}" for x in attentions if x.key is None}
    row = dict(library=case.library, name=case.name, tokens=case.tokens)
    row["what"] = sorted({call.words() for call in calls} | own)
    row["calls"] = sum(attentions.values())
    row["taken"] = sum(count for x, count in attentions.items() if x.taken)
    row["reasons"] = sorted({x.why for x in attentions if not x.taken})
    row["memory"] = {}
    for side in SIDES:
        switch(side)
        row["memory"][side] = peak_growth(step, device) / MIB
    row["step"] = in_turns(lambda: step, device, seconds)
    if calls:
        row["attention"] = in_turns(lambda: together([call.prepare() for call in calls], device), device, seconds)
    return row


def together(runs, device):
    def run():
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device == "cuda"):
            for one in runs:
                one()

    return run


def measure(args):
    rows, missing = [], {}
    for case in CASES:
        if (args.only or args.again or "") not in f"{case.library} {case.name} {case.tokens}":
            continue
        try:
            row = row_of(case, args.device, args.seconds)
        except ImportError as error:
            missing[case.library] = str(error)
            continue
        gc.collect()
        rows.append({**row, "commit": args.commit or commit()})
        print(line(rows[-1]), flush=True)
        if not args.only and not args.again:
            write(NAMES[args.device], {"about": about(args, missing), "rows": rows})
    return {"about": about(args, missing), "rows": rows}


def in_place(rows, name):
    """What there is, with these rows in place of those of the same models."""
    found, new = json.loads((FOLDER / f"{name}.json").read_text()), {key(row): row for row in rows}
    found["rows"] = [new.pop(key(row), row) for row in found["rows"]] + list(new.values())
    return found


def key(row):
    return row["library"], row["name"], row["tokens"]


def about(args, missing):
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    import signflash

    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name("CPU")
    return dict(
        date=datetime.date.today().isoformat(), machine=machine, device=args.device, threads=torch.get_num_threads(),
        batch=enable_cases.BATCH, cores=os.cpu_count(), load=os.getloadavg()[0], commit=args.commit or commit(), signflash=signflash.__version__,
        versions=versions, missing=missing, command=" ".join(["python3", "benchmarks/enable.py", *sys.argv[1:]]),
    )  # fmt: skip


def commit():
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=FOLDER)
    return done.stdout.strip() or None


# ------------------------------------------------------------------------------------------------------------ page


def ratio(times):
    return times["pytorch"]["median"] / times["signflash"]["median"]


def cells(row):
    """Of the table; what was not measured is empty."""
    found = [row["library"], row["name"], str(row["tokens"]), "; ".join(row["what"])]
    found.append(f"{row['taken']} of {row['calls']}")
    for part in ("attention", "step"):
        times = row.get(part)
        numbers = [] if times is None else [*(times[side]["median"] for side in SIDES), ratio(times)]
        found += [f"{x:.1f}" if x >= 10 else f"{x:.2f}" for x in numbers] or [""] * 3
    return [*found, *(f"{row['memory'][side]:.0f}" for side in SIDES), row["commit"]]


def line(row):
    return "| " + " | ".join(cells(row)) + " |"


HEAD = ["library", "model", "tokens", "its attention", "taken"]
HEAD += [f"{part}: {what}" for part in ("attention", "step") for what in ("PyTorch ms", "ours ms", "ratio")]
HEAD += ["extra memory: PyTorch MiB", "ours MiB", "of commit"]


def page(found):
    about, rows = found["about"], found["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    taken = [row for row in rows if row["taken"] == row["calls"] and "attention" in row and row["tokens"] >= 512]
    least = GOALS[about["device"]]
    slow = [row for row in taken if ratio(row["attention"]) < least]
    goal = f"Of {len(taken)} models of 512 tokens and more whose attention is taken, {len(taken) - len(slow)} compute it at"
    goal += f" least {least} times as fast" if least > 1 else " least as fast"
    names = [f"{row['library']} {row['name']} ({ratio(row['attention']):.2f})" for row in slow]
    goal += f"; these do not: {'; '.join(names)}." if slow else "."
    table = ["| " + " | ".join(HEAD) + " |", "|---|---|---:|---|---:|" + "---:|" * (len(HEAD) - 5), *map(line, rows)]
    text = f"""# Models before and after `signflash.enable()`

{about["machine"]}, threads: {about["threads"]}, load {about["load"]:.1f} on {about["cores"]} cores; {versions}. Signflash
{about["commit"]}, {about["date"]}: `{about["command"]}`, which says how. Batch {about.get("batch", 2)}, attention dropout {P} where nothing else
is said. Ratio is PyTorch's time over ours.

{goal}

{chr(10).join(table)}

## What is not taken, and why

"""
    reasons = {}
    for row in rows:
        for reason in row["reasons"]:
            reasons.setdefault(reason, []).append(f"{row['library']} {row['name']} ({row['tokens']})")
    text += "".join(f"- {reason}: {', '.join(names)}\n" for reason, names in reasons.items())
    text += "".join(f"- {library} was not there: {why}\n" for library, why in about["missing"].items())
    return text


def render(folder=FOLDER):
    pages = [(name, page) for name in NAMES.values()] + [(name, enable_losses.page) for name in LOSSES.values()]
    for name, make in pages:
        path = folder / f"{name}.json"
        if path.exists():
            (folder / f"{name}.md").write_text(make(json.loads(path.read_text())))


def write(name, found):
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=6.0, help="of a row's step, and again of its attention")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    parser.add_argument("--only", help="rows whose library, name and tokens have this in them; writes nothing")
    parser.add_argument("--again", help="these rows, in place of what there is of them")
    parser.add_argument("--batch", type=int, help="sequences of a step [2, on a GPU 16]")
    parser.add_argument("--commit", help="what the package was built from")
    parser.add_argument("--losses", action="store_true", help="train instead")
    parser.add_argument("--seeds", type=int, default=8, help="of --losses")
    parser.add_argument("--render", action="store_true", help="only write the pages, from the results there")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.nn")
    torch.set_num_threads(args.threads)
    enable_cases.BATCH = args.batch or BATCHES[args.device]
    if args.losses:
        found = {"about": about(args, {}), "losses": enable_losses.run(switch, args.seeds, args.device)}
        write(LOSSES[args.device], found)
        print(enable_losses.page(found))
    elif not args.render:
        found = measure(args)
        if args.again:
            found = in_place(found["rows"], NAMES[args.device])
            write(NAMES[args.device], found)
        print(page(found))
    if not args.only:
        render()


if __name__ == "__main__":
    main()
