"""What a run found, as the tables of docs/transformers.md."""

import collections
import datetime
import json
import re
import sys
from pathlib import Path

from configurations import ATTENTION_DROPOUT

PAGE = Path(__file__).parents[3] / "docs" / "transformers.md"
BEGIN, END = "<!-- written by tests/python/coverage_models -->\n", "<!-- to here -->\n"

#: (what a refusal says, how the page calls it)
REASONS = (
    (r"from a table of its own", "keeps a table of attention classes"),
    (r"a part of its attention", "a part of its attention is code of its own"),
    (r"does not support attn_implementation", "attention in code of its own"),
    (r"sinks was given", "a sink for each query"),
    (r"indices was given", "sparse attention (keys chosen for each query)"),
    (r"sliding_window is", "a window that the mask does not have"),
    (r"the last query must be at the last key", "a window of queries before the last key"),
    (r"head_dim", "head_dim above 256"),
    (r"attention_mask must be", "a mask of another shape or type"),
    (r"of the attention mask, which", "reads the attention mask in code of its own"),
    (r"was given, which is not there", "another argument"),
)
TITLES = dict(
    works="trains with `signflash`: every dropout of attention is ours, results are eager's",
    enabled="refused as `signflash`, trains so with PyTorch's attention and `signflash.enable()`",
    refused="refused, and not all of its attention is PyTorch's",
    wrong="**wrong, silently**",
    crash="crash",
    unused="signflash silently not used",
    partly="signflash silently used in a part",
    nothing="no dropout of attention to be seen",
)


def load(path):
    return {row["key"]: row for row in map(json.loads, open(path))}


def reason(row):
    if row["verdict"] != "refused":
        return row.get("why", "")
    found = next((name for pattern, name in REASONS if re.search(pattern, row["why"])), "other")
    only = row.get("only")
    return found + (f" ({only} only)" if only else "")


def has_argument(row):
    """Whether attention dropout is an argument of the configuration itself."""
    own = [name for name in row.get("arguments", {}) if "." not in name]
    return bool(own) and (row.get("eager", 0) > 0 or any(ATTENTION_DROPOUT.search(name) for name in own))


def by_default(row):
    return has_argument(row) and row.get("default", 0) > 0


def verdict_of(row):
    """The verdict, "enabled" for what is refused and trains with ours by another name."""
    works = row["verdict"] == "refused" and row.get("pytorch", {}).get("verdict") == "works"
    return "enabled" if works else row["verdict"]


def totals(rows):
    """Lines of the table of totals."""
    ran = [row for row in rows.values() if row["verdict"] != "not run"]
    columns = [[row for row in ran if by_default(row)], [row for row in ran if has_argument(row)], ran]
    yield "| | attention dropout above 0 by default | attention dropout as an argument | all that were run |"
    yield "|---|---|---|---|"
    yield "| configurations | " + " | ".join(str(len(column)) for column in columns) + " |"
    counts = [collections.Counter(map(verdict_of, column)) for column in columns]
    yield "| **trains with ours** | " + " | ".join(str(count["works"] + count["enabled"]) for count in counts) + " |"
    for verdict, title in TITLES.items():
        yield f"| {title} | " + " | ".join(str(count[verdict]) for count in counts) + " |"
    counts = [collections.Counter(reason(r) for r in column if verdict_of(r) == "refused") for column in columns]
    for name, _ in counts[2].most_common():
        yield f"| &nbsp;&nbsp;refused: {name} | " + " | ".join(str(count[name]) for count in counts) + " |"


def table(rows):
    """Lines of the table of packages."""
    packages = collections.defaultdict(lambda: collections.defaultdict(list))
    for key, row in sorted(rows.items()):
        package, configuration = key.split(":")
        packages[package][verdict_of(row), reason(row)].append(configuration.removesuffix("Config"))
    yield "| package of Transformers | works | works by `enable()` (as `signflash` refused) | refused | else |"
    yield "|---|---|---|---|---|"
    for package, found in packages.items():
        cells = dict(works=[], enabled=[], refused=[], other=[])
        for (verdict, why), names in found.items():
            if verdict == "not run":
                continue
            text = ", ".join(names)
            if verdict != "works":
                text += f": {TITLES[verdict]}" if verdict not in cells else f": {why}"
            cells[verdict if verdict in cells else "other"].append(text)
        if any(cells.values()):
            yield f"| {package} | " + " | ".join("; ".join(cell) for cell in cells.values()) + " |"


def text(rows):
    day = datetime.date.today().isoformat()
    versions = collections.Counter(row["versions"] for row in rows.values() if "versions" in row)
    versions = " and ".join(f"{x} ({n})" if len(versions) > 1 else x for x, n in versions.most_common())
    missing = sorted(key for key, row in rows.items() if row["verdict"] == "not run")
    yield (
        f"{day}, {versions}, CPU, float32: "
        f"{len(rows)} configurations, of which {len(rows) - len(missing)} could be made small and run with eager attention.\n"
    )
    yield from totals(rows)
    yield "\n### Each package\n"
    yield from table(rows)
    yield "\n### Not run\n"
    yield "Could not be made small or run with eager attention by the script: " + ", ".join(missing) + "."


def write(path):
    lines = "\n".join(text(load(path)))
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + lines + "\n\n" + END + rest.split(END)[1])


def summary(path):
    rows = load(path)
    print("\n".join(totals(rows)))
    for key, row in sorted(rows.items()):
        if row["verdict"] in ("wrong", "crash", "unused", "partly"):
            print(f"{row['verdict']:7} {key:45} {row['why'][:150]}", file=sys.stderr)
