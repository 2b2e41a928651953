"""Places at targets: who gets one, who waits, who is sent elsewhere, and what the snapshot says of it."""

from __future__ import annotations

import asyncio

import pytest

from proxy.clock import Deadlines
from proxy.errors import Kind, ProxyError, Retry
from proxy.policy.routing import TargetView
from proxy.upstream.breaker import BreakerRules, ThrottleRules
from proxy.upstream.concurrency import LimitRules
from proxy.upstream.health import Health, HealthRules, Outcome, TargetLimits
from tests.fakes.clock import FrozenClock

A, B = "openai/gpt", "mistral/large"
SCOPE = b"alice"
FAR = 1e9


class Ward:
    """A health with its clock; ``draw`` is the next random number."""

    def __init__(self, rules: HealthRules = HealthRules(), **limits: TargetLimits) -> None:  # noqa: B008
        self.clock = FrozenClock()
        self.deadlines = Deadlines(self.clock)
        self.draw = 0.5
        self.health = Health(self.clock, self.deadlines, rules, lambda: self.draw)
        self.health.keep({A: limits.get("a", TargetLimits()), B: limits.get("b", TargetLimits())})

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()
        self.health.sweep(self.clock.now())

    def attempt(self, outcome: Outcome, times: int = 1, *, last: bool = False) -> None:
        for _ in range(times):
            place = self.health.try_enter(A, SCOPE, last=last)
            assert place is not None
            if outcome is Outcome.OK:
                place.answered(0.1)
            place.leave(outcome)

    def eject(self) -> None:
        self.attempt(Outcome.FAILED, 5)
        assert self.view.open

    def wait(self, scope: bytes = SCOPE, deadline_at: float = FAR, *, last: bool = False):
        return asyncio.ensure_future(self.health.enter(A, scope, deadline_at, last=last))

    def fill(self):
        places = []
        while (place := self.health.try_enter(A, SCOPE)) is not None:
            places.append(place)
        return places

    @property
    def view(self) -> TargetView:
        return self.health.snapshot.views.get(A, TargetView())

    @property
    def about(self) -> dict:
        return next(each for each in self.health.describe() if each["target"] == A)


@pytest.fixture
def ward():
    return Ward()


def one_place(**limits) -> Ward:
    return Ward(a=TargetLimits(**({"max_in_flight": 1} | limits)))


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


async def refused(task) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await task
    return caught.value


# -- at once ------------------------------------------------------------------------------------------------------


async def test_places_are_given_up_to_the_limit_and_again_when_one_was_left(ward):
    """64 of them at first."""
    places = ward.fill()
    assert len(places) == 64
    places[0].leave(Outcome.OK)
    assert ward.health.try_enter(A, SCOPE) is not None
    assert ward.health.try_enter(A, SCOPE) is None
    assert ward.about["in_flight"] == 64


async def test_a_place_is_left_once(ward):
    """Whoever leaves twice, or answers after leaving, changes nothing."""
    place = ward.health.try_enter(A, SCOPE)
    place.leave(Outcome.OK)
    place.leave(Outcome.FAILED)
    place.answered(0.5)
    assert ward.about["in_flight"] == 0
    assert ward.about["attempts"] == {"ok": 1, "failed": 0, "timed_out": 0, "busy": 0, "throttled": 0, "neutral": 0}
    assert ward.about["first_byte_ms"] == 0.0


async def test_targets_do_not_share_their_room(ward):
    """A full one says nothing about another."""
    ward.fill()
    assert ward.health.try_enter(B, SCOPE) is not None


async def test_good_answers_raise_the_limit_while_it_is_used(ward):
    """64 answers with 64 under way: one more may be."""
    for place in ward.fill():
        place.answered(0.1)
    assert ward.about["limit"] == 65


@pytest.mark.parametrize(
    ("outcome", "limit"),
    [
        (Outcome.THROTTLED, 44), (Outcome.BUSY, 44), (Outcome.TIMED_OUT, 44),
        (Outcome.FAILED, 64), (Outcome.NEUTRAL, 64), (Outcome.OK, 64),
    ],
)  # fmt: skip
async def test_only_what_means_too_much_at_once_cuts_the_limit(ward, outcome, limit):
    """429, 529, 503 and silence do; a crash and a caller's fault do not."""
    ward.attempt(outcome)
    assert ward.about["limit"] == limit


