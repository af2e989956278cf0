"""The provider double as pytest fixtures: one server a session, clean for each test."""

from collections.abc import Iterator

import httpx
import pytest

from . import dial
from .asking import KEYS
from .double import Double
from .server import running


@pytest.fixture(scope="session")
def provider_double() -> Iterator[Double]:
    """The running server; tests use `double`."""
    with running() as double:
        yield double


@pytest.fixture
def double(provider_double: Double) -> Iterator[Double]:
    """The provider double with nothing scripted and nothing recorded; fails the test when a script could not play."""
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
