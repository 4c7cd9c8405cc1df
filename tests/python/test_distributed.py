"""signflash.distributed on 1 to 8 gloo processes: next to the formulas, and next to one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

if tuple(int(x) for x in torch.__version__.split(".")[:2]) < (2, 2):
    pytest.skip("signflash.distributed needs PyTorch 2.2", allow_module_level=True)
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no torch.distributed with gloo", allow_module_level=True)
if not hasattr(os, "fork"):
    pytest.skip("the processes are forked", allow_module_level=True)

HERE = Path(__file__).resolve().parent
ALL = os.environ.get("SIGNFLASH_TEST") == "all"  # minutes: more than .ci/run has


def launch(ranks, count, family="all", *how, timeout=600):
    """The lines that the processes print."""
    command = [sys.executable, str(HERE / "distributed_run.py"), ranks, str(count), family, *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return lines, done


# One start of PyTorch for several numbers of processes; the rest, and more cases, with SIGNFLASH_TEST=all. "mapped": ranks copy
# from each other's memory, as GPUs of one host do.
@pytest.mark.parametrize(
    "ranks, how", [("1,4", []), ("2,3,8", ["mapped"]), *([("2,3,8", []), ("4,5", ["mapped"])] if ALL else [])]
)
def test_few_ranks(ranks, how):
    count = 60 if ALL else 8
    lines, done = launch(ranks, count, "all", *how)
    failed = [f"{line['ranks']} ranks, {line['name']}: {line['error']}" for line in lines if line["error"]]
    assert not failed, "\n".join(failed[:5])
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(lines) >= count * len(ranks.split(","))


def test_ranks_that_end_or_fall_behind_are_named_by_the_others():
    lines, done = launch("3", 0, "fault")
    assert done.returncode == 0 and [line["error"] for line in lines] == [""], (lines, done.stderr[-4000:])


def test_transformers_layers_of_one_rank_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "AttentionMaskInterface"):
        pytest.skip("this Transformers has no AttentionMaskInterface")
    from signflash import distributed
    from signflash._transformers import attention_forward

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        x = torch.randn(1, 2, 8, 4)
        with distributed.context_parallel(), pytest.raises(NotImplementedError, match='use attn_implementation="sdpa"'):
            attention_forward(torch.nn.Module(), x, x, x, None)
        assert not distributed.context.ENTERED
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not ALL, reason="SIGNFLASH_TEST=all runs it")
@pytest.mark.parametrize("ranks", ["5", "6", "7", "8"])
def test_cases_of_other_numbers_of_ranks(ranks):
    lines, done = launch(ranks, 40)
    failed = [f"{line['name']}: {line['error']}" for line in lines if line["error"]]
    assert not failed, "\n".join(failed[:5])
    assert done.returncode == 0, done.stderr[-4000:]
