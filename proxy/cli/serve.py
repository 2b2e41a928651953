"""``sameflight serve``: one proxy process, or a parent with several, until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import TYPE_CHECKING

from proxy.config.flags import add_setting_flags, flags_of

if TYPE_CHECKING:
    import socket

    from proxy.app import App
    from proxy.config.settings import Loaded, Settings
    from proxy.telemetry.log import Logging


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and a flag for each setting."""
    parser = subparsers.add_parser(
        "serve",
        help="run the proxy",
        description="Runs the proxy. Works without a file and without a database. SIGHUP reads the configuration "
        "file again, SIGTERM and SIGINT drain: running answers get a grace, a second signal ends it. With several "
        "workers SIGUSR2 replaces them one after the other and refuses nobody (`sameflight restart`).",
    )
    add_setting_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. 0 after a clean drain, 1 if it cannot start, 2 for settings that cannot be used."""
    from proxy.config.settings import SettingsError, load_settings

    flags = flags_of(args)
    try:
        loaded = load_settings(flags=flags)
        workers = loaded.settings.workers or _count_workers()
        if not loaded.settings.workers:
            loaded = load_settings(flags=flags | {"workers": str(workers)})  # there may be too few ports for so many
    except SettingsError as error:
        print(f"sameflight serve: these settings cannot be used:\n{error}", file=sys.stderr)
        return 2
    for warning in loaded.warnings:
        print(f"sameflight serve: {warning}", file=sys.stderr)
    from proxy.pressure.doors import raise_file_limit
    from proxy.telemetry.log import configure_logging
    from proxy.workers import StartError
    from proxy.workers.systemd import take_sockets

    # Its default would end the process, until there is something that can be read again.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_file_limit()
    settings = loaded.settings
    given = take_sockets()
    under_parent = workers > 1 or settings.supervised
    logging = configure_logging(settings.log_level, settings.log_format, shared=under_parent)
    try:
        if under_parent:
            return asyncio.run(_lead(loaded, flags, workers, given))
        return _serve_alone(settings, logging, given)
    except StartError as error:
        print(f"sameflight serve: {error}", file=sys.stderr)
        return 1
    finally:
        logging.close()


def _count_workers() -> int:
    from proxy.workers.cpus import count_workers

    return count_workers()


# -- several workers ---------------------------------------------------------------------------------------------


async def _lead(loaded: Loaded, flags: dict[str, object], workers: int, given: list[socket.socket]) -> int:
    from proxy.workers.preparing import import_aiohttp

    import_aiohttp()
    from proxy.workers.parent import Parent

    parent = Parent(loaded, flags, workers, given=given)
    await parent.run()
    parent.log.info("stopped")
    return 0


# -- one process -------------------------------------------------------------------------------------------------


def _serve_alone(settings: Settings, logging: Logging, given: list[socket.socket]) -> int:
    from proxy.cli.loop import new_event_loop
    from proxy.workers.preparing import prepare

    prepare()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_serve(settings, logging, given))


async def _serve(settings: Settings, logging: Logging, given: list[socket.socket]) -> int:
    from proxy.workers.listening import Place
    from proxy.workers.starting import start_app
    from proxy.workers.systemd import notify

    place = Place(given[0], None, 1) if given else None
    app = await start_app(settings, logging, place)
    stop = _stop_on_signals(app)
    where = settings.unix_socket or app.url
    app.log.info("serving", data=where, admin=app.admin_url, share=settings.share)
    notify("READY=1")
    try:
        await stop.wait()
        notify("STOPPING=1")
        await _drain(app, stop, settings)
    finally:
        await app.close()
    app.log.info("stopped")
    return 0


def _stop_on_signals(app: App) -> asyncio.Event:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, app.reload)
    # Its default would end the process, and with it everything that runs.
    loop.add_signal_handler(signal.SIGUSR2, lambda: app.log.warning("no_parent", hint="SAMEFLIGHT_SUPERVISED=true"))
    return stop


async def _drain(app: App, stop: asyncio.Event, settings: Settings) -> None:
    """Drain; a second signal cuts the grace short."""
    from proxy.drain import drain_unless

    app.books.post()  # what has ended already is told before
    grace_s, delay_s = settings.drain_grace_s, settings.drain_delay_s
    app.log.info("draining", grace_s=grace_s, delay_s=delay_s, running=app.server.running)
    stop.clear()
    if not await drain_unless(stop, app, grace_s, delay_s):
        app.log.warning("drain_cut_short", running=app.server.running)
