"""Models that calculate with the attention mask, choose keys, or have a sink for each query: what they get, and what is
refused them."""

import logging

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

from signflash._transformers import attention_forward, attention_mask_of, calculated
from test_transformers_models import DECODER, ids, make, short, state
from transformers import masking_utils

BATCH, HEADS, HEADS_K, SEQLEN, DIM = 2, 4, 2, 7, 16
PADDING = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 0]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4]])
FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "full": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(3),
    "packed": masking_utils.and_masks(
        masking_utils.causal_mask_function, masking_utils.packed_sequence_mask_function((POSITIONS == 0).cumsum(-1))
    ),
    # Nothing that can be said in words.
    "odd keys": lambda b, h, q, k: (k % 2 == 1) | (k == q),
}


def masks(name, padding=PADDING):
    """Ours, and the numbers that Transformers makes for PyTorch."""
    given = (BATCH, SEQLEN, SEQLEN, 0, 0, FUNCTIONS[name], None if padding is None else padding.bool())
    settings = dict(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return attention_mask_of(*given), masking_utils.sdpa_mask(*given, **settings)


ANSWERED = {
    "~": lambda m, x: ~m,
    "&": lambda m, x: m & (x > 0),
    "& from the right": lambda m, x: (x > 0) & m,
    "|": lambda m, x: m | (x > 0),
    "query": lambda m, x: ~m[:, 0, 2:4],
    "a range": lambda m, x: ~m[:, :, 1:3, :5],
    "a range of a device": lambda m, x: ~m.to("cpu")[..., :5],
    "new dimension": lambda m, x: ~m[:, None],
    "moved": lambda m, x: ~m.transpose(2, 3).reshape(BATCH, -1).flip(1),
    "together": lambda m, x: ~torch.cat([m, m[:, :, :, :3]], dim=-1),
    "masked_fill": lambda m, x: x.masked_fill(m, -1.0),
    "masked_fill of its inverse": lambda m, x: x.masked_fill(~m[:, 0].unsqueeze(1), -1.0),
    "where": lambda m, x: torch.where(m, x, 0.0),
    "where of a piece": lambda m, x: torch.where(m[:, 0][:, None], 0.0, x),
    "rows without keys": lambda m, x: torch.all(~m, dim=-1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["all count", "padded"])
def test_operators_of_bool_and_moving_have_the_numbers_of_pytorchs_mask(name, padding):
    ours, theirs = masks(name, padding)
    x = torch.randn(BATCH, 1, SEQLEN, SEQLEN, generator=torch.Generator().manual_seed(0))
    for what, calculate in ANSWERED.items():
        got, expected = calculate(ours, x), calculate(theirs, x)
        assert type(got) is torch.Tensor and torch.equal(got, expected), what
    assert ours.dtype is torch.bool and ours[:, 0].dtype is torch.bool and ours[:, 0].shape == theirs[:, 0].shape


REFUSED = {
    "sum": lambda m, x: x + m,
    "sum in place": lambda m, x: x.clone().add_(m),
    "sum the other way": lambda m, x: m + x,
    "product": lambda m, x: (1 - m) * -1e9,
    "numbers": lambda m, x: m.float(),
    "numbers by to": lambda m, x: 1 - m.to(torch.float32),
    "numbers like others": lambda m, x: x * m.to(x),
    # Of floats it means the opposite, and eager attention's are floats.
    "logical_not": lambda m, x: m.logical_not(),
    "comparison": lambda m, x: m == 0,
    "any": lambda m, x: m.any(),
    "truth": lambda m, x: bool(m),
    # What it is filled with would be True.
    "filled": lambda m, x: m.masked_fill(x > 0, -1e9),
    "where as a value": lambda m, x: torch.where(x > 0, m, 0.0),
    "written to": lambda m, x: m.__setitem__((slice(None), 0), 0.0),
    "attention": lambda m, x: torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=m),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_give_other_numbers_without_an_error_is_refused(what):
    ours, _ = masks("causal")
    x = torch.randn(BATCH, 1, SEQLEN, SEQLEN)
    for mask in (ours, ours[:, 0][:, None]):
        with pytest.raises(
            NotImplementedError, match="of the attention mask, which it therefore uses.*'eager' or 'sdpa'"
        ):
            REFUSED[what](mask, x)


def test_it_is_told_once_that_the_mask_takes_memory(monkeypatch, caplog):
    monkeypatch.setattr(calculated, "_told", set())
    ours, _ = masks("causal")
    with caplog.at_level(logging.WARNING, "signflash"):
        for _ in range(2):
            ~ours
    assert [x.message for x in caplog.records] == [
        "the model calculates with its attention mask (Tensor.__invert__), which is therefore made entry by entry, a byte for "
        "each query and key of (2, 1, 7, 7) (told once)"
    ]


def test_entries_that_were_moved_are_what_attention_sees():
    ours, theirs = masks("causal")
    q, k, v = tensors()
    both = torch.cat([theirs, theirs[..., :2]], -1)
    k, v = (torch.cat([x, x[:, :, :2]], 2) for x in (k, v))
    out, _ = attention_forward(module(), q, k, v, torch.cat([ours, ours[..., :2]], -1))
    assert torch.equal(out, attention_forward(module(), q, k, v, both)[0])


def module(causal=False):
    layer = torch.nn.Module()
    layer.is_causal = causal
    return layer


def tensors(seed=0, requires_grad=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(BATCH, heads, SEQLEN, DIM) for heads in (HEADS, HEADS_K, HEADS_K)]
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_(requires_grad) for size in sizes]


def formula(q, k, v, visible, keep=1.0, sinks=None, bias=0.0):
    """(out (batch, seqlen, heads, head_dim), probabilities before dropout), in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(HEADS // HEADS_K, 1) for x in (k, v))
    scores = (q @ k.mT * DIM**-0.5 + bias).masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double().expand(BATCH, HEADS, SEQLEN, 1)], -1)
    probs = scores.softmax(-1).nan_to_num(0.0)[..., :SEQLEN]
    return (probs * keep @ v).transpose(1, 2), probs


def kept(call):
    """What a call keeps, by the identity for values, and its factor."""
    identity = torch.eye(SEQLEN).expand(BATCH, HEADS_K, -1, -1).contiguous()
    torch.manual_seed(5)
    return (call(identity).transpose(1, 2) != 0) * signflash.keep_scale(0.3)


@pytest.mark.parametrize("rows", [SEQLEN, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", ["causal", "window", "packed"])
def test_a_sink_for_each_query_takes_its_part(name, has_bias, dropout, rows):
    mask, visible = masks(name)
    generator = torch.Generator().manual_seed(3)
    sinks = torch.randn(BATCH, HEADS, rows, 1, generator=generator).requires_grad_()
    bias = torch.randn(1, HEADS, SEQLEN, SEQLEN, generator=generator).requires_grad_(has_bias)
    q, k, v = tensors(requires_grad=True)
    given = dict(dropout=dropout, sinks=sinks, position_bias=bias if has_bias else None)

    def call(v):
        return attention_forward(module(), q, k, v, mask, **given)[0]

    keep = kept(call) if dropout else 1.0
    torch.manual_seed(5)
    out, probs = attention_forward(module(), q, k, v, mask, **given, output_attentions=True)
    torch.manual_seed(5)
    assert torch.equal(call(v), out)
    expected, expected_probs = formula(q, k, v, visible, keep, sinks, bias if has_bias else 0.0)
    assert torch.allclose(out.double(), expected, atol=2e-6) and torch.allclose(
        probs.double(), expected_probs, atol=2e-6
    )
    leaves = [q, k, v, sinks, *([bias] if has_bias else [])]
    weights = torch.randn(out.shape, generator=generator)
    for got, right in zip(
        torch.autograd.grad((out * weights).sum(), leaves), torch.autograd.grad((expected * weights).sum(), leaves)
    ):
        assert torch.allclose(got, right, atol=1e-5)


def test_sinks_of_16_bits():
    mask, visible = masks("causal")
    for dtype in (torch.float16, torch.bfloat16):
        q, k, v = tensors(dtype=dtype)
        sinks = torch.randn(BATCH, HEADS, SEQLEN, 1).to(dtype)
        out, _ = attention_forward(module(), q, k, v, mask, sinks=sinks)
        expected, _ = formula(q, k, v, visible, sinks=sinks)
        assert out.dtype is dtype and torch.allclose(out.double(), expected, atol=2e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_keys_that_a_model_chose_are_seen_and_no_others(name, dropout):
    mask, visible = masks(name)
    indices = torch.randint(0, SEQLEN, (BATCH, SEQLEN, 3), generator=torch.Generator().manual_seed(1))
    indices[0, :, 2] = -1  # none
    chosen = torch.zeros(BATCH, SEQLEN, SEQLEN, dtype=torch.bool)
    for b, i, j in torch.cartesian_prod(*map(torch.arange, indices.shape)).tolist():
        if indices[b, i, j] >= 0:
            chosen[b, i, indices[b, i, j]] = True
    q, k, v = tensors(requires_grad=True)

    def call(v):
        return attention_forward(module(), q, k, v, mask, dropout=dropout, indices=indices.int())[0]

    keep = kept(call) if dropout else 1.0
    torch.manual_seed(5)
    out = call(v)
    expected, _ = formula(q, k, v, visible & chosen[:, None], keep)
    assert torch.allclose(out.double(), expected, atol=2e-6)
    weights = torch.randn(out.shape)
    for got, right in zip(
        torch.autograd.grad((out * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected.nan_to_num(0.0) * weights).sum(), (q, k, v)),
    ):
        assert torch.allclose(got, right.nan_to_num(0.0), atol=1e-5)


def test_what_does_not_fit_is_refused_by_name():
    mask, _ = masks("causal")
    q, k, v = tensors()
    starts = torch.tensor([0, 7, 14], dtype=torch.int32)
    sequences = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts)
    fitting = dict(sinks=torch.zeros(BATCH, HEADS, SEQLEN, 1), indices=torch.zeros(BATCH, SEQLEN, 2, dtype=torch.long))
    wrong = [
        (dict(sinks=torch.zeros(HEADS)), r"sinks must be \(2 or 1, 4, 7 or 1, 1\).*got shape \(4,\)"),
        (dict(sinks=torch.zeros(BATCH, HEADS, SEQLEN, 2)), r"sinks must be .*got shape \(2, 4, 7, 2\)"),
        (
            dict(indices=torch.zeros(BATCH, 3, 2, dtype=torch.long)),
            r"indices must be integers of shape \(2 or 1, 7, keys\)",
        ),
        (dict(indices=torch.zeros(BATCH, SEQLEN, 2)), "indices must be integers.*torch.float32"),
        *(
            (dict({name: x}, **sequences), f"{name} was given together with cu_seq_lens_q")
            for name, x in fitting.items()
        ),
        (dict(block_indices=torch.zeros(1)), "block_indices was given, which is not there"),
    ]
    for given, message in wrong:
        with pytest.raises(NotImplementedError, match=message):
            attention_forward(module(), q, k, v, mask, **given)


def test_a_model_that_calculates_with_its_mask_computes_what_eager_attention_does():
    eager, ours = (make("doge", "DogeConfig", "DogeModel", name, **DECODER) for name in ("eager", "signflash"))
    ours.load_state_dict(eager.state_dict())
    expected, got = (state(x(ids(), attention_mask=short())) for x in (eager, ours))
    assert torch.allclose(got * short()[..., None], expected * short()[..., None], atol=2e-5)
