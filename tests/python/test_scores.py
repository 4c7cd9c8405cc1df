"""Softcap, ALiBi, bias, mask, sinks and another head_dim of v, judged by the formulas in float64."""

import math

import pytest
import reference

torch = pytest.importorskip("torch")

import signflash

BATCH, LEN_Q, LEN_K, HEADS, HEADS_K, DIM = 2, 19, 37, 4, 2, 24
HAS_OPERATORS = hasattr(torch.library, "register_autograd")
needs_operators = pytest.mark.skipif(not HAS_OPERATORS, reason="needs PyTorch 2.4 or newer")


def make(device="cpu", dtype=None, dim_v=DIM, seed=0):
    """q, k, v, and a few of everything that joins."""
    dtype = dtype or (torch.float32 if device == "cpu" else torch.float16)
    generator = torch.Generator().manual_seed(seed)

    def normal(*size, dtype=torch.float32):
        return torch.randn(size, generator=generator).to(device=device, dtype=dtype)

    tensors = [
        normal(BATCH, LEN_Q, HEADS, DIM, dtype=dtype),
        normal(BATCH, LEN_K, HEADS_K, DIM, dtype=dtype),
        normal(BATCH, LEN_K, HEADS_K, dim_v, dtype=dtype),
    ]
    seen = torch.rand((BATCH, 1, LEN_Q, LEN_K), generator=generator) < 0.7
    seen[1, :, 5] = False  # a query that sees nothing
    of_keys = torch.arange(LEN_K)[None, None, None] < torch.tensor([30, 17])[:, None, None, None]
    hiding = normal(1, HEADS, LEN_Q, LEN_K)
    hiding[:, 1, 3, 4:] = -math.inf
    joined = {
        "softcap": dict(softcap=2.5),
        "slopes": dict(alibi_slopes=torch.linspace(0.02, 0.3, HEADS).to(device)),
        "slopes of sequences": dict(alibi_slopes=torch.linspace(0.02, 0.3, BATCH * HEADS).view(BATCH, HEADS).to(device)),
        "bias": dict(bias=normal(BATCH, HEADS, LEN_Q, LEN_K)),
        "bias for all sequences": dict(bias=hiding),
        "bias in half": dict(bias=normal(BATCH, 1, 1, LEN_K, dtype=torch.float16)),
        "bias of two dimensions": dict(bias=normal(LEN_Q, LEN_K, dtype=torch.bfloat16)),
        "bias of keys": dict(bias=normal(LEN_K)),
        "bias across": dict(bias=normal(HEADS, LEN_K, LEN_Q).transpose(-1, -2)),
        "one column": dict(bias=normal(BATCH, 1, LEN_Q, 1)),
        "mask": dict(mask=seen.to(device)),
        "mask of keys": dict(mask=of_keys.to(device)),
        "mask of queries": dict(mask=seen[0, 0, :, :1].to(device)),
        "sinks": dict(sinks=normal(HEADS)),
        "sinks in bfloat16": dict(sinks=normal(HEADS, dtype=torch.bfloat16) + 1),
    }
    joined["all"] = {
        name: x
        for each in ("softcap", "slopes", "bias for all sequences", "mask", "sinks")
        for name, x in joined[each].items()
    }
    return tensors, joined


NAMES = list(make()[1])
SETTINGS = {"plain": {}, "dropout": dict(dropout_p=0.2, seed=7), "window": dict(causal=True, window=(9, 0))}


def floats(joined):
    """Those that have a gradient."""
    return {name: x for name, x in joined.items() if name in ("bias", "sinks")}


