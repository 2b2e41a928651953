"""Two attempts of one flight at once, where the first is slow: the earlier answer wins, the other is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from proxy.clock import Deadlines
from proxy.failover.attempt import Race
from proxy.failover.upshot import Upshot
from proxy.upstream.outcomes import Outcome

Ask = Callable[[], Coroutine[Any, Any, Upshot]]
_MOST_REQUESTS = 10_000


class HedgeBudget:
    """How many requests of one model may be asked twice: a share of all, so that hedging cannot double the load of
    what is slow because it is loaded."""

    # Mutable: both counts, halved together so that the share follows the present.
    __slots__ = ("hedges", "most_share", "requests")

    def __init__(self, most_share: float) -> None:
        self.most_share = most_share
        self.requests = 0
        self.hedges = 0

    def take(self) -> bool:
        if self.requests > _MOST_REQUESTS:
            self.requests //= 2
            self.hedges //= 2
        if self.hedges + 1 > max(1.0, self.requests * self.most_share):
            return False
        self.hedges += 1
        return True


async def ask_both(  # noqa: PLR0917 - two of a kind, and how they meet
    first: Ask, second: Ask, race: Race, may_hedge: Callable[[], bool], delay_s: float, deadlines: Deadlines
) -> tuple[Upshot, Upshot | None]:
    """Ask the first, and after ``delay_s`` without an answer the second as well, if ``may_hedge`` allows.

    Returns what came of each: ``None`` for a second that was not asked. Where one has won, the upshot of the other is
    ``lost``. Raises what the winner raises.
    """
    loop = asyncio.get_running_loop()
    decided = asyncio.Event()
    race.on_won = decided.set
    tasks = [loop.create_task(first())]
    tasks[0].add_done_callback(lambda _: decided.set())
    alarm = deadlines.arm(delay_s, decided.set)
    try:
        await decided.wait()
        if tasks[0].done() or race.winner is not None or not may_hedge():
            return await tasks[0], None
        decided.clear()
        tasks.append(loop.create_task(second()))
        tasks[1].add_done_callback(lambda _: decided.set())
        return await _settle(tasks[0], tasks[1], race, decided)
    finally:
        alarm.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _settle(
    first: asyncio.Task[Upshot], second: asyncio.Task[Upshot], race: Race, decided: asyncio.Event
) -> tuple[Upshot, Upshot]:
    """Wait until one has won or both have failed."""
    while race.winner is None and not (first.done() and second.done()):
        await decided.wait()
        decided.clear()
    if race.winner is None:
        return first.result(), second.result()
    lost = Upshot("lost", Outcome.NEUTRAL, again=False)
    if race.winner.runner is first:
        second.cancel()
        return await first, lost
    first.cancel()
    return lost, await second
