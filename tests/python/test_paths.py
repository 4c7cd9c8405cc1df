"""Tracers, modes, transforms, and tensors without memory: the operator is seen, or an error; never foreign memory."""

import pytest

torch = pytest.importorskip("torch")

import signflash

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "register_vmap"), reason="what is looked at here needs PyTorch 2.5 or newer"
)
DROP = dict(dropout_p=0.4, seed=3)


def make():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, heads, 8, generator=generator) for n, heads in ((6, 4), (7, 2), (7, 2))]


def gradient(call, q):
    q = q.detach().clone().requires_grad_()
    call(q).sum().backward()
    return q.grad


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_fake_tensor_is_enough(which):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    tensors = make()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors[which] = mode.from_tensor(tensors[which])
    assert isinstance(signflash.attention(*tensors, dropout_p=0.1), FakeTensor)


def test_meta_tensors_have_shapes_and_are_judged():
    q, k, v = (x.to("meta") for x in make())
    assert signflash.attention(q, k, v, dropout_p=0.1).shape == q.shape
    assert gradient(lambda q: signflash.attention(q, k, v), q).is_meta
    with pytest.raises(ValueError, match="v has another size in dimension 0"):
        signflash.attention(q, k, v[:1])
    packed = torch.empty(1, 4, 3, 2, 8, device="meta")
    assert signflash.flash_attn_qkvpacked_func(packed).is_meta


def test_recorders_record_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    q, k, v = make()

    def call(q):
        return signflash.attention(q, k, v, **DROP)

    for record in (lambda f, q: torch.jit.trace(f, q, check_trace=False), lambda f, q: make_fx(f)(q)):
        assert torch.equal(record(call, q)(q + 1), call(q + 1))
    again = torch.jit.trace(lambda q: signflash.attention(q, k, v, dropout_p=0.5), q, check_trace=False)
    assert not torch.equal(again(q), again(q))
    with pytest.raises(NotImplementedError, match="generator cannot be recorded"):
        make_fx(lambda q: signflash.attention(q, k, v, dropout_p=0.1, generator=torch.Generator()))(q)
    times_keep = make_fx(lambda q: q * signflash.dropout_mask((2, 6, 4, 8), 0.5, 3, device="cpu"))(q)
    assert torch.equal(times_keep(q), q * signflash.dropout_mask((2, 6, 4, 8), 0.5, 3, device="cpu"))


def test_flops_are_counted_as_pytorch_counts_its_own():
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = make()
    q.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        out = signflash.attention(q, k, v, causal=True)
    assert forward.get_total_flops() == 4 * 2 * 4 * 6 * 7 * 8
    with FlopCounterMode(display=False) as backward:
        signflash.attention(q, k, v).sum()
        out.sum().backward()
    assert backward.get_total_flops() == 14 * 2 * 4 * 6 * 7 * 8


def test_gradients_and_maps_of_torch_func():
    q, k, v = make()

    def call(q):
        return signflash.attention(q, k, v, **DROP)

    expected = gradient(call, q)
    assert torch.equal(torch.func.grad(lambda q: call(q).sum())(q), expected)
    batch = torch.stack([q, q + 1, 2 * q])
    for settings in ({}, DROP):
        got = torch.vmap(lambda q: signflash.attention(q, k, v, **settings))(batch)
        assert torch.allclose(got, torch.stack([signflash.attention(q, k, v, **settings) for q in batch]), atol=1e-6)
    each = torch.vmap(torch.func.grad(lambda q: call(q).sum()))(batch)
    assert torch.allclose(each, torch.stack([gradient(call, q) for q in batch]), atol=1e-6)


