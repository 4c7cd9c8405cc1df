"""Losses of 100 steps with PyTorch's attention and with ours: equal but for chance?

For each seed a model and its data are the same on all sides, and what is dropped differs. Compared are the mean losses of all
steps and of the last 20. A difference of one seed is (ours - PyTorch's), and of all the mean of them; chance is measured with a
second run of PyTorch, which drops what another seed says: the two sides are told apart where the mean difference is larger than
3.5 of its standard errors, of the larger spread of the two. A side of PyTorch without attention dropout, and without the
dropout of the same p behind it in nanoGPT's class, shows what the test can see: it is to be told apart.
"""

import math
import statistics

import torch
from torch import nn
from torch.nn import functional as F

STEPS, LAST = 100, 20
SYMBOLS, TOKENS, BATCH, WIDTH, HEADS, LAYERS = 32, 64, 16, 64, 4, 2
DROPOUT_P = 0.2
#: Standard errors; of 8 seeds, chance goes beyond about once in a hundred.
FARTHEST = 3.5
#: Told apart or not: (side of enable(), attention dropout, what is added to the seed of what is dropped).
SIDES = {
    "pytorch": (False, DROPOUT_P, 0),
    "pytorch again": (False, DROPOUT_P, 1000),
    "signflash": (True, DROPOUT_P, 0),
    "no attention dropout": (False, 0.0, 0),
}


class Nano(nn.Module):
    """A language model in the manner of nanoGPT."""

    def __init__(self, dropout_p):
        super().__init__()
        from enable_cases import CausalSelfAttention

        self.symbol, self.position = nn.Embedding(SYMBOLS, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.attention = nn.ModuleList(CausalSelfAttention(WIDTH, HEADS, dropout_p) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        y = self.symbol(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for layer in range(LAYERS):
            y = y + self.attention[layer](self.norms[2 * layer](y))
            y = y + self.mlp[layer](self.norms[2 * layer + 1](y))
        return self.head(self.norms[-1](y))

    def loss(self, rows):
        return F.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


class Reverse(nn.Module):
    """An nn.Transformer that learns to write a sequence backwards."""

    def __init__(self, dropout_p):
        super().__init__()
        self.symbol, self.position = nn.Embedding(SYMBOLS + 1, WIDTH), nn.Embedding(TOKENS + 1, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, LAYERS, LAYERS, 4 * WIDTH, dropout=0.0, batch_first=True)
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = dropout_p
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def embed(self, x):
        return self.symbol(x) + self.position(torch.arange(x.shape[1], device=x.device))

    def loss(self, rows):
        tokens, places = rows.shape[1], torch.arange(rows.shape[1], device=rows.device)
        hidden = places >= tokens - 4 * torch.arange(len(rows), device=rows.device)[:, None].remainder(4)
        wanted = rows.flip(1)
        begun = torch.cat([torch.full_like(wanted[:, :1], SYMBOLS), wanted[:, :-1]], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(wanted.shape[1], device=rows.device)
        masks = dict(tgt_mask=mask, src_key_padding_mask=hidden, memory_key_padding_mask=hidden)
        y = self.transformer(self.embed(rows), self.embed(begun), **masks)
        return F.cross_entropy(self.head(y).flatten(0, 1), wanted.flatten())


MODELS = {"nanoGPT's attention, a chain of symbols": Nano, "nn.Transformer, padded, writes backwards": Reverse}


def chain(generator):
    """Sequences of symbols, each of which follows from the one before by chances that are the same for all seeds."""
    chances = torch.softmax(3 * torch.randn(SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(0)), dim=-1)
    symbols = [torch.randint(SYMBOLS, (BATCH,), generator=generator)]
    while len(symbols) < TOKENS + 1:
        symbols.append(torch.multinomial(chances[symbols[-1]], 1, generator=generator)[:, 0])
    return torch.stack(symbols, dim=1)


def train(kind, seed, dropout_p, shift, device):
    """The losses of all steps."""
    torch.manual_seed(seed)
    module = kind(dropout_p).to(device).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    data = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + shift)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device == "cuda"):  # ours takes no float32 there
            loss = module.loss(chain(data).to(device)[:, : TOKENS if kind is Reverse else None])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


def run(switch, seeds, device):
    """{model: {side: [losses of each seed]}}"""
    found = {}
    for name, kind in MODELS.items():
        found[name] = {side: [] for side in SIDES}
        for seed in range(seeds):
            for side, (ours, dropout_p, shift) in SIDES.items():
                switch("signflash" if ours else "pytorch")
                try:
                    found[name][side].append(train(kind, seed, dropout_p, shift, device))
                finally:
                    switch("pytorch")
    return found


def compared(losses):
    """Rows of one model: (side, what, mean loss, mean difference from PyTorch's, in standard errors)."""
    parts = {"all steps": slice(None), f"the last {LAST}": slice(-LAST, None)}
    rows = []
    for what, part in parts.items():
        means = {side: [statistics.mean(x[part]) for x in runs] for side, runs in losses.items()}
        differences = {side: [a - b for a, b in zip(found, means["pytorch"])] for side, found in means.items()}
        chance = statistics.stdev(differences["pytorch again"])
        for side in SIDES:
            apart = differences[side]
            error = max(statistics.stdev(apart), chance) / math.sqrt(len(apart))
            difference = statistics.mean(apart)
            row = dict(side=side, what=what, mean=statistics.mean(means[side]), difference=difference)
            rows.append({**row, "errors": difference / error})
    return rows


def verdict(rows):
    """Whether ours is not told apart, and the side without dropout is."""
    ours = all(abs(row["errors"]) < FARTHEST for row in rows if row["side"] == "signflash")
    sees = any(abs(row["errors"]) >= FARTHEST for row in rows if row["side"] == "no attention dropout")
    return ours and sees


def page(found):
    about = found["about"]
    text = f"""# Losses of 100 steps before and after `signflash.enable()`

{about["machine"]}, PyTorch {about["versions"]["torch"]}, Signflash {about["commit"]}, {about["date"]}: `{about["command"]}`.

{__doc__.strip().partition(chr(10))[2].strip()}

Attention dropout {DROPOUT_P}; {TOKENS} tokens, batch {BATCH}, {LAYERS} layers of {WIDTH}, {HEADS} heads.
"""
    for name, losses in found["losses"].items():
        rows = compared(losses)
        text += f"\n## {name}\n\n{len(losses['pytorch'])} seeds. "
        text += "Not told apart.\n" if verdict(rows) else "**The test fails.**\n"
        text += "\n| side | steps | mean loss | difference | in standard errors |\n|---|---|---:|---:|---:|\n"
        for row in rows:
            errors = "" if row["side"] == "pytorch" else f"{row['errors']:.1f}"
            text += f"| {row['side']} | {row['what']} | {row['mean']:.4f} | {row['difference']:+.5f} | {errors} |\n"
    return text
