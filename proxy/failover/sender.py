"""How one attempt is sent: with which key, in which words, with how much patience."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from proxy.clock import Clock
from proxy.config.models import Batching, ModelTarget
from proxy.errors import ProxyError
from proxy.failover.attempt import Attempt
from proxy.failover.course import Course
from proxy.failover.upshot import Upshot
from proxy.policy.routed import ATTEMPT
from proxy.protocol.events import Cause
from proxy.protocol.message import HeaderList
from proxy.providers.passage import Passage
from proxy.upstream.base import Call, Origin, Over, Patience, Receiver, Transport, UpstreamRequest
from proxy.upstream.credentials import Credentials, KeyChoice

_OAUTH: Final = b"sk-ant-oat"
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
        task = asyncio.current_task()
        assert task is not None
        attempt.stop = task.cancel
        try:
            if model.batching is not None and course.plan.route.name == "embeddings":
                await self._batcher.exchange(request, attempt, patience, model.batching)
            else:
                await self._transport.exchange(request, attempt, patience)
        except ProxyError as error:
            attempt.error = error.freed()
        except asyncio.CancelledError:
            if not attempt.stopped or task.uncancel() > 0:  # somebody else wants it to end
                raise
        finally:
            attempt.stop = None

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
        elif credential and passage.translation is not None:
            credential = _recast(credential, passage)
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
        name, keys = target.provider.name, target.provider.keys
        tried = course.tried_keys.get(name, ())
        choice = self._credentials.pick(name, tried, target.id, last=course.is_last)
        if choice is None and self._credentials.holds(name, keys):
            return None
        if choice is not None and any(key.name == choice.name and key.value == choice.value for key in keys):
            return choice
        # The catalog was swapped since this flight began: a new key may be for a new address, never for the old one.
        self.put_back(target, choice)
        return next((KeyChoice(key.name, key.value) for key in keys if key.name not in tried), None)

    def put_back(self, target: ModelTarget, choice: KeyChoice | None) -> None:
        """The attempt for which the key was chosen is not made."""
        if choice is not None:
            self._credentials.put_back(target.provider.name, choice, target.id)

    def judge_key(self, target: ModelTarget, choice: KeyChoice | None, upshot: Upshot) -> None:
        """Put down how the operator's key fared, ``None`` where there was none to send."""
        fault = upshot.fault
        if choice is not None and not upshot.why:
            self._credentials.accepted(target.provider.name, choice, target.id)
        if fault is None:
            return
        if choice is not None:
            self._credentials.refused(target.provider.name, choice, fault.cause, fault.retry_after_s, target.id)
        if fault.cause in _OPERATORS_TO_MEND:  # nobody's request will work with it until the operator acts
            self._log.error(
                "provider_key_refused",
                provider=target.provider.name,
                key=choice.name if choice is not None else None,
                target=target.id,
                cause=fault.cause.name.lower(),
                status=fault.status,
            )


def _recast(credential: HeaderList, passage: Passage) -> HeaderList:
    """The caller's own key in the header in which the target's operation takes it. A token of an account (OAuth) is
    taken as a bearer everywhere."""
    _, value = credential[0]
    token = value[7:].strip() if value[:7].lower() == b"bearer " else value
    if token.startswith(_OAUTH):
        return credential
    return passage.target.credential(token.decode("latin-1"))
