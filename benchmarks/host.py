#!/usr/bin/env python3
"""What a call of attention costs the host, next to PyTorch's own, and where the time goes: tensors of (1, 16, 1, 64).

    python3 benchmarks/host.py [--device cpu] [--rounds 60] [--calls 60] [--only turns,stages]

All take turns. Times are microseconds of the calling thread's own time a call, so that what else a machine does counts
less: the median round, and in brackets the least. PyTorch is `scaled_dot_product_attention` as it chooses: its flash kernel at
p = 0; with dropout, on the CPU, the plain formula. "Long way" is ours where PyTorch has no stable C functions that do
what the short way needs (before 2.14). A backward is `torch.autograd.grad`. On a GPU a backward runs in a thread of PyTorch's, unless it is told
otherwise, as here.
"""

import argparse
import contextlib
import functools
import statistics
import time

import signflash
import torch
from signflash import _native
from signflash._settings import UNBOUNDED, Settings, judged
from signflash._torch import attention as half
from signflash._torch import native, quick
from torch.nn.functional import scaled_dot_product_attention

SHAPE = (1, 16, 1, 64)


def make(device, dtype, requires_grad):
    return [torch.randn(SHAPE, device=device).to(dtype).requires_grad_(requires_grad) for _ in range(3)]


@contextlib.contextmanager
def long_way():
    there, quick.IS_THERE = quick.IS_THERE, False
    try:
        yield
    finally:
        quick.IS_THERE = there


def us_a_call(run, calls):
    start = time.thread_time_ns()
    for _ in range(calls):
        run()
    return (time.thread_time_ns() - start) / calls / 1000


def peers(p):
    """(name, context, call, whether it has heads before rows)."""
    ours = functools.partial(signflash.attention, dropout_p=p)
    yield "signflash", contextlib.nullcontext, ours, False
    yield "long way", long_way, ours, False
    yield "PyTorch", contextlib.nullcontext, functools.partial(scaled_dot_product_attention, dropout_p=p), True


def grad_of(call, tensors, into):
    return torch.autograd.grad(call(*tensors), tensors, into)


def runs_of(device, dtype, p):
    plain, learning = make(device, dtype, False), make(device, dtype, True)
    for name, context, call, heads_first in peers(p):
        a, b = plain, learning
        if heads_first:
            a, b = ([x.detach().transpose(1, 2).requires_grad_(x.requires_grad) for x in given] for given in (a, b))
        with context():
            out = call(*b)
        into = torch.randn_like(out)
        backward = functools.partial(torch.autograd.grad, out, b, into, retain_graph=True)
        for what, run in (
            ("forward", functools.partial(call, *a)),
            ("recorded", functools.partial(call, *b)),
            ("backward", backward),
            ("both", functools.partial(grad_of, call, b, into)),
        ):
            yield what, name, context, run


def turns(a):
    dtypes = (torch.float32, torch.bfloat16) if a.device == "cpu" else (torch.bfloat16,)
    names = [name for name, *_ in peers(0.0)]
    print("| | p | |", " | ".join(names), "| signflash / PyTorch |")
    print("| --- | ---: | --- |" + " ---: |" * (len(names) + 1))
    for dtype in dtypes:
        for p in (0.0, 0.1):
            runs = list(runs_of(a.device, dtype, p))
            found = {(what, name): [] for what, name, *_ in runs}
            for round_ in range(a.rounds + 2):
                for what, name, context, run in runs:
                    with context():
                        us = us_a_call(run, a.calls)
                    if round_ >= 2:
                        found[what, name].append(us)
                if a.device == "cuda":
                    torch.cuda.synchronize()
            for what in dict.fromkeys(what for what, *_ in runs):
                times = [found[what, name] for name in names]
                cells = [f"{statistics.median(us):.1f} ({min(us):.1f})" for us in times]
                ratio = statistics.median(x / y for x, y in zip(times[0], times[-1]))
                print(f"| {str(dtype)[6:]} | {p:g} | {what} |", " | ".join(cells), f"| {ratio:.2f} |", flush=True)