# -- the breaker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.BUSY])
async def test_five_failures_in_a_row_eject_the_target_at_once(ward, outcome):
    """The snapshot says so before anybody sweeps."""
    ward.attempt(outcome, 4)
    before = ward.health.snapshot
    ward.attempt(outcome)
    assert ward.view.open
    assert not before.views.get(A, TargetView()).open
    assert ward.health.snapshot.version > before.version
    assert ward.health.try_enter(A, SCOPE) is None


@pytest.mark.parametrize("outcome", [Outcome.THROTTLED, Outcome.NEUTRAL])
async def test_throttling_and_callers_faults_never_eject(ward, outcome):
    """A hundred of them."""
    ward.attempt(outcome, 100)
    assert not ward.view.open


async def test_an_ejected_target_refuses_with_the_time_until_its_probe(ward):
    """Another target may be asked meanwhile."""
    ward.eject()
    ward.advance(10)
    error = await refused(ward.wait())
    assert (error.kind, error.why, error.retry, error.detail) == (Kind.OVERLOADED, "target_open", Retry.OTHER, A)
    assert error.retry_after_s == pytest.approx(20.0)
    assert ward.about["refused"]["target_open"] == 1


async def test_who_has_no_other_target_is_let_through_and_not_one_at_a_time(ward):
    """A model with one target does not stand still for 30 s."""
    ward.eject()
    places = [ward.health.try_enter(A, SCOPE, last=True) for _ in range(3)]
    assert None not in places
    assert (await ward.wait(last=True)) is not None
    for place in places:
        place.leave(Outcome.FAILED)
    assert ward.about["ejected_for_s"] == 30.0


async def test_a_good_answer_without_other_targets_ends_the_ejection(ward):
    """It works, so everybody may know."""
    ward.eject()
    ward.attempt(Outcome.OK, last=True)
    assert not ward.view.open
    assert ward.health.try_enter(A, SCOPE) is not None


@pytest.mark.parametrize("swept", [True, False])
async def test_after_the_ejection_one_probe_is_let_through(ward, swept):
    """Whether the sweep came first or the request; the snapshot asks for the probe, and for no second one."""
    ward.eject()
    ward.clock.advance(30.0)
    if swept:
        ward.health.sweep(ward.clock.now())
        assert (ward.view.probe, ward.view.open) == (True, False)
    probe = ward.health.try_enter(A, SCOPE)
    assert probe is not None
    assert (ward.view.probe, ward.view.open) == (False, True)
    assert ward.health.try_enter(A, SCOPE) is None
    assert (await refused(ward.wait())).why == "target_open"


async def test_the_head_of_the_probes_answer_brings_the_target_back(ward):
    """Its stream may go on for an hour."""
    ward.eject()
    ward.advance(30)
    probe = ward.health.try_enter(A, SCOPE)
    probe.answered(0.2)
    assert ward.about["state"] == "closed"
    ward.attempt(Outcome.OK, 3)
    probe.leave(Outcome.OK)
    assert ward.about["in_flight"] == 0


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.BUSY])
async def test_a_probe_that_fails_ejects_for_longer(ward, outcome):
    """60 s the second time."""
    ward.eject()
    ward.advance(30)
    ward.health.try_enter(A, SCOPE).leave(outcome)
    assert ward.view.open
    assert ward.about["ejected_for_s"] == 60.0


async def test_a_throttled_probe_brings_the_target_back(ward):
    """It answers; how much it bears is the limit's matter."""
    ward.eject()
    ward.advance(30)
    ward.attempt(Outcome.THROTTLED)
    assert ward.about["state"] == "closed"


async def test_a_probe_whose_caller_left_makes_way_for_another(ward):
    """It told nothing."""
    ward.eject()
    ward.advance(30)
    ward.attempt(Outcome.NEUTRAL)
    assert ward.view.probe
    ward.attempt(Outcome.OK)
    assert ward.about["state"] == "closed"


