"""Packed sequences of PyTorch tensors: next to the formulas, and next to a call for each sequence, to the bit."""

import itertools

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash

LENGTHS = {  # queries and keys of each sequence, and rows behind the last
    "different": ([(5, 9), (70, 33), (1, 40), (129, 129)], (0, 0)),
    "empty ones": ([(0, 0), (6, 7), (0, 5), (4, 0), (0, 0), (3, 3)], (0, 0)),
    "one": ([(40, 51)], (0, 0)),
    "rows behind the last": ([(17, 19), (16, 16)], (5, 3)),
    "keys behind the last": ([(30, 40)], (0, 4)),
    "many of one query": ([(1, 3)] * 100, (0, 0)),
    "none at all": ([], (4, 6)),
}
HEADS, HEADS_K, DIM = 4, 2, 32
SEED = dict(seed=1234567890123, offset=64)


def starts(lengths, device="cpu"):
    """(cu_seqlens_q, cu_seqlens_k)."""
    return [
        torch.tensor([0, *itertools.accumulate(of)], dtype=torch.int32, device=device)
        for of in ([pair[0] for pair in lengths], [pair[1] for pair in lengths])
    ]


def make(lengths, rest=(0, 0), dtype=torch.float32, device="cpu", requires_grad=True):
    generator = torch.Generator().manual_seed(5)
    total_q, total_k = (sum(pair[side] for pair in lengths) + rest[side] for side in (0, 1))
    sizes = [(total_q, HEADS, DIM), (total_k, HEADS_K, DIM), (total_k, HEADS_K, DIM)]
    made = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    return [x.requires_grad_(requires_grad) for x in made]


def keep_of(lengths, p):
    if p == 0.0:
        return None
    longest = [max((pair[side] for pair in lengths), default=0) for side in (0, 1)]
    return torch.as_tensor(reference.keep((len(lengths), HEADS, *longest), p, SEED["seed"], SEED["offset"]))


def packed(tensors, cu_seqlens, **settings):
    return signflash.attention(*tensors, cu_seqlens_q=cu_seqlens[0], cu_seqlens_k=cu_seqlens[1], **settings)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(
    "seen", [dict(), dict(causal=True), dict(window=(6, 3)), dict(window=(20, -1), causal=True)], ids=str
)
@pytest.mark.parametrize("name", LENGTHS)
def test_results_and_gradients_are_those_of_the_formulas(name, seen, p, device):
    lengths, rest = LENGTHS[name]
    for dtype in [torch.float16, torch.bfloat16] + ([torch.float32] if device == "cpu" else []):
        kind = str(dtype).split(".")[1]
        q, k, v = make(lengths, rest, dtype, device)
        out, lse = packed((q, k, v), starts(lengths, device), dropout_p=p, return_lse=True, **SEED, **seen)
        assert out.shape == q.shape and out.dtype == dtype
        assert lse.shape == (HEADS, len(q)) and lse.dtype == torch.float32
        exact = [x.detach().cpu().requires_grad_() for x in (q, k, v)]
        scale = reference.keep_scale(p, nominal=False)
        expected, expected_lse = reference.packed(*exact, lengths, keep=keep_of(lengths, p), scale=scale, **seen)
        assert reference.error(out.cpu(), expected) <= reference.OUT[kind]
        assert torch.equal(torch.isneginf(lse.cpu()), torch.isneginf(expected_lse))
        blind = torch.isneginf(expected_lse)
        assert reference.error(lse.cpu()[~blind], expected_lse[~blind]) <= 1e-6
        generator = torch.Generator().manual_seed(6)
        dout, dlse = torch.randn(out.shape, generator=generator).to(dtype), torch.randn(lse.shape, generator=generator)
        (out.cpu() * dout).sum().add((lse.cpu().masked_fill(blind, 0) * dlse).sum()).backward()
        (expected * dout.double()).sum().add((expected_lse.masked_fill(blind, 0) * dlse).sum()).backward()
        for got, want in zip((q, k, v), exact):
            assert got.grad.shape == got.shape and got.grad.dtype == dtype
            want = torch.zeros_like(want) if want.grad is None else want.grad
            assert reference.error(got.grad.cpu(), want) <= reference.gradient_bound(got)
        behind_q, behind_k = (sum(pair[side] for pair in lengths) for side in (0, 1))
        for x, behind in ((out, behind_q), (q.grad, behind_q), (k.grad, behind_k), (v.grad, behind_k)):
            assert not x[behind:].any()


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("seen", [dict(), dict(causal=True), dict(window=(6, 3))], ids=str)
def test_each_sequence_is_a_call_of_its_own_to_the_bit(seen, p):
    lengths, rest = LENGTHS["different"]
    cu_q, cu_k = cu_seqlens = starts(lengths)
    tensors = make(lengths, rest)
    out, lse, probs = packed(tensors, cu_seqlens, dropout_p=p, return_lse=True, return_probs=True, **SEED, **seen)
    assert probs.shape == (4, HEADS, 129, 129)
    gradients = torch.autograd.grad(out, tensors, torch.ones_like(out))
    alone = [x.detach().clone().requires_grad_() for x in tensors]
    expected = torch.zeros_like(probs)
    for b, (of_q, of_k) in enumerate(lengths):
        q = alone[0][cu_q[b] : cu_q[b + 1]]
        k, v = (x[cu_k[b] : cu_k[b + 1]] for x in alone[1:])
        shard = signflash.Shard(first_batch=b)
        settings = dict(dropout_p=p, return_lse=True, return_probs=True, shard=shard, **SEED, **seen)
        own, own_lse, own_probs = signflash.attention(q[None], k[None], v[None], **settings)
        assert torch.equal(out[cu_q[b] : cu_q[b + 1]], own[0])
        assert torch.equal(lse[:, cu_q[b] : cu_q[b + 1]], own_lse[0])
        expected[b, :, :of_q, :of_k] = own_probs[0].detach()
        own.backward(torch.ones_like(own))
    assert torch.equal(probs, expected) and torch.equal(torch.signbit(probs), torch.signbit(expected))
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, alone))


