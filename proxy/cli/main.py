"""The command line: one parser for all commands. A command's module is imported when it is run, so that
``sameflight version`` and ``--help`` do not pay for a server.

Exit codes: 0 success, 1 failure, 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from proxy import __version__

# Each is a module of this room with an `add_parser`; in the order of the help.
COMMANDS: Final = (
    *("serve", "restart", "demo", "mock", "bench", "keys", "flags"),
    *("usage", "migrate", "config", "healthcheck", "nginx"),
)


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """The grammar of one command, or of all where none of them is named."""
    parser = argparse.ArgumentParser(
        prog="sameflight",
        description="An LLM API proxy in which identical concurrent requests share one upstream call.",
        epilog="Every setting is also an environment variable: see `sameflight config show`.",
    )
    parser.add_argument("--version", action="version", version=f"sameflight {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = {"version": (), **{name: (name,) for name in COMMANDS}}.get(command, COMMANDS)
    for name in wanted:
        import_module(f"proxy.cli.{name}").add_parser(commands)
    version = commands.add_parser("version", help="print the version, and whether this build is compiled")
    version.set_defaults(run=_print_version)
    return parser


def _print_version(_: argparse.Namespace) -> int:
    print(f"sameflight {__version__} ({_build()})")
    return 0


def _build() -> str:
    """``compiled`` where the path of a request is native code (deploy/docker/compile.py), else ``pure``."""
    spec = find_spec("proxy.pipeline")  # looked for, not loaded
    return "pure" if spec is None or spec.origin is None or spec.origin.endswith(".py") else "compiled"


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        parsed = make_parser(arguments[0] if arguments else "").parse_args(arguments)
    except SystemExit as stop:  # argparse has printed what was wrong, or the help that was asked for
        return stop.code if isinstance(stop.code, int) else 2
    try:
        code: int = parsed.run(parsed)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough (`… | head`).
        sys.stderr.close()
        return 1
    return code
