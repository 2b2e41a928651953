"""Targets that fail, are slow or dead, under one name: what do callers notice, what do the upstreams bear?"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple

from loadtests.drive.spec import CREDENTIAL, Result, Spec, make_model
from loadtests.peers import Running
from loadtests.process import fetch_json
from loadtests.stage import Drive, Stage, Upstream

ABOUT = (
    "Distinct requests, open loop, to a model of three targets in turn. Trio: one fails 10 % of its calls, one takes "
    "0.3 s, one is dead: it refuses connections, hangs, or begins to hang in the middle; patience for the first byte "
    "is 1 s. Sweep: three alike that fail a share of their calls. Then: streams whose upstreams break off; a dead "
    "target that comes back; a catalog that is written anew each second, each fourth time broken; 1,000 models of "
    "five targets at five providers beside no catalog. Extra load is calls at the upstreams ÷ requests − 1. Each "
    "piece of an answer names its upstream and its question, so that an answer made of two is found."
)
_MODEL: Final = "gpt-4o-mini"
_SLOW_MS: Final = 300.0
_FIRST_BYTE_S: Final = 1.0
_MODELS: Final = 1000
_PROVIDERS: Final = 5
_MOST_RETURN_S: Final = 60.0
_SERIES: Final = re.compile(r"^sameflight_(\w+_total)({[^}]*})? ([\d.e+]+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(?:gate|reason)="(\w+)"')

Bases = Mapping[str, str]
"""Name of a provider → its base URL."""


def run(stage: Stage) -> None:
    with ExitStack() as stack:
        fast = [stack.enter_context(stage.upstream(latency_ms=5.0, mark=mark)) for mark in "abc"]
        slow = stack.enter_context(stage.upstream(latency_ms=_SLOW_MS, mark="slow"))
        # It takes as long as an ejection, so the others are measured meanwhile.
        returning = stack.enter_context(_Return(stage, fast))
        _fail(stage, fast, slow)
        _reload(stage)
        _route(stage)
        returning.record()
    mixed = sum(row.figures.get("mixed", 0.0) for row in stage.rows if row.scenario == stage.scenario)
    stage.record("all answers", "sameflight", 0, {"mixed": mixed})


# -- catalogs and what runs with them --------------------------------------------------------------------------


def _write(path: Path, bases: Bases, models: Mapping[str, Mapping[str, Any]]) -> None:
    """A catalog in which the load's credential stands for the operator's keys, replaced in one step. JSON is YAML."""
    providers = {name: {"kind": "openai", "base_url": url, "api_key": "sk-target"} for name, url in bases.items()}
    _replace(path, json.dumps({"providers": providers, "models": models, "placeholder_keys": [CREDENTIAL]}))


def _replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def _spread(bases: Bases, model: str = _MODEL, strategy: str = "round_robin") -> dict[str, Any]:
    targets = [f"{name}/{model}" for name in bases]
    return {"strategy": strategy, "targets": targets, "first_byte_s": _FIRST_BYTE_S}


def _url(upstream: Upstream, path: str = "") -> str:
    return f"http://127.0.0.1:{upstream.port}{path}"


@contextmanager
def _proxy(stage: Stage, upstream: Upstream, bases: Bases) -> Iterator[tuple[Running, Path]]:
    """This proxy with the load's one model at all of ``bases``, and the file of its catalog."""
    path = stage.make_folder() / "catalog.yaml"
    _write(path, bases, {_MODEL: _spread(bases)})
    peer = stage.start("sameflight", upstream, flags=("--config", str(path)))
    try:
        yield peer, path
    finally:
        peer.stop()


class _Case(NamedTuple):
    """One load on one proxy before some targets."""

    variant: str
    name: str
    """Of its calls, as the upstreams count them."""
    bases: Bases
    spec: Spec
    percent: int = -1
    """Of the calls of a sweep that fail."""


def _run_together(
    stage: Stage, cases: Sequence[_Case], upstreams: Sequence[Upstream], meanwhile: Callable[[], None]
) -> list[tuple[Running, Result, dict[str, float]]]:
    """All at the same time, each with a proxy of its own: proxy, result, and what it means for the upstreams."""
    with ExitStack() as stack:
        peers = [stack.enter_context(_proxy(stage, upstreams[0], case.bases))[0] for case in cases]
        drives = [_begin(stage, stack, case.spec, peer) for case, peer in zip(cases, peers, strict=True)]
        meanwhile()
        results = [drive.end() for drive in drives]
        stats = [upstream.stats() for upstream in upstreams]
        found = []
        for case, peer, result in zip(cases, peers, results, strict=True):
            calls = sum(each.get(f"calls as {case.name}", 0) for each in stats)
            found.append((peer, result, _judge(result, calls, _read_series(peer))))
        return found


