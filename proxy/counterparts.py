"""What the pipeline needs of those on its two sides: the client's end of an exchange, and where it is booked."""

from __future__ import annotations

from typing import Protocol

from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.flight.subscription import Sink, Subscription
from proxy.protocol.answer import AnswerHead


class Client(Sink, Protocol):
    """The other end of an exchange, as the pipeline needs it; `edge.relay.Relay` is one."""

    def attach(self, subscription: Subscription, patience_s: float | None, streams: bool) -> None: ...

    def answer(self, head: AnswerHead, body: bytes) -> None: ...

    def fail(self, error: ProxyError) -> None: ...


class Bookkeeper(Protocol):
    """Where a finished exchange is counted and logged."""

    def account(self, exchange: Exchange) -> None:
        """Must not raise and must not wait."""

    def bug(self, where: str, error: BaseException) -> None: ...

    def rejected(self, error: ProxyError) -> None: ...
