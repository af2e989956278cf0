"""Records that wait on disk while the ledger cannot be written."""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from shared.config import state_dir
from shared.internal.serialize import to_json

logger = logging.getLogger("agentswarm_tools")

SpoolEntry = tuple[str, dict[str, Any], dict[str, str]]
_IDS = ("attempt_id", "call_id", "event_id")
_DEAD_LETTERS = ".dead-letters"
# Entries that are replayed in one transaction, at most; other programs get their turn in between.
MAX_BATCH = 50
# A longer line is no record; it would only fill the memory.
_MAX_LINE = 1_000_000
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Spool:
    """
    A file of JSON lines in a folder that only this user can write to.

    That is the ledger's own folder, if nobody else may write there: what waits then lies where the ledger does. Else it
    is the user's state folder, and as a last resort a private folder for temporary files. What others could have put
    there is neither read nor written.

    Args:
        folder: The ledger's folder; None when the ledger is not a file.

        ledger: Name of the ledger; different ledgers never share a spool file.
    """

    def __init__(self, folder: Path | None, ledger: str) -> None:
        name = f"agentswarm-{sha256(ledger.encode()).hexdigest()[:12]}"
        user = f"agentswarm-tools-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        own = [state_dir(), Path(tempfile.gettempdir()) / user]
        self._own = frozenset(own)
        folders = [each for each in (folder, *own) if each is not None]
        self._paths = [each / f"{name}.spool.jsonl" for each in folders]
        # Earlier versions wrote to files of this name; what still waits there is replayed first.
        self._all_paths = [*(each / f"{name}.spill.jsonl" for each in folders), *self._paths]
        self._lock = threading.Lock()
        self._memory: list[SpoolEntry] = []
        # By file: entries that are in the ledger already, when a replay was interrupted.
        self._replayed: dict[Path, int] = {}
        self._refused: set[Path] = set()
        # Entries in the next batch.
        self.batch = MAX_BATCH
        # Whether something may wait: this process has spooled something, or has not looked yet.
        self.is_used = True

    @property
    def path(self) -> Path:
        """The spool file: where records wait, else the first place that can be trusted."""
        waiting = next((path for path in self._paths if _may_be_used(path.parent) and path.is_file()), None)
        return waiting or next((path for path in self._paths if self._may_write(path.parent)), self._paths[-1])

    def _may_write(self, folder: Path) -> bool:
        return _may_be_used(folder) or (folder in self._own and not os.path.lexists(folder))

    def add(self, *entries: SpoolEntry) -> None:
        """Store entries: on disk by the time this returns, or in memory while no folder can be used."""
        # The leading line break ends a line that a full disk has cut off.
        lines = "".join(f"\n{to_json(entry)}\n" for entry in entries).encode()
        with self._lock:
            self.is_used = True
            if not self._write_to_any(lines, ""):
                self._memory.extend(entries)

    def add_dead_letter(self, entry: SpoolEntry) -> None:
        """
        Set aside an entry that the ledger rejects, for a person to check.

        Raises:
            OSError: No folder can be used.
        """
        self._add_dead_letters([to_json(entry).encode()])

    def waiting(self) -> int:
        """The number of records that are waiting."""
        files = [file for path in self._trusted() for file in (path, *_leftovers(path))]
        with self._lock:
            return len(self._memory) + sum(max(0, len(_lines(file)) - self._replayed.get(file, 0)) for file in files)

    def dead_letters(self) -> list[Path]:
        """The files of entries that the ledger rejected, also those of earlier versions (`.refused`)."""
        suffixes = (_DEAD_LETTERS, ".refused")
        files = (path.with_name(f"{path.name}{suffix}") for path in self._all_paths for suffix in suffixes)
        return [file for file in files if file.exists()]

    def change_dead_letters(self, change: Callable[[SpoolEntry], SpoolEntry]) -> None:
        """
        Change the entries that were set aside; a line that is no entry stays.

        Raises:
            OSError: A file cannot be written.
        """
        for file in filter(_is_own_file, self.dead_letters()):
            lines = _lines(file)
            entries = [_entry(line) for line in lines]
            changed = [
                line if entry is None or (new := change(entry)) == entry else to_json(new).encode()
                for line, entry in zip(lines, entries, strict=True)
            ]
            if changed == lines:
                continue
            new_file = file.with_name(f"{file.name}.new")
            new_file.unlink(missing_ok=True)
            _append(new_file, b"".join(b"\n" + line + b"\n" for line in changed))
            new_file.replace(file)

    def take(self) -> Iterator[list[SpoolEntry]]:
        """
        Yield what waits in batches; each is deleted when the next is requested, so a failing replay loses nothing.

        Reads the disk only if this process has spooled something, or has not looked yet.
        """
        with self._lock:
            if not self.is_used:
                return
            self.is_used = False
            memory, self._memory = self._memory, []
        is_complete = False
        try:
            while memory:
                taken = memory[: self.batch]
                yield taken
                del memory[: len(taken)]
            for path in self._trusted():
                yield from self._take_file(path)
            is_complete = True
        finally:
            with self._lock:
                self._memory = memory + self._memory
                self.is_used |= not is_complete or bool(self._memory)

    def _take_file(self, path: Path) -> Iterator[list[SpoolEntry]]:
        """Rename the file, so that no other process replays it at the same time, and read it."""
        leftovers = _leftovers(path)
        renamed = path.with_name(f"{path.name}.{time.time_ns()}-{os.getpid()}.replay")
        if _is_own_file(path):
            with suppress(FileNotFoundError, NotADirectoryError):
                path.rename(renamed)
                leftovers.append(renamed)
        for file in filter(_is_own_file, leftovers):
            entries, invalid = _read(file)
            done = self._replayed.get(file, 0)
            while done < len(entries):
                taken = entries[done : done + self.batch]
                yield taken
                done += len(taken)
                self._replayed[file] = done
            self._add_dead_letters(invalid)
            file.unlink(missing_ok=True)
            self._replayed.pop(file, None)

    def _trusted(self) -> list[Path]:
        """The files that may be read, because nobody else can have written them; warns once of each other one."""
        found = []
        for path in self._all_paths:
            folder = path.parent
            if _may_be_used(folder):
                found.append(path)
            elif folder not in self._refused and folder in self._own and os.path.lexists(folder):
                self._refused.add(folder)
                logger.warning(
                    "%s is not used for records that wait: it must be a folder of yours that only you can open.", folder
                )
        return found

    def _write_to_any(self, lines: bytes, suffix: str) -> bool:
        """Append lines to the first file that can be trusted and written; returns whether there is one."""
        for path in self._paths:
            try:
                if path.parent in self._own:
                    _make_private(path.parent)
                if _may_be_used(path.parent):
                    _append(path.with_name(f"{path.name}{suffix}"), lines)
                    return True
            except OSError:
                continue
        return False

    def _add_dead_letters(self, lines: list[bytes]) -> None:
        if lines and not self._write_to_any(b"".join(b"\n" + line + b"\n" for line in lines), _DEAD_LETTERS):
            raise OSError("no folder can be used for records that the ledger rejected")


