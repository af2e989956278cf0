"""
The SQLite library that opens ledgers: one for the whole process.

Python's own SQLite is used where it is safe with a write-ahead log (WAL), else that of pysqlite3. On POSIX systems two
libraries in one process drop each other's file locks, so while one has a ledger open the other must not touch the file.
"""

from __future__ import annotations

import importlib
import os
import sqlite3
import sys
import threading
import weakref
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

FileIdentity = tuple[int, int]

# SQLite releases without the WAL-reset bug, which can lose committed pages when several processes share a WAL file.
# Source: sqlite.org, release notes of 3.51.3 (read 2026-11-23).
_SAFE_WAL = (((3, 51, 3), (99,)), ((3, 50, 7), (3, 51)), ((3, 44, 6), (3, 45)))
_OPEN_FILES = Path("/dev/fd")
# The connections to ledgers that this process has open: objects of the class that `connection_class` makes.
_known: weakref.WeakSet[Any] = weakref.WeakSet()
_opening = threading.Lock()


def wal_is_safe(version: tuple[int, ...] | None = None) -> bool:
    """Whether this SQLite, by default the one that opens ledgers, may use WAL with several processes."""
    known = library().sqlite_version_info if version is None else version
    return any(low <= known < high for low, high in _SAFE_WAL)


@lru_cache(maxsize=1)
def library() -> Any:
    """The module, with the interface of `sqlite3`, that opens every ledger of this process."""
    if not wal_is_safe(sqlite3.sqlite_version_info):
        with suppress(ImportError):
            bundled = importlib.import_module("pysqlite3")
            if wal_is_safe(bundled.sqlite_version_info):
                if os.name == "posix":
                    sys.addaudithook(_refuse)
                return bundled
    return sqlite3


def library_name() -> str:
    """The library in use, for people."""
    origin = "Python's own" if library() is sqlite3 else "pysqlite3"
    return f"SQLite {library().sqlite_version} ({origin})"


def file_identity(path: Path | None) -> FileIdentity | None:
    """
    Which file lies at a path now; None when there is none.

    The file must not be opened for that: closing it would drop the locks of every SQLite connection in the process.
    """
    if path is None:
        return None
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


@lru_cache(maxsize=1)
def connection_class() -> type[Any]:
    """The library's class of connections, of which this process knows those that are open."""

    class LedgerConnection(library().Connection):  # type: ignore[misc]
        """A connection to a ledger's file; `file` says which it opened, and `log` which write-ahead log, if any."""

        file: FileIdentity | None = None
        log: FileIdentity | None = None

        def close(self) -> None:
            super().close()
            _known.discard(self)

    return LedgerConnection


def open_file(path: Path, name: str | None = None, **options: Any) -> Any:
    """
    A connection to a ledger's file: the one place where one is opened.

    Args:
        name: What to open, if not the path: a URI, with `uri=True`.

    Raises:
        sqlite3.OperationalError (the library's): It cannot be opened, or something else in this process has it open.
    """
    with _opening:  # a file that another thread is opening is not yet among those that are known
        identity = file_identity(path)
        if _is_apart() and identity not in {each.file for each in known()} and identity in _opened_by_others():
            raise library().OperationalError(
                f"{path.name} is open in this process by something else than the ledger; close that first"
            )
        connection = library().connect(path if name is None else name, factory=connection_class(), **options)
        connection.file = file_identity(path)
        _known.add(connection)
    return connection


def known() -> list[Any]:
    """The connections to ledgers that this process has open."""
    while True:
        try:
            return list(_known)
        except RuntimeError:  # another thread has opened one meanwhile
            continue


def connect(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """
    A read-only connection to a ledger's file, safe beside the calls of this process.

    `sqlite3.connect` is not: it may be another SQLite library than the one that has the ledger open.

    Returns:
        A connection with the interface of `sqlite3.Connection`. Close it soon after use.
    """
    absolute = Path(path).absolute()
    found: sqlite3.Connection = open_file(absolute, f"file:{quote(str(absolute))}?mode=ro", uri=True)
    return found


def _is_apart() -> bool:
    """Whether Python's own SQLite is another library, that shares its locks. Windows has locks of each handle."""
    return library() is not sqlite3 and os.name == "posix"


def _opened_by_others() -> set[FileIdentity]:
    """The files that this process has open; none where the system does not tell."""
    found = set()
    with suppress(OSError):
        for path in list(_OPEN_FILES.iterdir()):
            with suppress(OSError, ValueError):
                status = os.fstat(int(path.name))
                found.add((status.st_dev, status.st_ino))
    return found


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Let Python's own `sqlite3` refuse a file that the other library has open: it would drop that one's locks."""
    if event != "sqlite3.connect" or not _known or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    name = os.fsdecode(arguments[0])
    path = Path(unquote(urlsplit(name).path) if name.startswith("file:") else name)
    identity = file_identity(path)
    if identity is not None and identity in {each.file for each in known()}:
        raise sqlite3.OperationalError(
            f"{path.name} is a ledger that this process has open by {library_name()}, and Python's own SQLite would "
            "drop its locks. Read it with agentswarm_tools.shared.ledger.connect(path), or in another process."
        )


def _forget() -> None:
    """Start afresh in a forked process, which has none of its parent's locks on files."""
    global _opening
    _opening = threading.Lock()
    _known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
