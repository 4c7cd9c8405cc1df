"""What all tests share: a device to run on, and how a test says that it needs a GPU."""

import os

import pytest


def has_gpu():
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available() and torch.version.hip is None


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; skipped without, failed with SIGNFLASH_REQUIRE_GPU=1")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is None or has_gpu():
        return
    if os.environ.get("SIGNFLASH_REQUIRE_GPU") == "1":
        pytest.fail("SIGNFLASH_REQUIRE_GPU=1, but PyTorch sees no NVIDIA GPU")
    pytest.skip("no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param
