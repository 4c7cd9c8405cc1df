"""Attention in a model's own code, changed as docs/pytorch.md says: the same result, and ours with dropout.

The libraries' own lines are replaced in their source, so that what runs is what a user would write; where a library is not
installed, or has other lines by now, its test is skipped.
"""

import inspect
import math
import textwrap

import pytest

torch = pytest.importorskip("torch")

import reference
import signflash

F = torch.nn.functional
if not hasattr(F, "scaled_dot_product_attention"):
    pytest.skip("this PyTorch has no F.scaled_dot_product_attention", allow_module_level=True)


class EspnetLike(torch.nn.Module):
    """Computes what ESPnet's MultiHeadedAttention does; mask is (batch, 1 or tokens, tokens), 0 where a key is hidden."""

    def __init__(self, dropout_p, changed):
        super().__init__()
        self.changed, self.dropout = changed, torch.nn.Dropout(dropout_p)
        self.qkv, self.out = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64)

    def forward(self, x, mask):
        q, k, v = (y.unflatten(-1, (4, 16)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        if self.changed:
            dropout_p = self.dropout.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1).ne(0), dropout_p=dropout_p)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            hidden = mask.unsqueeze(1).eq(0)
            attn = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0.0)
            y = self.dropout(attn) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def replaced(function, *changes):
    """The function with other lines in its source."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        if old not in source:
            pytest.skip(f"{function.__qualname__} of this version has other lines")
        source = source.replace(old, new)
    names = {**function.__globals__, "F": F}
    exec(source, names)
    return names[function.__name__]


def compare(make, run, change):
    """make(p) is a model, change() has it computed by the new lines."""
    found = []
    for is_changed in (False, True):
        if is_changed:
            change()
        torch.manual_seed(0)
        model = make(0.0).train()
        for p in model.parameters():  # biases of positions begin near 0, where one that is lost would not be seen
            torch.nn.init.normal_(p, std=0.1)
        out = run(model)
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad for p in model.parameters())])
    for old, new in zip(*found):
        assert reference.error(new, old) < 1e-4
    told = signflash.explain(lambda: run(make(0.3).train()))
    assert {(x.taken, x.dropout_p) for x in told.attentions} == {(True, 0.3)}, told


@pytest.mark.parametrize("kind", ["padded", "causal and padded", "rows without keys"])
def test_an_attention_like_espnets(kind):
    torch.manual_seed(0)
    x, mask = torch.randn(2, 70, 64), torch.ones(2, 1, 70)
    mask[1, :, 50:] = 0
    if kind != "padded":
        mask = mask * torch.ones(70, 70).tril()
    if kind == "rows without keys":
        if torch.__version__ < "2.5":
            pytest.skip("PyTorch before 2.5 makes NaN of them")
        mask[1, 60:] = 0
    changed = []
    compare(lambda p: EspnetLike(p, bool(changed)), lambda model: model(x, mask), lambda: changed.append(True))


def test_vit_pytorch(monkeypatch):
    vit = pytest.importorskip("vit_pytorch.vit")
    old = """    dots = torch.matmul(q, k.transpose(-1, -2)) * self.scale

    attn = self.attend(dots)
    attn = self.dropout(attn)

    out = torch.matmul(attn, v)
"""
    new = """    dropout_p = self.dropout.p if self.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=self.scale)
"""
    forward = replaced(vit.Attention.forward, (old, new))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sizes = dict(image_size=32, patch_size=4, num_classes=10, dim=64, depth=1, heads=4, mlp_dim=64, dim_head=16)
    compare(
        lambda p: vit.ViT(**sizes, dropout=p),
        lambda model: model(x),
        lambda: monkeypatch.setattr(vit.Attention, "forward", forward),
    )


def test_swin_of_torchvision(monkeypatch):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    changes = [
        (
            "        attn = q.matmul(k.transpose(-2, -1))\n"
            "    # add relative position bias\n"
            "    attn = attn + relative_position_bias\n",
            "    bias = relative_position_bias\n",
        ),
        (
            "        attn = attn.view(x.size(0) // num_windows, num_windows, num_heads, x.size(1), x.size(1))\n"
            "        attn = attn + attn_mask.unsqueeze(1).unsqueeze(0)\n"
            "        attn = attn.view(-1, num_heads, x.size(1), x.size(1))\n",
            "        bias = (bias + attn_mask.unsqueeze(1)).repeat(x.size(0) // num_windows, 1, 1, 1)\n",
        ),
        (
            "    attn = F.softmax(attn, dim=-1)\n"
            "    attn = F.dropout(attn, p=attention_dropout, training=training)\n\n"
            "    x = attn.matmul(v)",
            "    dropout_p = attention_dropout if training else 0.0\n"
            "    x = F.scaled_dot_product_attention(q, k, v, bias, dropout_p, scale=1.0)",
        ),
    ]
    attend = replaced(swin.shifted_window_attention, *changes)
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    sizes = dict(patch_size=[4, 4], embed_dim=32, depths=[2], num_heads=[2], window_size=[7, 7], num_classes=10)
    compare(
        lambda p: swin.SwinTransformer(**sizes, attention_dropout=p, stochastic_depth_prob=0.0),
        lambda model: model(x),
        lambda: monkeypatch.setattr(swin, "shifted_window_attention", attend),
    )
