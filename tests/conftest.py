"""How pytest runs here: its options, the plugins in tests/support/, and when Python collects garbage."""

from __future__ import annotations

import faulthandler
import gc
import logging
import math
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

# Fixtures for every test. Modules that others of these import come first, else pytest says so.
_SUPPORT = (
    "tests.support.provider_double.fixtures",
    "tests.support.stage",
    "tests.support.asking",
    "tests.support.recording.plugin",
    "tests.support.internet",
    "tests.support.bad_inputs",
    "tests.support.web",
    "tests.support.wheels",
    "tests.support.two_processes",
)

# A test that takes longer prints where it is; the time is counted anew from the first test after so many seconds.
_HANGS_S, _REARM_S = 60.0, 5.0
_watched_since = -math.inf

# A file system in memory, where Linux has one, and the bytes that must be free on it.
_MEMORY, _MEMORY_BYTES = Path("/dev/shm"), 2 << 30  # noqa: S108

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
    if not any("soak" in each for each in config.args):  # what the soak kills and races is on a disk
        _use_memory()
    import agency_swarm  # noqa: F401
    import hypothesis

    hypothesis.settings.register_profile("here", deadline=None, max_examples=20, derandomize=True)
    hypothesis.settings.register_profile("soak", deadline=None, max_examples=150, derandomize=True)
    hypothesis.settings.register_profile("explore", deadline=None, max_examples=1_000)
    hypothesis.settings.load_profile("here")  # or the one that --hypothesis-profile names

    for name in _SUPPORT:
        config.pluginmanager.import_plugin(name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """
    A test that hangs for a minute prints where.

    pytest's own way, for which the soak asks, starts and ends a thread for each test.
    """
    global _watched_since
    now = time.monotonic()
    if now - _watched_since > _REARM_S and not item.config.getini("faulthandler_timeout"):
        _watched_since = now
        faulthandler.dump_traceback_later(_HANGS_S, file=item.config.stash[fault_handler_stderr_fd_key])


def _use_memory() -> None:
    """Put temporary files into memory: waiting for a disk after each commit took a fifth of the suite's time."""
    try:
        has_room = shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES and os.access(_MEMORY, os.W_OK)
    except OSError:
        return
    if has_room and "TMPDIR" not in os.environ:
        os.environ["TMPDIR"] = str(_MEMORY)  # programs of tests see it too
        tempfile.tempdir = None


def pytest_collection_finish() -> None:
    """What is imported by now stays; from here on garbage is that of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ledgers that tests have broken on purpose need not say at exit that records wait for them."""
    faulthandler.cancel_dump_traceback_later()
    if not config.option.collectonly:  # a test that lists tests is not at the end
        logging.getLogger("agentswarm_tools").disabled = True
