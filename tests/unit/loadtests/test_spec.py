"""What loads are told, and the requests they make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.drive import wrk
from loadtests.drive.spec import Spec, load_spec, make_body, make_renderer, make_source
from loadtests.upstream.answers import make_answers
from loadtests.upstream.answers import make_body as make_answer
from loadtests.upstream.options import UpstreamOptions, read_options
from proxy.cli.bench.load import Target, parse_target


def test_a_spec_crosses_a_process_boundary_unchanged() -> None:
    """As JSON, tuples included."""
    spec = Spec("open", 8080, headers=("a: b",), arrivals=((0.1, 3), (0.2, 4)), stream=True)

    assert load_spec(spec.dump()) == spec


@pytest.mark.parametrize("size", [832, 100_000])
def test_a_body_has_exactly_its_size_whatever_its_number(size: int) -> None:
    """The scenario's bytes are the reported bytes."""
    assert {len(make_body(number, size, stream=True)) for number in (0, 7, 123_456_789)} == {size}


def test_two_numbers_are_two_questions_and_nothing_else_differs() -> None:
    """Distinct requests differ in one text."""
    first, second = json.loads(make_body(1, 832, stream=False)), json.loads(make_body(2, 832, stream=False))
    first["messages"][1]["content"] = first["messages"][1]["content"].replace("1 ", "2 ", 1)

    assert first == second


def test_a_rendered_request_is_the_body_of_its_number_behind_a_head() -> None:
    """The shortcut that fills in the number makes the same bytes."""
    head, _, body = make_renderer(Spec("closed", 1, headers=("x-sameflight-cache: on",)))(42).partition(b"\r\n\r\n")

    assert body == make_body(42, 832, stream=False)
    assert b"\r\nx-sameflight-cache: on\r\ncontent-length: 832" in head


def test_a_source_repeats_only_what_it_is_told_to_repeat() -> None:
    """All new, in a circle, or new with repetitions."""
    new, circle = make_source(Spec("closed", 1)), make_source(Spec("closed", 1, distinct=3))
    mixed = make_source(Spec("closed", 1, mix=0.5))

    assert len({new() for _ in range(50)}) == 50
    assert len({circle() for _ in range(50)}) == 3
    assert 10 < len({mixed() for _ in range(50)}) < 50


def test_the_provider_answers_in_the_size_that_is_asked_for() -> None:
    """The answer of the reference figures has 1,042 bytes."""
    assert len(make_answer(1042)) == 1042


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_a_stream_has_as_many_events_as_asked_for_and_ends_properly(count: int) -> None:
    """The last event is the protocol's own end, in one piece with the last chunk."""
    events = make_answers(UpstreamOptions(events=count)).events

    assert len(events) == count
    assert events[-1] == b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def test_options_of_the_provider_survive_its_command_line() -> None:
    """What a scenario asks for is what the process does."""
    options = UpstreamOptions(latency_ms=12.5, events=7, fault="cut", fault_every=10)

    assert read_options(["--port", "9", *options.arguments()]) == (9, options)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8080", Target("127.0.0.1", 8080)),
        ("127.0.0.1:8080/v1/", Target("127.0.0.1", 8080)),
        ("http://gateway/openai/v1", Target("gateway", 80, None, "/openai")),
    ],
)
def test_a_target_is_a_base_url_with_or_without_its_version(url: str, target: Target) -> None:
    """As users paste it."""
    assert parse_target(url) == target


@pytest.mark.parametrize("url", ["ftp://host", "http://", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """With the address in the message."""
    with pytest.raises(ValueError, match="is no http or https address"):
        parse_target(url)


def test_wrk_sends_the_same_bodies_and_its_summary_becomes_a_result(tmp_path: Path) -> None:
    """Where wrk is installed it stands in for the closed loop."""
    spec = Spec("closed", 8080, headers=("x-sameflight-cache: on",), distinct=10, first_number=500)
    command = wrk.make_command(spec, 5.0, tmp_path / "load.lua")
    script = (tmp_path / "load.lua").read_text("utf-8")
    before, _, after = make_body(0, 832, stream=False).decode().partition("0" * 12)
    result = wrk.read("Running 5s test\nFOUND 1000 2000000 0 1 0 2 0 900.0 4000.0 5000.0 6000.0\n")

    assert command[:4] == ["wrk", "-t1", "-c64", "-d5s"]
    assert before in script
    assert after in script
    assert "500 + number % 10" in script
    assert 'wrk.headers["x-sameflight-cache"] = "on"' in script
    assert (result.figures["requests_per_s"], result.figures["latency_p99_ms"]) == (499.0, 4.0)
    assert result.failures == {"connection lost": 1, "status": 2}


def test_wrk_is_not_asked_for_what_it_cannot_do() -> None:
    """Streams, open loops and mixtures are ours."""
    assert [wrk.is_usable(spec) for spec in (Spec("open", 1), Spec("closed", 1, stream=True))] == [False, False]
