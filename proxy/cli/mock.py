"""``sameflight mock``: the built-in upstream on a port of its own."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable

from proxy.mock import Fault, MockOptions, MockUpstream

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "mock",
        help="run the built-in upstream: OpenAI, Anthropic and Mistral without a network",
        description="Runs an upstream that answers like OpenAI, Anthropic and Mistral. One request may override the "
        "options in its model's name, for instance gpt-4o-mini?fault=429&fail_first=1&latency_ms=50, or in headers "
        "such as x-mock-latency-ms. GET /__mock/stats tells what it saw.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9000, help="port, 0 for a free one (%(default)s)")
    parser.add_argument("--unix-socket", default="", metavar="PATH", help="listen on a Unix socket instead")
    parser.add_argument("--latency-ms", type=float, default=300.0, help="time to the first byte (%(default)s)")
    parser.add_argument("--pace-ms", type=float, default=20.0, help="time between streamed tokens (%(default)s)")
    parser.add_argument("--tokens", type=int, default=60, help="tokens of an answer (%(default)s)")
    parser.add_argument("--chunk-bytes", type=int, default=0, help="cut bodies into pieces of so many bytes")
    faults = [str(fault) for fault in Fault if fault]
    parser.add_argument("--fault", default="", choices=faults, help="what goes wrong")
    parser.add_argument("--fault-rate", type=float, default=1.0, help="share of calls with the fault (%(default)s)")
    parser.add_argument("--fault-after", type=int, default=-1, help="pieces before a fault in the body (half)")
    parser.add_argument("--fail-first", type=int, default=0, help="only the first N calls of a body get the fault")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fault's draw (%(default)s)")
    parser.add_argument("--no-usage", action="store_true", help="leave usage out of answers")
    parser.add_argument("--gzip", action="store_true", help="compress answers for clients that accept it")
    parser.add_argument("--vary", action="store_true", help="name the call's number in each answer")
    parser.add_argument(
        "--repeatable", action="store_true", help="ids and times depend on the body alone: equal calls, equal bytes"
    )
    parser.add_argument("--canned", action="store_true", help="for load: repeat the first answer of each target")
    parser.add_argument("--reuse-port", action="store_true", help="let several mocks share the port")
    parser.set_defaults(run=run)


def read_options(args: argparse.Namespace) -> MockOptions:
    """The options that the arguments ask for. Raises ``ValueError``."""
    return MockOptions(
        latency_ms=args.latency_ms,
        pace_ms=args.pace_ms,
        tokens=args.tokens,
        chunk_bytes=args.chunk_bytes,
        fault=Fault(args.fault),
        fault_rate=args.fault_rate,
        fault_after=args.fault_after,
        fail_first=args.fail_first,
        seed=args.seed,
        usage=not args.no_usage,
        gzip=args.gzip,
        vary=args.vary,
        repeatable=args.repeatable,
        canned=args.canned,
    )


def run(args: argparse.Namespace, loop_factory: LoopFactory | None = None) -> int:
    """Serve until SIGINT or SIGTERM. 0 after a signal, 1 if the address is taken, 2 for impossible options."""
    try:
        options = read_options(args)
    except ValueError as error:
        print(f"sameflight mock: {error}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_serve(args, options))


async def _serve(args: argparse.Namespace, options: MockOptions) -> int:
    mock = MockUpstream(options)
    try:
        await mock.start(args.host, args.port, unix_path=args.unix_socket, reuse_port=args.reuse_port)
    except (OSError, OverflowError) as error:
        print(f"sameflight mock: cannot listen: {error}", file=sys.stderr)
        return 1
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    print(describe(mock, args.unix_socket), flush=True)
    try:
        await asked_to_stop.wait()
    finally:
        await mock.close()
    print(f"{mock.calls} calls, {mock.aborted} of them left by their clients")
    return 0


def describe(mock: MockUpstream, unix_socket: str = "") -> str:
    """The base URLs, ready to be pasted into a shell."""
    if unix_socket:
        return f"The mock upstream listens on {unix_socket}"
    return (
        f"The mock upstream listens on {mock.url}\n"
        f"  OPENAI_BASE_URL={mock.url}/v1\n"
        f"  ANTHROPIC_BASE_URL={mock.url}\n"
        f"  Mistral: server_url={mock.url}/mistral\n"
        f"  counters: {mock.url}/__mock/stats"
    )
