"""The examples run."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"


@pytest.mark.parametrize("name", ["text.py", "bert.py", "scores.py"])
def test_examples_run(name, tmp_path, device):
    if name == "bert.py":
        transformers = pytest.importorskip("transformers")
        if not hasattr(transformers, "AttentionMaskInterface"):
            pytest.skip("this Transformers has no AttentionMaskInterface")
    picture = tmp_path / "curves.svg"
    size = ["--size", "small"] if name == "bert.py" else []
    command = [sys.executable, str(EXAMPLES / name), "--quick", "--device", device, "--plot", str(picture), *size]
    subprocess.run(command, check=True, timeout=300)
    assert picture.read_text().startswith("<svg")
