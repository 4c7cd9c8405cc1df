#!/usr/bin/env python3
"""Attention of one sequence on several GPUs, forward + backward: ours by each method, one GPU, and PyTorch's context_parallel.

    torchrun --nproc-per-node 2 benchmarks/distributed.py [--lengths 16384 32768 65536] [--json FILE] [--trace FILE]
    torchrun --nproc-per-node 2 benchmarks/distributed.py --device cpu --lengths 256 --rounds 2    only shows that it runs

Those that are compared take turns in each round, after a barrier: some calls one behind the other, as the layers of a model are, of
which the host prepares one while the GPU computes another. A time is that of the slowest rank, and the table has medians of rounds. `x` is one GPU's time over that of all. A second table has the forward alone, and the memory that a forward and backward
take beyond operands, at most, on the rank that takes most. `--trace` writes what rank 0's GPU did, kernel by kernel, one forward
and backward of each method at the second length, and how long kernels computed, how long they sent, and how long both at once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import signflash
import torch
import torch.distributed as dist
import torch.nn.functional as F
from signflash import distributed

#: Where PyTorch has its own context_parallel, and what it is to do.
PYTORCHS = [f"torch.distributed.tensor.experimental.{name}" for name in ("_attention", "_context_parallel._attention")]
METHODS = ("ring", "all_gather", "ulysses")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 32768, 65536])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--heads-k", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--calls",
        type=int,
        default=4,
        help="one behind the other, for each time, at the first length; half as many at twice the length",
    )
    parser.add_argument("--causal", choices=("yes", "no"), nargs="+", default=["yes", "no"])
    parser.add_argument("--no-priority", action="store_true", help="NCCL's streams have no priority over others")
    parser.add_argument("--commit", default="", help="of signflash, for the heading")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", type=Path)
    return parser.parse_args()


class Clock:
    """Milliseconds of a call, of the slowest rank."""

    def __init__(self, device, calls):
        self.device, self.calls = device, calls

    def of(self, call):
        dist.barrier()
        self.wait()
        began = time.perf_counter()
        for _ in range(self.calls):
            call()
        self.wait()
        took = torch.tensor([1e3 * (time.perf_counter() - began) / self.calls], device=self.device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        return float(took)

    def forward_of(self, call):
        """The same of the call's forward alone."""
        return self.of(lambda: call(False))

    def memory_of(self, call):
        """MiB that it takes beyond what is there before, at most, on the rank that takes most; 0 on the CPU."""
        if self.device.type != "cuda":
            return 0.0
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        took = torch.tensor([(torch.cuda.max_memory_allocated() - before) / 2**20], device=self.device)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        return float(took)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def tensors(a, seqlen, device, dtype):
    generator = torch.Generator().manual_seed(seqlen)
    heads = (a.heads, a.heads_k, a.heads_k, a.heads)
    return [torch.randn(1, seqlen, h, a.head_dim, generator=generator).to(device, dtype) for h in heads]


def runs(a, seqlen, causal, p, device, dtype):
    """name -> what does one forward and backward; and one GPU's own."""
    q, k, v, dout = tensors(a, seqlen, device, dtype)
    settings = dict(causal=causal, dropout_p=p, seed=3, offset=0)
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    found = {"one": both(lambda: signflash.attention(*whole, **settings), whole, dout)}
    shares = {}
    for layout in {layout_of(method, causal) for method in METHODS}:
        own = [distributed.shard_sequence(x, layout=layout).clone().requires_grad_() for x in (q, k, v)]
        shares[layout] = own, distributed.shard_sequence(dout, layout=layout).clone()
    for method in METHODS:
        layout = layout_of(method, causal)
        own, of_out = shares[layout]
        found[method] = both(
            lambda own=own, method=method, layout=layout: distributed.attention(
                *own, method=method, layout=layout, seqlen=seqlen, **settings
            ),
            own,
            of_out,
        )
    if p == 0.0 and a.heads == a.heads_k:
        found["PyTorch"] = of_pytorch(causal, (q, k, v, dout), device)
    return found, (causal, whole, dout, settings)


