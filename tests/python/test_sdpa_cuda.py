"""What ``F.scaled_dot_product_attention`` does on CUDA, as far as no GPU is needed: fake tensors of one, through PyTorch's
real choices and the kernels that are registered for it."""

import pytest

torch = pytest.importorskip("torch")

import reference
import sdpa
import signflash

fakes = pytest.importorskip("torch._subclasses.fake_tensor")
if not hasattr(torch.library, "get_kernel"):
    pytest.skip("masks on CUDA need PyTorch's get_kernel", allow_module_level=True)
if torch.version.cuda is None:
    pytest.skip("this PyTorch has no CUDA", allow_module_level=True)

from signflash._sdpa import override, takes

ATEN = torch.ops.aten
P = 0.2


@pytest.fixture
def enabled():
    with signflash.enabled():
        yield


def make(dtype=torch.float16, **settings):
    shape = (2, 4, 16, 8)
    return [torch.empty(shape, device="cuda", dtype=dtype, **settings) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("p", [0.0, P])
def test_the_efficient_operator(enabled, p, masked):
    """PyTorch chooses it for masks: with dropout it is ours, without it is PyTorch's with PyTorch's autograd."""
    with fakes.FakeTensorMode(), sdpa.listening() as listener:
        q, k, v = make(requires_grad=True)
        bias = torch.empty(2, 1, 1, 16, device="cuda", dtype=q.dtype).expand(2, 4, 16, 16) if masked else None
        out, lse, seed, offset = ATEN._scaled_dot_product_efficient_attention(q, k, v, bias, True, p)
    assert listener.taken == [p > 0.0]
    assert out.shape == q.shape and out.device.type == "cuda" and lse.shape[:2] == (2, 4) and seed.dtype is torch.int64
    own = "ScaledDotProductEfficientAttentionBackward" in type(out.grad_fn).__name__
    assert out.requires_grad and own is (p == 0.0)
    if p > 0.0 and masked:
        assert listener[0][2].bias.shape == (2, 4, 16, 16) and listener[0][2].bias.stride(1) == 0  # not copied


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("masked", [False, True])
def test_cudnns_operator(enabled, p, masked):
    """PyTorch prefers it on Hopper: with dropout it is ours, without it is PyTorch's."""
    with fakes.FakeTensorMode(), sdpa.listening() as listener:
        q, k, v = make(requires_grad=True)
        bias = torch.empty(2, 1, 16, 16, device="cuda", dtype=q.dtype) if masked else None
        out, *_, seed, offset, debug = ATEN._scaled_dot_product_cudnn_attention(q, k, v, bias, True, p)
    assert listener.taken == [p > 0.0]
    assert out.shape == q.shape and out.device.type == "cuda" and seed.dtype is torch.int64
    assert out.requires_grad and ("CudnnAttention" in type(out.grad_fn).__name__) is (p == 0.0)


@pytest.mark.parametrize(
    "dtype, reason", [(torch.float16, None), (torch.bfloat16, None), (torch.float32, "float32 on cuda")]
)
def test_the_formula(enabled, dtype, reason):
    with fakes.FakeTensorMode(), sdpa.listening() as listener:
        out, _ = ATEN._scaled_dot_product_attention_math(*make(dtype), None, P)
    assert out.device.type == "cuda" and listener.taken == [reason is None]
    assert reason is None or reason in listener[0][1].text


def test_an_old_gpu_is_pytorchs(enabled, monkeypatch):
    monkeypatch.setattr(takes, "_is_new_enough", lambda index: False)
    with fakes.FakeTensorMode(), sdpa.listening() as listener:
        ATEN._scaled_dot_product_attention_math(*make(), None, P)
    assert listener[0][1] is takes.OLD_GPU


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_efficient_kernel_computes_what_the_formula_says(is_causal):
    """On the CPU's tensors, which take the same way."""
    q, k, v = sdpa.make(2, 3, 11, 8, of_keys=(2, 3, 14, 8))
    bias = None if is_causal else torch.randn(2, 1, 11, 14).expand(2, 3, 11, 14)
    kernel = override.Efficient(None)
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        out, lse, _, _ = kernel(None, q, k, v, bias, True, P, is_causal, scale=0.4)
    right = sdpa.expected(q, k, v, P, bias, is_causal, scale=0.4)
    assert reference.error(out, right) < 1e-6 and lse.shape == (2, 3, 11) and not lse.requires_grad
    for x, y in zip(*[torch.autograd.grad(x.sum(), (q, k, v)) for x in (out, right)]):
        assert reference.error(x, y) < 1e-5


def test_pytorchs_kernels_come_back():
    def is_pytorchs():
        with fakes.FakeTensorMode():
            out = ATEN._scaled_dot_product_efficient_attention(*make(requires_grad=True), None, True, P)[0]
        return "Efficient" in type(out.grad_fn).__name__

    for _ in range(2):
        assert is_pytorchs()
        with signflash.enabled():
            assert not is_pytorchs()
    assert is_pytorchs()
