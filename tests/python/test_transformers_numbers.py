"""Masks of numbers, which a model hands to the attention function; and none."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_transformers_masks import PADDING  # skips where Transformers knows no implementation of ours

from signflash._transformers import attention_forward


def test_numbers_that_say_what_padding_says_are_computed(device):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 16, generator=generator).to(device, torch.float16) for _ in range(3))
    least = torch.finfo(torch.float16).min
    causal = ~torch.ones(6, 6, dtype=torch.bool).tril()
    hidden = {
        "padding": ~PADDING[:, None, None],
        "causal": causal.expand(2, 1, 6, 6),
        "nothing": torch.zeros(2, 1, 6, 6, dtype=torch.bool),
        "window": (causal | torch.ones(6, 6).tril(-3).bool()).expand(2, 1, 6, 6),
        "window to both sides": (torch.ones(6, 6).triu(2) + torch.ones(6, 6).tril(-4)).bool().expand(2, 1, 6, 6),
        "packed": ~torch.block_diag(torch.ones(2, 2).tril(), torch.ones(4, 4).tril()).bool().expand(2, 1, 6, 6),
    }
    for name, hides in hidden.items():
        for number in (least, -torch.inf):
            mask = torch.where(hides, number, 0.0).to(device, torch.float16)
            # The module says nothing, or the wrong thing: the mask is what counts.
            out, _ = attention_forward(torch.nn.Module(), q, k, v, mask)
            scores = (q.float() @ k.float().mT * 0.25).masked_fill(hides.to(device), -torch.inf)
            assert torch.allclose(out.transpose(1, 2).float(), scores.softmax(-1) @ v.float(), atol=5e-3), name


def test_numbers_that_say_anything_else_are_computed_entry_by_entry(device):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 6, 16, generator=generator).to(device, torch.float16) for _ in range(3))
    position_bias = torch.randn(1, 2, 6, 6, generator=generator).to(device)
    added = torch.randn(2, 1, 6, 6, generator=generator).to(device)
    least = torch.finfo(torch.float32).min
    causal = ~torch.ones(6, 6, dtype=torch.bool).tril().to(device)
    hides = [causal.T.roll(1, 0) | causal, ~torch.eye(6, device=device).bool(), causal.roll(3, 1)]
    several = torch.stack([causal, causal.T])[None]  # another for each head
    masks = [(torch.zeros(2, 1, 6, 6, device=device).masked_fill(x, least), x) for x in hides]
    masks += [(~x.expand(2, 1, 6, 6), x) for x in hides]  # bool is True where a query sees a key
    masks += [(x.float() * least, x) for x in (several.expand(2, -1, -1, -1), hides[0].expand(1, 1, 6, 6))]
    masks += [(~PADDING[1:, None, None].to(device) * least, ~PADDING[1:, None, None].to(device))]  # one row for all
    masks += [(added, None), (added.masked_fill(causal, -torch.inf), causal)]
    for mask, hides in masks:
        for bias in (None, position_bias):
            out, _ = attention_forward(torch.nn.Module(), q, k, v, mask, position_bias=bias)
            scores = q.float() @ k.float().mT * 0.25
            if hides is None or mask is masks[-1][0]:
                scores = scores + added
            if bias is not None:
                scores = scores + bias
            scores = scores if hides is None else scores.masked_fill(hides, -torch.inf)
            assert torch.allclose(out.transpose(1, 2).float(), scores.softmax(-1).nan_to_num() @ v.float(), atol=5e-3)
    learned = added.clone().requires_grad_()
    attention_forward(torch.nn.Module(), q, k, v, learned)[0].float().square().sum().backward()
    assert learned.grad.abs().sum() > 0
    for mask in (added[:, 0], added[..., :5], added.expand(2, 1, 6, 6)[:, :, :3], added.repeat(2, 1, 1, 1)):
        with pytest.raises(NotImplementedError, match="attention_mask must be"):
            attention_forward(torch.nn.Module(), q, k, v, mask)
    with pytest.raises(TypeError, match="attention_mask must be None.* got torch.int64"):
        attention_forward(torch.nn.Module(), q, k, v, added.long())


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
