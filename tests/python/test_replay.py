"""Forwards that are computed again, and saved tensors that come back as others: right gradients, or an error."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint

import signflash


def make():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 33, 4, 16, generator=generator).requires_grad_() for _ in range(3)]


def backward(call=None, **settings):
    out = checkpoint(lambda *x: signflash.attention(*x, dropout_p=0.5, **(call or {})), *make(), **settings)
    out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [torch.Generator, lambda: signflash.Generator(3)], ids=["torch", "signflash"])
def test_a_generator_that_went_on_is_noticed(reentrant, kind):
    with pytest.raises(RuntimeError, match="would be of another dropout mask"):
        backward(call=dict(generator=kind()), use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_state_that_is_not_restored_is_noticed(reentrant):
    with pytest.raises(RuntimeError, match="would be of another dropout mask"):
        backward(use_reentrant=reentrant, preserve_rng_state=False)
    backward(use_reentrant=reentrant, preserve_rng_state=False, call=dict(seed=3))


def hooked(change):
    q, k, v = make()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, change):
        out = signflash.attention(q, k, v, dropout_p=0.3, seed=4)
    return torch.autograd.grad(out.sum(), (q, k, v))


def test_other_strides_of_what_was_saved_are_read_right():
    expected = hooked(lambda x: x)
    got = hooked(lambda x: x.transpose(0, -1).contiguous().transpose(0, -1))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected))


REFUSED = {
    "lse's dtype": (lambda x: x.bfloat16() if x.dim() == 3 else x, ValueError, "lse must be float32 of shape"),
    "lse's shape": (lambda x: x[:, :1] if x.dim() == 3 else x, ValueError, "lse must be float32 of shape"),
    "a tensor's dtype": (lambda x: x.bfloat16() if x.dim() == 4 else x, TypeError, "q, k, v, out and dout must be of one dtype"),
    "a tensor's shape": (lambda x: x[..., :7] if x.dim() == 4 else x, ValueError, "dout has shape"),
    "a tensor's dimensions": (lambda x: x[0] if x.dim() == 4 else x, ValueError, "q must have 4 dimensions"),
    "the state's dtype": (lambda x: x.float() if x.dim() == 1 else x, RuntimeError, "the dropout state that autograd saved"),
    "the state's shape": (lambda x: x[:1] if x.dim() == 1 else x, RuntimeError, "the dropout state that autograd saved"),
    "the state's numbers": (lambda x: x + 1 if x.dim() == 1 else x, RuntimeError, "of another dropout mask"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_dtypes_and_shapes_of_what_was_saved_are_refused(kind):
    change, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        hooked(change)


@pytest.mark.parametrize("given", [{}, dict(seed=3)], ids=["drawn", "seed"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("first,again", [(0.5, 0.25), (0.5, 0.0), (0.0, 0.5)])
def test_a_dropout_p_that_changes_is_noticed(first, again, reentrant, given):
    q, k, v = make()
    ps = iter((first, again))
    out = checkpoint(lambda q: signflash.attention(q, k, v, dropout_p=next(ps), **given), q, use_reentrant=reentrant)
    # What a checkpoint without re-entrance saved the second time is another number of tensors, which PyTorch itself
    # notices.
    with pytest.raises(RuntimeError, match="had dropout_p|different number of tensors|number of tensors"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_seed_that_changes_is_noticed(reentrant):
    q, k, v = make()
    seeds = iter((1, 2))
    with pytest.raises(RuntimeError, match="would be of another dropout mask"):
        checkpoint(
            lambda q: signflash.attention(q, k, v, dropout_p=0.5, seed=next(seeds)), q, use_reentrant=reentrant
        ).sum().backward()


@pytest.mark.skipif(not hasattr(torch.Tensor, "untyped_storage"), reason="needs PyTorch 2.0 or newer")
@pytest.mark.parametrize("size", [0, 8])
def test_a_saved_state_whose_memory_is_gone_is_not_read(size):
    def shortened(x):
        if x.dtype is torch.int64:
            x = x.clone()
            x.untyped_storage().resize_(size)
        return x

    with pytest.raises(RuntimeError, match="reaches beyond its storage"):
        hooked(shortened)


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="needs PyTorch 2.5 or newer")
@pytest.mark.parametrize("how", ["activation_memory_budget", "aggressive_recomputation", "scope", "checkpoint"])
def test_compiled_code_that_repeats_a_forward_draws_its_dropout_mask_again_or_refuses(how):
    from torch._functorch import config

    def call(q, k, v):
        return signflash.attention(q, k, v, dropout_p=0.5, return_rng_state=True, **seed)

    def repeated(*x):
        return call(*x) if hasattr(config, how) else checkpoint(call, *x, use_reentrant=False)

    def run():
        torch._dynamo.reset()
        q, k, v = make()
        if hasattr(config, how):
            with config.patch({how: 0.0 if how == "activation_memory_budget" else True}):
                out, state = torch.compile(repeated, backend="aot_eager", fullgraph=True)(q, k, v)
                got = torch.autograd.grad(out.sum(), (q, k, v))
        else:
            out, state = torch.compile(repeated, backend="aot_eager", fullgraph=True)(q, k, v)
            got = torch.autograd.grad(out.sum(), (q, k, v))
        again = signflash.attention(q, k, v, dropout_p=0.5, rng_state=state)
        assert torch.allclose(out, again, atol=1e-6)
        for a, b in zip(got, torch.autograd.grad(again.sum(), (q, k, v))):
            assert torch.allclose(a, b, atol=1e-5)

    seed = dict(seed=5)
    run()
    seed = {}
    if how == "checkpoint":
        run()
        return
    with contextlib.ExitStack() as stack:
        if how == "scope":
            stack.enter_context(signflash.random_state(3))
        with pytest.raises(RuntimeError, match="would draw another dropout mask"):
            run()