def _begin(stage: Stage, stack: ExitStack, spec: Spec, peer: Running) -> Drive:
    """A load that ends with ``stack`` at the latest."""
    drive = stage.begin(stage.aim(spec, peer))
    stack.callback(drive.stop)
    return drive


def _judge(result: Result, calls: int, told: Mapping[str, float]) -> dict[str, float]:
    """What was shed is neither asked nor failed here: a starved core says nothing about targets."""
    figures = result.figures
    shed = told.get("shed_total", 0.0)
    asked = max(1.0, figures["asked"] - shed)
    return {
        "upstream_calls": float(calls),
        "success_percent": 100 * figures["answered"] / asked,
        "failure_share": max(0.0, figures["failed"] - shed) / asked,
        "extra_load": calls / asked - 1,
        "retries": told.get("upstream_retries_total", 0.0) - told.get("upstream_retries_total crowded", 0.0),
        "denied_by_share": told.get("upstream_retries_denied_total share", 0.0),
        "denied_by_tokens": told.get("upstream_retries_denied_total tokens", 0.0),
        "shed": shed,
    }


def _read_series(peer: Running) -> dict[str, float]:
    """The counters of the process, each added up over its labels, and by the first that is a gate or a reason."""
    connection = HTTPConnection("127.0.0.1", peer.admin_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found: dict[str, float] = {}
    for name, labels, value in _SERIES.findall(text):
        label = _LABEL.search(labels)
        for each in (name, f"{name} {label[1]}") if label is not None else (name,):
            found[each] = found.get(each, 0.0) + float(value)
    return found


# -- targets that fail -----------------------------------------------------------------------------------------


def _fail(stage: Stage, fast: Sequence[Upstream], slow: Upstream) -> None:
    """The trios, streams that break off, and the sweep. Each has a proxy of its own, as what one has learned would
    spoil the next; as many run at the same time as leave half of their core idle."""
    with _dead_port() as port:
        refused, hung, died, cut = _make_trios(stage, fast, slow, f"http://127.0.0.1:{port}")
        sweep = _make_sweep(stage, fast)
        if stage.scale.quick:
            batches = [[refused, died, cut, *sweep]]
        else:
            batches = [[refused, hung, died, cut], *(sweep[at : at + 4] for at in range(0, len(sweep), 4))]
        for batch in batches:
            _take(stage, batch, [*fast, slow], dying=fast[2] if died in batch else None)
    for start, figures in (("trio,", ("failure_share", "extra_load")), ("all fail", ("extra_load",))):
        rows = [row for row in stage.rows if row.scenario == stage.scenario and row.variant.startswith(start)]
        worst = {name: max(row.figures[name] for row in rows) for name in figures}
        stage.record(f"{start.rstrip(',')}, worst", "sameflight", 0, worst)


def _make_trios(stage: Stage, fast: Sequence[Upstream], slow: Upstream, refusing: str) -> list[_Case]:
    """The dead one refuses, hangs, or begins to hang; and streams that break off when they have begun."""
    seconds = stage.scale.choose(7.0, 60.0)
    rate = stage.scale.choose(100.0, 150.0)
    whole = Spec("marked", 0, connections=256, rate=rate, requests=int(rate * seconds), seconds=seconds)
    streams = Spec("marked", 0, connections=64, rate=30.0, requests=int(30 * seconds), seconds=seconds, stream=True)
    dead = {
        "refused": ("trio, dead one refuses", refusing),
        "hung": ("trio, dead one hangs", _url(fast[1], "/as-hung-100-hang")),
        "died": ("trio, one dies midway", _url(fast[2], "/as-died")),
    }
    cases = []
    for name, (variant, url) in dead.items():
        bases = {"failing": _url(fast[0], f"/as-{name}-10-500"), "slow": _url(slow, f"/as-{name}"), "dead": url}
        cases.append(_Case(variant, name, bases, whole))
    cut = {f"cut-{mark}": _url(each, "/as-cut-30-cut") for mark, each in zip("abc", fast, strict=True)}
    return [*cases, _Case("streams cut off", "cut", cut, streams)]


def _make_sweep(stage: Stage, fast: Sequence[Upstream]) -> list[_Case]:
    seconds, rate = stage.scale.choose((7.0, 60.0), (40.0, 100.0))
    spec = Spec("marked", 0, connections=64, rate=rate, requests=int(rate * seconds), seconds=seconds)
    cases = []
    for percent in stage.scale.choose((0, 10, 50, 100), tuple(range(0, 101, 10))):
        path = f"/as-sweep{percent}-{percent}-500"
        bases = {f"alike-{mark}": _url(each, path) for mark, each in zip("abc", fast, strict=True)}
        cases.append(_Case(f"all fail {percent} %", f"sweep{percent}", bases, spec, percent))
    return cases


def _take(stage: Stage, cases: Sequence[_Case], upstreams: Sequence[Upstream], dying: Upstream | None) -> None:
    """Run these cases, and put down what they found."""

    def die() -> None:
        time.sleep(cases[0].spec.seconds / 2)
        if dying is not None:
            dying.set_fault("hang")

    try:
        found = _run_together(stage, cases, upstreams, die)
    finally:
        if dying is not None:
            dying.set_fault("")
    for case, (peer, result, more) in zip(cases, found, strict=True):
        stage.describe(case.variant, case.spec)
        if more["shed"]:
            stage.note(
                f"{case.variant}: the core was starved and {more['shed']:.0f} requests shed; they do not count"
            )
        figures = {**result.figures, **more}
        if case.percent >= 0:
            figures |= {"fault_percent": float(case.percent), "extra_load_percent": 100 * more["extra_load"]}
        else:
            stage.latencies[stage.scenario, "trio and streams", case.variant] = result.latency
        stage.record(case.variant, peer.name, 0, figures, result.failures)


@contextmanager
def _dead_port() -> Iterator[int]:
    """A port that refuses connections: it is taken, and nobody listens on it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


# -- a dead target comes back ----------------------------------------------------------------------------------


class _Return:
    """A target that nobody listens for at first, under a light load all the while. Use as a context manager."""

    # The mutable state: what the watching thread finds, read once it is over; what runs between `__enter__` and
    # `__exit__`.
    def __init__(self, stage: Stage, fast: Sequence[Upstream]) -> None:
        self._stage = stage
        self._fast = fast
        self._stack = ExitStack()
        self._drive: Drive | None = None
        self._found: dict[str, float] = {}
        self._error: Exception | None = None
        self._told = threading.Event()
        self._over = threading.Event()

    def __enter__(self) -> _Return:
        stage, stack = self._stage, self._stack
        dead = _dead_port()
        port = dead.__enter__()
        bases = {f"well-{mark}": _url(each, "/as-well") for mark, each in zip("ab", self._fast, strict=False)}
        with stack:
            stack.push(dead)
            self._peer, _ = stack.enter_context(
                _proxy(stage, self._fast[0], bases | {"back": f"http://127.0.0.1:{port}"})
            )
            spec = Spec("marked", 0, connections=64, rate=40.0, requests=40 * 37, seconds=37.0)
            stage.describe("dead one comes back", spec)
            self._drive = _begin(stage, stack, spec, self._peer)
            self._stack = stack.pop_all()
        self._thread = threading.Thread(target=self._watch, args=(dead, port), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._stack.close()

    def record(self) -> None:
        """Wait for it, and put it down. Raises ``RuntimeError`` if the target did not come back."""
        assert self._drive is not None
        self._told.wait(2 * _MOST_RETURN_S)
        result = self._drive.end()
        if self._error is not None:
            raise self._error
        figures = {
            **result.figures,
            **self._found,
            "failure_share": result.figures["failed"] / result.figures["asked"],
        }
        self._stage.record("dead one comes back", "sameflight", 0, figures, result.failures)

    def _watch(self, dead: Any, port: int) -> None:
        try:
            ejection_s = self._wait_until("open")["ejected_for_s"]
            time.sleep(0.5)
            dead.__exit__(None, None, None)
            with self._stage.upstream(port=port, latency_ms=5.0, mark="back"):
                back_at = time.monotonic()
                self._wait_until("closed")
                recovery_s = time.monotonic() - back_at
                self._found = {
                    "ejection_s": ejection_s, "recovery_s": recovery_s, "recovery_share": recovery_s / ejection_s,
                }  # fmt: skip
                self._told.set()
                self._over.wait()
        except Exception as error:  # noqa: BLE001 - `record` raises it
            self._error = error
            self._told.set()

    def _wait_until(self, state: str) -> dict[str, Any]:
        """What the process says of the target, once it is in this state. Raises ``RuntimeError``."""
        until = time.monotonic() + _MOST_RETURN_S
        while time.monotonic() < until and not self._over.wait(0.02):
            for target in fetch_json(self._peer.admin_port, "/targets")["targets"]:
                if target["target"] == f"back/{_MODEL}" and target["state"] == state:
                    found: dict[str, Any] = target
                    return found
        raise RuntimeError(f"the target was not {state} within {_MOST_RETURN_S:.0f} s")


# -- reloads under load ----------------------------------------------------------------------------------------


def _reload(stage: Stage) -> None:
    """Whole answers and streams of a second, while their targets come and go."""
    seconds = stage.scale.choose(4.0, 60.0)
    whole = Spec("marked", 0, connections=256, rate=150.0, requests=int(150 * seconds), seconds=seconds)
    streams = Spec("marked", 0, connections=256, rate=20.0, requests=int(20 * seconds), seconds=seconds, stream=True)
    stage.describe("reload, whole", whole)
    stage.describe("reload, streams", streams)
    with ExitStack() as stack:
        one, two = (stack.enter_context(stage.upstream(mark=mark, latency_ms=5.0, pace_ms=10.0)) for mark in "de")
        bases = {"one": _url(one), "two": _url(two)}
        peer, path = stack.enter_context(_proxy(stage, one, bases))
        drives = [_begin(stage, stack, spec, peer) for spec in (whole, streams)]
        good, bad = _rewrite(peer, path, bases, seconds)
        results = [drive.end() for drive in drives]
        told = _read_series(peer)
    for variant, result in zip(("reload, whole", "reload, streams"), results, strict=True):
        stage.record(variant, peer.name, 0, result.figures, result.failures)
    shed = told.get("shed_total", 0.0)
    if shed:
        stage.note(f"reload: the core was starved and {shed:.0f} requests shed; they do not count as dropped")
    figures = {
        "dropped": sum(result.figures["failed"] for result in results) - shed,
        "shed": shed,
        "reloads": float(good),
        "bad_reloads": float(bad),
        "bad_reloads_told": told.get("config_reload_failures_total", 0.0),
    }
    stage.record("reload, both", peer.name, 0, figures)


def _rewrite(peer: Running, path: Path, bases: Bases, seconds: float) -> tuple[int, int]:
    """Another catalog each second: the first target, the second, both, a broken file; how many good and bad ones."""
    assert peer.child is not None
    good = bad = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(1.0)
        turn = (good + bad) % 4
        if turn == 3:
            _replace(path, "models: {gpt-4o-mini: {targets: [nobody/x]")
            bad += 1
        else:
            some = dict([*bases.items()][:1] if turn == 0 else [*bases.items()][1:] if turn == 1 else bases)
            _write(path, some, {_MODEL: _spread(some), f"another-{good}": _spread(some)})
            good += 1
        os.kill(peer.child.pid, signal.SIGHUP)
    return good, bad


# -- what routing costs ----------------------------------------------------------------------------------------


def _route(stage: Stage) -> None:
    """The same requests, for 1,000 models in turn: to the provider of their kind, and by the catalog."""
    seconds = stage.scale.choose(2.0, stage.scale.closed_s)
    spec = Spec("closed", 0, requests=stage.scale.requests, seconds=seconds, models=_MODELS)
    stage.describe("routed", spec, models=_MODELS, providers=_PROVIDERS)
    with ExitStack() as stack:
        upstream = stack.enter_context(stage.upstream())
        bases = {f"provider-{number}": _url(upstream) for number in range(_PROVIDERS)}
        names = [make_model(number) for number in range(_MODELS)]
        catalogs = {"unrouted": {}, "routed": {name: _spread(bases, name, "weighted") for name in names}}
        peers = {}
        for variant, models in catalogs.items():
            path = stage.make_folder() / "catalog.yaml"
            _write(path, bases, models)
            peers[variant] = stage.start("sameflight", upstream, flags=("--config", str(path)))
            stack.callback(peers[variant].stop)
            stage.drive(stage.aim(Spec("closed", 0, requests=2 * _MODELS, models=_MODELS), peers[variant]))
        for number in stage.rounds():
            for variant in ("routed", "unrouted") if number % 2 == 0 else ("unrouted", "routed"):
                stage.take(variant, peers[variant], number, stage.aim(spec, peers[variant]), upstream)
