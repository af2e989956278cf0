"""How pytest runs here: its options, the plugins in tests/support/, and when Python collects garbage."""

from __future__ import annotations

import gc
import logging
import os

import pytest

# Fixtures for every test. Modules that others of these import come first, else pytest says so.
_SUPPORT = (
    "tests.support.stage",
    "tests.support.asking",
    "tests.support.provider_double.fixtures",
    "tests.support.recording.plugin",
    "tests.support.internet",
    "tests.support.bad_inputs",
    "tests.support.web",
    "tests.support.wheels",
    "tests.support.two_processes",
)

# A million objects are imported that stay: looking through them again and again took a tenth of the suite's time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own, needed before the plugins are there."""
    group = parser.getgroup("recording")
    group.addoption("--live", metavar="PROVIDER", help="Record this provider's cassettes from its real endpoint.")


def pytest_configure(config: pytest.Config) -> None:
    """
    Load what tests stand on, where tests run: the process that only hands them out need not wait for it.

    agency_swarm comes first: it reads a .env over the environment when it is imported, and later could bring keys back.
    Hypothesis looks for new examples where a person can look at them, however long each takes; CI tries the same ones
    each time.
    """
    distributes = config.getoption("numprocesses", None) and not config.option.collectonly
    if distributes and not hasattr(config, "workerinput"):
        return
    import agency_swarm  # noqa: F401
    import hypothesis

    hypothesis.settings.register_profile("here", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
    hypothesis.settings.register_profile("soak", deadline=None, max_examples=250)
    hypothesis.settings.load_profile("here")  # or the one that --hypothesis-profile names

    for name in _SUPPORT:
        config.pluginmanager.import_plugin(name)


def pytest_collection_finish() -> None:
    """What is imported by now stays; from here on garbage is that of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ledgers that tests have broken on purpose need not say at exit that records wait for them."""
    if not config.option.collectonly:  # a test that lists tests is not at the end
        logging.getLogger("agentswarm_tools").disabled = True
