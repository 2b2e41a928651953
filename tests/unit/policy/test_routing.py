"""The order in which targets are tried: each strategy, what health changes about it, and what is kept."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache
from hashlib import blake2b
from typing import Any

import pytest

from proxy.config.models import STRATEGIES, Model, ModelTarget
from proxy.config.prices import Price
from proxy.policy.routing import HealthSnapshot, Router, TargetView

PROVIDER: Any = None  # routing never looks at it
WELL = HealthSnapshot(0, {})
OPEN = TargetView(open=True)
FULL = TargetView(in_flight=4, limit=4)

versions = itertools.count(1)


def target(name: str, **members: Any) -> ModelTarget:
    return ModelTarget(name, PROVIDER, name, **members)


def model(strategy: str, *names: str, weights: tuple[float, ...] = (), name: str = "m") -> Model:
    """A model with targets of these names; without weights, all weigh the same."""
    weighed = itertools.zip_longest(names, weights, fillvalue=1.0)
    return Model(name, tuple(target(str(each), weight=float(weight)) for each, weight in weighed), strategy)


def health(**views: TargetView) -> HealthSnapshot:
    return HealthSnapshot(next(versions), views)


def fingerprint(number: int) -> bytes:
    return blake2b(number.to_bytes(8, "big"), digest_size=32).digest()


@cache
def hashes(count: int) -> list[bytes]:
    return [fingerprint(number) for number in range(count)]


def names(order: tuple[ModelTarget, ...]) -> str:
    return "".join(each.id for each in order)


def tried(asked: Model, snapshot: HealthSnapshot = WELL, key: bytes = b"k" * 32) -> str:
    """The names of the model's targets in the order of a new router."""
    return names(Router().order(asked, asked.targets, snapshot, key))


def firsts(asked: Model, keys: list[bytes], snapshot: HealthSnapshot = WELL) -> Counter[str]:
    """How often each target was the first choice."""
    router = Router()
    return Counter(router.order(asked, asked.targets, snapshot, key)[0].id for key in keys)


# -- ordered and cheapest --------------------------------------------------------------------------------------------


def test_ordered_targets_are_tried_as_written() -> None:
    """Whatever the hash, the load, the time, the weight or the price."""
    asked = model("ordered", *"abc", weights=(0, 1, 5))
    views = health(a=TargetView(in_flight=3, limit=4, first_byte_s=9.0), c=TargetView(first_byte_s=0.1))

    assert {tried(asked, views, key) for key in hashes(50)} == {"abc"}


@pytest.mark.parametrize(
    ("views", "order"),
    [
        ({"a": OPEN}, "bcda"),
        ({"a": FULL}, "bcda"),
        ({"a": OPEN, "b": FULL}, "cdba"),
        ({"a": FULL, "b": OPEN, "c": FULL}, "dacb"),
        (dict.fromkeys("abcd", OPEN), "abcd"),
        ({"a": TargetView(in_flight=3, limit=4)}, "abcd"),
        ({"a": TargetView(probe=True)}, "abcd"),
        ({"a": TargetView(open=True, probe=True)}, "abcd"),
        ({"stranger": OPEN}, "abcd"),
    ],
)
def test_room_comes_before_the_limit_and_the_limit_before_the_ejected(
    views: dict[str, TargetView], order: str
) -> None:
    """And a half-open one stays where it is, for its probe."""
    assert tried(model("ordered", *"abcd"), health(**views)) == order


def test_the_cheapest_counts_three_tokens_in_for_one_out() -> None:
    """3 x 1 + 9 is less than 3 x 4 + 1; what costs nothing is first, and equal prices stay as written."""
    prices = {"a": Price(4, 1), "b": Price(1, 9), "c": Price(0, 0), "d": Price(2, 6)}
    asked = Model("m", tuple(target(name, price=price) for name, price in prices.items()), "cheapest")

    assert tried(asked) == "cbda"


