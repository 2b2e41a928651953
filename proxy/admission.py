"""What a request's head alone decides: who asks for what, and whether anybody is let in."""

from __future__ import annotations

from enum import Enum
from typing import Final

from proxy.access.identity import Identity, PendingKeyError, demand_provider_key
from proxy.config.catalog import Catalog
from proxy.config.principal import Principal
from proxy.config.watch import CatalogHolder
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.listing import answers_locally
from proxy.policy.planner import Terms
from proxy.pressure.gate import Gate
from proxy.protocol.headers import parse_controls
from proxy.protocol.routes import Located, locate

HELD_BODY_BYTES: Final = 64 * 1024
"""A body of a route that is not understood is held up to this size, so that it can be sent again on a fresh
connection; a longer one is streamed."""


_LISTS: Final = frozenset(("models", "model"))


class Intent(Enum):
    """What the lane does with a request's body."""

    HOLD = "hold"
    STREAM = "stream"


class Admission:
    """Reads heads. One for the process."""

    # Mutable state: draining is set once.
    __slots__ = ("_catalogs", "_gate", "_identity", "_lists", "_via_mark", "draining")

    def __init__(
        self, catalogs: CatalogHolder, identity: Identity, via_mark: bytes, gate: Gate | None, *, lists: bool
    ) -> None:
        """``lists``: lists of models may be answered here."""
        self._catalogs = catalogs
        self._identity = identity
        self._via_mark = via_mark
        """This process's name in ``Via``; a request that carries it came from here."""
        self._gate = gate
        self._lists = lists
        self.draining: ProxyError | None = None

    def admit(self, exchange: Exchange) -> Intent:
        """Say who asks for what, before the body is let in. Raises ``ProxyError`` to refuse."""
        head = exchange.head
        terms: Terms | None = head.terms
        if terms is None or terms.catalog is not self._catalogs.current:
            located = self._read(exchange)
        else:
            located = terms.located
            self._look_at_the_door(exchange)
            if terms.principal.key is None:
                exchange.terms = terms
                exchange.principal = terms.principal
            else:
                self._authenticate(exchange, located)  # the key may have been revoked or changed since
        route = located.route
        if route.upload:
            return Intent.STREAM
        if route.understood:
            return Intent.HOLD
        length = head.get(b"content-length")
        if length.isdigit() and int(length) <= HELD_BODY_BYTES:
            return Intent.HOLD
        return Intent.STREAM if b"transfer-encoding" in head.headers or length else Intent.HOLD

    def _read(self, exchange: Exchange) -> Located:
        """What the head means, worked out and kept with it. A refusal is worked out anew each time."""
        head = exchange.head
        located = exchange.located = locate(head)
        self._look_at_the_door(exchange)
        if self._via_mark in head.get(b"via"):
            raise ProxyError(Kind.PROXY_LOOP, "The request has passed through this proxy already.")
        self._authenticate(exchange, located)
        return located

    def _authenticate(self, exchange: Exchange, located: Located) -> None:
        catalog = self._catalogs.current
        try:
            principal = self._identity.authenticate(exchange.head, located.provider, catalog)
        except PendingKeyError as pending:
            exchange.wait = self._identify(exchange, located, catalog, pending)
        else:
            self._agree(exchange, located, catalog, principal)

    def _look_at_the_door(self, exchange: Exchange) -> None:
        """Raise ``ProxyError`` if nobody is let in any more, or not now. One error for all must not collect their
        frames."""
        exchange.located = exchange.located or exchange.head.terms.located
        if self.draining is not None:
            raise self.draining.with_traceback(None)
        if self._gate is not None and (busy := self._gate.admit(exchange.received_at)) is not None:
            raise busy.with_traceback(None)

    async def _identify(
        self, exchange: Exchange, located: Located, catalog: Catalog, pending: PendingKeyError
    ) -> None:
        """The key is not in memory: the one look-up that a request waits for. Raises ``ProxyError``."""
        self._agree(exchange, located, catalog, await pending.resolve())

    def _agree(self, exchange: Exchange, located: Located, catalog: Catalog, principal: Principal) -> None:
        head = exchange.head
        terms: Terms | None = head.terms
        if terms is None or terms.catalog is not catalog or terms.principal is not principal:
            terms = Terms(head, located, parse_controls(head), principal, catalog)
            terms.lists = self._lists and located.route.name in _LISTS and answers_locally(catalog, principal)
            # Else another provider may have a key, or a rule may answer without any.
            if terms.models is None and terms.policies is None and not terms.lists:
                demand_provider_key(principal, located.provider)
            head.terms = terms
        exchange.terms = terms
        exchange.principal = principal
