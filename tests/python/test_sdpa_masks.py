"""What an attn_mask says is recognised, and computed as it says."""

import pytest

torch = pytest.importorskip("torch")

import sdpa
import signflash

if not sdpa.HAS_SDPA:
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)

from signflash._sdpa import masks, takes
from signflash._torch import native
from test_sdpa import compare

SEQLEN, PADDED = 21, torch.arange(21) < torch.tensor([[21], [13]])
CAUSAL = torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril()
KEYS = PADDED[:, None, None]


@pytest.fixture(autouse=True)
def enabled():
    with signflash.enabled():
        yield


def random_mask(*shape):
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[..., 3] = True
    return mask


BOOLEANS = {
    "(L, S)": random_mask(SEQLEN, SEQLEN),
    "(1, S)": random_mask(1, SEQLEN),
    "(S)": random_mask(SEQLEN),
    "(N, 1, 1, S)": random_mask(2, 1, 1, SEQLEN),
    "(N, 1, L, S)": random_mask(2, 1, SEQLEN, SEQLEN),
    "(N, H, L, S)": random_mask(2, 3, SEQLEN, SEQLEN),
    "(1, H, 1, S)": random_mask(1, 3, 1, SEQLEN),
    "(H, L, S)": random_mask(3, SEQLEN, SEQLEN),
    "expanded": random_mask(2, 1, 1, SEQLEN).expand(2, 3, SEQLEN, SEQLEN),
    "turned": random_mask(SEQLEN, SEQLEN).t(),
    "sees all": torch.ones(SEQLEN, SEQLEN, dtype=torch.bool),
    "hides rows": random_mask(SEQLEN, SEQLEN) & (torch.arange(SEQLEN) % 5 > 0)[:, None],
    "hides all": torch.zeros(SEQLEN, SEQLEN, dtype=torch.bool),
}


@pytest.mark.parametrize("form", ["bool", "float32", "bfloat16"])
@pytest.mark.parametrize("name", BOOLEANS)
def test_masks(name, form):
    """Numbers are those of a half of q's dtype, or of more."""
    mask = BOOLEANS[name]
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    if form != "bool":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    if name == "expanded":
        mask = mask[:, :1, :1].expand(2, 3, SEQLEN, SEQLEN)
    if name.startswith("hides") and masks.hidden_rows_are_nan():
        pytest.skip("NaN in this PyTorch: see test_rows_that_see_nothing")
    seen = compare(*sdpa.make(2, 3, SEQLEN, 8, dtype=dtype), 0.2, mask)
    assert seen.bias is None
    if name in ("(1, S)", "(N, 1, 1, S)", "(1, H, 1, S)", "expanded"):
        assert seen.mask.shape[-2] == 1


