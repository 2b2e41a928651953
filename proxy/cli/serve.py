"""``sameflight serve``: one proxy process until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from typing import TYPE_CHECKING

from proxy.config.flags import add_setting_flags, flags_of

if TYPE_CHECKING:
    from proxy.app import App
    from proxy.config.settings import Settings
    from proxy.telemetry.log import Logging


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and a flag for each setting."""
    parser = subparsers.add_parser(
        "serve",
        help="run the proxy",
        description="Runs the proxy. Works without a file and without a database. SIGHUP reads the configuration "
        "file again, SIGTERM and SIGINT drain: running answers get a grace, a second signal ends it.",
    )
    add_setting_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. 0 after a clean drain, 1 if it cannot start, 2 for settings that cannot be used."""
    from proxy.config.settings import SettingsError, load_settings

    try:
        loaded = load_settings(flags=flags_of(args))
    except SettingsError as error:
        print(f"sameflight serve: these settings cannot be used:\n{error}", file=sys.stderr)
        return 2
    for warning in loaded.warnings:
        print(f"sameflight serve: {warning}", file=sys.stderr)
    from proxy.cli.loop import new_event_loop
    from proxy.pressure.doors import raise_file_limit
    from proxy.telemetry.log import configure_logging

    raise_file_limit()
    logging = configure_logging(loaded.settings.log_level, loaded.settings.log_format)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_serve(loaded.settings, logging))
    finally:
        logging.close()


async def _serve(settings: Settings, logging: Logging) -> int:
    from proxy.access.pepper import PepperError
    from proxy.app import App
    from proxy.config.catalog import CatalogError
    from proxy.errors import StoreError

    try:
        app = App(settings, logging=logging)
    except CatalogError as error:
        print(f"sameflight serve: the configuration file cannot be used:\n{error}", file=sys.stderr)
        return 1
    except PepperError as error:
        print(f"sameflight serve: virtual keys cannot be checked: {error}", file=sys.stderr)
        return 1
    try:
        await app.start()
    except StoreError as error:
        print(f"sameflight serve: the database cannot be used: {error}", file=sys.stderr)
        await app.close()
        return 1
    except OSError as error:
        print(f"sameflight serve: cannot listen: {error}", file=sys.stderr)
        await app.close()
        return 1
    _tune_collector()
    stop = _stop_on_signals(app)
    where = settings.unix_socket or app.url
    app.log.info("serving", data=where, admin=app.admin_url, share=settings.share)
    try:
        await stop.wait()
        await _drain(app, stop, settings.drain_grace_s)
    finally:
        await app.close()
    app.log.info("stopped")
    return 0


def _tune_collector() -> None:
    """What is there at the start stays and is not looked at again; requests leave hardly any cycles behind, so that
    looking for them every few dozen costs more (a twentieth of the CPU) than it finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _stop_on_signals(app: App) -> asyncio.Event:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, app.reload)
    return stop


async def _drain(app: App, stop: asyncio.Event, grace_s: float) -> None:
    """Drain; a second signal cuts the grace short."""
    app.books.post()  # what has ended already is told before
    app.log.info("draining", grace_s=grace_s, running=app.server.running)
    stop.clear()
    again = asyncio.ensure_future(stop.wait())
    drained = asyncio.ensure_future(app.drain(grace_s))
    await asyncio.wait((again, drained), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not drained.done():
        app.log.warning("drain_cut_short", running=app.server.running)
        drained.cancel()
    await asyncio.gather(again, drained, return_exceptions=True)
