"""The view `costs_v1`: one row for each request, for dashboards and notebooks; its columns never change or go away."""

from __future__ import annotations

from sqlalchemy.engine import Connection

NAME = "costs_v1"
# What SQLite and PostgreSQL write differently.
_WORDS = {
    "sqlite": {
        "time": "strftime('%Y-%m-%d %H:%M:%f', a.ts_us / 1000000.0, 'unixepoch')",
        "id": "{0}",
        "usd": "{0} / 1000000000.0",
        "labels": "json_group_object(l.name, l.value)",
        "empty": "'{}'",
    },
    "postgresql": {
        "time": "to_timestamp(a.ts_us / 1000000.0)",
        "id": "CAST({0} AS text)",
        "usd": "{0} / CAST(1000000000 AS numeric)",
        "labels": "json_object_agg(l.name, l.value)",
        "empty": "CAST('{}' AS json)",
    },
}
_REMOVED = "(SELECT coalesce(max(rows_us), 0) FROM pruned)"
# Column, its SQL (None: the attempt's column of the same name), and what it is, as docs/dashboards.md has it.
COLUMNS: tuple[tuple[str, str | None, str], ...] = (
    ("attempt_id", "id:a.attempt_id", "id of the request"),
    ("call_id", "id:a.call_id", "id of the call that it was made for, as answers and errors carry it"),
    ("attempt_number", None, "1 for the first request of a call"),
    ("time", "time", "when it started, UTC: text on SQLite, `timestamptz` on PostgreSQL"),
    ("time_us", "a.ts_us", "the same in microseconds since 1970; filter by this one, which has an index"),
    ("status", None, "ok, failed, cancelled, interrupted, refused, unsettled, reported or rejected_response"),
    ("operation", None, "chat_completion, vision, image_generation, adjustment, or what was reported"),
    ("provider", None, "provider that was asked"),
    ("requested_model", None, "model as it was asked for"),
    ("model", None, "model as `provider/name`"),
    ("response_model", None, "model as the answer names it"),
    ("service_tier", None, "tier as served; NULL where it is not reported"),
    ("tool", None, "tool that made the call; NULL for none"),
    ("agent", None, "agent that made it; NULL for none"),
    ("run", None, "run of the agent, or of the process"),
    ("input_tokens", "a.prompt_tokens", "input, cached tokens included; NULL where unknown"),
    ("cached_tokens", None, "input that was read from the provider's cache"),
    ("output_tokens", "a.completion_tokens", "output, reasoning included; NULL where unknown"),
    ("reasoning_tokens", None, "output that was reasoning"),
    ("cost_nano", None, "cost in billionths of US$, a whole number; NULL where it is unknown, which is not 0"),
    ("cost_usd", "usd:a.cost_nano", "the same in US$: exact on PostgreSQL; NULL where it is unknown"),
    ("cost_is_unknown", "a.cost_nano IS NULL", "whether the cost is unknown: count these beside every sum"),
    ("cost_is_lower_bound", None, "whether something that was billed has no known price"),
    ("cost_source", None, "how the cost is known: provider, table, config, counted, bound, reported, free, unknown"),
    ("price_version", None, "price table, or whose price, it was computed from"),
    ("reserved_nano", "coalesce(a.reserved_nano, 0)", "what budgets reserve beyond the cost, in billionths of US$"),
    ("is_adjustment", "a.adjustment_kind IS NOT NULL", "whether it is a correction and no request"),
    ("calls", None, "1 where it answered a call, else 0: sum these to count calls"),
    ("failed_calls", None, "1 where a call ended with it unanswered, else 0"),
    ("duration_ms", "a.duration_us / 1000.0", "milliseconds until the answer was complete; NULL where unknown"),
    ("error_type", None, "error that it ended with; NULL for none"),
    ("http_status", None, "HTTP status of the answer; NULL for none"),
    ("labels", "labels", "labels of its scope as JSON: `labels ->> 'customer'` is the customer"),
    (
        "happened_us",
        None,
        "when it happened, if that was in a closed month and `time` is when it was entered; else NULL",
    ),
    (
        "removed_before_us",
        _REMOVED,
        "`ledger prune` has removed what was before; 0 if nothing was: the same in each row",
    ),
)


def create_views(connection: Connection) -> None:
    """Create the view anew, in the caller's transaction."""
    drop_views(connection)
    connection.exec_driver_sql(_select(connection.dialect.name))


def drop_views(connection: Connection) -> None:
    """Remove the view, so that the tables it reads can be changed."""
    connection.exec_driver_sql(f"DROP VIEW IF EXISTS {NAME}")


def _select(dialect: str) -> str:
    columns = ",\n  ".join(f"{_expression(name, sql, _WORDS[dialect])} AS {name}" for name, sql, _ in COLUMNS)
    # What is under way has no cost yet, and is in no report.
    return f"CREATE VIEW {NAME} AS SELECT\n  {columns}\nFROM attempt AS a WHERE a.status <> 'started'"


def _expression(name: str, sql: str | None, words: dict[str, str]) -> str:
    if sql == "labels":
        found = f"SELECT {words['labels']} FROM label AS l WHERE l.attempt_id = a.attempt_id"  # noqa: S608
        return f"coalesce(({found}), {words['empty']})"
    if sql == "time":
        return words["time"]
    kind, _, column = (sql or f"a.{name}").rpartition(":")
    return words[kind].format(column) if kind else column
