"""Cases of signflash.distributed, drawn at random from a seed, and what they must give: computed whole, in float64."""

import math
import random
from typing import NamedTuple, Optional

import reference
import signflash
import torch
from signflash import distributed

SEED = dict(seed=987654321, offset=32)


class Case(NamedTuple):
    number: int
    method: object
    layout: object
    lengths: tuple
    heads: tuple
    dims: tuple
    batch: int
    dtype: str
    p: float
    seen: dict
    scores: tuple
    starts: Optional[tuple] = None


def methods(ranks, heads):
    found = ["ring", "all_gather"] + (["ulysses"] if heads % ranks == 0 else [])
    for inner in (2, 4):
        if ranks % inner == 0 and ranks > inner and heads % inner == 0:
            found += [(outer, "ulysses", inner) for outer in ("ring", "all_gather")]
    return found


def cut(rng, total, ranks):
    """A layout without any order: spans of any lengths, for any ranks."""
    ends = sorted(rng.randint(0, total) for _ in range(rng.randint(0, 3 * ranks)))
    spans = [[] for _ in range(ranks)]
    for begin, end in zip([0, *ends], [*ends, total]):
        spans[rng.randrange(ranks)].append((begin, end))
    for rank in spans:
        rng.shuffle(rank)
    return distributed.Layout(spans)


def draw(number, ranks):
    rng = random.Random(1000 * ranks + number)
    heads = rng.choice([(4, 2), (8, 1), (8, 2), (6, 3), (8, 8), (12, 4)])
    is_packed, is_cross = rng.random() < 0.3, rng.random() < 0.25
    of_q = rng.choice([1, 7, 33, 64, 96, 130])
    of_k = rng.choice([5, 40, 128]) if is_cross else of_q
    starts = None
    if is_packed:
        count = rng.randint(1, 6)
        starts = tuple(
            (0, *sorted(rng.randint(0, total) for _ in range(count - 1)), total - (total > 9) * rng.choice([0, 0, 3]))
            for total in (of_q, of_k)
        )
        starts = tuple(tuple(min(x, of[-1]) for x in of) for of in starts)
        if not is_cross:
            starts = (starts[0], starts[0])
    layouts = ["zigzag", "contiguous", tuple(cut(rng, total, ranks) for total in (of_q, of_k))]
    seen = rng.choice(
        [{}, dict(causal=True), dict(causal=True), dict(window=(20, 3)), dict(window=(9, -1), causal=True)]
    )
    names = [name for name in ("softcap", "alibi_slopes", "bias", "mask", "sinks") if rng.random() < 0.25]
    return Case(
        number,
        rng.choice(methods(ranks, heads[0])),
        rng.choice(layouts),
        (of_q, of_k),
        heads,
        rng.choice([(16, 16), (8, 24), (32, 32)]),
        1 if is_packed else rng.choice([1, 2]),
        rng.choice(["float32", "float32", "bfloat16", "float16"]),
        rng.choice([0.0, 0.3]),
        seen,
        tuple(names),
        starts,
    )


class Tensors(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    dlse: torch.Tensor
    joined: dict


def make(case):
    """Of the whole, on every rank alike."""
    generator = torch.Generator().manual_seed(case.number)
    rng = random.Random(case.number)
    (heads, heads_k), (dim, dim_v), (of_q, of_k) = case.heads, case.dims, case.lengths

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    batch = () if case.starts else (case.batch,)
    shapes = [
        (*batch, of_q, heads, dim),
        (*batch, of_k, heads_k, dim),
        (*batch, of_k, heads_k, dim_v),
        (*batch, of_q, heads, dim_v),
    ]
    q, k, v, dout = (normal(*shape).to(getattr(torch, case.dtype)) for shape in shapes)
    joined = {}
    if "softcap" in case.scores:
        joined["softcap"] = 3.0
    sequences = len(case.starts[0]) - 1 if case.starts else case.batch
    if "alibi_slopes" in case.scores:
        slopes = torch.rand((sequences, heads) if rng.random() < 0.5 else (heads,), generator=generator) * 0.2
        joined["alibi_slopes"] = slopes
    rows, columns = of_q, of_k
    if case.starts:
        rows, columns = (max(b - a for a, b in zip(of, of[1:])) for of in case.starts)
    for name in ("bias", "mask"):
        if name in case.scores:
            shape = (rng.choice([1, sequences]), rng.choice([1, heads]), rng.choice([1, rows]), columns)
            x = normal(*shape)
            joined[name] = x if name == "bias" else x > -1.0
    if "sinks" in case.scores:
        joined["sinks"] = normal(heads)
    dlse = normal(*((heads, of_q) if case.starts else (case.batch, heads, of_q)))
    return Tensors(q, k, v, dout, dlse, joined)


def moved(given, device):
    """The same elsewhere."""
    *tensors, joined = given
    joined = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in joined.items()}
    return Tensors(*(x.to(device) for x in tensors), joined)


