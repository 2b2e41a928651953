"""Summaries of what fell out of conversations: made by a cheap model, once for each beginning of one; kept, and
extended when the cut moves rather than made again.

    summary of [0, k) + the messages [k, m)  →  summary of [0, m)

A summary belongs to those who may share answers: its key is their scope and a digest of all that was spoken. Those
who need one that is being made wait for it together; it is finished though they leave: the next turn will need it.
It is kept here, in this process, whatever the caller says of caches: else each turn would pay for all before it. What
the caller forbids to cache is in no cache beyond that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from proxy.clock import Clock, Deadlines
from proxy.config.pruning import Summary
from proxy.errand import Desk, make_errand, run_errand
from proxy.errors import Kind, ProxyError, Side
from proxy.exchange import Exchange
from proxy.policy.planner import Terms
from proxy.policy.pruning import Cut, digest_prefixes, split_block
from proxy.protocol.dialogue import make_request, read_answer, shorten, transcribe
from proxy.protocol.headers import Controls
from proxy.upstream.until import Until

MAX_MAKING: Final = 256
"""Summaries that are made at one time."""
MAX_PIECES: Final = 16
"""Calls for one of them: of a beginning longer than that every message is shortened."""
_ENTRY_BYTES: Final = 400
_BYTES_PER_TOKEN: Final = 4
_SHARE: Final = 4
"""No scope may hold more than one part in four."""

_Key = tuple[bytes, bytes]


class Wanted(NamedTuple):
    """What has to be made for one request."""

    exchange: Exchange
    terms: Terms
    summary: Summary
    items: Sequence[dict[str, Any]]
    """All that was spoken before the cut."""
    digests: Sequence[bytes]
    """For each place from 0 to the cut."""

    @property
    def key(self) -> _Key:
        return self.terms.principal.scope, self.digests[-1]


class _Entry(NamedTuple):
    text: str
    expires_at: float
    """Monotonic seconds."""

    @property
    def size_bytes(self) -> int:
        return len(self.text.encode("utf-8", "surrogatepass")) + _ENTRY_BYTES


class _Rest(NamedTuple):
    failures: int
    """In a row."""
    until: float
    """Monotonic seconds."""


_NO_REST: Final = _Rest(0, 0.0)
_PATIENCE: Final = 3
_REST_S: Final = 10.0


class Summaries:
    """All of the process. Everything but `wait` and `close` is synchronous."""

    # Mutable state: _kept (scope -> digest -> entry, oldest use first, in both), _sizes by scope and size_bytes are
    # written by _get, _put and _drop; _making holds the tasks that make them; _rests says by model how it fared and
    # is written by _note; the counters count.
    def __init__(self, clock: Clock, deadlines: Deadlines, desk: Desk, *, max_bytes: int) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._desk = desk
        self.max_bytes = max_bytes
        self._kept: OrderedDict[bytes, OrderedDict[bytes, _Entry]] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._making: dict[_Key, asyncio.Task[str]] = {}
        self.size_bytes = 0
        self.made = 0
        """Calls that gave a summary."""
        self.reused = 0
        """Requests that found theirs ready."""
        self.waited = 0
        """Requests that waited for one that somebody else had begun."""
        self.evictions = 0
        self.failed: dict[str, int] = {}
        """Requests that got none, by why."""
        self._rests: dict[str, _Rest] = {}

    # -- what shaping calls -----------------------------------------------------------------------------------------

    def want(self, exchange: Exchange, terms: Terms, cut: Cut, summary: Summary) -> Wanted:
        """Who needs a summary of what."""
        seed = f"{summary.model}\0{summary.max_tokens}\0{summary.instructions}".encode("utf-8", "surrogatepass")
        items = [cut.items[index] for index in cut.spoken[: cut.at]]
        return Wanted(exchange, terms, summary, items, digest_prefixes(cut, seed))

    def look(self, wanted: Wanted) -> str:
        """The summary if it is there; empty if it has to be waited for."""
        text = self._get(wanted.key, wanted.summary.ttl_s)
        self.reused += bool(text)
        return text

    async def wait(self, wanted: Wanted) -> str:
        """The summary, made now or by whoever is at it; empty if there is none within the time that a request may
        wait."""
        key = wanted.key
        making = self._making.get(key)
        if making is not None:
            self.waited += 1
        elif self._is_resting(wanted.summary.model):
            return self._miss("resting")
        elif len(self._making) >= MAX_MAKING:
            return self._miss("busy")
        else:
            making = self._making[key] = asyncio.get_running_loop().create_task(self._make(wanted))
            making.add_done_callback(lambda done: self._forget(key, done))
        try:
            async with Until(self._deadlines, self._clock.now() + wanted.summary.timeout_s):
                return await asyncio.shield(making)
        except TimeoutError:
            return self._miss("late")
        except ProxyError as error:
            return self._miss(_WORDS.get(error.kind, "upstream"))
        except asyncio.CancelledError:
            if making.cancelled() or making.cancelling():  # not the request but the summary was given up
                return self._miss("closed")
            raise

    async def close(self) -> None:
        """Give up what is being made."""
        making = list(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    @property
    def making(self) -> int:
        return len(self._making)

    def _miss(self, why: str) -> str:
        self.failed[why] = self.failed.get(why, 0) + 1
        return ""

    def _forget(self, key: _Key, done: asyncio.Task[str]) -> None:
        del self._making[key]
        if not done.cancelled():
            done.exception()  # somebody has looked at it, though nobody may have waited

    # -- making -----------------------------------------------------------------------------------------------------

    async def _make(self, wanted: Wanted) -> str:
        """Extend the longest summary that is there, a piece at a time; each step is kept. Raises ``ProxyError``."""
        scope, summary = wanted.terms.principal.scope, wanted.summary
        stop = len(wanted.items)
        start, text = 0, ""
        for at in range(stop - 1, 0, -1):
            text = self._get((scope, wanted.digests[at]), summary.ttl_s)
            if text:
                start = at
                break
        most_chars = summary.most_input_tokens * _BYTES_PER_TOKEN
        spoken = _transcribe(wanted.items[start:], most_chars)
        begun = start
        for end in split_block([len(each) for each in spoken], most_chars):
            piece = spoken[begun - start : start + end - start]
            text = await self._condense(wanted, text, piece)
            begun = start + end
            self._put((scope, wanted.digests[begun]), text, summary.ttl_s)
        return text

    async def _condense(self, wanted: Wanted, before: str, spoken: Sequence[str]) -> str:
        """One call. Raises ``ProxyError``."""
        terms, summary = wanted.terms, wanted.summary
        question = "<conversation>\n" + "\n".join(filter(None, spoken)) + "\n</conversation>"
        if before:
            question = f"<summary>\n{before}\n</summary>\n{question}"
        route, dialect = terms.located.route.name, terms.located.dialect
        body = make_request(route, summary.model, summary.instructions, question, summary.max_tokens, dialect)
        forbids = terms.controls.no_store or terms.controls.cache == "off"
        controls = Controls(share="on", cache="off" if forbids else "on", cache_ttl_s=summary.ttl_s)
        errand = make_errand(wanted.exchange, terms, body, controls, self._clock.now())
        try:
            answer = await run_errand(errand, self._desk, self._clock, self._deadlines, summary.timeout_s, "summary")
        except ProxyError as error:
            if error.kind.side is Side.UPSTREAM:
                self._note(summary.model, ok=False)
            raise
        text = _clip(read_answer(route, answer).strip(), summary.max_tokens * _BYTES_PER_TOKEN)
        self._note(summary.model, ok=bool(text))
        if not text:
            raise ProxyError(Kind.UPSTREAM_BAD_RESPONSE, "The summary is empty.", why="empty")
        self.made += 1
        return text

    def _is_resting(self, model: str) -> bool:
        rest = self._rests.get(model)
        return rest is not None and rest.until > self._clock.now()

    def _note(self, model: str, *, ok: bool) -> None:
        """A model that fails again and again is not asked for a while: nobody shall wait for it each time."""
        if ok:
            self._rests.pop(model, None)
            return
        failures = self._rests.get(model, _NO_REST).failures + 1
        rests = failures >= _PATIENCE
        self._rests[model] = _Rest(failures, self._clock.now() + _REST_S if rests else 0.0)

    # -- keeping ----------------------------------------------------------------------------------------------------

    def _get(self, key: _Key, ttl_s: float) -> str:
        scope, digest = key
        of_scope = self._kept.get(scope)
        entry = of_scope.get(digest) if of_scope is not None else None
        if of_scope is None or entry is None:
            return ""
        now = self._clock.now()
        if entry.expires_at <= now:
            self._drop(scope, digest)
            return ""
        of_scope[digest] = entry._replace(expires_at=now + ttl_s)
        of_scope.move_to_end(digest)
        self._kept.move_to_end(scope)
        return entry.text

    def _put(self, key: _Key, text: str, ttl_s: float) -> None:
        scope, digest = key
        entry = _Entry(text, self._clock.now() + ttl_s)
        if entry.size_bytes > self.max_bytes // _SHARE:
            return
        self._drop(scope, digest)
        self._kept.setdefault(scope, OrderedDict())[digest] = entry
        self._kept.move_to_end(scope)
        self._sizes[scope] = self._sizes.get(scope, 0) + entry.size_bytes
        self.size_bytes += entry.size_bytes
        while self._sizes[scope] > self.max_bytes // _SHARE:
            self._evict(scope)
        while self.size_bytes > self.max_bytes:
            self._evict(next(iter(self._kept)))

    def _evict(self, scope: bytes) -> None:
        self._drop(scope, next(iter(self._kept[scope])))
        self.evictions += 1

    def _drop(self, scope: bytes, digest: bytes) -> None:
        of_scope = self._kept.get(scope)
        entry = of_scope.pop(digest, None) if of_scope is not None else None
        if entry is None:
            return
        self._sizes[scope] -= entry.size_bytes
        self.size_bytes -= entry.size_bytes
        if not of_scope:
            del self._kept[scope], self._sizes[scope]


_WORDS: Final = {
    Kind.FORBIDDEN: "forbidden",
    Kind.RATE_LIMITED: "limited",
    Kind.BUDGET_SPENT: "limited",
    Kind.GUARD_BLOCKED: "blocked",
    Kind.GUARD_FAILED: "blocked",
    Kind.OVERLOADED: "overloaded",
    Kind.PATIENCE: "late",
}


def _transcribe(items: Sequence[dict[str, Any]], most_chars: int) -> list[str]:
    """Each message as text; none is longer than a piece, and all together no longer than all pieces."""
    spoken = [transcribe(item, most_chars) for item in items]
    most_in_all = (MAX_PIECES // 2) * most_chars  # a piece may be left half empty by what comes next
    if sum(map(len, spoken)) > most_in_all:
        fair = max(1, most_in_all // len(spoken))
        spoken = [shorten(each, fair) for each in spoken]
    return spoken


def _clip(text: str, most_bytes: int) -> str:
    """A model that says more than it was told to must not fill the prompt."""
    return text.encode("utf-8", "replace")[:most_bytes].decode("utf-8", "ignore")
