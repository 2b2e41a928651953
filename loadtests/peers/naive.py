"""The proxy one writes in an afternoon: an aiohttp application that asks with a ClientSession."""

from __future__ import annotations

from loadtests.peers.base import Running, Setup
from loadtests.process import Child, free_port, run_python


def start(setup: Setup) -> Running:
    port = free_port()
    command = run_python("loadtests.peers.naive_proxy", str(port), setup.upstream_url, setup.ca_file)
    child = Child("naive", command, setup.core, setup.folder / "naive.log")
    child.start()
    try:
        child.wait_for(port)
    except RuntimeError:
        child.stop()
        raise
    return Running("naive", port, child)
