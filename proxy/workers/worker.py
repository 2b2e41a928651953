"""One worker: a fresh interpreter with a loop of its own, under a parent that it hears and obeys.

It drains when it is told to, when it gets SIGTERM, and when its parent is gone, whatever became of that: no worker
outlives its parent by more than a drain. SIGINT is the parent's matter, because a terminal sends it to both.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from proxy.cli.loop import new_event_loop
from proxy.config.settings import Settings, SettingsError, load_settings
from proxy.drain import drain_unless
from proxy.exchange import PROCESS_TOKEN
from proxy.pressure.doors import raise_file_limit
from proxy.telemetry.log import Logging, configure_logging
from proxy.workers import StartError
from proxy.workers.channel import Channel, Orders, hear_first, pack
from proxy.workers.listening import Place
from proxy.workers.preparing import prepare

if TYPE_CHECKING:
    from proxy.app import App

ALIVE_EVERY_S: Final = 1.0
_LAST_WORDS_S: Final = 10.0
"""Beyond its grace, an orphan has so long before the kernel ends it, be its loop stuck or not."""


class Wish(NamedTuple):
    """How a drain is wanted."""

    delay_s: float
    grace_s: float


class Worker:
    """A worker while it serves."""

    # Mutable state: `wish`, resolved by the first reason to drain; `hurry`, set by the parent; `orphaned`.
    def __init__(self, app: App, channel: Channel, settings: Settings) -> None:
        self._app = app
        self._channel = channel
        self._settings = settings
        self.wish: asyncio.Future[Wish] = asyncio.get_running_loop().create_future()
        self.hurry = asyncio.Event()
        self.orphaned = False

    async def serve(self) -> None:
        """Until the drain is over."""
        app, log = self._app, self._app.log
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        loop.add_signal_handler(signal.SIGUSR2, lambda: None)
        hearing = loop.create_task(self._hear())
        beating = loop.create_task(self._beat())
        try:
            self._channel.say({"ready": True, "pid": os.getpid(), "requests": f"req_{PROCESS_TOKEN}"})
            wish = await self.wish
            app.books.post()  # what has ended already is told before
            log.info("worker_draining", grace_s=wish.grace_s, delay_s=wish.delay_s, running=app.server.running)
            if not await drain_unless(self.hurry, app, wish.grace_s, wish.delay_s):
                log.warning("drain_cut_short", running=app.server.running)
        finally:
            for task in (hearing, beating):
                task.cancel()
            await asyncio.gather(hearing, beating, return_exceptions=True)

    async def _hear(self) -> None:
        while (message := await self._channel.hear()) is not None:
            what = message.get("do")
            if what == "drain":
                self._drain(Wish(float(message["delay_s"]), float(message["grace_s"])))
            elif what == "hurry":
                self._drain()
                self.hurry.set()
            elif what == "reload":
                self._app.reload()
        self.orphaned = True
        self._app.log.error("parent_gone")
        signal.setitimer(signal.ITIMER_REAL, self._settings.drain_grace_s + _LAST_WORDS_S)
        self._drain(Wish(0.0, self._settings.drain_grace_s))

    def _drain(self, wish: Wish | None = None) -> None:
        if not self.wish.done():
            self.wish.set_result(wish or Wish(self._settings.drain_delay_s, self._settings.drain_grace_s))

    async def _beat(self) -> None:
        """Tell the parent that the loop turns, and what the probes would say."""
        while True:
            live, ready = self._app.probe()
            self._channel.say({"alive": live.ok, "ready": ready.ok, "facts": {**live.facts, **ready.facts}})
            await asyncio.sleep(ALIVE_EVERY_S)


async def work(orders: Orders, end: socket.socket, settings: Settings, logging: Logging) -> int:
    """Serve under ``orders``; the exit code."""
    from proxy.workers.starting import start_app  # imports the app

    channel = await Channel.over(end)
    data, admin = (_adopt(orders["data_fd"]), _adopt(orders["admin_fd"]))
    try:
        try:
            app = await start_app(settings, logging, Place(data, admin, orders["parts"]))
        except StartError as error:
            channel.say({"failed": str(error)})
            return 1
        app.log.info("worker_serving", worker=orders["index"], generation=orders["generation"], pid=os.getpid())
        worker = Worker(app, channel, settings)
        try:
            await worker.serve()
        finally:
            await app.close()
            channel.say({"final": _render(app)})
        app.log.info("worker_stopped", worker=orders["index"], generation=orders["generation"])
        return 0
    finally:
        await channel.close()


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    handed = socket.socket(fileno=fd)
    handed.setblocking(False)
    return handed


def _render(app: App) -> str:
    with suppress(Exception):  # what is closed may not like to be counted any more
        return app.metrics.render([])[0].decode()
    return ""


def main(arguments: list[str]) -> int:
    """``python -m proxy.workers.worker FD``: for parents, not for people."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end = socket.socket(fileno=int(arguments[0]))
    os.set_inheritable(end.fileno(), False)
    orders = cast("Orders | None", hear_first(end))
    if orders is None:
        return 1
    flags: dict[str, Any] = dict(orders["flags"])
    try:
        settings = load_settings(flags=flags).settings
    except SettingsError as error:
        end.sendall(pack({"failed": f"these settings cannot be used:\n{error}"}))
        return 1
    raise_file_limit()
    logging = configure_logging(settings.log_level, settings.log_format, shared=True)
    prepare()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(work(orders, end, settings, logging))
    finally:
        logging.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
