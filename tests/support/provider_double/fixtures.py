"""The provider double as pytest fixtures: one server a session, clean for each test."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache

import httpx
import pytest

from . import dial
from .asking import KEYS
from .double import Double
from .server import running

_rest = ExitStack()


@cache
def the_double() -> Double:
    """The server of this process, which runs from its first test to the end."""
    return _rest.enter_context(running())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The server ends with the tests."""
    if not session.config.option.collectonly:  # a test that lists tests is not at the end
        _rest.close()


@pytest.fixture
def provider_double() -> Double:
    """The running server; tests use `double`."""
    return the_double()


@pytest.fixture
def double() -> Iterator[Double]:
    """The provider double with nothing scripted and nothing recorded; fails the test when a script could not play."""
    provider_double = the_double()
    provider_double.reset()
    yield provider_double
    provider_double.release()
    provider_double.wait_idle()
    problems = list(provider_double.problems)
    provider_double.reset()
    assert not problems


@pytest.fixture
def dialled(double: Double) -> Iterator[httpx.Client]:
    """An httpx client that reaches the double under the providers' real host names, with keys for all of them."""
    with httpx.Client(transport=dial.transport(double.address), headers=KEYS, timeout=10) as client:
        yield client
