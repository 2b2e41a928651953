"""What is measured, one file each: ``ABOUT`` says it in a sentence, ``run`` does it on a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from loadtests.scenarios import (
    cold_start,
    distinct,
    failover,
    herd,
    hot_hit,
    keys_required,
    large_bodies,
    many_readers,
    overload,
    slow_readers,
    soak,
    stream_relay,
    tls_upstream,
    zipf,
)
from loadtests.stage import Stage


class Scenario(NamedTuple):
    """One file of this folder."""

    about: str
    run: Callable[[Stage], None]


_MODULES = (
    cold_start, distinct, keys_required, hot_hit, tls_upstream, stream_relay, large_bodies, zipf, herd, failover,
    overload, many_readers, soak, slow_readers,
)  # fmt: skip

SCENARIOS: dict[str, Scenario] = {
    module.__name__.rpartition(".")[2]: Scenario(module.ABOUT, module.run) for module in _MODULES
}
"""In the order in which they run: what takes ten thousand connections comes last."""
