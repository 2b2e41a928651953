"""The measuring itself: the two ways, and the loads that are sent along them.

Upstream and, without a URL, the proxy run as processes of their own, so that the load does not wait for what it
measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import socket
import ssl as tls
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from proxy.cli.bench.load import Load, Outcome, Target, parse_target, render_request
from proxy.cli.bench.verdict import Findings, Herds

_PATH = "/v1/chat/completions"
MOCK_PORT = 9000
_START_S = 20.0
_STOP_S = 10.0


class CannotMeasureError(Exception):
    """Why nothing can be measured, in words for the user."""


class Ways(NamedTuple):
    """Where the two ways begin, and how many calls have come out at their end."""

    direct: Target
    through: Target
    calls: Callable[[], int | None]


# --- the two ways


@contextlib.contextmanager
def open_ways(args: argparse.Namespace) -> Iterator[Ways]:
    """Start what is not there. Raises ``CannotMeasureError``, and ``ValueError`` for an address that is none."""
    with contextlib.ExitStack() as stack:
        context = tls.create_default_context(cafile=args.ca_file) if args.ca_file else None
        if args.upstream:
            upstream = parse_target(args.upstream, context)
        else:
            port = args.mock_port or (MOCK_PORT if args.url else _free_port())
            options = ["--latency-ms", str(args.latency_ms), "--pace-ms", "5", "--tokens", "20", "--canned"]
            stack.enter_context(_process("mock", port, ["mock", "--port", str(port), *options]))
            upstream = parse_target(f"http://127.0.0.1:{port}")
        if args.url:
            through = parse_target(args.url, context)
        else:
            port, admin_port = _free_port(), _free_port()
            scheme = "http" if upstream.context is None else "https"
            base = f"{scheme}://{upstream.authority}{upstream.prefix}"
            options = ["--openai-upstream", base, "--port", str(port), "--admin-port", str(admin_port)]
            options += ["--ca-file", args.ca_file] if args.ca_file else []
            stack.enter_context(_process("serve", port, ["serve", *options]))
            through = parse_target(f"http://127.0.0.1:{port}")
        yield Ways(upstream, through, lambda: _count_calls(upstream))


@contextlib.contextmanager
def _process(name: str, port: int, arguments: list[str]) -> Iterator[None]:
    """One of our own commands, until the end of the block."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SAMEFLIGHT_", "OPENAI_"))}
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise CannotMeasureError(f"port {port} is taken, so that {name} cannot listen there") from None
    command = [sys.executable, "-m", "proxy", *arguments]
    with subprocess.Popen(  # noqa: S603 - this very program
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
    ) as process:
        try:
            _wait_for(process, name, port)
            yield
        finally:
            process.terminate()
            try:
                process.communicate(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(process: subprocess.Popen[bytes], name: str, port: int) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.01)
    process.kill()
    said = process.communicate()[1].decode(errors="replace").strip()
    raise CannotMeasureError(f"{name} did not start: {said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _count_calls(upstream: Target) -> int | None:
    """What a mock has counted; ``None`` for an upstream that is none."""
    kind = http.client.HTTPConnection if upstream.context is None else http.client.HTTPSConnection
    connection = kind(upstream.host, upstream.port, timeout=10)
    try:
        connection.request("GET", f"{upstream.prefix}/__mock/stats")
        return int(json.loads(connection.getresponse().read())["calls"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


# --- the loads


class _Asker:
    """Makes questions that nobody has asked before, by a mark of this run."""

    # The mutable state: the number of the next question.
    def __init__(self, args: argparse.Namespace) -> None:
        self._model: str = args.model
        self._mark = os.urandom(6).hex()
        self._headers = (f"authorization: Bearer {args.key}", "user-agent: sameflight-bench", *args.header)
        self._number = 0

    def ask(self, target: Target, *, streams: bool = False) -> bytes:
        """A new question."""
        self._number += 1
        question = f"{self._mark}-{self._number}: in which year did the first airmail fly? The year alone."
        data = {"model": self._model, "messages": [{"role": "user", "content": question}], "max_tokens": 64}
        if streams:
            data["stream"] = True
        body = json.dumps(data, separators=(",", ":")).encode()
        return render_request(target, _PATH, body, self._headers)


async def measure(args: argparse.Namespace, ways: Ways) -> Findings:
    """Ask on both ways. Raises ``CannotMeasureError`` and ``OSError``."""
    asker = _Asker(args)
    await _probe(args, ways, asker)
    findings = Findings()
    streams = max(1, args.requests // 4)
    pairs = (("direct", ways.direct), ("through", ways.through))
    for name, target in pairs:
        steady = [(each / args.rate, asker.ask(target)) for each in range(args.requests)]
        findings.outcomes[(name, "whole")] = await _open(target, args.connections, steady)
        steady = [(each / args.rate, asker.ask(target, streams=True)) for each in range(streams)]
        findings.outcomes[(name, "streams")] = await _open(target, args.connections, steady)
        findings.outcomes[(name, "busy")] = await _close(args, target, asker)
    findings.herds = await _herd(args, ways, asker)
    return findings


async def _probe(args: argparse.Namespace, ways: Ways, asker: _Asker) -> None:
    """Ask both once, and see whether the gateway leads to the upstream. Raises ``CannotMeasureError``."""
    for name, target in (("the upstream", ways.direct), ("the gateway", ways.through)):
        before = await asyncio.to_thread(ways.calls)
        outcome = await _open(target, 1, [(0.0, asker.ask(target))])
        if outcome.failed:
            raise CannotMeasureError(f"{name} at {target.authority} does not answer: {', '.join(outcome.failures)}")
        after = await asyncio.to_thread(ways.calls)
        if not args.upstream and before == after:
            raise CannotMeasureError(
                f"the answer of {target.authority} did not come from the mock: let the gateway's OpenAI base URL be "
                f"http://{ways.direct.authority}/v1, or say with --upstream where it leads to"
            )


async def _open(target: Target, connections: int, arrivals: list[tuple[float, bytes]]) -> Outcome:
    load = Load(target, connections)
    try:
        await load.open()
        return await load.opened(arrivals, wait_s=30.0)
    finally:
        await load.close()


async def _close(args: argparse.Namespace, target: Target, asker: _Asker) -> Outcome:
    load = Load(target, args.connections)
    try:
        await load.open()
        return await load.closed(lambda: asker.ask(target), args.requests, 30.0)
    finally:
        await load.close()


async def _herd(args: argparse.Namespace, ways: Ways, asker: _Asker) -> Herds:
    """Groups of identical questions, the members of a group in one moment, a group every tenth of a second."""
    groups = max(1, args.requests // args.herd)
    arrivals = []
    for group in range(groups):
        arrivals += [(group / 10, asker.ask(ways.through))] * args.herd
    before = await asyncio.to_thread(ways.calls)
    outcome = await _open(ways.through, args.connections + args.herd, arrivals)
    after = await asyncio.to_thread(ways.calls)
    calls = None if before is None or after is None else after - before
    return Herds(groups, args.herd, outcome, calls)
