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

import os
import random
from collections import deque
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

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
from proxy.failover.onward import Onward
from proxy.failover.sender import Batcher, Sender
from proxy.failover.unknown import UnknownModels
from proxy.failover.upshot import Upshot, judge_error, judge_fault, refusal_headers
from proxy.flight.flight import Flight
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
from proxy.upstream.retries import RetryGates


class Failover:
    """Carries routed flights to their targets. One for the process; everything about a flight is on its `Course`."""

    # Mutable state: _hedges remembers how often each model was hedged, _failures the last failed calls of batches,
    # _unknown what targets do not have; the counters only grow.
    __slots__ = (
        "_clock",
        "_deadlines",
        "_failures",
        "_gates",
        "_health",
        "_hedges",
        "_onward",
        "_providers",
        "_router",
        "_sender",
        "_unknown",
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
        self._onward = Onward(clock, deadlines, gates, draw)
        self._sender = Sender(clock, transport, batcher, credentials, connect_s, log)
        self._router = Router(find_price)
        self._health = health
        self._gates = gates
        self._providers = providers
        self._hedges: dict[str, HedgeBudget] = {}
        self._failures: deque[object] = deque(maxlen=16)
        self._unknown = UnknownModels()
        self.hedges_started = 0
        self.hedges_won = 0

    async def fly(self, flight: Flight, intake: Intake, body: bytes) -> None:
        """Fill ``flight`` from one of its targets. Raises ``ProxyError`` if none answered in any way."""
        course = self._plot(flight, intake, body)
        self._gates.began()
        try:
            await self._run(course, await self._attempt(course))
        finally:
            self._onward.end_retry(course, helped=False)

    def start(self, flight: Flight, intake: Intake, body: bytes, over: Over) -> Call | None:
        """The same without a task, as far as the first target has room and an idle connection: ``over`` is called at
        the end, as by ``upstream.base.Transport.start``. ``None`` if that is not so; nothing was sent then. Raises
        ``ProxyError``."""
        course = self._plot(flight, intake, body)
        model, target = course.routed.model, course.target
        if model.hedging is not None or model.batching is not None:
            return None
        if not course.is_last and self._unknown.knows(target, course.routed.name, self._clock.now()):
            return None
        passage = course.passages.to(target)
        choice = self._sender.choose_key(course, target)
        if choice is None and not course.routed.own and target.provider.keys:
            return None
        place = self._health.try_enter(target.id, course.plan.scope, last=course.is_last)
        if place is None:
            self._sender.put_back(target, choice)
            return None
        attempt = self._prepare(course, target, passage, choice, place, Race())
        leg = Leg(self, course, attempt, choice, over)
        try:
            leg.call = self._sender.start(course, attempt, choice, leg.ended)
        finally:
            if leg.call is None:
                attempt.let_go()
                place.withdraw()
                self._sender.put_back(target, choice)
        if leg.call is None:
            return None
        self._gates.began()
        return leg

    def _plot(self, flight: Flight, intake: Intake, body: bytes) -> Course:
        plan: Plan = flight.work.plan
        routed = plan.routed
        assert routed is not None
        fingerprint, fields = plan.key or os.urandom(32), flight.work.fields or orjson.loads(body)
        sticky = _conversation_of(plan.scope, fields) if routed.model.strategy == "sticky" else b""
        order = self._router.order(routed.model, routed.targets, self._health.snapshot, fingerprint, sticky)
        passages = Passages(self._providers, plan, body, fields)
        return Course(flight, intake, routed, order, passages, self._clock.now() + plan.total_s)

    def forget(self) -> None:
        """The catalog was swapped: what was worked out for the models of the old one is of no more use."""
        self._router.forget()
        self._hedges.clear()
        self._onward.forget()
        self._unknown.clear()

    async def resume(self, course: Course, upshot: Upshot) -> None:
        """Go on after a first attempt that began by `start` and failed. Raises as `fly`."""
        try:
            await self._run(course, upshot)
        finally:
            self._onward.end_retry(course, helped=False)

    async def _run(self, course: Course, upshot: Upshot) -> None:
        """Go on until there is an answer, or nothing to try; ``upshot`` is of the attempt that was made last."""
        while upshot.why:
            course.note(upshot)
            if not upshot.again or not await self._onward.move_on(course, upshot):
                self._give_up(course)
                return
            upshot = await self._attempt(course)

    # -- one attempt -----------------------------------------------------------------------------------------

    async def _attempt(self, course: Course) -> Upshot:
        """Ask the target whose turn it is; with hedging, the next one too where it is slow."""
        target, hedging, race = course.target, course.routed.model.hedging, Race()
        race.on_won = lambda: self._onward.end_retry(course, helped=True)  # the answer may go on for long
        if hedging is None or course.made or course.is_last or course.routed.attempts < 2:
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
        if not upshot.why or (hedged.why and (hedged.free or not upshot.again)):
            return upshot
        return hedged

    async def _ask(self, course: Course, target: ModelTarget, race: Race) -> Upshot:
        upshot = await self._ask_there(course, target, race)
        self.note_try(course, target, upshot)
        return upshot

    async def _ask_there(self, course: Course, target: ModelTarget, race: Race) -> Upshot:
        if not course.is_last and self._unknown.knows(target, course.routed.name, self._clock.now()):
            return Upshot("unknown_model", Outcome.NEUTRAL, again=True, free=True, error=_unknown_there())
        try:
            passage = course.passages.to(target)
        except ProxyError as unfit:
            return Upshot("unfit", Outcome.NEUTRAL, again=True, free=True, error=unfit.freed())
        choice = self._sender.choose_key(course, target)
        if choice is None and not course.routed.own and target.provider.keys:
            error = ProxyError(
                Kind.UPSTREAM_UNREACHABLE, "No usable credential is left for this model.", why="no_usable_key"
            )
            return Upshot("no_usable_key", Outcome.NEUTRAL, again=True, free=True, error=error)
        try:
            place = await self._enter(course, target)
        except ProxyError as busy:
            return Upshot("crowded", Outcome.NEUTRAL, again=busy.retry is not Retry.NO, free=True, error=busy.freed())
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
        attempt.let_go()
        if upshot.why and course.routed.model.batching is not None and self._is_counted(attempt):
            attempt.place.leave(Outcome.NEUTRAL)
            return upshot
        attempt.place.leave(upshot.outcome)
        if not course.routed.own:
            self._sender.judge_key(target, choice, upshot)
        if upshot.fault is not None and upshot.fault.cause is Cause.NOT_FOUND:
            self._unknown.note(target, course.routed.name, self._clock.now())
        if attempt.won and attempt.error is not None:
            raise attempt.error
        return upshot

    def _is_counted(self, attempt: Attempt) -> bool:
        """Whether this is the failure of a call that another caller of its batch has told of: all of them hold the
        same answer or error."""
        failure = attempt.refusal.head if attempt.refusal is not None else attempt.error
        if failure is None or any(each is failure for each in self._failures):
            return failure is not None
        self._failures.append(failure)
        return False

    def _judge(self, course: Course, target: ModelTarget, attempt: Attempt) -> Upshot:
        model = course.routed.model
        if attempt.won:
            return self._judge_answer(target, attempt)
        if not attempt.lost:
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
        if course.routed.own and attempt.passage.translation is not None and fault.cause is Cause.DEAD_KEY:
            raise ProxyError(Kind.INVALID_KEY, fault.detail or fault.message, why="callers_credential")
        hides = fault.cause.value.blames_key and not course.routed.own and fault.cause is not Cause.THROTTLED
        refusal = attempt.refusal
        as_it_came = attempt.passage.translation is None and not hides and not attempt.truncated
        if refusal is not None and refusal.head.status >= 400 and as_it_came:
            course.intake.on_read(refusal.head, refusal.body, True)
            return
        caller = attempt.passage.caller
        status, body = caller.fault_body(fault, f"flight_{course.flight.id}")
        course.intake.on_read(ResponseHead(status, refusal_headers(fault, len(body))), body, True)

    def note_try(self, course: Course, target: ModelTarget, upshot: Upshot) -> None:
        attempt = upshot.attempt
        if upshot.why:  # an answer was noted when it began
            sent = attempt is not None and attempt.sent_at > 0.0
            course.intake.report.tries.append(Try(target.id, upshot.why, sent))


def _unknown_there() -> ProxyError:
    return ProxyError(Kind.NOT_FOUND, "The model does not exist at this target.", why="unknown_model")


def _conversation_of(scope: bytes, fields: Mapping[str, Any]) -> bytes:
    """What requests have in common that are to stay at one target, as its prompt cache knows them: the words by which
    vendors' APIs tell conversations and users apart, else whoever asks."""
    metadata = fields.get("metadata")
    user = metadata.get("user_id") if type(metadata) is dict else None
    user = fields.get("prompt_cache_key") or fields.get("user") or fields.get("safety_identifier") or user
    said = user.encode("utf-8", "replace") if type(user) is str else b""
    return blake2b(said, key=scope, digest_size=16).digest()
