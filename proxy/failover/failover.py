"""The attempts of one routed flight: target after target until one answers, the time is over or trying again would do
harm.

    order of targets (policy.routing) → a place there (upstream.health) → a key (upstream.credentials)
    → the request in its dialect (providers.passage) → the call → its upshot
    → the next, if the gates and the deadline allow (upstream.retries)

All of it happens once for the flight, however many callers wait for it, and before the first byte reaches any of
them: what an `Attempt` has let go is the answer, and its failure the flight's. Two attempts run at the same time only
where the model is hedged; the first that has an answer wins, the other is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

from proxy.accounting.report import Try
from proxy.clock import Clock, Deadlines
from proxy.config.models import Hedging, Model, ModelTarget
from proxy.config.prices import Price
from proxy.errors import Kind, ProxyError, Retry
from proxy.failover.attempt import Attempt, Race
from proxy.failover.course import Course
from proxy.failover.direct import Leg
from proxy.failover.hedge import HedgeBudget, ask_both
from proxy.failover.sender import Batcher, Sender
from proxy.failover.upshot import Upshot, judge_error, judge_fault, refusal_headers
from proxy.flight.flight import Flight, Phase
from proxy.intake import Intake
from proxy.policy.plan import Plan
from proxy.policy.routing import Router
from proxy.protocol.events import Cause
from proxy.protocol.message import ResponseHead
from proxy.providers.base import Provider
from proxy.providers.passage import Passage, Passages
from proxy.upstream.base import Call, Over, Transport
from proxy.upstream.credentials import Credentials, KeyChoice
from proxy.upstream.health import Health, Outcome, Place
from proxy.upstream.retries import RetryGates, Why, pause_s

LONGEST_WAIT_S: Final = 60.0
"""For one target; SDKs wait no longer for a ``Retry-After`` either."""


class Failover:
    """Carries routed flights to their targets. One for the process; everything about a flight is on its `Course`."""

    # Mutable state: _hedges remembers how often each model was hedged, _batches until when the gates' last word holds
    # for the callers of a batch at a target; the counters only grow.
    __slots__ = (
        "_batches",
        "_clock",
        "_deadlines",
        "_draw",
        "_gates",
        "_health",
        "_hedges",
        "_providers",
        "_router",
        "_sender",
        "hedges_started",
        "hedges_won",
    )

    def __init__(
        self,
        *,
        clock: Clock,
        deadlines: Deadlines,
        transport: Transport,
        batcher: Batcher,
        health: Health,
        gates: RetryGates,
        credentials: Credentials,
        providers: Mapping[str, Provider],
        find_price: Callable[[str], Price | None],
        log: Any,
        connect_s: float = 5.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``draw`` gives numbers from 0 to 1, for the jitter of pauses."""
        self._clock = clock
        self._deadlines = deadlines
        self._sender = Sender(clock, transport, batcher, credentials, connect_s, log)
        self._router = Router(find_price)
        self._health = health
        self._gates = gates
        self._providers = providers
        self._draw = draw
        self._hedges: dict[str, HedgeBudget] = {}
        self._batches: dict[tuple[str, Why], tuple[float, bool]] = {}
        self.hedges_started = 0
        self.hedges_won = 0

    async def fly(self, flight: Flight, intake: Intake, body: bytes) -> None:
        """Fill ``flight`` from one of its targets. Raises ``ProxyError`` if none answered in any way."""
        course = self._plot(flight, intake, body)
        self._gates.began()
        try:
            await self._run(course, await self._attempt(course))
        finally:
            self._end_retry(course, helped=False)

    def start(self, flight: Flight, intake: Intake, body: bytes, over: Over) -> Call | None:
        """The same without a task, as far as the first target has room and an idle connection: ``over`` is called at
        the end, as by ``upstream.base.Transport.start``. ``None`` if that is not so; nothing was sent then. Raises
        ``ProxyError``."""
        course = self._plot(flight, intake, body)
        model, target = course.routed.model, course.target
        if model.hedging is not None or model.batching is not None:
            return None
        passage = course.passages.to(target)
        choice = self._sender.choose_key(course, target)
        if choice is None and not course.routed.own and target.provider.keys:
            return None
        place = self._health.try_enter(target.id, course.plan.scope, last=course.is_last)
        if place is None:
            return None
        attempt = self._prepare(course, target, passage, choice, place, Race())
        leg = Leg(self, course, attempt, choice, over)
        leg.call = self._sender.start(course, attempt, choice, leg.ended)
        if leg.call is None:
            place.withdraw()
            return None
        self._gates.began()
        return leg

    def _plot(self, flight: Flight, intake: Intake, body: bytes) -> Course:
        plan: Plan = flight.work.plan
        routed = plan.routed
        assert routed is not None
        fingerprint, fields = plan.key or os.urandom(32), orjson.loads(body)
        sticky = _conversation_of(plan.scope, fields) if routed.model.strategy == "sticky" else b""
        order = self._router.order(routed.model, routed.targets, self._health.snapshot, fingerprint, sticky)
        passages = Passages(self._providers, plan, body, fields)
        return Course(flight, intake, routed, order, passages, self._clock.now() + plan.total_s)

    def forget(self) -> None:
        """The catalog was swapped: what was worked out for the models of the old one is of no more use."""
        self._router.forget()
        self._hedges.clear()
        self._batches.clear()

    async def resume(self, course: Course, upshot: Upshot) -> None:
        """Go on after a first attempt that began by `start` and failed. Raises as `fly`."""
        try:
            await self._run(course, upshot)
        finally:
            self._end_retry(course, helped=False)

    async def _run(self, course: Course, upshot: Upshot) -> None:
        """Go on until there is an answer, or nothing to try; ``upshot`` is of the attempt that was made last."""
        while upshot.why:
            course.note(upshot)
            if not upshot.again or not await self._move_on(course, course.target, upshot):
                self._give_up(course)
                return
            upshot = await self._attempt(course)

    # -- one attempt -----------------------------------------------------------------------------------------

    async def _attempt(self, course: Course) -> Upshot:
        """Ask the target whose turn it is; with hedging, the next one too where it is slow."""
        target, hedging, race = course.target, course.routed.model.hedging, Race()
        race.on_won = lambda: self._end_retry(course, helped=True)  # the answer may go on for long
        if hedging is None or course.made or course.is_last:
            return await self._ask(course, target, race)
        budget = self._hedge_budget(course.routed.model, hedging)
        budget.requests += 1
        delay_s = hedging.after_s or self._health.p95_first_byte_s(target.id)
        if delay_s <= 0.0:
            return await self._ask(course, target, race)
        other = course.order[course.position + 1]
        upshot, hedged = await ask_both(
            lambda: self._ask(course, target, race),
            lambda: self._ask(course, other, race),
            race,
            budget.take,
            delay_s,
            self._deadlines,
        )
        if hedged is None:
            return upshot
        self.hedges_started += 1
        course.position += 1
        self.hedges_won += not hedged.why
        return hedged if upshot.why else upshot

    async def _ask(self, course: Course, target: ModelTarget, race: Race) -> Upshot:
        upshot = await self._ask_there(course, target, race)
        self.note_try(course, target, upshot)
        return upshot

    async def _ask_there(self, course: Course, target: ModelTarget, race: Race) -> Upshot:
        try:
            passage = course.passages.to(target)
        except ProxyError as unfit:
            return Upshot("unfit", Outcome.NEUTRAL, again=True, free=True, error=unfit)
        choice = self._sender.choose_key(course, target)
        if choice is None and not course.routed.own and target.provider.keys:
            error = ProxyError(
                Kind.UPSTREAM_UNREACHABLE, "No usable credential is left for this model.", why="no_usable_key"
            )
            return Upshot("no_usable_key", Outcome.NEUTRAL, again=True, free=True, error=error)
        try:
            place = await self._enter(course, target)
        except ProxyError as busy:
            return Upshot("crowded", Outcome.NEUTRAL, again=busy.retry is not Retry.NO, free=True, error=busy)
        attempt = self._prepare(course, target, passage, choice, place, race)
        try:
            await self._sender.send(course, attempt, choice)
            return self.conclude(course, target, attempt, choice)
        finally:
            place.leave(Outcome.NEUTRAL)  # unless it was left already

    def _prepare(  # noqa: PLR0917 - what an attempt is made of
        self,
        course: Course,
        target: ModelTarget,
        passage: Passage,
        choice: KeyChoice | None,
        place: Place,
        race: Race,
    ) -> Attempt:
        holds = course.made + 1 < course.routed.attempts
        key_name = choice.name if choice is not None else ""
        course.made += 1
        return Attempt(course.intake, target, passage, race, place, self._clock, key_name, course.made, holds=holds)

    async def _enter(self, course: Course, target: ModelTarget) -> Place:
        last, scope = course.is_last, course.plan.scope
        place = self._health.try_enter(target.id, scope, last=last)
        if place is not None:
            return place
        return await self._health.enter(target.id, scope, course.deadline_at, last=last)

    def conclude(
        self, course: Course, target: ModelTarget, attempt: Attempt, choice: KeyChoice | None
    ) -> Upshot:
        """The call is over: what came of it, told to the health of the target and of the key. Raises the error of an
        attempt whose answer is the flight's, and a bug met on the way."""
        attempt.conclude_refusal()
        if attempt.bug is not None:
            raise attempt.bug
        upshot = self._judge(course, target, attempt)
        attempt.place.leave(upshot.outcome)
        if choice is not None:
            self._sender.judge_key(target, choice, upshot)
        if attempt.won and attempt.error is not None:
            raise attempt.error
        return upshot

    def _judge(self, course: Course, target: ModelTarget, attempt: Attempt) -> Upshot:
        model = course.routed.model
        if attempt.won:
            return self._judge_answer(target, attempt)
        attempt.name_answerer()
        if attempt.fault is not None:
            return judge_fault(attempt.fault, attempt, own=course.routed.own, unsafe=model.retry_unsafe)
        if attempt.error is not None:
            return judge_error(attempt.error, attempt, unsafe=model.retry_unsafe)
        return Upshot("lost", Outcome.NEUTRAL, again=False, attempt=attempt)

    def _judge_answer(self, target: ModelTarget, attempt: Attempt) -> Upshot:
        """The flight has its answer, or as much of it as there was."""
        if attempt.error is not None:
            outcome = judge_error(attempt.error, attempt, unsafe=False).outcome
        else:
            outcome = Outcome.FAILED if attempt.fault is not None else Outcome.OK
            if outcome is Outcome.OK and attempt.ordinal == 1:
                self._gates.succeeded(target.id)
        return Upshot("", outcome, again=False, attempt=attempt)

    def _hedge_budget(self, model: Model, hedging: Hedging) -> HedgeBudget:
        budget = self._hedges.get(model.name)
        if budget is None or budget.most_share != hedging.most_share:
            budget = self._hedges[model.name] = HedgeBudget(hedging.most_share)
        return budget

    # -- what comes next -------------------------------------------------------------------------------------

    async def _move_on(self, course: Course, target: ModelTarget, upshot: Upshot) -> bool:
        """Choose the next target, ask the gates, and wait as long as it takes. ``False``: there is nothing to try."""
        flight = course.flight
        if flight.phase is not Phase.OPENING:
            return False
        if upshot.free:
            if upshot.why == "crowded":
                self._gates.take(target.id, "crowded")
            course.position += 1
            return course.position < len(course.order)
        if course.made >= course.routed.attempts:
            return False
        elsewhere = self._turn(course, target, upshot)
        if elsewhere is None:
            return False
        now = self._clock.now()
        remaining_s = course.deadline_at - now
        if not elsewhere:
            remaining_s = min(remaining_s, LONGEST_WAIT_S)
            patience_s = flight.work.patience_s
            if patience_s is not None:
                remaining_s = min(remaining_s, flight.born_at + patience_s - now)
        wait_s = pause_s(
            attempt=course.made,
            throttled=upshot.outcome is Outcome.THROTTLED,
            retry_after_s=upshot.retry_after_s,
            remaining_s=remaining_s,
            elsewhere=elsewhere,
            draw=self._draw(),
        )
        if wait_s is None:
            return False
        self._end_retry(course, helped=False)
        why = upshot.retry_why
        if why is None or not self._may_retry(course, target, why, now):
            return False
        if wait_s > 0.0:
            await self._pause(wait_s)
        return True

    def _may_retry(self, course: Course, target: ModelTarget, why: Why, now: float) -> bool:
        """Ask the gates; once for all callers of a batch, whose next attempts become one call again."""
        batching = course.routed.model.batching
        if batching is None:
            if not self._gates.take(target.id, why):
                return False
            course.retrying = target.id, why
            return True
        until, allowed = self._batches.get((target.id, why), (0.0, False))
        if now >= until:
            allowed = self._gates.take(target.id, why)
            if allowed:
                self._gates.finished(target.id, why, helped=False)
            self._batches[target.id, why] = now + batching.window_s, allowed
        return allowed

    def _end_retry(self, course: Course, *, helped: bool) -> None:
        if course.retrying is not None:
            (target, why), course.retrying = course.retrying, None
            self._gates.finished(target, why, helped=helped)

    def _turn(self, course: Course, target: ModelTarget, upshot: Upshot) -> bool | None:
        """Point the course at whoever is next: another key, another target, or the same again. ``True`` where it is
        not the same, ``None`` where there is nobody."""
        fault, name = upshot.fault, target.provider.name
        blames_key = fault is not None and fault.cause.value.blames_key and not course.routed.own
        if blames_key and upshot.attempt is not None:
            tried = course.tried_keys.get(name, ())
            used = upshot.attempt.key_name
            course.tried_keys[name] = tried = (*tried, used) if used else tried
            if any(key.name not in tried for key in target.provider.keys):
                return True
        if not course.is_last:
            course.position += 1
            return True
        if fault is not None and fault.cause in (Cause.DEAD_KEY, Cause.FORBIDDEN, Cause.SPENT, Cause.NOT_FOUND):
            return None
        course.position = 0
        course.tried_keys.clear()
        return len(course.order) > 1

    async def _pause(self, seconds: float) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        alarm = self._deadlines.arm(seconds, end)
        try:
            await over
        finally:
            alarm.cancel()

    # -- the end ---------------------------------------------------------------------------------------------

    def _give_up(self, course: Course) -> None:
        """Tell the callers what the last upstream said, in their dialect. Raises ``ProxyError`` where none said
        anything."""
        upshot = course.upshot
        assert upshot is not None
        attempt, fault = upshot.attempt, upshot.fault
        if attempt is None or fault is None:
            assert upshot.error is not None
            raise upshot.error
        hides = fault.cause.value.blames_key and not course.routed.own and fault.cause is not Cause.THROTTLED
        if attempt.refusal is not None and attempt.passage.translation is None and not hides:
            course.intake.on_read(attempt.refusal.head, attempt.refusal.body, True)
            return
        caller = attempt.passage.caller
        status, body = caller.fault_body(fault, f"flight_{course.flight.id}")
        course.intake.on_read(ResponseHead(status, refusal_headers(fault, len(body))), body, True)

    def note_try(self, course: Course, target: ModelTarget, upshot: Upshot) -> None:
        attempt = upshot.attempt
        if upshot.why:  # an answer was noted when it began
            sent = attempt is not None and attempt.sent_at > 0.0
            course.intake.report.tries.append(Try(target.id, upshot.why, sent))


def _conversation_of(scope: bytes, fields: Mapping[str, Any]) -> bytes:
    """What requests have in common that are to stay at one target, as its prompt cache knows them: the words by which
    vendors' APIs tell conversations and users apart, else whoever asks."""
    metadata = fields.get("metadata")
    user = metadata.get("user_id") if type(metadata) is dict else None
    user = fields.get("prompt_cache_key") or fields.get("user") or fields.get("safety_identifier") or user
    said = user.encode("utf-8", "replace") if type(user) is str else b""
    return blake2b(said, key=scope, digest_size=16).digest()
