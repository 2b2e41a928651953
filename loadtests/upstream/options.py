"""What the fake provider does; fixed when its process starts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

FAULTS = ("", "429", "500", "503", "reset", "cut", "hang")


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """All defaults together: a small JSON answer at once."""

    latency_ms: float = 0.0
    """To the first byte."""
    pace_ms: float = 0.0
    """Between events; 0 sends a stream in one piece."""
    answer_bytes: int = 1042
    events: int = 100
    event_bytes: int = 230
    fault: str = ""
    """A status, ``reset`` before the head, ``cut`` in the middle of the body, or ``hang``."""
    fault_every: int = 1
    """Each n-th call has the fault …"""
    fault_share: float = 1.0
    """… or of those this share, by chance."""
    mark: str = ""
    """A word that each piece of an answer then carries, with the number of the question it answers."""
    cert: str = ""
    """PEM file with certificate and key; with it the provider speaks TLS."""
    sndbuf: int = 0
    """Size of the sockets' send buffers; 0 leaves it to the system."""

    def arguments(self) -> list[str]:
        """The command line that `read_options` turns back into these options."""
        found = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                found += [f"--{each.name.replace('_', '-')}", str(value)]
        return found


def read_options(arguments: list[str]) -> tuple[int, UpstreamOptions]:
    """Port and options from a command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.upstream")
    parser.add_argument("--port", type=int, default=9000)
    for each in fields(UpstreamOptions):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default)
    args = vars(parser.parse_args(arguments))
    port = args.pop("port")
    if args["fault"] not in FAULTS:
        parser.error(f"--fault is one of {', '.join(FAULTS[1:])}")
    return port, UpstreamOptions(**args)
