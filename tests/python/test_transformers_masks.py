"""What our mask function makes of a pattern, and what the mask then allows."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

from signflash._transformers import attention_forward, attention_mask_of
from signflash._transformers.mask import Mask
from signflash._transformers.names import canonical
from transformers import masking_utils

CAUSAL, FULL = masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function


def mask_of(function, seqlen_q=6, seqlen_k=6, q_offset=0, kv_offset=0, attention_mask=None, **settings):
    return attention_mask_of(2, seqlen_q, seqlen_k, q_offset, kv_offset, function, attention_mask, "cpu", **settings)


def seen(mask, seqlen_q=6, seqlen_k=6):
    """bool (batch, seqlen_q, seqlen_k) of what mask.of() says, by its definition."""
    said = mask.of(seqlen_q, seqlen_k)
    result = torch.ones(2, seqlen_q, seqlen_k, dtype=torch.bool)
    result[:, :, said.seqlen_k :] = False
    if said.causal:
        before = torch.ones(seqlen_q, said.seqlen_k, dtype=torch.bool).tril(said.seqlen_k - seqlen_q)
        result[:, :, : said.seqlen_k] &= before
    if said.keys is not None:
        result[:, :, : said.seqlen_k] &= said.keys[:, None]
    return result


def expected(function, seqlen_q=6, seqlen_k=6, q_offset=0, kv_offset=0, attention_mask=None):
    values = masking_utils.sdpa_mask(
        batch_size=2, q_length=seqlen_q, kv_length=seqlen_k, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=function, attention_mask=attention_mask, allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
    )  # fmt: skip
    return values[:, 0]


PADDING = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
SHAPES = {
    "square": {},
    "padded": dict(attention_mask=PADDING),
    "one query": dict(seqlen_q=1, q_offset=5),
    "two after four": dict(seqlen_q=2, q_offset=4),
    "room to spare": dict(seqlen_q=2, seqlen_k=9, q_offset=3),
    "room to spare, padded": dict(seqlen_q=2, seqlen_k=9, q_offset=4, attention_mask=PADDING),
    "keys that slid away": dict(seqlen_q=1, seqlen_k=4, q_offset=7, kv_offset=4),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [CAUSAL, FULL], ids=["causal", "full"])
def test_the_mask_says_what_transformers_own_mask_says(function, shape):
    settings = SHAPES[shape]
    sizes = {k: settings[k] for k in ("seqlen_q", "seqlen_k") if k in settings}
    assert torch.equal(seen(mask_of(function, **settings), **sizes), expected(function, **settings))


def windows():
    both = getattr(masking_utils, "sliding_window_bidirectional_mask_function", None)
    start = torch.zeros(2, dtype=torch.long)
    yield masking_utils.sliding_window_causal_mask_function, 6, CAUSAL
    yield (lambda size: masking_utils.chunked_causal_mask_function(size, start)), 6, CAUSAL
    if both is not None:
        yield both, 5, FULL


@pytest.mark.parametrize("maker,enough,plain", list(windows()))
def test_windows_are_refused_where_they_hide_something_and_when_they_are_used(maker, enough, plain):
    assert torch.equal(seen(mask_of(maker(enough))), expected(plain))
    assert not torch.equal(expected(maker(enough - 1)), expected(plain))
    for size in (enough - 1, 0):
        mask = mask_of(maker(size))  # no error: a model may make it and use it nowhere
        with pytest.raises(NotImplementedError, match=r"the model asks for .*\b" + str(size)):
            mask.of(6, 6)


def test_composed_patterns_are_tried_out():
    tokens = torch.tensor([[0, 0, 1, 1, 0, 0], [0] * 6])

    def block(batch_idx, head_idx, q_idx, kv_idx):
        return (tokens[batch_idx, q_idx] == 1) & (tokens[batch_idx, kv_idx] == 1)

    def nothing(batch_idx, head_idx, q_idx, kv_idx):
        return q_idx < 0

    def everything(batch_idx, head_idx, q_idx, kv_idx):
        return q_idx >= 0

    for other, plain in ((nothing, CAUSAL), (everything, FULL)):
        assert torch.equal(seen(mask_of(masking_utils.or_masks(CAUSAL, other))), expected(plain))
    with pytest.raises(NotImplementedError, match="only causal and full attention"):
        mask_of(masking_utils.or_masks(CAUSAL, block)).of(6, 6)
    # What queries see that do not count, is nobody's.
    padding = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    assert mask_of(masking_utils.or_masks(CAUSAL, block), attention_mask=padding * 0 + 1).problem
    tokens = torch.tensor([[0, 0, 0, 0, 1, 1]] * 2)
    assert mask_of(masking_utils.or_masks(CAUSAL, block), attention_mask=padding).of(6, 6).causal


@pytest.mark.skipif(not hasattr(masking_utils, "packed_sequence_mask_function"), reason="knows no packed sequences")
@pytest.mark.parametrize("packing_first", [True, False])
def test_packed_sequences_are_seen_in_either_order(packing_first):
    """Versions of Transformers differ in it. One sequence a row, which compiled models ask for, is the plain one."""

    def pattern(sequences):
        parts = [masking_utils.packed_sequence_mask_function(sequences), CAUSAL]
        return masking_utils.and_masks(*(parts if packing_first else parts[::-1]))

    assert mask_of(pattern(torch.zeros(2, 6, dtype=torch.long))).of(6, 6).causal
    several = mask_of(pattern(torch.tensor([[0] * 6, [0, 0, 0, 0, 1, 1]])))
    with pytest.raises(NotImplementedError, match="packed sequences.*only causal and full attention"):
        several.of(6, 6)


USES = {
    "add": lambda m, x: x + m,
    "radd": lambda m, x: m + x,
    "and": lambda m, x: m & x.bool(),
    "not": lambda m, x: ~m,
    "equal": lambda m, x: m == 0,
    "truth": lambda m, x: 1 if m else 0,
    "method": lambda m, x: m.sum(),
    "attribute": lambda m, x: m.mT,
    "index": lambda m, x: m[:, 0],
    "mask index": lambda m, x: x[m],
    "where": lambda m, x: torch.where(m, x, 0.0),
    "filled": lambda m, x: x.masked_fill(m, 0.0),
    "cat": lambda m, x: torch.cat([m, x], -1),
    "padded": lambda m, x: torch.nn.functional.pad(m, (0, 1)),
    "sdpa": lambda m, x: torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=m),
}


@pytest.mark.parametrize("use", USES)
def test_arithmetic_with_the_mask_raises(use):
    for function in (CAUSAL, FULL):
        with pytest.raises(NotImplementedError, match="use attn_implementation='eager' or 'sdpa'"):
            USES[use](mask_of(function), torch.zeros(2, 1, 6, 6))


def test_the_mask_can_be_moved_cut_and_copied():
    mask = mask_of(CAUSAL, attention_mask=PADDING)
    assert mask.shape == (2, 1, 6, 6) and mask.dim() == mask.ndim == 4 and not hasattr(mask, "sum")
    for same in (mask.to("cpu"), mask.to(torch.float32), mask.contiguous(), mask[:], copy.deepcopy(mask)):
        assert torch.equal(seen(same), seen(mask))
    assert torch.equal(seen(pickle.loads(pickle.dumps(mask))), seen(mask))
    assert torch.equal(seen(mask[:, :, 4:], 2), seen(mask)[:, 4:])
    assert torch.equal(seen(mask[..., :4][:, :, :4], 4, 4), seen(mask)[:, :4, :4])
    assert mask[1:].of(6, 6).keys.shape == (1, 6)
    assert isinstance(mask[..., :4], Mask)
    for padding in (None, PADDING):
        repeated = mask_of(FULL, attention_mask=padding).repeat(1, 4, 1, 1)
        assert repeated.shape == (2, 4, 6, 6) and torch.equal(repeated[:, 3], expected(FULL, attention_mask=padding))
    with pytest.raises(NotImplementedError, match="Tensor.repeat of the attention mask"):
        mask.repeat(1, 4, 1, 1)


def test_a_mask_that_was_made_in_advance_stands():
    """Composite models make masks of another pattern than the model inside them would."""
    mask = mask_of(FULL, attention_mask=PADDING)
    assert torch.equal(seen(mask_of(CAUSAL, attention_mask=mask)), seen(mask))
    window = mask_of(masking_utils.sliding_window_causal_mask_function(3))
    with pytest.raises(NotImplementedError, match="sliding window of 3"):
        mask_of(CAUSAL, attention_mask=window).of(6, 6)


def test_numbers_that_say_what_padding_says_are_computed(device):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 16, generator=generator).to(device, torch.float16) for _ in range(3))
    least = torch.finfo(torch.float16).min
    causal = ~torch.ones(6, 6, dtype=torch.bool).tril()
    hidden = {
        "padding": ~PADDING[:, None, None],
        "causal": causal.expand(2, 1, 6, 6),
        "nothing": torch.zeros(2, 1, 6, 6, dtype=torch.bool),
    }
    for name, hides in hidden.items():
        for number in (least, -torch.inf):
            mask = torch.where(hides, number, 0.0).to(device, torch.float16)
            # The module says nothing, or the wrong thing: the mask is what counts.
            out, _ = attention_forward(torch.nn.Module(), q, k, v, mask)
            scores = (q.float() @ k.float().mT * 0.25).masked_fill(hides.to(device), -torch.inf)
            assert torch.allclose(out.transpose(1, 2).float(), scores.softmax(-1) @ v.float(), atol=5e-3), name
    window = causal | causal.T.roll(2, 0)
    bias = torch.zeros(2, 1, 6, 6).masked_fill(window, least)
    packed = ~torch.block_diag(torch.ones(2, 2).tril(), torch.ones(4, 4).tril()).bool()
    for mask in (
        bias,
        torch.zeros(2, 1, 6, 6).masked_fill(packed, -torch.inf),
        torch.zeros(2, 1, 6, 6).masked_fill(window, -torch.inf),
        bias * 0 + 0.5,
        hidden["causal"],
        bias.expand(2, 2, 6, 6),
        bias.mul(0).requires_grad_(),
        bias[:, 0],
    ):
        with pytest.raises(NotImplementedError, match="attention_mask must be None or"):
            attention_forward(torch.nn.Module(), q, k, v, mask.to(device))


def test_without_a_mask_two_references_that_differ_are_not_chosen_between():
    q = torch.randn(1, 2, 6, 16)
    module = torch.nn.Module()
    with pytest.raises(NotImplementedError, match="does not say whether it is causal"):
        attention_forward(module, q, q, q, None)
    module.is_causal = True
    with pytest.raises(NotImplementedError, match="eager attention would see all keys"):
        attention_forward(module, q, q, q, None)
    attention_forward(module, q[:, :, :1], q, q, None)
    module.is_causal = False
    attention_forward(module, q, q, q, None)


def test_no_configuration_holds_a_name_with_flash_in_it():
    config = transformers.BertConfig(attn_implementation="signflash")
    assert config._attn_implementation == "signdense"
    assert canonical({"": "signflash", "text": {"a": "signflash"}, "b": "sdpa"}) == {
        "": "signdense", "text": {"a": "signdense"}, "b": "sdpa",
    }  # fmt: skip
    assert canonical("paged|signflash") == "paged|signdense"
    assert canonical(None) is None and canonical("flash_attention_2") == "flash_attention_2"
