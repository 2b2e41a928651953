"""Logging: one JSON object a line, levels, the access line, masked credentials, and libraries' own messages."""

import io
import json
import logging
import re
from typing import get_type_hints

import pytest

from proxy.telemetry.log import AccessRecord, configure_logging, get_logger

RECORD = {
    "request_id": "req_1",
    "upstream_request_id": "up_1",
    "trace_id": None,
    "provider": "openai",
    "route": "chat.completions",
    "model": "gpt-4o",
    "stream": True,
    "status": 200,
    "outcome": "ok",
    "total_ms": 1.5,
}


def fail(error):
    raise error


class Terminal(io.BytesIO):
    def isatty(self):
        return True


@pytest.fixture
def log_to():
    """Configures logging to a stream and gives a function that ends it and returns the lines."""
    open_loggings = []

    def configure(level="info", fmt="json", stream=None):
        stream = stream or io.BytesIO()
        configured = configure_logging(level, fmt, stream)
        open_loggings.append(configured)

        def lines():
            configured.close()
            text = stream.getvalue().decode()
            return [json.loads(line) for line in text.splitlines()] if configured.format == "json" else text

        return configured, lines

    yield configure
    for configured in open_loggings:
        configured.close()


def test_an_event_is_one_json_object_with_time_level_and_name_first(log_to):
    """Pipelines and people find the same things in the same place."""
    _, lines = log_to()
    get_logger(room="edge").info("listening", port=8080)
    (line,) = lines()
    assert list(line) == ["ts", "level", "event", "room", "port"]
    assert (line["level"], line["event"], line["room"], line["port"]) == ("info", "listening", "edge", 8080)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["ts"])


def test_events_below_the_level_are_not_written(log_to):
    """Neither events nor access lines."""
    configured, lines = log_to("warning")
    get_logger().info("quiet")
    configured.access.write(dict(RECORD))
    configured.access.write(dict(RECORD), "warning")
    get_logger().error("loud")
    assert [line["event"] for line in lines()] == ["request", "loud"]


def test_an_access_line_has_the_fields_it_was_given(log_to):
    """With time, level and name in front, like any event."""
    configured, lines = log_to()
    configured.access.write(dict(RECORD), "warning")
    (line,) = lines()
    assert list(line)[:3] == ["ts", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["ts"])
    assert {"level": "warning", "event": "request", **RECORD}.items() <= line.items()


def test_an_access_line_masks_what_callers_may_have_put_into_it(log_to):
    """A key in the place of a model's name happens."""
    configured, lines = log_to()
    configured.access.write({**RECORD, "model": "sk-proj-abcdefghijkl", "upstream_request_id": "Bearer abcdefgh"})
    (line,) = lines()
    assert (line["model"], line["upstream_request_id"]) == ("sk-…", "Bearer …")


def test_an_access_line_survives_text_that_json_must_escape(log_to):
    """A model's name is whatever the caller sent."""
    configured, lines = log_to()
    configured.access.write({**RECORD, "model": 'a"b\\c\n\x00é'})
    assert lines()[0]["model"] == 'a"b\\c\n\x00é'


def test_the_access_record_has_the_documented_fields():
    """The line is read by other programs."""
    fields = (
        "request_id upstream_request_id trace_id provider route model stream status outcome role flight_id cache "
        "key_id client_retry_count queue_ms ttft_ms upstream_ms total_ms overhead_ms bytes_in bytes_out tokens_in "
        "tokens_out tokens_saved cost_usd saved_usd error_type"
    )
    assert list(get_type_hints(AccessRecord)) == fields.split()


def test_credentials_are_masked_in_every_event(log_to):
    """By shape and by name, in messages, values and tracebacks."""
    _, lines = log_to()
    log = get_logger()
    log.info("sent sk-abcdefghijkl", authorization="x y z", url="http://u:pw@h/", error=ValueError("Bearer abcdefgh"))
    try:
        fail(RuntimeError("key sf-0123456789abcdef refused"))
    except RuntimeError:
        log.exception("failed")
    first, second = lines()
    assert (first["event"], first["authorization"]) == ("sent sk-…", "…")
    assert (first["url"], first["error"]) == ("http://…@h/", "ValueError('Bearer …')")
    assert "RuntimeError: key sf-… refused" in second["exception"]


def test_an_event_with_any_value_is_written(log_to):
    """A value that JSON does not know is written as text."""
    _, lines = log_to()
    get_logger().info("odd", value={1: {2}, b"k": b"\xff"}, big=2**70, text="\ud800")
    (line,) = lines()
    assert line["event"] == "odd"
    assert line["value"] == {"1": [2], "k": "\ufffd"}
    assert (line["big"], line["text"]) == (2**70, "\ud800")


def test_what_libraries_log_becomes_an_event(log_to):
    """From warning on, with their traceback, masked as well."""
    _, lines = log_to()
    logging.getLogger("aiohttp.server").warning("bad %s", "sk-abcdefghijkl")
    logging.getLogger("asyncio").info("chatter")
    (line,) = lines()
    assert (line["event"], line["level"], line["library"], line["text"]) == (
        "library_message",
        "warning",
        "aiohttp.server",
        "bad sk-…",
    )


def test_a_terminal_gets_text_for_people(log_to):
    """Access lines too; the format is chosen by where the lines go."""
    configured, lines = log_to(fmt="auto", stream=Terminal())
    get_logger().info("listening", key="Bearer abcdefgh")
    configured.access.write(dict(RECORD))
    try:
        fail(ValueError("no\ud800"))
    except ValueError:
        get_logger().exception("failed")
    text = lines()
    assert configured.format == "console"
    assert "listening" in text
    assert "gpt-4o" in text
    assert "ValueError" in text
    assert "abcdefgh" not in text


def test_a_file_gets_json(log_to):
    """``auto`` is for containers as well."""
    configured, lines = log_to(fmt="auto")
    assert configured.format == "json"
    assert lines() == []


def test_closing_takes_the_configuration_back(log_to):
    """Handlers of the standard library do not pile up."""
    before = list(logging.getLogger().handlers)
    configured, _ = log_to()
    assert len(logging.getLogger().handlers) == len(before) + 1
    configured.close()
    assert logging.getLogger().handlers == before
