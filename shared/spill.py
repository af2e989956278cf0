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

from shared.serialize import to_json

Entry = tuple[str, dict[str, Any], dict[str, str]]
_IDS = ("attempt_id", "call_id", "event_id")


class Spill:
    """
    A file of JSON lines beside the ledger, or in the temporary folder where that cannot be written.

    Args:
        folder: Where the ledger lives; None where it is not a file.

        ledger: Name of the ledger; different ledgers never share a spill file.
    """

    def __init__(self, folder: Path | None, ledger: str) -> None:
        name = f"agentswarm-{sha256(ledger.encode()).hexdigest()[:12]}.spill.jsonl"
        user = f"agentswarm-tools-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        fallback = Path(tempfile.gettempdir()) / user
        self._paths = [home / name for home in (folder, fallback) if home is not None]
        self._lock = threading.Lock()
        self._memory: list[Entry] = []
        self._wrote = True

    @property
    def path(self) -> Path:
        """Where records wait when all is well with that folder."""
        return self._paths[0]

    def add(self, entry: Entry) -> None:
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

    def waiting(self) -> bool:
        """Whether anything waits."""
        with self._lock:
            return bool(self._memory) or any(path.exists() for path in self._paths)

    def take(self) -> Iterator[list[Entry]]:
        """
        Batches of what waits; each is forgotten when the next one is asked for, so a failing replay loses nothing.

        Only looks at the disk when this process has spilled, or has not looked yet.
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

    def _take_file(self, path: Path) -> Iterator[list[Entry]]:
        """Move the file aside, so that no other process replays it at the same time, and read it."""
        leftovers = sorted(path.parent.glob(f"{path.name}.*.replay")) if path.parent.is_dir() else []
        aside = path.with_name(f"{path.name}.{time.time_ns()}-{os.getpid()}.replay")
        try:
            path.rename(aside)
            leftovers.append(aside)
        except (FileNotFoundError, NotADirectoryError):
            pass
        for file in leftovers:
            try:
                lines = file.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            yield [entry for line in lines if (entry := _parse(line)) is not None]
            file.unlink(missing_ok=True)


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


def _parse(line: bytes) -> Entry | None:
    """An entry, or None for a line that was cut off when the disk filled up."""
    try:
        kind, row, labels = json.loads(line)
    except ValueError:
        return None
    return kind, {k: uuid.UUID(v) if k in _IDS and v else v for k, v in row.items()}, labels
