"""What ``F.scaled_dot_product_attention`` does on CUDA, as far as no GPU is needed: our kernels of PyTorch's operators are
called with the CPU's tensors, which take the same way, and compared with the formula and with what PyTorch's tracing predicts."""

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

from signflash._sdpa import flash, fused, native, takes

ATEN = torch.ops.aten
P = 0.2
OPERATORS = [fused.EFFICIENT, fused.CUDNN]
LENGTHS = (37, 21)


class Own:
    """In the place of PyTorch's own kernel."""

    def __init__(self):
        self.calls = []

    def call_boxed(self, keys, *args, **kwargs):
        self.calls.append((keys, args, kwargs))
        return "PyTorch's"


def kernels(name):
    """(forward, backward, PyTorch's own) of an operator."""
    own = Own()
    of = {kernel.name: kernel(own) for kernel in fused.KERNELS}
    return of[name], of[f"{name}_backward"], own


def by_python(kernel, *args, **settings):
    return kernel(None, *args, **settings)


def by_pytorch(kernel, *args, **settings):
    """What PyTorch has registered."""
    return getattr(ATEN, kernel.name)(*args, **settings)


@pytest.fixture(params=["python", "native"])
def way(request):
    """How a kernel is called: in Python, or as PyTorch calls what is registered without it, here for the CPU."""
    if request.param == "python":
        yield by_python
        return
    if not native.is_there():
        pytest.skip("kernels without Python need PyTorch 2.10")
    registered = native.register(native.FLASH, *OPERATORS, key="CPU")
    try:
        yield by_pytorch
    finally:
        registered.remove()


def make(dtype=torch.float16, layout="bshd", head_dim_v=None, device="cpu"):
    """q, k, v (2, 3, seqlen, 8), which lie in memory as `layout` says."""
    seqlen_q, seqlen_k = LENGTHS
    tensors = sdpa.make(2, 3, seqlen_q, 8, of_keys=(2, 3, seqlen_k, 8), dtype=dtype, head_dim_v=head_dim_v)
    tensors = [x.detach().to(device) for x in tensors]
    if layout == "bshd":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    return tensors


def run(name, q, k, v, bias, p=P, is_causal=False, learns=False, call=by_python):
    """(forward's results, gradients) of an operator's kernels, or of what `call` makes of their arguments."""
    forward, backward, _ = kernels(name)
    out = call(forward, q, k, v, bias, True, p, is_causal, scale=0.4)
    dout = torch.ones_like(out[0])
    if name == fused.EFFICIENT:
        lse, seed, offset = out[1:]
        rest = (bias, out[0], lse, seed, offset, p, [True, True, True, learns], is_causal)
    else:
        lse, _, _, max_q, max_k, seed, offset, _ = out[1:]
        rest = (out[0], lse, seed, offset, bias, None, None, max_q, max_k, p, is_causal)
    return out, call(backward, dout, q, k, v, *rest, scale=0.4)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("seen", ["all", "causal", "numbers", "keys", "numbers that learn"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_and_gradients_are_the_formulas(way, name, seen, dtype):
    q, k, v = make(dtype)
    bias = None
    if seen in ("numbers", "numbers that learn"):
        bias = torch.randn(2, 3, *LENGTHS, generator=torch.Generator().manual_seed(3)).to(dtype)
    elif seen == "keys":
        hidden = torch.arange(LENGTHS[1]) > 13
        bias = torch.zeros(LENGTHS[1], dtype=dtype).masked_fill(hidden, float("-inf")).expand(2, 3, *LENGTHS)
    learns = seen == "numbers that learn" and name == fused.EFFICIENT
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        (out, lse, *_), gradients = run(name, q, k, v, bias, is_causal=seen == "causal", learns=learns, call=way)
    exact = [x.clone().requires_grad_() for x in ([q, k, v, bias] if learns else [q, k, v])]
    right = sdpa.expected(*exact[:3], P, exact[3] if learns else bias, seen == "causal", scale=0.4)
    kind = str(dtype)[6:]
    assert reference.error(out, right) <= reference.OUT[kind]
    assert lse.dtype is torch.float32 and lse.shape[2] >= LENGTHS[0]
    for got, want in zip(gradients, torch.autograd.grad(right, exact, torch.ones_like(right))):
        assert got.shape == want.shape and got.dtype is want.dtype
        assert reference.error(got, want) <= reference.gradient_bound(got)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("head_dim_v", [8, 16])
def test_results_lie_in_memory_as_pytorchs_tracing_predicts(way, name, masked, layout, head_dim_v):
    """Compiled code relies on it."""
    bias = torch.zeros(2, 1, *LENGTHS, dtype=torch.float16).expand(2, 3, *LENGTHS) if masked else None
    learns = masked and name == fused.EFFICIENT
    ours = run(name, *make(layout=layout, head_dim_v=head_dim_v), bias, learns=learns, call=way)

    with fakes.FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        tensors = [mode.from_tensor(x) for x in make(layout=layout, head_dim_v=head_dim_v)]
        fake_bias = None if bias is None else mode.from_tensor(bias)
        theirs = run(name, *tensors, fake_bias, learns=learns, call=by_pytorch)
    for mine, predicted in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]]):
        if isinstance(predicted, torch.Tensor):
            assert mine.dtype is predicted.dtype
            assert mine.shape == predicted.shape and mine.stride() == predicted.stride()
        else:
            assert mine == predicted


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    "p, dtype, reason",
    [
        (0.0, torch.float16, takes.NO_DROPOUT.text),
        (1.0, torch.float16, takes.CERTAIN.text),
        (P, torch.float32, "query is float32"),
    ],
)
def test_what_is_not_ours_is_pytorchs_own_both_ways(name, p, dtype, reason):
    q, k, v = make(dtype)
    forward, backward, own = kernels(name)
    with sdpa.listening() as listener:
        assert forward("keys", q, k, v, None, True, p, False, scale=0.4) == "PyTorch's"
    assert reason in listener[0][1].text
    state = [torch.zeros((), dtype=torch.int64)] * 2
    lse = torch.zeros(2, 3, LENGTHS[0], 1)
    rest = (q, lse, *state, None, None, None, *LENGTHS, p, False)
    if name == fused.EFFICIENT:
        rest = (None, q, lse, *state, p, [True, True, True, False], False)
    assert backward("keys", q, q, k, v, *rest, scale=0.4) == "PyTorch's"
    assert [keys for keys, _, _ in own.calls] == ["keys"] * 2
    assert own.calls[1][1] == (q, q, k, v, *rest) and own.calls[1][2] == {"scale": 0.4}


