"""One request for several targets, and what a decoder tells of an answer."""

from __future__ import annotations

import copy
from dataclasses import asdict

import orjson
import pytest

from proxy.errors import ProxyError
from proxy.protocol.events import Cause
from proxy.protocol.usage import Usage
from proxy.providers.base import Form
from proxy.providers.kinds import KINDS, make_providers
from proxy.providers.translation import encode, translate
from tests.unit.providers.samples import BASE, SAMPLES

PROVIDERS = make_providers()
FORM = Form("claude-opus-4-6", extra=(("operator", 1), ("max_tokens", 9)))


@pytest.mark.parametrize(("caller", "field"), SAMPLES, ids=lambda name: name)
def test_a_request_that_is_read_once_serves_all_targets(caller: str, field: str) -> None:
    """A flight tries one target after the other: no writer changes what the next one reads, nor the caller's body."""
    fields = {**BASE[caller], **SAMPLES[caller, field]}
    untouched = copy.deepcopy(fields)
    try:
        conversation = PROVIDERS[caller].read_request(fields, "m", False)
    except ProxyError:
        return  # nothing is tried then
    first = asdict(conversation)
    bodies = []
    for _ in range(2):
        for target in KINDS:
            try:
                bodies.append(encode(PROVIDERS[caller], PROVIDERS[target], conversation, fields, FORM).encoding)
            except ProxyError as error:
                bodies.append(error.public)

    assert asdict(conversation) == first
    assert fields == untouched
    assert bodies[: len(KINDS)] == bodies[len(KINDS) :]


def test_what_the_operator_adds_never_overrides_what_was_asked() -> None:
    """A limit that the caller set stays; a member that nobody set is added."""
    fields = {"model": "m", "messages": [{"role": "user", "content": "q"}], "max_tokens": 5}
    body = orjson.loads(translate(PROVIDERS["openai"], PROVIDERS["anthropic"], fields, FORM).encoding.body)

    assert body["max_tokens"] == 5
    assert body["operator"] == 1


def test_an_answer_of_200_that_is_an_error_is_a_fault_with_its_usage_unknown() -> None:
    """Gateways do this; nothing is rendered, so that another target may answer."""
    fields = {"messages": [{"role": "user", "content": "q"}]}
    translation = translate(PROVIDERS["openai"], PROVIDERS["compatible"], fields, Form("m"))
    whole = translation.decode_whole(b'{"error":{"message":"no memory","code":500}}')

    assert whole.body == b""
    assert whole.usage is None
    assert whole.fault is not None
    assert whole.fault.cause is Cause.FAILED


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b"{}", b"\xff", b'{"id":"x","choices":[]}'])
def test_a_whole_answer_that_is_none_is_a_fault(target: str, body: bytes) -> None:
    """For a caller of any dialect it would look like a success."""
    fields = {"messages": [{"role": "user", "content": "q"}]}
    whole = translate(PROVIDERS["openai"], PROVIDERS[target], fields, Form("m")).decode_whole(body)

    assert whole.fault is not None
    assert whole.fault.cause is Cause.CUT_OFF


def test_a_decoder_counts_what_it_told_for_an_upstream_that_does_not_count() -> None:
    """Content events are what an estimate needs; heads, thoughts' proofs and ends are none."""
    fields = {"messages": [{"role": "user", "content": "q"}]}
    decoder = translate(PROVIDERS["openai"], PROVIDERS["compatible"], fields, Form("m"), streams=True).decoder()
    for text in ("a", "b"):
        chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]}
        decoder.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    decoder.feed(b"data: [DONE]\n\n")

    assert decoder.usage is None
    assert decoder.events == 2
    assert decoder.ended
    assert decoder.close() == b""


def test_the_last_report_of_a_stream_counts() -> None:
    """Some servers tell the cost so far with every chunk."""
    fields = {"messages": [{"role": "user", "content": "q"}]}
    decoder = translate(PROVIDERS["anthropic"], PROVIDERS["compatible"], fields | {"max_tokens": 1}, Form("m"),
                        streams=True).decoder()
    for made in (1, 2, 3):
        usage = {"prompt_tokens": 7, "completion_tokens": made, "total_tokens": 7 + made}
        chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage}
        decoder.feed(b"data: " + orjson.dumps(chunk) + b"\n\n")
    told = decoder.feed(b"data: [DONE]\n\n")

    assert decoder.usage == Usage(7, 3)
    assert b'"output_tokens":3' in told
