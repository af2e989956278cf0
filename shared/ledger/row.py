"""AttemptRow: one attempt as a row of the ledger, created when it starts and completed when it is settled."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from shared.internal.clock import machine_name, new_id, now_us
from shared.ledger.schema import bucket_of
from shared.scope import Scope, run_of_process
from shared.types import Candidate, CostSource, Usage, UsageSource

# started: in progress. ok, failed, cancelled, interrupted: settled. refused: never sent. unsettled: the outcome is
# unknown, so it counts with its bound. reported: a cost that the user or the agent SDK reported. rejected_response:
# answered and paid for, but rejected by the caller's `fallback_on`.
Status = Literal[
    "started", "ok", "failed", "cancelled", "interrupted", "refused", "unsettled", "reported", "rejected_response"
]  # fmt: skip
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """
    One attempt: the columns of the table `attempt`, and its labels.

    Immutable: each step returns a new row. Times are microseconds (`ts_us` and `lease_us` since 1970), money is
    nano-dollars, counts are tokens; None is unknown. `calls`, `failed_calls` and `unpriced_calls` are what the row adds
    to the counts of calls: 0 or 1.
    """

    attempt_id: uuid.UUID = field(default_factory=new_id)
    call_id: uuid.UUID = field(default_factory=new_id)
    attempt_number: int = 1
    ts_us: int
    bucket: int
    status: Status = "started"
    operation: str = "chat_completion"
    provider: str
    requested_model: str
    model: str
    response_model: str | None = None
    response_id: str | None = None
    tool: str | None = None
    agent: str | None = None
    run: str | None = None
    conversation: str | None = None
    key_alias: str | None = None
    stream: bool = False
    duration_us: int | None = None
    first_chunk_us: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_source: UsageSource = "unknown"
    cost_nano: int | None = None
    cost_source: CostSource = "unknown"
    price_version: str | None = None
    bound_nano: int | None = None
    lease_us: int | None = None
    finish_reason: str | None = None
    error_type: str | None = None
    http_status: int | None = None
    calls: int = 0
    failed_calls: int = 0
    unpriced_calls: int = 0
    metadata: Mapping[str, Any] | None = None
    # Billable units that the answer reports, with their counts; None if it reports none.
    units: Mapping[str, int] | None = None
    # As served; None if the provider does not report it.
    service_tier: str | None = None
    price_table: str | None = None
    # A billed unit has no known price, so the actual cost is at least `cost_nano`.
    cost_is_lower_bound: bool = False
    # What the row reserves in its budgets beyond its cost.
    reserved_nano: int | None = None
    adjustment_kind: str | None = None
    adjusts: str | None = None
    # Name of the machine whose clock gave `ts_us`.
    machine: str | None = None
    # When it happened, if `ts_us` is when it was entered, because the books of that time were closed; of an adjustment,
    # when what it corrects happened.
    happened_us: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def started(
        cls,
        candidate: Candidate,
        scope: Scope,
        *,
        call_id: uuid.UUID,
        attempt_number: int,
        operation: str,
        stream: bool,
        bound_nano: int | None,
        lease_s: float,
    ) -> Self:
        """
        An attempt that starts now.

        Args:
            bound_nano: The most that it can cost; None when no bound is known.

            lease_s: Seconds after which it is considered dead if it has not been settled.
        """
        now = now_us()
        return cls(
            call_id=call_id,
            attempt_number=attempt_number,
            ts_us=now,
            bucket=bucket_of(now),
            operation=operation,
            provider=candidate.provider,
            requested_model=candidate.requested,
            model=candidate.model,
            tool=scope.tool,
            agent=scope.agent,
            run=scope.run or run_of_process(),
            conversation=scope.conversation,
            key_alias=candidate.key_alias,
            stream=stream,
            price_version=candidate.rates.version,
            bound_nano=bound_nano,
            lease_us=now + int(lease_s * 1e6),
            machine=machine_name(),
            labels=scope.labels,
        )

    def settled(
        self,
        status: Status,
        *,
        cost_nano: int | None,
        cost_source: CostSource,
        usage: Usage | None = None,
        duration_us: int | None = None,
        first_chunk_us: int | None = None,
        calls: int = 0,
        failed_calls: int = 0,
        unpriced_calls: int = 0,
        finish_reason: str | None = None,
        response_model: str | None = None,
        response_id: str | None = None,
        error_type: str | None = None,
        http_status: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        units: Mapping[str, int] | None = None,
        service_tier: str | None = None,
        price_version: str | None = None,
        cost_is_lower_bound: bool = False,
        reserved_nano: int | None = None,
    ) -> Self:
        """
        The attempt with its result; what is not given is unknown or does not apply.

        Args:
            reserved_nano: What it reserves in its budgets beyond its cost. None: its bound where its cost is unknown.
        """
        usage = usage or Usage()
        return replace(
            self,
            status=status,
            cost_nano=cost_nano,
            cost_source=cost_source,
            usage_source=usage.source,
            **{name: getattr(usage, name) for name in COUNTS},
            duration_us=duration_us,
            first_chunk_us=first_chunk_us,
            calls=calls,
            failed_calls=failed_calls,
            unpriced_calls=unpriced_calls,
            finish_reason=finish_reason,
            response_model=response_model,
            response_id=response_id,
            error_type=error_type,
            http_status=http_status,
            metadata=metadata,
            units=units,
            service_tier=service_tier,
            price_version=price_version or self.price_version,
            price_table=price_version,
            cost_is_lower_bound=cost_is_lower_bound,
            reserved_nano=self.bound_nano if reserved_nano is None and cost_nano is None else reserved_nano,
        )

    def with_bound(self, bound_nano: int | None) -> Self:
        """The attempt with a new bound, after its answer was cut to what a budget has left."""
        return replace(self, bound_nano=bound_nano)

    def refused(self, error_type: str, *, failed_calls: int) -> Self:
        """The attempt as one that was refused: never sent, and free."""
        return replace(
            self, status="refused", cost_nano=0, cost_source="free", error_type=error_type, failed_calls=failed_calls
        )

    def expired(self) -> Self:
        """The attempt after its lease has ended: it reserves its bound, because the money may have been spent."""
        return replace(
            self,
            status="unsettled",
            cost_nano=None,
            cost_source="unknown",
            reserved_nano=self.bound_nano,
            failed_calls=1,
            unpriced_calls=1,
        )

    @classmethod
    def read(cls, columns: Mapping[str, Any]) -> Self:
        """The attempt from a row of the table, without its labels."""
        return cls(**{name: columns[name] for name in _COLUMNS})

    def columns(self) -> dict[str, Any]:
        """The values by column."""
        return {name: getattr(self, name) for name in _COLUMNS}


def dates(ts_us: int, happened_us: int | None) -> dict[str, Any]:
    """The columns with the dates of an attempt that was entered at `ts_us`, and happened before that."""
    return {"ts_us": ts_us, "bucket": bucket_of(ts_us), "happened_us": happened_us}


_COLUMNS = tuple(each.name for each in fields(AttemptRow) if each.name != "labels")
