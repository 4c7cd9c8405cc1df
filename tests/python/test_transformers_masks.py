"""What our mask function makes of a pattern, and what the mask then allows."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import signflash

if "transformers" not in signflash.enable(pytorch=False):
    pytest.skip("this Transformers has no AttentionInterface", allow_module_level=True)

from signflash._transformers import attention_mask_of
from signflash._transformers.given import mask_of_numbers
from signflash._transformers.mask import Mask
from signflash._transformers.names import canonical
from transformers import masking_utils

CAUSAL, FULL = masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function


def mask_of(function, seqlen_q=6, seqlen_k=6, q_offset=0, kv_offset=0, attention_mask=None, **settings):
    return attention_mask_of(2, seqlen_q, seqlen_k, q_offset, kv_offset, function, attention_mask, "cpu", **settings)


def seen(mask, seqlen_q=6, seqlen_k=6):
    """bool (batch, seqlen_q, seqlen_k) of what attention sees by mask.of(), which dense() must see, too."""
    result = of_parts(mask, mask.of(seqlen_q, seqlen_k), seqlen_q, seqlen_k)
    dense = of_parts(mask, mask.dense(seqlen_q, seqlen_k), seqlen_q, seqlen_k)
    assert mask.dense(seqlen_q, seqlen_k).packed is None
    if mask.pattern.sequences is None and mask.keys is None:
        assert torch.equal(result, dense)
    elif seqlen_q == seqlen_k and mask.keys is not None:
        # What queries see that do not count, is nobody's.
        counts = mask.keys[:, :, None]
        assert torch.equal(result & counts, dense & counts)
    return result


def of_parts(mask, said, seqlen_q, seqlen_k):
    batch = mask.shape[0]
    result = torch.zeros(batch, seqlen_q, seqlen_k, dtype=torch.bool)
    rows, columns = torch.arange(batch * seqlen_q), torch.arange(batch * said.seqlen_k)
    starts = (rows[::seqlen_q].tolist() + [len(rows)], columns[:: said.seqlen_k].tolist() + [len(columns)])
    if said.packed is not None:
        starts = (said.packed.cu_seqlens_q.tolist(), said.packed.cu_seqlens_k.tolist())
        rows = rows if said.packed.order_q is None else said.packed.order_q
        columns = columns if said.packed.order_k is None else said.packed.order_k
        assert sorted(rows.tolist()) == list(range(batch * seqlen_q)) and said.packed.cu_seqlens_q.dtype is torch.int32
        assert sorted(columns.tolist()) == list(range(batch * said.seqlen_k))
        assert said.packed.order_q is None or torch.equal(rows[said.packed.back_q], torch.arange(len(rows)))
    assert len(starts[0]) == len(starts[1])
    for q0, q1, k0, k1 in zip(starts[0], starts[0][1:], starts[1], starts[1][1:]):
        assert q0 <= q1 and k0 <= k1
        # FlashAttention-2's window: the last query faces the last key.
        away = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0) + (q1 - q0)
        visible = torch.ones_like(away, dtype=torch.bool)
        if said.left is not None:
            visible &= away >= -said.left
        if said.right is not None:
            visible &= away <= said.right
        for row, sees in zip(rows[q0:q1].tolist(), visible):
            keys = columns[k0:k1][sees]
            assert len(keys) == 0 or set(keys.div(said.seqlen_k, rounding_mode="floor").tolist()) == {row // seqlen_q}
            result[row // seqlen_q, row % seqlen_q, keys % said.seqlen_k] = True
    if said.mask is not None:
        result[..., : said.mask.shape[-1]] &= said.mask[:, 0]
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


def counting(q_offset=0, seqlen_q=6, attention_mask=None, **rest):
    """Which queries' own positions count, (2, seqlen_q, 1)."""
    if attention_mask is None:
        return torch.ones(2, seqlen_q, 1, dtype=torch.bool)
    return attention_mask[:, q_offset : q_offset + seqlen_q, None]


def functions():
    both = getattr(masking_utils, "sliding_window_bidirectional_mask_function", None)
    start = torch.tensor([0, 1])
    yield "causal", CAUSAL
    yield "full", FULL
    for size in (1, 2, 3, 5, 6, 7):
        yield f"window {size}", masking_utils.sliding_window_causal_mask_function(size)
        yield f"chunks {size}", masking_utils.chunked_causal_mask_function(size, start)
        if both is not None:
            yield f"window to both sides {size}", both(size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [x[1] for x in functions()], ids=[x[0] for x in functions()])
def test_the_mask_says_what_transformers_own_mask_says(function, shape):
    settings = SHAPES[shape]
    sizes = {k: settings[k] for k in ("seqlen_q", "seqlen_k") if k in settings}
    try:
        got = seen(mask_of(function, **settings), **sizes)
    except NotImplementedError as error:
        # To both sides of queries that are not at the end of the keys.
        assert "the last query must be at the last key" in str(error) and "room" in shape
        return
    says = expected(function, **settings)
    if function is not FULL:
        # What a query sees whose own position does not count, is nobody's.
        got, says = (x & counting(**settings) for x in (got, says))
    assert torch.equal(got, says)


