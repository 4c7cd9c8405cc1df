"""A pytest plugin: the cases of what is there, one share of them, until a given time, and what came of each.

Cases are ordered by the hash of their names, so that every share, and whatever a share gets done in its time, is drawn
evenly from all. A case that ends for lack of memory is counted apart, and leaves none of its own behind.
"""

import gc
import hashlib
import json
import sys
import time
from pathlib import Path

import pytest

#: Tests whose names say that they are of caches of keys and values, which are for inference; and one of the raw functions
#: of FlashAttention-2's extension, which nobody else has.
LEFT_OUT = ("kvcache", "paged_kv", "generator_arg")
#: Caches are a parameter of others.
PARAMETERS = {"paged_kv_block_size": [None]}
#: Of an item, whether it ended for lack of memory.
OUT_OF_MEMORY = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--share", default="0/1", help="I/N: every N-th case from the I-th on")
    parser.addoption("--until", type=float, help="a time of time.time(), after which no case is begun")
    parser.addoption("--longest", type=int, help="no case with a parameter above it: sequences, on a slow machine")
    parser.addoption("--outcomes", help="a file that gets a line of JSON for each case")
    parser.addoption("--done", help="a file with a list of the names of cases that are counted and not run")
    parser.addoption("--only", help="a file with a list of the names of the only cases")
    parser.addoption("--memory", type=float, help="the part of the GPU's memory that this process may take")


def pytest_configure(config):
    if config.getoption("--memory") is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(config.getoption("--memory"))


def pytest_pycollect_makeitem(collector, name, obj):
    """The others are not even made: they have hundreds of thousands of cases."""
    return [] if name.startswith("test_") and any(x in name for x in LEFT_OUT) else None


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    parametrize = metafunc.parametrize

    def of_what_is_there(names, values, *args, **kwargs):
        return parametrize(names, PARAMETERS.get(names, values), *args, **kwargs)

    metafunc.parametrize = of_what_is_there


def _parameters(item):
    """Of a case; a test without any has none."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def _largest(item):
    return max((x for x in _parameters(item).values() if isinstance(x, int)), default=0)


def _order(item):
    return hashlib.sha256(item.name.encode()).digest()


def pytest_collection_modifyitems(config, items):
    first, step = (int(x) for x in config.getoption("--share").split("/"))
    longest = config.getoption("--longest")
    if longest is not None:
        items[:] = [item for item in items if _largest(item) <= longest]
    only = _names(config, "--only")
    if only is not None:
        items[:] = [item for item in items if item.name in only]
    items[:] = sorted(items, key=_order)[first::step]
    _say(config, collected=[[item.name, _row(item)] for item in items])
    done = _names(config, "--done") or ()
    items[:] = [item for item in items if item.name not in done]


def _names(config, option):
    path = config.getoption(option)
    return None if path is None else set(json.loads(Path(path).read_text(encoding="utf-8")))


def _row(item):
    """What a table says of a case: the test, whether its window is local, whether it has ALiBi, softcap and dropout_p."""
    parameters = _parameters(item)
    window, alibi = ({True: "yes", False: "no"}.get(parameters.get(name), "") for name in ("local", "alibi"))
    return [item.originalname, window, alibi, *(str(parameters.get(name, "")) for name in ("softcap", "dropout_p"))]


def _say(config, **what):
    path = config.getoption("--outcomes")
    if path is not None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")


@pytest.hookimpl(hookwrapper=True)  # the form that pytest 7 knows, too
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" or not report.passed and not report.when == "teardown":
        text = "" if report.passed else str(call.excinfo.value)[:300]
        outcome = "out of memory" if report.failed and "out of memory" in text else report.outcome
        _say(item.config, case=item.name, outcome=outcome, seconds=round(report.duration, 3), text=text)
        item.stash[OUT_OF_MEMORY] = outcome != report.outcome


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """The next case gets the memory that a traceback holds."""
    torch = sys.modules.get("torch")
    if item.stash.get(OUT_OF_MEMORY, False) and torch is not None and torch.cuda.is_available():
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            sys.__dict__.pop(name, None)
        gc.collect()
        torch.cuda.empty_cache()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        item.session.shouldstop = "the time is over"
        return True  # it is not run
    return None
