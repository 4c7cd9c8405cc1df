"""signflash.attention of PyTorch tensors next to the formulas."""

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash

SHAPES = {  # batch, seqlen_q, seqlen_k, num_heads, num_heads_k, head_dim
    "square": (2, 64, 64, 4, 4, 64),
    "grouped": (2, 70, 70, 6, 2, 32),
    "longer keys": (1, 33, 129, 2, 1, 40),
    "longer queries": (1, 129, 33, 2, 2, 64),
    "few": (2, 17, 19, 4, 2, 32),
    "odd head_dim": (1, 20, 30, 2, 2, 59),
    "wide": (1, 40, 50, 2, 1, 256),
}


def dtypes(device):
    return [torch.float16, torch.bfloat16] + ([torch.float32] if device == "cpu" else [])


def make(shape, dtype, device, requires_grad=True):
    batch, seqlen_q, seqlen_k, heads, heads_k, dim = shape
    generator = torch.Generator().manual_seed(5)
    sizes = [(batch, seqlen_q, heads, dim), (batch, seqlen_k, heads_k, dim), (batch, seqlen_k, heads_k, dim)]
    made = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]
    return [x.requires_grad_(requires_grad) for x in made]


def check(q, k, v, out, lse, probs, dout, *, p, seed, offset, nominal, causal, softmax_scale=None, window=(-1, -1)):
    """Results and gradients within the contract's bounds, the dropout mask to the bit."""
    name = str(q.dtype).split(".")[1]
    keep = reference.keep(probs.shape, p, seed, offset) if p > 0 else None
    exact = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    scale = reference.keep_scale(p, nominal)
    expected, expected_lse, expected_probs = reference.attention(
        *exact, keep=keep, scale=scale, causal=causal, window=window, softmax_scale=softmax_scale
    )
    assert out.dtype == q.dtype and out.shape == q.shape
    assert reference.error(out, expected) <= reference.OUT[name]
    assert torch.equal(torch.isinf(lse), torch.isinf(expected_lse))
    seen = ~torch.isinf(expected_lse)
    assert reference.error(lse[seen], expected_lse[seen]) <= 1e-6
    probability, dropped = signflash.decode(probs)
    assert reference.error(probability, expected_probs) <= reference.OUT[name]
    visible = expected_probs > 0
    if p > 0:
        assert torch.equal(~dropped[visible], torch.as_tensor(keep, device=q.device)[visible])
        assert not dropped[~visible].any()
    else:
        assert not dropped.any()
    out.backward(dout)
    expected.backward(dout.double())
    for got, want in zip((q, k, v), exact):
        assert got.grad.dtype == got.dtype and got.grad.shape == got.shape
        assert reference.error(got.grad, want.grad) <= reference.GRADIENT[name]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_and_gradients_are_those_of_the_formulas(shape, causal, p, device):
    for dtype in dtypes(device):
        q, k, v = make(shape, dtype, device)
        out, lse, probs = signflash.attention(
            q, k, v, dropout_p=p, causal=causal, seed=1234567890123, offset=64, return_lse=True, return_probs=True
        )
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(6)).to(device, dtype)
        check(q, k, v, out, lse, probs, dout, p=p, seed=1234567890123, offset=64, nominal=False, causal=causal)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("window", [(5, 5), (2, 12), (20, -1), (-1, 7), (200, 200), (1 << 62, 2)], ids=str)
@pytest.mark.parametrize("shape", ["grouped", "longer keys", "longer queries"])
def test_windows_are_those_of_the_formulas(shape, window, p, device):
    for dtype in dtypes(device):
        q, k, v = make(SHAPES[shape], dtype, device)
        settings = dict(dropout_p=p, window=window, seed=11, return_lse=True, return_probs=True)
        out, lse, probs = signflash.attention(q, k, v, **settings)
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(6)).to(device, dtype)
        check(
            q, k, v, out, lse, probs, dout, p=p, seed=11, offset=0, nominal=False, causal=False, window=window
        )  # fmt: skip


