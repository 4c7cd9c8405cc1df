"""tests/pytorch_sdpa/run.py finds what fails with enable() alone, and goes on behind what takes its process down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[1] / "pytorch_sdpa" / "run.py"

CASES = """
import os, time, unittest
from pathlib import Path

def enabled():
    import sys
    return "signflash" in sys.modules

class TestCPU(unittest.TestCase):
    def test_that_passes(self):
        if enabled():
            from signflash._sdpa import notes
            notes.listeners[0].note(None, None, None)
            notes.listeners[0].note(None, "a reason", None)

    def test_that_fails(self):
        raise ValueError("anyway")

    def test_that_fails_with_us(self):
        assert not enabled(), "it is on"

    def test_that_fails_once(self):
        begun = Path(__file__).with_name("begun")
        if enabled() and not begun.exists():
            begun.touch()
            raise ValueError("by chance")

    def test_that_goes_down(self):
        if enabled():
            os._exit(103)

    def test_that_hangs(self):
        if enabled():
            time.sleep(600)
"""

#: In place of the package: what the plugin imports and calls.
PACKAGE = {
    "__init__.py": "def enable(pytorch, transformers): return ('pytorch',)",
    "_sdpa/__init__.py": "",
    "_sdpa/notes.py": "listeners = []",
}


@pytest.mark.skipif(sys.platform == "win32", reason="processes that go down end otherwise there")
def test_the_runner_of_pytorchs_file_names_what_fails_with_us_alone(tmp_path):
    file = tmp_path / "test_cases.py"
    file.write_text(CASES)
    for name, text in PACKAGE.items():
        path = tmp_path / "signflash" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    command = [sys.executable, str(RUNNER), str(file), "--case-seconds", "4", "--keep", str(tmp_path / "kept")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    came = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    words = came.stdout + came.stderr
    assert came.returncode == 1, words
    failed = [line.split(": ")[1] for line in words.splitlines() if line.startswith("failed with us only")]
    assert sorted(failed) == [f"TestCPU::test_that_{what}" for what in ("fails_with_us", "goes_down", "hangs")], words
    assert "not twice the same: TestCPU::test_that_fails_once" in words
    assert "1 calls with us were ours" in words
    assert "5 of 6 cases passed without us, 3 of them fail with us" in words
    said = [json.loads(line) for path in (tmp_path / "kept").rglob("*.jsonl") for line in path.read_text().splitlines()]
    ran = [x["begun"] for x in said if "begun" in x]
    assert ran.count("TestCPU::test_that_passes") == 2 and ran.count("TestCPU::test_that_fails") == 1
