"""
Sums that answer reports, kept exact without a statement that writers would wait for.

A settling transaction only notes the attempt in `unsummed`. Whoever comes by later (a writer after a commit, or a
report) folds such attempts into the sums, some hundred in a short transaction of its own. A settled attempt that
changes (a correction, a clock that is set right) is first copied to `taken_back` as it was, if it is in the sums
already. So at any moment

    sums + attempts in `unsummed` - attempts in `taken_back` = all settled attempts

and a report that reads all three in one transaction is exact, however much is left to fold.

In a ledger of an older version the attempts before `sums_state.since_us` are in no sum. They are added in pages from
the newest to the oldest, each with the new `since_us` in one transaction; until then reports read their rows.

Sums are of an owner: "" for everything, "label:customer" with its value, or "label:" for attempts that have neither
label nor conversation. `split` 0 has one row of an owner and time, `split` 1 one for each provider, model, operation,
tool and agent. Labels have no sums of quarters of an hour, which would be about as many as attempts.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from shared.errors import StoreError
from shared.internal.clock import new_id
from shared.ledger.deadline import within
from shared.ledger.schema import (
    BUCKET_S,
    GRAINS,
    LATENCY_KEY,
    LATENCY_MS,
    SUM_KEY,
    SUMS,
    TAKEN_BACK,
    VALUES,
    pruned,
    sums_state,
    unsummed,
    unsummed_label,
)

if TYPE_CHECKING:
    from shared.ledger.store import Ledger

logger = logging.getLogger("agentswarm_tools")

# Attempts folded in one transaction, so that no writer waits for long; and how many may be left for reports to add.
PAGE = 200
# Attempts of an older ledger that are added in one transaction.
_BUILD_PAGE = 1000
# A label that has more values on a day (UTC) has no sums of it: they would be no fewer than the rows.
MAX_VALUES = 10_000
# How long a report folds what is left, and waits for SQLite's lock for that, before it adds the rest itself.
_CATCHING_UP_S = 1.0
_LOCK_S = 0.2
# How long a server may take for a page; there is no lock to wait for.
_ANSWER_S = 5.0
_LABEL = "label:"
# Entries of an attempt's metadata that are summed.
IN_METADATA = frozenset({"image_tokens_saved", "image_nano_saved"})
_LABEL_GRAINS = LATENCY_GRAINS = GRAINS[1:]
_DAY_S = GRAINS[-1]
_ALWAYS = -(2**62)


def note(connection: Connection, attempt_id: uuid.UUID) -> None:
    """An attempt was settled; to be called in the same transaction."""
    connection.execute(_NOTE, {"attempt_id": attempt_id})


def before_change(connection: Connection, attempt_id: uuid.UUID) -> None:
    """
    A settled attempt is about to change, or to be deleted; to be called before that, in the same transaction.

    The caller must have locked the attempt's row, where rows can be locked.
    """
    known = {"attempt_id": attempt_id}
    if connection.execute(_IS_NOTED, known).one_or_none() is None:
        taken = known | {"taken_id": new_id()}
        connection.execute(_TAKE_BACK, taken)
        connection.execute(_TAKE_BACK_LABELS, taken)
        connection.execute(_NOTE, known)


_id = sa.bindparam("attempt_id", type_=sa.Uuid())
_taken_id = sa.bindparam("taken_id", type_=sa.Uuid())
_NOTE = sa.text("INSERT INTO unsummed (attempt_id) VALUES (:attempt_id) ON CONFLICT DO NOTHING").bindparams(_id)
# FOR UPDATE only affects PostgreSQL: nobody may fold the attempt now.
_IS_NOTED = sa.select(unsummed.c.attempt_id).where(unsummed.c.attempt_id == _id).with_for_update()
_TAKE_BACK = sa.text(
    f"INSERT INTO taken_back (taken_id, {', '.join(TAKEN_BACK)}) "  # noqa: S608 - our own names
    f"SELECT :taken_id, {', '.join(TAKEN_BACK)} FROM attempt WHERE attempt_id = :attempt_id"
).bindparams(_id, _taken_id)
_TAKE_BACK_LABELS = sa.text(
    "INSERT INTO taken_back_label (taken_id, name, value) "
    "SELECT :taken_id, name, value FROM label WHERE attempt_id = :attempt_id"
).bindparams(_id, _taken_id)


# Folding


def fold(ledger: Ledger, *, if_many: bool = False) -> bool:
    """
    Fold some of what is left into the sums, unless another process does; a failure leaves it for later.

    Args:
        if_many: Only if there is a page of it, or an older version has left something.

    Returns:
        Whether there may be more to fold.
    """
    try:
        with within(_LOCK_S if ledger.file is not None else _ANSWER_S), ledger.beside_others() as connection:
            if not _may_fold(connection) or (if_many and connection.scalar(_IS_BEHIND) is None):
                return False
            return _fold_page(connection) or _build_page(connection)
    except (SQLAlchemyError, OSError, StoreError) as error:
        logger.debug("The sums of %s were not updated now (%s).", ledger.name, type(error).__name__)
        return False


def catch_up(ledger: Ledger) -> None:
    """
    Fold what is left before a report, as far as that takes a moment; the report adds the rest.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        is_behind = connection.scalar(_IS_BEHIND) is not None
    until = time.monotonic() + _CATCHING_UP_S
    while is_behind and time.monotonic() < until:
        is_behind = fold(ledger)


def rebuild(ledger: Ledger) -> None:
    """
    Compute all sums anew, in pages; reports read rows meanwhile.

    Raises:
        StoreError: The ledger cannot be written.
    """
    _forget(ledger)
    is_more = True
    while is_more:
        with ledger.changing() as connection:
            _lock_sums(connection)
            is_more = _build_page(connection)