def test_neighbours_are_neither_read_nor_written():
    lengths, rest = LENGTHS["different"]
    cu_seqlens = starts(lengths)
    clean = make(lengths, requires_grad=False)
    for poisoned in range(len(lengths)):
        tensors = [x.clone().requires_grad_() for x in clean]
        rows = [slice(int(cu[poisoned]), int(cu[poisoned + 1])) for cu in (cu_seqlens[0], *[cu_seqlens[1]] * 2)]
        with torch.no_grad():
            for x, own in zip(tensors, rows):
                x[own] = torch.nan
        out = packed(tensors, cu_seqlens, dropout_p=0.2, causal=True, **SEED)
        out.backward(torch.ones_like(out))
        for x, own in zip((out, *(x.grad for x in tensors)), (rows[0], *rows)):
            others = torch.ones(len(x), dtype=torch.bool)
            others[own] = False
            assert bool(torch.isfinite(x[others]).all())


def test_ten_thousand_sequences_of_one(device):
    lengths = [(1, 1)] * 10_000
    q, k, v = make(lengths, dtype=torch.float16, device=device)
    out = packed((q, k, v), starts(lengths, device), dropout_p=0.5, causal=True, **SEED)
    keep = keep_of(lengths, 0.5)[:, :, 0, 0, None].to(device)
    expected = torch.where(keep, v.detach().repeat_interleave(2, 1) * 2.0, 0)  # the scale of 0.5 is 2 in both rules
    assert torch.equal(out, expected)
    out.backward(torch.ones_like(out))
    assert torch.equal(v.grad, (keep * 2.0).view(-1, HEADS_K, 2, 1).sum(2).expand(v.shape).half())


