#!/usr/bin/env python3
"""Runs PyTorch's own tests of its attention twice, as it is and with `signflash.enable()`, and says what only fails then.

    python3 run.py pytorch/test/test_transformers.py [--device cpu] [--jobs N] [--seconds S] [--share I/N] [options of pytest]

The file is that of the installed PyTorch's source (the tag of its version), unchanged; what it imports comes with PyTorch. Needs
pytest and expecttest. First all cases run without us, for the first half of the seconds; then those that passed run with us. What
failed then is run once more both ways, so that a case that fails by chance is not counted: `failed` are those that passed twice
without us and failed twice with us. A case that takes the process down, or longer than `--case-seconds`, has failed.

`--keep FOLDER` keeps outcomes and pytest's words. `--share` takes every N-th case from the I-th on.
"""

import argparse
import collections
import concurrent.futures
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "running"))
from processes import ENDED, lines, named, read, start  # noqa: E402

SHIM = Path(__file__).resolve().parent / "shim"
SIDES = {"plain": (), "enabled": ("enabled",)}
BAD = ("failed", "crashed", "too long", "out of memory")
POLL_SECONDS = 0.5


class Side:
    """The cases of the file with or without us: outcomes by name, and how processes ended that should not have."""

    def __init__(self, a, rest, folder, name):
        self.a, self.rest, self.folder, self.name = a, rest, folder, name
        self.names, self.outcomes, self.odd, self.ours = {}, {}, [], 0

    def run(self, label, until=None, only=None):
        """All shares at once; outcomes of cases that are run again take the place of the earlier ones."""
        folder = self.folder / f"{self.name}-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        first, step = (int(x) for x in self.a.share.split("/"))
        if only is not None:
            only = named(only, folder, "only.json")
            first, step = 0, 1  # they are of our share
        shares = [f"{first + step * job}/{step * self.a.jobs}" for job in range(self.a.jobs)]
        with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
            paths = pool.map(lambda job: self._share(folder, job, shares[job], until, only), range(len(shares)))
            paths = [path for found in paths for path in found]
        names, outcomes = read(paths)
        self.ours += sum(said.get("ours", 0) for said in lines(paths))
        self.names.update(names)
        self.outcomes.update(outcomes)
        return outcomes

    def _share(self, folder, job, share, until, only):
        """A share in as many processes as it takes: where one goes down, the next goes on behind it."""
        paths = []
        while True:
            name = f"{job}-{len(paths)}"
            done = named(read(paths)[1], folder, f"{name}.done.json")
            options = dict(share=share, until=until, only=only, done=done)
            environment = {} if self.a.device is None else {"PYTORCH_TESTING_DEVICE_ONLY_FOR": self.a.device}
            process = start(self.a.file, name, folder, SIDES[self.name], [SHIM], options, self.rest, environment)
            paths.append(folder / f"{name}.jsonl")
            too_long = self._wait(process, paths[-1])
            if not too_long and process.returncode in ENDED:
                return paths
            ended = "too long" if too_long else f"ended with {process.returncode}"
            case = last_begun(paths[-1])
            if case is None:
                self.odd.append(f"{self.name} {name} {ended}:\n{(folder / f'{name}.log').read_text()[-2000:]}")
                return paths
            outcome = "too long" if too_long else "crashed"
            named_so = folder / f"{name}.ended.jsonl"
            named_so.write_text(json.dumps(dict(case=case, outcome=outcome, text=ended)) + "\n", encoding="utf-8")
            paths.append(named_so)

    def _wait(self, process, path):
        """Whether a case took too long, for which the process was ended."""
        while True:
            try:
                process.wait(POLL_SECONDS)
                return False
            except subprocess.TimeoutExpired:
                if path.exists() and last_begun(path) and time.time() - path.stat().st_mtime > self.a.case_seconds:
                    process.kill()
                    process.wait()
                    return True


def last_begun(path):
    """The case that was begun and has no outcome."""
    begun = None
    for said in lines([path]):
        begun = said.get("begun", begun)
        if said.get("case") == begun:
            begun = None
    return begun


def passed(outcomes):
    return [case for case, said in outcomes.items() if said["outcome"] == "passed"]


def bad(outcomes):
    return [case for case, said in outcomes.items() if said["outcome"] in BAD]


def kind(case):
    """Of a table's row: the class and the test's name without its parameters, as far as they can be told."""
    return case.partition("::")[0] or case


def report(plain, enabled, failed, by_chance):
    rows = collections.defaultdict(collections.Counter)
    for case in plain.names:
        without = plain.outcomes.get(case, {}).get("outcome", "not run")
        counts = {"cases": 1, f"without us: {without}": 1}
        if without == "passed":
            came = enabled.outcomes.get(case, {}).get("outcome", "not run")
            came = "failed" if case in failed else "by chance" if case in by_chance else came
            counts[f"with us: {came}"] = 1
        for key in (kind(case), "all"):
            rows[key].update(counts)
    columns = ["cases", *(f"without us: {x}" for x in ("passed", "failed", "skipped", "not run"))]
    columns += [f"with us: {x}" for x in ("passed", "failed", "by chance", "not run")]
    columns += sorted({column for row in rows.values() for column in row} - set(columns))
    print("| class | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, counts in sorted(rows.items(), key=lambda row: (row[0] == "all", row[0])):
        print(f"| {name} | " + " | ".join(str(counts[c]) for c in columns) + " |")
    for case in failed:
        print(f"failed with us only: {case}: {' '.join(enabled.outcomes[case]['text'].split())}")
    for case in by_chance:
        print(f"failed with us at first, and not twice the same: {case}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--device", help="cpu or cuda: only its cases")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="half of them for each side; what is run again comes on top")
    parser.add_argument("--case-seconds", type=float, default=300.0)
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--keep", help="a folder for each process's log and outcomes")
    a, rest = parser.parse_known_args()
    a.file = str(Path(a.file).resolve(strict=True))
    began = time.time()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(a.keep or temporary)
        plain, enabled = (Side(a, rest, folder, name) for name in SIDES)
        half = None if a.seconds is None else a.seconds / 2
        plain.run("first", half and began + half)
        enabled.run("first", half and time.time() + half, passed(plain.outcomes))
        suspects = bad(enabled.outcomes)
        failed = []
        if suspects:
            pass_again = set(passed(plain.run("again", only=suspects)))
            fail_again = set(bad(enabled.run("again", only=suspects)))
            failed = [case for case in suspects if case in pass_again & fail_again]
        report(plain, enabled, failed, [case for case in suspects if case not in failed])
        print("\n".join(plain.odd + enabled.odd))
        count = len(passed(plain.outcomes))
        print(f"{count} of {len(plain.names)} cases passed without us, {len(failed)} of them fail with us")
        print(f"{enabled.ours} calls with us were ours; {time.time() - began:.0f} s")
    return 1 if failed or not enabled.outcomes or plain.odd or enabled.odd else 0


if __name__ == "__main__":
    sys.exit(main())
