#!/usr/bin/env python3
"""What `signflash.enable()` costs and gains on a GPU: the host's time of a call, and from how many pairs on ours is faster.

    python3 benchmarks/enable_host.py [--seconds 25] [--calls 40] [--pairs]

Calls of `F.scaled_dot_product_attention` of (1, 1, 64, 64) in bfloat16, for each kernel that `sdpa_kernel` can ask for, in turns:
PyTorch's own; ours by kernels in Python, as PyTorch before 2.10 has them; ours by native ones; and calls that stay with PyTorch
while ours is enabled (`left`). Times are microseconds of the calling thread's own time a call, so that what else a machine does
counts less: the median round, and in brackets the least. A backward is `torch.autograd.grad`, which is told to run in the calling
thread.

With `--pairs`: forward and backward as PyTorch chooses its kernel, 24 in a row, until the GPU is done, in milliseconds.
"""

import argparse
import math
import statistics
import time

import signflash
import torch
from signflash._sdpa import fused, native
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

DTYPE = torch.bfloat16
#: What has the same cost in cuDNN's mask and in ours.
P = 0.125
#: More pairs than any call has: all stay with PyTorch.
NEVER = 1 << 62
IS_THERE = native.is_there
#: (whether kernels are native, from how many pairs on calls are ours); None is PyTorch alone.
SIDES = {
    "PyTorch": None,
    "Python": (lambda: False, 0),
    "native": (IS_THERE, 0),
    "left, Python": (lambda: False, NEVER),
    "left, native": (IS_THERE, NEVER),
}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
#: (batch, num_heads, seqlen, head_dim).
PROBLEMS = [
    (8, 12, 128, 64),
    (16, 8, 256, 64),
    (8, 8, 512, 64),
    (16, 8, 512, 64),
    (32, 16, 512, 64),
    (16, 8, 1024, 64),
    (8, 16, 1024, 128),
]
IN_A_ROW = 24


def switch(side):
    signflash.disable()
    if SIDES[side] is not None:
        native.is_there, least_pairs = SIDES[side]
        fused.LEAST_PAIRS = native.LEAST_PAIRS = least_pairs
        signflash.enable(pytorch=True, transformers=False)


def is_told(side, kernel, p):
    """Whether such a call is another than those of the other sides: without dropout only flash is ours, which leaves none."""
    if side.startswith("left"):
        return p > 0.0 and kernel != "flash"
    return p > 0.0 or kernel == "flash" or side == "PyTorch"


def us_a_call(run, calls):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.thread_time_ns()
    for _ in range(calls):
        run()
    took = time.thread_time_ns() - start
    torch.cuda.synchronize()
    return took / calls / 1000


def passes(p):
    def make(learn):
        generator = torch.Generator("cuda").manual_seed(0)
        one = torch.randn(3, 1, 1, 64, 64, device="cuda", dtype=DTYPE, generator=generator)
        return [x.requires_grad_(learn) for x in one.unbind()]

    plain, learn = make(False), make(True)
    out = scaled_dot_product_attention(*learn, dropout_p=p)
    dout = torch.randn_like(out)
    yield "forward", lambda: scaled_dot_product_attention(*plain, dropout_p=p)
    yield "recorded", lambda: scaled_dot_product_attention(*learn, dropout_p=p)
    yield "backward", lambda: torch.autograd.grad(out, learn, dout, retain_graph=True)
    yield "both", lambda: torch.autograd.grad(scaled_dot_product_attention(*learn, dropout_p=p), learn, dout)


def host(until, calls):
    found = {}
    while time.time() < until:
        for side in SIDES:
            switch(side)
            for name, kernel in KERNELS.items():
                for p in (0.0, P):
                    if not is_told(side, name, p):
                        continue
                    with sdpa_kernel(kernel), torch.autograd.set_multithreading_enabled(False):
                        for which, run in passes(p):
                            found.setdefault((name, p, which), {}).setdefault(side, []).append(us_a_call(run, calls))
    signflash.disable()
    print("| kernel | p | | " + " | ".join(SIDES) + " | native / PyTorch |")
    print("|---|---:|---|" + "---:|" * (len(SIDES) + 1))
    for (name, p, which), took in found.items():
        cells = [f"{statistics.median(took[x]):.1f} ({min(took[x]):.1f})" if x in took else "" for x in SIDES]
        ratios = [ours / theirs for ours, theirs in zip(took.get("native", ()), took["PyTorch"])]
        cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        print(f"| {name} | {p:g} | {which} | " + " | ".join(cells) + " |")


def step(problem, seen):
    batch, num_heads, seqlen, head_dim = problem
    generator = torch.Generator("cuda").manual_seed(0)
    rows = torch.randn(4, batch, seqlen, num_heads, head_dim, device="cuda", dtype=DTYPE, generator=generator)
    *tensors, dout = rows.transpose(2, 3).unbind()
    tensors = [x.requires_grad_() for x in tensors]
    mask = None
    if seen == "padding":
        lengths = torch.linspace(seqlen // 2, seqlen, batch, device="cuda").long()
        mask = (torch.arange(seqlen, device="cuda") < lengths[:, None])[:, None, None]

    def run():
        out = scaled_dot_product_attention(*tensors, attn_mask=mask, dropout_p=0.1, is_causal=seen == "causal")
        return torch.autograd.grad(out, tensors, dout)

    return run


def ms_a_step(run):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(IN_A_ROW):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / IN_A_ROW * 1e3


def pairs(seconds):
    kinds = ("all keys", "causal", "padding")
    steps = {(problem, seen): step(problem, seen) for problem in PROBLEMS for seen in kinds}
    for side in ("PyTorch", "native"):  # kernels are compiled, and cuDNN plans
        switch(side)
        for run in steps.values():
            run()
    found, until = {}, time.time() + seconds
    while time.time() < until:
        for side in ("PyTorch", "native"):
            switch(side)
            for key, run in steps.items():
                found.setdefault(key, {}).setdefault(side, []).append(ms_a_step(run))
    signflash.disable()
    print("| batch, heads, tokens, head_dim | pairs | all keys: PyTorch ms, ours, ratio | causal | padding |")
    print("|---|---|---|---|---|")
    for problem in sorted(PROBLEMS, key=lambda x: x[0] * x[1] * x[2] * x[2]):
        cells = [f"2^{math.log2(problem[0] * problem[1] * problem[2] * problem[2]):.1f}"]
        for seen in kinds:
            theirs, ours = (found[problem, seen][side] for side in ("PyTorch", "native"))
            ratio = statistics.median([x / y for x, y in zip(theirs, ours)])
            cells.append(f"{statistics.median(theirs):.3f}, {statistics.median(ours):.3f}, {ratio:.2f}")
        print(f"| {', '.join(map(str, problem))} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--pairs", action="store_true")
    a = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, signflash {signflash.__version__}, native {IS_THERE()}\n")
    pairs(a.seconds) if a.pairs else host(time.time() + a.seconds, a.calls)


if __name__ == "__main__":
    main()
