"""``signflash.enable()``: PyTorch's F.scaled_dot_product_attention with dropout is ours, on the CPU."""

import pytest

torch = pytest.importorskip("torch")

import reference
import sdpa
import signflash

if not sdpa.HAS_SDPA:
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)


@pytest.fixture(autouse=True)
def enabled():
    with signflash.enabled():
        yield


def compare(q, k, v, p, attn_mask=None, is_causal=False, scale=None, **settings):
    """One call with (batch, heads, seqlen, head_dim) against the formula."""
    out, got, dout, seen = sdpa.check(q, k, v, p, attn_mask, is_causal, scale, **settings)
    inputs = [x for x in (q, k, v, attn_mask) if x is not None and x.requires_grad]
    right = sdpa.expected(q, k, v, p, attn_mask, is_causal, scale)
    name = str(q.dtype)[6:]
    assert out.dtype is q.dtype and reference.error(out, right) <= reference.OUT[name]
    for x, gradient in zip(got, torch.autograd.grad(right, inputs, dout.double())):
        assert x.dtype is gradient.dtype and x.shape == gradient.shape
        assert reference.error(x, gradient) <= reference.GRADIENT[name]
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_call_with_dropout_is_ours_and_right(dtype, p, is_causal):
    compare(*sdpa.make(2, 3, 37, 16, dtype=dtype), p, is_causal=is_causal, scale=0.3)


@pytest.mark.parametrize("seqlen_q, seqlen_k", [(20, 33), (33, 20), (1, 9), (9, 1)])
def test_causal_begins_in_the_top_left_corner(seqlen_q, seqlen_k):
    q, k, v = sdpa.make(2, 2, seqlen_q, 8, of_keys=(2, 2, seqlen_k, 8))
    compare(q, k, v, 0.2, is_causal=True)
    mask = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril()
    compare(q, k, v, 0.2, mask)


@pytest.mark.parametrize("layout", ["bhsd", "bshd", "last stride not 1", "qkv in one"])
def test_memory_may_lie_in_any_way(layout):
    q, k, v = sdpa.make(2, 4, 20, 8)
    if layout == "qkv in one":
        packed = torch.randn(2, 20, 3, 4, 8)
        q, k, v = (x.detach().requires_grad_() for x in packed.permute(2, 0, 3, 1, 4).unbind(0))
    elif layout != "bhsd":
        dims = (1, 2) if layout == "bshd" else (2, 3)
        q, k, v = (x.detach().transpose(*dims).contiguous().transpose(*dims).requires_grad_() for x in (q, k, v))
    compare(q, k, v, 0.3)


def test_v_has_a_head_dim_of_its_own():
    compare(*sdpa.make(2, 2, 20, 8, head_dim_v=24), 0.3)


@pytest.mark.parametrize("of_keys", [(2, 1, 20, 8), (1, 4, 20, 8), (1, 1, 20, 8)])
def test_batch_and_heads_broadcast(of_keys):
    compare(*sdpa.make(2, 4, 20, 8, of_keys=of_keys), 0.2)


def test_queries_broadcast():
    q, k, v = sdpa.make(1, 1, 20, 8, of_keys=(2, 4, 20, 8))
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        taken, out = sdpa.taken(sdpa.attend, q, k, v, dropout_p=0.2)
    assert taken == [True]
    right = sdpa.expected(q.expand_as(k), k, v, 0.2)
    assert reference.error(out, right) < 1e-6
    got = torch.autograd.grad(out.sum(), (q, k, v))
    for x, gradient in zip(got, torch.autograd.grad(right.sum(), (q, k, v))):
        assert reference.error(x, gradient) < 1e-5


