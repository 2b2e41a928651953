"""This proxy as it comes: every default on, the access log written, one process."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

from loadtests.peers.base import Running, Setup
from loadtests.process import Child, free_port, run_python


def start(setup: Setup) -> Running:
    """As it comes from pip."""
    return start_as("sameflight", run_python("proxy"), setup)


def start_as(
    name: str, program: Sequence[str], setup: Setup, environment: Mapping[str, str] | None = None
) -> Running:
    """``program`` with our usual arguments."""
    port, admin_port = free_port(), free_port()
    command = [
        *program,
        "serve",
        *("--port", str(port), "--admin-port", str(admin_port)),
        *("--openai-upstream", setup.upstream_url, "--ca-file", setup.ca_file),
        *("--state-dir", str(setup.folder / "state")),
        # Ten thousand callers of one credential are the scenario, not an abuse.
        *("--max-flights-per-scope", "20000", "--pool-max-connections", "20000", "--max-flights", "20000"),
        # Nor do they need half of the descriptors for upstreams: thousands of them share a call.
        *("--max-connections", str(_most_connections())),
        *setup.flags,
    ]
    # Callers with virtual keys need it; the others bring credentials of their own.
    env = {"OPENAI_API_KEY": "sk-of-the-operator", **(environment or {})}
    child = Child(name, command, setup.core, setup.folder / "sameflight.log", env)
    child.start()
    try:
        child.wait_for(port)
    except RuntimeError:
        child.stop()
        raise
    headers = ("x-sameflight-cache: on",) if setup.caches else ()
    return Running(name, port, child, admin_port, headers)


def _most_connections() -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return max(1_000, most - 2_000) if most != resource.RLIM_INFINITY else 100_000
