"""Forks, and the end of a process: calls go on, end, or say why not."""

import os
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")

import signflash

START = "import os, sys, threading, numpy as np, signflash\nq = np.ones((1, 512, 8, 64), 'f4')\n"


def run(code, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "-c", START + code], timeout=timeout, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_child_computes_though_only_info_was_called_before():
    code = (
        "signflash.info()\n"
        "def child(depth):\n"
        "    if os.fork() == 0:\n"
        "        signflash.attention(q, q, q)\n"
        "        if depth: child(depth - 1)\n"
        "        os._exit(0)\n"
        "    sys.exit(os.wait()[1])\n"
        "child(2)\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_forked_processes_draw_dropout_masks_of_their_own():
    code = (
        "signflash.manual_seed(3)\n"
        "x = q[:, :8, :1, :8]\n"
        "def draw(): return signflash.attention(x, x, x, dropout_p=.5, return_rng_state=True)[1]\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.write(1, (str(draw()) + '\\n').encode()); os._exit(0)\n"
        "    os.wait()\n"
        "os.write(1, (str(draw()) + '\\n').encode())\n"
    )
    first, second = run(code).stdout, run(code).stdout
    assert len(set(first.splitlines())) == 4 and first == second


def test_far_more_threads_than_cores_are_not_made_and_said():
    done = run("print(signflash.info()['threads'])\n", RAYON_NUM_THREADS="100000")
    assert int(done.stdout) <= 4 * os.cpu_count() and "RAYON_NUM_THREADS is 100000" in done.stderr


def test_a_slow_logger_of_one_thread_stops_no_other():
    code = (
        "import logging, time\n"
        "said = threading.Event()\n"
        "class Slow(logging.Handler):\n"
        "    def emit(self, record): said.set(); time.sleep(.5)\n"
        "logging.getLogger('signflash').addHandler(Slow())\n"
        "threading.Thread(target=signflash.attention, args=(q, q, q)).start()\n"
        "assert said.wait(60)\n"
        "signflash.info()\n"
    )
    done = run(code, RAYON_NUM_THREADS="100000")
    assert done.returncode == 0, done.stderr


def test_daemon_threads_do_not_abort_the_end():
    code = (
        "import time\n"
        "def work():\n"
        "    while True: signflash.attention(q, q, q)\n"
        "for _ in range(2): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(.3)\n"
    )
    for _ in range(3):
        done = run(code)
        assert done.returncode == 0, (done.returncode, done.stderr)


def test_arrays_without_elements_are_computed():
    q = np.ones((2, 6, 4, 8), "float32")
    for empty in (q[:0], q[:, :0]):
        assert signflash.attention(empty, empty, empty, dropout_p=0.3).shape == empty.shape
        lse = np.zeros((empty.shape[0], 4, empty.shape[1]), "float32")
        gradients = signflash.attention_backward(empty, empty, empty, empty, empty, lse)
        assert all(x.shape == empty.shape for x in gradients)


def test_arrays_that_would_lose_something_are_refused():
    q = np.ones((2, 6, 4, 8), "float32")
    with pytest.raises(TypeError, match="got a MaskedArray"):
        signflash.attention(q, np.ma.masked_array(q, q > 0), q)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="k must be an array as q is, got a torch.Tensor"):
        signflash.attention(q, torch.from_numpy(q), q)
