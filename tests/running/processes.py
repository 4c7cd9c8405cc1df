"""Processes of pytest with the plugin `share` beside this file, and what they wrote down."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: pytest: all passed, a case failed, the time was over, an empty share.
ENDED = (0, 1, 2, 5)
#: An outcome of the plugin.
MEMORY = "out of memory"


def start(file, name, folder, plugins=(), paths=(), options=None, rest=(), environment=None):
    """One process; pytest's own words go to a file, as do outcomes, of this run alone.

    options are those of the plugins by name, None for what is not said; paths are where they are found.
    """
    outcomes = folder / f"{name}.jsonl"
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(file), "--rootdir", str(Path(file).parent), "-q"]
    for plugin in ("no:cacheprovider", "share", *plugins):
        command += ["-p", plugin]
    for key, value in {**(options or {}), "outcomes": outcomes}.items():
        command += [] if value is None else [f"--{key}={value}"]
    path = os.pathsep.join(filter(None, [str(HERE), *map(str, paths), os.environ.get("PYTHONPATH")]))
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        environment = {**os.environ, **(environment or {}), "PYTHONPATH": path}
        return subprocess.Popen([*command, *rest], env=environment, stdout=log, stderr=subprocess.STDOUT)


def read(paths):
    """The rows of all cases by name; and the outcomes by name, the last of each."""
    names, outcomes = {}, {}
    for said in lines(paths):
        names.update(said.get("collected", []))
        if "case" in said:
            outcomes[said["case"]] = said
    return names, outcomes


def lines(paths):
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            yield json.loads(line)


def named(cases, folder, name):
    """A file with these names."""
    path = folder / name
    path.write_text(json.dumps(list(cases)), encoding="utf-8")
    return path
