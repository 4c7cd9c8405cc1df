"""Forwards that are computed again, and saved tensors that come back as others: right gradients, or an error."""

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
    with pytest.raises(RuntimeError, match="would be of another mask"):
        backward(call=dict(generator=kind()), use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_state_that_is_not_restored_is_noticed(reentrant):
    with pytest.raises(RuntimeError, match="would be of another mask"):
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


@pytest.mark.parametrize("change", [lambda x: x.bfloat16() if x.dim() == 3 else x, lambda x: x[:1]], ids=["dtype", "shape"])
def test_other_dtypes_and_shapes_of_what_was_saved_are_refused(change):
    with pytest.raises((TypeError, ValueError, RuntimeError), match="lse|state|shape|dtype"):
        hooked(change)