async def test_who_has_no_other_target_is_the_probe_if_one_is_wanted(ward):
    """Its failure counts as that of any probe; one beside it does not."""
    ward.eject()
    ward.advance(30)
    probe = ward.health.try_enter(A, SCOPE, last=True)
    beside = ward.health.try_enter(A, SCOPE, last=True)
    beside.leave(Outcome.FAILED)
    assert ward.about["state"] == "half_open"
    probe.leave(Outcome.FAILED)
    assert ward.about["ejected_for_s"] == 60.0


async def test_attempts_from_before_the_ejection_have_no_say_after_it(ward):
    """Fifty hung through an outage and time out when the target is back: it stays, and its limit as well."""
    hung = [ward.health.try_enter(A, SCOPE) for _ in range(50)]
    ward.eject()
    ward.advance(30)
    ward.attempt(Outcome.OK)
    limit = ward.about["limit"]
    for place in hung:
        place.leave(Outcome.TIMED_OUT)
    assert (ward.about["state"], ward.about["limit"]) == ("closed", limit)
    assert ward.about["attempts"]["timed_out"] == 50


async def test_a_late_answer_from_before_the_ejection_does_not_end_it(ward):
    """It was asked when the target was well."""
    before = ward.health.try_enter(A, SCOPE)
    ward.eject()
    before.answered(20.0)
    before.leave(Outcome.OK)
    assert ward.view.open


async def test_the_probe_does_not_wait_for_streams_that_fill_a_cut_limit(ward):
    """They may run for an hour; the operator's own bound is kept all the same."""
    streams = ward.fill()
    for place in streams[:5]:
        place.leave(Outcome.TIMED_OUT)
    assert ward.about["in_flight"] > ward.about["limit"]
    ward.advance(30)
    assert ward.health.try_enter(A, SCOPE) is not None


async def test_the_probe_keeps_to_the_operators_bound():
    """Two at a time are two."""
    ward = Ward(a=TargetLimits(max_in_flight=2))
    stream = ward.health.try_enter(A, SCOPE)
    ward.eject()
    other = ward.health.try_enter(A, SCOPE, last=True)
    ward.advance(30)
    assert ward.health.try_enter(A, SCOPE) is None
    assert (await refused(ward.wait())).why == "target_open"
    assert ward.view.probe
    other.leave(Outcome.NEUTRAL)
    assert ward.health.try_enter(A, SCOPE) is not None
    stream.leave(Outcome.NEUTRAL)


async def test_recovery_takes_one_interval(ward):
    """A target that is dead for 20 s is back 30 s after its ejection."""
    ward.eject()
    back = []
    for tenth in range(400):
        ward.advance(0.1)
        if (place := ward.health.try_enter(A, SCOPE)) is not None:
            back.append(tenth)
            if tenth >= 200:
                place.answered(0.1)
            place.leave(Outcome.OK if tenth >= 200 else Outcome.FAILED)
    assert back[0] in (299, 300)
    assert back == list(range(back[0], 400))


# -- sparing ------------------------------------------------------------------------------------------------------


def degrade(ward: Ward) -> None:
    """Half of 400 attempts fail, never two in a row."""
    for _ in range(200):
        ward.attempt(Outcome.OK)
        ward.attempt(Outcome.FAILED)
    ward.advance(1.0)


async def test_a_target_that_fails_half_of_the_time_is_spared_nearly_half(ward):
    """Who draws a number below the share goes elsewhere; who has no other target does not."""
    degrade(ward)
    assert ward.about["spared_share"] == pytest.approx(0.472, abs=0.001)
    ward.draw = 0.47
    assert (await refused(ward.wait())).why == "target_throttled"
    assert ward.about["refused"]["target_throttled"] == 1
    assert ward.health.try_enter(A, SCOPE, last=True) is not None
    ward.draw = 0.48
    assert (await ward.wait()) is not None


async def test_the_draw_is_made_once_for_each_attempt(ward):
    """Who asks for a place at once and then in line is not spared by half of a half."""
    degrade(ward)
    ward.draw = 0.9
    assert ward.health.try_enter(A, SCOPE) is None
    assert ward.about["refused"]["target_throttled"] == 0
    assert (await ward.wait()) is not None


