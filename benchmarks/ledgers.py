"""Ledgers of many rows: some attempts written by the product, copied in SQL to other times and customers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.appends import answered
from benchmarks.contest import BUILD, ROOT, console, environment

DAYS, CUSTOMERS, MODELS = 60, 1000, 8
_SAMPLE = 1000
_DAY_US = 86_400 * 1_000_000


def large_ledger(rows: int) -> Path:
    """A SQLite ledger of so many attempts of the last 60 days, by 1,000 customers; made once and kept in build/."""
    file = BUILD / f"ledger-{rows}.sqlite3"
    if not file.exists():
        console.print(f"making a ledger of {rows:,} rows ...", style="dim")
        unfinished = BUILD / f"unfinished-{rows}.sqlite3"
        for left in BUILD.glob(f"{unfinished.name}*"):
            left.unlink()
        variables = environment(AGENTSWARM_DATABASE_URL=f"sqlite:///{unfinished}", AGENTSWARM_STORE_TIMEOUT="60")
        # In a process that ends before the file is renamed: what has a ledger open may write to it until then.
        subprocess.run([sys.executable, "-m", "benchmarks.ledgers", str(rows)], cwd=ROOT, env=variables, check=True)
        for part in sorted(BUILD.glob(f"{unfinished.name}*"), reverse=True):
            part.rename(BUILD / part.name.replace(unfinished.name, file.name))
    return file


def _make(rows: int) -> None:
    from shared.analytics import get_llm_costs
    from shared.ledger import get_ledger, repair

    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    for write in [ledger.settle(_attempt(number)) for number in range(_SAMPLE)]:
        write.result()
    for number in range(1, rows // _SAMPLE):
        with ledger.changing() as connection:
            for statement in _copies(connection, number, rows // _SAMPLE):
                connection.exec_driver_sql(statement)
    # Its sums are computed from the rows: an index on what they are grouped by saves minutes.
    with ledger.changing() as connection:
        connection.exec_driver_sql("CREATE INDEX of_the_benchmark ON attempt (bucket)")
    repair(ledger)
    with ledger.changing() as connection:
        connection.exec_driver_sql("DROP INDEX of_the_benchmark")
    counted = get_llm_costs(DAYS + 1)["total_calls"]
    if counted != rows:
        raise SystemExit(f"the ledger has {counted:,} calls instead of {rows:,}")


def _attempt(number: int) -> Any:
    from shared.internal.clock import now_us

    provider = ("openai", "anthropic", "gemini")[number % 3]
    model = f"{provider}/model-{number % MODELS}"
    ts_us = now_us() - _DAY_US * DAYS * (_SAMPLE - number) // _SAMPLE
    return answered(
        ts_us=ts_us,
        bucket=ts_us // 900_000_000,
        provider=provider,
        requested_model=model,
        model=model,
        tool=("TextGeneration", "UnderstandImages", None)[number % 3],
        agent=("Writer", "Reviewer")[number % 2],
        cost_nano=1_000 * (number % 977),
        labels={"customer": f"customer-{number % CUSTOMERS}", "feature": f"feature-{number % 20}"},
    )


def _copies(connection: Any, number: int, of: int) -> tuple[str, str]:
    """Statements that copy the sample, each attempt a little later and for another customer."""
    names = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(attempt)")]
    shift = _DAY_US * DAYS // _SAMPLE * number // of
    number_text = f"{number:08x}"
    # The ids of the sample are 32 hexadecimal digits, of which the last eight number the copy.
    changed = {
        "attempt_id": f"substr(attempt_id, 1, 24) || '{number_text}'",
        "call_id": f"substr(call_id, 1, 24) || '{number_text}'",
        "ts_us": f"ts_us + {shift}",
        "bucket": f"(ts_us + {shift}) / 900000000",
    }
    columns = ", ".join(changed.get(name, name) for name in names)
    sample = f"(SELECT attempt_id FROM attempt ORDER BY rowid LIMIT {_SAMPLE})"  # noqa: S608 - no text from outside
    customer = f"'customer-' || ((CAST(substr(value, 10) AS INTEGER) + {number * 37}) % {CUSTOMERS})"
    label = f"{changed['attempt_id']}, name, CASE name WHEN 'customer' THEN {customer} ELSE value END"
    return (
        f"INSERT INTO attempt ({', '.join(names)}) SELECT {columns} FROM attempt WHERE attempt_id IN {sample}",  # noqa: S608
        f"INSERT INTO label (attempt_id, name, value) SELECT {label} FROM label WHERE attempt_id IN {sample}",  # noqa: S608
    )


if __name__ == "__main__":
    _make(int(sys.argv[1]))