def layout_of(method, causal):
    """Ulysses has equal work for all ranks in any, and copies less in the order of positions."""
    return "zigzag" if causal and method != "ulysses" else "contiguous"


def both(forward, leaves, dout):
    """What does a forward, and a backward if it is asked."""

    def run(backward=True):
        if not backward:
            with torch.no_grad():
                return forward()
        return torch.autograd.grad(forward(), leaves, dout)

    return run


def of_pytorch(causal, tensors, device):
    """PyTorch's own, whose buffers are cut anew for each call: only attention is within the time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel

    # It shares causal work out evenly, and takes no other while it does.
    options = [getattr(sys.modules.get(name), "_cp_options", None) for name in PYTORCHS]
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    q, k, v, dout = (x.transpose(1, 2).contiguous() for x in tensors)
    buffers = [x.clone() for x in (q, k, v, dout)]

    def run(backward=True):
        for one in filter(None, options):
            one.enable_load_balance = causal
        with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[2] * 4, no_restore_buffers=set()):
            own = [x.detach().requires_grad_() for x in buffers[:3]]
            if not backward:
                with torch.no_grad():
                    return F.scaled_dot_product_attention(*own, is_causal=causal)
            return torch.autograd.grad(F.scaled_dot_product_attention(*own, is_causal=causal), own, buffers[3])

    return run


def errors(found, reference):
    """The largest relative distance of gradients to one GPU's, by method."""
    causal, whole, dout, settings = reference
    of_one = torch.autograd.grad(signflash.attention(*whole, **settings), whole, dout)
    far = {}
    for method in METHODS:
        if method not in found:
            continue
        wanted = [distributed.shard_sequence(x, layout=layout_of(method, causal)).float() for x in of_one]
        got = found[method]()
        norms = torch.tensor([[float((g.float() - w).norm() ** 2), float(w.norm() ** 2)] for g, w in zip(got, wanted)])
        norms = norms.to(dout.device)
        dist.all_reduce(norms)
        far[method] = float((norms[:, 0] / norms[:, 1]).sqrt().max())
    return far


