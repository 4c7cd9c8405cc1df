"""The models of `enable.py`: each as its library makes it, with random weights, small in depth and ordinary in width.

A case's `make(device)` returns a function that computes a training step's loss. Libraries that are not installed raise
ImportError there, and the table says so.
"""

import dataclasses
import typing

import torch
from torch import nn
from torch.nn import functional as F

P = 0.1
WIDTH, HEADS = 512, 8
#: Sequences of a step, which `enable.py --batch` sets.
BATCH = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A row; `tokens` are the keys of its attention."""

    library: str
    name: str
    tokens: int
    make: typing.Callable


CASES: typing.List[Case] = []


def case(library, name, *lengths, **settings):
    """Enters a function of (device, tokens, **settings) into the list, once for each length, as it is read from above."""

    def enter(function):
        place = function.__dict__.setdefault("place", len(CASES))
        made = [lambda device, n=tokens: function(device, n, **settings) for tokens in lengths]
        CASES[place:place] = [Case(library, name, tokens, make) for tokens, make in zip(lengths, made)]
        return function

    return enter


def weight(out):
    """A scalar whose gradient differs from entry to entry."""
    return out.float().square().mean()


def padding(tokens, device):
    """True where there is no token: the rows of a batch are from full to half full, of two one to three quarters."""
    lengths = torch.tensor([tokens - tokens * row // (2 * BATCH) for row in range(BATCH)])
    return (torch.arange(tokens)[None] >= lengths[:, None]).to(device)


def causal(tokens, device):
    return nn.Transformer.generate_square_subsequent_mask(tokens, device=device)


def rows(device, tokens):
    return torch.randn(BATCH, tokens, WIDTH, device=device, requires_grad=True)


# -------------------------------------------------------------------------------------------------------- torch.nn


@case("torch.nn", "MultiheadAttention, need_weights=False", 128, 512, 1024)
@case("torch.nn", "MultiheadAttention, padding, need_weights=False", 512, padded=True)
@case("torch.nn", "MultiheadAttention, causal mask, need_weights=False", 512, masked=True)
@case("torch.nn", "MultiheadAttention, need_weights=True (its default)", 512, weights=True)
@case("torch.nn", "MultiheadAttention, padding, need_weights=True", 512, padded=True, weights=True)
def multihead(device, tokens, padded=False, masked=False, weights=False):
    module = nn.MultiheadAttention(WIDTH, HEADS, dropout=P, batch_first=True).to(device).train()
    x, hidden = rows(device, tokens), padding(tokens, device) if padded else None
    mask = causal(tokens, device) if masked else None
    return lambda: weight(module(x, x, x, key_padding_mask=hidden, attn_mask=mask, need_weights=weights)[0])


def layer(kind):
    return kind(WIDTH, HEADS, 4 * WIDTH, dropout=P, batch_first=True)


@case("torch.nn", "TransformerEncoder", 512)
@case("torch.nn", "TransformerEncoder, padding", 512, padded=True)
@case("torch.nn", "TransformerEncoder, causal mask", 512, masked=True)
@case("torch.nn", "TransformerEncoder, causal mask and padding", 512, masked=True, padded=True)
def encoder(device, tokens, padded=False, masked=False):
    module = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer), 1, enable_nested_tensor=False).to(device).train()
    x, hidden = rows(device, tokens), padding(tokens, device) if padded else None
    mask = causal(tokens, device) if masked else None
    if padded and masked:  # PyTorch wants both of one kind
        hidden = torch.zeros(hidden.shape, device=device).masked_fill(hidden, -torch.inf)
    return lambda: weight(module(x, mask=mask, src_key_padding_mask=hidden))


@case("torch.nn", "TransformerDecoder, causal mask", 512)
@case("torch.nn", "TransformerDecoder, causal mask, padded memory", 512, padded=True)
def decoder(device, tokens, padded=False):
    module = nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 1).to(device).train()
    x, memory = rows(device, tokens), rows(device, tokens)
    mask, hidden = causal(tokens, device), padding(tokens, device) if padded else None
    return lambda: weight(module(x, memory, tgt_mask=mask, memory_key_padding_mask=hidden))


@case("torch.nn", "Transformer, causal mask", 512)
@case("torch.nn", "Transformer, causal mask, padding everywhere", 512, padded=True)
def transformer(device, tokens, padded=False):
    module = nn.Transformer(WIDTH, HEADS, 1, 1, 4 * WIDTH, dropout=P, batch_first=True).to(device).train()
    x, y = rows(device, tokens), rows(device, tokens)
    hidden = (
        torch.zeros(BATCH, tokens, device=device).masked_fill(padding(tokens, device), -torch.inf) if padded else None
    )
    masks = dict(src_key_padding_mask=hidden, tgt_key_padding_mask=hidden, memory_key_padding_mask=hidden)
    return lambda: weight(module(x, y, tgt_mask=causal(tokens, device), **masks))


# -------------------------------------------------------------------------------------------------------- pictures


@case("timm", "ViT, vit_tiny_patch16", 197, 577, architecture="vit_tiny_patch16_224", patch=16)
@case("timm", "DeiT, deit_tiny_patch16", 577, architecture="deit_tiny_patch16_224", patch=16)
@case("timm", "BEiT, beit_base_patch16: a bias with its gradient", 577, architecture="beit_base_patch16_224", patch=16)
@case("timm", "EVA, eva02_tiny_patch14", 577, architecture="eva02_tiny_patch14_224", patch=14)
@case("timm", "Swin, swin_tiny_patch4_window7", 49, architecture="swin_tiny_patch4_window7_224")
def picture(device, tokens, architecture, patch=None):
    import timm

    settings = {} if patch is None else dict(img_size=round((tokens - 1) ** 0.5) * patch, depth=2)
    module = timm.create_model(architecture, pretrained=False, attn_drop_rate=P, **settings).to(device).train()
    size = settings.get("img_size", 224)
    x = torch.randn(BATCH, 3, size, size, device=device)
    return lambda: weight(module(x))


@case("torchvision", "VisionTransformer", 577)
def vision_transformer(device, tokens):
    from torchvision.models import VisionTransformer

    sizes = dict(num_layers=1, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=4 * WIDTH, attention_dropout=P)
    module = VisionTransformer(image_size=384, patch_size=16, **sizes).to(device).train()
    x = torch.randn(BATCH, 3, 384, 384, device=device)
    return lambda: weight(module(x))


# ------------------------------------------------------------------------------------------------------------ text


class CausalSelfAttention(nn.Module):
    """Calls what nanoGPT's class of this name calls, in the same layout."""

    def __init__(self, width=WIDTH, heads=HEADS, dropout_p=0.2):
        super().__init__()
        self.heads, self.dropout_p = heads, dropout_p
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        dropout_p = self.dropout_p if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=dropout_p, is_causal=True)
        return F.dropout(self.out(y.transpose(1, 2).flatten(2)), self.dropout_p, self.training)


