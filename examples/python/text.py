#!/usr/bin/env python3
"""Trains a small transformer on text twice, without and with attention dropout, and draws both losses.

    python3 text.py [FILES...] [--steps 600] [--dropout 0.1] [--plot text.svg]

Without files it learns this repository's own pages. On a laptop it takes some minutes, on a GPU seconds; `--quick`
only shows that it runs. The text is small, so that without dropout the model learns it by heart: the loss on text
that it has not seen says which of the two generalises.
"""

import argparse
import time
from pathlib import Path

import signflash
import torch
from curves import draw
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]


class Block(nn.Module):
    def __init__(self, width, heads, dropout_p):
        super().__init__()
        self.heads, self.dropout_p = heads, dropout_p
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        batch, seqlen, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, seqlen, 3, self.heads, width // self.heads).unbind(2)
        dropout_p = self.dropout_p if self.training else 0.0
        x = x + self.out(signflash.attention(q, k, v, causal=True, dropout_p=dropout_p).reshape(x.shape))
        return x + self.mlp(self.after(x))


class Model(nn.Module):
    def __init__(self, symbols, seqlen, width, heads, layers, dropout_p):
        super().__init__()
        self.symbol, self.position = nn.Embedding(symbols, width), nn.Embedding(seqlen, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout_p) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)

    def forward(self, x):
        x = self.symbol(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(x)))


def batch(data, size, seqlen, generator):
    starts = torch.randint(0, len(data) - seqlen - 1, (size,), generator=generator)
    rows = torch.stack([data[start : start + seqlen + 1] for start in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def loss_of(model, x, y, device):
    # Half precision on a GPU, as its kernels ask; float32 on the CPU.
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits = model(x.to(device))
    return F.cross_entropy(logits.float().flatten(0, 1), y.to(device).flatten())


@torch.no_grad()
def validate(model, data, a, device):
    model.eval()
    generator = torch.Generator().manual_seed(1)
    losses = [float(loss_of(model, *batch(data, a.batch, a.seqlen, generator), device)) for _ in range(8)]
    model.train()
    return sum(losses) / len(losses)


def train(dropout_p, symbols, learn, unseen, a, device):
    torch.manual_seed(0)
    model = Model(symbols, a.seqlen, a.width, a.heads, a.layers, dropout_p).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    generator, curves = torch.Generator().manual_seed(0), {"seen": [], "unseen": []}
    start = time.time()
    for step in range(a.steps):
        loss = loss_of(model, *batch(learn, a.batch, a.seqlen, generator), device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % a.every == 0 or step == a.steps - 1:
            curves["seen"].append((step, float(loss.detach())))
            curves["unseen"].append((step, validate(model, unseen, a, device)))
            seen, other = curves["seen"][-1][1], curves["unseen"][-1][1]
            print(
                f"p={dropout_p} step {step}: loss {seen:.3f}, on unseen text {other:.3f} ({time.time() - start:.0f} s)",
                flush=True,
            )
    return curves


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    for name, default in dict(steps=600, every=50, batch=16, seqlen=256, width=128, heads=4, layers=4).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, default=Path("text.svg"))
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    if a.quick:
        a.steps, a.every, a.batch, a.seqlen, a.layers = 4, 2, 2, 64, 2
    files = a.files or sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    symbols = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    data = torch.tensor([symbols[symbol] for symbol in text])
    cut = len(data) * 9 // 10
    print(f"{len(data)} characters of {len(files)} files, {len(symbols)} symbols, on {a.device}")
    curves = {}
    for p in (0.0, a.dropout):
        for kind, points in train(p, len(symbols), data[:cut], data[cut:], a, a.device).items():
            curves[f"p = {p}, {kind} text"] = points
    draw(a.plot, curves, "step", "loss")
    print(f"drawn: {a.plot}")


if __name__ == "__main__":
    main()
