#!/usr/bin/env python3
"""Signflash beside PyTorch's own layers on this machine's CPU: a training step that alternates linear layers and attention.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/cpu_beside.py           a few minutes; prints a table
    python3 benchmarks/cpu_beside.py --quick   does it run?

A layer is a linear layer to q, k and v, attention, and a linear layer back; a step is forward and backward of some of them. The
same step is run, in turns, with our attention, with PyTorch's, and with none (v instead). What a kind of attention takes
in the step is its time less the step's without; what it takes alone is measured between them, calls of attention only. A library
whose threads disturb PyTorch's, or are disturbed by them, takes longer in the step than alone.

GFLOP/s count 14 * batch * heads * seqlen^2 * head_dim operations of a layer's attention: 4 forward, 10 backward.
"""

import argparse
import datetime
import statistics
import sys
import time

SHAPES = ((4, 256, 12, 64), (16, 256, 12, 64), (4, 1024, 8, 64))  # batch, seqlen, heads, head_dim
DTYPES = ("float32", "bfloat16")
KINDS = ("ours", "torch", "none")


def attentions():
    import torch.nn.functional as F

    import signflash

    def theirs(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return {"ours": signflash.attention, "torch": theirs, "none": lambda q, k, v: v}


class Step:
    """A model of some layers, and one step of it with any attention."""

    def __init__(self, torch, shape, dtype, layers):
        batch, seqlen, heads, head_dim = shape
        width = heads * head_dim
        self.torch, self.shape = torch, shape
        self.x = torch.randn(batch, seqlen, width, dtype=dtype)
        self.layers = [(torch.nn.Linear(width, 3 * width, dtype=dtype), torch.nn.Linear(width, width, dtype=dtype))
                       for _ in range(layers)]  # fmt: skip
        self.alone = [torch.randn(*shape, dtype=dtype, requires_grad=True) for _ in range(3)]
        self.dout = torch.randn(*shape, dtype=dtype)

    def in_step(self, attention):
        x, shape = self.x, self.shape
        for into, back in self.layers:
            q, k, v = into(x).chunk(3, -1)
            out = attention(*(y.view(shape) for y in (q, k, v)))
            x = x + back(out.reshape(x.shape))
        x.sum().backward()

    def by_itself(self, attention):
        for _ in self.layers:
            self.torch.autograd.grad(attention(*self.alone), self.alone, self.dout)


def timed(call, *args):
    start = time.perf_counter()
    call(*args)
    return 1e3 * (time.perf_counter() - start)


def measure(torch, shape, name, layers, rounds):
    """{kind: [ms in each step]}, {kind: [ms alone]}."""
    step, attention = Step(torch, shape, getattr(torch, name), layers), attentions()
    in_step, alone = ({kind: [] for kind in KINDS} for _ in range(2))
    for at in range(rounds + 1):
        for kind in KINDS:
            ms = timed(step.in_step, attention[kind])
            by_itself = timed(step.by_itself, attention[kind]) if kind != "none" else 0.0
            if at:  # the first round is warming up
                in_step[kind].append(ms)
                alone[kind].append(by_itself)
    return in_step, alone


def row(torch, shape, name, args):
    batch, seqlen, heads, head_dim = shape
    in_step, alone = measure(torch, shape, name, args.layers, args.rounds)
    gigaflop = 14e-9 * batch * heads * seqlen**2 * head_dim * args.layers

    def rates(of):
        none = of(in_step["none"])
        return [gigaflop / 1e-3 / ms for kind in KINDS[:2] for ms in (of(in_step[kind]) - none, of(alone[kind]))]

    steps = [statistics.median(in_step[kind]) for kind in KINDS]
    cells = [f"{steps[0]:.1f}", f"{steps[1]:.1f}", f"{steps[1] / steps[0]:.2f}"]
    cells += [f"{median:.0f} ({best:.0f})" for median, best in zip(rates(statistics.median), rates(min))]
    return [" x ".join(map(str, shape)), name, *cells]


COLUMNS = ["batch x seqlen x heads x head_dim", "dtype", "step ms, ours", "torch", "torch / ours",
           "ours in step, GFLOP/s (best)", "ours alone", "torch in step", "torch alone"]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--quick", action="store_true", help="two rounds of one shape")
    args = parser.parse_args()
    import torch

    import signflash

    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = SHAPES[:1] if args.quick else SHAPES
    if args.quick:
        args.rounds = 2
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; {signflash.info()}; "
          f"{datetime.date.today()}; {' '.join(sys.argv)}")  # fmt: skip
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for shape in shapes:
        for name in DTYPES:
            print("| " + " | ".join(row(torch, shape, name, args)) + " |", flush=True)


if __name__ == "__main__":
    main()
