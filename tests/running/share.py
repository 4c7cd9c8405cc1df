"""A pytest plugin: one share of the cases of a file, until a given time, and what came of each.

Cases are ordered by the hash of their names, so that every share, and whatever a share gets done in its time, is drawn
evenly from all. A case that ends for lack of memory is counted apart, and leaves none of its own behind. Another plugin may
give an item the columns that a table has of it: `item.stash[ROW]`.
"""

import gc
import hashlib
import json
import sys
import time
from pathlib import Path

import pytest

#: Of an item, what a table says of it.
ROW = pytest.StashKey()
#: Of an item, whether it ended for lack of memory.
OUT_OF_MEMORY = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--share", default="0/1", help="I/N: every N-th case from the I-th on")
    parser.addoption("--until", type=float, help="a time of time.time(), after which no case is begun")
    parser.addoption("--outcomes", help="a file that gets a line of JSON for each case")
    parser.addoption("--done", help="a file with a list of the names of cases that are counted and not run")
    parser.addoption("--only", help="a file with a list of the names of the only cases")
    parser.addoption("--memory", type=float, help="the part of the GPU's memory that this process may take")


def pytest_configure(config):
    if config.getoption("--memory") is not None:
        import torch

        torch.cuda.set_per_process_memory_fraction(config.getoption("--memory"))


def name_of(item):
    """A case's name within its file: its class, if it has one, and its parameters are part of it."""
    return item.nodeid.partition("::")[2]


def _order(item):
    return hashlib.sha256(name_of(item).encode()).digest()


@pytest.hookimpl(trylast=True)  # who leaves out cases has done so
def pytest_collection_modifyitems(config, items):
    first, step = (int(x) for x in config.getoption("--share").split("/"))
    only = _names(config, "--only")
    if only is not None:
        items[:] = [item for item in items if name_of(item) in only]
    items[:] = sorted(items, key=_order)[first::step]
    _say(config, collected=[[name_of(item), item.stash.get(ROW, [])] for item in items])
    done = _names(config, "--done") or ()
    items[:] = [item for item in items if name_of(item) not in done]


def _names(config, option):
    path = config.getoption(option)
    return None if path is None else set(json.loads(Path(path).read_text(encoding="utf-8")))


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
        _say(item.config, case=name_of(item), outcome=outcome, seconds=round(report.duration, 3), text=text)
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
    _say(item.config, begun=name_of(item))
    return None
