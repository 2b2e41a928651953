"""Heads as bytes: status lines, the date, and the lines of one exchange."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest

from proxy.access.limits_reservation import Reservation
from proxy.accounting.report import Report
from proxy.edge.respond import STATUS_LINES, DateLine, answer_head, exchange_lines, is_bodyless
from proxy.exchange import Exchange
from proxy.protocol.answer import AnswerHead
from tests.fakes.clock import FrozenClock
from tests.unit.edge.rig import head_of


def exchange(role: str = "none") -> Exchange:
    made = Exchange(head_of("/v1/models", "GET"), 1000.0)
    made.role = role
    return made


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (200, b"HTTP/1.1 200 OK\r\n"),
        (429, b"HTTP/1.1 429 Too Many Requests\r\n"),
        (499, b"HTTP/1.1 499 Client Closed Request\r\n"),
        (529, b"HTTP/1.1 529 Overloaded\r\n"),
        (299, b"HTTP/1.1 299 \r\n"),
    ],
)
def test_a_status_line_has_our_own_reason_and_its_blank(status: int, line: bytes) -> None:
    """RFC 9112, 4: the blank before an empty reason is not optional."""
    assert STATUS_LINES[status] == line
    assert len(STATUS_LINES) == 900


def test_the_date_is_made_once_a_second() -> None:
    """And is right (RFC 9110, 5.6.7)."""
    clock = FrozenClock()
    date = DateLine(clock)
    first = date.get(clock.now())
    clock.advance(0.5)
    assert date.get(clock.now()) is first
    clock.advance(0.6)
    second = date.get(clock.now())

    assert second != first
    assert first.startswith(b"date: ")
    assert first.endswith(b" GMT\r\n")
    assert parsedate_to_datetime(second[6:-2].decode()).timestamp() == int(clock.wall())


@pytest.mark.parametrize(
    ("role", "line"),
    [
        ("leader", b"cache-status: sameflight; fwd=miss\r\n"),
        ("follower", b"cache-status: sameflight; fwd=miss; collapsed\r\n"),
        ("alone", b"cache-status: sameflight; fwd=bypass\r\n"),
        ("hit", b"age: 7\r\ncache-status: sameflight; hit; ttl=53\r\n"),
        ("none", b""),
    ],
)
def test_cache_status_says_what_became_of_the_request(role: str, line: bytes) -> None:
    """RFC 9211."""
    made = exchange(role)
    made.hit_age_s, made.hit_ttl_s = 7.9, 53.2
    lines = exchange_lines(made, 1000.25)

    assert line in lines
    assert lines.count(b"cache-status") == (1 if line else 0)
    assert b"x-sameflight-request-id: " + made.request_id.encode() in lines
    assert b"x-response-time: 250.0ms\r\n" in lines


def test_cache_status_has_room_for_what_happened_on_the_way() -> None:
    """Stored, released, and a remark."""
    made = exchange("alone")
    made.released = True
    made.report = Report(1000.0)
    made.report.stored = True
    made.report.remark = "stale-if-error"

    assert b"; collapsed=?0; stored; detail=stale-if-error\r\n" in exchange_lines(made, 1000.0)


def test_timing_is_parted_into_queue_upstream_and_proxy() -> None:
    """What is neither queue nor upstream is ours, and nothing is ever negative."""
    made = exchange("leader")
    made.joined_at = 1000.01
    made.report = Report(1000.0)
    made.report.request_sent_at = 1000.03
    made.report.head_at = 1000.13
    lines = exchange_lines(made, 1000.15)
    late = exchange_lines(made, 1000.0)

    assert b"server-timing: queue;dur=20.00, upstream;dur=100.00, proxy;dur=30.00\r\n" in lines
    assert b"proxy;dur=0.00" in late


@pytest.mark.parametrize(
    ("method", "status", "bodyless"),
    [("HEAD", 200, True), ("GET", 204, True), ("GET", 304, True), ("GET", 200, False), ("POST", 205, False)],
)
def test_which_answers_have_no_body(method: str, status: int, bodyless: bool) -> None:
    """RFC 9110, 6.4.1."""
    assert is_bodyless(method, status) is bodyless


@pytest.mark.parametrize("leads", [True, False])
def test_a_head_is_everybodys_lines_the_leaders_the_exchanges_and_the_framing(leads: bool) -> None:
    """In this order, once each, closed by an empty line."""
    head = AnswerHead(200, [(b"x-all", b"1")], [(b"x-leader", b"2")])
    made = answer_head(exchange(), head, b"content-length: 0\r\n", date=b"date: d\r\n", leads=leads, now=1000.0)
    lines = made.split(b"\r\n")

    assert lines[:2] == [b"HTTP/1.1 200 OK", b"x-all: 1"]
    assert (b"x-leader: 2" in lines) is leads
    assert lines[-3:] == [b"content-length: 0", b"", b""]
    assert made.count(b"\r\n\r\n") == 1


class Told(Reservation):
    """A reservation with lines of its own."""

    def header_lines(self) -> bytes:
        return b"x-ratelimit-limit-requests: 5\r\n"


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("streams", [True, False])
def test_a_caller_with_limits_of_its_own_is_not_told_the_upstreams(leads: bool, streams: bool) -> None:
    """Whether they stand with the leader's lines or, in an answer for one caller, with everybody's."""
    shared = [(b"x-all", b"1"), (b"anthropic-ratelimit-tokens-limit", b"9"), (b"retry-after", b"7")]
    leader = [(b"x-ratelimit-limit-requests", b"9"), (b"openai-processing-ms", b"3")]
    head = AnswerHead(429, shared, leader, streams=streams)
    made = exchange()
    made.reservation = Told(FrozenClock(), (), 0, 0, 0, [])
    lines = answer_head(made, head, b"", date=b"", leads=leads, now=1000.0).split(b"\r\n")

    assert lines.count(b"x-ratelimit-limit-requests: 5") == 1
    assert b"x-ratelimit-limit-requests: 9" not in lines
    assert (b"openai-processing-ms: 3" in lines) is leads
    assert lines.count(b"x-all: 1") == 1
    assert sum(line.startswith(b"retry-after:") for line in lines) == 1
    if leads:
        assert b"anthropic-ratelimit-tokens-limit: 9" not in lines
    assert (b"x-accel-buffering: no" in lines) is streams
