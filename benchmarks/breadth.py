#!/usr/bin/env python3
"""Windows and packed sequences: ours next to PyTorch's FlashAttention-2 on one NVIDIA GPU, forward and backward.

    python3 benchmarks/breadth.py              needs the package `signflash` and PyTorch; writes breadth.json and breadth.md
    python3 benchmarks/breadth.py --quick      fewer rows; prints, writes nothing
    python3 benchmarks/breadth.py --render     without a GPU, breadth.md from breadth.json

bf16, 16384 tokens and heads * head_dim = 2048, but for BERT's lengths, which have 12 heads of 64 or 6 of 128. For each row
all take turns in one run, in another order each round; a time is the median by CUDA events, after rounds that do not
count. A call is queued up behind other work, so that kernels are timed and not the host. FlashAttention-2 is called as
PyTorch's autograd calls it, `_flash_attention_forward` and `_flash_attention_backward`, with its window or its
cumulative lengths; ours as `signflash.attention` and `attention_backward`. "dense" is ours of the same sequences in a batch,
where they are equally long, or of the whole triangle, where there is a window.
Results of ours and FlashAttention-2's are compared without dropout before either is timed.

Operations are counted of what is seen: 4 * heads * head_dim for each visible entry, 2.5 times that for the backward.
"""

import dataclasses
import functools
import itertools
import pathlib
import random

import turns

FOLDER = pathlib.Path(__file__).resolve().parent
JSON, PAGE = FOLDER / "breadth.json", FOLDER / "breadth.md"
TOKENS, WIDTH, BERT_WIDTH = 16384, 2048, 768
HEAD_DIMS, DROPOUTS = (128, 64), (0.0, 0.1)
WINDOWS = (256, 512, 1024, 2048, 4096, 8192)

TITLES = {
    "window": f"Windows: {TOKENS} queries and keys, causal, each query sees so many keys",
    "equal": "Packed sequences of equal lengths: 8 of 2048",
    "uniform": f"Packed sequences of lengths drawn uniformly from 1 to 2048: {TOKENS} tokens",
    "bert": "Packed sequences of BERT's lengths: 64 of 20 to 512",
}


def drawn_lengths():
    """Always the same."""
    draw = random.Random(0)
    bert = [draw.randint(20, 512) for _ in range(64)]
    uniform = []
    while sum(uniform) < TOKENS:
        uniform.append(min(draw.randint(1, 2048), TOKENS - sum(uniform)))
    return {"equal": [2048] * (TOKENS // 2048), "uniform": uniform, "bert": bert}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row's problem: a window of a long sequence, or packed sequences."""

    kind: str
    head_dim: int
    causal: bool
    dropout_p: float
    window: int = 0  # keys that a query sees; 0 for all before it

    @property
    def heads(self):
        return (BERT_WIDTH if self.kind == "bert" else WIDTH) // self.head_dim

    def lengths(self):
        return [TOKENS] if self.kind == "window" else drawn_lengths()[self.kind]

    def visible(self):
        """Entries that a head sees."""
        entries = 0
        for length in self.lengths():
            seen = min(self.window or length, length)
            entries += length * length if not self.causal else seen * (seen + 1) // 2 + (length - seen) * seen
        return entries

    def tflops(self, pass_, ms):
        forward = 4.0 * self.heads * self.head_dim * self.visible()
        return forward * (2.5 if pass_ == "backward" else 1.0) / ms / 1e9


def cases(quick):
    windows, head_dims = ((1024,), (128,)) if quick else (WINDOWS, HEAD_DIMS)
    for head_dim, window, p in itertools.product(head_dims, windows, DROPOUTS):
        yield Case("window", head_dim, True, p, window)
    for kind, head_dim, causal, p in itertools.product(("equal", "uniform", "bert"), head_dims, (False, True), DROPOUTS):
        yield Case(kind, head_dim, causal, p)


def ours(tensors, dout, **settings):
    """A forward and a backward of the package."""
    import signflash

    if settings["dropout_p"]:
        settings["seed"] = 1
    forward = functools.partial(signflash.attention, *tensors, return_lse=True, **settings)
    out, lse = forward()
    return out, forward, functools.partial(signflash.attention_backward, dout, *tensors, out, lse, **settings)


def fa2(tensors, dout, case, cu_seqlens):
    """The same of PyTorch's FlashAttention-2; (batch, seqlen, heads, head_dim), or (tokens, heads, head_dim)."""
    import torch

    longest = max(case.lengths())
    sides = {"window_size_left": case.window - 1, "window_size_right": 0} if case.window else {}
    lengths = (cu_seqlens, cu_seqlens, longest, longest)
    call = torch.ops.aten._flash_attention_forward
    forward = functools.partial(call, *tensors, *lengths, case.dropout_p, case.causal, False, **sides)
    out, lse, state, unused, _ = forward()
    results = (out, lse, *lengths, case.dropout_p, case.causal, state, unused)
    backward = torch.ops.aten._flash_attention_backward
    return out, forward, functools.partial(backward, dout, *tensors, *results, **sides)


def compared(case, runs):
    """Of the same operands: a time of a wrong result means nothing."""
    expected = runs["fa2"][0]
    far = turns.distance(runs["ours"][0].reshape(expected.shape), expected)
    # With dropout the two draw from different states.
    if not case.dropout_p and not far < turns.FARTHEST:
        raise SystemExit(f"{case}: ours is {far:.1e} from FlashAttention-2's, expected below {turns.FARTHEST}")


def runs_of(case):
    """(out, forward, backward) of each: ours, ours dense, FlashAttention-2's."""
    import torch

    torch.manual_seed(0)
    lengths = case.lengths()
    tokens, one = sum(lengths), case.kind == "window"
    shape = (1, tokens, case.heads, case.head_dim) if one else (tokens, case.heads, case.head_dim)
    q, k, v, dout = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    tensors = (q, k, v)
    settings = {"dropout_p": case.dropout_p, "causal": case.causal}
    runs = {}
    if one:
        runs["ours"] = ours(tensors, dout, window=(case.window - 1, 0), **settings)
        runs["dense"] = ours(tensors, dout, **settings)
        runs["fa2"] = fa2(tensors, dout, case, None)
    else:
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], device="cuda", dtype=torch.int32)
        runs["ours"] = ours(tensors, dout, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, **settings)
        if case.kind == "equal":
            batch = [x.view(len(lengths), lengths[0], *x.shape[1:]) for x in (*tensors, dout)]
            runs["dense"] = ours(batch[:3], batch[3], **settings)
        runs["fa2"] = fa2(tensors, dout, case, cu_seqlens)
    compared(case, runs)
    return runs


