"""The error tree: its drawing is true, its errors travel between processes and say what they cost."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
from collections.abc import Iterator

import pytest

from shared import errors
from shared.errors import (
    AllModelsFailed,
    AuthenticationError,
    BadResponse,
    InvalidRequest,
    LLMError,
    ModelRetired,
    Outcome,
    Overloaded,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimitError,
    StreamInterrupted,
)


def tree(root: type[LLMError] = LLMError) -> Iterator[type[LLMError]]:
    """Every error of the package, its base first."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


ALL = list(tree())
NAMES = [kind.__name__ for kind in ALL]
_DRAWN = {"raise": "raise", "next model": "next", "retry, then next model": "retry"}


def drawing() -> dict[str, tuple[str, str]]:
    """Name -> (parent, action) as the module docstring draws them."""
    found: dict[str, tuple[str, str]] = {}
    above = {0: "LLMError"}
    for line in str(errors.__doc__).splitlines():
        if match := re.match(r"(?P<branch>[ │]*[├└]─ )(?P<name>\w+) {2,}.+? {2,}(?P<action>\S.*)$", line):
            depth = len(match["branch"]) // 4
            found[match["name"]] = above[depth - 1], _DRAWN[match["action"]]
            above[depth] = match["name"]
    return found


def test_the_drawing_in_the_docstring_is_complete_and_true() -> None:
    """The module docstring draws every error under its parent, with what the flow does about it."""
    actual = {kind.__name__: (kind.__mro__[1].__name__, kind.action) for kind in ALL if kind is not LLMError}
    assert drawing() == actual


def test_every_public_class_is_in_the_tree() -> None:
    """Nothing in the module can be raised that `except LLMError` does not catch."""
    public = {name for name, _ in inspect.getmembers(errors, inspect.isclass) if not name.startswith("_")}
    exceptions = {name for name in public if issubclass(getattr(errors, name), BaseException)}
    assert exceptions == set(NAMES)


def make(kind: type[LLMError]) -> LLMError:
    """An error of that kind with all it can carry."""
    if kind is ModelRetired:
        error: LLMError = ModelRetired("m was shut down", successor="openai/gpt-5.5")
    elif kind is AllModelsFailed:
        error = AllModelsFailed("All 2 models failed", failures=[make(RateLimitError), make(StreamInterrupted)])
    elif kind is StreamInterrupted:
        error = StreamInterrupted("it broke", text="so far", provider="openai", model="m", status_code=200, cost=0.25)
    else:
        error = kind(
            "it failed",
            provider="openai",
            model="m",
            status_code=429,
            retry_after=1.5,
            outcome="rejected",
            cost=0.25,
            hint="Do this.",
        )
    return error


def same(one: LLMError, other: LLMError) -> bool:
    """Whether two errors say the same, their failures included."""
    mine, theirs = dict(vars(one)), dict(vars(other))
    inner = zip(mine.pop("failures", ()), theirs.pop("failures", ()), strict=True)
    return (
        type(one) is type(other)
        and (str(one), one.args, one.charged, mine) == (str(other), other.args, other.charged, theirs)
        and all(same(*pair) for pair in inner)
    )


def test_every_error_travels_between_processes() -> None:
    """A pickled or copied error keeps its class, its message and every attribute."""
    for kind in ALL:
        error = make(kind)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert same(pickle.loads(pickle.dumps(error, protocol)), error)  # noqa: S301 - our own bytes
        assert same(copy.copy(error), error)
        assert not same(error, make(AuthenticationError if kind is not AuthenticationError else BadResponse))


def test_every_error_says_what_failed_what_it_cost_and_what_to_do() -> None:
    """The text of an error is its message, its charge and its next step, in this order."""
    for kind in ALL:
        error = make(kind)
        text = str(error)
        assert text.startswith(f"{error.message}. {error.charged}"), kind
        if kind is not AllModelsFailed:
            assert text == " ".join(part for part in (f"{error.message}.", error.charged, error.next_step) if part)
        assert error.error_type == kind.__name__


