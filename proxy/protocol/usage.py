"""Tokens that an answer says it cost, read in every dialect into one shape.

A number that cannot be one (negative, fractional, a string, 2^53 or more) makes the whole report unusable: it is
refused and counted, never credited or charged, and the caller estimates instead.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import orjson

from proxy.protocol.routes import Dialect, Grammar, grammar_of
from proxy.protocol.sse import SseEvent

MAX_BODY_BYTES: Final = 8 << 20
_MAX_COUNT: Final = 1 << 53
# A usage object this near to the end of the answer is read without parsing what is before it.
_MAX_TAIL_BYTES: Final = 2048
_BYTES_PER_TOKEN: Final = 4

_PLAIN: Final = frozenset(("prompt_tokens", "completion_tokens", "total_tokens"))

_Fields = dict[str, Any]


class Usage(NamedTuple):
    """Tokens of one upstream call. ``input_tokens`` is all input, cached and cache-written tokens included, whatever
    the dialect's own sums leave out; ``output_tokens`` is as reported."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: str = "upstream"
    """``upstream`` or ``estimated``."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class _RefusedError(Exception):
    """A count that is no count."""


def estimate_usage(call_body_bytes: int, answer_bytes: int, events: int = 0) -> Usage:
    """A guess from sizes in bytes. A stream sends about one token an event in a wrapping many times its size, so a
    positive number of ``events`` counts instead of the answer's bytes."""
    output = events if events > 0 else -(-answer_bytes // _BYTES_PER_TOKEN)
    return Usage(-(-call_body_bytes // _BYTES_PER_TOKEN), output, source="estimated")


def usage_from_body(dialect: Dialect, route_name: str, body: bytes) -> Usage | None:
    """What a whole JSON answer reports; ``None`` when it reports nothing usable, is no JSON object or is larger than
    ``MAX_BODY_BYTES``."""
    at = body.rfind(b'"usage"')
    if at < 0 or len(body) > MAX_BODY_BYTES:
        return None
    report = _read_tail(body, at)
    if report is None:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        report = answer.get("usage") if type(answer) is dict else None
    if type(report) is not dict:
        return None
    try:
        return _read_report(report, _is_anthropic(dialect, route_name))
    except _RefusedError:
        return None


def _read_tail(body: bytes, at: int) -> _Fields | None:
    """The usage object if it is among the last members of the answer, as in embeddings: megabytes are left alone.

    If the rest of the text from the name on lacks nothing but an opening brace, then its last brace closes the
    answer, and the name is a member of the answer itself and not of something inside it.
    """
    tail = body[at:].rstrip() if len(body) - at <= _MAX_TAIL_BYTES else b""
    if not tail.endswith(b"}") or body[at - 1 : at] not in (b"{", b",", b" ", b"\n"):
        return None
    try:
        report = orjson.loads(b"{" + tail)
    except orjson.JSONDecodeError:
        return None
    return report["usage"] if type(report.get("usage")) is dict else None


class UsageReader:
    """Folds the events of one stream into its usage. Fed with what ``SseScanner.feed`` returned."""

    # Written by `feed` only: the merged report (later events override, as Anthropic's counts are cumulative).
    __slots__ = ("_anthropic", "_report", "refused")

    def __init__(self, dialect: Dialect, route_name: str) -> None:
        self._anthropic = _is_anthropic(dialect, route_name)
        self._report: _Fields = {}
        self.refused = 0
        """Reports with an impossible number."""

    def feed(self, event: SseEvent) -> None:
        report = _report_in(event)
        if report is None:
            return
        merged = self._report | {name: value for name, value in report.items() if value is not None}
        try:
            _read_report(merged, self._anthropic)
        except _RefusedError:
            self.refused += 1
        else:
            self._report = merged

    def usage(self) -> Usage | None:
        """What was reported so far; ``None`` if nothing usable was, or if any report was refused."""
        if self.refused or not self._report:
            return None
        return _read_report(self._report, self._anthropic)


def _report_in(event: SseEvent) -> _Fields | None:
    """The usage object of an event: its own, its message's (Anthropic) or its response's (Responses)."""
    fields = event.fields
    if fields is None:
        return None
    for owner in (fields, fields.get("message"), fields.get("response")):
        if type(owner) is dict and type(owner.get("usage")) is dict:
            return owner["usage"]  # type: ignore[no-any-return]
    return None


def _is_anthropic(dialect: Dialect, route_name: str) -> bool:
    return dialect is Dialect.ANTHROPIC or grammar_of(route_name) is Grammar.MESSAGES


def _read_report(report: _Fields, anthropic: bool) -> Usage | None:
    """Read a usage object of any dialect; ``None`` if it has no token counts. Raises ``_RefusedError``."""
    if "prompt_tokens" in report or "completion_tokens" in report:
        if not anthropic and _PLAIN.issuperset(report):  # nothing but plain counts, as most answers have
            return Usage(_count(report, "prompt_tokens"), _count(report, "completion_tokens"))
        given, produced = _count(report, "prompt_tokens"), _count(report, "completion_tokens")
        inside, outside = report.get("prompt_tokens_details"), report.get("completion_tokens_details")
    elif "input_tokens" in report or "output_tokens" in report:
        given, produced = _count(report, "input_tokens"), _count(report, "output_tokens")
        inside, outside = report.get("input_tokens_details"), report.get("output_tokens_details")
    elif "total_tokens" in report:
        return Usage(_count(report, "total_tokens"), 0)
    else:
        return None
    if anthropic:
        cached, written = _count(report, "cache_read_input_tokens"), _count(report, "cache_creation_input_tokens")
        given += cached + written
        reasoning = _count(outside, "thinking_tokens")
    else:
        cached, written = _count(inside, "cached_tokens"), _count(inside, "cache_write_tokens")
        reasoning = _count(outside, "reasoning_tokens")
    # Cached input that exceeds all input would turn into a negative price. Reasoning may exceed the output: some
    # servers count it apart.
    if cached + written > given:
        raise _RefusedError
    return Usage(given, produced, cached, written, reasoning)


def _count(fields: object, name: str) -> int:
    """The count, 0 when absent or null."""
    if type(fields) is not dict:
        return 0
    value = fields.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise _RefusedError
    return value
