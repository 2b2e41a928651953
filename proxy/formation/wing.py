"""One flight of this process that is filled with what another process tells of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal, Protocol

from proxy.clock import Clock
from proxy.errors import Kind, ProxyError
from proxy.formation.bounds import LOOK_ENTRIES, Bounds
from proxy.formation.entry import BEAT, REPLACED, Entry, Meta, read_error, read_head, read_usage
from proxy.formation.landing import Landing
from proxy.formation.server import Look
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.protocol.usage import Usage
from proxy.valkey import FAILURES

if TYPE_CHECKING:
    from proxy.formation.formation import Formation


class Receiver(Protocol):
    """Takes the answer, as from an upstream; `intake.Intake` is one. None of the calls may raise or wait."""

    of_our_own: HeaderList

    @property
    def has_begun(self) -> bool:
        """Something of the answer was let go, so that it can only go on or break off."""

    def follow(self, control: Wing) -> None:
        """From here on the answer is another process's."""

    def name_answerer(self, target: str) -> None:
        """Whose answer it is, where the catalog had a choice."""

    def on_read(self, head: ResponseHead | None, data: bytes, ended: bool) -> None: ...

    def tell_usage(self, usage: Usage) -> None: ...


_AGAIN_S: Final = 0.05
"""Between two looks at a server that fails."""

_FOR_GOOD = frozenset(("too_large", "unshareable", "slow"))
"""Why a lead tells no more of an answer that is as good as ever, and as little to be told by the next."""


