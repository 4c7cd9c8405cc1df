"""The forward of two builds of the command on one GPU, taking turns: does a change cost what it should not?

    python3 benchmarks/before_after.py OLD/signflash NEW/signflash [--rounds 4]

Prints a table with the median of each build's own medians (`signflash bench` times 20 calls a row) and their ratio.
The order changes from round to round. Differences of 2 % come and go from one run to the next.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess

SHAPES = [
    ["--head-dim", "64,128", "--seqlen", "2048,8192", "--causal", "true,false"],
    ["--head-dim", "40,256", "--seqlen", "2048", "--causal", "false"],
]
COMMON = ["--device", "cuda", "--dtype", "bf16", "--batch", "2", "--heads", "16", "--dropout-p", "0,0.1", "--pass", "fwd"]
KEY = ("head_dim", "seqlen", "causal", "dropout_p")


def rows_of(command: str) -> list[dict]:
    """One run of all shapes."""
    rows = []
    for shape in SHAPES:
        run = [command, "bench", "--json", "--quiet", *COMMON, *shape]
        lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
        rows += [json.loads(line) for line in lines]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    times: dict = {}
    for number in range(arguments.rounds):
        commands = [(0, arguments.old), (1, arguments.new)]
        for which, command in commands if number % 2 == 0 else commands[::-1]:
            for row in rows_of(command):
                times.setdefault(tuple(row[name] for name in KEY), ([], []))[which].append(row["ms"])
    print("| head_dim | seqlen | causal | p | old ms | new ms | old / new |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: |")
    for (head_dim, seqlen, causal, p), both in sorted(times.items()):
        old, new = map(statistics.median, both)
        print(f"| {head_dim} | {seqlen} | {'yes' if causal else 'no'} | {p:g} | {old:.4f} | {new:.4f} | {old / new:.3f} |")


if __name__ == "__main__":
    main()
