"""The head of an answer as it stands at the front of a flight: made once, sent to every subscriber.

Its header lines are rendered when it is made, so that a thousand followers cost a thousand joins of ready bytes and
not a thousand renderings.
"""

from __future__ import annotations

from typing import Final

from proxy.protocol.headers import LIMIT_PREFIXES
from proxy.protocol.message import HeaderList

_BUSY: Final = frozenset((429, 503, 529))
_RETRY_AFTER: Final = frozenset((b"retry-after", b"retry-after-ms"))
# What tells an intermediary to hand a stream on byte by byte; sent with every event stream.
_STREAM_LINES = b"cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"


def render_headers(headers: HeaderList) -> bytes:
    """Header lines with their line ends, as on the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class AnswerHead:
    """Status and headers of one answer, without the lines that belong to one exchange. Frozen after construction."""

    __slots__ = (
        "block",
        "leader_block",
        "leader_only",
        "length",
        "request_id",
        "retry_after",
        "shared",
        "status",
        "streams",
    )

    def __init__(
        self,
        status: int,
        shared: HeaderList,
        leader_only: HeaderList | None = None,
        *,
        length: int | None = None,
        streams: bool = False,
    ) -> None:
        self.status = status
        self.shared = shared
        """Headers for everybody; no framing, nothing hop-by-hop."""
        self.leader_only = leader_only or []
        """Headers that describe the one upstream call (rate limits, its processing time)."""
        self.length = length
        """Bytes of the body if the upstream said so."""
        self.streams = streams
        """The body is an event stream."""
        names = dict(shared)
        self.request_id = names.get(b"x-request-id") or names.get(b"request-id", b"")
        self.retry_after: HeaderList = []
        """When to come back, in seconds and milliseconds, where the upstream was busy; not part of ``block``, because
        those who share a refusal must not all return in the same moment."""
        if status in _BUSY:
            self.retry_after = [line for line in shared if line[0] in _RETRY_AFTER and _is_number(line[1])]
            shared = [line for line in shared if line not in self.retry_after]
        self.block = self._render(shared)
        self.leader_block = render_headers(leader_only) if leader_only else b""

    def _render(self, shared: HeaderList) -> bytes:
        return _without_cache_control(shared) + _STREAM_LINES if self.streams else render_headers(shared)

    def lines_without_limits(self) -> bytes:
        """Everybody's lines and the leader's for a caller that is told of limits of its own: without the upstream's,
        which are the proxy's account there."""
        block, leader_block = self.block, self.leader_block
        if any(name.startswith(LIMIT_PREFIXES) for name, _ in self.shared):
            kept = [line for line in self.shared if line not in self.retry_after]
            block = self._render(_without_limits(kept))
        if leader_block:
            leader_block = render_headers(_without_limits(self.leader_only))
        return block + leader_block

    def __repr__(self) -> str:
        kind = "stream" if self.streams else "whole"
        return f"<AnswerHead {self.status} {kind} {len(self.shared)} headers>"


def _without_limits(headers: HeaderList) -> HeaderList:
    return [header for header in headers if not header[0].startswith(LIMIT_PREFIXES)]


def _without_cache_control(headers: HeaderList) -> bytes:
    kept = [header for header in headers if header[0] not in (b"cache-control", b"x-accel-buffering")]
    return render_headers(kept)


def _is_number(value: bytes) -> bool:
    """A date is left as it is."""
    return len(value) <= 12 and value.replace(b".", b"", 1).isdigit()


def spread_retry_after(headers: HeaderList, factor: float) -> bytes:
    """The lines of ``AnswerHead.retry_after`` with their time multiplied: whole seconds for everybody (RFC 9110,
    10.2.3), rounded down, and the exact time in milliseconds, which the official SDKs prefer."""
    times = dict(headers)
    millis = times.get(b"retry-after-ms")
    later_s = factor * (float(millis) / 1e3 if millis is not None else float(times[b"retry-after"]))
    lines = [(b"retry-after-ms", b"%d" % round(later_s * 1e3))]
    if b"retry-after" in times:
        lines.insert(0, (b"retry-after", b"%d" % later_s))
    return render_headers(lines)
