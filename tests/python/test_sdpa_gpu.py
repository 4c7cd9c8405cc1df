"""``signflash.enable()`` on a real GPU: calls that PyTorch would give to its flash, efficient and formula's kernels."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

import reference
import sdpa
import signflash

pytestmark = pytest.mark.gpu

if not sdpa.HAS_SDPA:
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)
if not hasattr(torch.library, "get_kernel"):
    pytest.skip("masks on CUDA need PyTorch's get_kernel", allow_module_level=True)

from signflash._sdpa import fused, native, takes

FUSED = (fused.EFFICIENT, fused.CUDNN)
BATCH, HEADS, SEQLEN, P = 2, 4, 200, 0.2
PADDED = (torch.arange(SEQLEN) < torch.tensor([[SEQLEN], [77]]))[:, None, None]
SCORES = torch.randn(1, HEADS, SEQLEN, SEQLEN, generator=torch.Generator().manual_seed(4))
RANDOM = torch.rand(BATCH, 1, SEQLEN, SEQLEN, generator=torch.Generator().manual_seed(5)) > 0.4
CAUSAL = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril()
MASKS = {
    "none": None,
    "key padding": PADDED,
    "key padding, expanded": PADDED.expand(BATCH, HEADS, SEQLEN, SEQLEN),
    "causal": CAUSAL,
    "causal and padded": CAUSAL & PADDED,
    "random": RANDOM,
    "rows see nothing": torch.zeros(RANDOM.shape).masked_fill(
        ~(RANDOM & (torch.arange(SEQLEN) % 5 > 0)[:, None]), float("-inf")
    ),
    "numbers": SCORES,
    "numbers that hide": SCORES.masked_fill(~RANDOM, float("-inf")),
}


@pytest.fixture
def enabled(monkeypatch):
    monkeypatch.setattr(fused, "LEAST_PAIRS", 0)
    with signflash.enabled():
        yield


def compare(tensors, p, attn_mask=None, is_causal=False, learns=False):
    """A call on the GPU and its gradients against the formula's in float64 on the CPU, with the dropout mask of one seed."""
    held = list(tensors)
    if attn_mask is not None:
        attn_mask = attn_mask.to(held[0].dtype) if attn_mask.is_floating_point() else attn_mask
        attn_mask = attn_mask.detach().requires_grad_(learns)
        held += [attn_mask] if learns else []
    on_gpu = [x.detach().cuda().requires_grad_() for x in held]
    mask = attn_mask if attn_mask is None else on_gpu[-1] if learns else attn_mask.cuda()
    with sdpa.listening() as listener, signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        out = sdpa.attend(*on_gpu[:3], attn_mask=mask, dropout_p=p, is_causal=is_causal)
    assert listener.taken == [True], [str(reason) for _, reason, _ in listener]
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    got = torch.autograd.grad(out, on_gpu, dout.cuda())
    right = sdpa.expected(*tensors, p, attn_mask, is_causal)
    name = str(out.dtype)[6:]
    assert out.is_cuda and reference.error(out.cpu(), right) <= reference.OUT[name]
    for x, gradient in zip(got, torch.autograd.grad(right, held, dout.double())):
        assert x.shape == gradient.shape and reference.error(x.cpu(), gradient) <= reference.GRADIENT[name]
    return listener


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [40, 64, 128])
@pytest.mark.parametrize("name", MASKS)
def test_masks(enabled, name, head_dim, dtype):
    compare(sdpa.make(BATCH, HEADS, SEQLEN, head_dim, dtype=dtype), P, MASKS[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 256])
def test_causal(enabled, head_dim, dtype):
    compare(sdpa.make(BATCH, HEADS, SEQLEN, head_dim, dtype=dtype), P, is_causal=True)


@pytest.mark.parametrize("shape", [(1, HEADS, SEQLEN, SEQLEN), (SEQLEN, SEQLEN), (BATCH, HEADS, SEQLEN, SEQLEN)])
def test_a_bias_that_learns(enabled, shape):
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    compare(sdpa.make(BATCH, HEADS, SEQLEN, 64, dtype=torch.bfloat16), P, bias, learns=True)


def test_v_has_a_head_dim_of_its_own(enabled):
    compare(sdpa.make(BATCH, HEADS, SEQLEN, 128, dtype=torch.bfloat16, head_dim_v=64), P, MASKS["random"])