def test_a_price_is_found_by_the_name_of_the_model_and_unknown_ones_are_last() -> None:
    """The target's own price wins over the list."""
    listed = {"a": Price(5), "b": Price(1), "d": Price(3)}
    asked = Model("m", (target("x"), target("a"), target("b", price=Price(9)), target("y"), target("d")), "cheapest")

    order = Router(listed.get).order(asked, asked.targets, WELL, b"")

    assert names(order) == "dabxy"


def test_the_built_in_prices_are_known_without_being_told() -> None:
    """A router without a list of its own knows the list prices."""
    asked = Model("m", (target("gpt-4"), target("gpt-4o-mini"), target("gpt-4o")), "cheapest")

    assert tried(asked) == "gpt-4o-minigpt-4ogpt-4"


# -- shares ----------------------------------------------------------------------------------------------------------

SHARES = [
    ("round_robin", "abcde", (), (0.2,) * 5),
    ("round_robin", "abc", (7, 2, 1), (1 / 3,) * 3),
    ("weighted", "abcde", (), (0.2,) * 5),
    ("weighted", "abc", (80, 15, 5), (0.8, 0.15, 0.05)),
    ("weighted", "abc", (0.5, 0, 0.5), (0.5, 0.0, 0.5)),
    ("weighted", "ab", (0, 0), (0.5, 0.5)),
    ("weighted", "abcdefgh", (8, 7, 6, 5, 4, 3, 2, 1), tuple(part / 36 for part in range(8, 0, -1))),
]


