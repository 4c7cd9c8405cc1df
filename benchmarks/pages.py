"""Where benchmarks write what they have measured, besides pages of their own."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def fill_readme(name, text):
    """Between README's two comments of this name."""
    path = ROOT / "README.md"
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, mark, rest = path.read_text().partition(begin)
    _, end_mark, after = rest.partition(end)
    if not (mark and end_mark):
        sys.exit(f"{path} has no {begin} .. {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