def watch(tensors, joined):
    """Copies that ask for gradients, and all of these."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    kept = {name: x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for name, x in floats(joined).items()}
    return tensors, {**joined, **kept}, [*tensors, *kept.values()]


def expected(tensors, joined, dropout_p=0.0, seed=None, **settings):
    q, k = tensors[:2]
    keep = reference.keep((q.shape[0], q.shape[2], q.shape[1], k.shape[1]), dropout_p, seed) if dropout_p else None
    return reference.attention(*tensors, keep=keep, scale=reference.keep_scale(dropout_p, False), **settings, **joined)


def compare(tensors, joined, call=signflash.attention, **settings):
    """out, lse and all gradients of a call with the reference's."""
    (mine, own, leaves), (exact, theirs, exact_leaves) = watch(tensors, joined), watch(tensors, joined)
    out, lse = call(*mine, **own, **settings, return_lse=True)
    exact_out, exact_lse, _ = expected(exact, theirs, **settings)
    dtype = str(out.dtype)[6:]
    assert out.dtype is tensors[0].dtype and reference.error(out, exact_out) <= reference.OUT[dtype]
    finite = torch.isfinite(exact_lse)
    assert torch.equal(lse[~finite].double(), exact_lse[~finite].detach())
    assert reference.error(lse[finite], exact_lse[finite]) <= 2e-6
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.device)
    of_lse = torch.linspace(0, 1, lse.numel()).view(lse.shape).to(lse.device)[finite]
    (out.float() * weights).sum().add((lse[finite] * of_lse).sum()).backward()
    (exact_out * weights).sum().add((exact_lse[finite] * of_lse).sum()).backward()
    for x, y in zip(leaves, exact_leaves):
        assert x.grad.shape == x.shape and x.grad.dtype is x.dtype
        bound = max(reference.GRADIENT[dtype], reference.GRADIENT[str(x.dtype)[6:]])
        if x is own.get("bias") and x.shape[-1] == 1:
            bound = max(bound, 1e-4)  # a row's gradients cancel
        assert reference.error(x.grad, y.grad) <= bound, [name for name, y in own.items() if x is y]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_each_has_its_formula_and_gradients(name, settings, device):
    tensors, joined = make(device)
    compare(tensors, joined[name], **SETTINGS[settings])