class Wing:
    """Follows one lead. What is heard goes on at once while nothing is missing; else it is looked for on the server,
    which is also how one that came late gets the beginning, and how one that was paused goes on.

    Implements ``listener.Hearer`` and ``upstream.base.Control``.
    """

    # Mutable: _next, the number of the entry that is due; _behind, that some were missed; _paused; _heard_at;
    # _landing, resolved once by whatever ends it. Written by the listener's calls and by `fly`.
    __slots__ = (
        "_behind",
        "_bounds",
        "_clock",
        "_formation",
        "_heard_at",
        "_key",
        "_landing",
        "_looking",
        "_names",
        "_next",
        "_paused",
        "_receiver",
        "_tuned",
        "_waking",
        "holder",
        "successor",
        "token",
    )

    leads: Literal[False] = False

    def __init__(self, formation: Formation, key: bytes, token: bytes, holder: bytes) -> None:
        self._formation = formation
        self._clock: Clock = formation.clock
        self._bounds: Bounds = formation.bounds
        self._key = key
        self.token = token
        self._names = formation.server.names(key, token)
        self.holder = holder
        """What stands under the lease while the lead has it."""
        self.successor = b""
        """The same of the one that took over, once that was said."""
        self._next = 1
        self._behind = False
        self._looking = False
        self._paused = False
        self._tuned = False
        self._heard_at = self._clock.now()
        self._receiver: Receiver
        self._landing: asyncio.Future[Landing]
        self._waking: asyncio.Future[None] | None = None

    @property
    def stream(self) -> str:
        return self._names[0]

    @property
    def waits(self) -> bool:
        """It has let nothing go yet, so that the call could be made here as well."""
        return not self._receiver.has_begun

    async def fly(self, receiver: Receiver, within_s: float) -> Landing:
        """Hand the lead's answer to ``receiver``, for ``within_s`` seconds at most. Raises ``ProxyError`` for what
        the lead's call failed with, and for an answer that breaks off."""
        self._receiver = receiver
        self._landing = asyncio.get_running_loop().create_future()
        receiver.follow(self)
        self._formation.follow(self._names[0], self)
        try:
            async with asyncio.timeout(within_s):
                while not self._landing.done():
                    await self._step()
                return await self._landing
        except TimeoutError:
            raise ProxyError(Kind.UPSTREAM_TIMEOUT, "The answer took too long.", why="total") from None
        finally:
            self._formation.leave(self._names[0], self)
            if self._landing.done() and not self._landing.cancelled():
                self._landing.exception()

    # -- calls of the listener and of the flight ---------------------------------------------------------------

    def heard(self, data: object) -> None:
        if self._landing.done():
            return
        entry = self._formation.seal.read(self._key, self.token, data)
        if entry is None:
            self._formation.poisoned += 1
            return
        self._heard_at = self._clock.now()
        if "dropped" in entry.meta:
            self._end_dropped(entry.meta)
        elif entry.number == BEAT or entry.number < self._next:
            return
        elif self._looking or self._paused or not self._tuned or entry.number > self._next:
            self._behind = True
            self._wake()
        else:
            self._take(entry)

    def tuned(self) -> None:
        self._tuned = True
        self._behind = True
        self._wake()

    def deaf(self) -> None:
        self._tuned = False
        self.lose("deaf")

    def lose(self, why: str) -> None:
        """The server cannot be counted on: where the call can still be made here, it is, at once."""
        if not self._landing.done() and self.waits:
            self._formation.note_lost(why)
            self._landing.set_result(Landing.ALONE)
            self._wake()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._behind = True
        self._wake()

    def _wake(self) -> None:
        if self._waking is not None and not self._waking.done():
            self._waking.set_result(None)

    # -- going on ----------------------------------------------------------------------------------------------

    async def _step(self) -> None:
        """Wait until something is to be done, and do it."""
        if self._behind and not self._paused and self._tuned:
            self._behind = False
            await self._look()
            return
        self._waking = asyncio.get_running_loop().create_future()
        patience_s = self._patience_s
        left_s = self._heard_at + patience_s - self._clock.now()
        try:
            if not self._landing.done() and left_s > 0:
                await asyncio.wait((self._waking, self._landing), timeout=left_s, return_when="FIRST_COMPLETED")
        finally:
            self._waking = None
        if not self._landing.done() and self._clock.now() - self._heard_at >= patience_s:
            await self._wonder()

    @property
    def _patience_s(self) -> float:
        """How long nothing may be heard before the server is asked."""
        if self._paused:
            return self._bounds.keep_s / 2
        return self._bounds.open_s if self._next == 1 else self._bounds.lease_s

    async def _wonder(self) -> None:
        """Nothing was heard for long. What a server that lives knows nothing of is over."""
        found = await self._ask(1)
        if found is None or self._landing.done():
            return
        if self._paused and (found.held or found.entries):
            self._heard_at = self._clock.now()  # it waits for us, and was asked to stay
        elif found.entries:
            self._behind = True
        else:
            self._break_off("silent", Landing.AGAIN)

    async def _look(self) -> None:
        """Take what the server has from where we are."""
        found = await self._ask(LOOK_ENTRIES)
        if found is not None and not self._landing.done():
            self._take_all(found.entries)

    async def _ask(self, most: int) -> Look | None:
        """What the server has from where we are; ``None`` if it could not be asked."""
        self._looking = True
        try:
            return await self._formation.look(self._names, self._next, self.holder, most)
        except FAILURES as error:
            self._formation.note_failure(error)
            self.lose("hung")
        finally:
            self._looking = False
        if not self._landing.done():
            self._behind = True
            await asyncio.sleep(_AGAIN_S)  # and once more, until the silence has lasted too long
            if self._clock.now() - self._heard_at >= self._bounds.lease_s:
                self._break_off("unreachable", Landing.ALONE)
        return None

    def _take_all(self, found: list[bytes]) -> None:
        entries = [self._formation.seal.read(self._key, self.token, data) for data in found]
        if None in entries:
            self._formation.poisoned += 1
            self._break_off("poisoned", Landing.ALONE)
            return
        read = [entry for entry in entries if entry is not None]
        if read and "dropped" in read[-1].meta:  # looked at first: what came before it is of no use
            self._end_dropped(read[-1].meta)
            return
        for entry in read:
            if entry.number < self._next:
                continue
            if entry.number > self._next:
                self._break_off("gap", Landing.ALONE)
                return
            self._heard_at = self._clock.now()
            self._take(entry)
            if self._landing.done() or self._paused:
                return
        if len(read) >= LOOK_ENTRIES:
            self._behind = True

    def _take(self, entry: Entry) -> None:
        """The next of the answer. A bug in what takes it is the flight's to tell."""
        self._next = entry.number + 1
        try:
            self._hand_on(entry)
        except Exception as bug:  # noqa: BLE001 - else nobody would ever hear the end
            if not self._landing.done():
                self._landing.set_exception(bug)
        self._wake()

    def _hand_on(self, entry: Entry) -> None:
        meta, receiver = entry.meta, self._receiver
        head = None
        if "head" in meta:
            head, receiver.of_our_own, target = read_head(meta["head"])
            if target:
                receiver.name_answerer(target)
        if "usage" in meta:
            receiver.tell_usage(read_usage(meta["usage"]))
        ended = "end" in meta
        if head is not None or entry.data or ended:
            receiver.on_read(head, entry.data, ended)
        if "error" in meta:
            self._landing.set_exception(read_error(meta["error"]))
        elif ended:
            self._landing.set_result(Landing.DONE)

    def _end_dropped(self, meta: Meta) -> None:
        why = str(meta["dropped"])
        if why == REPLACED:
            if not self.waits:
                return  # that is for those who can still follow another one
            self.successor = bytes.fromhex(meta["by"])
        self._break_off(f"dropped_{why}", Landing.ALONE if why in _FOR_GOOD else Landing.AGAIN)

    def _break_off(self, why: str, landing: Landing) -> None:
        """There will be no more of it."""
        if self._landing.done():
            return
        self._formation.note_lost(why)
        if self.waits:
            self._landing.set_result(landing)
        else:
            error = ProxyError(
                Kind.UPSTREAM_RESET, "The upstream broke off its answer.", detail=f"shared flight: {why}", why="lead"
            )
            self._landing.set_exception(error)
        self._wake()
