#!/usr/bin/env python3
"""Runs FlashAttention-2's own test file, unchanged, against signflash. Needs pytest and einops, and a GPU.

    python3 run.py flash-attention/tests/test_flash_attn.py [--jobs N] [--seconds S] [--share I/N] [options of pytest]

Its imports find the folder `shim`. Run are all cases but those of caches of keys and values, paged or not, which are the
most of the file's half a million. N processes share them and the GPU; after S seconds no case is begun, and what was
not run is counted. `--share` takes every N-th case from the I-th on. `--cpu` runs on the CPU instead, for days;
`--longest 512` leaves out the cases that take longest, and a share may be small.

A process takes no more than its part of the GPU's memory. A case that needs more is run again, alone, once the others
are through. `--keep FOLDER` keeps outcomes, and `--after FILES` takes those of earlier runs: a run goes on where they end,
and counts all of them.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "running"))
import processes  # noqa: E402
from processes import ENDED, MEMORY, named, read  # noqa: E402

SHOWN = 20  # cases that failed, in words
SHIM = Path(__file__).resolve().parent / "shim"
#: Of the seconds given, those after which processes begin no case: the rest is for what is run again.
FIRST = 0.9


def start(a, rest, name, folder, **options):
    plugins = ["cases", "on_cpu"] if a.cpu else ["cases"]
    return processes.start(a.file, name, folder, plugins, [SHIM], options, rest)


def those(outcomes, folder, name, wanted):
    """A file with the names of the cases that came out so."""
    return named((case for case, said in outcomes.items() if wanted(said["outcome"])), folder, name)


def run(a, rest, folder):
    """(names, outcomes, {process: its exit code}) of this run and of those that it goes on from."""
    began = time.time()
    until = [None, None] if a.seconds is None else [began + a.seconds * FIRST, began + a.seconds]
    _, earlier = read(a.after)
    done = those(earlier, folder, "done.json", lambda outcome: outcome != MEMORY)
    first, step = (int(x) for x in a.share.split("/"))
    started = {}
    for job in range(a.jobs):
        share = f"{first + step * job}/{step * a.jobs}"
        memory = 0.95 / a.jobs if a.jobs > 1 and not a.cpu else None
        options = dict(share=share, until=until[0], done=done, memory=memory)
        started[str(job)] = start(a, rest, str(job), folder, **options)
    codes = {name: process.wait() for name, process in started.items()}
    paths = [folder / f"{name}.jsonl" for name in codes]
    # Cases of earlier runs that ended for lack of memory have come again among these.
    again = those(read(paths)[1], folder, "again.json", lambda outcome: outcome == MEMORY)
    if json.loads(again.read_text()):
        codes["alone"] = start(a, rest, "alone", folder, only=again, until=until[1]).wait()
        paths.append(folder / "alone.jsonl")
    names, outcomes = read([*a.after, *paths])
    return names, outcomes, codes


def report(names, outcomes):
    rows = collections.defaultdict(collections.Counter)
    for name, row in names.items():
        came = outcomes[name]["outcome"] if name in outcomes else "not run"
        for key in (tuple(row), ("all",) + ("",) * (len(row) - 1)):
            rows[key][came] += 1
    columns = ("passed", "failed", "skipped", MEMORY, "not run")
    print("| test | window | ALiBi | softcap | dropout_p | cases | " + " | ".join(columns) + " |")
    print("|---|---|---|---|---|" + "---:|" * (1 + len(columns)))
    for row, counts in sorted(rows.items(), key=lambda x: (x[0][0] == "all", x[0])):
        print(f"| {' | '.join(row)} | {sum(counts.values())} | " + " | ".join(str(counts[c]) for c in columns) + " |")
    failed = [said for said in outcomes.values() if said["outcome"] == "failed"]
    for said in failed[:SHOWN]:
        print(f"failed: {said['case']}: {' '.join(said['text'].split())}")
    if len(failed) > SHOWN:
        print(f"and {len(failed) - SHOWN} more failed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--keep", help="a folder for each process's log and outcomes")
    parser.add_argument("--after", type=Path, nargs="+", default=[], help="outcomes (*.jsonl) of earlier runs")
    a, rest = parser.parse_known_args()
    a.file = str(Path(a.file).resolve(strict=True))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(a.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.time()
        names, outcomes, codes = run(a, rest, folder)
        report(names, outcomes)
        for name, code in codes.items():
            if code not in ENDED or not names:
                print(f"process {name} ended with {code}:\n" + (folder / f"{name}.log").read_text()[-2000:])
        print(f"{len(outcomes)} of {len(names)} cases, this run {time.time() - began:.0f} s, {a.jobs} processes")
    bad = any(said["outcome"] in ("failed", MEMORY) for said in outcomes.values())
    return 1 if bad or not outcomes or any(code not in ENDED for code in codes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