def measure(args):
    import torch

    whose, rows = turns.about(args.commit), []
    with torch.no_grad():
        for case in cases(args.quick):
            row = {**dataclasses.asdict(case), "tokens": sum(case.lengths()), "visible": case.visible()}
            row.update(turns.timed(runs_of(case), args.rounds))
            for pass_ in ("forward", "backward"):
                rates = {name: round(case.tflops(pass_, ms)) for name, ms in row[pass_].items() if name != "dense"}
                print(case, pass_, {name: round(ms, 4) for name, ms in row[pass_].items()}, rates, flush=True)
            rows.append(row)
            if not args.quick:
                turns.keep(JSON, whose, rows)
    return whose, rows


def case_of(row):
    return Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)})


def both(row, name):
    return row["forward"][name] + row["backward"][name]


def dense_rate(row, pass_):
    """Ours per visible entry, as a part of what the dense call computes of its own."""
    case = case_of(row)
    dense = dataclasses.replace(case, window=0)
    ours_rate = case.visible() / row[pass_]["ours"]
    return ours_rate / (dense.visible() / row[pass_]["dense"])


def table(kind, rows):
    own = [row for row in rows if row["kind"] == kind]
    with_dense = any("dense" in row["forward"] for row in own)
    columns = ["head_dim", "keys seen" if kind == "window" else "causal", "p"]
    for pass_ in ("forward", "backward"):
        columns += [f"{pass_}: ours ms", "FA2 ms", "ours TFLOP/s", "FA2 TFLOP/s", "times FA2"]
        columns += ["of dense"] * with_dense
    columns.append("both: times FA2")
    lines = ["| " + " | ".join(columns) + " |", "|" + " ---: |" * len(columns)]
    for row in own:
        case = case_of(row)
        what = str(case.window) if kind == "window" else ("yes" if case.causal else "no")
        cells = [str(case.head_dim), what, f"{case.dropout_p:g}"]
        for pass_ in ("forward", "backward"):
            times = row[pass_]
            cells += [f"{times[name]:.3f}" for name in ("ours", "fa2")]
            cells += [f"{case.tflops(pass_, times[name]):.0f}" for name in ("ours", "fa2")]
            cells.append(f"{times['fa2'] / times['ours']:.2f}")
            if with_dense:
                cells.append(f"{dense_rate(row, pass_):.2f}")
        lines.append("| " + " | ".join([*cells, f"{both(row, 'fa2') / both(row, 'ours'):.2f}"]) + " |")
    return f"## {TITLES[kind]}\n\n" + "\n".join(lines)


def page(about, rows):
    kinds = [kind for kind in TITLES if any(row["kind"] == kind for row in rows)]
    tables = "\n\n".join(table(kind, rows) for kind in kinds)
    return f"""# Windows and packed sequences on a GPU, next to FlashAttention-2

{about['gpu']}, PyTorch {about['torch']}. Signflash {about['signflash'][:12]}. {about['date']}.
bf16. Made by `python3 benchmarks/breadth.py`, which says how. FA2 is PyTorch's FlashAttention-2, timed in turns with ours;
"of dense" is ours per visible entry beside ours of the whole triangle, or of the same sequences in a batch; rates count
visible entries.

{tables}
"""


def main():
    args = turns.parser(__doc__).parse_args()
    turns.publish(args, measure, page, (JSON, PAGE), writes=not args.quick)


if __name__ == "__main__":
    main()