def test_a_window_that_hides_nothing_is_none():
    both = getattr(masking_utils, "sliding_window_bidirectional_mask_function", None)
    window = masking_utils.sliding_window_causal_mask_function
    assert mask_of(window(6)).of(6, 6)[:3] == mask_of(CAUSAL).of(6, 6)[:3] == (None, 0, 6)
    assert mask_of(window(5)).of(6, 6)[:3] == (4, 0, 6)
    if both is not None:
        assert mask_of(both(5)).of(6, 6)[:3] == mask_of(FULL).of(6, 6)[:3] == (None, None, 6)
        assert mask_of(both(4)).of(6, 6)[:3] == (4, 4, 6)
    assert torch.equal(seen(mask_of(window(0))), expected(window(0)))


def test_padding_between_keys_is_computed():
    holes = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 1]]).bool()
    for function in (CAUSAL, FULL):
        mask = mask_of(function, attention_mask=holes)
        says = expected(function, attention_mask=holes)
        assert torch.equal(seen(mask) & holes[..., None], says & holes[..., None])
        assert function is CAUSAL or torch.equal(seen(mask), says)
    window = masking_utils.sliding_window_causal_mask_function(3)
    mask = mask_of(window, attention_mask=holes)
    assert mask.of(6, 6).mask is not None  # gathering the keys would change distances
    assert torch.equal(seen(mask) & holes[..., None], expected(window, attention_mask=holes) & holes[..., None])


def test_a_batch_that_does_not_count_at_all_sees_nothing():
    for padding in (torch.zeros(2, 6), torch.tensor([[0] * 6, [1] * 6])):
        for function in (CAUSAL, FULL):
            assert not seen(mask_of(function, attention_mask=padding))[0].any()


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
    assert torch.equal(seen(mask_of(masking_utils.or_masks(CAUSAL, block))), expected(masking_utils.or_masks(CAUSAL, block)))
    # What queries see that do not count, is nobody's.
    padding = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    assert mask_of(masking_utils.or_masks(CAUSAL, block), attention_mask=padding * 0 + 1).entries is not None
    tokens = torch.tensor([[0, 0, 0, 0, 1, 1]] * 2)
    assert mask_of(masking_utils.or_masks(CAUSAL, block), attention_mask=padding).of(6, 6).right == 0


@pytest.mark.parametrize("sides", [(3, 0), (1, 2), (2, 3), (6, 1), (0, 0), (9, 9)])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
def test_windows_in_functions_of_a_models_own_are_tried_out(sides, padding, monkeypatch):
    """As Moonshine's and T5Gemma2's: nobody's name tells what they do. Some queries at a time."""
    sequences = torch.tensor([[0, 0, 0, 0, 1, 1], [4, 4, 2, 2, 2, 2]])

    def window(batch_idx, head_idx, q_idx, kv_idx):
        return (q_idx - kv_idx <= sides[0]) & (kv_idx - q_idx <= sides[1])

    def of_sequences(batch_idx, head_idx, q_idx, kv_idx):
        same = sequences[batch_idx, q_idx] == sequences[batch_idx, kv_idx]
        return same & window(batch_idx, head_idx, q_idx, kv_idx)

    from signflash._transformers import patterns

    counts = counting(attention_mask=padding)
    for step in (1, 24, 1 << 20):
        monkeypatch.setattr(patterns, "STEP", step)
        for function in (window, of_sequences):
            got = seen(mask_of(function, attention_mask=padding))
            assert torch.equal(got & counts, expected(function, attention_mask=padding) & counts)


@pytest.mark.skipif(not hasattr(masking_utils, "packed_sequence_mask_function"), reason="knows no packed sequences")
def test_a_number_that_comes_again_is_not_the_same_sequence_in_one_piece():
    def again(sequences):
        return mask_of(masking_utils.and_masks(FULL, masking_utils.packed_sequence_mask_function(sequences)))

    numbers = torch.tensor([[3, 3, 0, 0, 0, 7], [1, 1, 1, 1, 1, 1]])
    says = numbers[:, :, None] == numbers[:, None]
    assert torch.equal(seen(again(numbers)), says)
    numbers = torch.tensor([[3, 3, 0, 0, 0, 3], [1] * 6])
    mask = again(numbers)
    assert mask.entries is not None and torch.equal(seen(mask), numbers[:, :, None] == numbers[:, None])
    assert torch.equal(seen(mask[1:]), torch.ones(1, 6, 6, dtype=torch.bool))


