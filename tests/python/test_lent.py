"""Tensors as the native half reads them, judged alike whether they describe themselves or are described by us."""

import pytest

torch = pytest.importorskip("torch")

import signflash
from signflash._settings import Settings
from signflash._torch import checks, native, quick

SEED = dict(dropout_p=0.4, seed=9)
HAS_STORAGES = hasattr(torch.Tensor, "untyped_storage")  # PyTorch 2.0


@pytest.fixture(params=["short", "described", "told"])
def way(request, monkeypatch):
    if request.param == "short":
        if not quick.IS_THERE:
            pytest.skip("this PyTorch has no functions for the short way")
        return request.param
    monkeypatch.setattr(quick, "IS_THERE", False)
    if request.param == "told":
        monkeypatch.setattr(native, "_lent", native._told)
        for module in (native, checks):
            monkeypatch.setattr(module, "DESCRIBED", False)
    elif not native.DESCRIBED:
        pytest.skip("this PyTorch's tensors do not describe themselves")
    return request.param


def make(size=(2, 6, 2, 8)):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(size, generator=generator) for _ in range(3)]


def unaligned(x):
    memory = bytearray(1) + bytearray(x.detach().numpy().tobytes())
    return torch.frombuffer(memory, dtype=torch.float32, offset=1).view(x.shape)


def shortened(x):
    x = x.repeat(1, 100, 1, 1)
    x.untyped_storage().resize_(400)
    return x


def freed_behind_an_offset(x):
    x = torch.cat([x, x])[2:]
    x.untyped_storage().resize_(0)
    return x


#: What lies otherwise than kernels read it, with the same numbers.
COPIED = {
    "a last stride of two": lambda x: torch.stack([x, x], -1)[..., 0],
    "heads last": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "lazily negated": lambda x: torch._neg_view(-x),
    "the imaginary part of a conjugate": lambda x: torch.complex(x, -x).conj().imag,
    "unaligned": unaligned,
    "a broadcast row": lambda x: x[:, :1].expand(x.shape),
}
REFUSED = {
    "shortened": (shortened, RuntimeError, "reaches beyond its storage, which holds 100 elements"),
    "freed behind an offset": (freed_behind_an_offset, RuntimeError, "reaches beyond its storage, which holds 0 elements"),
    "sparse": (lambda x: x.to_sparse(), TypeError, "must be a dense tensor, got layout torch.sparse_coo"),
    "another dtype": (lambda x: x.half(), TypeError, "must have q's dtype torch.float32, got torch.float16"),
    "another device": (lambda x: x.to("meta"), ValueError, "must be on q's device cpu, got meta"),
    "of three dimensions": (lambda x: x[0], ValueError, "must have 4 dimensions"),
    "too short": (lambda x: x[:, :5], ValueError, "has shape"),
}


def gradients(tensors):
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = signflash.attention(*tensors, **SEED)
    return (out.detach(), *torch.autograd.grad(out, tensors, torch.ones_like(out)))


@pytest.mark.parametrize("kind", COPIED)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_lies_otherwise_gives_the_same_numbers(way, which, kind):
    tensors = make()
    tensors[which] = COPIED[kind](tensors[which])
    expected = gradients([x.resolve_neg().contiguous().clone() for x in tensors])
    assert all(torch.equal(a, b) for a, b in zip(gradients(tensors), expected))


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("which", [1, 2])
def test_what_cannot_be_read_is_refused_by_name(way, which, kind):
    change, error, message = REFUSED[kind]
    if "storage" in message and not HAS_STORAGES:
        pytest.skip("needs PyTorch 2.0 or newer")
    tensors = make()
    tensors[which] = change(tensors[which])
    with pytest.raises(error, match=message):
        signflash.attention(*tensors, **SEED)


@pytest.mark.skipif(not HAS_STORAGES, reason="needs PyTorch 2.0 or newer")
def test_a_backward_judges_again_what_was_saved(way):
    for change, error, message in [
        (lambda x: x.untyped_storage().resize_(0), RuntimeError, "reaches beyond its storage"),
        (lambda x: x.set_(x.new_empty((2, 6, 8))), ValueError, "must have 4 dimensions"),
        (lambda x: setattr(x, "data", x.data.half()), TypeError, "must be of one dtype"),
    ]:
        q, k, v = make()
        q.requires_grad_()
        out = signflash.attention(q, k, v)
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(k):
            change(k)
        with pytest.raises(error, match=message):
            out.sum().backward()


def test_a_backward_judges_what_was_saved_of_q_by_name(way):
    q, k, v = make()
    k.requires_grad_()
    out = signflash.attention(q, k, v)
    q.data = q.data.double()
    with pytest.raises(TypeError, match="float64|one dtype"):
        out.sum().backward()


def test_a_backward_of_what_all_became_float64_is_refused_by_name(way):
    q, k, v = (x.double() for x in make())
    lse = torch.zeros(q.shape[0], q.shape[2], q.shape[1])
    with pytest.raises(TypeError, match="q must be float16, bfloat16 or .* float32, got torch.float64"):
        native.backward(q, q, k, v, q, lse, None, Settings())


@pytest.mark.parametrize("return_probs", [False, True])
def test_keys_of_another_number_of_dimensions_are_refused_by_name(way, return_probs):
    q, _, v = make()
    with pytest.raises(ValueError, match="k must have 4 dimensions"):
        signflash.attention(q, torch.zeros(3, dtype=q.dtype), v, return_probs=return_probs)


def test_gradients_that_lie_otherwise(way):
    q, k, v = (x.requires_grad_() for x in make())
    out, lse = signflash.attention(q, k, v, return_lse=True)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)

    def by(dout, dlse):
        return torch.autograd.grad((out, lse), (q, k, v), (dout, dlse), retain_graph=True)

    expected = by(dout, dlse)
    for found in (
        by(torch.stack([dout, dout], -1)[..., 1], torch.stack([dlse, dlse], -1)[..., 1]),
        by(torch._neg_view(-dout), torch._neg_view(-dlse)),
        by(unaligned(dout), unaligned(dlse)),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_tensors_without_elements_lie_anywhere(way):
    for size in [(0, 6, 2, 8), (2, 0, 2, 8)]:
        tensors = [torch.empty((*size[:3], 2 * size[3]))[..., ::2].requires_grad_() for _ in range(3)]
        out = signflash.attention(*tensors)
        assert out.shape == size
        out.sum().backward()
        assert all(x.grad.shape == size for x in tensors)


def test_only_tensors_describe_themselves():
    """The native half asks an object's memory only if it is a tensor's."""
    if not native.DESCRIBED:
        pytest.skip("this PyTorch's tensors do not describe themselves")
    q = make()[0]
    told, out, lse = native._told(q), torch.empty_like(q), torch.empty(2, 2, 6)
    for impostor in (object(), 5, "q", torch.Tensor, [q]):
        lent = (impostor, 0, 1 << 40)
        computed = native._native.forward(
            (-1, 1), "float32", (lent, told, told), None, None, out.data_ptr(), lse.data_ptr(), None, 0, (0, 0, 0), native.Settings()
        )
        assert computed is False