@pytest.mark.parametrize("name", ["(L, S)", "(N, 1, L, S)", "(N, H, L, S)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_that_are_added(name, dtype):
    bias = torch.randn(BOOLEANS[name].shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    seen = compare(*sdpa.make(2, 3, SEQLEN, 8, dtype=dtype), 0.2, bias)
    assert seen.bias is not None
    hidden = bias.masked_fill(~BOOLEANS[name], float("-inf"))
    compare(*sdpa.make(2, 3, SEQLEN, 8, dtype=dtype), 0.2, hidden)


@pytest.mark.parametrize("least", [-1e9, torch.finfo(torch.float32).min])
def test_large_negative_numbers_are_numbers(least):
    """A row of nothing else is attention to all keys, in PyTorch as here."""
    hidden, (q, k, v) = ~random_mask(2, 1, SEQLEN, SEQLEN), sdpa.make(2, 3, SEQLEN, 8)
    seen = compare(q, k, v, 0.2, torch.zeros(hidden.shape).masked_fill(hidden, least))
    assert seen.bias is not None
    row = (torch.arange(SEQLEN) == 4)[:, None]
    out, *_ = sdpa.check(q, k, v, 0.2, torch.zeros(hidden.shape).masked_fill(hidden | row, least))
    right = sdpa.expected(q.masked_fill(row, 0.0), k, v, 0.2, ~hidden | row)
    assert torch.allclose(out.double(), right, atol=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize(
    "shape", [(SEQLEN, SEQLEN), (1, SEQLEN), (SEQLEN,), (1, 3, SEQLEN, SEQLEN), (2, 1, SEQLEN, SEQLEN)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_that_learns_has_a_gradient(shape, p, dtype, monkeypatch):
    monkeypatch.setattr(takes, "MANY_SCORES", SEQLEN * SEQLEN)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_()
    compare(*sdpa.make(2, 3, SEQLEN, 8, dtype=dtype), p, bias)


def test_without_dropout_pytorch_computes_a_small_one():
    bias = torch.zeros(SEQLEN, SEQLEN, requires_grad=True)
    taken, _ = sdpa.taken(sdpa.attend, *sdpa.make(2, 3, SEQLEN, 8), bias)
    assert taken == [False]


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 3, SEQLEN, 1)])
def test_what_is_added_to_all_scores_of_a_row_changes_nothing(shape):
    q, k, v = sdpa.make(2, 3, SEQLEN, 8)
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(4)).requires_grad_()
    out, (*_, dbias), _, _ = sdpa.check(q, k, v, 0.2, bias)
    assert torch.allclose(out.double(), sdpa.expected(q, k, v, 0.2), atol=1e-6)
    assert dbias.shape == shape and torch.allclose(dbias, torch.zeros(shape), atol=1e-4)


def causal_of(form):
    return CAUSAL if form == "bool" else torch.zeros(CAUSAL.shape).masked_fill(~CAUSAL, float("-inf"))


@pytest.mark.parametrize("form", ["bool", "float"])
@pytest.mark.parametrize("lead", [(), (1,), (1, 1), (2, 1), (2, 3)])
def test_causal_masks_are_causal(form, lead):
    mask = causal_of(form).expand(*lead, SEQLEN, SEQLEN)
    seen = compare(*sdpa.make(2, 3, SEQLEN, 8), 0.2, mask)
    assert seen == masks.CAUSAL


@pytest.mark.parametrize("heads", [1, 3])
def test_causal_and_padding(heads):
    seen = compare(*sdpa.make(2, 3, SEQLEN, 8), 0.2, (CAUSAL & KEYS).expand(2, heads, -1, -1).clone())
    assert seen.causal and seen.bias is None and seen.mask.shape == (2, 1, 1, SEQLEN)


def test_heads_that_differ_in_one_entry_are_all_read():
    mask = (CAUSAL & KEYS).expand(2, 3, -1, -1).clone()
    mask[1, 2, SEQLEN // 2 + 1, 1] ^= True
    seen = compare(*sdpa.make(2, 3, SEQLEN, 8), 0.2, mask)
    assert not seen.causal and torch.equal(seen.mask, mask)


def almost(change):
    mask = CAUSAL.clone()
    change(mask)
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        almost(lambda mask: mask[3].__setitem__(7, True)),
        almost(lambda mask: mask[7].__setitem__(3, False)),
        almost(lambda mask: mask[0].__setitem__(slice(None), True)),
        torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril(1),
        torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).tril(-1) | (torch.arange(SEQLEN) == 0),
        torch.ones(SEQLEN, SEQLEN, dtype=torch.bool).triu(),
    ],
)
def test_what_is_almost_causal_is_not(mask):
    assert compare(*sdpa.make(2, 3, SEQLEN, 8), 0.2, mask).causal is False


@pytest.mark.parametrize("seqlen_k", [9, 33])
def test_causal_masks_that_are_not_square(seqlen_k):
    q, k, v = sdpa.make(2, 3, SEQLEN, 8, of_keys=(2, 3, seqlen_k, 8))
    triangle = torch.ones(SEQLEN, seqlen_k, dtype=torch.bool).tril()
    assert compare(q, k, v, 0.2, triangle).causal
    keys = torch.arange(seqlen_k) < torch.tensor([[seqlen_k], [7]])
    assert compare(q, k, v, 0.2, triangle & keys[:, None, None]).causal
    bottom_right = torch.ones(SEQLEN, seqlen_k, dtype=torch.bool).tril(seqlen_k - SEQLEN)
    if not masks.hidden_rows_are_nan():
        assert not compare(q, k, v, 0.2, bottom_right).causal


def test_rows_that_see_nothing():
    """Zeros where PyTorch has zeros; where it has NaN, PyTorch's."""
    q, k, v = sdpa.make(2, 3, SEQLEN, 8)
    taken, out = sdpa.taken(sdpa.attend, q, k, v, BOOLEANS["hides rows"], 0.2)
    assert taken == [not masks.hidden_rows_are_nan()]
    assert bool(out[:, :, 0].isnan().all()) is masks.hidden_rows_are_nan() and not out[:, :, 1].isnan().any()


def test_a_mask_is_looked_at_once_until_it_is_written(monkeypatch):
    looks = []
    monkeypatch.setattr(masks._known, "_find", lambda *arguments: looks.append(1) or masks._read(*arguments))
    q, k, v = sdpa.make(2, 3, SEQLEN, 8)
    mask = causal_of("float")
    for _ in range(3):
        assert compare(q, k, v, 0.2, mask[None]).causal
    assert len(looks) == 1
    mask[0, 5] = 0.0
    assert not compare(q, k, v, 0.2, mask).causal and len(looks) == 2
    mask[0, 5] = float("-inf")
    assert compare(q, k, v, 0.2, mask).causal and len(looks) == 3
    # The same memory, given away and used again.
    for value in (0.0, float("-inf"), 0.0):
        mask = mask.clone()
        mask[0, 5] = value
        assert compare(q, k, v, 0.2, mask).causal is (value != 0.0)


