"""tests/fa2/run.py goes on where an earlier run ended, and runs alone what lacked memory beside others."""

import json
import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).resolve().parents[1] / "fa2" / "run.py"

CASES = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", range(4))
def test_flash_attn_output(case, dropout_p):
    begun = Path(__file__).with_name(f"{case}-{dropout_p}")
    again = begun.exists()
    begun.touch()
    if case == 1:
        assert again, "CUDA out of memory. Tried to allocate 4 GiB"
    if case == 2 and dropout_p:
        raise ValueError("wrong")
    assert case != 3 or not again
"""


def run(folder, *options):
    """(exit code, words, the folder kept, outcomes of this run in the order of its processes)"""
    keep = folder / str(len(list(folder.iterdir())))
    command = [sys.executable, str(RUNNER), str(folder / "test_cases.py"), "--keep", str(keep), *options]
    came = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = [json.loads(line) for path in sorted(keep.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return came.returncode, came.stdout + came.stderr, keep, [x for x in said if "case" in x]


def counts(words):
    """Of all cases: how many, passed, failed, skipped, out of memory, not run."""
    line = next(line for line in words.splitlines() if line.startswith("| all "))
    return [cell.strip() for cell in line.strip("|").split("|")][-6:]


def test_the_runner_of_flash_attentions_file_goes_on_and_runs_alone_what_lacked_memory(tmp_path):
    (tmp_path / "test_cases.py").write_text(CASES)
    # No time: nothing is run, and all of it is counted.
    code, words, none, said = run(tmp_path, "--seconds", "0")
    assert code == 1 and not said and "0 of 8 cases" in words, words
    code, words, keep, said = run(tmp_path)
    assert code == 1 and "8 of 8 cases" in words and "failed: test_flash_attn_output[2-0.1]: wrong" in words, words
    lacked = [x["case"] for x in said if x["outcome"] == "out of memory"]
    assert sorted(lacked) == ["test_flash_attn_output[1-0.0]", "test_flash_attn_output[1-0.1]"]
    assert counts(words) == ["8", "7", "1", "0", "0", "0"], words
    # What has an outcome is not run: a second time cases of 3 would fail.
    code, words, _, said = run(tmp_path, "--after", str(keep / "0.jsonl"))
    assert code == 1 and sorted(x["case"] for x in said) == sorted(lacked)
    assert counts(words) == ["8", "7", "1", "0", "0", "0"], words
