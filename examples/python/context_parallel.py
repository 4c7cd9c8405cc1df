#!/usr/bin/env python3
"""Trains a Llama-shaped model with FSDP2, each sequence cut among ranks: the losses are those of one process.

    torchrun --nproc-per-node 4 context_parallel.py [--context 2] [--method ring] [--steps 100] [--losses losses.json]
    python3 context_parallel.py     the same on one process

Of 4 processes with `--context 2` two pairs share sequences, and each pair has half of the batch; parameters are sharded over all
four. With attention dropout: the seed of a call is the number of its step and layer, so that every split drops the same.
It learns this repository's own pages. On CPUs processes speak gloo, on GPUs NCCL.
"""

import argparse
import json
import os
from pathlib import Path

import signflash
import torch
import torch.distributed as dist
from signflash import distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype) * self.weight


def rotated(x, positions):
    """Rotary embeddings, by position in the whole sequence."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * 10000.0 ** (-torch.arange(half, device=x.device) / half)
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    def __init__(self, layer, a):
        super().__init__()
        self.layer, self.heads, self.heads_k, self.head_dim = layer, a.heads, a.heads // 2, a.width // a.heads
        self.before, self.after = Norm(a.width), Norm(a.width)
        self.q, self.out = nn.Linear(a.width, a.width, bias=False), nn.Linear(a.width, a.width, bias=False)
        self.kv = nn.Linear(a.width, a.width, bias=False)  # half as many key heads as query heads, keys and values
        self.gate, self.up = (nn.Linear(a.width, 3 * a.width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * a.width, a.width, bias=False)

    def forward(self, x, place):
        y = self.before(x)
        q = rotated(self.q(y).unflatten(-1, (self.heads, self.head_dim)), place.positions)
        k, v = self.kv(y).unflatten(-1, (2, self.heads_k, self.head_dim)).unbind(2)
        out = place.attention(q, rotated(k, place.positions), v, self.layer)
        x = x + self.out(out.flatten(2))
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, symbols, a):
        super().__init__()
        self.symbol = nn.Embedding(symbols, a.width)
        self.blocks = nn.ModuleList(Block(layer, a) for layer in range(a.layers))
        self.norm, self.head = Norm(a.width), nn.Linear(a.width, symbols, bias=False)

    def forward(self, tokens, place):
        x = self.symbol(tokens)
        for block in self.blocks:
            x = block(x, place)
        return self.head(self.norm(x))


class Place:
    """Where this rank's tokens lie in the batch and in the sequence, and how it attends to those of others."""

    def __init__(self, a, device):
        self.a, self.step, self.mesh = a, 0, None
        self.data_rank, self.data_ranks, self.ranks = 0, 1, 1
        if a.context:  # 0 is alone
            self.ranks = dist.get_world_size()
            self.data_ranks = self.ranks // a.context
            mesh = init_device_mesh(device.type, (self.data_ranks, a.context), mesh_dim_names=("data", "context"))
            self.mesh, self.data_rank = mesh["context"], mesh.get_local_rank("data")
        self.positions = self.own(torch.arange(a.seqlen, device=device)[None])[0]

    def own(self, x):
        """This rank's part of (batch, seqlen), or of one row for all."""
        if x.shape[0] > 1:
            x = x.chunk(self.data_ranks)[self.data_rank]
        return x if self.mesh is None else distributed.shard_sequence(x, mesh=self.mesh)

    def attention(self, q, k, v, layer):
        settings = dict(causal=True, dropout_p=self.a.dropout, seed=1000 * self.step + layer, offset=0)
        shard = signflash.Shard(first_batch=self.data_rank * q.shape[0])
        if self.mesh is None:
            return signflash.attention(q, k, v, shard=shard, **settings)
        more = dict(mesh=self.mesh, method=self.a.method, seqlen=self.a.seqlen, debug=self.step == 0)
        return distributed.attention(q, k, v, shard=shard, **settings, **more)


def sharded(model, device):
    """Parameters of each block over all ranks."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def train(a, device):
    """The loss of each step, of the whole batch."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    symbols = {symbol: number for number, symbol in enumerate(sorted(set(text)))}
    data = torch.tensor([symbols[symbol] for symbol in text])
    torch.manual_seed(0)
    model, place = Model(len(symbols), a).to(device), Place(a, device)
    if place.ranks > 1:
        sharded(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator, losses = torch.Generator().manual_seed(1), []
    for step in range(a.steps):
        place.step = step
        starts = torch.randint(0, len(data) - a.seqlen - 1, (a.batch,), generator=generator).tolist()
        rows = torch.stack([data[start : start + a.seqlen + 1] for start in starts]).to(device)
        tokens, labels = place.own(rows[:, :-1]), place.own(rows[:, 1:])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(tokens, place)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum") / (a.batch * a.seqlen)
        (loss * place.ranks).backward()  # FSDP averages over ranks, and each has a part of one sum
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total = loss.detach().clone()
        if place.ranks > 1:
            dist.all_reduce(total)
        losses.append(float(total))
    return losses


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(steps=100, batch=4, seqlen=256, width=64, heads=4, layers=2).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--context", type=int, help="how many ranks share a sequence; all of them unless given")
    parser.add_argument("--method", default="ring", choices=("ring", "all_gather", "ulysses"))
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--losses", type=Path, help="where to write the losses, as JSON")
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args(given)
    if a.quick:
        a.steps, a.seqlen, a.width = 5, 48, 32
    return a


def main():
    a = arguments()
    ranks, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(a.device, local) if a.device == "cuda" else torch.device(a.device)
    if ranks > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    a.context = (a.context or ranks) if ranks > 1 else 0
    losses = train(a, device)
    if local == 0:
        for step in sorted({*range(0, a.steps, max(1, a.steps // 10)), a.steps - 1}):
            print(f"step {step}: loss {losses[step]:.4f}", flush=True)
        if a.losses:
            a.losses.write_text(json.dumps(losses))
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
