"""A pytest plugin: `signflash.enable()` before the file is imported, as a program would do."""

import signflash


def pytest_configure(config):
    if "pytorch" not in signflash.enable(pytorch=True, transformers=False):
        raise RuntimeError("signflash.enable() did nothing for this PyTorch: there is nothing to compare")