def timed(a, seqlen, causal, p, device, dtype):
    found, reference = runs(a, seqlen, causal, p, device, dtype)
    clock, times, reasons = Clock(device, max(1, a.calls * a.lengths[0] // seqlen)), {}, {}
    for name in list(found):
        try:
            found[name]()
        except (RuntimeError, NotImplementedError, ValueError, TypeError, ImportError) as error:
            reasons[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            found.pop(name)
    forwards = {}
    for _ in range(a.rounds):
        for name, run in found.items():
            times.setdefault(name, []).append(clock.of(run))
            forwards.setdefault(name, []).append(clock.forward_of(run))
    row = dict(seqlen=seqlen, causal=causal, p=p, missing=reasons, error=errors(found, reference))
    row["forward ms"] = {name: statistics.median(all_of) for name, all_of in forwards.items()}
    row["MiB"] = {name: clock.memory_of(run) for name, run in found.items()}
    row["ms"] = {name: statistics.median(all_of) for name, all_of in times.items()}
    row["least ms"] = {name: min(all_of) for name, all_of in times.items()}
    return row


def line(row):
    one, missing = row["ms"]["one"], row["missing"]
    cells = [f"{row['seqlen']}", "yes" if row["causal"] else "no", f"{row['p']}", f"{one:.2f}"]
    for name in (*METHODS, "PyTorch"):
        cells.append(f"{row['ms'][name]:.2f} x{one / row['ms'][name]:.2f}" if name in row["ms"] else "-")
    cells.append(f"{max(row['error'].values(), default=0.0):.0e}")
    told = "".join(f"\n  {name}: {why}" for name, why in missing.items())
    return "| " + " | ".join(cells) + " |" + told


def more_of(row):
    """Of the second table: the forward alone, and memory."""
    cells = [f"{row['seqlen']}", "yes" if row["causal"] else "no", f"{row['p']}"]
    for name in ("one", *METHODS, "PyTorch"):
        has = name in row["ms"]
        cells.append(f"{row['forward ms'][name]:.2f} ({row['MiB'][name]:.0f} MiB)" if has else "-")
    return "| " + " | ".join(cells) + " |"


def spans_of(events, is_sent):
    """Merged (begin, end) of the GPU's kernels, of those that send or of the others, in microseconds."""
    chosen = sorted((e.time_range.start, e.time_range.end) for e in events if ("nccl" in e.name.lower()) == is_sent)
    merged = []
    for begin, end in chosen:
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def milliseconds(spans):
    return sum(end - begin for begin, end in spans) / 1e3


def overlap(a, b):
    return sum(max(0, min(x[1], y[1]) - max(x[0], y[0])) for x in a for y in b)


def trace(a, device, dtype, rank):
    """Where the time goes: one call of each method."""
    found, _ = runs(a, a.lengths[min(1, len(a.lengths) - 1)], True, a.dropout[-1], device, dtype)
    for method in METHODS:
        found[method]()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        dist.barrier()
        with torch.profiler.profile(activities=kinds) as profile:
            found[method]()
            Clock(device, 1).wait()
        if rank:
            continue
        path = a.trace.with_name(f"{a.trace.stem}-{method}{a.trace.suffix}")
        on_gpu = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        on_gpu.sort(key=lambda e: e.time_range.start)
        begin = on_gpu[0].time_range.start if on_gpu else 0
        lines = [
            f"{e.time_range.start - begin:9.0f} {e.time_range.end - e.time_range.start:8.0f} us  {e.name[:90]}"
            for e in on_gpu
        ]
        path.write_text("\n".join(lines) + "\n")
        computed, sent = spans_of(on_gpu, False), spans_of(on_gpu, True)
        ends = [x for span in (*computed, *sent) for x in span]
        took = (max(ends) - min(ends)) / 1e3 if ends else 0.0
        both = overlap(computed, sent) / 1e3
        print(
            f"{method}: {took:.2f} ms, computing {milliseconds(computed):.2f}, sending {milliseconds(sent):.2f}, both {both:.2f}, neither "
            f"{took - milliseconds(computed) - milliseconds(sent) + both:.2f}; {path}",
            flush=True,
        )


def driver():
    """Of NVIDIA, and NCCL's version, where there are GPUs."""
    if not torch.cuda.is_available():
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return f", driver {told[0] if told else '?'}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"


def main():
    a = arguments()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if a.device == "cuda" else torch.device(a.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # What is sent must not wait until the kernels beside it leave the multiprocessors.
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=not a.no_priority)
        dist.init_process_group("nccl", device_id=device, pg_options=options)
    else:
        dist.init_process_group("gloo")
    rank, dtype = dist.get_rank(), torch.bfloat16
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rows = []
    if rank == 0:
        print(f"{dist.get_world_size()} of {name}{driver()}, PyTorch {torch.__version__}, signflash {a.commit or signflash.__version__}, bf16, "
              f"{a.heads} heads ({a.heads_k} of keys) of {a.head_dim}, forward + backward, ms, median of {a.rounds} times {a.calls} calls")  # fmt: skip
        print("| seqlen | causal | p | one | ring | all-gather | Ulysses | PyTorch | error |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for seqlen in a.lengths:
        for causal in [word == "yes" for word in a.causal]:
            for p in a.dropout:
                rows.append(timed(a, seqlen, causal, p, device, dtype))
                if rank == 0:
                    print(line(rows[-1]), flush=True)
    if a.trace:
        trace(a, device, dtype, rank)
    if rank == 0:
        print("\nThe forward alone, ms, and the memory of a forward and backward beyond operands.")
        print("| seqlen | causal | p | one | ring | all-gather | Ulysses | PyTorch |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        print("\n".join(more_of(row) for row in rows), flush=True)
    if rank == 0 and a.json:
        a.json.write_text(json.dumps(dict(device=name, ranks=dist.get_world_size(), rows=rows), indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
