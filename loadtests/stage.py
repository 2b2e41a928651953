"""What every scenario stands on: an upstream, peers, loads, and the rows they make.

Proxies run on one core, upstream and load on another. Peers take turns in every round, in reverse order every other
round, so that a drift of the machine meets them all.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import ssl as tls
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from loadtests import machine
from loadtests.drive.spec import Result, Spec
from loadtests.peers import ON_DEMAND, PEERS, Running, Setup, direct
from loadtests.peers.base import UnavailableError
from loadtests.process import Child, clean_environment, fetch_json, free_port, run_python
from loadtests.rows import Row
from loadtests.upstream.options import UpstreamOptions

_DRIVE_MARGIN_S = 120.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done; ``--quick`` is the smaller one."""

    quick: bool
    rounds: int
    requests: int
    """Of one closed loop of small requests; 20,000 make a CPU clock of 10 ms exact to a percent or two."""
    closed_s: float
    """A closed loop ends after this time, however many requests are left: a slow peer's seconds of CPU are exact
    enough before its requests are."""
    soak_s: float
    limit_s: float
    """After this time no further scenario is begun; after a scenario's share of it, none of its further rounds."""

    def choose(self, quick: T, full: T) -> T:
        return quick if self.quick else full


QUICK = Scale(quick=True, rounds=2, requests=20_000, closed_s=3.0, soak_s=12.0, limit_s=240.0)
FULL = Scale(quick=False, rounds=5, requests=60_000, closed_s=60.0, soak_s=1800.0, limit_s=math.inf)


_BUSY: Final = 0.9
"""Share of their core from which load and provider are a limit of their own."""


class Upstream(NamedTuple):
    """The running provider."""

    port: int
    child: Child
    ca_file: str = ""

    def stats(self) -> dict[str, int]:
        return self._ask("GET", "/__stats")

    def reset(self) -> None:
        self._ask("POST", "/__reset")

    def set_fault(self, fault: str) -> None:
        """Of the calls from now on; empty for none."""
        self._ask("POST", f"/__fault/{fault}")

    def _ask(self, method: str, path: str) -> dict[str, int]:
        context = tls.create_default_context(cafile=self.ca_file) if self.ca_file else None
        found: dict[str, int] = fetch_json(self.port, path, method, context)
        return found