class Nothing(torch.autograd.Function):
    """What autograd itself takes for a function of Python's that saves as much as ours."""

    @staticmethod
    def forward(ctx, out, q, k, v):
        ctx.to_save = (q, k, v, out, out)
        return out.view(SHAPE)

    @staticmethod
    def backward(ctx, dout):
        ctx.saved_tensors
        return None, dout, dout, dout


def engine(out, tensors):
    run = torch.autograd.Variable._execution_engine.run_backward
    return functools.partial(
        run, (out,), (torch.ones_like(out),), True, False, tuple(tensors), True, accumulate_grad=False
    )


def stages_of(device):
    """(what, run), each beside what it is a part of."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    (q, k, v), learning = make(device, dtype, False), make(device, dtype, True)
    settings, state = Settings(), (0, 0)
    yield "forward: signflash.attention", lambda: signflash.attention(q, k, v)
    yield "- judging numbers", lambda: judged(0.0, None, False, UNBOUNDED, "unbiased", None, None, None)
    yield "- what knows PyTorch, without those", lambda: half.attention((q, k, v), settings)
    yield "- the native half, allocating", lambda: quick.attend(q, k, v, settings, state, False, False)
    out, lse = signflash.attention(q, k, v, return_lse=True)
    at, name = native._place(q), native.NAMES[dtype]
    read, numbers = tuple(native._told(x) for x in (q, k, v)), (0, 0, 0)
    forward = (None, None, out.data_ptr(), lse.data_ptr(), None, 0, numbers, settings)
    yield (
        "- problem and kernel, with Python's call",
        lambda alive=(q, k, v, out, lse): _native.forward(at, name, read, *forward),
    )
    yield "two allocations from Python", lambda: (torch.empty_like(q), q.new_empty((1, 1, 16), dtype=torch.float32))
    yield "recorded: the native half", lambda: quick.attend(*learning, settings, state, False, False)
    apply = super(torch.autograd.Function, Nothing).apply
    yield "- a function that only saves", lambda: apply(out, *learning)
    recorded = signflash.attention(*learning)
    yield "backward: PyTorch's engine and ours", engine(recorded, learning)
    yield "- the engine and a function that does nothing", engine(apply(out, *learning), learning)
    node, into = recorded.grad_fn, torch.ones_like(recorded)

    def gradients():
        with torch.no_grad():
            _native.gradients(node, (into,))

    yield "- the native half, allocating, and no_grad", gradients
    told = tuple(native._told(x) for x in (q, k, v, out, into))
    alive = (q, k, v, out, into, lse, *(torch.empty_like(x) for x in (q, k, v)))
    written = (*(x.data_ptr() for x in alive[-3:]), None, None)
    rows = (native._told(lse), None)
    if device == "cpu":
        backward = (None, None, written, 0, False, numbers, settings)
        run = lambda alive=alive: _native.backward(at, name, told, rows, *backward)  # noqa: E731
        yield "- problem and kernel, with Python's call", run
    given = [x.transpose(1, 2) for x in (q, k, v)]
    yield "PyTorch: forward", lambda: scaled_dot_product_attention(*given)
    turned = [x.detach().transpose(1, 2).requires_grad_() for x in learning]
    yield "PyTorch: recorded", lambda: scaled_dot_product_attention(*turned)
    yield "PyTorch: backward", engine(scaled_dot_product_attention(*turned), turned)


def stages(a):
    runs = list(stages_of(a.device))
    found = [[us_a_call(run, a.calls) for _, run in runs] for _ in range(a.rounds)]
    print("| | us | least |\n| --- | ---: | ---: |")
    for (what, _), times in zip(runs, zip(*found)):
        print(f"| {what} | {statistics.median(times):.1f} | {min(times):.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--only", default="turns,stages")
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"PyTorch {torch.__version__}, signflash {signflash.__version__}, short way: {quick.IS_THERE}")
    with torch.autograd.set_multithreading_enabled(False):
        for name in a.only.split(","):
            {"turns": turns, "stages": stages}[name](a)


if __name__ == "__main__":
    main()
