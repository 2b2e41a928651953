"""The failover scenario without its processes: marked answers, upstreams that fail by path, figures, picture."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests import report
from loadtests.drive.marked import Marked, run_marked
from loadtests.drive.spec import CREDENTIAL, Result, Spec, make_body, make_renderer
from loadtests.rows import Row
from loadtests.scenarios import failover
from loadtests.upstream.options import UpstreamOptions
from loadtests.upstream.server import Provider
from proxy.cli.bench.load import Target, render_request
from proxy.config.catalog import load_catalog
from proxy.config.settings import Settings


@asynccontextmanager
async def listening(make: Callable[[], asyncio.BaseProtocol]) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Forger(asyncio.Protocol):
    """Answers everything with the same bytes."""

    def __init__(self, body: bytes) -> None:
        self._answer = b"HTTP/1.1 200 OK\r\nx-upstream: [a]\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)


def spec(port: int, *, stream: bool = False) -> Spec:
    return Spec("marked", port, connections=4, rate=1000.0, requests=20, stream=stream, first_number=7)


@pytest.mark.parametrize(("stream", "pace_ms"), [(False, 0.0), (True, 0.0), (True, 1.0)])
async def test_answers_of_one_upstream_to_their_own_questions_are_counted_by_its_name(
    stream: bool, pace_ms: float
) -> None:
    """Whole, streamed in one piece, streamed event by event."""
    options = UpstreamOptions(mark="a", events=4, pace_ms=pace_ms)
    async with listening(Provider(options, asyncio.get_running_loop())) as port:
        found = await run_marked(spec(port, stream=stream))

    assert (found.figures["from_a"], found.figures["mixed"], found.figures["unmarked"]) == (20, 0, 0)
    assert found.figures["answered"] == 20


@pytest.mark.parametrize("body", [b"#000000000001 [a]", b"[a][b]"])
async def test_an_answer_made_of_two_is_found(body: bytes) -> None:
    """To a question that nobody asked, or with the words of two upstreams."""
    async with listening(lambda: Forger(body)) as port:
        found = await run_marked(spec(port))

    assert found.figures["mixed"] == 20
    assert any(name.startswith("mixed, for example") for name in found.failures)


async def test_an_upstream_fails_as_the_path_says_and_counts_by_its_name() -> None:
    """So that one provider can stand behind several proxies, and fail for some of them."""
    provider = Provider(UpstreamOptions(mark="a"), asyncio.get_running_loop())
    body = make_body(1, 500, stream=False)
    async with listening(provider) as port:
        load = Marked(Target("127.0.0.1", port), 1)
        await load.open()
        paths = ("/as-sick-100-500", "/as-well-0-500", "/as-plain", "")
        asked = [render_request(Target("127.0.0.1", port, None, path), "/v1/x", body) for path in paths]
        await load.opened([(0.0, each) for each in asked])
        await load.close()
    stats = provider.stats()

    assert {name: calls for name, calls in stats.items() if name.startswith("calls as")} == {
        "calls as sick": 1, "calls as well": 1, "calls as plain": 1,
    }  # fmt: skip
    assert (stats["calls"], stats["faults"], load.outcome.answered) == (4, 1, 3)
    assert load.outcome.failures == {"500": 1}


def test_requests_for_many_models_name_them_in_turn() -> None:
    """And keep their numbers."""
    render = make_renderer(Spec("closed", 1, models=1000))

    assert render(1042).endswith(make_body(1042, 832, stream=False, model="model-0042"))


def test_what_was_shed_counts_neither_as_asked_nor_as_failed() -> None:
    """A starved core says nothing about targets."""
    result = Result({"asked": 110.0, "answered": 95.0, "failed": 15.0})
    found = failover._judge(result, 105, {"shed_total": 10.0})

    assert (found["failure_share"], found["success_percent"]) == (0.05, 95.0)
    assert found["extra_load"] == pytest.approx(0.05)


def test_the_catalogs_of_the_scenario_are_good_ones(tmp_path: Path) -> None:
    """One that the proxy refuses would measure nothing."""
    bases = {"one": "http://127.0.0.1:1/as-x-10-500", "two": "http://127.0.0.1:2"}
    failover._write(tmp_path / "catalog.yaml", bases, {"m": failover._spread(bases, "m", "weighted")})
    catalog = load_catalog(tmp_path / "catalog.yaml", {}, Settings(), generation=1)

    assert [target.id for target in catalog.models.by_name["m"].targets] == ["one/m", "two/m"]
    assert CREDENTIAL.encode() in catalog.placeholder_keys


def test_the_sweep_is_drawn_from_its_rows() -> None:
    """One picture for the scenario, with both lines."""
    rows = [
        Row(
            "failover", f"all fail {percent} %", "sameflight", 0,
            {"fault_percent": percent, "success_percent": 100.0 - percent, "extra_load_percent": percent / 10},
        )
        for percent in (100.0, 0.0, 50.0)
    ]  # fmt: skip
    pictures = report.draw(SimpleNamespace(rows=rows, notes=[], loads={}, latencies={}, series={}))
    lines = ET.fromstring(pictures["failover-sweep.svg"]).findall("{http://www.w3.org/2000/svg}polyline")

    assert len(lines) == 2
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]
