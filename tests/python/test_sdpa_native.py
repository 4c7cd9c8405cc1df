"""Kernels of PyTorch's operators that PyTorch calls without Python: registered for the CPU here, next to those in Python, whose
results they have to the bit."""

import logging
import sys
import types
import warnings

import pytest

torch = pytest.importorskip("torch")

import reference
import sdpa
import signflash
from signflash._sdpa import notes, switch

if not hasattr(torch.library, "get_kernel"):
    pytest.skip("masks on CUDA need PyTorch's get_kernel", allow_module_level=True)

from signflash._sdpa import flash, fused, native

if not native.is_there():
    pytest.skip("kernels without Python need PyTorch 2.10, for CUDA", allow_module_level=True)

ATEN = torch.ops.aten
P = 0.2
SHAPE = (2, 3, 37, 16)
LENGTHS = (37, 21)


def _bytes(x):
    return x.contiguous().view(torch.uint8).numpy().tobytes()


#: In which order dimensions lie in memory, and what is cut of a larger tensor.
LAYOUTS = {
    "rows first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "heads first": lambda x: x.contiguous(),
    "head_dim first": lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    "batch inside": lambda x: x.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3),
    "every second": lambda x: torch.stack((x, x), 2).flatten(1, 2)[:, ::2],
    "of wide rows": lambda x: torch.cat((x, x), 3)[..., : x.shape[3]],
    "one for all": lambda x: x[:1, :1].expand(x.shape),
    "odd bytes": lambda x: torch.frombuffer(b"0" + _bytes(x), dtype=x.dtype, offset=1).view(x.shape),
}
BIASES = {
    "none": None,
    "numbers": (2, 3, *LENGTHS),
    "of all heads": (2, 1, *LENGTHS),
    "of queries and keys": LENGTHS,
    "of keys": (1, 1, 1, LENGTHS[1]),
    "of queries": (1, 1, LENGTHS[0], 1),
}


@pytest.fixture(autouse=True)
def registered():
    registered = native.register(native.FLASH, fused.EFFICIENT, fused.CUDNN, key="CPU")
    yield registered
    registered.remove()


def make(dtype=torch.float16, layout="rows first", seqlen_k=LENGTHS[1], head_dim_v=None):
    of_keys = (*SHAPE[:2], seqlen_k, SHAPE[3])
    tensors = sdpa.make(*SHAPE, of_keys=of_keys, dtype=dtype, head_dim_v=head_dim_v)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return [LAYOUTS[layout](x.detach()) for x in tensors]


def in_python(name):
    own = None
    return {kernel.name: kernel(own) for kernel in fused.KERNELS}[name]


def assert_alike(results):
    assert len(results[0]) == len(results[1])
    for mine, native_one in zip(*results):
        if mine is None or not isinstance(mine, torch.Tensor):
            assert mine == native_one
            continue
        assert mine.dtype is native_one.dtype and mine.shape == native_one.shape and mine.stride() == native_one.stride()
        assert torch.equal(mine.nan_to_num(), native_one.nan_to_num()) or mine.numel() == 0 or mine.dim() == 0


def compare(name, tensors, p=P, bias=None, is_causal=False, **settings):
    """Forward and backward both ways; what flash returns that nobody reads is left out."""
    for_forward = (p, is_causal) if name == native.FLASH else (bias, True, p, is_causal)
    results = []
    for way in range(2):
        with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
            results.append(both_ways_of(way, name, *tensors, *for_forward, **settings))
    read = {native.FLASH: (0, 1, 2, 3, 4, 5), fused.EFFICIENT: range(4), fused.CUDNN: range(8)}[name]
    assert_alike([[found[place] for place in read] for found in results])
    out = results[0]
    grad_out = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(2)).to(out[0].dtype)
    if name == native.FLASH:
        rest = (out[0], out[1], None, None, *LENGTHS, p, is_causal, out[6], out[7])
    elif name == fused.EFFICIENT:
        rest = (bias, *out, p, [True, True, True, bias is not None], is_causal)
    else:
        rest = (out[0], out[1], out[6], out[7], bias, None, None, *LENGTHS, p, is_causal)
    gradients = [both_ways_of(way, f"{name}_backward", grad_out, *tensors, *rest, **settings) for way in range(2)]
    assert_alike(gradients)


def both_ways_of(way, name, *args, **settings):
    if way:
        return getattr(ATEN, name)(*args, **settings)
    if name.startswith(native.FLASH):
        return (flash.backward if name.endswith("backward") else flash.forward)(*args, **settings)
    return in_python(name)(None, *args, **settings)


@pytest.mark.parametrize("name", [native.FLASH, fused.EFFICIENT, fused.CUDNN])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, layout):
    compare(name, make(layout=layout), is_causal=layout == "rows first", scale=0.3)


@pytest.mark.parametrize("name", [fused.EFFICIENT, fused.CUDNN])
@pytest.mark.parametrize("of", BIASES)
def test_biases(name, of):
    shape = BIASES[of]
    bias = None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(3)).half()
    compare(name, make(), bias=bias)


@pytest.mark.parametrize("name", [fused.EFFICIENT, fused.CUDNN])
@pytest.mark.parametrize("layout", ["rows first", "heads first", "head_dim first", "batch inside"])
def test_a_head_dim_of_vs_own(name, layout):
    compare(name, make(torch.bfloat16, layout, head_dim_v=24))


@pytest.mark.parametrize("p", [0.0, P])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash(p, dtype):
    compare(native.FLASH, make(dtype, seqlen_k=SHAPE[2]), p=p)


