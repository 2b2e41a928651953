"""What a step costs does not grow with what there is: calls of functions and allocated blocks, few against many.

Counts do not depend on the machine; `loadtests/micro` shows the same lines in time, with larger numbers.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest

from loadtests.micro.flat import make_finder
from loadtests.micro.material import join, make_cache, make_keys, make_recording, make_table
from proxy.clock import Clock, Deadlines
from proxy.telemetry.metrics import Metrics

FEW, MANY = 10, 10_000

Call = Callable[[], object]


def count_calls(call: Call) -> int:
    """Python functions and built-in ones that ``call`` calls."""
    calls = 0

    def profile(frame: object, event: str, _: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    call()  # what is worked out once is no cost of each
    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(previous)
    return calls


def count_blocks(call: Call) -> int:
    """Memory blocks that a hundred calls leave behind."""
    for _ in range(10):
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(100):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before


def find_key(count: int) -> Call:
    """A virtual key that is held."""
    return make_finder(count)


def look_up(count: int) -> Call:
    """A hit in the hot cache."""
    cache, key = make_cache(count, 0.0), next(make_keys(1))
    return lambda: cache.lookup(key, 0.5)


def store(count: int) -> Call:
    """An answer for a key that is stored already, into a full cache."""
    cache, key = make_cache(count, 0.0), next(make_keys(1))
    cache.max_bytes = cache.size_bytes
    recording = make_recording(0.0)
    return lambda: cache.put(key, b"scope0", recording, cache.generation)


def lead(count: int) -> Call:
    """A flight that is begun, and abandoned."""
    table = make_table(count)

    def call() -> None:
        subscription = join(table, b"k" * 32)
        subscription.leave()

    return call


def follow(count: int) -> Call:
    """A flight that is joined and left."""
    table, key = make_table(count), next(make_keys(1))
    return lambda: join(table, key).leave()


def arm(count: int) -> Call:
    """A deadline that is armed and cancelled."""
    deadlines = Deadlines(Clock())
    for number in range(count):
        deadlines.arm(10.0 + number % 600, lambda: None)
    return lambda: deadlines.arm(1.0, lambda: None).cancel()


def label(count: int) -> Call:
    """The series of a model."""
    metrics = Metrics([f"model-{number}" for number in range(count)])
    return lambda: metrics.requests_total.at("openai", "chat_completions", "model-1", "200", "ok")


CALLS = (find_key, look_up, store, lead, follow, arm, label)


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_a_step_makes_as_many_calls_with_ten_thousand_as_with_ten(make: Callable[[int], Call]) -> None:
    """Ten thousand keys, cached answers, flights, deadlines, models. Fewer may be more work: a scope of the cache
    that loses its only entry goes with it."""
    assert count_calls(make(MANY)) <= count_calls(make(FEW))


@pytest.mark.parametrize("make", CALLS, ids=lambda make: make.__name__)
def test_a_step_that_is_repeated_leaves_nothing_behind(make: Callable[[int], Call]) -> None:
    """A block each time would be a hundred here."""
    assert count_blocks(make(FEW)) < 50