def test_a_hint_is_a_sentence() -> None:
    """What to do next reads as a sentence after the others."""
    for kind in ALL:
        assert not kind.hint or (kind.hint[0].isupper() and kind.hint.endswith(".")), kind


@pytest.mark.parametrize(
    ("outcome", "cost", "sentence"),
    [
        ("not_sent", 0.0, "Nothing was charged."),
        ("rejected", 0.0, "Nothing was charged."),
        ("unknown", math.nan, "It may have been charged."),
        ("completed", math.nan, "It may have been charged."),
    ],
)
def test_the_charge_follows_from_what_became_of_the_request(outcome: Outcome, cost: float, sentence: str) -> None:
    """A request that never arrived or was turned away cost nothing; any other may have, until a cost is known."""
    error = ProviderTimeout("no answer", outcome=outcome)
    assert error.cost == pytest.approx(cost, nan_ok=True)
    assert error.charged == sentence
    assert ProviderTimeout("no answer", outcome=outcome, cost=0.0123456789).charged == "Charged $0.012346."
    assert ProviderTimeout("no answer", outcome=outcome, cost=0.0).charged == "Nothing was charged."


@pytest.mark.parametrize("outcome", ["not_sent", "rejected", "unknown", "completed"])
def test_only_what_heals_and_was_not_billed_is_retryable(outcome: Outcome) -> None:
    """`retryable` promises that the same call can work later and is not paid twice."""
    for kind in ALL:
        if kind in (ModelRetired, AllModelsFailed, StreamInterrupted):
            assert not kind("it failed").retryable, kind
        else:
            expected = kind.action == "retry" and outcome in ("not_sent", "rejected")
            assert kind("it failed", outcome=outcome).retryable is expected, kind


def test_all_models_failed_adds_up_its_failures() -> None:
    """The error of the whole chain costs what its failures cost, is unknown when one is, and lists them in order."""
    known = AllModelsFailed(
        "All 2 models failed",
        failures=[RateLimitError("a", model="m1", cost=0.1), Overloaded("b", model="m2", cost=0.2)],
    )
    assert known.cost == pytest.approx(0.3)
    assert [line.split(":")[0] for line in str(known).splitlines()[1:]] == ["- m1", "- m2"]
    unknown = AllModelsFailed(
        "All 2 models failed", failures=[RateLimitError("a"), BadResponse("b", outcome="unknown")]
    )
    assert math.isnan(unknown.cost)
    assert unknown.charged == "It may have been charged."


def test_all_models_failed_is_retryable_only_when_every_failure_is() -> None:
    """One failure that waiting does not heal, or none at all, makes the whole chain not worth repeating."""
    waits, broken = ProviderUnavailable("down"), AuthenticationError("no key")
    assert AllModelsFailed("x", failures=[waits, RateLimitError("slow")]).retryable
    assert not AllModelsFailed("x", failures=[waits, broken]).retryable
    assert not AllModelsFailed("x").retryable


def test_a_retired_model_names_its_successor() -> None:
    """The next step of ModelRetired is the successor, unless the raiser knows better."""
    assert ModelRetired("gone", successor="openai/gpt-5.5").next_step == "Use openai/gpt-5.5."
    assert ModelRetired("gone", successor="openai/gpt-5.5", hint="Ask.").next_step == "Ask."
    assert ModelRetired("gone").next_step == ModelRetired.hint


def test_an_interrupted_stream_keeps_its_text_and_may_have_been_charged() -> None:
    """What arrived before the break stays readable, and is taken as possibly billed."""
    error = StreamInterrupted("it broke", text="so far", provider="openai", model="m")
    assert (error.text, error.outcome) == ("so far", "unknown")
    assert math.isnan(error.cost)


def test_no_name_hides_one_of_pythons() -> None:
    """No error shadows a builtin or pydantic's ValidationError."""
    import builtins

    assert not {*dir(builtins), "ValidationError"} & set(NAMES)
    assert issubclass(InvalidRequest, LLMError)