@pytest.mark.skipif(not hasattr(masking_utils, "packed_sequence_mask_function"), reason="knows no packed sequences")
@pytest.mark.parametrize("packing_first", [True, False])
def test_packed_sequences_are_seen_in_either_order(packing_first):
    """Versions of Transformers differ in it. One sequence a row, which compiled models ask for, is the plain one."""

    def pattern(sequences):
        parts = [masking_utils.packed_sequence_mask_function(sequences), CAUSAL]
        return masking_utils.and_masks(*(parts if packing_first else parts[::-1]))

    assert mask_of(pattern(torch.zeros(2, 6, dtype=torch.long))).of(6, 6)[:4] == (None, 0, 6, None)
    numbers = torch.tensor([[0] * 6, [0, 0, 0, 0, 1, 1]])
    several = mask_of(pattern(numbers))
    assert torch.equal(seen(several), expected(pattern(numbers)))
    assert several.of(6, 6).packed.cu_seqlens_q.tolist() == [0, 6, 10, 12]
    assert torch.equal(seen(several[1:]), expected(pattern(numbers))[1:])


@pytest.mark.skipif(not hasattr(masking_utils, "create_causal_mask"), reason="makes masks in another way")
@pytest.mark.parametrize("kind", ["causal", "sliding_window_causal", "chunked_causal"])
def test_positions_that_start_anew_are_sequences(kind):
    """As the models of the installed Transformers ask for them, next to PyTorch's masks."""
    import inspect

    make = getattr(masking_utils, f"create_{kind}_mask", None)
    if make is None:
        pytest.skip("makes no such masks")
    masks = []
    for implementation in ("sdpa", "signdense"):
        config = transformers.MistralConfig(num_hidden_layers=1, sliding_window=3)
        config.attention_chunk_size = 3
        config._attn_implementation = implementation
        given = dict(
            config=config, inputs_embeds=torch.zeros(2, 9, 4), input_embeds=torch.zeros(2, 9, 4), attention_mask=None,
            cache=None, past_key_values=None, cache_position=torch.arange(9),
            position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0], [0, 0, 1, 2, 3, 4, 5, 6, 7]]),
        )  # fmt: skip
        taken = inspect.signature(inspect.unwrap(make)).parameters
        masks.append(make(**{k: v for k, v in given.items() if k in taken}))
    assert torch.equal(seen(masks[1], 9, 9), masks[0][:, 0])


@pytest.mark.parametrize("seed", range(60))
def test_any_window_of_sequences_and_keys_that_count_is_seen(seed):
    """By name and by value, next to the numbers."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    seqlen_k = number(1, 9)
    seqlen_q = seqlen_k if seed % 2 else number(1, seqlen_k)
    first = seqlen_k - seqlen_q
    numbers = (torch.rand(2, seqlen_k, generator=generator) < 0.3).cumsum(-1)
    keys = torch.ones(2, seqlen_k, dtype=torch.bool)
    if seed % 3:
        for row in keys:
            row[number(0, seqlen_k) :] = False
            row[: number(0, 2)] = False
    sides = number(0, seqlen_k), number(0, seqlen_k)
    away = torch.arange(seqlen_k) - torch.arange(seqlen_q)[:, None] - first
    says = (-sides[0] <= away) & (away <= sides[1]) & keys[:, None]
    says = says & (numbers[:, first:, None] == numbers[:, None])
    counts = keys[:, first:, None]

    def function(batch_idx, head_idx, q_idx, kv_idx):
        near = (q_idx - kv_idx <= sides[0]) & (kv_idx - q_idx <= sides[1])
        return near & (numbers[batch_idx, q_idx] == numbers[batch_idx, kv_idx])

    got = mask_of(function, seqlen_q, seqlen_k, q_offset=first, attention_mask=keys)
    assert torch.equal(seen(got, seqlen_q, seqlen_k) & counts, says & counts)
    numbers = torch.zeros(2, 1, seqlen_q, seqlen_k).masked_fill(~says[:, None], -torch.inf)
    given = mask_of_numbers(numbers, 2, seqlen_q, seqlen_k)
    # Queries that nobody sees may see something of their own: nobody says that they are padding.
    assert given.entries is None or not counts.all()
    assert torch.equal(seen(given, seqlen_q, seqlen_k) & counts, says & counts)


USES = {
    "add": lambda m, x: x + m,
    "radd": lambda m, x: m + x,
    "equal": lambda m, x: m == 0,
    "truth": lambda m, x: 1 if m else 0,
    "method": lambda m, x: m.sum(),
    "attribute": lambda m, x: m.mT,
    "mask index": lambda m, x: x[m],
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
    assert torch.equal(seen(mask[1:]), seen(mask)[1:])
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
    assert torch.equal(seen(mask_of(CAUSAL, attention_mask=window)), seen(window))


def test_no_configuration_holds_a_name_with_flash_in_it():
    config = transformers.BertConfig(attn_implementation="signflash")
    assert config._attn_implementation == "signdense"
    assert canonical({"": "signflash", "text": {"a": "signflash"}, "b": "sdpa"}) == {
        "": "signdense", "text": {"a": "signdense"}, "b": "sdpa",
    }  # fmt: skip
    assert canonical("paged|signflash") == "paged|signdense"
    assert canonical(None) is None and canonical("flash_attention_2") == "flash_attention_2"
