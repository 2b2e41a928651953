"""The proxies that are measured, each started on a core of its own before the same upstream."""

from __future__ import annotations

from collections.abc import Callable

from loadtests.peers import envoy, litellm, naive, nginx, portkey, sameflight
from loadtests.peers.base import Running, Setup, direct

Start = Callable[[Setup], Running]

PEERS: dict[str, Start] = {
    "sameflight": sameflight.start,
    "nginx": nginx.start,
    "envoy": envoy.start,
    "naive": naive.start,
    "litellm": litellm.start,
    "portkey": portkey.start,
}
ON_DEMAND = ("litellm", "portkey")
"""Large, and installed from their registries; only with ``--with``."""

__all__ = ["ON_DEMAND", "PEERS", "Running", "Setup", "Start", "direct"]
