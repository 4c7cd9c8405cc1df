"""What ``signflash.enable()`` leaves to PyTorch is PyTorch's, to the bit, and why is told."""

import logging

import pytest

torch = pytest.importorskip("torch")

import reference
import sdpa
import signflash

if not sdpa.HAS_SDPA:
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)

from signflash._sdpa import notes
from signflash._torch import native, quick

SDPA = torch.nn.functional.scaled_dot_product_attention
P = 0.3


def plain(*shape, dtype=torch.float32, head_dim_v=None):
    return [x.detach() for x in sdpa.make(*(shape or (1, 2, 9, 8)), dtype=dtype, head_dim_v=head_dim_v)]


def attend(q, k, v):
    return SDPA(q, k, v, dropout_p=P)


def forward_mode():
    from torch.autograd import forward_ad

    q, k, v = plain()
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(attend(forward_ad.make_dual(q, torch.ones_like(q)), k, v)).tangent


def of_a_kernel(backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        return attend(*plain())


#: Whether vmap takes the formula apart, and draws as its randomness says; 2.4 does not.
MAPS_FORMULAS = torch._C._dispatch_has_kernel_for_dispatch_key(
    "aten::_scaled_dot_product_attention_math", "FuncTorchBatchedDecomposition"
)


def in_inference_mode():
    with torch.inference_mode():
        return attend(*plain()).clone()


def vmapped(**settings):
    q, k, v = plain(3, 1, 2, 9, 8)
    return torch.func.vmap(attend, **settings)(q, k, v)


CASES = {
    "dropout_p = 0": (lambda: SDPA(*plain()), None),
    "dropout_p = 0, causal": (lambda: SDPA(*plain(), is_causal=True), None),
    "dropout_p = 0, mask": (lambda: SDPA(*plain(), attn_mask=torch.ones(9, 9).tril()), None),
    "dropout_p = 0 of the formula": (lambda: SDPA(*plain(1, 2, 9, 8, head_dim_v=5)), "dropout_p is 0"),
    "dropout_p = 1": (lambda: SDPA(*plain(), dropout_p=1.0), "dropout_p is 1"),
    "nothing": (lambda: attend(*plain(0, 2, 9, 8)), None),
    "no keys": (lambda: attend(plain()[0], *plain(1, 2, 0, 8)[1:]), None),
    "float64": (lambda: attend(*plain(1, 2, 9, 8, dtype=torch.float64)), "float64"),
    "head_dim": (lambda: attend(*plain(1, 2, 9, 300)), "head_dim is 300"),
    "head_dim of v": (lambda: attend(*plain(1, 2, 9, 8, head_dim_v=300)), "value's 300"),
    "SDPBackend.MATH": (lambda: of_a_kernel("MATH"), "sdpa_kernel"),
    "inference_mode": (in_inference_mode, None),
    "vmap": (lambda: vmapped(randomness="different"), None),
    "vmap, the same for all": (lambda: vmapped(randomness="same"), None),
    "func.grad": (lambda: torch.func.grad(lambda *x: attend(*x).sum())(*plain()), "torch.func"),
    "func.jvp": (lambda: torch.func.jvp(attend, tuple(plain()), tuple(plain()))[1], "torch.func"),
    "forward mode": (forward_mode, "forward-mode"),
    "need_weights": (
        lambda: torch.nn.functional.multi_head_attention_forward(
            *[x[0].transpose(0, 1) for x in plain(1, 2, 9, 8)], 8, 2, torch.ones(24, 8), None, None, None, False, P,
            torch.ones(8, 8), None,
        )[0],
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_pytorchs_to_the_bit(name, monkeypatch):
    run, reason = CASES[name]
    if name.startswith("vmap") and not MAPS_FORMULAS:
        pytest.skip("this PyTorch calls attention for each piece, and so ours")
    results = []
    for is_on in (False, True):
        torch.manual_seed(5)
        if not is_on:
            results.append(run())
            continue
        monkeypatch.setattr(native, "forward", None)  # ours would fail
        monkeypatch.setattr(quick, "attend", None)
        with signflash.enabled(), sdpa.listening() as listener:
            results.append(run())
        assert not any(listener.taken)
    assert torch.equal(*results) or results[0].isnan().equal(results[1].isnan())
    told = [of_call for _, of_call, _ in listener if not of_call.silent or reason is not None]
    assert told == [] if reason is None else reason in told[0].text


@pytest.fixture
def enabled():
    with signflash.enabled():
        yield


def test_second_derivatives_are_right(enabled):
    tensors, keep = sdpa.make(1, 2, 5, 4), reference.keep((1, 2, 5, 5), P, sdpa.SEED, sdpa.OFFSET)
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        taken, out = sdpa.taken(attend, *tensors)
    right = reference.attention(
        *(x.transpose(1, 2) for x in tensors), keep=keep, scale=reference.keep_scale(P, nominal=True)
    )[0].transpose(1, 2)
    results = []
    for x in (out, right):
        first = torch.autograd.grad(x.sin().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum([g.square().sum() for g in first]), tensors))
    assert taken == [True] and all(reference.error(*pair) < 1e-5 for pair in zip(*results))


def test_a_trace_of_jit_asks_again(enabled):
    traced = torch.jit.trace(attend, tuple(plain()), check_trace=False)
    assert "scaled_dot_product_attention" in str(traced.graph) and "signflash" not in str(traced.graph)
    assert sdpa.taken(traced, *plain())[0] == [True]
    assert sdpa.taken(traced, *plain(1, 2, 9, 8, dtype=torch.float64))[0] == [False]


def test_exported_programs_are_pytorchs(enabled):
    if not hasattr(getattr(torch, "compiler", None), "is_exporting"):
        pytest.skip("this PyTorch does not tell that it exports")

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return attend(q, k, v)

    with sdpa.listening() as listener:
        program = torch.export.export(Model(), tuple(plain()))
        graphs = program.graph, program.run_decompositions().graph
    assert not any(listener.taken) and not any(["signflash" in str(graph) for graph in graphs])


def test_meta_tensors(enabled):
    assert attend(*(x.to("meta") for x in plain())).shape == (1, 2, 9, 8)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fake_tensors(device):
    fake = pytest.importorskip("torch._subclasses.fake_tensor")

    def run():
        with fake.FakeTensorMode():
            q, k, v = (torch.empty(1, 2, 9, 8, device=device, dtype=torch.float16) for _ in range(3))
            return attend(q, k, v)

    try:
        run()
    except RuntimeError:
        pytest.skip("this PyTorch wants a driver for fake tensors of a GPU")
    with signflash.enabled():
        out = run()
    assert isinstance(out, fake.FakeTensor) and out.shape == (1, 2, 9, 8) and out.device.type == device


class Named(torch.Tensor):
    """What fastai's are: methods, and nothing else."""


def test_subclasses_that_add_methods_are_ours(enabled):
    q, k, v = (x.as_subclass(Named).requires_grad_() for x in plain())
    taken, out = sdpa.taken(attend, q, k, v)
    out.sum().backward()
    assert isinstance(out, Named) and q.grad.shape == q.shape
    assert taken == [hasattr(torch.library, "register_autograd")]


def test_subclasses_that_dispatch_are_pytorchs(enabled):
    two = pytest.importorskip("torch.testing._internal.two_tensor")
    q, k, v = (two.TwoTensor(x, x.clone()) for x in plain())
    taken, out = sdpa.taken(attend, q, k, v)
    assert taken == [False] and isinstance(out, two.TwoTensor)


def test_nested_tensors_are_pytorchs(enabled):
    if not hasattr(torch, "jagged"):
        pytest.skip("this PyTorch has no jagged layout")
    rows = [torch.randn(length, 2, 8) for length in (5, 7)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)
    taken, out = sdpa.taken(attend, nested, nested, nested)
    assert not any(taken) and out.is_nested


def test_why_is_logged_once(enabled, caplog):
    notes.forget()
    with caplog.at_level(logging.WARNING, "signflash"):
        for _ in range(3):
            attend(*plain(1, 2, 9, 8, dtype=torch.float64))
            SDPA(*plain(1, 2, 9, 8, head_dim_v=5))
            attend(*plain(0, 2, 9, 8))
    assert [record.name for record in caplog.records] == ["signflash"]
    assert "float64" in caplog.text and "(1, 2, 9, 8)" in caplog.text


@pytest.fixture(scope="module")
def mesh():
    """One process, which is all of its group."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not hasattr(distributed, "HashStore"):
        pytest.skip("this PyTorch has no process groups")
    pytest.importorskip("torch.distributed.tensor.experimental")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_dtensors_are_pytorchs(enabled, mesh):
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    q, k, v = (distribute_tensor(x, mesh, [Shard(1)]) for x in plain())
    taken, out = sdpa.taken(attend, q, k, v)
    assert taken == [False] and isinstance(out, DTensor)


def test_context_parallel_with_dropout_is_refused(enabled, mesh):
    from torch.distributed.tensor import experimental

    tensors = plain(1, 2, 8, 8)  # PyTorch 2.11 wants two pieces of equal length a rank
    with experimental.context_parallel(mesh, buffers=tensors, buffer_seq_dims=[2] * 3):
        with pytest.raises(NotImplementedError, match="context_parallel"):
            torch.nn.functional.scaled_dot_product_attention(*tensors, dropout_p=P)


def test_a_step_of_its_ring_with_dropout_is_refused(enabled, mesh):
    """What a GPU calls within it, here with the CPU's tensors."""
    rings = pytest.importorskip("torch.distributed.tensor.experimental._context_parallel._attention")
    from signflash._sdpa import flash

    def step(query, key, value, is_causal=False, **rest):
        return flash.forward(query, key, value, rest["dropout_p"], is_causal, scale=rest["scale"])

    def run(p):
        return rings._templated_ring_attention(mesh.get_group(), 2, step, *plain(), True, dropout_p=p, scale=None)

    assert run(0.0)[0].shape == (1, 2, 9, 8)
    with pytest.raises(NotImplementedError, match="context_parallel"):
        run(P)


@pytest.mark.parametrize("kernel", ["EfficientForward", "CudnnForward"])
def test_so_is_one_that_stays_with_pytorch(enabled, mesh, kernel):
    """float32, which is not ours on a GPU; few pairs are not, either."""
    rings = pytest.importorskip("torch.distributed.tensor.experimental._context_parallel._attention")
    from signflash._sdpa import fused

    class Own:
        def call_boxed(self, *_, **__):
            raise AssertionError("PyTorch's kernel was called")

    def step(query, key, value, is_causal=False, **rest):
        return getattr(fused, kernel)(Own())(None, query, key, value, None, True, rest["dropout_p"], is_causal)

    with pytest.raises(NotImplementedError, match="context_parallel"):
        rings._templated_ring_attention(mesh.get_group(), 2, step, *plain(), True, dropout_p=P, scale=None)
