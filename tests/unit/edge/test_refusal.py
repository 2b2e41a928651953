"""The prebuilt refusal: whole, in the words of its dialect, the same bytes each time."""

from __future__ import annotations

import json

import pytest

from proxy.edge.refusal import Refusals
from proxy.errors import ProxyError
from proxy.pressure.gate import Gate
from proxy.protocol.routes import Dialect


def refuse() -> ProxyError:
    """What a closed gate says."""
    gate = Gate(lambda: 0, lambda: 0)
    gate.closed = True
    error = gate.admit(0.0)
    assert error is not None
    return error


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_refusal_is_a_whole_answer_that_says_when_to_come_back(dialect: Dialect, closes: bool) -> None:
    """503 with both forms of Retry-After, and a body of the length it says."""
    head, _, body = Refusals().get(refuse(), dialect, closes=closes).partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)

    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert int(fields[b"content-length"]) == len(body)
    assert 1000 <= int(fields[b"retry-after-ms"]) < 2000
    assert fields[b"retry-after"] in (b"1", b"2")
    assert fields[b"x-should-retry"] == b"true"
    assert fields[b"connection"] == (b"close" if closes else b"keep-alive")
    assert b"x-request-id" not in fields
    assert json.loads(body)


def test_the_words_are_those_of_the_dialect() -> None:
    """The SDKs look for them."""
    refusals, error = Refusals(), refuse()

    assert b"server_is_overloaded" in refusals.get(error, Dialect.OPENAI, closes=False)
    assert b"overloaded_error" in refusals.get(error, Dialect.ANTHROPIC, closes=False)


def test_a_refusal_is_rendered_once() -> None:
    """Refusing has to cost next to nothing when it is most of what there is to do."""
    refusals, error = Refusals(), refuse()

    first = refusals.get(error, Dialect.OPENAI, closes=False)
    assert refusals.get(error, Dialect.OPENAI, closes=False) is first
