"""
Many tests run in two processes: the second is forked when everything is imported and collected.

pytest-xdist starts two afresh, which import for ten seconds each, and has every report spelt out between three; all of
that took a fifth of the suite's time. Each file is run by the process that comes to it first. Reports of the second
process go through a file, and the first one shows them as they come. `-n0` is one process, `-n4` is pytest-xdist.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from shared.providers import endpoints

# A second process is worth its while from here on.
_MANY = 300


class _Writer:
    """In the second process: writes reports for the first, a line each."""

    def __init__(self, config: pytest.Config, file: IO[str]) -> None:
        self._config, self._file = config, file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """pytest's hook."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(json.dumps(data) + "\n")
        self._file.flush()


class _Reader:
    """In the first process: passes on what the second one has written since the last time."""

    def __init__(self, config: pytest.Config, file: IO[str]) -> None:
        self._config, self._file, self._rest = config, file, ""

    def pytest_runtest_logfinish(self) -> None:
        """pytest's hook: between two tests."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(line))
            self._config.hook.pytest_runtest_logreport(report=report)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run all tests, if they are many; else pytest does."""
    options = session.config.option
    asked_for = session.config.getoption("numprocesses", 0)  # none where pytest-xdist is not loaded
    alone = (
        asked_for is not None
        or hasattr(session.config, "workerinput")
        or options.usepdb
        or options.collectonly
        or sys.platform == "darwin"
    )
    if alone or session.testsfailed or len(session.items) < _MANY or not hasattr(os, "fork"):
        return None
    files = [list(items) for _, items in itertools.groupby(session.items, lambda item: item.path)]
    left, fill = os.pipe()
    os.write(fill, b"".join(number.to_bytes(2) for number in range(len(files))))
    os.close(fill)
    endpoints.import_litellm()
    gc.collect()
    gc.freeze()
    path = session.config._tmp_path_factory.getbasetemp() / "reports"  # type: ignore[attr-defined]
    path.touch()
    child = os.fork()
    if not child:
        _second(session, files, left, path)
    with path.open(encoding="utf-8") as file:
        reader = _Reader(session.config, file)
        session.config.pluginmanager.register(reader)
        try:
            _run(session, files, left)
        except (session.Failed, session.Interrupted):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
            raise
        finally:
            while os.read(left, 2):
                pass  # whatever has stopped this process, the other one takes no further file
            os.close(left)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            reader.pytest_runtest_logfinish()
            session.config.pluginmanager.unregister(reader)
    if status:
        raise session.Failed(f"the second process ended with {status}; what it ran last is above")
    return True


def _run(session: pytest.Session, files: list[list[pytest.Item]], left: int) -> None:
    """Run files until none is left. The next one is taken before the last test of this one, which must know it."""
    for item, following in itertools.pairwise(itertools.chain(_taken(files, left), [None])):
        assert item is not None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)


def _taken(files: list[list[pytest.Item]], left: int) -> Iterator[pytest.Item]:
    while number := os.read(left, 2):
        yield from files[int.from_bytes(number)]


def _second(session: pytest.Session, files: list[list[pytest.Item]], left: int, path: Path) -> None:
    """Run this process's share, and end it."""
    status = 1
    try:
        plugins: Any = session.config.pluginmanager
        capture = plugins.getplugin("capturemanager")
        capture.stop_global_capturing()  # its files are the first process's
        capture.start_global_capturing()
        folder: Any = session.config._tmp_path_factory  # type: ignore[attr-defined]
        folder._basetemp = path.with_name("second")
        folder._basetemp.mkdir()
        plugins.unregister(plugins.getplugin("terminalreporter"))
        with path.open("a", encoding="utf-8") as file:
            plugins.register(_Writer(session.config, file))
            _run(session, files, left)
        status = 0
    except (session.Failed, session.Interrupted):
        status = 0  # the report of the test that failed says so
    except BaseException:
        capture.suspend_global_capture()
        traceback.print_exc()
        raise
    finally:
        session._setupstate.teardown_exact(None)  # servers end with their fixtures
        os._exit(status)
