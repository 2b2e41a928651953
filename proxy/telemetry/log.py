"""Logging: structlog for events, and a shorter way for the one line that every request writes.

``configure_logging`` is called once, by the command that runs; everybody else asks ``get_logger`` for a logger when
they are constructed. Lines are JSON objects (``ts``, ``level``, ``event`` first) or, on a terminal, text for people.
No line holds a body, and what looks like a credential is masked in every event.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TypedDict, cast

import orjson
import structlog

from proxy.telemetry.redact import hide_named, is_suspect, redact, redact_text
from proxy.telemetry.sink import SHARED_BATCH_BYTES, BufferedSink, ByteStream

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

Event = MutableMapping[str, Any]


class AccessRecord(TypedDict, total=False):
    """The fields of the line that is written for each request. Times in milliseconds, money in US dollars; what is
    not known is ``None`` or left out."""

    request_id: str
    upstream_request_id: str | None
    trace_id: str | None
    provider: str
    route: str
    model: str
    stream: bool
    status: int
    outcome: str
    role: str
    """``leader``, ``follower``, ``alone``, ``hit`` or ``none``."""
    flight_id: str | int | None
    cache: str | None
    key_id: str | None
    """Digest prefix of the caller's credential, never the credential."""
    client_retry_count: int | None
    queue_ms: float
    ttft_ms: float | None
    upstream_ms: float | None
    total_ms: float
    overhead_ms: float | None
    bytes_in: int
    bytes_out: int
    tokens_in: int | None
    tokens_out: int | None
    tokens_saved: int | None
    cost_usd: float | None
    saved_usd: float | None
    error_type: str | None


# Fields whose text comes from outside; all others are our own words and numbers.
_FOREIGN: Final = ("model", "upstream_request_id", "trace_id")
_AFTER_TIME: Final = {level: f'Z","level":"{level}","event":"request",'.encode() for level in LEVELS}


class AccessLog:
    """Writes access records: 4 µs a line where structlog takes 33, as a line is one ``orjson.dumps`` on the calling
    thread. Serialising in the sink's thread costs the process the same and was measured to double the longest delays
    of the calling thread, which then waits for the interpreter."""

    # Mutable state, written by `write` only: the second whose text is in `_stamp`.
    __slots__ = ("_logger", "_second", "_sink", "_stamp", "threshold")

    def __init__(self, sink: BufferedSink, threshold: int, logger: Any | None) -> None:
        """``logger`` is who writes the records instead, as events for people."""
        self._sink = sink
        self._logger = logger
        self.threshold = threshold
        """Least severe level that is written, as in ``LEVELS``."""
        self._second = -1
        self._stamp = b""

    def write(self, record: AccessRecord, level: str = "info") -> None:
        """Write one line; ``level`` is a name of ``LEVELS``. The record belongs to the log afterwards."""
        if LEVELS[level] < self.threshold:
            return
        # One search over all foreign text at once, and hardly ever a second one.
        if is_suspect(f"{record.get('model')} {record.get('upstream_request_id')} {record.get('trace_id')}"):
            _mask_foreign(cast("dict[str, Any]", record))
        if self._logger is not None:
            getattr(self._logger, level)("request", **record)
            return
        self._put(_to_json(record)[1:-1], level)

    @property
    def takes_text(self) -> bool:
        """Lines are JSON, so whoever has the text of the fields already writes that (`write_text`)."""
        return self._logger is None

    def write_text(self, fields: str, level: str = "info") -> None:
        """Write one line whose fields are ready, as the inside of a JSON object; the caller has masked them."""
        if LEVELS[level] >= self.threshold:
            self._put(fields.encode(), level)

    def _put(self, fields: bytes, level: str) -> None:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime('{"ts":"%Y-%m-%dT%H:%M:%S.', time.gmtime(second)).encode()
        self._sink.write(b"%b%06d%b%b}\n" % (self._stamp, (now - second) * 1e6, _AFTER_TIME[level], fields))


