"""The operator's keys: whose turn it is, and what becomes of a key that an upstream refuses."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import NamedTuple

import pytest

from proxy.protocol.events import Cause
from proxy.upstream.credentials import DEAD_S, MAX_PLACES, STATES, Credentials, KeyChoice
from tests.fakes.clock import FrozenClock

HERE, THERE = "openai/gpt", "openai/mini"


class Key(NamedTuple):
    """As the catalog says it."""

    name: str
    value: str


class Bench:
    """The keys of one provider, on a clock that stands still."""

    def __init__(self, count: int) -> None:
        self.clock = FrozenClock()
        self.keys = [Key(f"key-{at}", f"sk-secret-{at}") for at in range(1, count + 1)]
        self.credentials = Credentials(self.clock, random.Random(4))
        self.keep()

    def keep(self) -> None:
        self.credentials.keep({"openai": tuple(self.keys)})

    def choice(self, at: int) -> KeyChoice:
        return KeyChoice(*self.keys[at - 1])

    def pick(self, *tried: str, target: str = HERE) -> str | None:
        """The name of the key that goes next."""
        choice = self.credentials.pick("openai", tried, target)
        return None if choice is None else choice.name

    def picks(self, count: int, target: str = HERE) -> Counter[str | None]:
        return Counter(self.pick(target=target) for _ in range(count))

    def refuse(self, at: int, cause: Cause, told_s: float | None = None, target: str = HERE) -> None:
        self.credentials.refused("openai", self.choice(at), cause, told_s, target)

    def accept(self, at: int, target: str = HERE) -> None:
        self.credentials.accepted("openai", self.choice(at), target)

    def state(self, at: int) -> str:
        return next(STATES[state] for _, name, state in self.credentials.states() if name == self.keys[at - 1].name)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_keys_take_turns_evenly(count: int) -> None:
    """Every key carries the same load."""
    bench = Bench(count)

    assert set(bench.picks(100 * count).values()) == {100}


def test_a_provider_without_keys_or_without_mention_has_none() -> None:
    """That is for the caller to know: some upstreams want no key."""
    bench = Bench(0)

    assert bench.pick() is None
    assert bench.credentials.pick("nobody") is None


def test_a_flight_that_tried_a_key_gets_another_one_until_all_are_tried() -> None:
    """Rotation is bounded by the number of keys."""
    bench = Bench(3)
    tried: list[str] = []
    while (name := bench.pick(*tried)) is not None:
        tried.append(name)

    assert sorted(tried) == ["key-1", "key-2", "key-3"]


def test_processes_do_not_all_begin_with_the_same_key() -> None:
    """Many short-lived processes spread over the keys as well."""
    firsts = set()
    for seed in range(20):
        credentials = Credentials(FrozenClock(), random.Random(seed))
        credentials.keep({"openai": [Key("a", "1"), Key("b", "2"), Key("c", "3")]})
        firsts.add(credentials.pick("openai"))

    assert len(firsts) == 3


# Dead keys.


def test_a_dead_key_is_left_out_for_five_minutes_and_then_tried_by_one_request() -> None:
    """The others carry its load, and one request finds out."""
    bench = Bench(3)
    bench.refuse(2, Cause.DEAD_KEY)
    assert bench.state(2) == "dead"
    assert bench.picks(60) == {"key-1": 30, "key-3": 30}
    bench.clock.advance(DEAD_S - 0.1)
    assert bench.picks(60) == {"key-1": 30, "key-3": 30}
    bench.clock.advance(0.2)

    assert bench.picks(60)["key-2"] == 1


def test_a_dead_key_that_stays_dead_is_tried_after_twice_the_time_up_to_an_hour() -> None:
    """5, 10, 20, 40, 60, 60 minutes."""
    bench = Bench(2)
    waits_min = []
    for _ in range(6):
        bench.refuse(1, Cause.DEAD_KEY)
        waited_min = 0
        while bench.picks(4)["key-1"] == 0:
            bench.clock.advance(60.0)
            waited_min += 1
        waits_min.append(waited_min)

    assert waits_min == [5, 10, 20, 40, 60, 60]


def test_a_dead_key_that_is_accepted_again_takes_its_turns_again() -> None:
    """And the next time it begins with five minutes."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.clock.advance(DEAD_S)
    assert bench.picks(2)["key-1"] == 1
    bench.accept(1)

    assert bench.state(1) == "usable"
    assert bench.picks(10) == {"key-1": 5, "key-2": 5}


