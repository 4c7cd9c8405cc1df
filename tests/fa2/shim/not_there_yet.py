"""A pytest plugin: a test that stops at NotImplementedError is skipped, and so counted apart from what fails."""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except NotImplementedError as error:
        pytest.skip(f"not there yet: {str(error)[:100]}")