@pytest.mark.parametrize("dims", [2, 3, 5, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_inputs_of_any_rank(dims, masked):
    shape = (2, 1, 3, 2, 11, 8)[6 - dims :]
    q, k, v = sdpa.make(*shape)
    mask = None
    if masked:
        mask = torch.rand(*shape[:-2], 11, 11) > 0.4
        mask[..., 0] = True
    four = [x.detach().reshape(-1, *(1, 1, *shape)[-3:]).requires_grad_() for x in (q, k, v)]
    settings = dict(dropout_p=0.2)
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        taken, out = sdpa.taken(sdpa.attend, q, k, v, attn_mask=mask, **settings)
    assert taken == [True] and out.shape == shape
    right = sdpa.expected(*four, 0.2, None if mask is None else mask.reshape(-1, *(1, 1, *shape)[-3:-1], 11))
    assert reference.error(out.reshape(right.shape), right) < 1e-6
    got = torch.autograd.grad(out.square().sum(), (q, k, v))
    for x, gradient in zip(got, torch.autograd.grad(right.square().sum(), four)):
        assert reference.error(x.reshape(gradient.shape), gradient) < 3e-6


def test_grouped_heads():
    if "enable_gqa" not in sdpa.attend.__doc__:
        pytest.skip("this PyTorch has no enable_gqa")
    q, k, v = sdpa.make(2, 6, 20, 8, of_keys=(2, 3, 20, 8))
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        taken, out = sdpa.taken(sdpa.attend, q, k, v, dropout_p=0.2, enable_gqa=True)
    assert taken == [True] and reference.error(out, sdpa.expected(q, k, v, 0.2)) < 1e-6
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        taken, alone = sdpa.taken(sdpa.attend, q[0], k[0], v[0], dropout_p=0.2, enable_gqa=True)
    assert taken == [True] and torch.equal(alone, out[0])


def test_the_dropout_mask_comes_from_pytorchs_generator():
    q, k, v = sdpa.make(1, 2, 9, 8)
    before = torch.get_rng_state()
    first, second = (sdpa.attend(q, k, v, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    assert torch.equal(first, sdpa.attend(q, k, v, dropout_p=0.5))


def test_autocast():
    q, k, v = sdpa.make(1, 2, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        taken, out = sdpa.taken(sdpa.attend, q, k, v, torch.zeros(9, 9).tril(), 0.5)
    out.sum().backward()
    assert taken == [True] and out.dtype is torch.bfloat16 and q.grad.dtype is torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant):
    from torch.utils.checkpoint import checkpoint

    def step(q, k, v):
        return sdpa.attend(q, k, v, attn_mask=torch.zeros(9, 9), dropout_p=0.5)

    tensors, results = sdpa.make(1, 2, 9, 8), []
    for run in (step, lambda *x: checkpoint(step, *x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        taken, out = sdpa.taken(run, *tensors)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in tensors)])
        for x in tensors:
            x.grad = None
    assert taken == [True] and all(torch.equal(a, b) for a, b in zip(*results))


def test_weights_that_are_not_there_are_no_numbers():
    q, k, v = sdpa.make(1, 2, 9, 8)
    out, weights = torch.ops.aten._scaled_dot_product_attention_math(q, k, v, dropout_p=0.5)
    assert out.isfinite().all() and weights.shape == (1, 2, 9, 9) and weights.isnan().all()
    assert weights.untyped_storage().nbytes() == 4 and not weights.requires_grad


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_multihead_attention(padded, causal, is_causal):
    """Its masks are recognised, whatever it makes of them."""
    layer = torch.nn.MultiheadAttention(16, 2, dropout=0.2, batch_first=True)
    x = torch.randn(2, 9, 16)
    given = {}
    if padded:
        given["key_padding_mask"] = torch.arange(9) >= torch.tensor([[9], [6]])
    if causal:
        given["attn_mask"] = ~torch.ones(9, 9, dtype=torch.bool).tril()
    if is_causal and causal:
        given["is_causal"] = True
    with sdpa.listening() as listener:
        layer(x, x, x, need_weights=False, **given)[0].sum().backward()
    assert listener.taken == [True]
    seen = listener[0][2]
    assert seen.causal is causal and seen.bias is None
    assert (seen.mask is not None) is padded and (not padded or seen.mask.shape[-2] == 1)


def test_transformer_layers():
    encoder_layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = torch.nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False)
    decoder = torch.nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
    x, padding = torch.randn(2, 9, 16), torch.arange(9) >= torch.tensor([[9], [6]])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(9)
    for calls, run in (
        (2, lambda: encoder(x)),
        (2, lambda: encoder(x, src_key_padding_mask=padding)),
        (2, lambda: encoder(x, mask=causal)),
        (2, lambda: decoder(x, x, tgt_mask=causal, memory_key_padding_mask=padding.float() * -1e9)),
    ):
        taken, out = sdpa.taken(run)
        out.sum().backward()
        assert taken == [True] * calls
