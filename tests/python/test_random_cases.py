"""Cases drawn at random, of everything that joins scores, dense and packed, judged by the formulas in float64.

What a case is follows from its number, which a failure names: ``SIGNFLASH_CASES=17 pytest test_random_cases.py`` draws
that one alone. The rule is docs/contract.md's: an error is told by a tensor's size, or by half of what it would be if
its terms did not cancel.
"""

import math
import os

import pytest
import reference

torch = pytest.importorskip("torch")

import signflash

#: Cases of a test, and tests. A GPU takes more than a second a case, most of it to compile kernels.
CASES, TESTS = 10, {"cpu": 1, "cuda": 16 if os.environ.get("SIGNFLASH_TEST") == "full" else 2}
LARGEST = {"cpu": 70, "cuda": 280}


def numbers():
    """(device, first number) of each test."""
    for device, count in TESTS.items():
        marks = pytest.mark.gpu if device == "cuda" else ()
        yield from (pytest.param(device, first * CASES, marks=marks) for first in range(count))


class Case:
    """One call, and what it was drawn as."""

    def __init__(self, number, device):
        self.number, self.device = number, device
        self.generator = torch.Generator().manual_seed(number)
        dtypes = [torch.float16, torch.bfloat16] + [torch.float32] * (device == "cpu")
        self.dtype, self.packed = self.one(dtypes), self.chance(0.35)
        self.heads_k, self.dim, self.dim_v = self.one([1, 2, 3]), self.head_dim(), None
        self.heads = self.heads_k * self.one([1, 1, 2, 4])
        self.dim_v = self.head_dim() if self.chance(0.3) else self.dim
        sequences = self.one([1, 2, 5] if self.packed else [1, 2, 3])
        self.lengths = self.draw_lengths(sequences)
        self.settings = self.draw_settings()
        self.joined = self.draw_joined()
        self.tensors = self.draw_tensors()

    def one(self, among):
        return among[int(torch.randint(len(among), (), generator=self.generator))]

    def chance(self, p):
        return float(torch.rand((), generator=self.generator)) < p

    def between(self, least, most):
        return int(torch.randint(least, most + 1, (), generator=self.generator))

    def normal(self, *size, dtype=None):
        return torch.randn(size, generator=self.generator).to(self.device, dtype or self.dtype)

    def head_dim(self):
        return self.one([16, 32, 40, 64, 64, 96, 128, 128, 192, 256, self.between(1, 256)])

    def draw_lengths(self, sequences):
        """(queries, keys) of each sequence; of a dense batch all are alike."""

        def length():
            return self.between(1, LARGEST[self.device] // (2 if self.packed else 1))

        if not self.packed:
            return [(length(), length())] * sequences
        return [(0 if self.chance(0.1) else length(), 0 if self.chance(0.1) else length()) for _ in range(sequences)]

    def draw_settings(self):
        settings = dict(dropout_p=self.one([0.0, 0.1, 0.5, 0.9]), causal=self.chance(0.3))
        if settings["dropout_p"]:
            settings.update(seed=self.between(0, 2**40), offset=4 * self.between(0, 1000))
            settings.update(scale_rule=self.one(["unbiased", "nominal"]))
        if self.chance(0.25):
            settings["window"] = tuple(self.one([-1, 0, self.between(1, 90)]) for _ in range(2))
        if self.chance(0.3):
            settings["softcap"] = self.one([1.0, 5.0, 50.0])
        if self.chance(0.2):
            settings["softmax_scale"] = self.one([0.05, 0.3])
        return settings

    def draw_joined(self):
        joined = {}
        if self.chance(0.25):
            sizes = self.one([(self.heads,), (len(self.lengths), self.heads)])
            joined["alibi_slopes"] = torch.rand(sizes, generator=self.generator).to(self.device) * 0.3
        if self.chance(0.4):
            joined["bias"] = self.entries(self.one([torch.float32, torch.float16, torch.bfloat16]))
            if self.chance(0.3):
                joined["bias"].masked_fill_(joined["bias"] > 1.5, -math.inf)
        if self.chance(0.4):
            joined["mask"] = self.entries(torch.float32) < self.one([-0.5, 0.5, 2.0])
        if self.chance(0.3):
            joined["sinks"] = self.normal(self.heads, dtype=self.one([torch.float32, torch.bfloat16]))
        return joined

    def entries(self, dtype):
        """One for each query and key, or the same for some of them, in some order of memory."""
        sizes = [len(self.lengths), self.heads, *(max(x) for x in zip(*self.lengths))]
        sizes = [1 if self.chance(0.35) else size for size in sizes[:3]] + [max(sizes[3], 1)]
        sizes[2] = max(sizes[2], 1)
        if self.chance(0.2):
            return self.normal(*sizes[:2], sizes[3], sizes[2], dtype=dtype).transpose(-1, -2)
        return self.normal(*sizes, dtype=dtype)

    def draw_tensors(self):
        queries, keys = (sum(x) if self.packed else x[0] for x in zip(*self.lengths))
        rest = [self.one([0, 0, 3]) for _ in range(2)] if self.packed else [0, 0]
        before = [] if self.packed else [len(self.lengths)]
        return [
            self.normal(*before, queries + rest[0], self.heads, self.dim),
            self.normal(*before, keys + rest[1], self.heads_k, self.dim),
            self.normal(*before, keys + rest[1], self.heads_k, self.dim_v),
        ]

    def __str__(self):
        joined = {name: (tuple(x.shape), str(x.dtype)[6:]) for name, x in self.joined.items()}
        heads = f"{self.heads} heads of {self.heads_k}, head_dim {self.dim} and {self.dim_v}"
        kind = "packed" if self.packed else "dense"
        return f"case {self.number} on {self.device}: {self.dtype}, {kind} {self.lengths}, {heads}, {self.settings}, {joined}"

    def call(self, tensors, joined):
        """(out, lse (heads, queries) or (batch, heads, queries))."""
        settings = dict(self.settings, return_lse=True, deterministic=self.number % 3 == 0)
        if self.packed:
            for name, of in zip(("cu_seqlens_q", "cu_seqlens_k"), zip(*self.lengths)):
                starts = torch.tensor([0, *of], dtype=torch.int32, device=self.device).cumsum(0, dtype=torch.int32)
                settings[name] = starts
        return signflash.attention(*tensors, **joined, **settings)

    def leaves(self):
        """q, k, v, what joins them, and all that has a gradient."""
        tensors = [x.clone().requires_grad_() for x in self.tensors]
        joined = dict(self.joined)
        for name in {"bias", "sinks"} & joined.keys():
            joined[name] = joined[name].detach().clone(memory_format=torch.preserve_format).requires_grad_()
        watched = dict(zip(("q", "k", "v"), tensors), **{n: x for n, x in joined.items() if n in ("bias", "sinks")})
        return tensors, joined, watched


class Sequence:
    """One sequence of a case by itself: its pieces of everything, as a batch of one."""

    def __init__(self, case, index, tensors, joined):
        self.case = case
        before = [sum(x) for x in zip(*case.lengths[:index])] if index else [0, 0]
        of_q, of_k = case.lengths[index]
        self.queries, self.keys = slice(before[0], before[0] + of_q), slice(before[1], before[1] + of_k)
        if case.packed:
            self.tensors = [x[rows][None] for x, rows in zip(tensors, (self.queries, self.keys, self.keys))]
        else:
            self.tensors = [x[index : index + 1] for x in tensors]
        self.joined = {name: self.piece(name, x, index, of_q, of_k) for name, x in joined.items()}
        settings = dict(case.settings)
        p, nominal = settings.pop("dropout_p"), settings.pop("scale_rule", "") == "nominal"
        drawn = (settings.pop("seed", 0), settings.pop("offset", 0))
        self.settings, self.scale = settings, reference.keep_scale(p, nominal)
        sizes = (1, case.heads, of_q, of_k)
        self.keep = reference.keep(sizes, p, *drawn, first=(index, 0, 0, 0)) if p else None

    @staticmethod
    def piece(name, x, index, of_q, of_k):
        if name == "alibi_slopes":
            return x[index] if x.dim() == 2 else x
        if name == "sinks":
            return x
        own = slice(index, index + 1) if x.shape[0] > 1 else slice(1)
        return x[own, :, : of_q if x.shape[2] > 1 else 1, :of_k]

    def run(self):
        """out (1, queries, heads, dim_v), lse (1, heads, queries)."""
        given = dict(self.settings, **self.joined)
        out, lse, self.probs = reference.attention(*self.tensors, keep=self.keep, scale=self.scale, **given)
        self.out, self.lse = out, lse
        return out, lse

    def terms(self, dout, dlse):
        """The squares of the terms of the output and all gradients, summed where terms are."""
        q, k, v = (x.detach().double().transpose(1, 2) for x in self.tensors)
        group = self.case.heads // self.case.heads_k
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        dout, probs = dout.double().transpose(1, 2), self.probs.detach()
        kept = (
            probs * self.scale
            if self.keep is None
            else probs * torch.as_tensor(self.keep, device=q.device) * self.scale
        )
        of_products = torch.maximum((dout @ v.mT).abs(), (dout.square() @ v.square().mT).sqrt())
        kept_products = of_products * self.scale
        if self.keep is not None:
            kept_products = kept_products * torch.as_tensor(self.keep, device=q.device)
        of_delta = dout * self.out.detach().transpose(1, 2)  # the larger of the sum and the root of the sum of squares
        delta = torch.maximum(of_delta.sum(-1, keepdim=True).abs(), of_delta.square().sum(-1, keepdim=True).sqrt())
        of_rows = delta + dlse[..., None].double().abs()
        ds = probs * (kept_products + of_rows)
        softmax_scale = self.settings.get("softmax_scale") or q.shape[-1] ** -0.5
        inner = ds
        if "softcap" in self.settings:
            inner = ds * (1 - torch.tanh(q @ k.mT * (softmax_scale / self.settings["softcap"])).square())
        inner = (inner * softmax_scale).square()

        def grouped(x):
            return x.unflatten(1, (-1, group)).sum(2).transpose(1, 2)

        found = dict(
            out=(kept.square() @ v.square()).transpose(1, 2),
            q=(inner @ k.square()).transpose(1, 2),
            k=grouped(inner.mT @ q.square()),
            v=grouped(kept.square().mT @ dout.square()),
        )
        if "bias" in self.joined:
            sums = [i for i, size in enumerate(self.joined["bias"].shape) if size == 1]
            found["bias"] = ds.square().sum(sums, keepdim=True) if sums else ds.square()
        if "sinks" in self.joined:
            of_sinks = (self.joined["sinks"].detach().double()[None, :, None] - self.lse.detach()).exp()
            found["sinks"] = (of_sinks[..., None] * of_rows).square().sum((0, 2, 3))
        return found


def bound_of(name, x, dtype):
    """docs/contract.md; few numbers average badly."""
    table = reference.OUT if name == "out" else reference.GRADIENT
    bound = max(table[str(dtype)[6:]], table[str(x.dtype)[6:]])
    return bound * (2.0 if x.numel() < 128 else 1.25)


def examine(case):
    tensors, joined, watched = case.leaves()
    out, lse = case.call(tensors, joined)
    weights = torch.randn(out.shape, generator=case.generator).to(case.device, case.dtype)
    seen = torch.isfinite(lse)
    of_lse = torch.randn(lse.shape, generator=case.generator).to(case.device) * seen
    (out.float() * weights.float()).sum().add((lse.masked_fill(~seen, 0.0) * of_lse).sum()).backward()

    exact, theirs, exact_watched = case.leaves()
    squares, exact_out, exact_lse, loss = (
        {},
        torch.zeros_like(out, dtype=torch.float64),
        torch.full_like(lse, -math.inf).double(),
        0.0,
    )
    for index in range(len(case.lengths)):
        alone = Sequence(case, index, exact, theirs)
        at_out, at_lse = (alone.queries, (slice(None), alone.queries)) if case.packed else (index, index)
        own_out, own_lse = alone.run()
        exact_out[at_out], exact_lse[at_lse] = own_out.detach()[0], own_lse.detach()[0]
        finite = torch.isfinite(own_lse)
        loss = loss + (own_out * weights[at_out]).sum() + (own_lse.masked_fill(~finite, 0.0) * of_lse[at_lse]).sum()
        for name, x in alone.terms(weights[at_out][None], of_lse[at_lse][None]).items():
            squares[name] = squares.get(name, 0.0) + float(x.sum())
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        loss.backward()

    assert torch.equal(seen, torch.isfinite(exact_lse)), f"lse is finite elsewhere; {case}"
    if seen.any():
        size = max(float(exact_lse[seen].norm()), math.sqrt(int(seen.sum())))
        off = float((lse[seen].detach().double() - exact_lse[seen]).norm()) / size
        assert off <= 1e-6 * max(1.0, case.dim / 64), f"lse is off by {off:.2e}; {case}"
    results = dict(out=(out, exact_out), **{n: (x.grad, exact_watched[n].grad) for n, x in watched.items()})
    for name, (got, expected) in results.items():
        expected = torch.zeros_like(got, dtype=torch.float64) if expected is None else expected
        assert got is not None and got.isfinite().all(), f"{name} is not finite; {case}"
        size = max(float(expected.double().norm()), math.sqrt(squares.get(name, 0.0)) / 2)
        off = float((got.detach().double() - expected.double()).norm())
        off = off / size if size > 0 else off
        assert off <= bound_of(name, got, case.dtype), f"{name} is off by {off:.2e}; {case}"


@pytest.mark.parametrize(("device", "first"), list(numbers()))
def test_cases_drawn_at_random_keep_their_bounds(device, first):
    chosen = os.environ.get("SIGNFLASH_CASES")
    cases = range(first, first + CASES) if chosen is None else map(int, chosen.split(","))
    failed = []
    for number in cases:
        try:
            examine(Case(number, device))
        except (AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
            failed.append(f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error))
    print(f"cases {first} to {first + CASES - 1} on {device}")
    assert not failed, f"{len(failed)} of {CASES} failed:\n" + "\n".join(failed)
