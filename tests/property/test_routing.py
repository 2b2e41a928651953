"""The laws of routing, for any targets, weights, health and hash: nobody is lost, the ejected overtake nobody."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.models import STRATEGIES, Model, ModelTarget
from proxy.config.prices import Price
from proxy.policy.routing import HealthSnapshot, Router, TargetView
from proxy.policy.shares import SLOTS, Rendezvous, Shares

PROVIDER: Any = None  # routing never looks at it
BY_HASH = ("round_robin", "weighted", "sticky")

WEIGHTS = st.one_of(
    st.sampled_from([0.0, 1.0, 1e-300, 5e-324, 1e300, float("inf"), float("nan"), -1.0]),
    st.floats(min_value=0.001, max_value=1000),
)
VIEWS = st.builds(
    TargetView,
    open=st.booleans(),
    probe=st.booleans(),
    in_flight=st.integers(0, 12),
    limit=st.sampled_from([0.0, 0.5, 1.0, 4.0, 10.0, float("inf")]),
    first_byte_s=st.one_of(st.just(0.0), st.floats(0, 100)),
)
HASHES = st.binary(min_size=32, max_size=32)


@st.composite
def models(draw: st.DrawFn, strategies: tuple[str, ...] = STRATEGIES) -> Model:
    count = draw(st.integers(0, 9))
    targets = tuple(
        ModelTarget(f"p/{number}", PROVIDER, "m", draw(WEIGHTS), draw(st.none() | st.builds(Price, st.floats(0, 9))))
        for number in range(count)
    )
    return Model("m", targets, draw(st.sampled_from(strategies)))


@st.composite
def snapshots(draw: st.DrawFn, version: int = 1) -> HealthSnapshot:
    return HealthSnapshot(version, draw(st.dictionaries(st.integers(0, 9).map("p/{}".format), VIEWS)))


def is_out(snapshot: HealthSnapshot, target: ModelTarget) -> bool:
    view = snapshot.views.get(target.id, TargetView())
    return view.open and not view.probe


@settings(max_examples=30)
@given(models(), snapshots(), snapshots(version=2), st.lists(HASHES, min_size=1, max_size=5))
def test_every_target_is_tried_once_and_the_ejected_last(
    model: Model, snapshot: HealthSnapshot, next_snapshot: HealthSnapshot, keys: list[bytes]
) -> None:
    """Whatever was asked of the router before."""
    router = Router()
    for health in (snapshot, next_snapshot, snapshot):
        for key in keys:
            order = router.order(model, model.targets, health, key)

            assert sorted(each.id for each in order) == sorted(each.id for each in model.targets)
            out = [is_out(health, each) for each in order]
            assert out == sorted(out)


@settings(max_examples=30)
@given(models(), snapshots(), snapshots(version=2), HASHES, st.binary(max_size=32))
def test_equal_questions_have_equal_answers(
    model: Model, snapshot: HealthSnapshot, other: HealthSnapshot, key: bytes, sticky: bytes
) -> None:
    """Of a router that was never asked before, and of one that was asked under other health and by others."""
    asked = Router()
    asked.order(model, model.targets, other, key[::-1], sticky[::-1])

    order = asked.order(model, model.targets, snapshot, key, sticky)

    assert order == Router().order(model, model.targets, snapshot, key, sticky)


@settings(max_examples=30)
@given(models(), snapshots(), HASHES)
def test_where_all_count_alike_room_comes_before_the_limit(
    model: Model, snapshot: HealthSnapshot, key: bytes
) -> None:
    """Among the targets that are not ejected and have a weight."""
    order = Router().order(model, model.targets, snapshot, key)

    full = [
        view.in_flight >= view.limit
        for each, view in ((each, snapshot.views.get(each.id, TargetView())) for each in order)
        if not is_out(snapshot, each) and each.weight > 0
    ]
    assert full == sorted(full)


@settings(max_examples=30)
@given(models(BY_HASH), st.integers(0, 9), st.lists(HASHES, min_size=1, max_size=20))
def test_only_the_requests_of_an_ejected_target_move(model: Model, number: int, keys: list[bytes]) -> None:
    """And the order of all others stays what it was."""
    gone = f"p/{number}"
    well, ejected = HealthSnapshot(1, {}), HealthSnapshot(2, {gone: TargetView(open=True)})
    for key in keys:
        before = Router().order(model, model.targets, well, key)
        after = Router().order(model, model.targets, ejected, key)

        assert [each for each in after if each.id != gone] == [each for each in before if each.id != gone]


@given(st.lists(WEIGHTS, min_size=1, max_size=12), st.integers(0, (1 << 48) - 1))
def test_cells_ascend_and_each_holds_an_order_of_all(weights: list[float], number: int) -> None:
    """However far apart the weights are, the line is covered from end to end."""
    shares = Shares(weights)

    assert list(shares.edges) == sorted(shares.edges)
    assert len(shares.edges) == shares.cells - 1
    assert sorted(shares.order(number % shares.cells)) == list(range(len(weights)))


@settings(max_examples=30)
@given(st.lists(WEIGHTS, min_size=2, max_size=8), st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=20))
def test_a_session_moves_only_to_a_target_that_is_new(weights: list[float], slots: list[int]) -> None:
    """Nobody changes places because of somebody else who came or went, however heavy."""
    sound = [weight if 0.001 <= weight <= 1000 else 1.0 for weight in weights]
    names = [str(number) for number in range(len(sound))]
    many = Rendezvous(names, sound, "m")
    few = Rendezvous(names[:-1], sound[:-1], "m")
    for slot in slots:
        order = many.order(many.rank(slot))

        assert tuple(each for each in order if each != len(names) - 1) == few.order(few.rank(slot))
