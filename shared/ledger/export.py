"""Export records to a file, written completely or not at all."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import batched
from pathlib import Path
from typing import Any, TextIO

from shared.errors import ConfigurationError, StoreError
from shared.internal.serialize import jsonable, to_json
from shared.ledger.query import Filter
from shared.ledger.records import RECORD_NAMES, attempt_lines, attempt_values
from shared.ledger.store import Ledger

# Or JSON already: of an attempt, for CSV only its values.
Record = Mapping[str, Any] | str
# Written at once.
_LINES = 500
# Spreadsheets treat a cell that begins with one of these as a formula, some also in full width or behind blanks.
_FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_attempts(path: Path, ledger: Ledger, which: Filter) -> int:
    """
    Write the attempts that match in the format given by the file's extension.

    Returns, Raises: As `write_records`.
    """
    is_table = path.suffix.lower() == ".csv"
    return write_records(path, attempt_values(ledger, which) if is_table else attempt_lines(ledger, which=which))


def write_records(path: Path, records: Iterable[Record]) -> int:
    """
    Write records in the format given by the file's extension.

    Args:
        records: Dicts with the same keys, or their JSON.

    Returns:
        The number of records.

    Raises:
        ConfigurationError: The extension is not .json, .jsonl or .csv.

        StoreError: The file cannot be written; an existing file is left unchanged.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ConfigurationError(
            f"Cannot export to {path.suffix or 'a file without an extension'}", hint="Use .json, .jsonl or .csv."
        )
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            count = writer(file, records)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise StoreError(f"{path.name} cannot be written ({error.strerror})", hint="Choose another folder.") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return count


def _write_json(file: TextIO, records: Iterable[Record]) -> int:
    file.write("[")
    count = 0
    for count, record in enumerate(records, start=1):
        file.write(",\n " if count > 1 else "\n ")
        file.write(_as_json(record))
    file.write("\n]\n" if count else "]\n")
    return count


def _write_lines(file: TextIO, records: Iterable[Record]) -> int:
    count = 0
    for lines in batched(map(_as_json, records), _LINES):
        file.write("\n".join((*lines, "")))
        count += len(lines)
    return count


def _as_json(record: Record) -> str:
    """The same as `to_json`; most records need not be looked through for what JSON has not."""
    if isinstance(record, str):
        return record
    try:
        text = _encoder.encode(record)
    except (TypeError, ValueError):
        return to_json(record)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=jsonable)


def _write_csv(file: TextIO, records: Iterable[Record]) -> int:
    writer = csv.writer(file)
    count = 0
    for count, record in enumerate(records, start=1):
        plain = record if isinstance(record, str) else jsonable(record)
        if count == 1:
            writer.writerow(RECORD_NAMES if isinstance(plain, str) else plain)
        writer.writerow(_cells(json.loads(plain) if isinstance(plain, str) else plain.values()))
    return count


def _cells(values: Iterable[Any]) -> list[Any]:
    """Each value as a cell; most are numbers or words, which stay as they are."""
    return [
        each if each is None or type(each) is int or (type(each) is str and each[:1].isalnum()) else _cell(each)
        for each in values
    ]


def csv_cell(value: Any) -> Any:
    """A value as a cell that no spreadsheet takes for a formula."""
    return _cell(jsonable(value))


def _cell(plain: Any) -> Any:
    kind = type(plain)
    if kind is str:
        begins = plain[:1]
        if begins.isalnum() or not (begins in _FORMULA_MARKS or plain.lstrip()[:1] in _FORMULA_MARKS):
            return plain
        return f"'{plain}"
    return _encoder.encode(plain) if kind is dict or kind is list else plain


_WRITERS: Mapping[str, Callable[[TextIO, Iterable[Record]], int]] = {
    ".json": _write_json,
    ".jsonl": _write_lines,
    ".csv": _write_csv,
}
