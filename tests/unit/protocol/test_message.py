"""Heads of requests and responses."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.message import ResponseHead, make_request_head


def test_header_sent_twice_is_joined_for_decisions_and_kept_apart_in_raw() -> None:
    """Decisions read one value, the wire keeps both lines in their order."""
    head = make_request_head("POST", "/v1/x", [(b"Anthropic-Beta", b"a"), (b"X-B", b"1"), (b"anthropic-beta", b"b")])
    assert head.get(b"anthropic-beta") == b"a, b"
    assert head.raw == [(b"anthropic-beta", b"a"), (b"x-b", b"1"), (b"anthropic-beta", b"b")]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [("/v1/models", "/v1/models", ""), ("/v1/models?a=1?b", "/v1/models", "a=1?b"), ("/?", "/", "")],
)
def test_target_is_parted_at_the_first_question_mark(target: str, path: str, query: str) -> None:
    """Nothing is decoded on the way."""
    head = make_request_head("GET", target, [])
    assert (head.path, head.query) == (path, query)


@pytest.mark.parametrize("target", ["http://host/v1/models", "*", "", "v1/models", "host:443"])
def test_target_that_is_no_path_is_refused(target: str) -> None:
    """Absolute-form, asterisk-form and authority-form are for other kinds of proxies."""
    with pytest.raises(ProxyError) as caught:
        make_request_head("GET", target, [])
    assert caught.value.kind is Kind.BAD_REQUEST


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"authorization", Kind.AMBIGUOUS_CREDENTIAL),
        (b"x-api-key", Kind.AMBIGUOUS_CREDENTIAL),
        (b"api-key", Kind.AMBIGUOUS_CREDENTIAL),
        (b"host", Kind.BAD_REQUEST),
        (b"content-length", Kind.BAD_REQUEST),
        (b"content-type", Kind.BAD_REQUEST),
        (b"content-encoding", Kind.BAD_REQUEST),
        (b"transfer-encoding", Kind.BAD_REQUEST),
        (b"idempotency-key", Kind.BAD_REQUEST),
    ],
)
def test_header_with_one_meaning_sent_twice_is_refused(name: bytes, kind: Kind) -> None:
    """No rule picks a winner, not even between equal values and whatever the spelling."""
    with pytest.raises(ProxyError) as caught:
        make_request_head("POST", "/v1/x", [(name, b"same"), (name.title(), b"same")])
    assert caught.value.kind is kind


def test_two_kinds_of_credential_are_refused() -> None:
    """Otherwise the proxy might authenticate one and the upstream the other."""
    with pytest.raises(ProxyError) as caught:
        make_request_head("POST", "/v1/x", [(b"authorization", b"Bearer a"), (b"x-api-key", b"b")])
    assert caught.value.kind is Kind.AMBIGUOUS_CREDENTIAL


def test_response_head_answers_with_the_first_value() -> None:
    """A missing header is empty, a repeated one is its first line."""
    head = ResponseHead(200, [(b"vary", b"a"), (b"vary", b"b")])
    assert head.get(b"vary") == b"a"
    assert head.get(b"etag") == b""
    assert repr(head) == "<ResponseHead 200 2 headers>"
