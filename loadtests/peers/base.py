"""What a peer is given, and what stands for it while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loadtests.process import Child


class UnavailableError(Exception):
    """A peer that is not installed here."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One peer's place in one scenario."""

    upstream_port: int
    core: int
    folder: Path
    """For configuration, logs and caches; empty at the start."""
    tls: bool = False
    """The upstream speaks TLS, with a certificate for ``localhost`` of `ca_file`."""
    ca_file: str = ""
    caches: bool = False
    """The peer keeps answers, if it can."""
    flags: tuple[str, ...] = ()
    """More flags for our own process, which win over the usual ones."""

    @property
    def upstream_url(self) -> str:
        return f"https://localhost:{self.upstream_port}" if self.tls else f"http://127.0.0.1:{self.upstream_port}"


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that answers on ``port``; ``child`` is missing for the upstream itself."""

    name: str
    port: int
    child: Child | None = None
    admin_port: int = 0
    headers: tuple[str, ...] = ()
    """What its callers have to send so that it does what the scenario is about."""

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()


def direct(port: int) -> Running:
    """No proxy at all: the line that everything is compared with."""
    return Running("direct", port)
