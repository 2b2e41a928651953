"""``sameflight bench`` end to end, with tiny loads; nothing here looks at a time."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from proxy.cli.main import run
from proxy.mock import MockOptions, MockUpstream

TINY = ("--requests", "8", "--rate", "400", "--herd", "4", "--connections", "4")
TINY += ("--p50-ms", "60000", "--p99-ms", "60000")


@pytest.fixture
def upstream() -> Iterator[str]:
    """A mock in a thread of its own, as the command brings a loop of its own."""
    loop = asyncio.new_event_loop()
    mock = MockUpstream(MockOptions(latency_ms=100.0, pace_ms=1.0, tokens=3))
    loop.run_until_complete(mock.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield mock.url
    finally:
        asyncio.run_coroutine_threadsafe(mock.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.long
def test_without_an_address_the_proxy_itself_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Mock and proxy are started, every question is answered, and the herds cost one call each."""
    code = run(["bench", *TINY, "--latency-ms", "500", "--json"])
    data = json.loads(capsys.readouterr().out)
    found = {verdict["name"]: verdict["found"] for verdict in data["verdicts"]}

    assert (code, found["failures"], found["hit rate"]) == (0, 0.0, 100.0)
    assert {name: failures for name, failures in data["failures"].items() if failures} == {}


def test_a_gateway_that_shares_nothing_misses_the_hit_rate(upstream: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The upstream as its own gateway: no call is spared, and the command says so."""
    code = run(["bench", upstream, "--upstream", upstream, *TINY])
    printed = capsys.readouterr().out

    assert code == 1
    assert "MISSED  hit rate: 0.00 %" in printed
    assert "met     failures: 0.00 %" in printed


def test_a_gateway_that_leads_elsewhere_is_told_apart(upstream: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --upstream the gateway has to lead to the mock that the command starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = run(["bench", upstream, "--mock-port", str(port), *TINY])

    assert code == 1
    assert f"let the gateway's OpenAI base URL be http://127.0.0.1:{port}/v1" in capsys.readouterr().err


def test_an_address_where_nobody_answers_is_a_failure_that_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Code 1 and one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can, either
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code = run(["bench", url, "--upstream", url, *TINY])

    assert code == 1
    assert capsys.readouterr().err.startswith("sameflight bench: ")


@pytest.mark.parametrize("words", [["ftp://host"], ["--rate", "0"], ["--requests", "none"]])
def test_wrong_use_is_told_by_the_exit_code(words: list[str]) -> None:
    """Before anything is started."""
    assert run(["bench", *words, "--upstream", "http://127.0.0.1:9"]) == 2
