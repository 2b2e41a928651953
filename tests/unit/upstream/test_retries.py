"""Retries one by one: what may be tried again, what each gate lets through, how long to wait."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.events import Cause, Fault
from proxy.upstream import faults
from proxy.upstream.retries import COSTS, FREE, RetryGates, RetryRules, Verdict, judge, pause_s
from tests.fakes.clock import FrozenClock


def busy_gates(clock: FrozenClock, requests: int, rules: RetryRules | None = None) -> RetryGates:
    """Gates that saw so many requests just now."""
    gates = RetryGates(clock, rules)
    for _ in range(requests):
        gates.began()
    return gates


def take_all(gates: RetryGates, why: str = "failed", target: str = "a") -> int:
    """How many retries are allowed at once."""
    taken = 0
    while gates.take(target, why):  # type: ignore[arg-type]
        taken += 1
        assert taken < 100_000
    return taken


# What a failure means.


@pytest.mark.parametrize("cause", list(Cause))
def test_a_refusal_is_tried_again_exactly_where_its_cause_allows_it(cause: Cause) -> None:
    """The table of causes and the table of retries say the same."""
    verdict = judge(Fault(cause, "no"))

    assert (verdict is None) == (cause.retry.value == "no")


@pytest.mark.parametrize("cause", [Cause.DEAD_KEY, Cause.SPENT])
def test_a_key_that_is_at_fault_is_replaced_freely(cause: Cause) -> None:
    """It is marked by whoever sees it first, so that this cannot become much."""
    assert judge(Fault(cause, "no")) == Verdict("key")


def test_a_forbidden_request_is_not_replaced_freely() -> None:
    """A caller can write requests that are forbidden, so that such retries are counted."""
    verdict = judge(Fault(Cause.FORBIDDEN, "no"))

    assert verdict is not None
    assert verdict.why in COSTS


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (faults.unreachable("refused", ""), Verdict("connect")),
        (faults.unresolved(""), Verdict("connect")),
        (faults.untrusted(""), Verdict("connect")),
        (faults.timed_out("connect"), Verdict("connect")),
        (faults.overloaded("pool"), Verdict("crowded")),
        (faults.timed_out("first_byte"), Verdict("timeout", unsafe=True)),
        (faults.timed_out("idle"), Verdict("timeout", unsafe=True)),
        (faults.reset("reset"), Verdict("failed", unsafe=True)),
        (faults.bad_response("head"), Verdict("failed", unsafe=True)),
        (faults.too_large(5), None),
        (faults.draining(), None),
        (faults.malformed_request(""), None),
        (ProxyError(Kind.PATIENCE, "late"), None),
    ],
)
def test_a_failure_on_the_way_is_free_if_nothing_was_sent_and_unsafe_if_all_was(
    error: ProxyError, verdict: Verdict | None
) -> None:
    """Who was not reached can be asked again without a doubt; who fell silent may have done the work."""
    assert judge(error) == verdict


def test_every_reason_is_either_free_or_has_a_cost() -> None:
    """No word is in both tables."""
    assert not set(COSTS) & set(FREE)
    assert set(RetryGates(FrozenClock()).made) == {*COSTS, *FREE}


# The share.


def test_ten_percent_of_the_requests_may_be_tried_again() -> None:
    """Of 1,000 requests in the window, 100 retries and no more."""
    gates = busy_gates(FrozenClock(), 1000, RetryRules(tokens=1_000_000))

    assert take_all(gates) == 100
    assert gates.denied["share", "failed"] == 1
    assert gates.denied["tokens", "failed"] == 0
    assert gates.share == 0.1


def test_requests_and_retries_count_for_ten_seconds() -> None:
    """What is older neither allows retries nor stands in their way."""
    clock = FrozenClock()
    gates = busy_gates(clock, 1000, RetryRules(tokens=1_000_000, floor=0))
    clock.advance(9.4)

    assert gates.take("a", "failed")
    clock.advance(1.2)
    assert not gates.take("a", "failed")
    assert gates.describe()["requests"] == 0
    clock.advance(10.5)
    assert gates.describe()["retries"] == 0


def test_a_long_silence_leaves_nothing_behind() -> None:
    """The ring is emptied whatever the time that passed, a multiple of its length included."""
    for silence_s in (*(10.5 + half / 2 for half in range(50)), 1e6):
        clock = FrozenClock()
        gates = busy_gates(clock, 300)
        gates.take("a", "failed")
        clock.advance(silence_s)

        assert (gates.describe()["requests"], gates.describe()["retries"]) == (0, 0)


def test_without_traffic_three_retries_may_be_under_way() -> None:
    """One failure in the night is retried though ten percent of one request is nothing."""
    gates = busy_gates(FrozenClock(), 1)

    assert take_all(gates) == 3
    gates.finished("a", "failed", helped=False)
    assert take_all(gates) == 1
    assert gates.under_way == 3


def test_the_floor_ends_at_three_retries_a_second() -> None:
    """Retries that fail at once do not become a flood, though never more than one is under way."""
    gates = busy_gates(FrozenClock(), 1, RetryRules(tokens=1_000_000))
    taken = 0
    while gates.take("a", "failed"):
        gates.finished("a", "failed", helped=False)
        taken += 1

    assert taken == 30


def test_the_operator_may_allow_more() -> None:
    """The share is a rule like others."""
    gates = busy_gates(FrozenClock(), 1000, RetryRules(ratio=0.2, tokens=1_000_000))

    assert take_all(gates) == 200


# The tokens.


@pytest.mark.parametrize(("why", "times"), [("failed", 35), ("timeout", 35), ("throttled", 100), ("forbidden", 100)])
def test_retries_that_do_not_help_end_when_the_tokens_are_spent(why: str, times: int) -> None:
    """500 tokens at 14 or at 5 each; other targets have their own."""
    gates = busy_gates(FrozenClock(), 100_000)

    assert take_all(gates, why) == times
    assert gates.denied["tokens", why] == 1  # type: ignore[index]
    assert gates.take("b", "failed")


def test_a_retry_that_helps_costs_nothing() -> None:
    """A target that fails all the time is made up for by the others for as long as they do."""
    gates = busy_gates(FrozenClock(), 100_000)
    for _ in range(1000):
        assert gates.take("a", "failed")
        gates.finished("a", "failed", helped=True)

    assert gates.describe()["targets"] == {}


def test_a_retry_that_helps_pays_for_one_that_did_not() -> None:
    """Retries go on where they help every other time."""
    gates = busy_gates(FrozenClock(), 100_000)
    for turn in range(1000):
        assert gates.take("a", "failed")
        gates.finished("a", "failed", helped=turn % 2 == 0)

    assert gates.describe()["targets"].get("a", 500) >= 480


def test_fourteen_clean_answers_allow_one_more_retry() -> None:
    """A target that recovered earns its tokens back."""
    gates = busy_gates(FrozenClock(), 100_000)
    spent = take_all(gates)
    for _ in range(14):
        gates.succeeded("a")

    assert spent == 35
    assert take_all(gates) == 1


def test_a_target_never_has_more_than_all_of_its_tokens() -> None:
    """A good year does not allow a bad minute."""
    gates = busy_gates(FrozenClock(), 100_000)
    for _ in range(5000):
        gates.succeeded("a")

    assert take_all(gates) == 35


def test_an_old_outage_is_forgotten() -> None:
    """Ten minutes without a retry make up for the successes that a quiet proxy does not have."""
    clock = FrozenClock()
    gates = busy_gates(clock, 100_000)
    taken: list[int] = []
    for wait_s in (0.0, 590.0, 590.0, 600.0):
        clock.advance(wait_s)
        for _ in range(100_000):
            gates.began()
        taken.append(take_all(gates) if taken else sum(gates.take("a", "failed") for _ in range(34)))

    assert taken == [34, 1, 0, 35]


def test_what_one_gate_refuses_takes_nothing_from_the_other() -> None:
    """A retry that the share refuses leaves the tokens as they are, and the other way round."""
    shut = busy_gates(FrozenClock(), 0, RetryRules(floor=0))
    assert take_all(shut) == 0
    assert shut.describe()["targets"] == {}
    spent = busy_gates(FrozenClock(), 100_000)
    take_all(spent)

    assert spent.describe()["retries"] == 35


def test_a_reload_forgets_the_targets_that_are_gone() -> None:
    """Memory follows the catalog."""
    gates = busy_gates(FrozenClock(), 100_000)
    gates.take("a", "failed")
    gates.take("b", "failed")
    gates.keep(["b", "c"])

    assert gates.describe()["targets"] == {"b": 486}
    gates.finished("a", "failed", helped=False)
    gates.finished("b", "failed", helped=True)
    assert gates.under_way == 0


def test_targets_without_end_do_not_take_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound there are no retries for new ones."""
    monkeypatch.setattr("proxy.upstream.retries.MAX_TARGETS", 3)
    gates = busy_gates(FrozenClock(), 100_000)

    assert [gates.take(name, "failed") for name in "abcda"] == [True, True, True, False, True]