def test_the_backward_by_hand_is_autograds(device):
    lengths, rest = LENGTHS["rows behind the last"]
    cu_q, cu_k = cu_seqlens = starts(lengths, device)
    q, k, v = make(lengths, rest, torch.float16, device)
    settings = dict(dropout_p=0.2, window=(9, 2), return_lse=True, return_rng_state=True)
    out, lse, state = packed((q, k, v), cu_seqlens, **settings)
    expected = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    settings = dict(dropout_p=0.2, window=(9, 2), seed=state[0], offset=state[1], deterministic=True)
    settings.update(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    got = signflash.attention_backward(torch.ones_like(out), q, k, v, out, lse, **settings)
    for a, b in zip(got, expected):
        assert reference.error(a, b) <= (0 if device == "cpu" else 1e-2)
    with pytest.raises(ValueError, match=r"lse must have 2 dimensions \(num_heads, total_q\)"):
        signflash.attention_backward(torch.ones_like(out), q, k, v, out, lse[None], **settings)


def test_gradients_agree_with_finite_differences_where_the_same_is_dropped():
    lengths = [(3, 4), (5, 2), (1, 6)]
    tensors = make(lengths)
    cu_seqlens = starts(lengths)
    settings = dict(dropout_p=0.4, window=(3, 1), seed=3)
    dout = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    packed(tensors, cu_seqlens, **settings).backward(dout)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for index, x in enumerate(tensors):
            direction = torch.randn(x.shape, generator=generator)
            ends = []
            for step in (1e-2, -1e-2):
                moved = [*tensors[:index], x + step * direction, *tensors[index + 1 :]]
                ends.append(float((packed(moved, cu_seqlens, **settings).double() * dout.double()).sum()))
            slope = (ends[0] - ends[1]) / 2e-2
            assert slope == pytest.approx(float((x.grad * direction).sum()), rel=2e-3, abs=2e-3)


def test_strides_are_free(device):
    lengths, _ = LENGTHS["different"]
    cu_seqlens = starts(lengths, device)
    tensors = make(lengths, dtype=torch.bfloat16, device=device, requires_grad=False)
    expected = packed(tensors, cu_seqlens, dropout_p=0.2, seed=1)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors]
    sliced = [torch.stack([x, x], 2)[:, :, 0] for x in tensors]
    last_not_one = [x.transpose(0, 2).contiguous().transpose(0, 2) for x in tensors]
    for others in (heads_first, sliced, last_not_one):
        assert not any(x.is_contiguous() for x in others)
        assert torch.equal(packed(others, cu_seqlens, dropout_p=0.2, seed=1), expected)


def test_a_generator_advances_by_sequences_and_heads():
    lengths, rest = LENGTHS["empty ones"]
    generator = signflash.Generator(7)
    states = []
    for _ in range(2):
        given = dict(dropout_p=0.2, generator=generator, return_rng_state=True)
        states.append(packed(make(lengths, rest), starts(lengths), **given)[1])
    assert states == [(7, 0), (7, len(lengths) * HEADS * 32)]