@case("nanoGPT", "CausalSelfAttention, dropout 0.2", 512, 1024)
def nanogpt(device, tokens):
    module, x = CausalSelfAttention().to(device).train(), rows(device, tokens)
    return lambda: weight(module(x))


def words(device, tokens):
    return torch.randint(2, 256, (BATCH, tokens), device=device)


@case("x-transformers", "Decoder, attn_flash", 512, kind="Decoder")
@case("x-transformers", "Encoder, attn_flash, mask", 512, kind="Encoder", padded=True)
@case("x-transformers", "Decoder, attn_flash, ALiBi", 512, kind="Decoder", alibi_pos_bias=True)
@case("x-transformers", "Decoder, T5's bias", 512, kind="Decoder", rel_pos_bias=True, attn_flash=False)
@case("x-transformers", "Decoder, its default", 512, kind="Decoder", attn_flash=False)
def x_transformer(device, tokens, kind, padded=False, **settings):
    import x_transformers

    layers = getattr(x_transformers, kind)
    settings = {"attn_flash": True, **settings}
    layers = layers(dim=WIDTH, depth=1, heads=HEADS, attn_dropout=P, **settings)
    module = (
        x_transformers.TransformerWrapper(num_tokens=256, max_seq_len=tokens, attn_layers=layers).to(device).train()
    )
    x, seen = words(device, tokens), dict(mask=~padding(tokens, device)) if padded else {}
    return lambda: weight(module(x, **seen))


@case("Transformers", "BERT, sdpa", 512, kind="Bert")
@case("Transformers", "BERT, sdpa, padded", 128, 512, kind="Bert", padded=True)
@case("Transformers", "GPT-2, sdpa", 512, kind="GPT2")
@case("Transformers", "GPT-2, sdpa, padded", 512, kind="GPT2", padded=True)
@case("Transformers", "Llama, sdpa, padded", 512, kind="Llama", padded=True)
@case("Transformers", "BERT, eager, padded", 512, kind="Bert", padded=True, implementation="eager")
def hugging_face(device, tokens, kind, padded=False, implementation="sdpa"):
    import transformers

    settings = dict(vocab_size=256, attn_implementation=implementation)
    if kind == "GPT2":
        settings.update(n_embd=WIDTH, n_layer=1, n_head=HEADS, attn_pdrop=P, n_positions=tokens)
    else:
        settings.update(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=4 * WIDTH)
        settings.update(
            dict(num_key_value_heads=2, attention_dropout=P)
            if kind == "Llama"
            else dict(attention_probs_dropout_prob=P)
        )
    config = getattr(transformers, f"{kind}Config")(**settings, max_position_embeddings=tokens)
    module = getattr(transformers, f"{kind}Model")(config).to(device).train()
    inputs = dict(input_ids=words(device, tokens))
    if padded:
        inputs["attention_mask"] = (~padding(tokens, device)).long()
    return lambda: weight(module(**inputs).last_hidden_state)


# ---------------------------------------------------------------------------------------------------------- graphs


@case("PyTorch Geometric", "GPSConv, graphs of 384 and 512 nodes", 512)
def graphs(device, tokens):
    from torch_geometric.nn import GPSConv

    module = GPSConv(WIDTH, None, heads=HEADS, attn_kwargs={"dropout": P}).to(device).train()
    hidden = padding(tokens, "cpu")
    batch = torch.arange(BATCH)[:, None].expand(BATCH, tokens)[~hidden].to(device)
    x = torch.randn(len(batch), WIDTH, device=device, requires_grad=True)
    edges = torch.randint(0, len(batch), (2, 4 * len(batch)), device=device)
    return lambda: weight(module(x, edges, batch))
