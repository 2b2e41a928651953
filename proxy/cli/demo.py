"""``sameflight demo``: placeholder."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("demo", help="see it work")
    parser.set_defaults(run=lambda args: 1)