async def test_it_is_spared_no_more_when_the_failures_are_half_a_minute_old(ward):
    """Time alone does it."""
    degrade(ward)
    ward.advance(30.0)
    assert ward.about["spared_share"] == 0.0
    assert ward.health.try_enter(A, SCOPE) is not None


async def test_an_ejection_is_not_followed_by_sparing(ward):
    """What was counted before it says nothing about a target that is back."""
    degrade(ward)
    for _ in range(4):
        ward.attempt(Outcome.FAILED, last=True)
    assert ward.view.open
    assert ward.about["spared_share"] == 0.0
    ward.attempt(Outcome.OK, last=True)
    ward.advance(1.0)
    assert ward.health.try_enter(A, SCOPE) is not None


async def test_nothing_is_spared_below_five_attempts_per_second(ward):
    """A few failures are no trend."""
    for _ in range(70):
        ward.attempt(Outcome.OK)
        ward.attempt(Outcome.FAILED)
    ward.advance(1.0)
    assert ward.health.try_enter(A, SCOPE) is not None


# -- the line -----------------------------------------------------------------------------------------------------


async def test_who_finds_no_room_waits_for_it():
    """The place that is left is theirs, whatever came of the attempt."""
    ward = one_place()
    place = ward.health.try_enter(A, SCOPE)
    waiting = ward.wait()
    await settle()
    assert not waiting.done()
    assert ward.about["queued"] == 1
    place.leave(Outcome.NEUTRAL)
    (await waiting).leave(Outcome.OK)
    assert (ward.about["in_flight"], ward.about["queued"], ward.deadlines.armed) == (0, 0, 0)


async def test_nobody_overtakes_the_line():
    """A place that was left is spoken for before its next holder has run."""
    ward = one_place()
    place = ward.health.try_enter(A, SCOPE)
    waiting = ward.wait()
    await settle()
    place.leave(Outcome.OK)
    assert ward.health.try_enter(A, SCOPE) is None
    await waiting


async def test_scopes_take_turns_in_the_line():
    """Carol asks last and is served third."""
    ward = one_place()
    place = ward.health.try_enter(A, SCOPE)
    served: list[str] = []

    async def ask(name: str) -> None:
        mine = await ward.health.enter(A, name.encode(), FAR)
        served.append(name)
        mine.leave(Outcome.OK)

    async with asyncio.TaskGroup() as group:
        for name in ("alice", "alice", "alice", "bob", "carol"):
            group.create_task(ask(name))
        await settle()
        place.leave(Outcome.OK)
    assert served == ["alice", "bob", "carol", "alice", "alice"]


async def test_a_full_line_refuses_at_once():
    """The third of one scope where two may wait."""
    ward = one_place(max_queue=2)
    place = ward.health.try_enter(A, SCOPE)
    waiting = [ward.wait(), ward.wait()]
    await settle()
    error = await refused(ward.health.enter(A, SCOPE, FAR))
    assert (error.kind, error.why, error.retry, error.retry_after_s) == (
        Kind.OVERLOADED, "queue_full", Retry.OTHER, 1.0,
    )  # fmt: skip
    place.leave(Outcome.OK)
    (await waiting[0]).leave(Outcome.OK)
    (await waiting[1]).leave(Outcome.OK)


async def test_one_scope_cannot_keep_others_out_of_the_line():
    """Bob's first request takes the room of Alice's youngest."""
    ward = one_place(max_queue=3)
    place = ward.health.try_enter(A, SCOPE)
    alices = [ward.wait(b"alice") for _ in range(3)]
    await settle()
    bob = ward.wait(b"bob")
    assert (await refused(alices[2])).why == "queue_full"
    assert ward.about["queued"] == 3
    for waiting in (alices[0], bob, alices[1]):
        place.leave(Outcome.OK)
        place = await waiting
    place.leave(Outcome.OK)
    assert ward.about["refused"]["queue_full"] == 1


