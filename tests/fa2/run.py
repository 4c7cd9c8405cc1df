#!/usr/bin/env python3
"""Runs FlashAttention-2's own test file, unchanged, against signflash. Needs pytest and einops, and a GPU.

    python3 run.py flash-attention/tests/test_flash_attn.py [--jobs N] [--seconds S] [--share I/N] [options of pytest]

Its imports find the folder `shim`. Run are the cases of the functions that are there: without ALiBi, softcap, paged
caches and KV caches, which are the most of the file's half a million. N processes share them and the GPU; after S
seconds no case is begun, and what was not run is counted. `--share` takes every N-th case from the I-th on. `--cpu`
runs on the CPU instead, for days; `--longest 512` leaves out the cases that take longest, and a share may be small.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHOWN = 20  # cases that failed, in words
ENDED = (0, 1, 2, 5)  # pytest: all passed, a case failed, the time was over, an empty share
SHIM = Path(__file__).resolve().parent / "shim"


def start(a, rest, job, folder):
    """One process with its share; pytest's own words go to a file, as do outcomes, of this run alone."""
    (folder / f"{job}.jsonl").unlink(missing_ok=True)
    first, step = (int(x) for x in a.share.split("/"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        a.file,
        "--rootdir",
        str(Path(a.file).parent),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-p", "not_there_yet", "-p", "share", "--share", f"{first + step * job}/{step * a.jobs}"]
    if a.cpu:
        command += ["-p", "on_cpu"]
    command += ["--outcomes", str(folder / f"{job}.jsonl")]
    if a.seconds is not None:
        command += ["--until", str(time.time() + a.seconds)]
    path = os.pathsep.join(filter(None, [str(SHIM), os.environ.get("PYTHONPATH")]))
    with open(folder / f"{job}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            command + rest, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT
        )


def read(paths):
    """The rows of all cases by name, and the outcomes by name."""
    names, outcomes = {}, {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            said = json.loads(line)
            names.update(said.get("collected", []))
            if "case" in said:
                outcomes[said["case"]] = said
    return names, outcomes


def report(names, outcomes):
    rows = collections.defaultdict(collections.Counter)
    for name, row in names.items():
        came = outcomes[name]["outcome"] if name in outcomes else "not run"
        for key in (tuple(row), ("all", "", "")):
            rows[key][came] += 1
    columns = ("passed", "failed", "skipped", "not run")
    print("| test | window | dropout_p | cases | " + " | ".join(columns) + " |\n|---|---|---|" + "---:|" * (1 + len(columns)))
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
    a, rest = parser.parse_known_args()
    a.file = str(Path(a.file).resolve(strict=True))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(a.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.time()
        codes = [process.wait() for process in [start(a, rest, job, folder) for job in range(a.jobs)]]
        names, outcomes = read([folder / f"{job}.jsonl" for job in range(a.jobs)])
        report(names, outcomes)
        for job, code in enumerate(codes):
            if code not in ENDED or not names:
                print(f"process {job} ended with {code}:\n" + (folder / f"{job}.log").read_text()[-2000:])
        print(f"{len(outcomes)} of {len(names)} cases in {time.time() - began:.0f} s, {a.jobs} processes")
    failed = any(said["outcome"] == "failed" for said in outcomes.values())
    return 1 if failed or not outcomes or any(code not in ENDED for code in codes) else 0


if __name__ == "__main__":
    sys.exit(main())
