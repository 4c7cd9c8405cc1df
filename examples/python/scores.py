"""Draws what softcap, ALiBi, bias, mask, sinks and windows make of one attention map, as docs/scores.md shows it.

    python3 scores.py --plot scores.svg

Each square is one probability, darker is larger: green is kept, red was dropped.
"""

import argparse
import collections
import math

import signflash
import torch

SIZE, CELL, GAP = 24, 6, 28


def maps(device):
    """(what, probabilities, dropped) of one head."""
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, SIZE, 1, 32, generator=generator) for _ in range(3))
    q, k, v = (x.to(device, torch.float32 if device == "cpu" else torch.float16) for x in (1.5 * q, k, v))
    at = torch.arange(SIZE, device=device)
    stripes = torch.where((at[:, None] - at) % 6 == 0, 3.0, 0.0)  # each query likes the keys a multiple of 6 away
    counts = (at < 15)[None, None, None]  # the last nine keys do not count
    joined = {
        "nothing": {},
        "softcap=1": dict(softcap=1.0),
        "alibi_slopes=0.5": dict(alibi_slopes=torch.tensor([0.5], device=device)),
        "bias of stripes": dict(bias=stripes),
        "mask of 15 keys": dict(mask=counts),
        "sink of 4": dict(sinks=torch.tensor([4.0], device=device)),
        "all, causal": dict(softcap=1.0, bias=stripes, mask=counts, sinks=torch.tensor([2.0], device=device), causal=True),
    }
    for what, given in joined.items():
        _, probs = signflash.attention(q, k, v, dropout_p=0.1, seed=5, return_probs=True, **given)
        probability, dropped = signflash.decode(probs)
        yield what, probability[0, 0].float().cpu(), dropped[0, 0].cpu()


def panel(what, probability, dropped, left):
    lines = [f'<text x="{left}" y="16">{what}</text>']
    lines.append(f'<rect x="{left}" y="{GAP}" width="{SIZE * CELL}" height="{SIZE * CELL}" fill="none" stroke="#999"/>')
    squares = collections.defaultdict(list)  # of one color and shade
    for i in range(SIZE):
        for j in range(SIZE):
            shade = round(min(1.0, 1.4 * math.sqrt(float(probability[i, j]))), 1)
            color = "#b3261e" if bool(dropped[i, j]) else "#1b7f3b"
            squares[color, shade].append(f"M{left + j * CELL} {GAP + i * CELL}h{CELL}v{CELL}h-{CELL}z")
    for (color, shade), path in sorted((key, "".join(x)) for key, x in squares.items()):
        if shade > 0.0:
            lines.append(f'<path fill="{color}" fill-opacity="{shade}" d="{path}"/>')
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", default="scores.svg")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="is taken, and changes nothing: it is quick")
    a = parser.parse_args()
    lines, left = [], 4
    for what, probability, dropped in maps(a.device):
        lines += panel(what, probability, dropped, left)
        left += SIZE * CELL + 20
        print(f"{what}: a row's probabilities add up to {probability.sum(-1).mean():.3f} on average")
    size = f'width="{left}" height="{GAP + SIZE * CELL + 4}"'
    style = 'font-family="sans-serif" font-size="13"'
    with open(a.plot, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n')
        file.write('<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(lines) + "\n</svg>\n")


if __name__ == "__main__":
    main()
