"""The one hand that writes for all leads of this process: what comes within a few milliseconds goes out together.

Nobody waits for it. While the server is away everything waits, within bounds; what cannot be told in time is given
up, and those who followed are told so as soon as anybody can be told anything.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from proxy.clock import Clock
from proxy.formation.bounds import Bounds
from proxy.formation.server import Farewell, Server, Telling, Told
from proxy.valkey import FAILURES

_MOST_TELLINGS: Final = 64
"""Entries of one round trip."""
_BACK_OFF_S: Final = 0.1


class Speaker(Protocol):
    """Who has something to be told; `lead.Lead` is one."""

    def compose(self, now: float) -> Telling | None:
        """What is to be told next; the same again until `told` is called for it."""

    def told(self, told: Told, now: float) -> None: ...

    def untold(self, now: float) -> None:
        """It could not be told, now at least."""

    def farewell(self) -> Farewell | None:
        """To be asked whether anybody needs it."""

    def answered(self, heard: int) -> None:
        """Of those that the farewell was for; 0 if it was said."""

    def unanswered(self) -> None: ...

    @property
    def eager(self) -> bool:
        """There is more to tell."""

    @property
    def over(self) -> bool:
        """Nothing is to be told any more."""


class Writer:
    """Writes. Owns its task between `start` and `close`."""

    # Mutable: _speakers are all that are not over, _ready those with something to tell; both written by add, wake and
    # the task. The rest are counters.
    __slots__ = (
        "_bounds",
        "_clock",
        "_ready",
        "_server",
        "_speakers",
        "_task",
        "_waking",
        "errors",
        "failing",
        "pending_bytes",
        "stored_bytes",
        "told",
    )

    def __init__(self, server: Server, clock: Clock, bounds: Bounds) -> None:
        self._server = server
        self._clock = clock
        self._bounds = bounds
        self._speakers: dict[Speaker, None] = {}
        self._ready: dict[Speaker, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._waking: asyncio.Future[None] | None = None
        self.pending_bytes = 0
        """Of answers, still to be written; kept by the leads."""
        self.stored_bytes = 0
        """The same on the server, as far as they are ours."""
        self.told = 0
        """Entries written."""
        self.errors = 0
        """Round trips that failed."""
        self.failing = False
        """The last one did."""

    def __len__(self) -> int:
        return len(self._speakers)

    def add(self, speaker: Speaker) -> None:
        self._speakers[speaker] = None
        self.wake(speaker)

    def wake(self, speaker: Speaker) -> None:
        """It has something to tell."""
        if speaker not in self._speakers:
            return
        self._ready[speaker] = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="shared-flights")
        elif self._waking is not None and not self._waking.done():
            self._waking.set_result(None)

    async def close(self) -> None:
        """Say what is left to say, within the time of one write."""
        if self._task is not None and not self.failing and any(speaker.eager for speaker in self._speakers):
            await asyncio.wait((self._task,), timeout=self._bounds.write_s)
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait((task,), timeout=1.0)

    async def _run(self) -> None:
        """Ends when there is nobody left to write for; `wake` begins anew."""
        beat_at = self._clock.now() + self._bounds.beat_s
        try:
            while self._speakers:
                now = self._clock.now()
                if now >= beat_at:
                    beat_at = now + self._bounds.beat_s
                    self._ready.update(self._speakers)
                if not self._ready:
                    await self._idle(beat_at - now)
                    continue
                await self._round(now)
                await asyncio.sleep(_BACK_OFF_S if self.failing else self._bounds.spacing_s)
        finally:
            self._task = None

    async def _idle(self, within_s: float) -> None:
        self._waking = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait((self._waking,), timeout=within_s)
        finally:
            self._waking = None

    async def _round(self, now: float) -> None:
        speakers = list(self._ready)[:_MOST_TELLINGS]
        for speaker in speakers:
            del self._ready[speaker]
        await self._tell(speakers, now)
        for speaker in speakers:
            if (farewell := speaker.farewell()) is not None:
                await self._part(speaker, farewell)
        for speaker in speakers:
            if speaker.over:
                self._speakers.pop(speaker, None)
                self._ready.pop(speaker, None)
            elif speaker.eager:
                self._ready[speaker] = None

    async def _tell(self, speakers: list[Speaker], now: float) -> None:
        said = [(speaker, telling) for speaker in speakers if (telling := speaker.compose(now)) is not None]
        if not said:
            return
        try:
            answers = await self._server.tell([telling for _, telling in said], self._bounds.write_s)
        except FAILURES:
            answers = [None] * len(said)
        now = self._clock.now()
        self.failing = None in answers
        self.errors += self.failing
        for (speaker, _), answer in zip(said, answers, strict=True):
            if answer is None:
                speaker.untold(now)
            else:
                self.told += 1
                speaker.told(answer, now)

    async def _part(self, speaker: Speaker, farewell: Farewell) -> None:
        try:
            heard = await self._server.part(farewell, self._bounds.write_s)
        except FAILURES:
            self.errors += 1
            speaker.unanswered()
        else:
            speaker.answered(heard)
