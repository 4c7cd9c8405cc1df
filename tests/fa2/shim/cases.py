"""A pytest plugin: the cases of FlashAttention-2's file of what is there, and what a table says of each."""

import pytest
from share import ROW

#: Tests whose names say that they are of caches of keys and values, which are for inference; and one of the raw functions
#: of FlashAttention-2's extension, which nobody else has.
LEFT_OUT = ("kvcache", "paged_kv", "generator_arg")
#: Caches are a parameter of others.
PARAMETERS = {"paged_kv_block_size": [None]}


def pytest_addoption(parser):
    parser.addoption("--longest", type=int, help="no case with a parameter above it: sequences, on a slow machine")


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


def pytest_collection_modifyitems(config, items):
    longest = config.getoption("--longest")
    if longest is not None:
        items[:] = [item for item in items if _largest(item) <= longest]
    for item in items:
        item.stash[ROW] = _row(item)


def _row(item):
    """What a table says of a case: the test, whether its window is local, whether it has ALiBi, softcap and dropout_p."""
    parameters = _parameters(item)
    window, alibi = ({True: "yes", False: "no"}.get(parameters.get(name), "") for name in ("local", "alibi"))
    return [item.originalname, window, alibi, *(str(parameters.get(name, "")) for name in ("softcap", "dropout_p"))]