# What passes freely.


@pytest.mark.parametrize("why", FREE)
def test_what_reached_nobody_or_blames_a_key_passes_shut_gates(why: str) -> None:
    """It is counted, and stands in nobody's way."""
    gates = busy_gates(FrozenClock(), 0)
    take_all(gates)
    for _ in range(1000):
        assert gates.take("a", why)  # type: ignore[arg-type]
        gates.finished("a", why, helped=False)  # type: ignore[arg-type]

    assert gates.made[why] == 1000  # type: ignore[index]
    assert (gates.under_way, gates.describe()["retries"]) == (3, 3)


# Pauses.


def pause(**given: object) -> float | None:
    """With the values of a usual first retry."""
    usual = {
        "attempt": 1, "throttled": False, "retry_after_s": None, "remaining_s": 60.0, "elsewhere": False, "draw": 1.0,
    }  # fmt: skip
    return pause_s(**{**usual, **given})  # type: ignore[arg-type]


def test_back_off_doubles_from_fifty_milliseconds_to_twenty_seconds() -> None:
    """Full jitter: the draw takes any part of it."""
    longest = [pause(attempt=attempt, remaining_s=1000.0) for attempt in (1, 2, 3, 9, 10, 50, 5000)]

    assert longest == [0.05, 0.1, 0.2, 12.8, 20.0, 20.0, 20.0]
    assert pause(draw=0.0) == 0.0
    assert pause(attempt=3, draw=0.25) == 0.05