def test_a_derivative_of_probs_is_refused_and_not_zeros():
    q, k, v = make()

    def both(q):
        return signflash.attention(q, k, v, return_probs=True, **DROP)

    with pytest.raises(NotImplementedError, match="probs have no derivative; .* use probs.detach()"):
        torch.func.grad(lambda q: both(q)[1].sum())(q)
    with pytest.raises(NotImplementedError, match="probs have no derivative"):
        torch.vmap(torch.func.grad(lambda q: both(q)[1].sum()))(torch.stack([q, q]))
    expected = gradient(lambda q: both(q)[0], q)
    assert torch.equal(torch.func.grad(lambda q: both(q)[0].sum())(q), expected)
    (found, probs) = torch.func.grad(lambda q: (both(q)[0].sum(), both(q)[1]), has_aux=True)(q)
    assert torch.equal(found, expected) and torch.equal(probs, both(q)[1])
    pull = torch.func.vjp(lambda q: tuple(x if x.dim() == 4 and x.shape == q.shape else x.detach() for x in both(q)), q)[1]
    assert torch.equal(pull(tuple(torch.ones_like(x) for x in both(q)))[0], expected)


def test_vmap_draws_as_its_randomness_says():
    q, k, v = make()
    batch = q.expand(3, -1, -1, -1, -1)

    def mapped(randomness, x=batch):
        return torch.vmap(lambda q: signflash.attention(q, k, v, dropout_p=0.5), randomness=randomness)(x)

    same, different = mapped("same"), mapped("different")
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness is 'error'"):
        mapped("error")
    with pytest.raises(RuntimeError, match="not mapped over"):
        torch.vmap(lambda x: x + signflash.attention(q, k, v, dropout_p=0.5).sum(), randomness="different")(torch.ones(2))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_derivatives_that_are_not_there_are_refused(which):
    from torch.autograd import forward_ad

    tensors = make()

    def call(x):
        return signflash.attention(*(x if i == which else y for i, y in enumerate(tensors)))

    x = tensors[which]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        call(forward_ad.make_dual(x, x))
    for forward in (lambda: torch.func.jvp(call, (x,), (x,)), lambda: torch.func.hessian(lambda x: call(x).sum())(x)):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            forward()
    out, lse = signflash.attention(*tensors, return_lse=True)
    x.requires_grad_()
    found = signflash.attention_backward(torch.ones_like(out), *tensors, out, lse)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        found[which].square().sum().backward()


@pytest.mark.parametrize("name", ["bias", "sinks", "alibi_slopes"])
def test_a_tangent_of_what_joins_scores_is_refused_and_not_lost(name):
    from torch.autograd import forward_ad

    x = torch.ones(4)[:, None, None] if name == "bias" else torch.ones(4)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        signflash.attention(*make(), **{name: forward_ad.make_dual(x, x)})


@pytest.mark.parametrize("which", [0, 1, 2])
def test_memory_that_is_gone_or_too_short_is_not_read(which):
    for size in (0, 100):
        tensors = make()
        tensors[which].untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match="reaches beyond its storage"):
            signflash.attention(*tensors)
        tensors = [x.requires_grad_() for x in make()]
        out = signflash.attention(*tensors)
        tensors[which].untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match="reaches beyond its storage"):
            out.sum().backward()


def test_zeros_that_lie_nowhere_and_addresses_between_elements():
    zeros = torch._efficientzerotensor((1, 4, 2, 8))
    assert torch.equal(signflash.attention(zeros, zeros, zeros), torch.zeros(1, 4, 2, 8))
    q = make()[0]
    moved = torch.frombuffer(bytearray(1) + bytearray(q.numpy().tobytes()), dtype=torch.float32, offset=1).view(q.shape)
    assert torch.equal(signflash.attention(moved, moved, moved), signflash.attention(q, q, q))


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_a_default_device_is_not_that_of_a_call(device):
    q, k, v = make()
    torch.set_default_device(device)
    try:
        keep = signflash.dropout_mask((1, 1, 8, 8), 0.5, 1, device="cpu")
        out = signflash.attention(q, k, v, dropout_p=0.1)
    finally:
        torch.set_default_device(None)
    assert keep.device.type == out.device.type == "cpu" and 0 < keep.sum() < 64


