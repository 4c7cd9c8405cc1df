#!/usr/bin/env python3
"""Runs FlashAttention-2's own test file, unchanged, against signflash. Needs a GPU, pytest and einops.

    python3 run.py path/to/flash-attention/tests/test_flash_attn.py [options of pytest]

Its imports find the folder `shim`. Tests of what is not there yet (sliding windows, ALiBi, softcap, packed sequences, KV
caches) are skipped and counted as such. The whole file has half a million cases; with dropout and without, of what is there:

    python3 run.py FILE -k "(qkvpacked or output or race_condition or overflow or transpose or deterministic) and not varlen"
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def main() -> int:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        print(__doc__)
        return 2
    shim = str(HERE / "shim")
    sys.path.insert(0, shim)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [shim, os.environ.get("PYTHONPATH")]))
    file = str(Path(sys.argv[1]).resolve())
    return pytest.main(
        [file, "-p", "not_there_yet", "-p", "no:cacheprovider", "--rootdir", str(Path(file).parent), *sys.argv[2:]]
    )


if __name__ == "__main__":
    sys.exit(main())