def test_flash_has_probs():
    q, k, v = make()
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        *_, mine = flash.forward(q, k, v, P, False, True)
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        *_, probs = ATEN._scaled_dot_product_flash_attention(q, k, v, P, False, True)
    assert probs.shape == (*SHAPE[:2], *LENGTHS) and torch.equal(mine, probs) and (probs < 0).any()


@pytest.mark.parametrize("name", [fused.EFFICIENT, fused.CUDNN])
def test_autograd_is_pytorchs(name):
    tensors = [x.requires_grad_() for x in make(torch.bfloat16)]
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        out = getattr(ATEN, name)(*tensors, None, True, P)[0]
    right = sdpa.expected(*tensors, P)
    grad_out = torch.randn_like(out)
    assert reference.error(out, right) <= reference.OUT["bfloat16"]
    for got, want in zip(torch.autograd.grad(out, tensors, grad_out), torch.autograd.grad(right, tensors, grad_out.double())):
        assert reference.error(got, want) <= reference.gradient_bound(got)


def test_the_state_comes_from_pytorchs_generator():
    tensors, results = make(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(ATEN._scaled_dot_product_efficient_attention(*tensors, None, True, P)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_who_listens_is_told():
    bias = torch.zeros(LENGTHS, dtype=torch.float16)
    with sdpa.listening() as listener:
        ATEN._scaled_dot_product_efficient_attention(*make(), bias, True, P)
        ATEN._scaled_dot_product_flash_attention(*make(), P, True)
        with pytest.raises(RuntimeError, match="no kernel of its own for this operator on the CPU"):
            ATEN._scaled_dot_product_efficient_attention(*make(), None, True, 0.0)
    taken = [(reason and reason.text, tuple(call.query.shape)) for call, reason, _ in listener]
    assert taken == [(None, SHAPE)] * 2 + [("dropout_p is 0, which PyTorch's own kernels compute", SHAPE)]
    assert listener[0][2].bias.shape == LENGTHS and listener[1][2].causal


@pytest.mark.parametrize(
    "dtype, shape, words",
    [
        (torch.float32, SHAPE, "query is float32 on cpu"),
        (torch.float16, (1, 1, 4, 264), "head_dim is 264 and value's 264"),
    ],
)
def test_why_a_call_stays_is_logged_once(caplog, dtype, shape, words):
    q = torch.zeros(shape, dtype=dtype)
    notes.forget()
    with caplog.at_level(logging.WARNING, "signflash"):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no kernel of its own"):
                ATEN._scaled_dot_product_cudnn_attention(q, q, q, None, True, P)
    assert len(caplog.messages) == 1 and words in caplog.messages[0]


def test_what_cannot_be_computed_is_an_error_of_pytorchs():
    q, k, v = make()
    with pytest.raises(RuntimeError, match="must have one dtype and device.*expected f16.*got bf16"):
        ATEN._scaled_dot_product_flash_attention(q, k.bfloat16(), v)
    with pytest.raises(RuntimeError, match="k has shape .*expected"):
        ATEN._scaled_dot_product_flash_attention(q, k[:, :, :, :8], v)
    with pytest.raises(RuntimeError, match="query must be of float16 or bfloat16|stays"):
        ATEN._scaled_dot_product_flash_attention(q.double(), k.double(), v.double())
    k.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="reaches beyond its storage"):
        ATEN._scaled_dot_product_flash_attention(q, k, v)


def test_nothing_is_kept():
    """Of tensors that a call got or made, also where it fails."""
    q, k, v = make()
    bias = torch.zeros(LENGTHS, dtype=torch.float16)
    before = [x._use_count() for x in (q, k, v, bias)]
    for p in (P, 0.0):
        with sdpa.listening():
            try:
                out, lse, seed, offset = ATEN._scaled_dot_product_efficient_attention(q, k, v, bias, True, p, scale=0.3)
            except RuntimeError:
                pass
        rest = (out, lse, seed, offset, p, [True, True, True, True], False)
        try:
            ATEN._scaled_dot_product_efficient_attention_backward(out, q, k, v, bias, *rest, scale=0.3)
        except RuntimeError:
            pass
    assert [x._use_count() for x in (q, k, v, bias)] == before
    assert all([x._use_count() == 1 for x in (out, lse, seed, offset)])


def test_a_ring_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor.experimental._attention", types.ModuleType("rings"))

    def _templated_ring_attention(q, k, v):
        return ATEN._scaled_dot_product_efficient_attention(q, k, v, None, True, P)

    for dtype in (torch.float16, torch.float32):  # the latter is PyTorch's, whose ring gives wrong gradients as well
        with pytest.raises(RuntimeError, match="dropout_p must be 0 under PyTorch's context_parallel"):
            _templated_ring_attention(*make(dtype))
    assert ATEN._scaled_dot_product_efficient_attention(*make(), None, True, P)[0].isfinite().all()


def test_kernels_are_removed(registered):
    registered.remove()
    registered.remove()
    assert "signflash" not in torch._C._dispatch_dump(f"aten::{fused.EFFICIENT}")
    with pytest.raises((RuntimeError, NotImplementedError)):
        ATEN._scaled_dot_product_efficient_attention(*make(), None, True, P)


def test_they_are_registered_for_cuda_while_enabled():
    def registered():
        return [torch._C._dispatch_dump(f"aten::{name}") for name in native.operators(*native._FORWARDS)]

    before = registered()
    with signflash.enabled():
        assert switch.is_on() and all(["signflash" in now for now in registered()])
    assert registered() == before