@pytest.mark.parametrize("which", [0, 1, 2])
def test_other_kinds_of_tensors_are_refused_by_name(which):
    def give(other):
        return [other if i == which else x for i, x in enumerate(make())]

    k = make()[which]
    name = "qkv"[which]
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got layout"):
        signflash.attention(*give(k.to_sparse()))
    for layout in (torch.strided, torch.jagged):
        with pytest.raises(NotImplementedError, match=f"{name} must be a dense tensor, got a nested one"):
            signflash.attention(*give(torch.nested.nested_tensor([k[0], k[1]], layout=layout)))


def test_tangents_of_gradients_are_refused_and_not_lost():
    from torch.autograd import forward_ad

    q, k, v = make()
    q.requires_grad_()
    out, lse = signflash.attention(q, k, v, return_lse=True)
    for x in (out, lse):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.autograd.grad(x, q, forward_ad.make_dual(torch.ones_like(x), torch.ones_like(x)), retain_graph=True)
    pull = torch.func.vjp(lambda q: signflash.attention(q, k, v), q.detach())[1]
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda dout: pull(dout)[0], (out.detach(),), (out.detach(),))


def test_a_traced_dropout_mask_is_a_constant():
    expected = torch.from_numpy(signflash.dropout_mask((1, 1, 8, 8), 0.5, 3))
    traced = torch.jit.trace(
        lambda x: x * signflash.dropout_mask((1, 1, 8, 8), 0.5, 3, device="cpu"), torch.ones(1), check_trace=False
    )
    torch.full((64,), 7, dtype=torch.uint8)  # in memory that a recorded allocation would get
    assert torch.equal(traced(torch.ones(1)).bool(), expected)


def test_nothing_mapped_generators_and_functionalize():
    q, k, v = make()
    none = q.expand(0, *q.shape)
    assert torch.vmap(lambda q: signflash.attention(q, k, v, **DROP))(none).shape == none.shape
    mapped = torch.vmap(torch.func.grad(lambda q: signflash.attention(q, k, v, **DROP).sum()))
    assert mapped(none).shape == none.shape
    for generator in (torch.Generator(), signflash.Generator(1)):
        with pytest.raises(NotImplementedError, match="generator cannot be used under torch.func"):
            torch.vmap(lambda q: signflash.attention(q, k, v, dropout_p=0.5, generator=generator))(q.expand(2, *q.shape))
    out = torch.func.functionalize(lambda q: signflash.attention(q, k, v, **DROP))(q)
    assert torch.equal(out, signflash.attention(q, k, v, **DROP))


def test_a_state_without_memory_and_a_sparse_gradient_are_refused():
    q, k, v = (x.requires_grad_() for x in make())
    for size in (0, 8):
        state = torch.tensor([1, 2])
        state.untyped_storage().resize_(size)
        with pytest.raises(RuntimeError, match="reaches beyond its storage"):
            signflash.attention(q, k, v, dropout_p=0.5, rng_state=state)
    out = signflash.attention(q, k, v)
    with pytest.raises(TypeError, match="must be dense, got layout torch.sparse_coo"):
        out.backward(torch.ones_like(out).to_sparse())


def test_the_backward_by_hand_compiles():
    q, k, v = make()
    out, lse = signflash.attention(q, k, v, return_lse=True, **DROP)

    def call(dout):
        return signflash.attention_backward(dout, q, k, v, out, lse, **DROP)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(out)
    assert all(torch.equal(a, b) for a, b in zip(compiled, call(out)))


def test_a_module_of_dtensors_without_the_class_is_no_error(monkeypatch):
    """PyTorch 2.4 has one, as soon as anybody imports what is below it."""
    import sys
    import types

    from signflash._torch import paths

    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", types.ModuleType("tensor"))
    paths.refuse_kinds((("q", torch.ones(1)),))
