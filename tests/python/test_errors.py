"""Bad input is refused with a sentence: the argument, what was expected, what came, what to do."""

import pytest

torch = pytest.importorskip("torch")

import signflash


def tensors(dtype=torch.float16, heads=4, heads_k=2, dim=16, device="cpu"):
    q = torch.zeros(2, 5, heads, dim, dtype=dtype, device=device)
    k = torch.zeros(2, 7, heads_k, dim, dtype=dtype, device=device)
    return q, k, k.clone()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan"), float("inf"), 1 - 1e-12])
@pytest.mark.parametrize("function", [signflash.attention, signflash.flash_attn_func])
def test_dropout_p_outside_its_range(function, p):
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\), got"):
        function(*tensors(), dropout_p=p)


@pytest.mark.parametrize("p", [None, "0.1", True, torch.tensor(0.1)])
def test_dropout_p_of_another_type(p):
    with pytest.raises(TypeError, match="dropout_p must be a float"):
        signflash.attention(*tensors(), dropout_p=p)


@pytest.mark.parametrize("function", [signflash.attention, signflash.flash_attn_func])
@pytest.mark.parametrize("causal", ["no", 0.1, None, [], torch.tensor(False)])
def test_what_is_causal_is_a_bool(function, causal):
    with pytest.raises(TypeError, match="causal must be a bool, got"):
        function(*tensors(), causal=causal)
    assert function(*tensors(torch.bfloat16), causal=1).shape == (2, 5, 4, 16)


@pytest.mark.parametrize("scale", [True, "0.5"])
def test_a_scale_is_a_number(scale):
    with pytest.raises(TypeError, match="softmax_scale must be a number or None, got"):
        signflash.flash_attn_func(*tensors(), 0.1, scale)  # who means causal says True here


def test_a_gradient_of_the_scale_is_not_lost():
    with pytest.raises(NotImplementedError, match="softmax_scale must not require a gradient"):
        signflash.attention(*tensors(), softmax_scale=torch.tensor(0.5, requires_grad=True))


def cases():
    q, k, v = tensors()
    wrong = ValueError
    yield "k of another batch", wrong, r"k has shape \[1, 7, 2, 16\], expected \[2, 7, 2, 16\]", (q, k[:1], v), {}
    yield "v of another length", wrong, r"v has shape \[2, 6, 2, 16\], expected", (q, k, v[:, :6]), {}
    yield "k of another head_dim", wrong, r"k has shape .* expected", (q, k[..., :8], v), {}
    yield "heads that do not divide", wrong, "num_heads must be a positive multiple", (q[:, :, :3], k, v), {}
    yield "head_dim", wrong, "head_dim must be from 1 to 256, got 257", tensors(dim=257), {}
    yield "no head_dim", wrong, "head_dim must be from 1 to 256, got 0", tensors(dim=0), {}
    yield "3 dimensions", wrong, r"q must have 4 dimensions \(batch", (q[0], k, v), {}
    yield (
        "dtypes that differ",
        TypeError,
        "k must have q's dtype torch.float16, got torch.bfloat16",
        (q, k.bfloat16(), v),
        {},
    )
    yield "a dtype without kernels", TypeError, "q must be float16, bfloat16", tensors(torch.float64), {}
    yield "integers", TypeError, "q must be float16, bfloat16", tensors(torch.int32), {}
    yield "no tensor", TypeError, "k must be a torch.Tensor as q is, got list", (q, [1.0], v), {}
    yield "softmax_scale", wrong, "softmax_scale must be finite, got inf", (q, k, v), {"softmax_scale": float("inf")}
    yield "softmax_scale's type", TypeError, "softmax_scale must be a number", (q, k, v), {"softmax_scale": "x"}
    yield (
        "scale_rule",
        wrong,
        "scale_rule must be 'unbiased' or 'nominal', got 'fair'",
        (q, k, v),
        {"scale_rule": "fair"},
    )
    yield "window's kind", TypeError, r"window must be a pair \(left, right\) of ints, got 5", (q, k, v), {"window": 5}
    yield "window's side", TypeError, "window's right side must be an int, got float", (q, k, v), {"window": (1, 2.0)}
    yield "a negative window", wrong, "window's left side must be from 0 .* got -2", (q, k, v), {"window": (-2, 0)}
    yield "a huge window", wrong, "window's right side must be from 0 .* got 9", (q, k, v), {"window": (0, 1 << 63)}
    yield "offset alone", wrong, "offset was given as 3 without seed", (q, k, v), {"offset": 3}
    yield "seed's type", TypeError, "seed must be an int, got float", (q, k, v), {"seed": 1.0}
    yield "seed's size", wrong, "seed must fit into 64 bits", (q, k, v), {"seed": 2**64}
    yield (
        "generator's type",
        TypeError,
        "generator must be a torch.Generator",
        (q, k, v),
        {"generator": 1, "dropout_p": 0.1},
    )
    state = torch.zeros(3, dtype=torch.int64)
    yield (
        "rng_state",
        wrong,
        "rng_state must be an int64 tensor of 2",
        (q, k, v),
        {"rng_state": state, "dropout_p": 0.1},
    )
    yield "two states", wrong, "give one of them", (q, k, v), {"seed": 1, "generator": signflash.Generator(1)}
    yield "shard's type", TypeError, "shard.first_row must be an int", (q, k, v), {"shard": (0, 0, 1.5, 0), "seed": 1}
    yield (
        "shard's heads",
        wrong,
        "shard.num_heads_total",
        (q, k, v),
        {"shard": signflash.Shard(first_head=1), "seed": 1},
    )
    yield "shard without seed", wrong, "seed must be given with shard", (q, k, v), {"shard": (1,), "dropout_p": 0.1}
    yield "sparse", TypeError, "dense tensor", (q.to_sparse(), k, v), {}
    yield "shard's size", wrong, r"shard.first_row must be from 0 to 2\^63 - 1", (q, k, v), {"shard": (0, 0, 2**70)}