def test_throttling_waits_from_one_second_on() -> None:
    """Twenty times as long as for a broken connection."""
    longest = [pause(throttled=True, attempt=attempt, remaining_s=1000.0) for attempt in (1, 2, 5, 6)]

    assert longest == [1.0, 2.0, 16.0, 20.0]


def test_whoever_can_go_elsewhere_goes_at_once_and_waits_a_little_from_then_on() -> None:
    """What a throttled target asks for does not concern another one."""
    assert pause(elsewhere=True, throttled=True, retry_after_s=30.0) == 0.0
    assert pause(elsewhere=True, throttled=True, retry_after_s=30.0, attempt=2) == 0.1
    assert pause(elsewhere=True, attempt=3) == 0.2


def test_who_stays_waits_for_as_long_as_it_was_told_and_a_little_more() -> None:
    """Not all callers come back in the same moment, and none comes early."""
    assert pause(retry_after_s=5.0, throttled=True, draw=0.0) == 5.0
    assert pause(retry_after_s=5.0, throttled=True, draw=0.5) == 5.5
    assert pause(retry_after_s=18.0, throttled=True, attempt=4) == 26.0


@pytest.mark.parametrize("told_s", [20.5, 60.0, 61.0, 86_400.0, float("inf")])
def test_a_wait_that_does_not_fit_is_not_begun(told_s: float) -> None:
    """The caller learns at once that it has to come back later."""
    assert pause(retry_after_s=told_s, throttled=True) is None


@pytest.mark.parametrize("told_s", [0.0, -5.0, float("nan")])
def test_a_wait_of_nothing_is_none(told_s: float) -> None:
    """The usual back-off applies."""
    assert pause(retry_after_s=told_s) == 0.05


@pytest.mark.parametrize("elsewhere", [False, True])
def test_nothing_is_tried_again_without_time(elsewhere: bool) -> None:
    """A retry never extends a deadline."""
    assert pause(remaining_s=0.0, elsewhere=elsewhere) is None
    assert pause(remaining_s=-1.0, elsewhere=elsewhere) is None
    assert pause(remaining_s=0.04, attempt=2, elsewhere=elsewhere) is None
