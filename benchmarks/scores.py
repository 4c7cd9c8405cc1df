#!/usr/bin/env python3
"""What becomes of scores: softcap, ALiBi, biases, masks, sinks, another head_dim of v, on one NVIDIA GPU, forward and backward.

    python3 benchmarks/scores.py               needs the package `signflash` and PyTorch; writes scores.json and scores.md
    python3 benchmarks/scores.py --quick       fewer rows; prints, writes nothing
    python3 benchmarks/scores.py --only alibi  rows of one feature; prints, writes nothing
    python3 benchmarks/scores.py --render      without a GPU, scores.md from scores.json

bf16, 16384 tokens of 2048 or of 8192, heads * head_dim = 2048. For each row all take turns in one run, in another order
each round; a time is the median by CUDA events, after rounds that do not count. A call is queued up behind other work, so
that kernels are timed and not the host. "plain" is ours without the feature; "flex" is compiled FlexAttention, which drops
nothing; "efficient" is PyTorch's memory-efficient attention, whose bias it takes with a gradient. Results without dropout
are compared before either is timed.

Operations are counted as 4 * heads * head_dim for each pair of a query and a key, 2.5 times that for the backward, whatever a
feature adds or hides; of another head_dim of v, as many as its products have.
"""

import dataclasses
import functools
import itertools
import pathlib

import turns

FOLDER = pathlib.Path(__file__).resolve().parent
JSON, PAGE = FOLDER / "scores.json", FOLDER / "scores.md"
TOKENS, WIDTH = 16384, 2048
HEAD_DIMS, LENGTHS, DROPOUTS = (64, 128), (2048, 8192), (0.0, 0.1)
SOFTCAP = 30.0