def differentiated(joined):
    return [name for name in ("bias", "sinks") if name in joined]


def expected(case, given):
    """(out, lse, gradients by name), in float64."""
    leaves = [x.double().requires_grad_() for x in (given.q, given.k, given.v)]
    joined = {name: x.double() if name == "bias" else x for name, x in given.joined.items()}
    for name in differentiated(joined):
        joined[name] = joined[name].clone().requires_grad_()
    heads = case.heads[0]
    settings = dict(case.seen, scale=reference.keep_scale(case.p, False))
    if case.starts:
        lengths = [tuple(of[i + 1] - of[i] for of in case.starts) for i in range(len(case.starts[0]) - 1)]
        longest = [max(pair[side] for pair in lengths) for side in (0, 1)]
        keep = (
            torch.as_tensor(reference.keep((len(lengths), heads, *longest), case.p, *SEED.values())) if case.p else None
        )
        out, lse = reference.packed(*leaves, lengths, keep=keep, **settings, **joined)
        if "sinks" in joined:  # a row behind the last sequence has its sink, and nothing else, in ours; none there
            lse = lse.clone()
    else:
        shape = (case.batch, heads, *case.lengths)
        keep = reference.keep(shape, case.p, *SEED.values()) if case.p else None
        out, lse, _ = reference.attention(*leaves, keep=keep, **settings, **joined)
    seen = torch.isfinite(lse.detach())
    loss = (out * given.dout.double()).sum() + (
        torch.where(seen, lse, torch.zeros_like(lse)) * given.dlse.double()
    ).sum()
    names = ["q", "k", "v", *differentiated(joined)]
    found = torch.autograd.grad(loss, [*leaves, *(joined[name] for name in differentiated(joined))], allow_unused=True)
    likes = [*leaves, *(joined[name] for name in differentiated(joined))]
    gradients = {name: torch.zeros_like(x) if g is None else g for name, g, x in zip(names, found, likes)}
    return out.detach(), lse.detach(), gradients


def local(case, given, mesh_arguments, layouts, rank):
    """This rank's operands, and the keyword arguments of its call."""
    dim = 0 if case.starts else 1
    of_q, of_k = layouts
    leaves = [of.take(x, rank, dim).clone() for of, x in zip((of_q, of_k, of_k), (given.q, given.k, given.v))]
    leaves = [x.requires_grad_() for x in leaves]
    joined = dict(given.joined)
    for name in ("bias", "mask"):
        if name in joined and not case.starts and joined[name].shape[2] > 1:
            joined[name] = of_q.take(joined[name], rank, 2).clone()
    for name in differentiated(joined):
        joined[name] = joined[name].clone().requires_grad_()
    arguments = dict(case.seen, dropout_p=case.p, layout=case.layout, seqlen=case.lengths, **mesh_arguments, **joined)
    if case.starts:
        arguments.update(zip(("cu_seqlens_q", "cu_seqlens_k"), case.starts))
    if case.p:
        arguments.update(SEED)
    return leaves, joined, arguments


def error(got, wanted, terms=1.0):
    """Relative in the Frobenius norm; sums that cancel are relative to what they are made of."""
    got, wanted = got.double(), wanted.double()
    finite = torch.isfinite(wanted)
    if not torch.equal(finite, torch.isfinite(got)):
        return math.inf
    got, wanted = got[finite], wanted[finite]
    norm = max(float(wanted.norm()), terms)
    return float((got - wanted).norm()) / norm if got.numel() else 0.0


def whole(case, given, **more):
    """The same call of one process."""
    starts = {}
    if case.starts:
        starts = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), (torch.tensor(x, dtype=torch.int32) for x in case.starts)))
    drawn = SEED if case.p else {}
    return signflash.attention(
        given.q, given.k, given.v, **case.seen, dropout_p=case.p, **drawn, **starts, **given.joined, **more
    )