def test_the_mask_of_a_seed_is_that_of_pytorchs_flash_kernel():
    """Values that are the identity show it: 0 where dropped."""
    q, k, _ = (x.detach().cuda() for x in sdpa.make(1, HEADS, 64, 64, dtype=torch.float16))
    v = torch.eye(64, device="cuda", dtype=q.dtype).expand(1, HEADS, 64, 64).contiguous()
    results = []
    for block in (contextlib.nullcontext, signflash.enabled):
        with block(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            torch.manual_seed(3)
            results.append(sdpa.attend(q, k, v, dropout_p=0.3))
    theirs, ours = results
    assert torch.equal(theirs == 0, ours == 0)


def test_kernels_with_and_without_python_draw_the_same(monkeypatch):
    q, k, v = (x.detach().cuda() for x in sdpa.make(BATCH, HEADS, SEQLEN, 64, dtype=torch.bfloat16))
    monkeypatch.setattr(fused, "LEAST_PAIRS", 0)
    results, is_there = [], native.is_there
    for there in (is_there, lambda: False):
        monkeypatch.setattr(native, "is_there", there)
        torch.manual_seed(3)
        with signflash.enabled():
            results.append([sdpa.attend(q, k, v, attn_mask=PADDED.cuda(), dropout_p=P) for _ in range(2)])
            results[-1] += [torch.tensor(torch.cuda.default_generators[0].get_offset())]
    assert all([torch.equal(x, y) for x, y in zip(*results)])
    assert not torch.equal(*results[0][:2])


@pytest.mark.parametrize("masked", [False, True])
def test_compiled_code(enabled, masked):
    q, k, v = (x.detach().cuda().requires_grad_() for x in sdpa.make(BATCH, HEADS, SEQLEN, 64, dtype=torch.bfloat16))
    mask = PADDED.cuda() if masked else None

    def step(q, k, v):
        return sdpa.attend(q, k, v, attn_mask=mask, dropout_p=P)

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        torch.manual_seed(5)
        out = run(q, k, v)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for eager, compiled in zip(*results):
        assert reference.error(compiled.cpu(), eager.cpu().double()) <= reference.GRADIENT["bfloat16"]


def test_graphs_replay_with_other_masks(enabled):
    q, k, v = (x.detach().cuda() for x in sdpa.make(BATCH, HEADS, SEQLEN, 64, dtype=torch.bfloat16))
    mask = PADDED.cuda()
    for _ in range(2):
        sdpa.attend(q, k, v, attn_mask=mask, dropout_p=P)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = sdpa.attend(q, k, v, attn_mask=mask, dropout_p=P)
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out) and out.isfinite().all()


@pytest.mark.parametrize("p", [0.0, P])
def test_all_that_a_captured_call_returns_is_on_the_gpu(enabled, p):
    q, k, v = (x.detach().cuda() for x in sdpa.make(BATCH, HEADS, SEQLEN, 64, dtype=torch.float16))
    operators = [torch.ops.aten._scaled_dot_product_flash_attention]
    operators += [lambda q, k, v, p, name=kernel: getattr(torch.ops.aten, name)(q, k, v, None, True, p) for kernel in FUSED]
    for operator in operators:
        operator(q, k, v, p)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            results = operator(q, k, v, p)
        assert all([x.is_cuda for x in results if isinstance(x, torch.Tensor)])


def test_no_memory_is_said_as_pytorch_says_it(enabled):
    """Programs that try again with less look for these words."""
    torch.cuda.empty_cache()
    q = torch.zeros(1, 1, 1, 128, device="cuda", dtype=torch.bfloat16).expand(64, 16, 8192, 128)
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            sdpa.attend(q, q, q, dropout_p=P)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_float32_is_pytorchs(enabled):
    q, k, v = (x.detach().cuda() for x in sdpa.make(1, 2, 16, 8))
    taken, _ = sdpa.taken(sdpa.attend, q, k, v, attn_mask=torch.zeros(16, 16, device="cuda"), dropout_p=P)
    assert True not in taken


def test_a_short_call_is_pytorchs_both_ways():
    q, k, v = (x.detach().cuda().requires_grad_() for x in sdpa.make(1, 2, 64, 64, dtype=torch.bfloat16))
    mask = torch.zeros(64, 64, device="cuda", dtype=torch.bfloat16)
    with signflash.enabled(), sdpa.listening() as listener:
        out = sdpa.attend(q, k, v, attn_mask=mask, dropout_p=P)
        gradients = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert [reason for _, reason, _ in listener] == [takes.FEW_PAIRS]
    assert all([x.isfinite().all() for x in (out, *gradients)])