def test_memory_that_others_can_write_is_always_looked_at():
    q, k, v = sdpa.make(2, 3, SEQLEN, 8)
    array = causal_of("float").numpy().copy()
    mask = torch.from_numpy(array)
    assert compare(q, k, v, 0.2, mask).causal
    array[0, 5] = 0.0
    assert not compare(q, k, v, 0.2, mask).causal
    with torch.inference_mode():
        mask = causal_of("float").clone()
    assert masks.look(mask, SEQLEN, SEQLEN) == masks.CAUSAL


def test_a_mask_and_is_causal_are_refused_by_pytorch():
    q, k, v = sdpa.make(2, 3, SEQLEN, 8)
    with pytest.raises(RuntimeError, match="attn_mask should not be set when is_causal"):
        sdpa.attend(q, k, v, CAUSAL, 0.2, True)


def test_a_mask_of_another_shape_is_refused_by_pytorch():
    q, k, v = sdpa.make(2, 3, SEQLEN, 8)
    with pytest.raises(RuntimeError):
        sdpa.attend(q, k, v, CAUSAL[:, :-1], 0.2)


def test_a_mask_of_more_batches_than_queries():
    q, k, v = sdpa.make(1, 3, SEQLEN, 8)
    mask = random_mask(4, 1, SEQLEN, SEQLEN)
    with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
        taken, out = sdpa.taken(sdpa.attend, q, k, v, mask, 0.2)
    assert taken == [True]
    four = [x.expand(4, -1, -1, -1) for x in (q, k, v)]
    assert torch.allclose(out.double(), sdpa.expected(*four, 0.2, mask), atol=1e-6)


@pytest.mark.parametrize("name", ["causal", "causal of booleans", "zeros", "numbers", "keys"])
def test_what_is_remembered_of_a_mask_does_not_keep_it(name):
    from torch.multiprocessing.reductions import StorageWeakRef

    mask = {
        "causal": lambda: causal_of("float"),
        "causal of booleans": lambda: random_mask(SEQLEN, SEQLEN),
        "zeros": lambda: torch.zeros(SEQLEN, SEQLEN),
        "numbers": lambda: torch.ones(SEQLEN, SEQLEN),
        "keys": lambda: (CAUSAL & KEYS).clone(),
    }[name]().clone()
    weak = StorageWeakRef(mask.untyped_storage())
    seen = masks.look(mask, SEQLEN, SEQLEN)
    if name == "keys":
        assert seen.mask.untyped_storage().nbytes() == 2 * SEQLEN  # and not those of the whole mask
    assert not weak.expired()
    del mask, seen
    assert weak.expired()


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="operators need PyTorch 2.4")
@pytest.mark.parametrize("name", ["causal", "causal and padding", "padding", "random", "bias", "rows", "learns"])
def test_compiled_code_computes_what_eager_code_does(name, monkeypatch):
    """To the bit: masks are read when it runs."""
    given = {
        "causal": CAUSAL,
        "causal and padding": CAUSAL & KEYS,
        "padding": KEYS,
        "random": random_mask(2, 1, SEQLEN, SEQLEN),
        "bias": torch.randn(2, 3, SEQLEN, SEQLEN),
        "learns": torch.randn(1, 3, SEQLEN, SEQLEN).requires_grad_(),
        "rows": BOOLEANS["hides rows"],
    }[name]
    tensors, results, ran = sdpa.make(2, 3, SEQLEN, 8), [], []
    for half in ("forward", "backward"):
        function = getattr(native, half)
        monkeypatch.setattr(
            native, half, lambda *args, _run=function, **rest: ran.append(rest["scores"]) or _run(*args, **rest)
        )

    def step(q, k, v, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.2)

    if name == "rows" and masks.hidden_rows_are_nan():
        pytest.skip("NaN in this PyTorch")
    wanted = [x for x in (*tensors, given) if x.requires_grad]
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        del ran[:]
        with signflash.random_state(sdpa.SEED, sdpa.OFFSET):
            out = function(*tensors, given)
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    assert len(ran) == 2  # of what was compiled
    for scores in ran:
        hides = scores is None or scores.bias is None
        assert hides is (name not in ("bias", "learns"))
    assert all(torch.equal(a, b) for a, b in zip(*results))
