"""The command: servers, script, table, and the lines with which everybody can try it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from proxy.app import App
    from proxy.cli.demo.findings import Findings
    from proxy.cli.demo.screen import Screen
    from proxy.mock import MockOptions, MockUpstream
    from proxy.telemetry.log import Logging

_HOST = "127.0.0.1"
_PORT = 8080
_ADMIN_PORT = 8081
_MOST_CALLERS = 200
_OPEN_FILES = 8192
"""What the largest crowd needs: a connection of each caller has two ends in this process."""
_SETTLE_S = 5.0
_INTERRUPTED = 130
_KEY = "sk-demo"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="see it work: mock upstream, proxy and a crowd of callers, without a network",
        description="Starts the built-in mock upstream (first byte after 300 ms, then a token every 20 ms) and the "
        "proxy on loopback, lets a few hundred callers ask through the proxy, and tells what that cost: upstream "
        "calls, tokens, dollars, time. Every answer is compared with a direct call, byte for byte. Then the servers "
        "stay up for you to try, until Ctrl-C.",
        epilog="Exit code: 0 if every call and every byte was as expected, 1 if not or if a port cannot be had, "
        "2 for wrong use.",
    )
    parser.add_argument("--once", action="store_true", help="end after the table instead of staying up")
    parser.add_argument(
        "--port",
        type=_port,
        default=None,
        help=f"the proxy's port, 0 for a free one (default: {_PORT}, or a free one if that is taken or with --once)",
    )
    parser.add_argument(
        "--callers", type=_crowd, default=40, metavar="N", help="callers of each burst and stream (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the callers' random moments (%(default)s)")
    parser.set_defaults(run=run)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port between 0 and 65535")
    return int(text)


def _crowd(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_CALLERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 1 and {_MOST_CALLERS}")
    return int(text)


def run(args: argparse.Namespace, options: MockOptions | None = None, **settings: object) -> int:
    """Demonstrate. ``options`` and ``settings`` stand in for the mock's and the proxy's usual ones.

    0 if all was as expected, 1 if not or if a port cannot be had, 130 when interrupted before the table.
    """
    from proxy.cli.loop import new_event_loop
    from proxy.mock import MockOptions
    from proxy.telemetry.log import configure_logging

    _allow_open_files()
    options = options or MockOptions(latency_ms=300.0, pace_ms=20.0, tokens=60, repeatable=True)
    # What goes wrong inside is said; what goes right would be written across the progress display.
    logging = configure_logging("error", "auto", sys.stderr.buffer)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_demonstrate(args, sys.stdout, options, logging, settings))
    finally:
        logging.close()


def _allow_open_files() -> None:
    """Raise the soft limit as far as the demonstration needs; some systems begin with 256."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Ports(NamedTuple):
    """Where to listen; 0 takes a free port."""

    data: int
    admin: int
    taken: int = 0
    """The usual port, if somebody else has it."""


def choose_ports(port: int | None, *, once: bool) -> Ports:
    """The ports that were asked for or are usual."""
    if once:
        return Ports(port or 0, 0)
    admin = _ADMIN_PORT if port != _ADMIN_PORT and _is_free(_ADMIN_PORT) else 0
    if port is not None:
        return Ports(port, admin)
    return Ports(_PORT, admin) if _is_free(_PORT) else Ports(0, admin, taken=_PORT)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


async def _demonstrate(
    args: argparse.Namespace, out: TextIO, options: MockOptions, logging: Logging, settings: dict[str, object]
) -> int:
    from proxy.cli.demo.screen import Screen
    from proxy.mock import MockUpstream

    stop = _stop_on_signals()
    screen = Screen(out, os.environ)
    ports = choose_ports(args.port, once=args.once)
    async with contextlib.AsyncExitStack() as stack:
        mock = await stack.enter_async_context(MockUpstream(options))
        try:
            app = await stack.enter_async_context(_proxy(mock, ports, logging, settings))
        except OSError as error:
            print(f"sameflight demo: cannot listen: {error}", file=sys.stderr)
            return 1
        _introduce(screen, mock, app, ports)
        try:
            findings = await _until(stop, _play(args, screen, mock, app))
        except OSError as error:
            print(f"sameflight demo: cannot connect to its own servers: {error}", file=sys.stderr)
            return 1
        if findings is None:
            return _INTERRUPTED
        _conclude(screen, findings)
        if not args.once:
            await _stay_up(screen, mock, app, stop)
        return 0 if findings.passed else 1