class Stage:
    """One run: makes processes, drives loads, collects rows."""

    # The mutable state: what this run found, as named below; the numbers of the next question and folder.
    def __init__(
        self,
        scale: Scale,
        folder: Path,
        cores: tuple[int, int],
        extra_peers: Sequence[str],
        say: Callable[[str], None],
    ) -> None:
        self.scale = scale
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.loads: dict[str, dict[str, object]] = {}
        """What was asked, by scenario and variant."""
        self.latencies: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
        self.series: dict[str, list[tuple[float, float]]] = {}
        self.scenario = ""
        self._folder = folder
        self._core, self._load_core = cores
        self._extra_peers = tuple(extra_peers)
        self._say = say
        self._number = 0
        self._folders = itertools.count(1)
        self._began_at = time.monotonic()
        self._due_s = math.inf

    def rounds(self, most: int | None = None) -> Iterator[int]:
        """The rounds of one variant: at least one, and no further one when time is up."""
        for number in range(self.scale.rounds if most is None else most):
            if number and time.monotonic() - self._began_at > self._due_s:
                self.note("fewer rounds, as time was short")
                return
            yield number

    def enter(self, scenario: str, share: float) -> bool:
        """Begin a scenario; ``share`` of the whole time may be over at its end. ``False`` if time is up already."""
        self.scenario = scenario
        self._due_s = share * self.scale.limit_s
        if time.monotonic() - self._began_at > self.scale.limit_s:
            self.note("left out, as time was up")
            return False
        return True

    # -- processes -------------------------------------------------------------------------------------------

    @contextmanager
    def upstream(self, *, secure: bool = False, port: int = 0, **options: float | str) -> Iterator[Upstream]:
        """The provider with these options (`UpstreamOptions`), on a port of its own unless told."""
        folder, port = self._make_folder(), port or free_port()
        ca_file = ""
        if secure:
            ca_file, options["cert"] = make_certificate(folder)
        settings = UpstreamOptions(**options)  # type: ignore[arg-type]  # checked there
        command = run_python("loadtests.upstream", "--port", str(port), *settings.arguments())
        with Child("upstream", command, self._load_core, folder / "upstream.log") as child:
            child.wait_for(port)
            yield Upstream(port, child, ca_file)

    @contextmanager
    def peers(self, names: Sequence[str], upstream: Upstream, *, caches: bool = False) -> Iterator[list[Running]]:
        """These peers, as far as they are installed; ``direct`` is the upstream itself."""
        wanted = [*names, *self._extra_peers] if "sameflight" in names and not caches else list(names)
        with ExitStack() as stack:
            running = []
            for name in wanted:
                if name == "direct":
                    running.append(direct(upstream.port))
                    continue
                try:
                    peer = self.start(name, upstream, caches=caches)
                except UnavailableError as error:
                    self.note(f"{name} is left out: {error}")
                    continue
                stack.callback(peer.stop)
                running.append(peer)
            yield running

    def start(
        self, name: str, upstream: Upstream, *, caches: bool = False, flags: Sequence[str] = ()
    ) -> Running:
        """One peer, to be stopped by the caller. Raises ``UnavailableError``."""
        folder = self._make_folder()
        secure = bool(upstream.ca_file)
        setup = Setup(upstream.port, self._core, folder, secure, upstream.ca_file, caches, tuple(flags))
        return PEERS[name](setup)

    def make_folder(self) -> Path:
        """An empty folder that lives as long as the run."""
        return self._make_folder()

    def _make_folder(self) -> Path:
        folder = self._folder / str(next(self._folders))
        folder.mkdir(parents=True)
        return folder

    # -- loads -----------------------------------------------------------------------------------------------

    def number(self, spec: Spec) -> Spec:
        """The spec with questions that nobody has asked in this run."""
        first = self._number
        self._number += max(spec.requests, spec.connections, spec.distinct) + 1
        return replace(spec, first_number=first)

    def drive(self, spec: Spec) -> Result:
        """Run one load to its end. Raises ``RuntimeError`` if it fails."""
        return self.begin(spec).end()

    def begin(self, spec: Spec) -> Drive:
        """Start a load and return."""
        folder = self._make_folder()
        path = folder / "spec.json"
        path.write_text(spec.dump(), "utf-8")
        return Drive(path, self._load_core, spec.seconds + _DRIVE_MARGIN_S)

    def measure(
        self, variant: str, peers: Sequence[Running], spec: Spec, upstream: Upstream, *, warm: float = 0.1
    ) -> None:
        """One row for each peer and round: what the load saw, and what the peer spent on it."""
        self.describe(variant, spec)
        for peer in peers:
            if warm:
                few = max(1, int(spec.requests * warm))
                self.drive(self.aim(replace(spec, requests=max(few, spec.distinct)), peer))
        for number in self.rounds():
            for peer in peers if number % 2 == 0 else peers[::-1]:
                self.take(variant, peer, number, self.aim(spec, peer), upstream)

    def aim(self, spec: Spec, peer: Running) -> Spec:
        """The spec for one peer. Repeated questions stay the same, others are new."""
        aimed = replace(spec, port=peer.port, headers=spec.headers + peer.headers)
        return aimed if spec.distinct or spec.arrivals else self.number(aimed)

    def take(self, variant: str, peer: Running, number: int, spec: Spec, upstream: Upstream) -> Row:
        """One load, measured."""
        upstream.reset()
        before_s = peer.child.cpu_s() if peer.child is not None else 0.0
        provider_s, stolen_s, began_at = upstream.child.cpu_s(), machine.read_stolen_s(), time.monotonic()
        result = self.drive(spec)
        spent_s = peer.child.cpu_s() - before_s if peer.child is not None else None
        provider_s, stolen_s = upstream.child.cpu_s() - provider_s, machine.read_stolen_s() - stolen_s
        busy = (result.figures["load_cpu_s"] + provider_s) / max(result.figures["seconds"], 0.1)
        if busy > _BUSY and spec.mode != "closed":
            self.note(f"{variant}, {peer.name}: load and provider needed their whole core; delays are theirs as well")
        more = {"load_busy": busy, "stolen": stolen_s / (time.monotonic() - began_at)}
        return self.add(variant, peer, number, result, spent_s, upstream.stats(), **more)

    def add(
        self,
        variant: str,
        peer: Running,
        number: int,
        result: Result,
        spent_s: float | None,
        stats: dict[str, int],
        **more: float,
    ) -> Row:
        figures = {**result.figures, "upstream_calls": float(stats["calls"]), **more}
        if spent_s is not None:
            if figures.get("answered"):
                figures["cpu_us_per_request"] = spent_s * 1e6 / figures["answered"]
            if figures.get("events"):
                figures["cpu_us_per_event"] = spent_s * 1e6 / figures["events"]
        if peer.child is not None:
            figures["rss_mb"] = peer.child.rss_bytes() / 1e6
        if figures.get("failed"):
            self.note(f"{variant}, {peer.name}, round {number}: failures {result.failures}")
        if result.latency:
            self.latencies[(self.scenario, variant, peer.name)] = result.latency
        return self.record(variant, peer.name, number, figures, result.failures)

    def record(
        self, variant: str, peer: str, number: int, figures: dict[str, float], failures: dict[str, int] | None = None
    ) -> Row:
        row = Row(self.scenario, variant, peer, number, figures, failures or {})
        self.rows.append(row)
        self._say(f"  {variant:<16} {peer:<11} {_shorten(figures)}")
        return row

    def describe(self, variant: str, spec: Spec, **more: object) -> None:
        """Keep what was asked for the report."""
        told = json.loads(spec.dump())
        for name in ("port", "arrivals", "first_number"):
            told.pop(name)
        self.loads.setdefault(self.scenario, {})[variant] = {**told, **more}

    def note(self, text: str) -> None:
        """Something that a reader of the report has to know; told once."""
        line = f"{self.scenario}: {text}"
        if line not in self.notes:
            self.notes.append(line)
            self._say(f"  note: {text}")


