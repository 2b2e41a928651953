"""Retry gates against a log of everything that happened, pauses against their bounds, keys against what they went
through."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol.events import Cause
from proxy.upstream.credentials import Credentials, KeyChoice
from proxy.upstream.retries import COSTS, FREE, RetryGates, RetryRules, Why, pause_s
from tests.fakes.clock import FrozenClock

RULES = RetryRules(tokens=100)
REASONS: tuple[Why, ...] = (*COSTS, *FREE)


class Log:
    """What the gates were told, with times, and what they may say to it."""

    def __init__(self) -> None:
        self.requests: list[float] = []
        self.retries: list[float] = []
        self.spent = {"a": 0.0, "b": 0.0}
        self.under_way: list[tuple[str, Why]] = []
        self.counted = 0

    def may(self, now: float, target: str, cost: int, slack_s: float) -> bool:
        """Whether the rules allow a retry, with requests counted over ``slack_s`` less than the window and retries
        over as much more."""
        retries = sum(now - at < RULES.window_s + slack_s for at in self.retries)
        requests = sum(now - at < RULES.window_s - slack_s for at in self.requests)
        has_floor = self.counted < RULES.floor and retries < RULES.floor_per_s * RULES.window_s
        has_share = retries + 1 <= RULES.ratio * requests + 1e-9 or has_floor
        return has_share and self.spent[target] + cost <= RULES.tokens

    def restore(self, target: str, tokens: int) -> None:
        self.spent[target] = max(0.0, self.spent[target] - tokens)


steps = st.lists(
    st.tuples(
        st.sampled_from(("requests", "retry", "retry", "ended", "helped", "success", "time")),
        st.integers(0, 40),
        st.sampled_from("ab"),
        st.sampled_from(REASONS),
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_the_gates_allow_what_a_log_of_all_times_allows(given_steps: list[tuple[str, int, str, Why]]) -> None:
    """Never more than the rules in any window of 10 s, and all that they allow over a window half a second off."""
    clock, log = FrozenClock(), Log()
    gates = RetryGates(clock, RULES)
    for what, number, target, why in given_steps:
        now = clock.now()
        if what == "requests":
            for _ in range(number * 5):
                gates.began()
                log.requests.append(now)
        elif what == "retry":
            cost = COSTS.get(why)
            allowed = gates.take(target, why)
            if cost is None:
                assert allowed
            else:
                assert not allowed or log.may(now, target, cost, 0.0)
                assert allowed or not log.may(now, target, cost, 0.5)
            if allowed:
                log.under_way.append((target, why))
            if allowed and cost is not None:
                log.retries.append(now)
                log.counted += 1
                log.spent[target] += cost
        elif what in ("ended", "helped") and log.under_way:
            after, reason = log.under_way.pop(number % len(log.under_way))
            gates.finished(after, reason, helped=what == "helped")
            log.counted -= reason in COSTS
            if what == "helped":
                log.restore(after, 2 * COSTS.get(reason, 0))
        elif what == "success":
            for _ in range(number):
                gates.succeeded(target)
            log.restore(target, number)
        elif what == "time":
            clock.advance(number / 8)
    assert gates.under_way == log.counted


spans = st.one_of(st.floats(-1.0, 100.0), st.just(0.0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.booleans(), st.none() | spans, spans, st.booleans(), st.floats(0.0, 1.0, exclude_max=True)
)
def test_a_pause_fits_into_the_time_that_is_left_and_is_never_shorter_than_told(
    attempt: int, throttled: bool, told_s: float | None, remaining_s: float, elsewhere: bool, draw: float
) -> None:
    """Whatever the numbers are."""
    wait_s = pause_s(
        attempt=attempt,
        throttled=throttled,
        retry_after_s=told_s,
        remaining_s=remaining_s,
        elsewhere=elsewhere,
        draw=draw,
    )
    if wait_s is not None:
        assert 0.0 <= wait_s < remaining_s
        assert elsewhere or told_s is None or wait_s >= told_s
        assert wait_s <= 20.0 + max(0.0, told_s or 0.0)
    else:
        assert remaining_s <= max(20.0, told_s or 0.0)


class Key(NamedTuple):
    name: str
    value: str


CAUSES = (Cause.DEAD_KEY, Cause.SPENT, Cause.THROTTLED, Cause.FORBIDDEN)
happenings = st.lists(
    st.tuples(
        st.sampled_from(("pick", "pick", "retry", "refused", "accepted", "reload", "time")),
        st.integers(0, 2),
        st.sampled_from(CAUSES),
        st.sampled_from((None, 3.0, 1000.0)),
        st.sampled_from(("p/one", "p/two")),
    ),
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), happenings)
def test_a_key_is_always_found_unless_all_are_dead_and_a_dead_one_never_before_others(
    count: int, given_happenings: list[tuple[str, int, Cause, float | None, str]]
) -> None:
    """Through any sequence of refusals, answers, reloads and waits; each dead key is tried by one at a time."""
    clock = FrozenClock()
    credentials = Credentials(clock, random.Random(1))
    keys = [Key(f"k{at}", f"v{at}") for at in range(count)]
    credentials.keep({"p": keys})
    for what, number, cause, told_s, target in given_happenings:
        key = KeyChoice(*keys[number % count])
        dead = {name for _, name, state in credentials.states() if state == 3}
        tried = (key.name,) if what == "retry" else ()
        if what in ("pick", "retry"):
            choices = [credentials.pick("p", tried, target) for _ in range(2 * count)]
            names = [choice.name for choice in choices if choice is not None]
            assert not set(names) & set(tried)
            assert all(names.count(name) == 1 for name in dead & set(names))
            assert what == "retry" or len(dead) == count or None not in choices
        elif what == "refused":
            credentials.refused("p", key, cause, told_s, target)
        elif what == "accepted":
            credentials.accepted("p", key, target)
        elif what == "reload":
            keys[number % count] = Key(key.name, key.value + "'")
            credentials.keep({"p": keys})
        else:
            clock.advance((0.0, 31.0, 400.0)[number])
    clock.advance(3601.0)
    found = [credentials.pick("p", (), "p/one") for _ in range(count)]
    assert {choice.name for choice in found if choice is not None} == {key.name for key in keys}
