"""Heads as bytes: status lines made once, the date once a second, and the lines that belong to one exchange."""

from __future__ import annotations

import random
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from proxy.access.limits_reservation import UNLIMITED
from proxy.accounting.report import Report
from proxy.clock import Clock
from proxy.exchange import Exchange
from proxy.policy.shaped import Shaped
from proxy.protocol.answer import AnswerHead, render_headers, spread_retry_after

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_REASONS[499] = b"Client Closed Request"
_REASONS[529] = b"Overloaded"

STATUS_LINES: Final = {
    code: b"HTTP/1.1 %d %b\r\n" % (code, _REASONS.get(code, b"")) for code in range(100, 1000)
}

# What `Cache-Status` (RFC 9211) says for each role; `stored` and `detail` are added where they apply.
_CACHE_STATUS: Final = {
    "leader": "cache-status: sameflight; fwd=miss",
    "follower": "cache-status: sameflight; fwd=miss; collapsed",
    "alone": "cache-status: sameflight; fwd=bypass",
    "pattern": "cache-status: sameflight; hit",
}

# As text and encoded at the end: a quarter quicker than as bytes, and so is ``%`` than its successors.
_EXCHANGE_LINES: Final = (
    "x-sameflight-request-id: %s\r\n%sx-response-time: %.1fms\r\n"
    "server-timing: queue;dur=%.2f, upstream;dur=%.2f, proxy;dur=%.2f%s\r\n"
)


# What a quoted string may not hold (RFC 9110, 5.6.4).
_NOT_QUOTABLE: Final = dict.fromkeys((*range(32), 127, ord('"'), ord("\\")), "?")


class DateLine:
    """``date: …`` for the current second."""

    __slots__ = ("_clock", "_line", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0
        self._line = b""

    def get(self, now: float) -> bytes:
        """``now`` is monotonic; the other clock is asked when the second is over."""
        if now >= self._until:
            wall = self._clock.wall()
            second = int(wall)
            self._until = now + 1.0 - (wall - second)
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


def exchange_lines(exchange: Exchange, now: float) -> bytes:
    """The header lines of one exchange: who it is, how it met the cache and the others, how long it took."""
    report = exchange.facts
    total_ms = (now - exchange.received_at) * 1e3
    queue_ms, upstream_ms = (0.0, 0.0) if report is None else _shares(exchange, report, now)
    lines = _EXCHANGE_LINES % (
        exchange.request_id,
        _cache_status(exchange, report),
        total_ms,
        queue_ms,
        upstream_ms,
        max(0.0, total_ms - queue_ms - upstream_ms),
        "" if report is None or report.answered_by is None else _choice(report, report.answered_by.id),
    )
    return lines.encode() if exchange.shaped is None else (lines + _shaped_lines(exchange.shaped)).encode()


def _shaped_lines(shaped: Shaped) -> str:
    """What policies made of the request."""
    lines = ""
    if shaped.tier:
        reasons = "+".join(shaped.tier_why) or "none"
        lines = f"x-sameflight-tier: {shaped.tier}; why={reasons}{'; shadow' if shaped.shadow else ''}\r\n"
    if shaped.pruned_messages or shaped.slimmed_tokens:
        tokens = shaped.pruned_tokens + shaped.slimmed_tokens
        summary = "; summary" if shaped.summarised else ""
        lines += f"x-sameflight-pruned: messages={shaped.pruned_messages}; tokens={tokens}{summary}\r\n"
    if shaped.flagged:
        lines += f"x-sameflight-flagged: {', '.join(shaped.flagged)}\r\n"
    return lines


def _choice(report: Report, target: str) -> str:
    """Whose answer it is and how many were asked, where the catalog had a choice."""
    name = target.translate(_NOT_QUOTABLE) if target.isascii() else ascii(target).translate(_NOT_QUOTABLE)
    return f', target;desc="{name}", attempts;desc="{len(report.tries)}"'


def _cache_status(exchange: Exchange, report: Report | None) -> str:
    role = exchange.role
    detail = exchange.detail
    if role == "hit":
        line = f"age: {int(exchange.hit_age_s)}\r\ncache-status: sameflight; hit; ttl={int(exchange.hit_ttl_s)}"
    else:
        base = _CACHE_STATUS.get(role)
        if base is None:
            return ""
        line = base
        if exchange.released:
            line += "; collapsed=?0"
        if report is not None:
            if report.stored:
                line += "; stored"
            detail = detail or report.remark
    return f"{line}; detail={detail}\r\n" if detail else line + "\r\n"


def _shares(exchange: Exchange, report: Report, now: float) -> tuple[float, float]:
    """Milliseconds in the queue (until the request was sent upstream) and upstream (until the answer's head)."""
    if exchange.role == "hit" or not report.request_sent_at:
        return 0.0, 0.0
    # A follower that came late waited only for what was left of the call.
    sent_at = max(report.request_sent_at, exchange.received_at)
    joined_at = exchange.joined_at
    queue_ms = (sent_at - joined_at) * 1e3 if joined_at and sent_at > joined_at else 0.0
    return queue_ms, max(0.0, ((report.head_at or now) - sent_at) * 1e3)


def is_bodyless(method: str, status: int) -> bool:
    """Whether a response has no body whatever its headers say (RFC 9110, 6.4.1)."""
    return method == "HEAD" or status in (204, 304)


def answer_head(
    exchange: Exchange, head: AnswerHead, framing: bytes, *, date: bytes, leads: bool, now: float
) -> bytes:
    """The whole head of one response: everybody's lines, the leader's, the exchange's own, the framing. A caller with
    limits of its own is told of those and not of the upstream's."""
    block, leader_block = head.block, head.leader_block if leads else b""
    if exchange.reservation is not UNLIMITED and (limits := exchange.reservation.header_lines()):
        block, leader_block = (head.lines_without_limits() if leads else block), limits
    return b"".join(
        (
            STATUS_LINES[head.status],
            block,
            leader_block,
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