@pytest.mark.parametrize("error,message,given,settings", [c[1:] for c in cases()], ids=[c[0] for c in cases()])
def test_attention_refuses(error, message, given, settings):
    with pytest.raises(error, match=message):
        signflash.attention(*given, **settings)


def test_packed_tensors_of_another_shape():
    with pytest.raises(ValueError, match=r"qkv must be \(batch, seqlen, 3, num_heads, head_dim\), got shape"):
        signflash.flash_attn_qkvpacked_func(torch.zeros(1, 4, 2, 2, 8))
    with pytest.raises(ValueError, match="kv must have 5 dimensions"):
        signflash.flash_attn_kvpacked_func(torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 8))
    with pytest.raises(TypeError, match="q must be a torch.Tensor"):
        signflash.flash_attn_func(1, 2, 3)
    with pytest.raises(TypeError, match="v must be a torch.Tensor as q is, got float"):
        signflash.flash_attn_func(torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 2, 8), 3.0)
    with pytest.raises(ValueError, match="v must have 4 dimensions"):
        signflash.flash_attn_func(*(torch.zeros(1, 4, 2, 8) for _ in range(2)), torch.zeros(1, 4))


def test_a_backward_without_the_forwards_seed():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="seed must be the forward's"):
        signflash.attention_backward(q, q, k, v, q, None, dropout_p=0.1)
    with pytest.raises(ValueError, match=r"lse must be float32 of shape \(2, 4, 5\)"):
        signflash.attention_backward(q, q, k, v, q, torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"dlse must be float32 of shape \(2, 4, 5\)"):
        signflash.attention_backward(q, q, k, v, q, torch.zeros(2, 4, 5), dlse=torch.zeros(2, 5, 4))


@pytest.mark.gpu
def test_float32_on_a_gpu_is_refused():
    with pytest.raises(TypeError, match="float16 or bfloat16 on CUDA, got float32"):
        signflash.attention(*tensors(torch.float32, device="cuda"))


@pytest.mark.gpu
def test_tensors_on_two_devices_are_refused():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="k must be on q's device"):
        signflash.attention(q.cuda(), k, v)
    with pytest.raises(ValueError, match="generator must be of q's device"):
        signflash.attention(q.cuda(), k.cuda(), v.cuda(), dropout_p=0.1, generator=torch.Generator())