def test_an_answer_that_was_under_way_does_not_raise_the_dead() -> None:
    """It began before the key died."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.accept(1)

    assert bench.state(1) == "dead"
    assert bench.picks(10) == {"key-2": 10}


def test_many_refusals_at_once_are_one_death() -> None:
    """A hundred requests were under way with the key; it is left out for five minutes all the same."""
    bench = Bench(2)
    for _ in range(100):
        bench.refuse(1, Cause.DEAD_KEY)
    bench.clock.advance(DEAD_S)

    assert bench.picks(2)["key-1"] == 1


def test_a_trial_that_never_ends_lets_another_one_begin_after_a_while() -> None:
    """Its caller may have left before the head."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.clock.advance(DEAD_S)
    assert bench.picks(10)["key-1"] == 1
    bench.clock.advance(29.0)
    assert bench.picks(10)["key-1"] == 0
    bench.clock.advance(1.0)

    assert bench.picks(10)["key-1"] == 1


@pytest.mark.parametrize("count", [1, 3])
def test_with_all_keys_dead_one_request_each_30_s_tries_the_one_that_died_first(count: int) -> None:
    """Nobody else bothers the upstream, and an account that is put right is found in half a minute."""
    bench = Bench(count)
    for at in range(1, count + 1):
        bench.refuse(at, Cause.DEAD_KEY)
        bench.clock.advance(1.0)
    assert bench.picks(10) == {None: 10}
    tried = []
    for _ in range(7):
        bench.clock.advance(30.0)
        picks = bench.picks(10)
        (name,) = [name for name in picks if name is not None]
        assert picks[name] == 1
        tried.append(name)
        bench.refuse(int(name[-1]), Cause.DEAD_KEY)

    assert tried == ([f"key-{at % count + 1}" for at in range(7)])
    bench.clock.advance(30.0)
    found = bench.pick()
    assert found is not None
    bench.accept(int(found[-1]))
    assert bench.picks(10) == {found: 10}


