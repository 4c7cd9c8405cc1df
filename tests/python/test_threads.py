"""Whose threads compute beside PyTorch, how many, and that results do not depend on it."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

START = """
import os, sys, torch, signflash
def threads(): return len(os.listdir("/proc/self/task"))
q = torch.randn(4, 256, 8, 64, generator=torch.Generator().manual_seed(1))
def call(): return signflash.attention(q, q, q, dropout_p=0.1, seed=3)
"""


def run(code, timeout=120, **environment):
    done = subprocess.run(
        [sys.executable, "-c", START + code], timeout=timeout, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def has_openmp():
    return sys.platform == "linux" and "backend: OpenMP" in torch.__config__.parallel_info()


@pytest.mark.skipif(not has_openmp(), reason="PyTorch computes without OpenMP here")
def test_pytorch_s_threads_compute_and_none_are_started_beside_them():
    code = "torch.set_num_threads(3); q + 1; before = threads(); call(); print(threads() - before)"
    assert run(code, RAYON_NUM_THREADS="3") == ["0"]


def test_more_threads_than_the_process_may_use_are_not_used():
    # 8 of PyTorch's, of which one computes: the sum of their times cannot tell, the bits and the end can.
    code = (
        "os.sched_setaffinity(0, {0}) if hasattr(os, 'sched_setaffinity') else None\n"
        "torch.set_num_threads(8); call(); print(signflash.info()['threads'])"
    )
    if hasattr(os, "sched_setaffinity"):
        assert run(code, RAYON_NUM_THREADS="") == ["1"]


def test_any_number_of_threads_gives_the_same_bits():
    code = (
        "import hashlib\n"
        "for n in (1, 2, 3, 8):\n"
        "    torch.set_num_threads(n)\n"
        "    x = q.clone().requires_grad_(); out = signflash.attention(x, x, x, dropout_p=0.1, seed=3)\n"
        "    (dx,) = torch.autograd.grad(out, x, q)\n"
        "    print(hashlib.sha256(out.detach().numpy().tobytes() + dx.numpy().tobytes()).hexdigest())\n"
    )
    bits = run(code, RAYON_NUM_THREADS="8")
    assert len(bits) == 4 and len(set(bits)) == 1


def test_a_forked_child_of_a_process_whose_threads_computed_computes():
    # Nothing else of PyTorch's: its own operators would wait for threads that stayed behind.
    code = (
        "torch.set_num_threads(2); parent = call().numpy().tobytes()\n"
        "if os.fork() == 0:\n"
        "    os._exit(0 if call().numpy().tobytes() == parent else 1)\n"
        "sys.exit(os.wait()[1])\n"
    )
    run(code, RAYON_NUM_THREADS="2")


def test_a_call_inside_of_another_thread_computes():
    code = (
        "import threading\n"
        "torch.set_num_threads(2); expected = call(); got = []\n"
        "calls = [threading.Thread(target=lambda: got.append(call())) for _ in range(4)]\n"
        "[t.start() for t in calls]; [t.join() for t in calls]\n"
        "print(len(got), all(torch.equal(x, expected) for x in got))\n"
    )
    assert run(code, RAYON_NUM_THREADS="2") == ["4", "True"]


def test_an_instruction_set_can_be_asked_for_and_a_wrong_name_is_said():
    code = "i = signflash.info(); print(i['instruction_set'], i['instruction_set_because'].split()[0]); call()"
    assert run(code, SIGNFLASH_ISA="portable") == ["portable", "SIGNFLASH_ISA"]
    said = subprocess.run(
        [sys.executable, "-c", START + "call()"], capture_output=True, text=True,
        env={**os.environ, "SIGNFLASH_ISA": "sse9"},
    )  # fmt: skip
    assert "ValueError: SIGNFLASH_ISA: isa must be one of portable, " in said.stderr