class Drive:
    """A load that is under way."""

    # The mutable state: the process until `end`.
    def __init__(self, path: Path, core: int, within_s: float) -> None:
        before = os.sched_getaffinity(0)
        self._within_s = within_s
        os.sched_setaffinity(0, {core})
        try:
            self._process = subprocess.Popen(
                run_python("loadtests.drive", f"@{path}"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=clean_environment(),
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, before)

    def end(self) -> Result:
        """Wait for the result. Raises ``RuntimeError`` if there is none."""
        try:
            out, errors = self._process.communicate(timeout=self._within_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise RuntimeError("a load did not end") from None
        except BaseException:
            self.stop()
            raise
        if self._process.returncode:
            raise RuntimeError(f"a load failed:\n{errors.decode(errors='replace')[-2000:]}")
        data = json.loads(out)
        data["latency"] = [(value, count) for value, count in data["latency"]]
        return Result(**data)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Watch:
    """Samples a process while something else goes on. Use as a context manager."""

    # The mutable state: the samples, written by the watching thread until the end.
    def __init__(self, child: Child, every_s: float = 0.1) -> None:
        self._child = child
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.started_at = time.monotonic()
        self.samples: list[tuple[float, int, int]] = []
        """Seconds since the start, resident bytes, open files."""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            since_s = time.monotonic() - self.started_at
            self.samples.append((since_s, self._child.rss_bytes(), self._child.open_files()))
            if self._over.wait(self._every_s):
                return

    @property
    def peak_rss_bytes(self) -> int:
        return max((rss for _, rss, _ in self.samples), default=0)


def make_certificate(folder: Path) -> tuple[str, str]:
    """A fresh authority and a certificate of it for loopback; the paths of both."""
    import trustme

    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    ca_file, cert = folder / "ca.pem", folder / "server.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    server.private_key_and_cert_chain_pem.write_to_path(str(cert))
    return str(ca_file), str(cert)


def _shorten(figures: dict[str, float]) -> str:
    shown = (
        "requests_per_s", "cpu_us_per_request", "cpu_us_per_event", "latency_p50_ms", "latency_p99_ms",
        "first_event_p99_ms", "calls_over_oracle", "ready_s", "idle_rss_mb", "failed",
    )  # fmt: skip
    return "  ".join(f"{name} {figures[name]:.4g}" for name in shown if name in figures)


__all__ = ["FULL", "ON_DEMAND", "QUICK", "Drive", "Scale", "Stage", "Upstream", "Watch"]
