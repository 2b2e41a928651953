"""How one attempt is sent: with which key, in which words, with how much patience."""

from __future__ import annotations

from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.config.models import Batching, ModelTarget
from proxy.errors import ProxyError
from proxy.failover.attempt import Attempt
from proxy.failover.course import Course
from proxy.failover.upshot import Upshot
from proxy.policy.routed import ATTEMPT
from proxy.protocol.events import Cause
from proxy.upstream.base import Call, Origin, Over, Patience, Receiver, Transport, UpstreamRequest
from proxy.upstream.credentials import Credentials, KeyChoice

_OPERATORS_TO_MEND: Final = frozenset((Cause.DEAD_KEY, Cause.SPENT, Cause.FORBIDDEN))


class Batcher(Protocol):
    """Makes one call of several embedding requests."""

    async def exchange(
        self, request: UpstreamRequest, receiver: Receiver, patience: Patience, batching: Batching
    ) -> None: ...


class Sender:
    """Sends attempts. One for the process."""

    # Mutable state: _origins remembers a record for each address.
    __slots__ = ("_batcher", "_clock", "_connect_s", "_credentials", "_log", "_origins", "_transport")

    def __init__(  # noqa: PLR0917 - what it is made of
        self,
        clock: Clock,
        transport: Transport,
        batcher: Batcher,
        credentials: Credentials,
        connect_s: float,
        log: Any,
    ) -> None:
        self._clock = clock
        self._log = log
        self._transport = transport
        self._batcher = batcher
        self._credentials = credentials
        self._connect_s = connect_s
        self._origins: dict[tuple[str, str, int], Origin] = {}

    async def send(self, course: Course, attempt: Attempt, choice: KeyChoice | None) -> None:
        """Make the call and wait for its end; what it fails with is the attempt's."""
        model = course.routed.model
        request, patience = self._request(course, attempt, choice), self._patience(course, attempt.target)
        try:
            if model.batching is not None and course.plan.route.name == "embeddings":
                await self._batcher.exchange(request, attempt, patience, model.batching)
            else:
                await self._transport.exchange(request, attempt, patience)
        except ProxyError as error:
            attempt.error = error

    def start(self, course: Course, attempt: Attempt, choice: KeyChoice | None, over: Over) -> Call | None:
        """Begin the call without waiting for anything; see ``upstream.base.Transport.start``."""
        request, patience = self._request(course, attempt, choice), self._patience(course, attempt.target)
        return self._transport.start(request, attempt, patience, over)

    def _request(self, course: Course, attempt: Attempt, choice: KeyChoice | None) -> UpstreamRequest:
        passage, provider = attempt.passage, attempt.target.provider
        address = provider.scheme, provider.host, provider.port
        origin = self._origins.get(address)
        if origin is None:
            origin = self._origins[address] = Origin(*address)
        credential = course.routed.credential
        if choice is not None:
            credential = passage.target.credential(choice.value)
        headers = passage.headers + credential
        if attempt.ordinal > 1:
            headers = [*headers, (ATTEMPT, b"%d" % attempt.ordinal)]
        return UpstreamRequest(origin, course.plan.method, provider.base_path + passage.path, headers, passage.body)

    def _patience(self, course: Course, target: ModelTarget) -> Patience:
        plan = course.plan
        left_s = max(0.0, course.deadline_at - self._clock.now())
        return Patience(
            self._connect_s,
            target.first_byte_s or plan.first_byte_s,
            target.idle_s or plan.idle_s,
            min(left_s, target.total_s or left_s),
        )

    # -- keys ------------------------------------------------------------------------------------------------

    def choose_key(self, course: Course, target: ModelTarget) -> KeyChoice | None:
        """One of the operator's that was not tried by this flight."""
        if course.routed.own:
            return None
        name = target.provider.name
        return self._credentials.pick(name, course.tried_keys.get(name, ()), target.id)

    def judge_key(self, target: ModelTarget, choice: KeyChoice, upshot: Upshot) -> None:
        fault = upshot.fault
        if not upshot.why:
            self._credentials.accepted(target.provider.name, choice, target.id)
        elif fault is not None:
            self._credentials.refused(target.provider.name, choice, fault.cause, fault.retry_after_s, target.id)
            if fault.cause in _OPERATORS_TO_MEND:  # nobody's request will work with it until the operator acts
                self._log.error(
                    "provider_key_refused",
                    provider=target.provider.name,
                    key=choice.name,
                    target=target.id,
                    cause=fault.cause.name.lower(),
                    status=fault.status,
                )