def test_trials_of_the_last_resort_do_not_make_a_death_longer() -> None:
    """The time of the key was not over; five minutes remain five."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.refuse(2, Cause.DEAD_KEY)
    bench.clock.advance(30.0)
    assert bench.pick() == "key-1"
    bench.refuse(1, Cause.DEAD_KEY)
    bench.clock.advance(30.0)
    assert bench.pick() == "key-2"
    bench.accept(2)
    bench.clock.advance(DEAD_S - 30.0)

    assert bench.picks(10)["key-1"] == 1


def test_a_flight_never_goes_on_to_a_dead_key() -> None:
    """With one key tried and the other one dead there is nothing left."""
    bench = Bench(2)
    bench.refuse(2, Cause.DEAD_KEY)

    assert bench.pick("key-1") is None


# Spent and throttled keys.


def test_a_spent_key_is_left_out_for_ten_minutes() -> None:
    """Then one request tries it."""
    bench = Bench(2)
    bench.refuse(1, Cause.SPENT)
    assert bench.state(1) == "spent"
    bench.clock.advance(599.0)
    assert bench.picks(10) == {"key-2": 10}
    bench.clock.advance(1.0)

    assert bench.picks(10)["key-1"] == 1


def test_a_throttled_key_is_left_out_at_that_target_for_as_long_as_it_was_told() -> None:
    """Vendors limit by model; elsewhere the key is as good as ever."""
    bench = Bench(2)
    bench.refuse(1, Cause.THROTTLED, 7.0)
    bench.clock.advance(6.9)
    assert bench.state(1) == "throttled"
    assert bench.picks(10) == {"key-2": 10}
    assert bench.picks(10, THERE) == {"key-1": 5, "key-2": 5}
    bench.clock.advance(0.2)

    assert bench.state(1) == "usable"
    assert bench.picks(10) == {"key-1": 5, "key-2": 5}


def test_a_key_that_is_throttled_again_and_again_is_left_out_longer_up_to_a_minute() -> None:
    """1, 2, 4 … 60 s, each with a jitter of up to half of it."""
    bench = Bench(2)
    waits_s = []
    for _ in range(8):
        bench.refuse(1, Cause.THROTTLED)
        started = bench.clock.now()
        while bench.picks(2)["key-1"] == 0:
            bench.clock.advance(0.05)
        waits_s.append(bench.clock.now() - started)

    for wait_s, most_s in zip(waits_s, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert most_s / 2 <= wait_s <= most_s + 0.1
    assert any(wait_s < 0.95 * most_s for wait_s, most_s in zip(waits_s, [1, 2, 4, 8, 16, 32, 60, 60], strict=True))


def test_a_burst_of_throttles_counts_once_and_the_longest_wait_binds() -> None:
    """Requests that were under way together were refused together."""
    bench = Bench(2)
    for _ in range(20):
        bench.refuse(1, Cause.THROTTLED)
    bench.refuse(1, Cause.THROTTLED, 3.0)
    bench.refuse(1, Cause.THROTTLED, 2.0)
    bench.clock.advance(2.9)
    assert bench.picks(10) == {"key-2": 10}
    bench.clock.advance(0.2)

    assert bench.picks(10)["key-1"] == 5


def test_an_answer_after_the_wait_makes_the_next_wait_short_again() -> None:
    """What counts are throttles in a row."""
    bench = Bench(2)
    for _ in range(5):
        bench.refuse(1, Cause.THROTTLED)
        bench.clock.advance(60.0)
    bench.accept(1)
    bench.refuse(1, Cause.THROTTLED)
    bench.clock.advance(1.0)

    assert bench.picks(10)["key-1"] == 5


def test_a_wait_beyond_reason_ends_after_an_hour() -> None:
    """A wrong clock at the upstream does not take a key away for ever."""
    bench = Bench(2)
    bench.refuse(1, Cause.THROTTLED, 1e9)
    bench.clock.advance(3600.0)

    assert bench.picks(10)["key-1"] == 5


def test_with_all_keys_throttled_the_one_that_is_ready_first_is_used() -> None:
    """A new flight is not refused for what the upstream may allow again; one that was refused just now waits."""
    bench = Bench(3)
    for at, told_s in ((1, 9.0), (2, 5.0), (3, 7.0)):
        bench.refuse(at, Cause.THROTTLED, told_s)

    assert bench.picks(10) == {"key-2": 10}
    assert bench.pick("key-2") is None


def test_a_spent_key_goes_before_a_dead_one_and_after_a_throttled_one() -> None:
    """Dead ones are never used while another may do."""
    bench = Bench(3)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.refuse(2, Cause.SPENT)
    assert bench.picks(5) == {"key-3": 5}
    bench.refuse(3, Cause.THROTTLED, 50.0)
    assert bench.picks(5) == {"key-3": 5}
    bench.refuse(3, Cause.DEAD_KEY)

    assert bench.picks(5) == {"key-2": 5}


def test_a_lesser_refusal_does_not_replace_a_worse_one() -> None:
    """Requests that were under way end in any order."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.refuse(1, Cause.SPENT)
    bench.refuse(1, Cause.THROTTLED, 5.0, target="")
    assert bench.state(1) == "dead"
    bench.refuse(2, Cause.SPENT)
    bench.refuse(2, Cause.DEAD_KEY)

    assert bench.state(2) == "dead"


def test_a_key_that_was_throttled_everywhere_takes_all_its_turns_after_the_wait() -> None:
    """Nothing has to be found out: the upstream said when."""
    bench = Bench(2)
    bench.refuse(1, Cause.THROTTLED, 5.0, target="")
    assert bench.picks(10, THERE) == {"key-2": 10}
    bench.clock.advance(5.0)

    assert bench.picks(10) == {"key-1": 5, "key-2": 5}


# Forbidden requests.


def test_a_forbidden_key_is_left_out_at_that_target_only() -> None:
    """A key may lack one model; the rest of the provider is none of it."""
    bench = Bench(2)
    bench.refuse(1, Cause.FORBIDDEN)

    assert bench.picks(10) == {"key-2": 10}
    assert bench.picks(10, THERE) == {"key-1": 5, "key-2": 5}
    assert bench.state(1) == "usable"
    assert bench.credentials.describe()["openai"][0]["targets"][HERE]["state"] == "forbidden"


def test_one_forbidden_request_does_not_keep_others_from_the_target() -> None:
    """Though it was refused with every key, the next flight goes out, and its success clears the key."""
    bench = Bench(2)
    bench.refuse(1, Cause.FORBIDDEN)
    bench.refuse(2, Cause.FORBIDDEN)
    name = bench.pick()
    assert name is not None
    bench.accept(int(name[-1]))

    assert bench.picks(10) == {name: 10}


