"""Heads as bytes: status lines made once, the date once a second, and the lines that belong to one exchange."""

from __future__ import annotations

import random
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from proxy.clock import Clock
from proxy.exchange import Exchange
from proxy.protocol.answer import AnswerHead, render_headers, spread_retry_after

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_REASONS[499] = b"Client Closed Request"
_REASONS[529] = b"Overloaded"

STATUS_LINES: Final = {
    code: b"HTTP/1.1 %d %b\r\n" % (code, _REASONS.get(code, b"")) for code in range(100, 1000)
}

# What `Cache-Status` (RFC 9211) says for each role; `stored` and `detail` are added where they apply.
_CACHE_STATUS: Final = {
    "leader": b"cache-status: sameflight; fwd=miss",
    "follower": b"cache-status: sameflight; fwd=miss; collapsed",
    "alone": b"cache-status: sameflight; fwd=bypass",
}


class DateLine:
    """``date: …`` for the current second."""

    __slots__ = ("_clock", "_line", "_second")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._line = b""

    def get(self) -> bytes:
        second = int(self._clock.wall())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


def exchange_lines(exchange: Exchange, now: float) -> bytes:
    """The header lines of one exchange: who it is, how it met the cache and the others, how long it took."""
    total_ms = (now - exchange.received_at) * 1e3
    return b"x-sameflight-request-id: %b\r\n%b%b%b" % (
        exchange.request_id.encode(),
        _cache_status(exchange),
        b"x-response-time: %.1fms\r\n" % total_ms,
        _server_timing(exchange, now, total_ms),
    )


def _cache_status(exchange: Exchange) -> bytes:
    role = exchange.role
    detail = exchange.detail
    if role == "hit":
        line = b"age: %d\r\ncache-status: sameflight; hit; ttl=%d" % (
            int(exchange.hit_age_s),
            int(exchange.hit_ttl_s),
        )
    else:
        base = _CACHE_STATUS.get(role)
        if base is None:
            return b""
        line = base
        if exchange.released:
            line += b"; collapsed=?0"
        report = exchange.facts
        if report is not None:
            if report.stored:
                line += b"; stored"
            detail = detail or report.remark
    if detail:
        line += b"; detail=" + detail.encode()
    return line + b"\r\n"


def _server_timing(exchange: Exchange, now: float, total_ms: float) -> bytes:
    """Queue (until the request was sent upstream), upstream (until its head), proxy (everything else)."""
    report = exchange.facts
    queue_ms = upstream_ms = 0.0
    if report is not None and exchange.role != "hit" and report.request_sent_at:
        # A follower that came late waited only for what was left of the call.
        sent_at = max(report.request_sent_at, exchange.received_at)
        head_at = report.head_at or now
        if exchange.joined_at and sent_at > exchange.joined_at:
            queue_ms = (sent_at - exchange.joined_at) * 1e3
        upstream_ms = max(0.0, (head_at - sent_at) * 1e3)
    return b"server-timing: queue;dur=%.2f, upstream;dur=%.2f, proxy;dur=%.2f\r\n" % (
        queue_ms,
        upstream_ms,
        max(0.0, total_ms - queue_ms - upstream_ms),
    )


def is_bodyless(method: str, status: int) -> bool:
    """Whether a response has no body whatever its headers say (RFC 9110, 6.4.1)."""
    return method == "HEAD" or status in (204, 304)


def answer_head(
    exchange: Exchange, head: AnswerHead, framing: bytes, *, date: bytes, leads: bool, now: float
) -> bytes:
    """The whole head of one response: everybody's lines, the leader's, the exchange's own, the framing."""
    return b"".join(
        (
            STATUS_LINES[head.status],
            head.block,
            head.leader_block if leads else b"",
            _retry_after(head, leads=leads) if head.retry_after else b"",
            date,
            exchange_lines(exchange, now),
            framing,
            b"\r\n",
        )
    )


def _retry_after(head: AnswerHead, *, leads: bool) -> bytes:
    """As the upstream said for the leader, up to a quarter later for each of the others."""
    if leads:
        return render_headers(head.retry_after)
    return spread_retry_after(head.retry_after, 1.0 + 0.25 * random.random())  # noqa: S311 - spreads, protects nothing
