"""``signflash.explain``: who computes which attention of a model, and why."""

import pytest

torch = pytest.importorskip("torch")

import sdpa
import signflash

if not sdpa.HAS_SDPA:
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)

from signflash._sdpa import notes, switch

SDPA = torch.nn.functional.scaled_dot_product_attention


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.1)
        self.layer = torch.nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        own = self.dropout((x @ x.transpose(1, 2)).softmax(-1)) @ x
        self.dropout(x)
        weighted, _ = self.layer(x, x, x)
        without, _ = self.layer(x, x, x, need_weights=False)
        without, _ = self.layer(without, x, x, need_weights=False)
        with torch.inference_mode():
            SDPA(x[None], x[None], x[None], dropout_p=0.1)
        wide = x[None].double()
        return own + weighted + without + SDPA(x, x, x, is_causal=True) + SDPA(wide, wide, wide, dropout_p=0.1)[0]


def find(found, text):
    return [(x, count) for x, count in found.attentions.items() if text in x.why]


@pytest.mark.parametrize("compiled", [False, True])
def test_each_attention_is_told(compiled):
    model = Model()
    if compiled:
        if not hasattr(getattr(torch, "compiler", None), "set_stance"):
            pytest.skip("this PyTorch cannot run what was compiled as it was written")
        model = torch.compile(model, backend="eager")
    found = signflash.explain(model, torch.randn(2, 9, 8))
    assert not found.all_taken and found.result.shape == (2, 9, 8)
    assert len(found.attentions) == 7 and sum(found.attentions.values()) == 7
    assert [x.taken for x in found.attentions].count(True) == 2
    for text in ("code of its own", "need_weights=True", "inference_mode", "dropout_p is 0", "float64"):
        ((attention, count),) = find(found, text)
        assert count == 1 and not attention.taken and "test_sdpa_explain.py" in attention.where
    lines = str(found).splitlines()
    assert len(lines) == 8 and lines[0].split()[:3] == ["by", "calls", "p"]
    assert not notes.listeners and not switch.is_on()


def test_equal_ones_are_counted_and_masks_are_told():
    q, k, v = sdpa.make(2, 2, 9, 8)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()

    def run():
        for _ in range(3):
            SDPA(q, k, v, mask, dropout_p=0.1)

    found = signflash.explain(run)
    assert found.all_taken and list(found.attentions.values()) == [3]
    (attention,) = found.attentions
    assert attention.why == "causal" and attention.query == (2, 2, 9, 8) and attention.dropout_p == 0.1
    assert str(signflash.explain(lambda: None)) == "no attention was called"


def test_an_error_is_the_functions_and_nothing_stays():
    with pytest.raises(ZeroDivisionError):
        signflash.explain(lambda: 1 / 0)
    assert not notes.listeners and not switch.is_on()
    assert sdpa.taken(SDPA, *sdpa.make(1, 2, 9, 8), dropout_p=0.1)[0] == []


def test_the_examples_in_docstrings_run():
    import doctest

    from signflash import _enable

    result = doctest.testmod(_enable)
    assert result.failed == 0 and result.attempted >= 9