def test_causality_makes_a_windows_right_side_zero(device):
    q, k, v = make(SHAPES["longer keys"], torch.float16, device, requires_grad=False)
    settings = dict(dropout_p=0.2, seed=3)
    causal = signflash.attention(q, k, v, causal=True, **settings)
    assert torch.equal(signflash.attention(q, k, v, window=(-1, 0), **settings), causal)
    assert torch.equal(signflash.attention(q, k, v, window=[-1, 9], causal=True, **settings), causal)
    window = signflash.attention(q, k, v, window=(6, 0), **settings)
    assert torch.equal(signflash.attention(q, k, v, window=(6, -1), causal=True, **settings), window)
    # One key each: the one that the query faces.
    alone = signflash.attention(q, k, v, window=(0, 0))
    assert torch.equal(alone, v[:, -q.shape[1] :].expand_as(alone))


@pytest.mark.parametrize("nominal", [False, True])
def test_the_scale_rule_and_the_softmax_scale_are_used(nominal, device):
    q, k, v = make(SHAPES["grouped"], torch.float16, device)
    rule = "nominal" if nominal else "unbiased"
    out, lse, probs = signflash.attention(
        q, k, v, dropout_p=0.9, seed=7, scale_rule=rule, softmax_scale=0.31, return_lse=True, return_probs=True
    )
    check(
        q, k, v, out, lse, probs, torch.ones_like(out), p=0.9, seed=7, offset=0, nominal=nominal, causal=False,
        softmax_scale=0.31,
    )  # fmt: skip


def test_strides_are_free(device):
    q, k, v = make(SHAPES["square"], torch.bfloat16, device, requires_grad=False)
    expected = signflash.attention(q, k, v, dropout_p=0.2, seed=1)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    sliced = [torch.stack([x, x], dim=3)[:, :, :, 0] for x in (q, k, v)]
    last_not_one = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    for tensors in (heads_first, sliced, last_not_one):
        assert not all(x.is_contiguous() for x in tensors)
        assert torch.equal(signflash.attention(*tensors, dropout_p=0.2, seed=1), expected)


def test_broadcast_tensors_and_gradients_are_read(device):
    q, k, v = make(SHAPES["square"], torch.float16, device)
    shared = k[:1]
    out = signflash.attention(q, shared.expand(2, -1, -1, -1), v)
    out.sum().backward()  # its gradient is one number, broadcast
    got = k.grad.clone()
    k.grad = None
    again = torch.cat([shared, shared])
    signflash.attention(q, again, v).backward(torch.ones_like(out))
    assert reference.error(got, k.grad) < 2e-3 and got[1].abs().max() == 0


def test_tensors_that_need_no_gradient_get_none(device):
    q, k, v = make(SHAPES["square"], torch.float16, device)
    q.requires_grad_(False)
    v.requires_grad_(False)
    signflash.attention(q, k, v, dropout_p=0.1).sum().backward()
    assert q.grad is None and v.grad is None and k.grad is not None
    with torch.no_grad():
        assert not signflash.attention(q, k, v).requires_grad


@pytest.mark.parametrize("through", ["lse", "both"])
def test_the_gradient_through_lse_is_that_of_the_formulas(through, device):
    for dtype in dtypes(device):
        q, k, v = make(SHAPES["longer queries"], dtype, device)
        settings = dict(dropout_p=0.3, causal=True, seed=3)
        out, lse = signflash.attention(q, k, v, return_lse=True, **settings)
        keep = reference.keep((*lse.shape, k.shape[1]), 0.3, 3)
        exact = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        scale = reference.keep_scale(0.3, nominal=False)
        results = reference.attention(*exact, keep=keep, scale=scale, causal=True)
        weights = torch.randn(lse.shape, generator=torch.Generator().manual_seed(3)).to(device)

        def loss(out, lse):
            rows = (lse.masked_fill(torch.isinf(lse), 0) * weights).sum()
            return rows if through == "lse" else rows + out.sum()

        got = torch.autograd.grad(loss(out, lse), (q, k, v))
        expected = torch.autograd.grad(loss(*results[:2]), exact, allow_unused=True)
        bound = reference.GRADIENT[str(dtype).split(".")[1]]
        for a, b in zip(got, expected):
            assert reference.error(a, torch.zeros_like(a) if b is None else b) <= bound
        by_hand = signflash.attention_backward(
            torch.zeros_like(out) if through == "lse" else torch.ones_like(out),
            q,
            k,
            v,
            out,
            lse,
            dlse=weights.masked_fill(torch.isinf(lse), 0),
            **settings,
        )
        assert all(reference.error(a, b) <= bound for a, b in zip(by_hand, got))


def test_probs_refuse_a_gradient_and_do_not_lose_it(device):
    q, k, v = make(SHAPES["square"], torch.float16, device)
    _, probs = signflash.attention(q, k, v, return_probs=True)
    assert not probs.requires_grad