async def test_waiting_ends_when_its_time_is_over():
    """A second, not the deadline of the caller."""
    ward = one_place(queue_s=1.0)
    place = ward.health.try_enter(A, SCOPE)
    waiting = ward.wait(deadline_at=ward.clock.now() + 60)
    await settle()
    ward.advance(0.9)
    await settle()
    assert not waiting.done()
    ward.advance(0.2)
    error = await refused(waiting)
    assert (error.kind, error.why, error.retry) == (Kind.OVERLOADED, "queue_timeout", Retry.OTHER)
    assert ward.about["refused"]["queue_timeout"] == 1
    place.leave(Outcome.OK)
    assert ward.about["in_flight"] == 0


async def test_a_callers_deadline_ends_the_wait_for_good():
    """No other target helps then."""
    ward = one_place(queue_s=5.0)
    place = ward.health.try_enter(A, SCOPE)
    waiting = ward.wait(deadline_at=ward.clock.now() + 0.5)
    await settle()
    ward.advance(0.6)
    error = await refused(waiting)
    assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_TIMEOUT, "total", Retry.NO)
    place.leave(Outcome.OK)


async def test_who_leaves_the_line_is_never_served():
    """The next one is."""
    ward = one_place()
    place = ward.health.try_enter(A, SCOPE)
    gone, waiting = ward.wait(), ward.wait()
    await settle()
    gone.cancel()
    place.leave(Outcome.OK)
    (await waiting).leave(Outcome.OK)
    assert gone.cancelled()
    assert (ward.about["in_flight"], ward.about["queued"], ward.deadlines.armed) == (0, 0, 0)


async def test_a_place_handed_to_somebody_who_is_cancelled_in_the_same_moment_goes_to_the_next():
    """Between the leaving and the turn of the one who waits nothing is lost, and no attempt is counted."""
    ward = one_place()
    place = ward.health.try_enter(A, SCOPE)
    gone, waiting = ward.wait(), ward.wait()
    await settle()
    place.leave(Outcome.OK)
    gone.cancel()
    (await waiting).leave(Outcome.OK)
    assert gone.cancelled()
    assert ward.about["in_flight"] == 0
    assert sum(ward.about["attempts"].values()) == 2


async def test_a_probe_handed_to_somebody_who_is_cancelled_is_wanted_again():
    """It was never made."""
    ward = one_place()
    ward.eject()
    place = ward.health.try_enter(A, SCOPE, last=True)
    waiting = ward.wait(last=True)
    await settle()
    ward.advance(0.5)
    ward.clock.advance(29.5)
    ward.health.sweep(ward.clock.now())
    place.leave(Outcome.FAILED)
    assert not ward.view.probe
    waiting.cancel()
    await settle()
    assert ward.view.probe


async def test_an_ejection_sends_those_elsewhere_who_wait_and_serves_who_cannot_go():
    """Ten in line with other targets, one without: four get what was left before the fifth failure, six go."""
    ward = Ward(a=TargetLimits(max_in_flight=5))
    places = ward.fill()
    others, stays = [ward.wait() for _ in range(10)], ward.wait(last=True)
    await settle()
    for place in places:
        place.leave(Outcome.FAILED)
    assert ward.view.open
    assert [(await refused(each)).why for each in others[4:]] == ["target_open"] * 6
    for each in (*others[:4], stays):
        (await each).leave(Outcome.NEUTRAL)
    assert (ward.about["in_flight"], ward.about["queued"], ward.deadlines.armed) == (0, 0, 0)


async def test_a_limit_that_rises_serves_the_line():
    """Nobody has left, and there is room."""
    ward = Ward(HealthRules(limit=LimitRules(start=2)))
    first, second = ward.fill()
    waiting = ward.wait()
    await settle()
    first.answered(0.1)
    second.answered(0.1)
    assert (await waiting) is not None
    assert ward.about["in_flight"] == 3


async def test_a_bound_that_is_lifted_serves_the_line_with_the_next_answer():
    """The target's operator allows more, and the target shows that it bears it."""
    ward = one_place()
    place = ward.health.try_enter(A, SCOPE)
    waiting = ward.wait()
    await settle()
    ward.health.keep({A: TargetLimits(max_in_flight=10)})
    place.answered(0.1)
    await waiting
    assert ward.about["in_flight"] == 2