TITLES = {
    "softcap": "Softcap of 30",
    "alibi": "ALiBi",
    "bias": "A bias of (1, heads, queries, keys), with its gradient",
    "padding": "A key-padding mask that hides the second half of the keys",
    "sinks": "Sinks, with their gradients",
    "head_dim_v": "head_dim 192 of q and k, 128 of v; beside 192 of all",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A row's problem."""

    feature: str
    head_dim: int
    length: int
    dropout_p: float

    @property
    def heads(self):
        return WIDTH // 128 if self.feature == "head_dim_v" else WIDTH // self.head_dim

    @property
    def batch(self):
        return TOKENS // self.length

    @property
    def head_dim_v(self):
        return 128 if self.feature == "head_dim_v" else self.head_dim

    def tflops(self, pass_, ms, head_dim_v=None):
        columns = self.head_dim + (head_dim_v or self.head_dim_v)
        pairs = self.batch * self.heads * self.length**2
        # Forward: one product over either; backward: three over q's, two over v's.
        backward = 2.0 * pairs * (3 * self.head_dim + 2 * (head_dim_v or self.head_dim_v))
        return (backward if pass_ == "backward" else 2.0 * pairs * columns) / ms / 1e9


def cases(quick, only):
    features = [only] if only else list(TITLES)
    for feature in features:
        head_dims = (192,) if feature == "head_dim_v" else (128,) if quick else HEAD_DIMS
        lengths = (2048,) if quick else LENGTHS
        for head_dim, length, p in itertools.product(head_dims, lengths, DROPOUTS):
            yield Case(feature, head_dim, length, p)


def operands(case):
    """q, k, v, dout: (batch, length, heads, head_dim); and what the feature needs."""
    import torch

    torch.manual_seed(0)
    draw = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    rows = (case.batch, case.length, case.heads)
    q, k = (draw(*rows, case.head_dim) for _ in range(2))
    v, dout = (draw(*rows, case.head_dim_v) for _ in range(2))
    heads = torch.arange(1, case.heads + 1, device="cuda", dtype=torch.float32)
    more = {
        "softcap": lambda: {"softcap": SOFTCAP},
        "alibi": lambda: {"alibi_slopes": 2.0 ** (-8.0 * heads / case.heads)},
        "bias": lambda: {"bias": draw(1, case.heads, case.length, case.length)},
        "padding": lambda: {"mask": padding(case)},
        "sinks": lambda: {"sinks": torch.randn(case.heads, device="cuda")},
        "head_dim_v": dict,
    }[case.feature]()
    return (q, k, v), dout, more


def padding(case):
    import torch

    keys = torch.arange(case.length, device="cuda") < case.length // 2
    return keys.expand(case.batch, 1, 1, case.length).contiguous()


def runs_of_autograd(out, inputs, dout, forward):
    """(out, forward, backward), the backward of one graph over and over."""
    import torch

    backward = functools.partial(torch.autograd.grad, out, inputs, dout, retain_graph=True)
    return out.detach(), forward, backward


def ours(tensors, dout, more, dropout_p):
    """Through autograd, as users call it: the gradients of biases and sinks, too."""
    import signflash
    import torch

    settings = dict(more, dropout_p=dropout_p, **({"seed": 1} if dropout_p else {}))
    leaves = [x.detach().requires_grad_() for x in tensors]
    learned = {name: more[name].detach().requires_grad_() for name in ("bias", "sinks") if name in more}
    with torch.enable_grad():
        out = signflash.attention(*leaves, **{**settings, **learned})
    forward = functools.partial(signflash.attention, *tensors, **settings)
    return runs_of_autograd(out, [*leaves, *learned.values()], dout, forward)


def heads_first(tensors):
    return [x.transpose(1, 2).contiguous() for x in tensors]


def flex(case, tensors, dout, more):
    """Compiled FlexAttention; None where it has no such feature."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    leaves = [x.requires_grad_() for x in heads_first(tensors)]
    block_mask, score_mod, learned = None, None, []
    if case.feature == "softcap":
        score_mod = lambda score, b, h, i, j: SOFTCAP * torch.tanh(score / SOFTCAP)  # noqa: E731
    elif case.feature == "alibi":
        slopes = more["alibi_slopes"]
        score_mod = lambda score, b, h, i, j: score - slopes[h] * (i - j).abs()  # noqa: E731
    elif case.feature == "bias":
        bias = more["bias"][0].detach().requires_grad_()
        learned = [bias]
        score_mod = lambda score, b, h, i, j: score + bias[h, i, j]  # noqa: E731
    elif case.feature == "padding":
        half = case.length // 2
        block_mask = create_block_mask(lambda b, h, i, j: j < half, None, None, case.length, case.length)
    elif case.feature != "head_dim_v":
        return None
    compiled = torch.compile(flex_attention, dynamic=False)
    call = functools.partial(compiled, score_mod=score_mod, block_mask=block_mask)
    with torch.enable_grad():
        out = call(*leaves)
    run = runs_of_autograd(out, [*leaves, *learned], dout.transpose(1, 2).contiguous(), functools.partial(call, *leaves))
    return run[0].transpose(1, 2), *run[1:]


def efficient(case, tensors, dout, more):
    """PyTorch's memory-efficient attention with a bias or a mask; None for other features."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if case.feature not in ("bias", "padding"):
        return None
    leaves, learned, mask = [x.requires_grad_() for x in heads_first(tensors)], [], None
    if case.feature == "bias":
        mask = more["bias"].detach().requires_grad_()
        learned = [mask]
        mask = mask.expand(case.batch, -1, -1, -1)
    else:
        mask = more["mask"].expand(-1, case.heads, case.length, -1)

    def call():
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(*leaves, attn_mask=mask, dropout_p=case.dropout_p)

    with torch.enable_grad():
        if learned:
            mask = learned[0].expand(case.batch, -1, -1, -1)
        out = call()
    run = runs_of_autograd(out, [*leaves, *learned], dout.transpose(1, 2).contiguous(), call)
    return run[0].transpose(1, 2), *run[1:]


def plain(case, tensors, dout):
    """Ours without the feature; of another head_dim of v, with q's."""
    import torch

    if case.feature != "head_dim_v":
        return ours(tensors, dout, {}, case.dropout_p)
    q, k, _ = tensors
    v, dout = (torch.randn_like(q) for _ in range(2))
    return ours((q, k, v), dout, {}, case.dropout_p)


def runs_of(case):
    """(out, forward, backward) of each."""
    tensors, dout, more = operands(case)
    runs = {"ours": ours(tensors, dout, more, case.dropout_p), "plain": plain(case, tensors, dout)}
    peers = {"efficient": efficient(case, tensors, dout, more)}
    if not case.dropout_p:
        peers["flex"] = flex(case, tensors, dout, more)
    for name, run in peers.items():
        if run is None:
            continue
        # With dropout the two draw from different states.
        far = 0.0 if case.dropout_p else turns.distance(runs["ours"][0], run[0])
        if not far < turns.FARTHEST:
            raise SystemExit(f"{case}: ours is {far:.1e} from {name}'s, expected below {turns.FARTHEST}")
        runs[name] = run
    return runs


def measure(args):
    import torch

    whose, rows = turns.about(args.commit), []
    for case in cases(args.quick, args.only):
        torch.compiler.reset()
        runs = runs_of(case)
        with torch.no_grad():
            row = {**dataclasses.asdict(case), **turns.timed(runs, args.rounds)}
        for pass_ in ("forward", "backward"):
            print(case, pass_, {name: round(ms, 4) for name, ms in row[pass_].items()}, flush=True)
        rows.append(row)
        del runs
        torch.cuda.empty_cache()
        if not args.quick and not args.only:
            turns.keep(JSON, whose, rows)
    return whose, rows


def case_of(row):
    return Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)})