def test_forbidden_everywhere_costs_one_attempt_for_each_flight() -> None:
    """All keys are known to be forbidden there, so that none is rotated to."""
    bench = Bench(3)
    for at in (1, 2, 3):
        bench.refuse(at, Cause.FORBIDDEN)
    name = bench.pick()

    assert name is not None
    assert bench.pick(name) is None


def test_targets_without_end_leave_a_bounded_number_of_marks() -> None:
    """The oldest mark makes room."""
    bench = Bench(2)
    for number in range(MAX_PLACES + 10):
        bench.refuse(1, Cause.FORBIDDEN, target=f"openai/{number}")
    marked = bench.credentials.describe()["openai"][0]["targets"]

    assert len(marked) == MAX_PLACES
    assert f"openai/{MAX_PLACES + 9}" in marked


# Reloads.


def test_a_reload_with_another_value_revives_the_key_at_once() -> None:
    """The operator replaced it; its counters go on."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.keys[0] = Key("key-1", "sk-new")
    bench.keep()

    assert bench.state(1) == "usable"
    assert bench.picks(10) == {"key-1": 5, "key-2": 5}
    assert list(bench.credentials.refusals()) == [("openai", "key-1", "dead", 1)]


def test_a_reload_with_the_same_value_keeps_the_mark() -> None:
    """A change of something else says nothing about the key."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.keep()

    assert bench.picks(10) == {"key-2": 10}


def test_a_refusal_of_the_old_value_after_a_reload_does_not_mark_the_new_one() -> None:
    """The request was under way with what the operator has just replaced."""
    bench = Bench(2)
    old = bench.choice(1)
    bench.keys[0] = Key("key-1", "sk-new")
    bench.keep()
    bench.credentials.refused("openai", old, Cause.DEAD_KEY)

    assert bench.state(1) == "usable"


def test_verdicts_on_what_a_reload_took_away_are_ignored() -> None:
    """Exchanges end long after their snapshot."""
    bench = Bench(2)
    gone = bench.choice(2)
    bench.keys.pop()
    bench.keep()
    bench.refuse(1, Cause.DEAD_KEY)
    bench.credentials.refused("openai", gone, Cause.DEAD_KEY)
    bench.credentials.accepted("openai", gone)
    bench.credentials.keep({})
    bench.credentials.refused("openai", gone, Cause.DEAD_KEY)
    bench.credentials.accepted("openai", gone)

    assert bench.credentials.describe() == {}


@pytest.mark.parametrize("cause", [Cause.FAILED, Cause.OVERLOADED, Cause.TIMED_OUT, Cause.BAD_REQUEST])
def test_a_failure_that_is_not_the_keys_leaves_no_mark(cause: Cause) -> None:
    """A key does not pay for its target."""
    bench = Bench(2)
    bench.refuse(1, cause)

    assert bench.picks(10) == {"key-1": 5, "key-2": 5}
    assert list(bench.credentials.refusals()) == []


# What is shown.


def test_no_value_of_a_key_is_ever_shown() -> None:
    """Names and states are for people, values for the upstream alone."""
    bench = Bench(4)
    for at, cause in enumerate((Cause.DEAD_KEY, Cause.SPENT, Cause.THROTTLED, Cause.FORBIDDEN), 1):
        bench.refuse(at, cause)
    choice = bench.choice(1)
    credentials = bench.credentials
    (ring,) = credentials._rings.values()
    shown = [
        *(json.dumps(credentials.describe()), repr(choice), str(choice), f"{choice}", repr(credentials), repr(ring)),
        *(repr([*ring.keys, choice]), repr(list(credentials.states())), repr(list(credentials.refusals()))),
    ]

    assert not any("secret" in text for text in shown)
    assert choice.value == "sk-secret-1"


def test_the_description_says_how_each_key_fares() -> None:
    """For the admin API, with the time that is left."""
    bench = Bench(2)
    bench.refuse(1, Cause.DEAD_KEY)
    bench.clock.advance(100.0)
    bench.pick()

    assert bench.credentials.describe() == {
        "openai": [
            {"key": "key-1", "state": "dead", "uses": 0, "for_s": 200.0, "probing": False, "refusals": {"dead": 1}},
            {"key": "key-2", "state": "usable", "uses": 1},
        ]
    }
