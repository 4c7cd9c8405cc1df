"""Draws curves as SVG, with nothing but Python."""

from pathlib import Path

COLORS = ("#1b6ca8", "#8cc4e8", "#c0392b", "#f0a08c", "#2e7d32", "#9ccc9c")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 60, 20, 20, 50


def draw(path, curves, x_name, y_name):
    """curves: name -> [(x, y), ...]."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(max(xs), min(xs) + 1), min(ys), max(max(ys), min(ys) + 1e-9)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x, y):
        return LEFT + (x - x0) / (x1 - x0) * width, TOP + (y1 - y) / (y1 - y0) * height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
    ]
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for tick in range(6):
        y = y0 + (y1 - y0) * tick / 5
        _, top = at(x0, y)
        parts.append(f'<line x1="{LEFT}" y1="{top:.1f}" x2="{WIDTH - RIGHT}" y2="{top:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{top + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        x = x0 + (x1 - x0) * tick / 5
        left, _ = at(x, y0)
        parts.append(f'<text x="{left:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:.4g}</text>')
    parts.append(f'<text x="{LEFT + width / 2}" y="{HEIGHT - 10}" text-anchor="middle">{x_name}</text>')
    parts.append(
        f'<text x="14" y="{TOP + height / 2}" transform="rotate(-90 14 {TOP + height / 2})" text-anchor="middle">{y_name}</text>'
    )
    for index, (name, points) in enumerate(curves.items()):
        color = COLORS[index % len(COLORS)]
        line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        top = TOP + 16 + 16 * index
        parts.append(
            f'<line x1="{WIDTH - 210}" y1="{top - 4}" x2="{WIDTH - 190}" y2="{top - 4}" stroke="{color}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{WIDTH - 184}" y="{top}">{name}</text>')
    parts.append("</svg>\n")
    Path(path).write_text("\n".join(parts), encoding="utf-8")
