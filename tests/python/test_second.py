"""Second derivatives: what a penalty on gradients, or a Hessian, asks for."""

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash

SEED, OFFSET, P = 7, 32, 0.3


def make():
    generator = torch.Generator().manual_seed(0)
    shapes = dict(q=(2, 7, 4, 6), k=(2, 9, 2, 6), v=(2, 9, 2, 5), bias=(4, 7, 9), sinks=(4,))
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


HIDDEN = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(1)) > 0.6
HIDDEN[..., 2] = False
CASES = {
    "plain": (("q", "k", "v"), dict(dropout_p=0.0)),
    "dropout": (("q", "k", "v"), dict(dropout_p=P)),
    "causal": (("q", "k", "v"), dict(dropout_p=P, causal=True)),
    "diagonal": (("q", "k", "v"), dict(dropout_p=P, causal=True, diagonal=0)),
    "window": (("q", "k", "v"), dict(dropout_p=P, window=(3, 1))),
    "softcap": (("q", "k", "v"), dict(dropout_p=P, softcap=1.5)),
    "bias, mask and sinks": (("q", "k", "v", "bias", "sinks"), dict(dropout_p=P, mask=~HIDDEN)),
    "slopes": (("q", "k", "v"), dict(dropout_p=P, alibi_slopes=torch.tensor([0.1, 0.2, 0.3, 0.4]))),
    "rows that see nothing": (("q", "k", "v"), dict(dropout_p=P, mask=(torch.arange(7) != 3)[:, None].expand(7, 9))),
}


def double(found, tensors, penalty):
    """Gradients of what a function of first gradients is."""
    first = torch.autograd.grad(penalty(found), tensors, create_graph=True)
    return torch.autograd.grad(sum([x.square().sum() for x in first]), tensors)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_lse", [False, True])
def test_second_derivatives(name, with_lse):
    names, settings = CASES[name]
    given = {key: x for key, x in make().items() if key in names}
    tensors = list(given.values())

    def penalty(found):
        out, lse = found
        total = out.double().sin().sum()
        return total + lse[lse.isfinite()].double().cos().sum() if with_lse else total

    out, lse = signflash.attention(**given, **settings, seed=SEED, offset=OFFSET, scale_rule="nominal", return_lse=True)
    keep = reference.keep((2, 4, 7, 9), P, SEED, OFFSET) if settings["dropout_p"] else None
    exact = {key: x for key, x in settings.items() if key != "dropout_p"}
    if exact.pop("diagonal", None) is not None:
        exact = dict(mask=torch.ones(7, 9, dtype=torch.bool).tril())
    if name == "rows that see nothing":
        exact["mask"] = exact["mask"].clone()
        exact["mask"][3] = True  # the formula would make NaN of them; out is masked instead
    wide = {key: x.detach().double().requires_grad_() for key, x in given.items()}
    right, right_lse, _ = reference.attention(
        **wide, **exact, keep=keep, scale=reference.keep_scale(settings["dropout_p"], nominal=True)
    )
    if name == "rows that see nothing":
        hidden = ~settings["mask"].any(-1)
        right = right.masked_fill(hidden[:, None, None], 0.0)
        right_lse = right_lse.masked_fill(hidden, float("-inf"))
    got = double((out, lse), tensors, penalty)
    for x, expected in zip(got, double((right, right_lse), list(wide.values()), penalty)):
        assert reference.error(x, expected) < 2e-5


def test_a_hessian_and_a_third_derivative():
    q, k, v = (torch.randn(1, 3, 1, 2, generator=torch.Generator().manual_seed(i)) for i in range(3))

    def run(x, function):
        return function(x, k, v)

    def ours(x, k, v):
        return signflash.attention(x, k, v, dropout_p=0.0).square().sum()

    def formula(x, k, v):
        return reference.attention(x, k, v)[0].square().sum().to(x.dtype)

    hessians = [torch.autograd.functional.hessian(lambda x: run(x, function), q) for function in (ours, formula)]
    assert reference.error(*hessians) < 1e-5
    thirds = []
    for function in (ours, formula):
        x = q.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(x, k, v), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
        thirds.append(torch.autograd.grad(second.square().sum(), x)[0])
    assert reference.error(*thirds) < 1e-4


def test_packed_in_one_tensor():
    qkv = torch.randn(1, 6, 3, 2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = signflash.flash_attn_qkvpacked_func(qkv)
    (got,) = double(out, [qkv], lambda out: out.sin().sum())
    (expected,) = double(reference.attention(*qkv.unbind(2))[0], [qkv], lambda out: out.sin().sum())
    assert reference.error(got, expected) < 1e-5


def test_packed_sequences_are_refused():
    q = torch.randn(6, 2, 4).requires_grad_()
    starts = torch.tensor([0, 2, 6], dtype=torch.int32)
    out = signflash.attention(q, q, q, cu_seqlens_q=starts, cu_seqlens_k=starts)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        first.square().sum().backward()
