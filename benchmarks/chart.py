#!/usr/bin/env python3
"""Draws docs/images/gpu.svg and gpu_backward.svg from benchmarks/gpu.json: attention with dropout, ours and PyTorch's
kernels.

    python3 benchmarks/chart.py [--json PATH] [--images FOLDER]
"""

import argparse
import json
import math
import pathlib
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
JSON = ROOT / "benchmarks" / "gpu.json"
IMAGES = ROOT / "docs" / "images"
# Pass, its name, its picture.
PICTURES = (("fwd", "forward", "gpu.svg"), ("bwd", "backward", "gpu_backward.svg"))
SEQLEN, DROPOUT = 8192, 0.1
GROUPS = tuple((head_dim, causal) for head_dim in (256, 128, 64) for causal in (False, True))

WIDTH, HEIGHT = 1140, 420
LEFT, RIGHT, TOP, BOTTOM = 66, 1124, 92, 340
BAR, THIN, GAP = 36, 24, 6

# There is no background: these have at least 4 to 1 against white and against a near-black page.
TEXT = "#78797d"
OURS, CUDNN, FA2 = "#cf4a12", "#4d8033", "#4874c4"

# Column, at this dropout, colour, outline only, legend. The thin bar stands next to ours.
BARS = (
    ("ours_tflops", DROPOUT, OURS, False, f"Signflash, p = {DROPOUT}"),
    ("ours_tflops", 0.0, OURS, True, "Signflash, no dropout"),
    ("cudnn_tflops", DROPOUT, CUDNN, False, "cuDNN, p = 1/8"),
    ("fa2_tflops", DROPOUT, FA2, False, f"FlashAttention-2, p = {DROPOUT}"),
)


def find(rows, head_dim, causal, p):
    """The row of a group, of one pass; short problems and f16 are not drawn. Older results lack dtype and calls."""
    wanted = ("bf16", 1, SEQLEN, head_dim, causal, p)
    for row in rows:
        shape = (row.get("dtype", "bf16"), row.get("calls", 1))
        if (*shape, row["seqlen"], row["head_dim"], row["causal"], row["dropout_p"]) == wanted:
            return row
    return {}


def text(x, y, words, anchor="middle", fill=TEXT, size=13, weight="normal", more=""):
    style = f'text-anchor="{anchor}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}{more}>{escape(words)}</text>'


def rect(x, y, width, height, colour, outlined):
    if outlined:
        # The stroke straddles the edge: drawn inwards, so that the bar is as high as its value.
        x, y, width, height = x + 1, y + 1, width - 2, height - 1
    paint = f'fill="none" stroke="{colour}" stroke-width="2"' if outlined else f'fill="{colour}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {paint}/>'


def tick_step(highest):
    """1, 2 or 5 times a power of ten, eight of them at most."""
    power = 10 ** math.floor(math.log10(highest))
    return next(step for step in (power / 5, power / 2, power, power * 2) if highest / step <= 8)


def axis(highest, step):
    """No lines across: the bars carry their values, and lines would strike through them."""
    parts = [f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="{TEXT}"/>']
    for i in range(math.floor(highest / step) + 1):
        y = BOTTOM - i * step / highest * (BOTTOM - TOP)
        parts.append(f'<path d="M{LEFT - 5} {y:.1f}H{LEFT}" stroke="{TEXT}"/>')
        parts.append(text(LEFT - 9, y + 4.5, f"{i * step:g}", "end"))
    middle = (TOP + BOTTOM) / 2
    turned = f' transform="rotate(-90 18 {middle:.1f})"'
    return [*parts, text(18, middle, "TFLOP/s", more=turned)]


def bar(x, width, value, highest, colour, outlined):
    height = value / highest * (BOTTOM - TOP)
    y = BOTTOM - height
    label = f"{value:.0f}"
    if outlined or height < 24:
        written = text(x + width / 2, y - 5, label, fill=colour, weight="bold")
    else:
        written = text(x + width / 2, y + 17, label, fill="#fff", size=14, weight="bold")
    return [rect(x, y, width, height, colour, outlined), written]


def group(rows, head_dim, causal, left, right, highest):
    widths = [THIN if outlined else BAR for _, _, _, outlined, _ in BARS]
    x = (left + right - sum(widths) - GAP * (len(BARS) - 1)) / 2
    parts = []
    for (column, p, colour, outlined, _), width in zip(BARS, widths):
        value = find(rows, head_dim, causal, p).get(column)
        if value:
            parts += bar(x, width, value, highest, colour, outlined)
        x += width + GAP
    name = f"head_dim {head_dim}, {'causal' if causal else 'not causal'}"
    return [*parts, text((left + right) / 2, BOTTOM + 21, name, size=14)]


def legend():
    """In one line under the title; a letter is taken as 6.9 wide, wide enough for the fonts named."""
    parts, x = [], LEFT
    for _, _, colour, outlined, words in BARS:
        parts += [rect(x, 55, 13, 13, colour, outlined), text(x + 19, 66, words, "start")]
        x += 19 + 6.9 * len(words) + 20
    return parts


def footer(about):
    made_with = f"{about['gpu']}, driver {about['driver']}, PyTorch {about['torch']}"
    words = f"{made_with}. Signflash {about['commit'][:12]}. {about['date']}."
    shape = "Higher is better. 16384 tokens in all, heads × head_dim = 2048."
    lines = ((HEIGHT - 30, shape), (HEIGHT - 13, words))
    return [text(LEFT, y, words, "start", size=12) for y, words in lines]


def draw(about, rows, name):
    """The picture of one pass, as text."""
    values = [find(rows, *shape, p).get(column) or 0 for shape in GROUPS for column, p, *_ in BARS]
    if not any(values):
        raise SystemExit(f"no rows of seqlen {SEQLEN} to draw")
    # Room for a value over the highest bar.
    highest = max(values) * 1.08
    step = tick_step(highest)
    title = f"Attention {name} with dropout, bf16, sequences of {SEQLEN}"
    parts = [text(LEFT, 34, title, "start", size=19, weight="bold"), *legend(), *axis(highest, step)]
    each = (RIGHT - LEFT) / len(GROUPS)
    for i, (head_dim, causal) in enumerate(GROUPS):
        parts += group(rows, head_dim, causal, LEFT + i * each, LEFT + (i + 1) * each, highest)
    parts += footer(about)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    font = 'font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>\n"])


def write(about, rows, images=IMAGES):
    for direction, name, file in PICTURES:
        of_pass = [row for row in rows if row["pass"] == direction]
        (images / file).write_text(draw(about, of_pass, name))


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--json", type=pathlib.Path, default=JSON, help="results")
    parser.add_argument("--images", type=pathlib.Path, default=IMAGES, help="where the pictures go")
    args = parser.parse_args()
    results = json.loads(args.json.read_text())
    write(results["about"], results["rows"], args.images)


if __name__ == "__main__":
    main()
