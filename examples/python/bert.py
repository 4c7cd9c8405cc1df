#!/usr/bin/env python3
"""Trains a BERT with random weights through Transformers on padded batches, with attn_implementation="eager",
"sdpa" and "signflash": equal losses, and how long a step takes.

    python3 bert.py [--steps 100] [--size base] [--plot bert.svg]

Attention dropout is on, so no two runs drop the same, and "equal" is judged next to noise: each is run with some
seeds, and the means must not be farther apart than twice what chance explains. Exit code 1 if they are. With
--dropout 0 the losses are equal. --fast also gives 1 if eager or sdpa is faster.
Sizes: base is BERT-base (a GPU), small a laptop's. Sequences are half as long as the longest, or longer.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import signflash
import torch
import transformers
from curves import draw

SIZES = {
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "small": dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256),
}
SYMBOLS, MASK = 64, 1


def batches(a):
    """Sequences with a pattern to learn, of different lengths: (what a model sees, what it must say, padding mask)."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(a.steps):
        first = torch.randint(2, SYMBOLS, (a.batch, 1), generator=generator)
        step = torch.randint(1, 5, (a.batch, 1), generator=generator)
        ids = (first + step * torch.arange(a.seqlen)) % (SYMBOLS - 2) + 2
        hidden = torch.rand(ids.shape, generator=generator) < 0.15
        lengths = torch.randint(a.seqlen // 2, a.seqlen + 1, (a.batch, 1), generator=generator)
        counts = torch.arange(a.seqlen) < lengths
        labels = torch.where(hidden & counts, ids, -100)
        yield ids.masked_fill(hidden, MASK), labels, counts.long()


def train(implementation, seed, a):
    torch.manual_seed(0)  # equal weights in every run
    config = transformers.BertConfig(
        vocab_size=SYMBOLS, attention_probs_dropout_prob=a.dropout, hidden_dropout_prob=0.0, **SIZES[a.size]
    )
    model = transformers.BertForMaskedLM._from_config(config, attn_implementation=implementation).to(a.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.lr)
    torch.manual_seed(seed)
    losses, seconds = [], []
    for ids, labels, counts in batches(a):
        began = time.perf_counter()
        ids, labels, counts = (x.to(a.device) for x in (ids, labels, counts))
        with torch.autocast(a.device, dtype=torch.bfloat16, enabled=a.device == "cuda"):
            loss = model(input_ids=ids, labels=labels, attention_mask=counts).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    print(f"{implementation}, seed {seed}: first {losses[0]:.4f}, last {losses[-1]:.4f}, {sum(seconds):.1f} s", flush=True)
    # The first steps compile, and find memory.
    return torch.tensor(losses), statistics.median(seconds[len(seconds) // 5 :]) * 1e3


def best(runs):
    """Of each kind, the best of its runs' medians, in milliseconds."""
    return {name: min(ms for _, ms in of) for name, of in runs.items()}


def table(runs):
    yield "| attn_implementation | ms a step | signflash is faster by |"
    yield "|---|---:|---:|"
    for name, ms in best(runs).items():
        yield f"| {name} | {ms:.1f} | {ms / best(runs)['signflash']:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--size", choices=SIZES, default="base" if on_gpu else "small")
    for name, default in dict(steps=100, batch=16 if on_gpu else 4, seqlen=128 if on_gpu else 512, seeds=3).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--plot", type=Path, default=Path("bert.svg"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fast", action="store_true", help="fail if another implementation is faster")
    a = parser.parse_args()
    a.lr = a.lr or (5e-5 if a.size == "base" else 3e-4)
    if a.quick:
        a.steps, a.batch, a.seqlen, a.seeds = 3, 2, 32, 2
    signflash.enable(pytorch=False)
    names = ("eager", "sdpa", "signflash")
    runs = {name: [] for name in names}
    for seed in range(a.seeds):
        for name in names:  # in turns, so that a machine that gets slower is slower for all
            runs[name].append(train(name, seed, a))
    curves = {f"{name}, seed {i}": list(enumerate(run.tolist())) for name in runs for i, (run, _) in enumerate(runs[name])}
    draw(a.plot, {name: curve for name, curve in curves.items() if not name.startswith("sdpa")}, "step", "loss")
    print(f"{a.size}, {a.batch} padded sequences of {a.seqlen // 2} to {a.seqlen}, dropout {a.dropout}, on {where(a.device)}")
    print("\n".join(table(runs)))
    eager, ours = (torch.stack([run for run, _ in runs[name]]) for name in ("eager", "signflash"))
    # Variances within each kind say how far apart two means may be by chance: sqrt(2 / seeds) standard deviations.
    deviation = float(((eager.var(0) + ours.var(0)) / 2).mean().sqrt())
    apart = float((eager.mean(0) - ours.mean(0)).square().mean().sqrt())
    print(
        f"runs of one kind have a standard deviation of {deviation:.5f}, the means are {apart:.5f} apart (root mean square)"
    )
    equal = apart <= 2 * (2 / a.seeds) ** 0.5 * deviation + 1e-4
    print("equal within noise" if equal else "NOT equal within noise", f"; drawn: {a.plot}", sep="")
    slower = a.fast and best(runs)["signflash"] > min(best(runs).values())
    return 0 if (equal and not slower) or a.quick else 1


def where(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of a CPU"


if __name__ == "__main__":
    sys.exit(main())
