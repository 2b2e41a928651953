"""The way out, in its order: unready → serving for the delay → nobody new → what runs lands → the rest is ended.

Who was let in is served or told, never dropped: connections are closed when they have been idle for a moment, after
an answer that says so, or at the end of the grace.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from proxy.errors import Kind, ProxyError

if TYPE_CHECKING:
    from proxy.app import App

QUIET_S: Final = 0.5
"""How long an idle connection is left open, for the request that may be under way."""
_LOOK_S: Final = 0.02
_CROWD: Final = 500
"""From so many connections on they are looked at ten times less often."""


async def drain_unless(hurry: asyncio.Event, app: App, grace_s: float, delay_s: float = 0.0) -> bool:
    """Drain; ``False`` if ``hurry`` cut it short."""
    again = asyncio.ensure_future(hurry.wait())
    drained = asyncio.ensure_future(app.drain(grace_s, delay_s))
    await asyncio.wait((again, drained), return_when=asyncio.FIRST_COMPLETED)
    whole = drained.done()
    again.cancel()
    drained.cancel()
    await asyncio.gather(again, drained, return_exceptions=True)
    return whole


async def drain(app: App, grace_s: float, delay_s: float) -> None:
    """Everything but the app's phase."""
    app.fleet.warm.stop()
    app.server.announce()
    if delay_s > 0.0:
        await asyncio.sleep(delay_s)
    if app.doors is not None:
        await app.doors.take_in()
        app.doors.close()
    error = ProxyError(Kind.DRAINING, "The proxy is shutting down; try again.", retry_after_s=1.0)
    await _land(app, grace_s, error)
    app.pipeline.admission.draining = error
    app.server.hush()
    app.table.close(error)
    app.table.shut(error)
    await app.sockets.close()
    await _end(app, 1.0)


async def _land(app: App, grace_s: float, error: ProxyError) -> None:
    """Until no connection is left, at most ``grace_s``. A request that comes meanwhile, on a connection that was
    kept, is served in the first half of that time, in which one of its length would have landed; later it is
    refused, because it would probably be cut."""
    loop = asyncio.get_running_loop()
    began, quiet_s = loop.time(), min(QUIET_S, grace_s)
    idle_since: dict[Any, float] = {}
    while (passed_s := loop.time() - began) < grace_s:
        if passed_s > grace_s / 2.0:
            app.pipeline.admission.draining = error
        count = app.server.part_idle(idle_since, loop.time(), quiet_s)
        if not count:
            break
        await asyncio.sleep(_LOOK_S if count < _CROWD else 10.0 * _LOOK_S)


async def _end(app: App, within_s: float) -> None:
    """Wait until no exchange is running, at most ``within_s``."""
    server = app.server
    if server.running:
        server.idle = asyncio.get_running_loop().create_future()
        await asyncio.wait((server.idle,), timeout=within_s)
        server.idle = None
