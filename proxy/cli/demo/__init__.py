"""``sameflight demo``: the proxy between crowds of callers and the built-in upstream, and what it saved them."""

from proxy.cli.demo.command import add_parser

__all__ = ["add_parser"]