@pytest.mark.parametrize(("strategy", "targets", "weights", "shares"), SHARES)
def test_shares_of_a_hundred_thousand_requests_are_within_two_percent(
    strategy: str, targets: str, weights: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    """Each within 2 % of itself, down to the smallest."""
    found = firsts(model(strategy, *targets, weights=weights), hashes(100_000))

    for name, share in zip(targets, shares, strict=True):
        assert found[name] == pytest.approx(share * 100_000, rel=0.02)


@pytest.mark.parametrize(("strategy", "targets", "weights", "shares"), SHARES)
def test_shares_are_exact_but_for_chance(
    strategy: str, targets: str, weights: tuple[float, ...], shares: tuple[float, ...]
) -> None:
    """Hashes that lie evenly find the weights to one request in 20,000, however small the share."""
    keys = [point.to_bytes(32, "big") for point in range(0, 1 << 48, (1 << 48) // 20_000)]

    found = firsts(model(strategy, *targets, weights=weights), keys)

    for name, share in zip(targets, shares, strict=True):
        assert found[name] / len(keys) == pytest.approx(share, abs=1.5e-4)


@pytest.mark.parametrize("strategy", ["round_robin", "weighted", "sticky"])
def test_an_ejected_targets_share_moves_and_no_other(strategy: str) -> None:
    """To the others, by their weights."""
    asked = model(strategy, *"abcd", weights=(50, 30, 15, 5))
    well, router, moved = Router(), Router(), Counter[str]()
    ejected = health(a=OPEN)
    for key in hashes(10_000):
        before = well.order(asked, asked.targets, WELL, key)
        after = router.order(asked, asked.targets, ejected, key)
        assert names(after) == names(before).replace("a", "") + "a"
        if before[0].id == "a":
            moved[after[0].id] += 1

    weights = {"b": 1, "c": 1, "d": 1} if strategy == "round_robin" else {"b": 30, "c": 15, "d": 5}
    for name, weight in weights.items():
        assert moved[name] / moved.total() == pytest.approx(weight / sum(weights.values()), rel=0.2)


@pytest.mark.parametrize("strategy", ["round_robin", "weighted", "sticky", "least_in_flight", "lowest_latency"])
def test_weight_zero_waits_until_all_others_fail(strategy: str) -> None:
    """Behind those at their limit, before those that are ejected, which count as failed."""
    asked = model(strategy, *"abc", weights=(0, 1, 1))

    for key in hashes(50):
        assert tried(asked, health(), key)[-1] == "a"
        assert tried(asked, health(b=FULL, c=FULL), key)[-1] == "a"
        assert tried(asked, health(b=OPEN, c=FULL), key) == "cab"
        assert tried(asked, health(a=OPEN, b=OPEN), key) == "cba"


@pytest.mark.parametrize("count", [2, 5, 6, 7, 12, 40])
@pytest.mark.parametrize("strategy", ["weighted", "sticky"])
def test_any_number_of_targets_is_spread_to_the_last_place(strategy: str, count: int) -> None:
    """Nobody's fallback is always the same: each of many places is held by many."""
    asked = model(strategy, *(chr(97 + each) for each in range(count)))
    orders = [tried(asked, key=key) for key in hashes(300)]

    assert all(len(set(order)) == count for order in orders)
    for place in range(count):
        assert len({order[place] for order in orders}) >= min(count, 15)


# -- load and time ---------------------------------------------------------------------------------------------------


def test_least_in_flight_goes_by_the_part_of_the_limit() -> None:
    """Six of twenty are less than two of four."""
    views = health(
        a=TargetView(in_flight=2, limit=4), b=TargetView(in_flight=6, limit=20), c=TargetView(in_flight=9, limit=10)
    )

    assert {tried(model("least_in_flight", *"abcd"), views, key) for key in hashes(50)} == {"dbac"}


@pytest.mark.parametrize(
    ("views", "order"),
    [
        ({"a": TargetView(in_flight=5), "b": TargetView(in_flight=2), "c": TargetView(in_flight=3)}, "bca"),
        ({"a": TargetView(in_flight=5), "b": TargetView(in_flight=4, limit=10), "c": TargetView(in_flight=6)}, "bac"),
        ({"a": TargetView(in_flight=0, limit=0), "b": TargetView(in_flight=7), "c": TargetView(in_flight=8)}, "bca"),
    ],
)
def test_without_a_limit_calls_are_counted_against_the_widest_of_the_others(
    views: dict[str, TargetView], order: str
) -> None:
    """Or against each other, where nobody has one."""
    assert tried(model("least_in_flight", *"abc"), health(**views)) == order


def test_equal_loads_are_told_apart_by_the_hash() -> None:
    """Idle targets get equal shares, and the busier one none."""
    views = health(a=TargetView(in_flight=1, limit=8))

    found = firsts(model("least_in_flight", *"abcd"), hashes(6000), views)

    assert found["a"] == 0
    assert all(found[name] == pytest.approx(2000, rel=0.1) for name in "bcd")


def test_of_two_choices_the_one_with_the_earlier_first_byte_is_ahead() -> None:
    """Among three, the fastest is one of the two in two thirds of all cases, and the slowest always loses."""
    views = health(a=TargetView(first_byte_s=0.9), b=TargetView(first_byte_s=0.2), c=TargetView(first_byte_s=0.5))

    found = firsts(model("lowest_latency", *"abc"), hashes(6000), views)

    assert found["a"] == 0
    assert found["b"] == pytest.approx(4000, rel=0.05)


def test_a_target_without_a_known_time_is_tried() -> None:
    """Unknown is better than the best that is known."""
    views = health(a=TargetView(first_byte_s=0.01), b=TargetView(in_flight=7))

    assert {tried(model("lowest_latency", *"ab"), views, key) for key in hashes(50)} == {"ba"}


@pytest.mark.parametrize("view", [TargetView(in_flight=8), TargetView(in_flight=3, limit=3)])
def test_a_target_without_a_known_time_is_not_stampeded(view: TargetView) -> None:
    """Once enough wait for its first answer, the next go where answers are known to come from."""
    views = health(a=TargetView(first_byte_s=5.0), b=view)

    assert {tried(model("lowest_latency", *"ab"), views, key) for key in hashes(50)} == {"ab"}


def test_a_fast_target_at_its_limit_loses_to_a_slow_one_with_room() -> None:
    """Waiting for a place costs more than the difference."""
    views = health(a=TargetView(first_byte_s=0.1, in_flight=9, limit=9), b=TargetView(first_byte_s=3.0))

    assert {tried(model("lowest_latency", *"ab"), views, key) for key in hashes(50)} == {"ba"}


@pytest.mark.parametrize(
    ("strategy", "busy"),
    [("lowest_latency", TargetView(first_byte_s=9.0)), ("least_in_flight", TargetView(in_flight=9, limit=20))],
)
def test_who_gets_slower_or_busier_falls_behind(strategy: str, busy: TargetView) -> None:
    """With the next snapshot, and comes back with the one after."""
    asked, router = model(strategy, *"ab"), Router()
    one = TargetView(in_flight=2, limit=20, first_byte_s=1.0)

    def order(**views: TargetView) -> str:
        return names(router.order(asked, asked.targets, health(**views), b"k" * 32))

    assert [order(a=busy, b=one), order(a=one, b=busy), order(a=busy, b=one)] == ["ba", "ab", "ba"]


# -- sticky ----------------------------------------------------------------------------------------------------------


def test_who_asks_decides_where_a_sticky_model_goes() -> None:
    """One session, many requests: one target; many sessions, one request: all targets."""
    asked, router = model("sticky", *"abcd"), Router()

    def first(key: bytes, session: bytes) -> str:
        return router.order(asked, asked.targets, WELL, key, session)[0].id

    assert len({first(key, b"s" * 16) for key in hashes(100)}) == 1
    assert {first(b"k" * 32, session[:8]) for session in hashes(100)} == set("abcd")


def test_without_a_session_a_sticky_model_goes_by_the_fingerprint() -> None:
    """As if the fingerprint were who asks."""
    asked, router = model("sticky", *"abcd"), Router()

    for key in hashes(100):
        without = router.order(asked, asked.targets, WELL, key)
        assert without == router.order(asked, asked.targets, WELL, b"k" * 32, key)


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each != "sticky"])
def test_other_strategies_do_not_ask_who_asks(strategy: str) -> None:
    """Identical requests of two sessions agree."""
    asked, router = model(strategy, *"abcd"), Router()

    assert len({router.order(asked, asked.targets, WELL, b"k" * 32, session) for session in hashes(50)}) == 1


def test_a_target_that_is_added_takes_its_share_and_nothing_else_moves() -> None:
    """Wherever it is written; and one that is taken away leaves its sessions to the others, and theirs alone."""
    few, many = model("sticky", *"abcd", weights=(4, 3, 2, 1)), model("sticky", *"xabcd", weights=(2, 4, 3, 2, 1))

    router, taken = Router(), 0
    for key in hashes(4000):
        order = names(router.order(many, many.targets, WELL, key))
        assert order.replace("x", "") == names(router.order(few, few.targets, WELL, key))
        taken += order[0] == "x"

    assert taken / 4000 == pytest.approx(2 / 12, rel=0.15)


def test_sticky_shares_go_by_weight() -> None:
    """As evenly as slots can be thrown."""
    found = firsts(model("sticky", *"abc", weights=(60, 30, 10)), hashes(20_000))

    for name, share in zip("abc", (0.6, 0.3, 0.1), strict=True):
        assert found[name] / 20_000 == pytest.approx(share, rel=0.12)


def test_sessions_of_two_models_are_not_spread_alike() -> None:
    """A session that met a bad target for one model need not meet it for the next."""
    one, two = model("sticky", *"ab", name="one"), model("sticky", *"ab", name="two")

    alike = sum(tried(one, key=key) == tried(two, key=key) for key in hashes(400))

    assert 140 < alike < 260


# -- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "orders"),
    [
        ("round_robin", ["bdcae", "bcead", "baced"]),
        ("weighted", ["aecbd", "adceb", "acdbe"]),
        ("sticky", ["badce", "cdbea", "abedc"]),
    ],
)
def test_all_processes_of_all_releases_agree(strategy: str, orders: list[str]) -> None:
    """While a release is rolled out, identical requests still pick the same target."""
    asked = model(strategy, *"abcde", weights=(5, 4, 3, 2, 1))

    assert [tried(asked, key=key) for key in hashes(3)] == orders


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_target_and_none_are_returned_as_they_are(strategy: str) -> None:
    """There is nothing to choose, and nothing to keep."""
    router, alone = Router(), model(strategy, "a")

    assert router.order(alone, alone.targets, health(a=OPEN), b"k" * 32) is alone.targets
    assert router.order(alone, (), WELL, b"k" * 32) == ()
    assert len(router) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_under_one_snapshot_a_request_gets_the_order_it_got_before(strategy: str) -> None:
    """The very tuple, and the table was laid out once for all requests."""
    asked, router = model(strategy, *"abcd"), Router()

    for key in hashes(200):
        assert router.order(asked, asked.targets, WELL, key) is router.order(asked, asked.targets, WELL, key)
    assert (len(router), router.laid_out) == (1, 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_new_snapshot_that_says_the_same_keeps_the_orders(strategy: str) -> None:
    """Other targets' health, a little more load with room left: nobody changes place, nothing is made anew."""
    asked, router = model(strategy, *"abcd"), Router()
    views = [TargetView(in_flight=each, limit=10, first_byte_s=1.0 + each) for each in range(4)]
    later = [view._replace(in_flight=view.in_flight + 2, first_byte_s=view.first_byte_s + 0.1) for view in views]

    before = router.order(asked, asked.targets, health(**dict(zip("abcd", views, strict=True))), b"k" * 32)
    after = router.order(asked, asked.targets, health(**dict(zip("abcd", later, strict=True)), z=OPEN), b"k" * 32)

    assert after is before


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_new_snapshot_is_heeded_at_once_and_so_is_an_old_one(strategy: str) -> None:
    """An exchange that still holds the old one gets the order that belongs to it."""
    asked, router = model(strategy, *"abcd"), Router()
    before = router.order(asked, asked.targets, WELL, b"k" * 32)
    ejected = health(**{before[0].id: OPEN})

    assert router.order(asked, asked.targets, ejected, b"k" * 32) == (*before[1:], before[0])
    assert router.order(asked, asked.targets, WELL, b"k" * 32) == before


def test_two_models_with_the_same_targets_keep_their_own_orders() -> None:
    """A copy of a model under another strategy is another model."""
    first = model("ordered", *"ab")
    second = Model("n", first.targets, "least_in_flight")
    router, views = Router(), health(a=TargetView(in_flight=1))

    assert names(router.order(first, first.targets, views, b"")) == "ab"
    assert names(router.order(second, first.targets, views, b"")) == "ba"
    assert names(router.order(first, first.targets, views, b"")) == "ab"


def test_callers_who_may_use_some_targets_have_one_table_for_each_choice_of_them() -> None:
    """Shares among what is left, however often the tuple is made anew, beside the shares of everybody else."""
    asked, router = model("weighted", *"abc", weights=(80, 15, 5)), Router()

    found = Counter(router.order(asked, asked.targets[1:], WELL, key)[0].id for key in hashes(4000))
    other = {names(router.order(asked, asked.targets[:2], WELL, key)) for key in hashes(100)}
    every = {len(router.order(asked, asked.targets, WELL, key)) for key in hashes(100)}

    assert found["b"] / 4000 == pytest.approx(0.75, rel=0.05)
    assert (other, every) == ({"ab", "ba"}, {3})
    assert (len(router), router.laid_out) == (3, 3)


def test_tables_are_bounded_and_can_be_let_go_of() -> None:
    """A full router starts anew, and a replaced catalog is not kept alive."""
    router, models = Router(most_tables=3), [model("ordered", *"ab", name=str(number)) for number in range(10)]

    for asked in models:
        assert names(router.order(asked, asked.targets, WELL, b"")) == "ab"
        assert len(router) <= 3
    router.forget()

    assert (len(router), router.laid_out, router.dropped) == (0, 10, 10)


def test_models_made_anew_for_each_request_do_not_meet_the_tables_of_others() -> None:
    """Identities are only compared while what they belong to is alive."""
    router = Router(most_tables=50)

    for first, second in itertools.product("abcdefghij", "klmnopqrst"):
        asked = model("ordered", first, second)
        assert names(router.order(asked, asked.targets, WELL, b"")) == first + second
