"""A pytest plugin: `signflash.enable()` before the file is imported, as a program would do; and how many calls were ours."""

import json

import signflash


class Count:
    """Is told of each call that PyTorch would compute by its formula."""

    ours = 0

    def note(self, call, reason, seen):
        self.ours += reason is None


COUNT = Count()


def pytest_configure(config):
    if "pytorch" not in signflash.enable(pytorch=True, transformers=False):
        raise RuntimeError("signflash.enable() did nothing for this PyTorch: there is nothing to compare")
    from signflash._sdpa import notes

    notes.listeners.append(COUNT)


def pytest_runtest_teardown(item):
    """After each case: a process may go down."""
    if COUNT.ours:
        with open(item.config.getoption("--outcomes"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"ours": COUNT.ours}) + "\n")
        COUNT.ours = 0
