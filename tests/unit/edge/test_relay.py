"""The relay alone: what is written for which answer, and that every exchange ends exactly once."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending
from proxy.protocol.answer import AnswerHead
from tests.unit.edge.rig import JSON_HEAD, STREAM_HEAD, RelayRig, failed

ERROR = ProxyError(Kind.UPSTREAM_RESET, "The upstream broke off.", detail="secret-detail")


# -- whole answers -------------------------------------------------------------------------------------------


def test_a_whole_answer_leaves_in_one_write_with_its_length() -> None:
    """Head and body together are one system call."""
    rig = RelayRig()
    flight = rig.fly()
    flight.begin(JSON_HEAD)
    flight.append(b'{"a":1}')
    flight.seal(Ending.OK)
    flight.flush()

    assert len(rig.wire.writes) == 1
    assert b"content-length: 7" in rig.wire.head
    assert rig.wire.body == b'{"a":1}'
    assert (rig.wire.closes, rig.wire.aborts, rig.exchange.status, rig.exchange.bytes_out) == (0, 0, 200, 7)
    rig.ended_once("ok")


@pytest.mark.parametrize(("http10", "line"), [(False, b"transfer-encoding: chunked"), (True, b"connection: close")])
def test_an_answer_without_length_is_framed_as_the_client_can_read_it(http10: bool, line: bytes) -> None:
    """Chunks for HTTP/1.1, the end of the connection for HTTP/1.0."""
    rig = RelayRig(http10=http10)
    flight = rig.fly()
    flight.begin(JSON_HEAD)
    flight.append(b"abc")
    flight.flush()
    flight.append(b"de")
    flight.flush()
    flight.seal(Ending.OK)
    flight.flush()

    assert line in rig.wire.head
    assert rig.wire.body == (b"abcde" if http10 else b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert rig.relay.close_after is http10
    rig.ended_once("ok")


@pytest.mark.parametrize(
    ("method", "status", "length", "line"),
    [
        ("HEAD", 200, 10, b"content-length: 10"),
        ("HEAD", 200, None, None),
        ("GET", 304, 10, b"content-length: 10"),
        ("GET", 304, None, None),
        ("GET", 204, 10, None),
    ],
)
def test_an_answer_without_body_has_no_body_and_only_a_true_length(
    method: str, status: int, length: int | None, line: bytes | None
) -> None:
    """RFC 9110, 8.6."""
    rig = RelayRig("/v1/files/f", method)
    flight = rig.fly()
    flight.begin(AnswerHead(status, [], length=length))
    flight.append(b"never sent")
    flight.seal(Ending.OK)
    flight.flush()

    lengths = [each for each in rig.wire.head if each.startswith((b"content-length", b"transfer-encoding"))]
    # A HEAD answer whose bytes did come says how many; nothing else is known of it.
    expected = line if line is not None or status == 204 else b"content-length: 10"
    assert lengths == ([expected] if expected is not None else [])
    assert rig.wire.body == b""
    rig.ended_once("ok")


@pytest.mark.parametrize(("http10", "close_after", "line"), [
    (False, False, None), (False, True, b"connection: close"), (True, False, b"connection: keep-alive"),
    (True, True, b"connection: close"),
])  # fmt: skip
def test_the_connection_header_says_what_becomes_of_it(http10: bool, close_after: bool, line: bytes | None) -> None:
    """HTTP/1.1 keeps by default, HTTP/1.0 has to be told."""
    rig = RelayRig(http10=http10, close_after=close_after)
    rig.relay.answer(JSON_HEAD, b"{}")

    assert [each for each in rig.wire.head if each.startswith(b"connection")] == ([line] if line else [])
    rig.ended_once("ok")


def test_headers_for_the_leader_are_not_for_followers() -> None:
    """Rate limits are those of the one call that was made."""
    head = AnswerHead(200, [(b"x-all", b"1")], [(b"x-ratelimit-remaining-requests", b"7")])
    leader = RelayRig()
    flight = leader.fly()
    follower = RelayRig()
    subscription = leader.table.join(follower.relay, None, key=b"key", scope=b"scope", registers=True, joins=True)
    assert subscription is not None
    follower.relay.attach(subscription, None, False)
    subscription.start()
    flight.begin(head)
    flight.seal(Ending.OK)
    flight.flush()

    assert b"x-ratelimit-remaining-requests: 7" in leader.wire.head
    assert b"x-ratelimit-remaining-requests: 7" not in follower.wire.head
    assert b"x-all: 1" in follower.wire.head


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_an_upstreams_error_is_an_answer_with_another_outcome(status: int) -> None:
    """It is passed on like any other."""
    rig = RelayRig()
    flight = rig.fly()
    flight.begin(AnswerHead(status, []))
    flight.append(b"no")
    flight.seal(Ending.OK)
    flight.flush()

    assert rig.wire.head[0].startswith(b"HTTP/1.1 %d " % status)
    rig.ended_once("upstream_error")


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/chat/completions", b'{"error":{"message":"The upstream broke off."'),
        ("/v1/messages", b'{"type":"error","error":{"type":"api_error"'),
        ("/mistral/v1/chat/completions", b'{"object":"error","message":"The upstream broke off."'),
    ],
)
def test_a_failure_before_the_head_is_an_error_of_ours_in_the_routes_dialect(path: str, words: bytes) -> None:
    """And the connection can go on."""
    rig = RelayRig(path)
    failed(ERROR, rig.fly())

    assert rig.wire.head[0] == b"HTTP/1.1 502 Bad Gateway"
    assert rig.wire.body.startswith(words)
    assert b"secret-detail" not in rig.wire.sent
    assert (rig.wire.closes, rig.relay.close_after) == (0, False)
    rig.ended_once("upstream_failed")


@pytest.mark.parametrize(("http10", "full"), [(False, False), (False, True), (True, False)])
def test_a_failure_inside_the_answer_never_looks_like_its_end(http10: bool, full: bool) -> None:
    """No last chunk; and a reset where a FIN would look like an end, or would never be sent."""
    rig = RelayRig(http10=http10)
    flight = rig.fly()
    flight.begin(JSON_HEAD)
    flight.append(b"abc")
    flight.flush()
    rig.wire.full = full
    failed(ERROR, flight)

    assert not rig.wire.sent.endswith(b"0\r\n\r\n")
    assert (rig.wire.aborts, rig.wire.closes) == ((1, 0) if http10 or full else (0, 1))
    assert rig.relay.close_after
    rig.ended_once("stream_broken")


def test_an_answer_that_is_short_of_its_length_is_cut() -> None:
    """The client counts, and misses some."""
    rig = RelayRig()
    flight = rig.fly()
    flight.begin(AnswerHead(200, [], length=10))
    flight.append(b"abc")
    flight.flush()
    failed(ERROR, flight)

    assert b"content-length: 10" in rig.wire.head
    assert rig.wire.body == b"abc"
    assert rig.wire.closes == 1
    rig.ended_once("stream_broken")


def test_a_second_failure_changes_nothing() -> None:
    """Who comes late finds everything done."""
    rig = RelayRig()
    rig.relay.fail(ERROR)
    before = rig.wire.sent
    rig.relay.fail(ProxyError(Kind.BUG, "Internal error."))
    rig.relay.lost()
    rig.relay.hand_over()
    rig.relay.take(JSON_HEAD, b"x", True)

    assert rig.wire.sent == before
    rig.ended_once("upstream_failed")


def test_a_failure_after_an_upgrade_writes_no_http() -> None:
    """The client speaks another protocol by now."""
    rig = RelayRig("/v1/realtime", "GET")
    rig.exchange.status = 101
    rig.relay.fail(ERROR)

    assert rig.wire.sent == b""
    assert rig.wire.closes == 1
    rig.ended_once("upstream_failed")


# -- patience and heartbeats ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("patience_s", "waits_s"), [(100.0, 99.0), (2.0, 1.9), (0.06, 0.01)])
def test_a_caller_gets_an_answer_a_moment_before_it_hangs_up(patience_s: float, waits_s: float) -> None:
    """PROTOCOL 1.2: five hundredths of its patience, at most a second."""
    rig = RelayRig()
    flight = rig.fly(patience_s=patience_s)
    rig.advance(waits_s - 0.005)
    assert not rig.relay.done
    rig.advance(0.05)

    assert rig.wire.head[0] == b"HTTP/1.1 504 Gateway Timeout"
    assert not flight.subscribers
    assert rig.exchange.error is not None
    assert rig.exchange.error.kind is Kind.PATIENCE


def test_patience_ends_with_the_head() -> None:
    """It is for the answer to begin."""
    rig = RelayRig()
    flight = rig.fly(patience_s=10.0)
    flight.begin(STREAM_HEAD)
    flight.append(b"data: 1\n\n")
    flight.flush()
    rig.advance(100.0)

    assert not rig.relay.done
    assert rig.wire.body == b"9\r\ndata: 1\n\n\r\n"


@pytest.mark.parametrize(
    ("path", "beat"),
    [("/v1/chat/completions", b": keep-alive\n\n"), ("/v1/messages", b'event: ping\ndata: {"type": "ping"}\n\n')],
)
def test_a_stream_that_is_long_in_coming_is_kept_warm(path: str, beat: bytes) -> None:
    """200 and heartbeats, then the stream as if nothing had been; the head is not sent again."""
    rig = RelayRig(path)
    flight = rig.fly(streams=True)
    rig.advance(10.05)
    rig.advance(15.05)
    framed = b"%x\r\n%b\r\n" % (len(beat), beat)
    assert rig.wire.body == framed * 2
    flight.begin(STREAM_HEAD)
    flight.append(b"data: 1\n\n")
    flight.flush()
    rig.advance(60.0)
    flight.seal(Ending.OK)
    flight.flush()

    assert rig.wire.body == framed * 2 + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
    assert rig.wire.sent.count(b"HTTP/1.1") == 1
    rig.ended_once("ok")


def test_a_whole_error_after_heartbeats_is_told_as_an_event_and_cut() -> None:
    """The true status came too late for the status line."""
    rig = RelayRig()
    flight = rig.fly(streams=True)
    rig.advance(10.05)
    flight.begin(AnswerHead(429, [(b"content-type", b"application/json")]))
    flight.append(b'{"error":{"message":"slow ')
    flight.append(b'down","code":"rate_limit_exceeded"}}')
    flight.seal(Ending.OK)
    flight.flush()

    assert b'"slow down"' in rig.wire.body
    assert not rig.wire.sent.endswith(b"0\r\n\r\n")
    assert (rig.wire.closes, rig.exchange.status) == (1, 429)
    rig.ended_once("upstream_error")


def test_a_failure_after_heartbeats_is_told_as_an_event_and_cut() -> None:
    """Also when no head ever came."""
    rig = RelayRig()
    flight = rig.fly(streams=True)
    rig.advance(10.05)
    failed(ERROR, flight)

    assert b"The upstream broke off." in rig.wire.body
    assert rig.wire.sent.count(b"HTTP/1.1") == 1
    assert not rig.wire.sent.endswith(b"0\r\n\r\n")
    assert rig.wire.closes == 1
    rig.ended_once("upstream_failed")


@pytest.mark.parametrize(("http10", "after_s"), [(True, 10.0), (False, 0.0)])
def test_there_are_no_heartbeats_for_http_1_0_nor_where_they_are_switched_off(http10: bool, after_s: float) -> None:
    """Nothing goes out before the answer."""
    rig = RelayRig(http10=http10, heartbeat_after_s=after_s)
    rig.fly(streams=True)
    rig.advance(100.0)

    assert rig.wire.sent == b""


# -- a client that leaves or does not read -------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_is_gone_and_its_flight_ends(begun: bool) -> None:
    """The place on the flight goes with it."""
    rig = RelayRig()
    flight = rig.fly()
    if begun:
        flight.begin(STREAM_HEAD)
        flight.append(b"data: 1\n\n")
        flight.flush()
    rig.relay.lost()

    assert rig.runner.stopped == [flight]
    assert len(rig.table.live) == 0
    assert rig.exchange.error is not None
    rig.ended_once("client_gone")


def test_a_client_that_leaves_after_the_last_event_has_had_its_answer() -> None:
    """Only framing was missing."""
    rig = RelayRig()
    flight = rig.fly()
    flight.begin(STREAM_HEAD)
    flight.append(b"data: [DONE]\n\n")
    flight.finishing = True
    flight.flush()
    rig.relay.lost()

    assert rig.relay.done
    assert rig.exchange.outcome == "ok"
    assert rig.exchange.error is None


def test_a_client_that_leaves_before_anything_was_asked_for_is_only_accounted() -> None:
    """In the phase of its body."""
    rig = RelayRig()
    rig.relay.lost()

    assert rig.wire.sent == b""
    rig.ended_once("client_gone")


def test_a_full_wire_pauses_the_place_on_the_flight_and_an_empty_one_resumes_it() -> None:
    """Nothing is written that cannot leave."""
    rig = RelayRig()
    flight = rig.fly()
    flight.begin(STREAM_HEAD)
    flight.append(b"one")
    flight.flush()
    rig.relay.pause()
    flight.append(b"two")
    flight.flush()
    held = rig.wire.body
    rig.relay.resume()

    assert held == b"3\r\none\r\n"
    assert rig.wire.body == b"3\r\none\r\n3\r\ntwo\r\n"


def test_a_wire_that_is_full_from_before_holds_the_flight_from_its_first_byte() -> None:
    """A pipelined request behind an answer that was not taken yet."""
    rig = RelayRig()
    rig.wire.full = True
    flight = rig.fly()
    flight.begin(STREAM_HEAD)
    flight.append(b"one")
    flight.flush()
    assert rig.wire.sent == b""
    rig.wire.full = False
    rig.relay.resume()

    assert rig.wire.body == b"3\r\none\r\n"


def test_a_released_client_asks_again_and_says_so() -> None:
    """The answer was another caller's alone."""
    rig = RelayRig()
    rig.fly()
    rig.relay.released()

    assert rig.desk.rejoined == [rig.relay]
    assert rig.exchange.released


def test_followers_at_the_live_edge_share_one_framing() -> None:
    """A thousand readers, one chunk."""
    rig = RelayRig()
    data = b"data: 1\n\n"

    assert rig.tools.frame(data) is rig.tools.frame(data)
    assert rig.tools.frame(b"other") == b"5\r\nother\r\n"
    assert rig.tools.frame(data) == b"9\r\ndata: 1\n\n\r\n"