@pytest.mark.parametrize("shape", [(0, 4, 5, 2, 2, 8), (2, 0, 5, 2, 2, 8), (2, 4, 0, 2, 2, 8)])
def test_nothing_is_a_size_too(shape, device):
    q, k, v = make(shape, torch.float16, device)
    out, lse = signflash.attention(q, k, v, dropout_p=0.3, return_lse=True)
    assert out.shape == q.shape
    assert torch.equal(out, torch.zeros_like(out))
    assert bool(torch.isinf(lse).all())
    out.sum().backward()
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (q, k, v))


def test_gradients_agree_with_finite_differences_where_the_same_is_dropped():
    q, k, v = make((1, 5, 6, 2, 1, 8), torch.float32, "cpu")
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))

    def loss(*tensors):
        return float((signflash.attention(*tensors, dropout_p=0.4, seed=3).double() * dout.double()).sum())

    signflash.attention(q, k, v, dropout_p=0.4, seed=3).backward(dout)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for index, x in enumerate((q, k, v)):
            direction = torch.randn(x.shape, generator=generator)
            ends = []
            for step in (1e-2, -1e-2):
                moved = [q, k, v]
                moved[index] = x + step * direction
                ends.append(loss(*moved))
            slope = (ends[0] - ends[1]) / 2e-2
            assert slope == pytest.approx(float((x.grad * direction).sum()), rel=2e-3, abs=2e-3)


def test_the_backward_by_hand_is_autograds(device):
    q, k, v = make(SHAPES["grouped"], torch.bfloat16, device)
    out, lse, state = signflash.attention(q, k, v, dropout_p=0.2, causal=True, return_lse=True, return_rng_state=True)
    dout = torch.randn_like(out)
    expected = torch.autograd.grad(out, (q, k, v), dout)
    settings = dict(dropout_p=0.2, causal=True, seed=state[0], offset=state[1], deterministic=True)
    got = signflash.attention_backward(dout, q, k, v, out, lse, **settings)
    for a, b in zip(got, expected):
        assert reference.error(a, b) <= (0 if device == "cpu" else 1e-2)


def test_shards_drop_what_the_whole_drops(device):
    q, k, v = make((3, 40, 64, 4, 4, 16), torch.float16, device, requires_grad=False)
    whole = signflash.attention(q, k, v, dropout_p=0.3, seed=9, offset=5)
    for batch in range(3):
        for head in range(4):
            piece = [x[batch : batch + 1, :, head : head + 1] for x in (q, k, v)]
            shard = signflash.Shard(first_batch=batch, first_head=head, num_heads_total=4)
            got = signflash.attention(*piece, dropout_p=0.3, seed=9, offset=5, shard=shard)
            assert reference.error(got, whole[batch : batch + 1, :, head : head + 1]) < 1e-3
    rows = signflash.attention(q[:, 16:], k, v, dropout_p=0.3, seed=9, offset=5, shard=signflash.Shard(first_row=16))
    assert reference.error(rows, whole[:, 16:]) < 1e-3


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_autocast_casts_as_pytorchs_attention(kind):
    q, k, v = make(SHAPES["square"], torch.float32, kind)
    with torch.autocast(kind, dtype=torch.bfloat16):
        out = signflash.attention(q, k, v, dropout_p=0.1, seed=1)
        packed = signflash.flash_attn_qkvpacked_func(torch.stack([q, k, v], 2))
    assert out.dtype == packed.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32
    expected = signflash.attention(*(x.detach().bfloat16() for x in (q, k, v)), dropout_p=0.1, seed=1)
    assert torch.equal(out, expected)


def test_a_forked_process_computes():
    import multiprocessing

    q, k, v = make((2, 300, 300, 4, 4, 64), torch.float32, "cpu", requires_grad=False)
    signflash.attention(q, k, v)  # rayon's threads exist now, and will not in the child
    context = multiprocessing.get_context("fork")
    pipe, end = context.Pipe()
    child = context.Process(target=lambda: end.send(float(_numpy_sum())))
    child.start()
    assert pipe.poll(60), "the forked process hangs"
    pipe.recv()
    child.join(60)
    assert child.exitcode == 0


def _numpy_sum():
    numpy = pytest.importorskip("numpy")
    x = numpy.ones((2, 300, 4, 64), "float32")
    return signflash.attention(x, x, x).sum()