def rate_of_plain(row, passes):
    """Ours as a part of what ours computes without the feature in the same time."""
    case = case_of(row)
    head_dim = case.head_dim if case.feature == "head_dim_v" else None
    ours_time, plain_time = (sum(row[pass_][name] for pass_ in passes) for name in ("ours", "plain"))
    own = sum(case.tflops(pass_, 1.0) for pass_ in passes)
    whole = sum(case.tflops(pass_, 1.0, head_dim) for pass_ in passes)
    return (own / ours_time) / (whole / plain_time)


def table(feature, rows):
    own = [row for row in rows if row["feature"] == feature]
    peers = [name for name in ("efficient", "flex") if any(name in row["forward"] for row in own)]
    columns = ["head_dim", "tokens", "p"]
    for pass_ in ("forward", "backward"):
        columns += [f"{pass_}: ours ms", "TFLOP/s", "of plain's rate"]
        columns += [f"{peer} ms" for peer in peers]
    columns += [f"both: times {peer}" for peer in peers]
    lines = ["| " + " | ".join(columns) + " |", "|" + " ---: |" * len(columns)]
    for row in own:
        case = case_of(row)
        cells = [str(case.head_dim), str(case.length), f"{case.dropout_p:g}"]
        for pass_ in ("forward", "backward"):
            times = row[pass_]
            cells += [f"{times['ours']:.3f}", f"{case.tflops(pass_, times['ours']):.0f}"]
            cells.append(f"{rate_of_plain(row, [pass_]):.2f}")
            cells += [f"{times[peer]:.3f}" if peer in times else "" for peer in peers]
        for peer in peers:
            both = {name: sum(row[pass_].get(name, 0.0) for pass_ in ("forward", "backward")) for name in ("ours", peer)}
            cells.append(f"{both[peer] / both['ours']:.2f}" if both[peer] else "")
        lines.append("| " + " | ".join(cells) + " |")
    later = sorted({row["signflash"] for row in own if "signflash" in row})
    rows_of = {commit: sum(row.get("signflash") == commit for row in own) for commit in later}
    notes = [
        f"\n\n{'All' if count == len(own) else f'{count} of these'} rows are of a later run, of {commit}, on the same kind of GPU."
        for commit, count in rows_of.items()
    ]
    return f"## {TITLES[feature]}\n\n" + "\n".join(lines) + "".join(notes)


def page(about, rows):
    features = [feature for feature in TITLES if any(row["feature"] == feature for row in rows)]
    tables = "\n\n".join(table(feature, rows) for feature in features)
    return f"""# What becomes of scores, on a GPU, next to PyTorch

{about['gpu']}, PyTorch {about['torch']}. Signflash {about['signflash'][:12]}. {about['date']}.
bf16, {TOKENS} tokens. Made by `python3 benchmarks/scores.py`, which says how. "of plain's rate" is ours per operation beside ours
without the feature, in the same run; "efficient" is PyTorch's memory-efficient attention, "flex" compiled FlexAttention, which has
no dropout.

{tables}
"""


def main():
    parser = turns.parser(__doc__)
    parser.add_argument("--only", choices=TITLES, help="rows of one feature; writes nothing")
    args = parser.parse_args()
    turns.publish(args, measure, page, (JSON, PAGE), writes=not args.quick and not args.only)


if __name__ == "__main__":
    main()
