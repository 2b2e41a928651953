"""Built-in guards that look at a request before it is planned: it is refused, redacted or flagged.

What they said of one body is remembered for a moment, so that a thousand equal callers cost one check; a long text is
looked at in a thread, and all who ask the same meanwhile wait for that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from proxy.config.guards import Guard, GuardSet
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.guard.base import merge_findings, redact
from proxy.guard.run import GuardRunner, Matter, Ruling
from proxy.guard.texts import is_in_tokens, pack, put_back, read_request, unpack
from proxy.policy.planner import Terms
from proxy.policy.shaped import Shaped
from proxy.protocol.call import Call

MOST_REMEMBERED: Final = 4_096
MOST_REMEMBERED_BYTES: Final = 16 << 20
"""Of what was redacted."""

_Key = tuple[bytes, str, bytes]


class _Vetted(NamedTuple):
    """What was said of one body."""

    error: ProxyError | None
    by: Guard | None
    """Who blocked it."""
    flagged: tuple[str, ...]
    members: bytes
    """What the body says instead, as JSON; empty for nothing. Kept as text, which is a small part of its tree."""


class Vetting:
    """Takes built-in guards to requests. One for the process."""

    # Mutable state: _known, what was said, in the order of use; _known_bytes, of its members; _pending, the checks
    # under way in threads. `checked` and `remembered` only grow.
    __slots__ = ("_known", "_known_bytes", "_pending", "_runner", "checked", "remembered")

    def __init__(self, runner: GuardRunner) -> None:
        self._runner = runner
        self._known: OrderedDict[_Key, _Vetted] = OrderedDict()
        self._known_bytes = 0
        self._pending: dict[_Key, asyncio.Task[_Vetted]] = {}
        self.checked = 0
        self.remembered = 0

    def refuse_unread(self, exchange: Exchange, terms: Terms, guards: GuardSet) -> None:
        """A body that nobody can read: raise ``ProxyError``, unless every guard would rather let it pass."""
        self._refuse(exchange, terms, (*guards.before, *guards.during, *guards.after))

    def _refuse(self, exchange: Exchange, terms: Terms, guards: Sequence[Guard]) -> None:
        matter = _make_matter(exchange, terms, exchange.call, [])
        for guard in guards:
            if self._runner.fail(guard, "unreadable", matter) is not None:
                message = f"The request cannot be read, so the guard '{guard.name}' cannot check it."
                raise ProxyError(Kind.GUARD_BLOCKED, message, why="unreadable")

    def vet(
        self, exchange: Exchange, terms: Terms, guards: GuardSet, call: Call, shaped: Shaped
    ) -> Coroutine[Any, Any, None] | None:
        """Take the built-in ``before`` guards to a request. What is returned has to be awaited first, and raises as
        this does: ``ProxyError``."""
        exchange.body = call.body  # in the clear, so that the flight's guards can read it as well
        if is_in_tokens(call):
            self._refuse(exchange, terms, (*guards.before, *guards.during))
        built_in = [guard for guard in guards.before if not guard.is_remote]
        if not built_in:
            return None
        key = guards.digest, terms.located.route.name, blake2b(call.body, digest_size=16).digest()
        vetted = self._known.get(key)
        if vetted is not None:
            self.remembered += 1
            self._known.move_to_end(key)
            self._tell_again(vetted, exchange, terms)
        elif key in self._pending:
            self.remembered += 1
            return self._vet_with(exchange, terms, call, shaped, self._pending[key])
        else:
            read = read_request(call, terms.located.route)
            matter = _make_matter(exchange, terms, call, [text for _, text in read])
            self.checked += 1
            if not self._runner.is_quick(built_in, matter):
                task = asyncio.get_running_loop().create_task(self._look(key, built_in, matter, call))
                self._pending[key] = task
                task.add_done_callback(lambda _: self._pending.pop(key, None))
                return self._vet_later(exchange, call, shaped, task)
            vetted = self._note(key, self._runner.rule(built_in, matter), matter, call)
        _carry_out(vetted, exchange, call, shaped)
        return None

    async def _look(self, key: _Key, guards: list[Guard], matter: Matter, call: Call) -> _Vetted:
        return self._note(key, await self._runner.rule_later(guards, matter), matter, call)

    async def _vet_later(
        self, exchange: Exchange, call: Call, shaped: Shaped, task: asyncio.Task[_Vetted]
    ) -> None:
        _carry_out(await asyncio.shield(task), exchange, call, shaped)

    async def _vet_with(
        self, exchange: Exchange, terms: Terms, call: Call, shaped: Shaped, task: asyncio.Task[_Vetted]
    ) -> None:
        """Of what somebody else had looked at."""
        vetted = await asyncio.shield(task)
        self._tell_again(vetted, exchange, terms)
        _carry_out(vetted, exchange, call, shaped)

    def _tell_again(self, vetted: _Vetted, exchange: Exchange, terms: Terms) -> None:
        """Each caller that is blocked has a line of its own in the log."""
        if vetted.error is not None and vetted.by is not None:
            matter = _make_matter(exchange, terms, exchange.call, [])
            self._runner.block(vetted.by, vetted.error.detail, matter)

    def _note(self, key: _Key, ruling: Ruling, matter: Matter, call: Call) -> _Vetted:
        members = b""
        if ruling.error is None and ruling.found:
            texts = list(matter.texts)
            for at, found in ruling.found.items():
                texts[at] = redact(texts[at], merge_findings(found))
            members = pack(put_back(call, texts))
        size = len(members)
        vetted = _Vetted(ruling.error, ruling.by, tuple(ruling.flagged), members)
        if ruling.error is not None and ruling.error.kind is Kind.GUARD_FAILED:
            return vetted  # the next may have more luck
        if size <= MOST_REMEMBERED_BYTES // 16:
            self._known[key] = vetted
            self._known_bytes += size
        while len(self._known) > MOST_REMEMBERED or self._known_bytes > MOST_REMEMBERED_BYTES:
            _, oldest = self._known.popitem(last=False)
            self._known_bytes -= len(oldest.members)
        return vetted


def _carry_out(vetted: _Vetted, exchange: Exchange, call: Call, shaped: Shaped) -> None:
    if vetted.error is not None:
        error = vetted.error
        raise ProxyError(error.kind, error.public, detail=error.detail, why=error.why)
    shaped.flagged = vetted.flagged
    if vetted.members:
        call.edit(unpack(vetted.members))
        exchange.body = call.body


def _make_matter(exchange: Exchange, terms: Terms, call: Call | None, texts: list[bytes]) -> Matter:
    model = call.model if call is not None else ""
    return Matter("request", texts, terms.located.route.name, model, terms.principal.key_id, exchange.request_id)
