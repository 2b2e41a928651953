"""The command: options in, table and verdict out."""

from __future__ import annotations

import argparse
import json
import sys


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    from proxy.cli.bench.verdict import Targets

    targets = Targets()
    parser = subparsers.add_parser(
        "bench",
        help="measure what a gateway adds: direct, through, difference, verdict",
        description="Sends the same short loads to an upstream directly and through a gateway: new questions at a "
        "steady rate, streams, a closed loop, and groups of identical questions. Without --upstream the built-in "
        "mock is the upstream, on --mock-port: let the gateway's OpenAI base URL point there. Without URL this proxy "
        "itself is measured before the mock.",
        epilog="Exit code: 0 if every target is met, 1 if one is missed or nothing could be measured, 2 for wrong "
        "use. For more than a first impression there is `python -m loadtests` in the source tree.",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="base URL of the gateway, with or without /v1")
    parser.add_argument("--upstream", metavar="URL", help="base URL of what stands behind it (default: a mock)")
    parser.add_argument("--mock-port", type=int, metavar="N", help="port of the mock (9000 if URL is given)")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="the mock's delay (%(default)s)")
    parser.add_argument("--requests", type=_count, default=400, help="questions of each load (%(default)s)")
    parser.add_argument("--rate", type=_rate, default=100.0, help="questions a second (%(default)s)")
    parser.add_argument("--connections", type=_count, default=64, help="most connections at once (%(default)s)")
    parser.add_argument("--herd", type=_count, default=20, help="identical questions of a group (%(default)s)")
    parser.add_argument("--model", default="gpt-4o-mini", help="model to ask for (%(default)s)")
    parser.add_argument("--key", default="sk-bench", help="credential to present (%(default)s)")
    parser.add_argument("--header", action="append", default=[], metavar="LINE", help="another header, `name: value`")
    parser.add_argument("--ca-file", default="", help="PEM file of the authorities that vouch for https addresses")
    parser.add_argument("--p50-ms", type=float, default=targets.p50_ms, help="target: added at P50 (%(default)s)")
    parser.add_argument("--p99-ms", type=float, default=targets.p99_ms, help="target: added at P99 (%(default)s)")
    parser.add_argument(
        "--failures", type=float, default=targets.failures, help="target: share of failures (%(default)s)"
    )
    parser.add_argument(
        "--hit-rate", type=float, default=targets.hit_rate, help="target: share of spared calls (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number between 1 and 1,000,000")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate between 0 and 100,000")
    return value


def run(args: argparse.Namespace) -> int:
    """Measure. 0 if every target is met, 1 if not or if nothing can be measured, 2 for an address that is none."""
    import asyncio

    from proxy.cli.bench.measure import CannotMeasureError, measure, open_ways
    from proxy.cli.bench.verdict import Targets, as_data, judge, render
    from proxy.cli.loop import new_event_loop

    targets = Targets(args.p50_ms, args.p99_ms, args.failures, args.hit_rate)
    try:
        with open_ways(args) as ways, asyncio.Runner(loop_factory=new_event_loop) as runner:
            findings = runner.run(measure(args, ways))
    except ValueError as error:
        print(f"sameflight bench: {error}", file=sys.stderr)
        return 2
    except (CannotMeasureError, OSError) as error:
        print(f"sameflight bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(as_data(findings, targets)) if args.json else render(findings, targets))
    return 0 if all(verdict.met is not False for verdict in judge(findings, targets)) else 1
