"""The proxies that are measured, each started on a core of its own before the same upstream."""

from __future__ import annotations

from collections.abc import Callable

from loadtests.peers import envoy, litellm, naive, nginx, portkey, sameflight, variants
from loadtests.peers.base import Running, Setup, direct

Start = Callable[[Setup], Running]

PEERS: dict[str, Start] = {
    "sameflight": sameflight.start,
    "nginx": nginx.start,
    "envoy": envoy.start,
    "naive": naive.start,
    "litellm": litellm.start,
    "portkey": portkey.start,
    "aiohttp-lane": variants.start_aiohttp_lane,
    "compiled": variants.start_compiled,
}
ON_DEMAND = ("litellm", "portkey", "aiohttp-lane", "compiled")
"""Large and installed from their registries, or this proxy in another form; only with ``--with``."""

__all__ = ["ON_DEMAND", "PEERS", "Running", "Setup", "Start", "direct"]