def _make_private(folder: Path) -> None:
    """Make a folder of this user's, closed to everyone else; an existing one of theirs is closed if others may look."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and _is_ours(found) and not found.st_mode & _OTHERS_MAY_WRITE:
        folder.chmod(0o700)


def _may_be_used(folder: Path) -> bool:
    """Whether only this user can have put files into a folder; a link to a folder is not followed."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_ours(found) and not found.st_mode & _OTHERS_MAY_WRITE


def _is_ours(found: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()


def _leftovers(path: Path) -> list[Path]:
    """Files left by replays that were killed, oldest first."""
    return sorted(path.parent.glob(f"{path.name}.*.replay")) if path.parent.is_dir() else []


def _open_own(path: Path, flags: int) -> int:
    """
    Open a regular file of this user's; links are not followed.

    Raises:
        OSError: It is something else.
    """
    file = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o600)
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and _is_ours(found) and not found.st_mode & _OTHERS_MAY_WRITE:
        return file
    os.close(file)
    raise OSError(f"{path.name} is not a file that only this user can write")


def _is_own_file(path: Path) -> bool:
    try:
        os.close(_open_own(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _lines(file: Path) -> list[bytes]:
    try:
        with os.fdopen(_open_own(file, os.O_RDONLY), "rb") as opened:
            return [line for line in opened.read().splitlines() if line]
    except OSError:
        return []


def _read(file: Path) -> tuple[list[SpoolEntry], list[bytes]]:
    """The entries of a file, and its invalid lines; a line that a full disk has cut off is skipped."""
    entries, invalid = [], []
    for line in _lines(file):
        entry = _entry(line)
        if entry is not None:
            entries.append(entry)
        elif not _is_cut_off(line):
            invalid.append(line)
    return entries, invalid


def _is_cut_off(line: bytes) -> bool:
    """Whether a line is the beginning of a record of ours; the whole record was then written elsewhere."""
    return line.startswith(b'["') and not line.endswith(b"]")


def _append(path: Path, lines: bytes) -> None:
    file = _open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if os.write(file, lines) != len(lines):
            raise OSError("the records were written only partly")
        os.fsync(file)
        replayed = not path.exists() or not os.path.samestat(os.fstat(file), path.stat())
    finally:
        os.close(file)
    if replayed:  # Another process has renamed the file in the meantime, and may have read it already.
        _append(path, lines)


def _entry(line: bytes) -> SpoolEntry | None:
    """A line as an entry; None when it is not one."""
    if len(line) > _MAX_LINE:
        return None
    try:
        kind, row, labels = json.loads(line)
        known = {k: uuid.UUID(v) if k in _IDS and v else v for k, v in row.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    return (kind, known, labels) if isinstance(kind, str) and isinstance(labels, dict) else None
