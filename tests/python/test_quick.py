"""The short way of a plain call: taken where it should be, with the results of the long way, and in few steps."""

import gc
import sys
import weakref

import pytest

torch = pytest.importorskip("torch")

import signflash
from signflash._torch import function, native, quick

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(VERSION < (2, 14), reason="the short way needs PyTorch 2.14 or newer")


def make(dtype=torch.float32, head_dim_v=8, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 17, 4, 8), (2, 19, 2, 8), (2, 19, 2, head_dim_v))
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_(requires_grad) for size in sizes]


@pytest.fixture
def only_the_short_way(monkeypatch):
    def long_way(*_, **__):
        raise AssertionError("this call went the long way")

    for module, name in ((native, "forward"), (native, "backward"), (function, "gradients")):
        monkeypatch.setattr(module, name, long_way)


def test_there_is_a_short_way_where_pytorch_has_its_functions():
    assert quick.IS_THERE


def results(tensors, settings, **given):
    """out, lse and the gradients of both."""
    out, lse = signflash.attention(*tensors, return_lse=True, **settings, **given)
    into = (torch.cos(out.detach()), torch.sin(lse.detach()))
    return (out, lse, *torch.autograd.grad((out, lse), tensors, into))


CALLS = {
    "plain": {},
    "causal": dict(causal=True),
    "a window and a scale": dict(window=(3, 1), softmax_scale=0.3),
    "dropout": dict(dropout_p=0.4, seed=5, offset=9),
    "dropout, nominal": dict(dropout_p=0.4, seed=-5, scale_rule="nominal"),
    "softcap": dict(softcap=2.0),
    "a shard": dict(dropout_p=0.4, seed=5, shard=signflash.Shard(1, 2, 3, 4, 8)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_it_gives_what_the_long_way_gives(call, dtype, monkeypatch):
    tensors = make(dtype, head_dim_v=16)
    short = results(tensors, CALLS[call])
    monkeypatch.setattr(quick, "IS_THERE", False)
    for a, b in zip(short, results(tensors, CALLS[call])):
        assert a.dtype is b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def test_it_is_taken(only_the_short_way):
    q, k, v = make()
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
    for tensors in ((q, k, v), transposed, [torch.nn.Parameter(x.detach()) for x in (q, k, v)]):
        signflash.attention(*tensors, dropout_p=0.1).square().sum().backward()
        assert all(x.grad.shape == x.shape for x in tensors)
    with torch.no_grad():
        assert not signflash.attention(q, k, v).requires_grad
    with torch.inference_mode():
        assert signflash.attention(q, k, v).is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert signflash.attention(q, k, v).dtype is torch.bfloat16
    signflash.flash_attn_func(q, k, v, causal=True).square().sum().backward()


def test_only_what_is_asked_for_is_returned(only_the_short_way):
    q, k, v = make()
    v = v.detach()
    out, lse = signflash.attention(q, k, v, return_lse=True)
    into = torch.ones_like(out)
    dq, dk = torch.autograd.grad(out, (q, k), into, retain_graph=True)
    with torch.no_grad():
        given = out.grad_fn.apply(into, None)
    assert given[0] is None and given[3] is None and torch.equal(given[1], dq) and torch.equal(given[2], dk)
    assert lse.grad_fn is out.grad_fn and signflash.attention(q, k, v).grad_fn is not None


def test_what_is_not_plain_is_not_taken():
    q, k, v = make(requires_grad=False)
    settings, state = native.Settings(), (0, 0)

    class Subclass(torch.Tensor):
        pass

    others = (None, 5, [q], q.numpy(), q.to("meta"), q.double(), q.as_subclass(Subclass), torch._neg_view(-q), q[0])
    for other in (*others, q.transpose(1, 3), q.to_sparse(), torch.stack([q, q], -1)[..., 0]):
        assert quick.attend(other, k, v, settings, state, False, False) is None
        assert quick.attend(q, other, v, settings, state, False, False) is None
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watches(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Watches():
        assert quick.attend(q, k, v, settings, state, False, False) is None
    assert quick.attend(q, k, v, settings, state, False, False) is not None


def test_what_was_changed_in_place_is_noticed():
    for change in range(4):
        q, k, v = (x.clone() for x in make())
        out = signflash.attention(q, k, v)
        with torch.no_grad():
            (q, k, v, out)[change].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_nothing_is_kept_longer_than_the_graph():
    q, k, v = make()
    gc.disable()
    try:
        out, lse = signflash.attention(q, k, v, return_lse=True)
        kept = [weakref.ref(out), weakref.ref(lse), weakref.ref(out.grad_fn)]
        del out, lse
        assert [x() for x in kept] == [None] * 3
    finally:
        gc.enable()


def test_gradients_that_lie_otherwise_go_the_long_way():
    q, k, v = make()
    out = signflash.attention(q, k, v)
    expected = torch.autograd.grad(out, (q, k, v), torch.full_like(out, 2.0), retain_graph=True)
    found = torch.autograd.grad(2 * out.sum(), (q, k, v))  # one number for all
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def steps(run):
    """How many functions are called, of Python's and others: what a call costs, without a clock."""
    counts = {"call": 0, "c_call": 0}

    def count(_, event, __):
        if event in counts:
            counts[event] += 1

    for _ in range(3):
        run()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return counts["call"] - 1, counts["c_call"] - 1  # run itself, and setprofile


#: (functions of Python's, others) that are called at most.
MOST = {"forward": (12, 8), "recorded": (12, 8), "dropout from a seed": (16, 14), "backward": (3, 2)}


def test_a_call_takes_few_steps():
    """A function more in a step may have a reason; then these numbers go up, and benchmarks/python.md says by what."""
    q, k, v = make(requires_grad=False)
    learning = make()
    found = {
        "forward": steps(lambda: signflash.attention(q, k, v)),
        "recorded": steps(lambda: signflash.attention(*learning)),
        "dropout from a seed": steps(lambda: signflash.attention(q, k, v, dropout_p=0.1, seed=1)),
    }
    out = signflash.attention(*learning)
    node, into = out.grad_fn, torch.ones_like(out)
    with torch.no_grad():
        found["backward"] = steps(lambda: node.apply(into))
    assert all(a <= b for name, most in MOST.items() for a, b in zip(found[name], most)), found