def test_too_wide_heads_are_pytorchs():
    q = torch.zeros(1, 1, 4, 264, dtype=torch.float16)
    assert kernels(fused.EFFICIENT)[0](None, q, q, q, None, True, P) == "PyTorch's"


def test_few_pairs_and_an_old_gpu_are_pytorchs(monkeypatch):
    """A fake tensor of a GPU that is elsewhere counts as new."""
    with fakes.FakeTensorMode():
        given = fused.Given(*make(device="cuda"), None, P, False, None)
        assert fused._why_not(given) is takes.FEW_PAIRS
        monkeypatch.setattr(fused, "LEAST_PAIRS", 0)
        assert fused.is_ours(given)
        monkeypatch.setattr(takes, "is_new_enough", lambda index: False)
        assert fused._why_not(given) is takes.OLD_GPU


def test_pytorchs_kernels_come_back():
    def registered():
        return [torch._C._dispatch_dump(f"aten::{kernel.name}") for kernel in fused.KERNELS]

    before = registered()
    for _ in range(2):
        with signflash.enabled():
            assert all([now != then for now, then in zip(registered(), before)])
        assert registered() == before


@pytest.mark.parametrize(
    "dtype, reason", [(torch.float16, None), (torch.bfloat16, None), (torch.float32, "float32 on cuda")]
)
def test_the_formula(dtype, reason):
    with signflash.enabled(), fakes.FakeTensorMode(), sdpa.listening() as listener:
        out, _ = ATEN._scaled_dot_product_attention_math(*make(dtype, device="cuda"), None, P)
    assert out.device.type == "cuda" and listener.taken == [reason is None]
    assert reason is None or reason in listener[0][1].text


def test_flash_writes_what_lies_in_any_way():
    tensors = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in make()]
    tensors[1:] = [x[:, :, :21] for x in tensors[1:]]
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        out, lse, *_, state, _, _ = flash.forward(*tensors, P)
    assert out.stride() == tensors[0].stride()
    right = sdpa.expected(*tensors, P)
    assert reference.error(out, right) <= reference.OUT["float16"]
    gradients = flash.backward(torch.ones_like(out), *tensors, out, lse, None, None, 37, 21, P, False, state, None)
    exact = [x.clone().requires_grad_() for x in tensors]
    right = sdpa.expected(*exact, P)
    for got, x, want in zip(gradients, tensors, torch.autograd.grad(right, exact, torch.ones_like(right))):
        assert got.stride() == x.stride() and reference.error(got, want) <= reference.gradient_bound(got)