async def test_no_line_means_no_waiting():
    """An operator who wants refusals at once gets them."""
    ward = one_place(max_queue=0)
    place = ward.health.try_enter(A, SCOPE)
    assert (await refused(ward.health.enter(A, SCOPE, FAR))).why == "queue_full"
    place.leave(Outcome.OK)


# -- snapshots and reloads ----------------------------------------------------------------------------------------


async def test_a_sweep_publishes_what_moved_and_nothing_if_nothing_did(ward):
    """A snapshot is kept by those who decided with it, so it is replaced, never changed."""
    empty = ward.health.snapshot
    place = ward.health.try_enter(A, SCOPE)
    place.answered(0.25)
    assert ward.health.snapshot is empty
    ward.advance(0.1)
    taken = ward.health.snapshot
    assert taken.views[A] == TargetView(in_flight=1, limit=64, first_byte_s=0.25)
    assert A not in empty.views
    ward.advance(0.1)
    assert ward.health.snapshot is taken
    place.leave(Outcome.OK)
    ward.advance(0.1)
    assert ward.view.in_flight == 0
    assert taken.views[A].in_flight == 1
    with pytest.raises(TypeError):
        taken.views[A] = TargetView()


async def test_a_target_that_rests_is_looked_at_no_more(ward):
    """A minute after its last answer; the sweep costs nothing for it."""
    ward.attempt(Outcome.OK)
    ward.advance(30)
    assert ward.health.targets[A].watched
    ward.advance(31)
    assert not ward.health.targets[A].watched
    assert ward.view.first_byte_s == 0.0
    ward.attempt(Outcome.OK)
    ward.advance(0.1)
    assert ward.view.first_byte_s == 0.1


async def test_what_is_known_survives_a_reload(ward):
    """An ejected target stays ejected though its bounds change."""
    ward.eject()
    ward.health.keep({A: TargetLimits(max_in_flight=3), B: TargetLimits()})
    assert ward.view.open
    assert ward.about["max_in_flight"] == 3
    assert ward.about["attempts"]["failed"] == 5


async def test_a_target_that_left_the_catalog_is_forgotten_when_it_is_idle(ward):
    """Its last call ends as any other."""
    place = ward.health.try_enter(A, SCOPE)
    ward.advance(0.1)
    ward.health.keep({B: TargetLimits()})
    assert A in ward.health.targets
    place.leave(Outcome.OK)
    assert A not in ward.health.targets
    assert A not in ward.health.snapshot.views
    ward.advance(1.0)


async def test_a_request_with_the_former_catalog_is_served_and_leaves_no_trace(ward):
    """It was planned before the reload."""
    ward.health.keep({B: TargetLimits()})
    place = await ward.health.enter(A, SCOPE, FAR)
    ward.advance(0.1)
    assert ward.view.in_flight == 1
    place.leave(Outcome.OK)
    assert A not in ward.health.targets
    assert A not in ward.health.snapshot.views


async def test_a_target_that_comes_back_while_a_call_is_under_way_is_kept(ward):
    """Out and in again: nothing is lost in between."""
    place = ward.health.try_enter(A, SCOPE)
    ward.health.keep({B: TargetLimits()})
    ward.health.keep({A: TargetLimits(), B: TargetLimits()})
    place.leave(Outcome.OK)
    assert ward.about["attempts"]["ok"] == 1


async def test_the_percentile_of_a_target_is_for_those_who_hedge(ward):
    """Zero for what is unknown."""
    assert ward.health.p95_first_byte_s("nobody/knows") == 0.0
    ward.attempt(Outcome.OK, 40)
    assert ward.health.p95_first_byte_s(A) == 0.1


async def test_the_rules_are_the_operators():
    """Each number can be another one."""
    rules = HealthRules(BreakerRules(in_a_row=2, eject_s=4.0), ThrottleRules(least_per_s=0.1), LimitRules(start=3))
    assert len(Ward(rules).fill()) == 3
    ward = Ward(rules)
    for _ in range(3):
        ward.attempt(Outcome.OK)
        ward.attempt(Outcome.FAILED)
    ward.advance(1.0)
    assert ward.about["spared_share"] > 0.4
    ward.attempt(Outcome.FAILED, last=True)
    assert ward.about["ejected_for_s"] == 4.0