def _forget(ledger: Ledger) -> None:
    """Delete all sums of attempts that are there, so that the ledger is as one of an older version."""
    with ledger.changing() as connection:
        _lock_sums(connection)
        first_us = removed(connection).whole_days_us or _ALWAYS
        _set_since(connection, -_ALWAYS)
        for statement in _FORGET_TAKEN:
            connection.execute(sa.text(statement), {"low": first_us, "high": -_ALWAYS})
    _delete_sums(ledger, first_us // 10**6)
    with ledger.changing() as connection:
        _lock_sums(connection)
        connection.execute(sa.delete(unsummed_label).where(unsummed_label.c.day >= first_us // 10**6))
        latest = connection.scalar(sa.text("SELECT max(ts_us) FROM attempt WHERE ts_us >= :first"), {"first": first_us})
        _set_since(connection, None if latest is None else latest + 1)


def _delete_sums(ledger: Ledger, first: int) -> None:
    """Delete all sums of a second and later, those of a grain and day at a time."""
    for table, keys in (("sums", ("split", "grain")), ("latency", ("grain",))):
        while _delete_some(ledger, table, keys, f"start >= {first}"):
            pass


def delete_before(ledger: Ledger, since_us: int) -> None:
    """
    Delete the sums of what ended before a moment, in microseconds since 1970.

    Raises:
        StoreError: The ledger cannot be written.
    """
    for table, keys in (("sums", ("split", "grain")), ("latency", ("grain",))):
        while _delete_some(ledger, table, keys, f"start + grain <= {since_us // 10**6}"):
            pass


def _delete_some(ledger: Ledger, table: str, keys: tuple[str, ...], which: str) -> bool:
    inside = " AND ".join((*(f"{key} = :{key}" for key in keys), "start >= :start AND start < :end"))
    with ledger.changing() as connection:
        _lock_sums(connection)
        query = f"SELECT {', '.join(keys)}, start FROM {table} WHERE {which} LIMIT 1"  # noqa: S608 - our own names
        first = connection.execute(sa.text(query)).mappings().one_or_none()
        if first is not None:
            given = {**first, "end": first["start"] + _DAY_S}
            connection.execute(sa.text(f"DELETE FROM {table} WHERE {inside} AND {which}"), given)  # noqa: S608
    return first is not None


def _may_fold(connection: Connection) -> bool:
    """Whether this transaction is the only one that changes the sums; SQLite has one writer anyway."""
    return connection.dialect.name == "sqlite" or bool(connection.scalar(_TRY_LOCK))


def _lock_sums(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK)


_TRY_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(7231990417)")
_LOCK = sa.text("SELECT pg_advisory_xact_lock(7231990417)")
_IS_BEHIND = sa.text(
    "SELECT 1 FROM sums_state UNION ALL SELECT * FROM (SELECT 1 FROM unsummed LIMIT 1 OFFSET :page) AS many "
    "UNION ALL SELECT * FROM (SELECT 1 FROM taken_back LIMIT 1 OFFSET :page) AS more LIMIT 1"
).bindparams(page=PAGE)


def _fold_page(connection: Connection) -> bool:
    """Fold the oldest of what is left; returns whether there may be more."""
    since_us = _since(connection)
    found = {"ids": _claimed(connection, since_us), "taken": _taken(connection, since_us)}
    if not any(found.values()):
        return False
    given = {name: _array(connection, ids) for name, ids in found.items()}
    for statement in (*_statements(connection.dialect.name, "page"), *_DONE[connection.dialect.name]):
        connection.execute(statement, given)
    low, high = connection.execute(_DAYS[connection.dialect.name], given).one()
    _leave_out_full_labels(connection, low, high)
    return max(map(len, found.values())) >= PAGE


def _build_page(connection: Connection) -> bool:
    """Add the newest attempts that an older version left; returns whether there were any, so that there may be more."""
    high_us = _since(connection)
    if high_us is None:
        return False
    first_us = removed(connection).whole_days_us or _ALWAYS
    query = "SELECT ts_us FROM attempt WHERE ts_us >= :first AND ts_us < :high ORDER BY ts_us DESC LIMIT 1 OFFSET :page"
    low_us = connection.scalar(sa.text(query), {"first": first_us, "high": high_us, "page": _BUILD_PAGE})
    span = {"low": first_us if low_us is None else low_us, "high": high_us}
    for statement in _statements(connection.dialect.name, "build"):
        connection.execute(statement, span)
    buckets = connection.execute(_BUILT, span).one()
    _leave_out_full_labels(connection, *buckets)
    _set_since(connection, low_us)
    return True


def _since(connection: Connection) -> int | None:
    """From when on attempts are in the sums, in microseconds since 1970; None: all are."""
    return connection.scalar(sa.select(sums_state.c.since_us))


def _set_since(connection: Connection, since_us: int | None) -> None:
    connection.execute(sa.delete(sums_state))
    if since_us is not None:
        connection.execute(sa.insert(sums_state), {"since_us": since_us})


def _claimed(connection: Connection, since_us: int | None) -> list[Any]:
    """The ids of a page of attempts to fold, as the database has them."""
    joined = (
        "" if since_us is None else "CROSS JOIN attempt WHERE attempt.attempt_id = u.attempt_id AND ts_us >= :since"
    )
    # Whoever is changing an attempt right now keeps it.
    lock = "" if connection.dialect.name == "sqlite" else "FOR UPDATE OF u SKIP LOCKED"
    query = f"SELECT u.attempt_id FROM unsummed u {joined} ORDER BY u.attempt_id LIMIT {PAGE} {lock}"  # noqa: S608
    return list(connection.scalars(sa.text(query), {"since": since_us} if joined else {}))


def _taken(connection: Connection, since_us: int | None) -> list[Any]:
    query = f"SELECT taken_id FROM taken_back WHERE ts_us >= :since ORDER BY taken_id LIMIT {PAGE}"  # noqa: S608
    return list(connection.scalars(sa.text(query), {"since": _ALWAYS if since_us is None else since_us}))


def _array(connection: Connection, values: Sequence[Any]) -> Any:
    """Values as one parameter."""
    return json.dumps(values) if connection.dialect.name == "sqlite" else list(values)


# How a list of values is given in one parameter, by dialect.
_IN = {
    "sqlite": {"uuid": "IN (SELECT value FROM json_each(:{0}))", "bigint": "IN (SELECT value FROM json_each(:{0}))"},
    "postgresql": {"uuid": "= ANY(CAST(:{0} AS uuid[]))", "bigint": "= ANY(CAST(:{0} AS bigint[]))"},
}


def _any_of(dialect: str, kind: str, name: str) -> str:
    return _IN[dialect][kind].format(name)


_DONE = {
    dialect: [
        sa.text(f"DELETE FROM {table} WHERE {column} {_any_of(dialect, 'uuid', name)}")  # noqa: S608 - our own names
        for table, column, name in (
            ("unsummed", "attempt_id", "ids"),
            ("taken_back_label", "taken_id", "taken"),
            ("taken_back", "taken_id", "taken"),
        )
    ]
    for dialect in _IN
}
_DAYS = {
    dialect: sa.text(
        f"SELECT min(bucket), max(bucket) FROM attempt WHERE attempt_id {_any_of(dialect, 'uuid', 'ids')}"  # noqa: S608
    )
    for dialect in _IN
}
_BUILT = sa.text("SELECT min(bucket), max(bucket) FROM attempt WHERE ts_us >= :low AND ts_us < :high")


def _leave_out_full_labels(connection: Connection, first: int | None, last: int | None) -> None:
    """Delete the sums of labels that have too many values on a day of these buckets, and note that there are none."""
    if first is None or last is None:
        return
    # Where attempts have been removed, nothing but sums is left.
    first_day = max(first * BUCKET_S // _DAY_S * _DAY_S, removed(connection).whole_days_us // 10**6)
    days = {"first": first_day, "last": last * BUCKET_S, "most": MAX_VALUES}
    for owner, day in connection.execute(_FULL, days).all():
        connection.execute(sa.insert(unsummed_label), {"owner": owner, "day": day})
        for statement in _DELETE_OWNER:
            connection.execute(statement, {"owner": owner, "day": day, "end": day + _DAY_S})


_FULL = sa.text(
    f"SELECT owner, start FROM sums WHERE split = 0 AND grain = {_DAY_S} AND start >= :first AND start <= :last "  # noqa: S608
    "AND owner <> '' GROUP BY owner, start HAVING count(*) > :most"
)
_DELETE_OWNER = [
    sa.text(f"DELETE FROM {table} WHERE {key} grain = {grain} AND start >= :day AND start < :end AND owner = :owner")  # noqa: S608
    for grain in _LABEL_GRAINS
    for table, key in (("sums", "split = 0 AND"), ("sums", "split = 1 AND"), ("latency", ""))
]


# What is summed of an attempt, in SQL on its columns. NULL is 0, and takes no room.

_SAVED = {
    "sqlite": (
        "CASE WHEN operation = 'vision' THEN CASE WHEN json_valid(metadata) THEN "
        "CASE WHEN json_type(metadata, '$.{0}') = 'integer' THEN json_extract(metadata, '$.{0}') END END END"
    ),
    "postgresql": (
        "CASE WHEN operation = 'vision' THEN CASE WHEN json_typeof(metadata -> '{0}') = 'number' THEN "
        "CASE WHEN metadata ->> '{0}' ~ '^-?[0-9]{{1,18}}$' THEN CAST(metadata ->> '{0}' AS bigint) END END END"
    ),
}


@lru_cache(maxsize=2)
def expressions(dialect: str) -> Mapping[str, str]:
    """What each of VALUES adds up, as SQL on the columns of an attempt that is settled."""
    found = {
        "requests": "1",
        **{name: f"coalesce({name}, 0)" for name in (*SUMS, "cache_write_tokens")},
        "unknown_requests": "CASE WHEN cost_nano IS NULL THEN 1 END",
        "unknown_calls": "CASE WHEN cost_nano IS NULL THEN calls END",
        "lower_bound_requests": "CASE WHEN cost_is_lower_bound THEN 1 END",
        "lower_bound_nano": "CASE WHEN cost_is_lower_bound THEN cost_nano END",
        "adjustment_requests": "CASE WHEN adjustment_kind IS NOT NULL THEN 1 END",
        "adjustment_nano": "CASE WHEN adjustment_kind IS NOT NULL THEN cost_nano END",
        # Sent, and not answered to the end.
        "failed_requests": "CASE WHEN status IN ('failed', 'interrupted', 'unsettled') THEN 1 END",
        # Answered by the second attempt or a later one: a retry, or another model.
        "retried_calls": "CASE WHEN attempt_number > 1 THEN calls END",
        **{name: _SAVED[dialect].format(name) for name in IN_METADATA},
    }
    return {name: found[name] for name in VALUES}


_SHORTER = " ".join(f"WHEN duration_us < {ms * 1000} THEN {place}" for place, ms in enumerate(LATENCY_MS))
# In which place of the latencies an attempt counts; NULL for one that was not answered.
PLACE = f"CASE WHEN status <> 'ok' OR duration_us IS NULL THEN NULL {_SHORTER} ELSE {len(LATENCY_MS)} END"


def _rows(dialect: str, sign: int, identity: str, source: str) -> str:
    """Settled attempts, or what they were, with what each adds to the sums."""
    numbers = (f"{sign} * ({what}) AS {name}" for name, what in expressions(dialect).items())
    return (
        f"SELECT {identity} AS id, CAST(bucket AS bigint) AS bucket, conversation, provider, model, operation, "
        f"coalesce(tool, '') AS tool, coalesce(agent, '') AS agent, {PLACE} AS place, {', '.join(numbers)} {source}"
    )


def _not_noted(inside: str) -> str:
    """The settled attempts that are not left to fold."""
    noted = "SELECT 1 FROM unsummed WHERE unsummed.attempt_id = attempt.attempt_id"
    return f"FROM attempt WHERE {inside} AND status <> 'started' AND NOT EXISTS ({noted})"


_NOT_LABELLED = " AND ".join(
    f"NOT EXISTS (SELECT 1 FROM {table} l WHERE l.{column} = p.id)"  # noqa: S608 - our own names
    for table, column in (("label", "attempt_id"), ("taken_back_label", "taken_id"))
)
_LABELLED = "\nUNION ALL\n".join(
    (
        *(
            f"SELECT '{_LABEL}' || l.name AS owner, l.value AS value, p.* FROM page p CROSS JOIN {table} l "  # noqa: S608
            f"WHERE l.{column} = p.id"
            for table, column in (("label", "attempt_id"), ("taken_back_label", "taken_id"))
        ),
        f"SELECT '{_LABEL}', '', p.* FROM page p WHERE p.conversation IS NULL AND {_NOT_LABELLED}",  # noqa: S608
    )
)


def _with(*rows: str, before: str = "") -> str:
    """The attempts in `page`, and in `labelled` once for each of their labels that has sums of that day."""
    # MATERIALIZED: worked out once, not for every sum.
    return (
        f"WITH {before} page AS MATERIALIZED ({' UNION ALL '.join(rows)}), all_labelled AS ({_LABELLED}), "  # noqa: S608
        "labelled AS MATERIALIZED (SELECT * FROM all_labelled WHERE NOT EXISTS (SELECT 1 FROM unsummed_label u "
        f"WHERE u.owner = all_labelled.owner AND u.day = {_start(_DAY_S)}))"
    )


def _start(grain: int) -> str:
    """The first second of the quarter, hour or day of a bucket; a remainder may be negative."""
    buckets = grain // BUCKET_S
    return f"(bucket - ((bucket % {buckets}) + {buckets}) % {buckets}) * {BUCKET_S}"


def _grouped(split: int, grain: int, source: str, owner: str, value: str) -> str:
    keys = SUM_KEY[5:]
    dimensions = ", ".join(keys if split else ("''" for _ in keys))
    numbers = ", ".join(f"sum({name})" for name in VALUES)
    groups = [_start(grain), *((owner, value) if owner != "''" else ()), *(keys if split else ())]
    return (
        f"SELECT {split}, {grain}, {_start(grain)}, {owner}, {value}, {dimensions}, {numbers} "  # noqa: S608
        f"FROM {source} GROUP BY {', '.join(groups)}"
    )


def _all_groups() -> str:
    selects = [_grouped(split, grain, "page", "''", "''") for split in (0, 1) for grain in GRAINS]
    selects += [_grouped(split, grain, "labelled", "owner", "value") for split in (0, 1) for grain in _LABEL_GRAINS]
    return "\nUNION ALL\n".join(selects)


def _all_latencies() -> str:
    return "\nUNION ALL\n".join(
        f"SELECT {grain}, {_start(grain)}, {owner}, provider, model, place, sum(requests) FROM {source} "  # noqa: S608
        f"WHERE place IS NOT NULL GROUP BY {', '.join((_start(grain), *groups, 'provider', 'model', 'place'))}"
        for grain in LATENCY_GRAINS
        for source, owner, groups in (("page", "'', ''", ()), ("labelled", "owner, value", ("owner", "value")))
    )


def _added(name: str) -> str:
    return f"{name} = coalesce(sums.{name} + excluded.{name}, sums.{name}, excluded.{name})"


def _into_sums() -> str:
    return (
        f"INSERT INTO sums ({', '.join((*SUM_KEY, *VALUES))})\n{_all_groups()}\n"
        f"ON CONFLICT ({', '.join(SUM_KEY)}) DO UPDATE SET {', '.join(map(_added, VALUES))}"
    )


def _into_latency() -> str:
    return (
        f"INSERT INTO latency ({', '.join(LATENCY_KEY)}, answers)\n{_all_latencies()}\n"
        f"ON CONFLICT ({', '.join(LATENCY_KEY)}) DO UPDATE SET answers = latency.answers + excluded.answers"
    )


@lru_cache(maxsize=8)
def _statements(dialect: str, kind: str) -> tuple[sa.TextClause, ...]:
    """What adds attempts to the sums: a page that was claimed, or those of a time that are in none."""
    if kind == "page":
        taken = f"FROM taken_back WHERE taken_id {_any_of(dialect, 'uuid', 'taken')}"
        ids = f"FROM attempt WHERE attempt_id {_any_of(dialect, 'uuid', 'ids')} AND status <> 'started'"
        rows: tuple[str, ...] = (_rows(dialect, 1, "attempt_id", ids), _rows(dialect, -1, "taken_id", taken))
    else:
        rows = (_rows(dialect, 1, "attempt_id", _not_noted(_INSIDE)),)
    if dialect == "sqlite":  # the transaction is the only one that writes
        forget = () if kind == "page" else tuple(map(sa.text, _FORGET_TAKEN))
        return *forget, *(sa.text(f"{_with(*rows)}\n{into}") for into in (_into_sums(), _into_latency()))
    # One statement, so that all of it sees the same moment. What was taken back of attempts in no sum is forgotten.
    before = "" if kind == "page" else _FORGET_TAKEN_AT_ONCE
    return (sa.text(f"{_with(*rows, before=before)},\ninto_sums AS ({_into_sums()})\n{_into_latency()}"),)


_INSIDE = "ts_us >= :low AND ts_us < :high"
_STARTED = "'started'"
_FORGET_TAKEN = [
    f"DELETE FROM {table} WHERE taken_id IN (SELECT taken_id FROM taken_back WHERE {_INSIDE})"  # noqa: S608
    for table in ("taken_back_label", "taken_back")
]
_FORGET_TAKEN_AT_ONCE = (
    f"gone AS (DELETE FROM taken_back WHERE {_INSIDE} RETURNING taken_id), "  # noqa: S608 - our own names
    "gone_labels AS (DELETE FROM taken_back_label WHERE taken_id IN (SELECT taken_id FROM gone)),"
)


def move_owner(connection: Connection, owner: Owner, value: str, day: int) -> None:
    """
    Add the sums of a label's value to those of another one; to be called in the transaction that changes the labels.

    Args:
        owner: The label's value.

        value: The other value.

        day: The UTC day, by its first second; sums of what was taken back on other days are not moved.
    """
    _lock_sums(connection)
    given = {"owner": owner.owner, "value": owner.value, "other": value, "first": day, "end": day + _DAY_S}
    for statement in _MOVE_OWNER:
        connection.execute(statement, given)


# Before attempts are removed


def keep_quarters(ledger: Ledger, since_us: int, until_us: int) -> int:
    """
    Add the sums of quarters of an hour by label of a page of attempts, which do not change any more.

    Without them the days of some time zones could not be told apart by label when the attempts are gone. Doing it twice
    changes nothing.

    Args:
        since_us, until_us: The time that the attempts are in, of whole quarters, in microseconds since 1970.

    Returns:
        From when on it is still to be done; `until_us` where it is done.

    Raises:
        StoreError: The ledger cannot be written.
    """
    quarter_us = BUCKET_S * 10**6
    with ledger.changing() as connection:
        _lock_sums(connection)
        inside = {"low": since_us, "high": until_us, "page": _BUILD_PAGE}
        query = f"SELECT ts_us FROM attempt WHERE {_INSIDE} ORDER BY ts_us LIMIT 1 OFFSET :page"  # noqa: S608
        end_us = connection.scalar(sa.text(query), inside)
        if end_us is not None:
            inside["high"] = max(end_us // quarter_us * quarter_us, since_us + quarter_us)
        given = inside | {"first": since_us // 10**6, "end": inside["high"] // 10**6}
        for statement in _KEEP_QUARTERS[connection.dialect.name]:
            connection.execute(statement, given)
        return inside["high"]


def _moving(table: str, keys: tuple[str, ...], numbers: tuple[str, ...], added: str) -> list[sa.TextClause]:
    inside = "owner = :owner AND value = :value AND start >= :first AND start < :end"
    inside = f"{'split IN (0, 1) AND ' * ('split' in keys)}grain IN {GRAINS} AND {inside}"  # as the key begins
    read = ", ".join("CAST(:other AS varchar(200))" if key == "value" else key for key in keys)
    return [
        sa.text(
            f"INSERT INTO {table} ({', '.join((*keys, *numbers))}) "  # noqa: S608 - our own names
            f"SELECT {read}, {', '.join(numbers)} FROM {table} WHERE {inside} "
            f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {added}"
        ),
        sa.text(f"DELETE FROM {table} WHERE {inside}"),  # noqa: S608 - our own names
    ]


_MOVE_OWNER = [
    *_moving("sums", SUM_KEY, VALUES, ", ".join(map(_added, VALUES))),
    *_moving("latency", LATENCY_KEY, ("answers",), "answers = latency.answers + excluded.answers"),
]
_KEEP_QUARTERS = {
    dialect: [
        *(
            sa.text(
                f"DELETE FROM sums WHERE split = {split} AND grain = {BUCKET_S} "  # noqa: S608 - our own names
                "AND start >= :first AND start < :end AND owner <> ''"
            )
            for split in (0, 1)
        ),
        sa.text(
            f"{_with(_rows(dialect, 1, 'attempt_id', f'FROM attempt WHERE {_INSIDE} AND status <> {_STARTED}'))}\n"
            f"INSERT INTO sums ({', '.join((*SUM_KEY, *VALUES))})\n"
            + "\nUNION ALL\n".join(_grouped(split, BUCKET_S, "labelled", "owner", "value") for split in (0, 1))
        ),
    ]
    for dialect in _IN
}


def names_of_removed(connection: Connection) -> list[str]:
    """The names of labels that sums have of attempts that have been removed."""
    gone = removed(connection)
    if not gone.rows_us:
        return []
    query = f"SELECT DISTINCT owner FROM sums WHERE split = 0 AND grain = {_DAY_S} AND start < :end AND owner > :label"  # noqa: S608
    given = {"end": gone.rows_us // 10**6, "label": _LABEL}
    return [owner.removeprefix(_LABEL) for owner in connection.scalars(sa.text(query), given)]


# Checking


def wrong(connection: Connection) -> int:
    """The number of sums that are not what their attempts add up to."""
    return _wrong(connection, "sums", _all_groups(), SUM_KEY, VALUES) + _wrong(
        connection, "latency", _all_latencies(), LATENCY_KEY, ("answers",)
    )


def _wrong(connection: Connection, table: str, expected: str, keys: tuple[str, ...], numbers: tuple[str, ...]) -> int:
    dialect, since_us = connection.dialect.name, _since(connection)
    first_us = removed(connection).whole_days_us or _ALWAYS  # of the time before there are only sums
    inside = "ts_us >= :since"
    rows = (
        _rows(dialect, 1, "attempt_id", _not_noted(inside)),
        _rows(dialect, 1, "taken_id", f"FROM taken_back WHERE {inside}"),
    )
    key, names = ", ".join(keys), ", ".join((*keys, *numbers))
    negative = ", ".join(f"-{name}" for name in numbers)
    differs = " OR ".join(f"coalesce(sum({name}), 0) <> 0" for name in numbers)
    query = (
        f"{_with(*rows)}, expected ({names}) AS ({expected}), "  # noqa: S608 - our own names
        f"both_ AS (SELECT {names} FROM expected "
        f"UNION ALL SELECT {key}, {negative} FROM {table} WHERE start >= :first) "
        f"SELECT count(*) FROM (SELECT 1 FROM both_ GROUP BY {key} HAVING {differs}) AS different"
    )
    given = {"since": max(first_us, _ALWAYS if since_us is None else since_us), "first": first_us // 10**6}
    return connection.scalar(sa.text(query), given) or 0


# Reading

Range = tuple[int, int]
Numbers = list[int]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose sums: everything's, those of a label's value, or of a label's values, each by itself."""

    owner: str = ""
    value: str | None = ""

    @classmethod
    def of_label(cls, name: str, value: str | None = None) -> Owner:
        return cls(f"{_LABEL}{name}", value)

    @property
    def grains(self) -> tuple[int, ...]:
        return _LABEL_GRAINS if self.owner else GRAINS


UNLABELLED = Owner(_LABEL, "")


@dataclass(frozen=True, slots=True)
class Plan:
    """
    How a window is answered: `summed` from sums, in seconds since 1970, and `rows` from rows, in microseconds.

    `known` is where there are sums at all. `midnights` are the seconds at which its days begin. `reason` says why more
    is read from rows than the ends of the window. Attempts before `removed_us` have been removed; `is_incomplete` says
    whether they are missing.
    """

    summed: tuple[Range, ...]
    rows: tuple[Range, ...]
    known: Range = (0, 0)
    midnights: tuple[int, ...] = ()
    reason: str | None = None
    removed_us: int = 0
    is_incomplete: bool = False


class Removed(NamedTuple):
    """Before which times attempts, and sums, have been removed, in microseconds since 1970."""

    rows_us: int = 0
    sums_us: int = 0

    @property
    def whole_days_us(self) -> int:
        """The first UTC day whose attempts are all there."""
        return -(-self.rows_us // (_DAY_S * 10**6)) * _DAY_S * 10**6


def removed(connection: Connection) -> Removed:
    """What has been removed from the ledger."""
    found = connection.execute(sa.select(pruned.c.rows_us, pruned.c.sums_us)).one_or_none()
    return Removed() if found is None else Removed(*found)


class _State(NamedTuple):
    """What has been removed, from when on attempts are in the sums (None: all), and from which day to which."""

    gone: Removed
    since_us: int | None
    known: Range


def _state(connection: Connection) -> _State:
    rows_us, sums_us, since_us, first, last = connection.execute(_STATE).one()
    known = (0, 0) if first is None else (first, last + _DAY_S)
    return _State(Removed(rows_us or 0, sums_us or 0), since_us, known)


_OF_DAYS = f"FROM sums WHERE split = 0 AND grain = {_DAY_S}"
_STATE = sa.text(
    "SELECT (SELECT rows_us FROM pruned), (SELECT sums_us FROM pruned), (SELECT since_us FROM sums_state), "  # noqa: S608
    f"(SELECT min(start) {_OF_DAYS}), (SELECT max(start) {_OF_DAYS})"
)


def removed_note(connection: Connection) -> str:
    """That records have been removed, as the end of a sentence that says that something is not there."""
    rows_us = removed(connection).rows_us
    return f"; records before {datetime.fromtimestamp(rows_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC were removed" * bool(
        rows_us
    )


def warn_of_removed(ledger: Ledger, since_us: int, missing_in: str) -> None:
    """
    Warn if records since a moment have been removed.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        rows_us = removed(connection).rows_us
    if rows_us > since_us:
        when = f"{datetime.fromtimestamp(rows_us / 1e6, UTC):%Y-%m-%d %H:%M}"
        logger.warning("Records before %s UTC were removed and are not in %s.", when, missing_in)


def from_rows(connection: Connection, since_us: int, until_us: int) -> Plan:
    """How to answer a window of which there are no sums."""
    return _without_removed(_state(connection), Plan((), ((since_us, until_us),)), since_us)


def _without_removed(state: _State, how: Plan, since_us: int) -> Plan:
    """The plan without the rows that have been removed, and whether they are missing."""
    gone = state.gone
    if since_us >= gone.rows_us:
        return how
    first_us = state.known[0] * 10**6  # there never were any before
    missing = [begin for begin, end in how.rows if max(begin, first_us) < min(end, gone.rows_us)]
    rows = _not_empty((max(begin, gone.rows_us), end) for begin, end in how.rows)
    return replace(how, rows=rows, removed_us=gone.rows_us, is_incomplete=bool(missing) or since_us < gone.sums_us)


def plan(
    connection: Connection,
    since_us: int,
    until_us: int,
    owners: Sequence[Owner],
    zone: ZoneInfo | None = None,
    finest: int = BUCKET_S,
) -> Plan:
    """
    How to answer a window from the sums of these owners.

    Args:
        zone: Whose days are reported each by itself.

        finest: The smallest grain that may be used.
    """
    state = _state(connection)
    gone, built_us, known = state
    coarse = max(finest, *(owner.grains[0] for owner in owners))
    low_us = max(since_us, min(gone.sums_us, until_us))
    reason = _BUILDING if built_us is not None and built_us > low_us else None
    low_us = low_us if built_us is None else min(max(low_us, built_us), until_us)
    # What has been removed has sums of every quarter.
    step, last_step = (finest if 0 < us <= gone.rows_us else coarse for us in (low_us, until_us))
    first, last = -(-low_us // (step * 10**6)) * step, until_us // (last_step * 10**6) * last_step
    if first >= last:
        return _without_removed(state, Plan((), ((since_us, until_us),), reason=reason), since_us)
    midnights = _midnights(zone, max(first, known[0]), min(last, known[1])) if zone is not None else ()
    since_row = gone.rows_us // 10**6 if coarse > finest else 0
    cuts = [second for second in (since_row, *midnights) if second >= since_row and second % coarse]
    holes = [(max(second // coarse * coarse, since_row), second // coarse * coarse + coarse) for second in cuts]
    if full := _full_days(connection, owners, first, last):
        reason = reason or _FULL_LABEL
        holes += full
    summed = []
    rows = [(since_us, first * 10**6), (last * 10**6, until_us)]
    at = first
    for hole in sorted(holes):
        begin, end = max(hole[0], at), min(hole[1], last)
        if begin < end:
            summed.append((at, begin))
            rows.append((begin * 10**6, end * 10**6))
            at = end
    summed.append((at, last))
    how = Plan(_not_empty(summed), _not_empty(sorted(rows)), known, midnights, reason)
    return _without_removed(state, how, since_us)


def _midnights(zone: ZoneInfo, first: int, last: int) -> tuple[int, ...]:
    """The seconds between at which days begin."""
    if first >= last:
        return ()
    day, end = (datetime.fromtimestamp(second, zone).date() for second in (first, last))
    found = []
    while day < end:
        day += timedelta(days=1)
        found.append(int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()))
    return tuple(second for second in found if first < second < last)


_BUILDING = "the sums of an older ledger are still being computed"
_FULL_LABEL = f"a label has more than {MAX_VALUES:,} values on a day"


def _not_empty(ranges: Iterable[Range]) -> tuple[Range, ...]:
    return tuple((begin, end) for begin, end in ranges if begin < end)


def _full_days(connection: Connection, owners: Sequence[Owner], first: int, last: int) -> list[Range]:
    names = [owner.owner for owner in owners if owner.owner]
    if not names:
        return []
    query = sa.select(unsummed_label.c.day).where(
        unsummed_label.c.owner.in_(names), unsummed_label.c.day > first - _DAY_S, unsummed_label.c.day < last
    )
    return [(day, day + _DAY_S) for day in connection.scalars(query)]


def read(
    connection: Connection, how: Plan, owner: Owner, keys: Sequence[str], names: Sequence[str], *, split: int = 1
) -> Iterator[tuple[tuple[Any, ...], Numbers]]:
    """
    The sums of the summed part of a window by `keys`, columns of the table; what is left to fold is in `left`.

    A key may come more than once. Those with "start" begin in the day that they belong to. Nothing has to be sorted
    for keys in the order of SUM_KEY that leave out none but the owner and the value.

    Args:
        names: Which of VALUES, in this order.
    """
    cuts = how.midnights if "start" in keys else ()
    query = _reading(connection.dialect.name, tuple(keys), tuple(names), owner.value is None)
    for grain, starts in _starts(how, owner.grains, cuts, GRAINS).items():
        for place in range(0, len(starts), _STARTS):
            given = {"split": split, "grain": grain, "owner": owner.owner}
            given |= {} if owner.value is None else {"value": owner.value}
            given |= {"starts": _array(connection, starts[place : place + _STARTS])}
            for row in connection.execute(query, given):
                yield tuple(row[: len(keys)]), _numbers(row[len(keys) :])


def read_latencies(connection: Connection, how: Plan, owner: Owner) -> Iterator[tuple[tuple[str, str, int], int]]:
    """By provider, model and place, how many answers took how long in the summed part of a window."""
    query = _LATENCIES[connection.dialect.name]
    for grain, starts in _starts(how, LATENCY_GRAINS, (), LATENCY_GRAINS).items():
        for place in range(0, len(starts), _STARTS):
            given = {"grain": grain, "owner": owner.owner, "value": owner.value}
            for row in connection.execute(
                query, {**given, "starts": _array(connection, starts[place : place + _STARTS])}
            ):
                yield (row[0], row[1], row[2]), int(row[3])


_LATENCIES = {
    dialect: sa.text(
        "SELECT provider, model, place, sum(answers) FROM latency WHERE grain = :grain AND owner = :owner "  # noqa: S608
        f"AND value = :value AND start {_any_of(dialect, 'bigint', 'starts')} GROUP BY provider, model, place"
    )
    for dialect in _IN
}
_STARTS = 2000


@lru_cache(maxsize=32)
def _reading(dialect: str, keys: tuple[str, ...], names: tuple[str, ...], is_every_value: bool) -> sa.TextClause:
    numbers = ", ".join(f"sum({name})" for name in names)
    columns = ", ".join(keys)
    value = "" if is_every_value else "AND value = :value"
    return sa.text(
        f"SELECT {columns}{', ' if keys else ''}{numbers} FROM sums WHERE split = :split AND grain = :grain "  # noqa: S608
        f"AND start {_any_of(dialect, 'bigint', 'starts')} AND owner = :owner {value} "
        f"{f'GROUP BY {columns}' if keys else ''}"
    )


def _numbers(row: Sequence[Any]) -> Numbers:
    return [int(number or 0) for number in row]


def _starts(
    how: Plan, grains: tuple[int, ...], cuts: Sequence[int], of_removed: tuple[int, ...]
) -> dict[int, list[int]]:
    """
    The sums that make up the summed part of a window, by grain: as few as there can be.

    Args:
        of_removed: The grains that there are where attempts have been removed.
    """
    found: dict[int, list[int]] = {}
    since_row = how.removed_us // 10**6 if of_removed != grains else 0
    for span in how.summed:
        begin, end = max(span[0], how.known[0]), min(span[1], how.known[1])
        inner = sorted({cut for cut in (since_row, *cuts) if begin < cut < end})
        for low, high in zip([begin, *inner], [*inner, end], strict=True):
            for grain, first, last in _cover(low, high, of_removed if low < since_row else grains):
                found.setdefault(grain, []).extend(range(first, last, grain))
    return found


def _cover(low: int, high: int, grains: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """A span as sums of the largest grains that fit, where `low` and `high` lie between two sums of the smallest."""
    if low >= high:
        return
    grain = grains[-1]
    first, last = -(-low // grain) * grain, high // grain * grain
    if first >= last:
        yield from _cover(low, high, grains[:-1])
        return
    yield grain, first, last
    if len(grains) > 1:
        yield from _cover(low, first, grains[:-1])
        yield from _cover(last, high, grains[:-1])


def left(
    connection: Connection, how: Plan, owner: Owner, keys: Sequence[str], names: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], Numbers]]:
    """What is left to fold of the summed part of a window, by `keys`, which may be "bucket" as well."""
    if not how.summed or connection.scalar(_IS_LEFT) is None:
        return
    kind = (bool(owner.owner), owner.value is None)
    query = _leaving(connection.dialect.name, tuple(keys), tuple(names), *kind, len(how.summed))
    given: dict[str, Any] = {"owner": owner.owner, "value": owner.value} if owner.owner else {}
    for place, (begin, end) in enumerate(how.summed):
        given |= {f"begin{place}": begin * 10**6, f"end{place}": end * 10**6}
    for row in connection.execute(query, {name: value for name, value in given.items() if value is not None}):
        yield tuple(row[: len(keys)]), _numbers(row[len(keys) :])


@lru_cache(maxsize=32)
def _leaving(
    dialect: str, keys: tuple[str, ...], names: tuple[str, ...], is_label: bool, is_every_value: bool, ranges: int
) -> sa.TextClause:
    inside = " OR ".join(f"ts_us >= :begin{place} AND ts_us < :end{place}" for place in range(ranges))
    attempts = "FROM unsummed u CROSS JOIN attempt WHERE attempt.attempt_id = u.attempt_id AND status <> 'started'"
    rows = (
        _rows(dialect, 1, "attempt.attempt_id", f"{attempts} AND ({inside})"),
        _rows(dialect, -1, "taken_id", f"FROM taken_back WHERE {inside}"),
    )
    columns, numbers = ", ".join(keys), ", ".join(f"sum({name})" for name in names)
    value = "" if is_every_value else "AND value = :value"
    source = f"labelled WHERE owner = :owner {value}" if is_label else "page"
    return sa.text(f"{_with(*rows)} SELECT {columns}, {numbers} FROM {source} GROUP BY {columns}")  # noqa: S608


_IS_LEFT = sa.text("SELECT 1 FROM unsummed UNION ALL SELECT 1 FROM taken_back LIMIT 1")


def costs(
    connection: Connection, dimensions: Sequence[str], group: Sequence[str], since_us: int, until_us: int
) -> tuple[int, Plan] | None:
    """
    Nano-dollars that a budget's group has spent in the summed part of a window, and which part that is.

    Args:
        dimensions: Such as "tool", "agent" or "label:customer"; the group has a value of each, "" for none.

    Returns:
        None when there are no sums of these dimensions.
    """
    everything = Owner()
    if not dimensions:
        how = plan(connection, since_us, until_us, [everything])
        return _cost(connection, how, everything), how
    if len(dimensions) > 1 or dimensions[0] == "run":
        return None
    kind, _, name = dimensions[0].partition(":")
    if kind != "label":
        how = plan(connection, since_us, until_us, [everything])
        return _cost(connection, how, everything, kind, group[0]), how
    labelled = Owner.of_label(name, group[0] or None)
    how = plan(connection, since_us, until_us, [everything, labelled])
    of_label = _cost(connection, how, labelled)
    return (of_label if group[0] else _cost(connection, how, everything) - of_label), how


def _cost(connection: Connection, how: Plan, owner: Owner, key: str | None = None, value: str = "") -> int:
    keys, names = ("owner",) if key is None else (key,), ("cost_nano",)
    found = read(connection, how, owner, keys, names, split=0 if key is None else 1)
    # In `left` the sums of everything have no column of that name.
    rest = left(connection, how, owner, keys if key or owner.owner else ("place",), names)
    return sum(nano for each, [nano] in chain(found, rest) if key is None or each[0] == value)
