"""FlashAttention-2's functions of packed sequences: each sequence drops, and gives, what a call of its own does."""

import inspect

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash
from test_packed import HEADS, LENGTHS, make, packed, starts

CUT = dict(seed=11, offset=64)


def dense(q, k, v, b, p, causal, window):
    """The same as the function, of one sequence, by the native one."""
    shard = signflash.Shard(first_batch=b)
    settings = dict(dropout_p=p, causal=causal, window=window, scale_rule="nominal", shard=shard, **CUT)
    return signflash.attention(q[None], k[None], v[None], return_lse=True, return_probs=True, **settings)


@pytest.mark.parametrize("window", [(-1, -1), (9, 3)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.17])
def test_each_sequence_is_a_dense_call_to_the_bit(p, causal, window):
    lengths, _ = LENGTHS["different"]
    cu_q, cu_k = starts(lengths)
    tensors = make(lengths, dtype=torch.bfloat16)
    with signflash.random_state(**CUT):
        out, lse, probs = signflash.flash_attn_varlen_func(
            *tensors, cu_q, cu_k, 200, 129, p, causal=causal, window_size=window, return_attn_probs=True
        )
    assert probs.shape == (len(lengths), HEADS, 200, 129) and lse.shape == (HEADS, len(out))
    gradients = torch.autograd.grad(out, tensors, torch.ones_like(out))
    alone, expected = [x.detach().clone().requires_grad_() for x in tensors], torch.zeros_like(probs)
    for b, (of_q, of_k) in enumerate(lengths):
        q, rows = alone[0][cu_q[b] : cu_q[b + 1]], slice(int(cu_q[b]), int(cu_q[b + 1]))
        k, v = (x[cu_k[b] : cu_k[b + 1]] for x in alone[1:])
        own, own_lse, own_probs = dense(q, k, v, b, p, causal, window)
        assert torch.equal(out[rows], own[0])
        # FlashAttention-2's infinity for rows that see nothing is the positive one.
        assert torch.equal(lse[:, rows], torch.where(torch.isinf(own_lse[0]), torch.inf, own_lse[0]))
        expected[b, :, :of_q, :of_k] = own_probs[0].detach()
        own.backward(torch.ones_like(own))
    assert torch.equal(probs, expected) and torch.equal(torch.signbit(probs), torch.signbit(expected))
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, alone))


@pytest.mark.parametrize("p", [0.0, 0.17])
def test_packed_functions_are_the_plain_one(p, device):
    lengths = [(40, 40), (1, 1), (0, 0), (70, 70)]
    cu_seqlens, _ = starts(lengths, device)
    generator = torch.Generator().manual_seed(2)
    qkv = torch.randn(111, 3, 4, 64, generator=generator).to(device, torch.float16).requires_grad_()
    dout = torch.randn(111, 4, 64, generator=generator).to(device, torch.float16)
    both, most = (cu_seqlens, cu_seqlens), (70, 70)
    results = []
    for call in (
        lambda: signflash.flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, 70, p, deterministic=True),
        lambda: signflash.flash_attn_varlen_kvpacked_func(qkv[:, 0], qkv[:, 1:], *both, *most, p, deterministic=True),
        lambda: signflash.flash_attn_varlen_func(*qkv.unbind(1), *both, *most, p, deterministic=True),
    ):
        qkv.grad = None
        with signflash.random_state(11):
            out = call()
        out.backward(dout)
        results.append((out.detach(), qkv.grad))
    for out, gradient in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(gradient, results[0][1])


def test_a_longest_length_that_is_wrong_decides_nothing_but_the_size_of_probabilities(device):
    lengths, _ = LENGTHS["different"]
    cu_seqlens, tensors = starts(lengths, device), make(lengths, dtype=torch.float16, device=device, requires_grad=False)
    right = signflash.flash_attn_varlen_func(*tensors, *cu_seqlens, 129, 129)
    for wrong in (1, 1 << 40, 0, -5, torch.tensor(3)):
        assert torch.equal(signflash.flash_attn_varlen_func(*tensors, *cu_seqlens, wrong, wrong), right)
    for wrong in (None, 3.0, "129"):
        with pytest.raises(TypeError, match="max_seqlen_k must be an int, the length of the longest sequence, got"):
            signflash.flash_attn_varlen_func(*tensors, *cu_seqlens, 129, wrong)
    with pytest.raises(ValueError, match="max_seqlen_q must be at least 129, the length of the longest sequence, got 128"):
        signflash.flash_attn_varlen_func(*tensors, *cu_seqlens, 128, 129, return_attn_probs=True)


NAMES = ["flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_there_and_other_shapes_are_refused_by_name(name):
    function = getattr(signflash, name)
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    numbers = torch.tensor([0, 6], dtype=torch.int32)
    made = dict(q=torch.zeros(6, 2, 8), k=torch.zeros(6, 2, 8), v=torch.zeros(6, 2, 8))
    made.update(kv=torch.zeros(6, 2, 2, 8), qkv=torch.zeros(6, 3, 2, 8))
    given = [made.get(x, numbers if x.startswith("cu") else 6) for x in needed]
    assert not function(*given).any()
    if name == "flash_attn_varlen_func":
        with pytest.raises(NotImplementedError, match="block_table"):
            function(*given, block_table=torch.zeros(1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=f"{needed[0]} must have {given[0].dim()} dimensions"):
        function(given[0][None], *given[1:])
    if name != "flash_attn_varlen_func":
        last = needed.index("kv" if "kv" in needed else "qkv")
        wrong = [x[:, :1] if i == last else x for i, x in enumerate(given)]
        with pytest.raises(ValueError, match=rf"{needed[last]} must be \(total.* got shape \(6, 1, 2, 8\)"):
            function(*wrong)


def test_the_native_function_is_the_same_but_for_the_scale():
    lengths, _ = LENGTHS["different"]
    cu_seqlens, tensors = starts(lengths), make(lengths, requires_grad=False)
    with signflash.random_state(5):
        theirs = signflash.flash_attn_varlen_func(*tensors, *cu_seqlens, 129, 129, 0.2)
    ours = packed(tensors, cu_seqlens, dropout_p=0.2, seed=5)
    ratio = reference.keep_scale(0.2, nominal=True) / reference.keep_scale(0.2, nominal=False)
    assert reference.error(theirs, ours * ratio) < 1e-6