def _stop_on_signals() -> asyncio.Event:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextlib.asynccontextmanager
async def _proxy(
    mock: MockUpstream, ports: Ports, logging: Logging, settings: dict[str, object]
) -> AsyncIterator[App]:
    """A proxy in front of the mock, whatever the environment says. Raises ``OSError``."""
    from proxy.app import App
    from proxy.config.settings import load_settings

    with tempfile.TemporaryDirectory(prefix="sameflight-demo-") as state_dir:
        flags = {
            "host": _HOST,
            "port": ports.data,
            "admin_host": _HOST,
            "admin_port": ports.admin,
            "openai_upstream": mock.url,
            "anthropic_upstream": mock.url,
            "mistral_upstream": mock.url,
            "state_dir": state_dir,
            **settings,
        }
        keys = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY"), _KEY)
        app = App(load_settings(keys, flags).settings, env={}, logging=logging)
        try:
            await app.start()
            yield app
        finally:
            await app.close()


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, Findings]) -> Findings | None:
    """What ``work`` gives, or ``None`` if a signal came first."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
        await asyncio.wait((working, stopping))
    return None if working.cancelled() else working.result()


def _introduce(screen: Screen, mock: MockUpstream, app: App, ports: Ports) -> None:
    style, options = screen.style, mock.options
    if ports.taken:
        screen.print(f"Port {ports.taken} is taken; the proxy listens on port {app.port} instead.")
    pace = f"first byte after {options.latency_ms:g} ms, then a token every {options.pace_ms:g} ms"
    screen.print(f"{style.bold('Sameflight')}  identical concurrent requests share one upstream call")
    screen.print()
    screen.print(f"   proxy          {app.url}")
    screen.print(f"   mock upstream  {mock.url}")
    screen.print(f"                  {style.dim(pace)}")
    screen.print()


async def _play(args: argparse.Namespace, screen: Screen, mock: MockUpstream, app: App) -> Findings:
    from proxy.cli.demo.findings import evaluate
    from proxy.cli.demo.play import Play
    from proxy.cli.demo.script import make_script

    script = make_script(args.seed, args.callers)
    play = Play(mock, app.port)
    scenes = []
    async with screen:
        questions = script.questions
        screen.begin(f"{len(questions)} direct calls without the proxy, to compare with", len(questions))
        await play.ask_directly(questions, screen.advance)
        screen.finish("", passed=all(answer.status == 200 for answer in play.direct.values()))
        for part in script.parts:
            screen.begin(part.story, part.requests)
            scene = await play.perform(part, screen.advance)
            scenes.append(scene)
            screen.finish(_count(scene.calls, "call"), passed=scene.calls == part.calls)
    await _settled(app)
    app.books.post()
    return evaluate(play.direct, scenes, app.metrics)


async def _settled(app: App) -> None:
    """Until the proxy has accounted for every request: a moment after the last caller has its last byte."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SETTLE_S):
            while app.server.running or app.table.live or len(app.runner):  # noqa: ASYNC110 - none of them tells
                await asyncio.sleep(0.005)


def _conclude(screen: Screen, findings: Findings) -> None:
    from proxy.cli.demo.table import render

    screen.print()
    for line in render(findings, screen.style):
        screen.print(line)


async def _stay_up(screen: Screen, mock: MockUpstream, app: App, stop: asyncio.Event) -> None:
    """Tell how to use the servers, and wait for the signal."""
    for line in _invite(mock, app):
        screen.print(line)
    requests, calls = _count_requests(app), mock.calls
    await stop.wait()
    requests, calls = _count_requests(app) - requests, mock.calls - calls
    screen.print()
    screen.print(f"Stopped. Since the table: {_count(requests, 'request')}, {_count(calls, 'upstream call')}.")


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _count_requests(app: App) -> int:
    app.books.post()
    return int(sum(value for _, value in app.metrics.requests_total.rows()))


def _invite(mock: MockUpstream, app: App) -> Iterator[str]:
    body = '{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
    yield ""
    yield "Both servers stay up until Ctrl-C. Point any SDK at the proxy, with any API key:"
    yield ""
    yield f"OPENAI_BASE_URL={app.url}/v1"
    yield f"ANTHROPIC_BASE_URL={app.url}"
    yield ""
    yield "Or run this in two terminals at once and see one flight carry both:"
    yield ""
    yield f"curl -N {app.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
    yield ""
    yield f"What is in the air now:  {app.admin_url}/flights"
    yield f"Metrics for Prometheus:  {app.admin_url}/metrics"
    yield f"What the mock has seen:  {mock.url}/__mock/stats"