@pytest.mark.parametrize("dim_v", [8, 40])
def test_v_has_a_head_dim_of_its_own(dim_v, device):
    tensors, joined = make(device, dim_v=dim_v)
    for each in ({}, joined["all"]):
        compare(tensors, each, **SETTINGS["dropout"])
    out, probs = signflash.attention(*tensors, return_probs=True, **joined["sinks"], **SETTINGS["dropout"])
    kept, dropped = signflash.decode(probs)
    v = tensors[2].float().repeat_interleave(HEADS // HEADS_K, 2).transpose(1, 2)
    again = ((kept * ~dropped).float() @ v).transpose(1, 2) * signflash.keep_scale(0.2)
    assert reference.error(out, again) < 2e-3


@pytest.mark.parametrize("name", ["bias in half", "all"])
def test_16_bits(name):
    for dtype in (torch.float16, torch.bfloat16):
        tensors, joined = make(dtype=dtype)
        compare(tensors, joined[name], **SETTINGS["dropout"])


@pytest.mark.parametrize("name", ["bias for all sequences", "sinks"])
def test_gradients_are_finite_differences_with_the_dropout_mask_frozen(name):
    tensors, joined = make()
    (which, x), settings = next(iter(floats(joined[name]).items())), SETTINGS["dropout"]
    x = x.clone().requires_grad_()
    weights = torch.randn(BATCH, LEN_Q, HEADS, DIM, generator=torch.Generator().manual_seed(3))

    def loss(x):
        return (signflash.attention(*tensors, **{which: x}, **settings) * weights).double().sum()

    (gradient,) = torch.autograd.grad(loss(x), x)
    generator, step = torch.Generator().manual_seed(5), 1e-2
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
        inner = (gradient.double() * direction.double()).sum()
        assert abs(difference - inner) <= 2e-3 * max(1.0, abs(inner))


def test_a_bias_has_a_gradient_only_if_it_asks_for_one(monkeypatch):
    from signflash._torch import native

    tensors, joined = make()
    asked = []
    original = native._gradients_of_scores
    monkeypatch.setattr(native, "_gradients_of_scores", lambda scores, wanted: asked.append(wanted) or original(scores, wanted))
    for bias, sinks in ((False, False), (True, False), (False, True)):
        q = tensors[0].clone().requires_grad_()
        x = joined["bias"]["bias"].clone().requires_grad_(bias)
        y = joined["sinks"]["sinks"].clone().requires_grad_(sinks)
        signflash.attention(q, *tensors[1:], bias=x, sinks=y).sum().backward()
        assert (x.grad is not None, y.grad is not None) == (bias, sinks) == asked.pop()


def test_an_expanded_bias_costs_no_memory_and_its_gradient_is_its_own():
    tensors, joined = make()
    own = joined["bias for all sequences"]["bias"].clone().requires_grad_()
    out = signflash.attention(*tensors, bias=own.expand(BATCH, -1, -1, -1))
    assert torch.equal(out, signflash.attention(*tensors, bias=own))
    (gradient,) = torch.autograd.grad(out.sum(), own)
    (expected,) = torch.autograd.grad(signflash.attention(*tensors, bias=own).sum(), own)
    assert reference.error(gradient, expected) < 1e-6


def test_dbias_has_the_same_bits_in_every_run():
    tensors, joined = make()
    own = None
    for _ in range(2):
        mine, joint, leaves = watch(tensors, joined["all"])
        signflash.attention(*mine, **joint, dropout_p=0.2, seed=1).sum().backward()
        own = own or [x.grad for x in leaves]
        assert all(torch.equal(x.grad, y) for x, y in zip(leaves, own))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_packed_sequences_count_positions_from_their_own_first(p, device):
    lengths = [(5, 9), (0, 4), (11, 11), (3, 0)]
    tensors, joined = make(device)
    q, k, v = (torch.cat([x[0], x[1]])[:24] for x in tensors)
    cu_seqlens_q, cu_seqlens_k = (
        torch.tensor([0, *(sum(x[i] for x in lengths[: n + 1]) for n in range(4))], dtype=torch.int32, device=device)
        for i in (0, 1)
    )
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn((4, 1, 11, 13), generator=generator).to(device)
    mask = (torch.rand((1, HEADS, 1, 11), generator=generator) < 0.7).to(device)
    slopes = torch.linspace(0.1, 0.5, 4 * HEADS).view(4, HEADS).to(device)
    given = dict(bias=bias, mask=mask, alibi_slopes=slopes, sinks=joined["sinks"]["sinks"], softcap=3.0)
    (mine, own, leaves), (exact, theirs, exact_leaves) = watch((q, k, v), given), watch((q, k, v), given)
    out, lse = signflash.attention(
        *mine, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, dropout_p=p, seed=4, return_lse=True, **own
    )
    keep = reference.keep((4, HEADS, 11, 11), p, 4) if p else None
    settings = dict(keep=keep, scale=reference.keep_scale(p, False))
    exact_out, exact_lse = reference.packed(*exact, lengths, **settings, **theirs)
    assert reference.error(out, exact_out) <= reference.OUT[str(q.dtype)[6:]]
    assert reference.error(lse[:, :19], exact_lse[:, :19]) <= 2e-6
    weights = torch.linspace(-1, 1, out.numel(), device=device).view(out.shape)  # with ones, gradients cancel
    (out.float() * weights).sum().backward()
    (exact_out * weights).sum().backward()
    for x, y in zip(leaves, exact_leaves):
        assert reference.error(x.grad, y.grad) <= reference.gradient_bound(x, q)


@needs_operators
def test_operators_compile_and_say_the_same(device):
    tensors, joined = make(device, dim_v=8)
    compiled = torch.compile(signflash.attention, fullgraph=True, backend="aot_eager", dynamic=False)
    for name in ("all", "bias of two dimensions"):
        compare(tensors, joined[name], compiled, **SETTINGS["dropout"])


@needs_operators
def test_fake_tensors_have_the_shapes_of_results():
    tensors, joined = make("meta", torch.float32, dim_v=8)
    tensors, own, leaves = watch(tensors, joined["all"])
    out, lse, probs = signflash.attention(*tensors, **own, return_lse=True, return_probs=True)
    assert out.shape == (BATCH, LEN_Q, HEADS, 8) and lse.shape == (BATCH, HEADS, LEN_Q)
    assert probs.shape == (BATCH, HEADS, LEN_Q, LEN_K)
    out.sum().backward()
    assert all(x.grad.shape == x.shape and x.grad.dtype is x.dtype for x in leaves)


@needs_operators
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_vmap_takes_pieces_of_everything(p):
    settings = dict(dropout_p=p, seed=3)
    many = [make(seed=seed) for seed in (0, 1)]
    tensors = [torch.stack(x) for x in zip(*(tensors for tensors, _ in many))]
    for name in ("all", "slopes of sequences", "mask of keys"):
        joined = many[0][1][name]
        mapped = {key: torch.stack([x[1][name][key] for x in many]) for key, x in joined.items() if key != "softcap"}
        cap = {key: x for key, x in joined.items() if key == "softcap"}

        def run(q, k, v, given):
            return signflash.attention(q, k, v, **given, **cap, **settings)

        for given, dims in ((mapped, 0), ({key: x[0] for key, x in mapped.items()}, None)):
            alone = [run(*(x[i] for x in tensors), {n: x if dims is None else x[i] for n, x in given.items()}) for i in (0, 1)]
            assert torch.equal(torch.func.vmap(run, in_dims=(0, 0, 0, dims))(*tensors, given), torch.stack(alone))


@needs_operators
def test_functional_gradients_are_autograds():
    tensors, joined = make()
    own = floats(joined["all"])
    rest = {name: x for name, x in joined["all"].items() if name not in own}

    def loss(own, q):
        return signflash.attention(q, *tensors[1:], **own, **rest, dropout_p=0.2, seed=3).square().sum()

    watched, q = {name: x.clone().requires_grad_() for name, x in own.items()}, tensors[0].clone().requires_grad_()
    loss(watched, q).backward()
    found, dq = torch.func.grad(loss, argnums=(0, 1))(own, tensors[0])
    assert torch.equal(dq, q.grad) and all(torch.equal(found[name], x.grad) for name, x in watched.items())
    # Of each sequence alone: the bias is for all, and each has a gradient of it.
    qs = torch.stack([tensors[0], tensors[0] * 0.5])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(own, qs)
    for i in (0, 1):
        alone = torch.func.grad(loss)(own, qs[i])
        assert all(torch.equal(each[name][i], alone[name]) for name in own)


@needs_operators
def test_flops_count_both_head_dims():
    from torch.utils.flop_counter import FlopCounterMode

    tensors, joined = make(dim_v=8)
    tensors = [x.requires_grad_() for x in tensors]
    with FlopCounterMode(display=False) as counter:
        signflash.attention(*tensors, **joined["bias"]).sum().backward()
    pairs = BATCH * HEADS * LEN_Q * LEN_K
    assert counter.get_total_flops() == 2 * pairs * ((DIM + 8) + (3 * DIM + 2 * 8))


def test_arrays_and_the_backward_without_autograd_say_the_same():
    np = pytest.importorskip("numpy")
    tensors, joined = make(dim_v=8)
    for name in ("all", "bias of keys", "bias across", "one column", "mask of queries"):
        given, settings = joined[name], SETTINGS["dropout"]
        arrays = {key: x.numpy() if isinstance(x, torch.Tensor) else x for key, x in given.items()}
        mine, own, leaves = watch(tensors, given)
        out, lse = signflash.attention(*mine, **own, **settings, return_lse=True)
        again, rows = signflash.attention(*(x.numpy() for x in tensors), **arrays, **settings, return_lse=True)
        assert np.array_equal(again, out.detach()) and np.array_equal(rows, lse.detach())
        out.sum().backward()
        wanted = dict(return_dbias="bias" in given, return_dsinks="sinks" in given)
        dout = torch.ones_like(out.detach())
        found = signflash.attention_backward(dout, *tensors, out.detach(), lse.detach(), **given, **settings, **wanted)
        of_arrays = signflash.attention_backward(
            dout.numpy(), *(x.numpy() for x in tensors), again, rows, **arrays, **settings, **wanted
        )
        assert len(found) == len(of_arrays) == len(leaves)
        for x, mine, theirs in zip(leaves, found, of_arrays):
            assert torch.equal(mine, x.grad) and mine.shape == theirs.shape
            assert np.allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_flash_attentions_functions_take_softcap_and_alibi_with_dropout():
    tensors, joined = make()
    given = {**joined["softcap"], **joined["slopes of sequences"]}
    with signflash.random_state(7):
        theirs = signflash.flash_attn_func(*tensors, 0.2, softcap=given["softcap"], alibi_slopes=given["alibi_slopes"])
    ours = signflash.attention(*tensors, dropout_p=0.2, seed=7, scale_rule="nominal", **given)
    assert torch.equal(theirs, ours)
    qkv = torch.stack([tensors[0]] * 3, 2).requires_grad_()
    own = joined["slopes"]["alibi_slopes"]
    out = signflash.flash_attn_qkvpacked_func(qkv, softcap=2.0, alibi_slopes=own)
    q = tensors[0].clone().requires_grad_()
    plain = signflash.attention(q, q, q, softcap=2.0, alibi_slopes=own)
    assert torch.equal(out, plain)
    out.sum().backward()
    plain.sum().backward()
    assert reference.error(qkv.grad.sum(2), q.grad) < 1e-6
    starts = torch.tensor([0, LEN_Q, 2 * LEN_Q], dtype=torch.int32)
    q = tensors[0].reshape(-1, HEADS, DIM)
    packed = signflash.flash_attn_varlen_func(q, q, q, starts, starts, LEN_Q, LEN_Q, softcap=2.0, alibi_slopes=own)
    assert reference.error(packed.view(plain.shape), plain) < 1e-6


def wrong():
    x = torch.zeros
    yield dict(softcap=-1.0), ValueError, "softcap must be positive and finite, got -1.0; None or 0.0 is none"
    yield dict(softcap=math.inf), ValueError, "softcap must be positive and finite, got inf"
    yield dict(softcap=1e39), ValueError, "softcap must be positive and finite, finite as float32, too, got 1e"
    yield dict(softcap="50"), TypeError, "softcap must be a positive float"
    yield dict(alibi_slopes=x(3)), ValueError, r"alibi_slopes must be .*, here \(4,\) or \(2, 4\), got shape \(3,\)"
    yield dict(alibi_slopes=x(4).half()), TypeError, "alibi_slopes must be float32, got float16; convert it"
    yield dict(alibi_slopes=x(4, requires_grad=True)), NotImplementedError, "alibi_slopes must not require a gradient"
    yield dict(bias=[0.0]), TypeError, "bias must be a torch.Tensor as q is, got list"
    yield dict(bias=x(2, 4, 18, 37)), ValueError, r"bias must be \(1 or batch.*its dimension -2 is 18, expected 19 \(seqlen_q\)"
    yield dict(bias=x(3, 1, 1, 37)), ValueError, "its dimension -4 is 3, expected 2"
    yield dict(bias=x(1, 1, 1, 1, 37)), ValueError, "bias must have 1 to 4 dimensions"
    yield dict(bias=x(37, dtype=torch.bool)), TypeError, "bias must be float32 or float16 or bfloat16, got bool; .* as mask"
    yield dict(bias=x(37, dtype=torch.float64)), TypeError, "got float64"
    yield dict(bias=x(37, device="meta")), ValueError, "bias must be on q's device cpu, got meta"
    yield dict(mask=x(37)), TypeError, "mask must be bool, got float32; it is True where a query sees a key; .* as bias"
    yield dict(mask=x(5, 37, dtype=torch.bool)), ValueError, "mask must be .* expected 19"
    yield dict(sinks=x(2)), ValueError, r"sinks must be \(num_heads\), here \(4,\), got shape \(2,\)"
    yield dict(sinks=x(4, dtype=torch.int32)), TypeError, "sinks must be float32 or float16 or bfloat16, got int32"


@pytest.mark.parametrize(("given", "error", "message"), list(wrong()), ids=str)
def test_what_does_not_fit_is_refused_by_name(given, error, message):
    tensors, _ = make()
    with pytest.raises(error, match=message):
        signflash.attention(*tensors, **given)


def test_gradients_that_nobody_can_have_are_refused():
    tensors, _ = make()
    out, lse = signflash.attention(*tensors, return_lse=True)
    for name in ("bias", "sinks"):
        with pytest.raises(ValueError, match=f"return_d{name}=True without {name}"):
            signflash.attention_backward(torch.ones_like(out), *tensors, out, lse, **{f"return_d{name}": True})