def shards_of_heads(tensors, cu_seqlens, **settings):
    for first in range(0, HEADS, 2):
        q = tensors[0][:, first : first + 2]
        k, v = (x[:, first // 2 : first // 2 + 1] for x in tensors[1:])
        yield first, packed((q, k, v), cu_seqlens, shard=(0, first, 0, 0, HEADS), **settings)


def test_shards_of_heads_drop_what_the_whole_drops_and_shards_of_rows_are_refused():
    lengths, _ = LENGTHS["different"]
    tensors, cu_seqlens = make(lengths, requires_grad=False), starts(lengths)
    whole = packed(tensors, cu_seqlens, dropout_p=0.3, seed=9)
    for first, part in shards_of_heads(tensors, cu_seqlens, dropout_p=0.3, seed=9):
        assert torch.equal(part, whole[:, first : first + 2])
    later = packed([x[5:] if i == 0 else x[9:] for i, x in enumerate(tensors)], [x[1:] - x[1] for x in cu_seqlens],
                   dropout_p=0.3, seed=9, shard=signflash.Shard(first_batch=1))  # fmt: skip
    assert torch.equal(later, whole[5:])
    with pytest.raises(ValueError, match="shard.first_row must be 0 with packed sequences"):
        packed(tensors, cu_seqlens, shard=signflash.Shard(first_row=16))


def errors():
    def of(q, k):
        return [torch.tensor(x, dtype=torch.int32) for x in (q, k)]

    good = of([0, 4, 10], [0, 3, 12])
    yield "one alone", ValueError, "cu_seqlens_q was given without cu_seqlens_k; give both", (good[0], None)
    yield "the other alone", ValueError, "cu_seqlens_k was given without cu_seqlens_q; give both", (None, good[1])
    yield "a list", TypeError, "cu_seqlens_q must be a torch.Tensor as q is, got list", ([0, 4, 10], good[1])
    yield "64 bits", TypeError, "cu_seqlens_k must be int32, got torch.int64", (good[0], good[1].long())
    yield "two dimensions", ValueError, "cu_seqlens_q must be dense, of one dimension", (good[0][None], good[1])
    yield "another device", ValueError, "cu_seqlens_k must be on q's device cpu, got meta", (good[0], good[1].to("meta"))
    yield "gaps", ValueError, "cu_seqlens_q must be contiguous, got stride 2", (torch.stack([good[0]] * 2, 1)[:, 0], good[1])
    yield "different counts", ValueError, "as many numbers, .* got 3 and 2", (good[0], good[1][:2])
    yield "no numbers", ValueError, "as many numbers, .* got 0 and 0", of([], [])
    yield "not from 0", ValueError, r"cu_seqlens_k\[0\] must be 0, got 1", of([0, 4, 10], [1, 3, 12])
    yield "falling", ValueError, r"cu_seqlens_q\[2\] must be at least 6, the number before it, got 5", of([0, 6, 5], [0, 3, 12])
    yield "beyond q", ValueError, r"cu_seqlens_q\[2\] must be at most 10, the rows of q, got 11", of([0, 4, 11], [0, 3, 12])
    yield "beyond k", ValueError, r"cu_seqlens_k\[2\] must be at most 12, the rows of k, got 13", of([0, 4, 10], [0, 3, 13])
    yield "negative", ValueError, r"cu_seqlens_q\[1\] must not be negative, got -4", of([0, -4, 10], [0, 3, 12])


@pytest.mark.parametrize("error,message,cu_seqlens", [e[1:] for e in errors()], ids=[e[0] for e in errors()])
@pytest.mark.parametrize("returned", ["out", "probs"])
def test_numbers_that_are_none_are_refused_by_name(error, message, cu_seqlens, returned):
    tensors = make([(10, 12)])
    with pytest.raises(error, match=message):
        packed(tensors, cu_seqlens, return_probs=returned == "probs")


def test_tensors_of_another_shape_are_refused_by_name():
    q, k, v = make([(10, 12)], requires_grad=False)
    cu_seqlens = starts([(10, 12)])
    for given, message in [
        ((q[None], k, v), r"q must have 3 dimensions \(total, num_heads, head_dim\) with cu_seqlens, got shape \(1, 10"),
        ((q, k[None], v), r"k must have 3 dimensions"),
        ((q, k, v[None]), r"v must have 3 dimensions"),
        ((q, k, v[:-1]), r"v has shape \[1, 11, 2, 32\], expected \[1, 12, 2, 32\]"),
        ((q, k[..., :8], v), r"k has shape \[1, 12, 2, 8\], expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            packed(given, cu_seqlens)
    with pytest.raises(ValueError, match="q must have 4 dimensions"):
        signflash.attention(q, k, v)


def test_what_was_saved_is_judged_again():
    lengths, _ = LENGTHS["different"]
    for change, error, message in [
        (lambda x: x.long(), TypeError, "cu_seqlens_q must be int32"),
        (lambda x: x[:-1], ValueError, "as many numbers"),
        (lambda x: x + 1, ValueError, r"cu_seqlens_q\[0\] must be 0"),
    ]:
        tensors, cu_seqlens = make(lengths), starts(lengths)

        def unpack(x):
            return change(x) if x is cu_seqlens[0] else x

        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
            out = packed(tensors, cu_seqlens)
        with pytest.raises(error, match=message):
            out.sum().backward()
    tensors, cu_seqlens = make(lengths), starts(lengths)
    out = packed(tensors, cu_seqlens)
    cu_seqlens[1][1] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_sequences_may_have_no_probabilities_at_all():
    tensors = make([], (4, 6))
    out, probs = packed(tensors, starts([]), return_probs=True)
    assert probs.shape == (0, HEADS, 0, 0) and not out.any()


def test_a_checkpoint_recomputes_the_same_sequences():
    from torch.utils.checkpoint import checkpoint

    lengths, _ = LENGTHS["different"]
    cu_seqlens, results = starts(lengths), []
    for reentrant in (None, False, True):
        tensors = make(lengths)
        torch.manual_seed(3)
        if reentrant is None:
            out = packed(tensors, cu_seqlens, dropout_p=0.3)
        else:
            run = lambda *tensors: packed(tensors, cu_seqlens, dropout_p=0.3)  # noqa: E731
            out = checkpoint(run, *tensors, use_reentrant=reentrant)
        out.sum().backward()
        results.append((out, *(x.grad for x in tensors)))
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))


@pytest.mark.skipif(not hasattr(torch, "func"), reason="needs torch.func")
def test_torch_func_differentiates_and_refuses_to_map():
    lengths, _ = LENGTHS["rows behind the last"]
    tensors, cu_seqlens = make(lengths), starts(lengths)

    def loss(*tensors):
        return packed(tensors, cu_seqlens, dropout_p=0.3, window=(5, 5), seed=4).sin().sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    got = torch.func.grad(loss, argnums=(0, 1, 2))(*(x.detach() for x in tensors))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))
    with pytest.raises(NotImplementedError, match="vmap: attention of packed sequences .* is not mapped"):
        torch.func.vmap(loss)(*(torch.stack([x.detach()] * 2) for x in tensors))
    with pytest.raises(NotImplementedError, match="vmap: attention of packed sequences .* is not mapped"):
        torch.func.jacrev(lambda q: packed((q, *tensors[1:]), cu_seqlens)[0, 0])(tensors[0].detach())


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="needs operators")
def test_flops_are_those_of_each_sequence():
    from torch.utils.flop_counter import FlopCounterMode

    lengths, rest = LENGTHS["rows behind the last"]
    tensors, cu_seqlens = make(lengths, rest), starts(lengths)
    pairs = sum(of_q * of_k for of_q, of_k in lengths)
    with FlopCounterMode(display=False) as counter:
        packed(tensors, cu_seqlens, window=(3, 3)).sum().backward()
    assert counter.get_total_flops() == 14 * HEADS * DIM * pairs
    meta = [x.detach().to("meta") for x in tensors]
    with FlopCounterMode(display=False) as counter:
        packed(meta, [x.to("meta") for x in cu_seqlens])
    assert counter.get_total_flops() == 4 * HEADS * DIM * len(tensors[0]) * len(tensors[1])


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="needs operators")
def test_meta_tensors_have_shapes_and_are_judged():
    lengths, rest = LENGTHS["rows behind the last"]
    q, k, v = (x.detach().to("meta") for x in make(lengths, rest))
    cu_seqlens = [x.to("meta") for x in starts(lengths)]
    out, lse = packed((q, k, v), cu_seqlens, dropout_p=0.1, return_lse=True)
    assert out.is_meta and out.shape == q.shape and lse.shape == (HEADS, len(q))
    with pytest.raises(ValueError, match=r"v has another size in dimension 0 of \(total, num_heads, head_dim\)"):
        packed((q, k, v[:-1]), cu_seqlens)
    with pytest.raises(ValueError, match="as many numbers"):
        packed((q, k, v), (cu_seqlens[0], cu_seqlens[1][:-1]))
    with pytest.raises(NotImplementedError, match="return_probs with cu_seqlens cannot be recorded"):
        packed((q, k, v), cu_seqlens, return_probs=True)


@pytest.mark.gpu
def test_a_gpus_probabilities_are_the_cpus():
    lengths, _ = LENGTHS["different"]
    for seen in (dict(), dict(causal=True)):
        results = []
        for device in ("cpu", "cuda"):
            tensors = make(lengths, dtype=torch.float16, device=device, requires_grad=False)
            given = dict(dropout_p=0.3, return_probs=True, **SEED, **seen)
            results.append(packed(tensors, starts(lengths, device), **given)[1].cpu())
        assert torch.equal(*map(torch.signbit, results)) and reference.error(results[1], results[0]) < 1e-3
