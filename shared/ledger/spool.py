"""Where records wait, on disk, while the ledger cannot take them."""

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


class Spool:
    """
    A file of JSON lines beside the ledger, or in the temporary folder where that cannot be written.

    Args:
        folder: Where the ledger lives; None where it is not a file.

        ledger: Name of the ledger; different ledgers never share a spool file.
    """

    def __init__(self, folder: Path | None, ledger: str) -> None:
        name = f"agentswarm-{sha256(ledger.encode()).hexdigest()[:12]}.spool.jsonl"
        user = f"agentswarm-tools-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        fallback = Path(tempfile.gettempdir()) / user
        self._paths = [home / name for home in (folder, fallback) if home is not None]
        self._lock = threading.Lock()
        self._memory: list[SpoolEntry] = []
        self._wrote = True

    @property
    def path(self) -> Path:
        """Where records wait when all is well with that folder."""
        return self._paths[0]

    def add(self, entry: SpoolEntry) -> None:
        """Keep an entry, on disk when this returns; in memory only while no folder takes it."""
        # The line break in front ends a line that a full disk has cut off.
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

    def refuse(self, entry: SpoolEntry) -> None:
        """
        Set an entry aside for a person to look at, since no ledger takes it.

        Raises:
            OSError: No folder takes it either.
        """
        self._set_aside([to_json(entry).encode()])

    def waiting(self) -> int:
        """How many records wait."""
        files = [file for path in self._paths for file in (path, *_leftovers(path))]
        with self._lock:
            return len(self._memory) + sum(len(_lines(file)) for file in files)

    def refused(self) -> list[Path]:
        """The files of entries that were set aside."""
        return [file for path in self._paths if (file := _dead_letters(path)).exists()]

    def take(self) -> Iterator[list[SpoolEntry]]:
        """
        Batches of what waits; each is forgotten when the next one is asked for, so a failing replay loses nothing.

        Only looks at the disk when this process has spooled, or has not looked yet.
        """
        with self._lock:
            if not self._wrote:
                return
            memory, self._memory = self._memory, []
        try:
            if memory:
                yield memory
                memory = []
            for path in self._paths:
                yield from self._take_file(path)
        finally:
            with self._lock:
                self._memory = memory + self._memory
        with self._lock:
            self._wrote = bool(self._memory)

    def _take_file(self, path: Path) -> Iterator[list[SpoolEntry]]:
        """Move the file aside, so that no other process replays it at the same time, and read it."""
        leftovers = _leftovers(path)
        aside = path.with_name(f"{path.name}.{time.time_ns()}-{os.getpid()}.replay")
        try:
            path.rename(aside)
            leftovers.append(aside)
        except (FileNotFoundError, NotADirectoryError):
            pass
        for file in leftovers:
            entries, strange = _read(file)
            yield entries
            self._set_aside(strange)
            file.unlink(missing_ok=True)

    def _set_aside(self, lines: list[bytes]) -> None:
        for path in self._paths if lines else ():
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _append(_dead_letters(path), b"".join(b"\n" + line + b"\n" for line in lines))
            except OSError:
                continue
            return
        if lines:
            raise OSError("no folder takes what the ledger refused")


def _leftovers(path: Path) -> list[Path]:
    """What replays that were killed have left, oldest first."""
    return sorted(path.parent.glob(f"{path.name}.*.replay")) if path.parent.is_dir() else []


def _dead_letters(path: Path) -> Path:
    return path.with_name(f"{path.name}.refused")


def _lines(file: Path) -> list[bytes]:
    try:
        return [line for line in file.read_bytes().splitlines() if line]
    except OSError:
        return []


def _read(file: Path) -> tuple[list[SpoolEntry], list[bytes]]:
    """The entries of a file, and the lines that are none; one that a full disk has cut off is passed over."""
    entries, strange = [], []
    for line in _lines(file):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        entry = _entry(value)
        if entry is None:
            strange.append(line)
        else:
            entries.append(entry)
    return entries, strange


def _append(path: Path, line: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if os.write(file, line) != len(line):
            raise OSError("the record was written only in part")
        os.fsync(file)
        replayed = not path.exists() or not os.path.samestat(os.fstat(file), path.stat())
    finally:
        os.close(file)
    if replayed:  # Another process moved the file aside meanwhile, and may have read it already.
        _append(path, line)


def _entry(value: Any) -> SpoolEntry | None:
    """A line's JSON as an entry, or None when it is none."""
    try:
        kind, row, labels = value
        known = {k: uuid.UUID(v) if k in _IDS and v else v for k, v in row.items()}
    except (ValueError, AttributeError, TypeError):
        return None
    return (kind, known, labels) if isinstance(kind, str) and isinstance(labels, dict) else None