def _mask_foreign(record: dict[str, Any]) -> None:
    for name in _FOREIGN:
        if isinstance(text := record.get(name), str):
            record[name] = redact_text(text)


class Logging:
    """What ``configure_logging`` set up, to be closed at the end."""

    # Mutable state: none but the process-wide configuration that `close` takes back.
    __slots__ = ("_bridge", "access", "format", "sink")

    def __init__(self, sink: BufferedSink, fmt: str, access: AccessLog, bridge: logging.Handler) -> None:
        self.sink = sink
        """Its ``dropped`` is the number of lines that were lost."""
        self.format = fmt
        """``json`` or ``console``."""
        self.access = access
        self._bridge = bridge

    def close(self, timeout_s: float = 2.0) -> bool:
        """Flush within ``timeout_s`` and undo the configuration. ``False`` if lines were left."""
        logging.getLogger().removeHandler(self._bridge)
        structlog.reset_defaults()
        return self.sink.close(timeout_s)


def configure_logging(
    level: str = "info", fmt: str = "auto", stream: ByteStream | None = None, *, shared: bool = False
) -> Logging:
    """Send events of ``level`` and above to ``stream`` (a binary file; standard output unless given); ``shared`` with
    other processes, which must not write into our lines.

    ``fmt`` is ``json``, ``console`` or ``auto``: console on a terminal. What the standard library's loggers say
    (aiohttp, asyncio) goes the same way, from ``warning`` on.
    """
    target = sys.stdout.buffer if stream is None else stream
    if fmt == "auto":
        isatty: Callable[[], bool] = getattr(target, "isatty", lambda: False)
        fmt = "console" if isatty() else "json"
    sink = BufferedSink(target, batch_bytes=SHARED_BATCH_BYTES) if shared else BufferedSink(target)
    threshold = LEVELS[level]
    structlog.configure(
        processors=_processors(fmt),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.BytesLoggerFactory(file=cast("Any", sink)),
        cache_logger_on_first_use=True,
    )
    access = AccessLog(sink, threshold, get_logger() if fmt == "console" else None)
    bridge = _StandardBridge(max(threshold, logging.WARNING))
    logging.getLogger().addHandler(bridge)
    return Logging(sink, fmt, access, bridge)


def get_logger(**fields: Any) -> Any:
    """A logger whose events carry ``fields``: ``log.info("event_name", name=value)``."""
    return structlog.get_logger(**fields)


def _processors(fmt: str) -> list[Any]:
    common = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    if fmt == "json":
        return [*common, structlog.processors.JSONRenderer(serializer=_dump)]
    renderer = structlog.dev.ConsoleRenderer(
        timestamp_key="ts", exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    return [*common, renderer, _encode]


def _redact_event(_logger: object, _method: str, event: Event) -> Event:
    """Mask credentials and bring the fields into the order people read."""
    ordered: dict[str, Any] = {name: event.pop(name) for name in ("ts", "level")}
    ordered["event"] = redact(event.pop("event", ""))
    for name, value in event.items():
        ordered[name] = hide_named(name, value)
    return ordered


def _dump(event: Event, **_options: object) -> bytes:
    return _to_json(event)


def _to_json(fields: object) -> bytes:
    """One line of JSON, whatever the values are: logging must not be what fails."""
    try:
        return orjson.dumps(fields, default=repr)
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        return json.dumps(fields, default=repr, separators=(",", ":")).encode()


def _encode(_logger: object, _method: str, text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


class _StandardBridge(logging.Handler):
    """What libraries log through the standard library becomes an event like any other."""

    def emit(self, record: logging.LogRecord) -> None:
        level = LEVELS.get(record.levelname.lower(), record.levelno)
        try:
            get_logger(library=record.name).log(
                level, "library_message", text=record.getMessage(), exc_info=record.exc_info
            )
        except (TypeError, ValueError):  # arguments that do not fit their format; the library's fault
            self.handleError(record)
