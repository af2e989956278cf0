"""Records that wait on disk while the ledger cannot be written."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from shared.internal.serialize import to_json

SpoolEntry = tuple[str, dict[str, Any], dict[str, str]]
_IDS = ("attempt_id", "call_id", "event_id")
_DEAD_LETTERS = ".dead-letters"


class Spool:
    """
    A file of JSON lines in the ledger's folder, or in the temporary folder if that one is not writable.

    Args:
        folder: The ledger's folder; None when the ledger is not a file.

        ledger: Name of the ledger; different ledgers never share a spool file.
    """

    def __init__(self, folder: Path | None, ledger: str) -> None:
        name = f"agentswarm-{sha256(ledger.encode()).hexdigest()[:12]}"
        user = f"agentswarm-tools-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        fallback = Path(tempfile.gettempdir()) / user
        folders = [each for each in (folder, fallback) if each is not None]
        self._paths = [each / f"{name}.spool.jsonl" for each in folders]
        # Earlier versions wrote to files of this name; what still waits there is replayed first.
        self._all_paths = [*(each / f"{name}.spill.jsonl" for each in folders), *self._paths]
        self._lock = threading.Lock()
        self._memory: list[SpoolEntry] = []
        self._wrote = True

    @property
    def path(self) -> Path:
        """The spool file, as long as its folder is writable."""
        return self._paths[0]

    def add(self, entry: SpoolEntry) -> None:
        """Store an entry: on disk by the time this returns, or in memory while no folder is writable."""
        # The leading line break ends a line that a full disk has cut off.
        line = f"\n{to_json(entry)}\n".encode()
        with self._lock:
            self._wrote = True
            for path in self._paths:
                try:
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    _append(path, line)
                except OSError:
                    continue
                return
            self._memory.append(entry)

    def add_dead_letter(self, entry: SpoolEntry) -> None:
        """
        Set aside an entry that the ledger rejects, for a person to check.

        Raises:
            OSError: No folder is writable.
        """
        self._add_dead_letters([to_json(entry).encode()])

    def waiting(self) -> int:
        """The number of records that are waiting."""
        files = [file for path in self._all_paths for file in (path, *_leftovers(path))]
        with self._lock:
            return len(self._memory) + sum(len(_lines(file)) for file in files)

    def dead_letters(self) -> list[Path]:
        """The files of entries that the ledger rejected, also those of earlier versions (`.refused`)."""
        suffixes = (_DEAD_LETTERS, ".refused")
        files = (path.with_name(f"{path.name}{suffix}") for path in self._all_paths for suffix in suffixes)
        return [file for file in files if file.exists()]

    def take(self) -> Iterator[list[SpoolEntry]]:
        """
        Yield what waits in batches; each is deleted when the next is requested, so a failing replay loses nothing.

        Reads the disk only if this process has spooled something, or has not looked yet.
        """
        with self._lock:
            if not self._wrote:
                return
            memory, self._memory = self._memory, []
        try:
            if memory:
                yield memory
                memory = []
            for path in self._all_paths:
                yield from self._take_file(path)
        finally:
            with self._lock:
                self._memory = memory + self._memory
        with self._lock:
            self._wrote = bool(self._memory)

    def _take_file(self, path: Path) -> Iterator[list[SpoolEntry]]:
        """Rename the file, so that no other process replays it at the same time, and read it."""
        leftovers = _leftovers(path)
        renamed = path.with_name(f"{path.name}.{time.time_ns()}-{os.getpid()}.replay")
        try:
            path.rename(renamed)
            leftovers.append(renamed)
        except (FileNotFoundError, NotADirectoryError):
            pass
        for file in leftovers:
            entries, invalid = _read(file)
            yield entries
            self._add_dead_letters(invalid)
            file.unlink(missing_ok=True)

    def _add_dead_letters(self, lines: list[bytes]) -> None:
        for path in self._paths if lines else ():
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _append(path.with_name(f"{path.name}{_DEAD_LETTERS}"), b"".join(b"\n" + line + b"\n" for line in lines))
            except OSError:
                continue
            return
        if lines:
            raise OSError("no folder is writable for records that the ledger rejected")


def _leftovers(path: Path) -> list[Path]:
    """Files left by replays that were killed, oldest first."""
    return sorted(path.parent.glob(f"{path.name}.*.replay")) if path.parent.is_dir() else []


def _lines(file: Path) -> list[bytes]:
    try:
        return [line for line in file.read_bytes().splitlines() if line]
    except OSError:
        return []


def _read(file: Path) -> tuple[list[SpoolEntry], list[bytes]]:
    """The entries of a file, and its invalid lines; a line that a full disk has cut off is skipped."""
    entries, invalid = [], []
    for line in _lines(file):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        entry = _entry(value)
        if entry is None:
            invalid.append(line)
        else:
            entries.append(entry)
    return entries, invalid


def _append(path: Path, line: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if os.write(file, line) != len(line):
            raise OSError("the record was written only partly")
        os.fsync(file)
        replayed = not path.exists() or not os.path.samestat(os.fstat(file), path.stat())
    finally:
        os.close(file)
    if replayed:  # Another process has renamed the file in the meantime, and may have read it already.
        _append(path, line)


def _entry(value: Any) -> SpoolEntry | None:
    """A line's JSON as an entry; None when it is not one."""
    try:
        kind, row, labels = value
        known = {k: uuid.UUID(v) if k in _IDS and v else v for k, v in row.items()}
    except (ValueError, AttributeError, TypeError):
        return None
    return (kind, known, labels) if isinstance(kind, str) and isinstance(labels, dict) else None
