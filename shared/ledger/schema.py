"""The ledger's tables in their newest version; shared/ledger/migrations.py upgrades older ledgers to it."""

from __future__ import annotations

import sqlalchemy as sa

BUCKET_S = 900  # Since 2015 all time zones have offsets in multiples of 15 minutes, so local days are whole buckets.
# Programs refuse a ledger with a newer major version. A newer minor version only adds columns and tables that older
# programs do not need: new columns are nullable or have a default in the database.
MAJOR = 2
MINOR = 0


def bucket_of(ts_us: int) -> int:
    """The 15-minute bucket of a time."""
    return ts_us // (BUCKET_S * 1_000_000)


metadata = sa.MetaData()

meta = sa.Table(
    "ledger_meta",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)

attempt = sa.Table(
    "attempt",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("call_id", sa.Uuid, nullable=False),
    sa.Column("attempt_number", sa.Integer, nullable=False),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("bucket", sa.Integer, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("operation", sa.String(40), nullable=False),
    sa.Column("provider", sa.String(80), nullable=False),
    sa.Column("requested_model", sa.String(250), nullable=False),
    sa.Column("model", sa.String(250), nullable=False),
    sa.Column("response_model", sa.String(250)),
    sa.Column("response_id", sa.String(250)),
    sa.Column("tool", sa.String(120)),
    sa.Column("agent", sa.String(200)),
    sa.Column("run", sa.String(200)),
    sa.Column("conversation", sa.String(200)),
    sa.Column("key_alias", sa.String(200)),
    sa.Column("stream", sa.Boolean, nullable=False, default=False),
    sa.Column("duration_us", sa.BigInteger),
    sa.Column("first_chunk_us", sa.BigInteger),
    sa.Column("prompt_tokens", sa.BigInteger),
    sa.Column("completion_tokens", sa.BigInteger),
    sa.Column("cached_tokens", sa.BigInteger),
    sa.Column("cache_write_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("usage_source", sa.String(20), nullable=False, default="unknown"),
    sa.Column("cost_nano", sa.BigInteger),
    sa.Column("cost_source", sa.String(20), nullable=False, default="unknown"),
    sa.Column("price_version", sa.String(80)),
    sa.Column("bound_nano", sa.BigInteger),
    sa.Column("lease_us", sa.BigInteger),
    sa.Column("finish_reason", sa.String(60)),
    sa.Column("error_type", sa.String(60)),
    sa.Column("http_status", sa.Integer),
    sa.Column("calls", sa.Integer, nullable=False, default=0),
    sa.Column("failed_calls", sa.Integer, nullable=False, default=0),
    sa.Column("unpriced_calls", sa.Integer, nullable=False, default=0),
    sa.Column("metadata", sa.JSON),
    # Since 1.2. Last, so that a migrated ledger has its columns in the same order as a new one.
    sa.Column("units", sa.JSON(none_as_null=True)),  # unit -> count, for the units that the provider bills
    sa.Column("service_tier", sa.String(20)),  # as served
    sa.Column("price_table", sa.String(80)),  # version of the price table
    sa.Column("cost_is_lower_bound", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("reserved_nano", sa.BigInteger),  # reserved in budgets beyond the cost
    sa.Column("adjustment_kind", sa.String(20)),
    sa.Column("adjusts", sa.String(250)),  # what an adjustment refers to: the id of an attempt, or a text
    sa.Column("machine", sa.String(120)),  # name of the machine whose clock gave ts_us
    # Since 2.0. When it happened, or what it corrects did, if ts_us is when it was entered, because books were closed.
    sa.Column("happened_us", sa.BigInteger),
    sa.Index("ix_attempt_ts", "ts_us"),
    sa.Index("ix_attempt_call", "call_id"),
    sa.Index("ix_attempt_conversation", "conversation", "ts_us"),
)
UNKNOWN_COST = "cost_nano IS NULL AND status <> 'started'"
# Indexes of some of the attempts. As text, because SQLAlchemy would import PostgreSQL's dialect for the condition.
for _name, _column, _where in (
    ("ix_attempt_started", "lease_us", "status = 'started'"),
    ("ix_attempt_unknown_cost", "ts_us", UNKNOWN_COST),
    ("ix_attempt_lower_bound", "ts_us", "cost_is_lower_bound"),
    ("ix_attempt_reserved", "ts_us", "reserved_nano > 0"),
    ("ix_attempt_adjustment", "ts_us", "adjustment_kind IS NOT NULL"),
    ("ix_attempt_happened", "happened_us", "happened_us IS NOT NULL"),
):
    _index = sa.DDL(f"CREATE INDEX {_name} ON attempt ({_column}) WHERE {_where}")  # type: ignore[no-untyped-call]
    sa.event.listen(attempt, "after_create", _index)

label = sa.Table(
    "label",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(60), primary_key=True),
    sa.Column("value", sa.String(200), nullable=False),
    sa.Index("ix_label_value", "name", "value"),
)

SUMS = (
    "calls",
    "failed_calls",
    "unpriced_calls",
    "cost_nano",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "duration_us",
)
DIMENSIONS = ("provider", "model", "tool", "agent")

# Answers are counted by how long they took: in place 0 below LATENCY_MS[0], in the last place LATENCY_MS[-1] or more.
# Each limit is half as much again as the one before.
LATENCY_MS = tuple(round(100 * 1.5**step) for step in range(19))
# What is summed; shared/ledger/sums.py says what each means.
VALUES = (
    "requests", *SUMS, "cache_write_tokens", "unknown_requests", "unknown_calls", "lower_bound_requests",
    "lower_bound_nano", "adjustment_requests", "adjustment_nano", "failed_requests", "retried_calls",
    "image_tokens_saved", "image_nano_saved",
)  # fmt: skip
# A sum of a quarter of an hour, an hour or a UTC day, by its first second.
GRAINS = (BUCKET_S, 3600, 86400)
# `split` is 0 for the sums of an owner, and 1 for those by what follows; see shared/ledger/sums.py.
SUM_KEY = ("split", "grain", "start", "owner", "value", "provider", "model", "operation", "tool", "agent")

sums = sa.Table(
    "sums",
    metadata,
    sa.Column("split", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("grain", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(70), primary_key=True),
    sa.Column("value", sa.String(200), primary_key=True),
    *(sa.Column(name, sa.String(250), primary_key=True) for name in SUM_KEY[5:]),
    *(sa.Column(name, sa.BigInteger) for name in VALUES),
    sqlite_with_rowid=False,
)

LATENCY_KEY = ("grain", "start", "owner", "value", "provider", "model", "place")

# How many answers took how long, by the same owners and times as the sums, without quarters of an hour.
latency = sa.Table(
    "latency",
    metadata,
    sa.Column("grain", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("owner", sa.String(70), primary_key=True),
    sa.Column("value", sa.String(200), primary_key=True),
    sa.Column("provider", sa.String(250), primary_key=True),
    sa.Column("model", sa.String(250), primary_key=True),
    sa.Column("place", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("answers", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Settled attempts that are in no sum yet.
unsummed = sa.Table("unsummed", metadata, sa.Column("attempt_id", sa.Uuid, primary_key=True), sqlite_with_rowid=False)

# Attempts as they were when they were added to the sums, to be taken out of them because they have changed since.
TAKEN_BACK = (
    "ts_us", "bucket", "status", "operation", "provider", "model", "tool", "agent", "conversation", "attempt_number",
    *SUMS, "cache_write_tokens", "cost_is_lower_bound", "adjustment_kind", "metadata",
)  # fmt: skip
taken_back = sa.Table(
    "taken_back",
    metadata,
    sa.Column("taken_id", sa.Uuid, primary_key=True),
    *(sa.Column(name, attempt.c[name].type, nullable=attempt.c[name].nullable) for name in TAKEN_BACK),
)

taken_back_label = sa.Table(
    "taken_back_label",
    metadata,
    sa.Column("taken_id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.String(60), primary_key=True),
    sa.Column("value", sa.String(200), nullable=False),
)

# Labels that had so many values on a UTC day that there are no sums of them; `day` is its first second.
unsummed_label = sa.Table(
    "unsummed_label",
    metadata,
    sa.Column("owner", sa.String(70), primary_key=True),
    sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
)

# Attempts that started before `since_us` are in no sum yet, because the ledger is of an older version; no row: all are.
sums_state = sa.Table(
    "sums_state", metadata, sa.Column("since_us", sa.BigInteger, primary_key=True, autoincrement=False)
)

budget = sa.Table(
    "budget",
    metadata,
    sa.Column("name", sa.String(60), primary_key=True),
    sa.Column("limit_nano", sa.BigInteger, nullable=False),
    sa.Column("window", sa.String(20), nullable=False),
    sa.Column("scope", sa.String(60), nullable=False),
    sa.Column("tz", sa.String(60)),
    sa.Column("warn_at", sa.Float, nullable=False),
    sa.Column("on_exceed", sa.String(20), nullable=False),
    sa.Column("on_unknown_price", sa.String(20), nullable=False),
    # The one value of `scope` that it is for; NULL: for each.
    sa.Column("value", sa.String(200)),
)

account_kind = sa.Table("account_kind", metadata, sa.Column("dimensions", sa.Text, primary_key=True))

account = sa.Table(
    "account",
    metadata,
    sa.Column("dimensions", sa.Text, primary_key=True),
    sa.Column("whose", sa.String(250), primary_key=True),
    sa.Column("since_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("until_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("counted_nano", sa.BigInteger, nullable=False),
    sa.Index("ix_account_until", "until_us"),
)

event = sa.Table(
    "event",
    metadata,
    sa.Column("event_id", sa.Uuid, primary_key=True),
    sa.Column("ts_us", sa.BigInteger, nullable=False),
    sa.Column("event_type", sa.String(40), nullable=False),
    sa.Column("tool", sa.String(120)),
    sa.Column("agent", sa.String(200)),
    sa.Column("run", sa.String(200)),
    sa.Column("conversation", sa.String(200)),
    sa.Column("labels", sa.JSON),
    sa.Column("metadata", sa.JSON),
    sa.Index("ix_event_ts", "ts_us"),
)

# What was, or is to be, sent to the operator's webhook: once for each threshold of an account, or day of a spike.
alert = sa.Table(
    "alert",
    metadata,
    sa.Column("alert_id", sa.Uuid, primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("dimensions", sa.Text, nullable=False),
    sa.Column("whose", sa.String(250), nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("limit_nano", sa.BigInteger, nullable=False),  # 0: of a spike, which has no limit
    sa.Column("threshold", sa.Integer, nullable=False),  # per cent of the limit, or of a usual day
    sa.Column("window", sa.String(20), nullable=False),
    sa.Column("tz", sa.String(60)),
    sa.Column("spent_nano", sa.BigInteger, nullable=False),
    sa.Column("reserved_nano", sa.BigInteger, nullable=False),
    sa.Column("median_nano", sa.BigInteger),  # of a usual day
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("lease_us", sa.BigInteger, nullable=False),  # until then nobody else delivers it
    sa.Column("again_us", sa.BigInteger, nullable=False),  # after a failure nobody tries before
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("delivered_us", sa.BigInteger),
    sa.Column("problem", sa.String(200)),  # with the latest try
    sa.Index(
        "ix_alert_once", "kind", "dimensions", "whose", "since_us", "until_us", "limit_nano", "threshold", unique=True
    ),
)

# Months whose figures never change again, with what they were.
closed_month = sa.Table(
    "closed_month",
    metadata,
    sa.Column("month", sa.String(7), primary_key=True),
    sa.Column("zone", sa.String(60), nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("unknown_requests", sa.BigInteger, nullable=False),
    sa.Column("lower_bound_requests", sa.BigInteger, nullable=False),
    sa.Column("reserved_nano", sa.BigInteger, nullable=False),
    sa.Column("closed_us", sa.BigInteger, nullable=False),
)

# At most one row, times in microseconds since 1970: what happened before `frozen_us` does not change, because it is
# being removed; before `rows_us` attempts have been removed, so that only sums tell of them; and before `sums_us` those
# too.
pruned = sa.Table(
    "pruned",
    metadata,
    sa.Column("frozen_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rows_us", sa.BigInteger, nullable=False),
    sa.Column("sums_us", sa.BigInteger, nullable=False),
)
