"""PyTorch's F.scaled_dot_product_attention with our kernels."""

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash

registry = pytest.importorskip("torch.nn.attention")
if not hasattr(registry, "register_flash_attention_impl"):
    pytest.skip("this PyTorch has no registry of flash implementations", allow_module_level=True)


@pytest.fixture
def enabled():
    assert "pytorch" in signflash.enable(transformers=False)
    yield
    signflash.disable()


def make(device, seqlen=64):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 4, seqlen, 32, generator=generator).to(device, torch.float16) for _ in range(3)]
    return [x.requires_grad_() for x in made]


def test_enabling_is_known_to_pytorch_and_can_be_undone():
    signflash.enable(transformers=False)
    assert registry.current_flash_attention_impl() == "signflash"
    signflash.disable()
    assert registry.current_flash_attention_impl() is None
    signflash.disable()


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("layout", ["bhsd", "bshd", "last stride not 1"])
def test_the_functions_that_pytorch_calls_are_attention(p, layout, device):
    from signflash._sdpa import flash as sdpa

    q, k, v = (x.detach() for x in make(device))
    if layout == "bshd":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout != "bhsd":
        q, k, v = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v))
    with signflash.random_state(7, 32):
        out, lse, _, _, max_q, max_k, state, unused, probs = sdpa.forward(q, k, v, p, True, True, scale=0.3)
    assert out.stride() == torch.empty_like(q).stride() and (max_q, max_k) == (64, 64)
    assert lse.shape == (2, 4, 64) and state.dtype == unused.dtype == torch.uint64
    tensors = [x.transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
    settings = dict(dropout_p=p, causal=True, seed=7, offset=32, softmax_scale=0.3, scale_rule="nominal")
    expected, expected_probs = signflash.attention(*tensors, **settings, deterministic=True, return_probs=True)
    assert torch.equal(out, expected.transpose(1, 2)) and torch.equal(probs, expected_probs)
    gradients = sdpa.backward(
        torch.ones_like(out), q, k, v, out, lse, None, None, max_q, max_k, p, True, state, unused, scale=0.3
    )
    expected.backward(torch.ones_like(expected))
    for x, got, want in zip((q, k, v), gradients, tensors):
        assert got.stride() == torch.empty_like(x).stride()
        assert reference.error(got, want.grad.transpose(1, 2)) <= (0 if device == "cpu" else 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention_is_pytorchs_own(p, causal):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    results = []
    for ours in (False, True):
        if ours:
            signflash.enable(transformers=False)
        tensors = make("cuda", 300)
        torch.manual_seed(3)
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                out = torch.nn.functional.scaled_dot_product_attention(*tensors, dropout_p=p, is_causal=causal)
            out.backward(torch.ones_like(out))
        finally:
            signflash.disable()
        results.append((out.detach(), *(x.grad for x in tensors), torch.cuda.get_rng_state()))
    for theirs, got in zip(results[0][:4], results[1][:4]):
        assert reference.error(got, theirs) < 2e-3
    assert torch.equal(results[0][4], results[1][4])


@pytest.mark.gpu
def test_enabled_attention_compiles(enabled):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tensors = make("cuda")

    def step(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = step(*tensors)
        expected = torch.autograd.grad(out.sum(), tensors)
        compiled = torch.compile(step, fullgraph=True)(*tensors)
        got = torch.autograd.grad(compiled.sum(), tensors)
    assert reference.error(compiled, out) < 1e-3
    assert all(reference.error(a, b) < 2e-3 for a, b in zip(got, expected))
