"""``sameflight bench``: what a gateway adds to its upstream, measured beside the upstream alone."""

from proxy.cli.bench.command import add_parser

__all__ = ["add_parser"]
