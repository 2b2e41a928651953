"""Which headers cross the proxy."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.headers import (
    _RESPONSE_VERDICTS,
    MAX_IDEMPOTENCY_KEY_BYTES,
    MAX_REMEMBERED_NAMES,
    MAX_VARIANT_BYTES,
    Controls,
    parse_controls,
    private_request_headers,
    private_response_headers,
    semantic_headers,
    shared_request_headers,
    split_response_headers,
)
from proxy.protocol.message import HeaderList, RequestHead, ResponseHead, make_request_head
from proxy.protocol.routes import Dialect

CREDENTIAL: HeaderList = [(b"authorization", b"Bearer upstream")]

SDK_HEADERS: HeaderList = [
    (b"host", b"127.0.0.1:8080"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"AsyncOpenAI/Python 3.52.0"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"3.52.0"),
    (b"x-stainless-os", b"Linux"),
    (b"x-stainless-retry-count", b"1"),
    (b"x-stainless-read-timeout", b"600"),
    (b"authorization", b"Bearer client"),
    (b"openai-organization", b"org-1"),
    (b"content-length", b"832"),
]


def head_of(*headers: tuple[bytes, bytes]) -> RequestHead:
    return make_request_head("POST", "/v1/chat/completions", headers)


def test_shared_call_sends_what_is_keyed_and_the_credential_and_nothing_else() -> None:
    """Everything a client's SDK or network adds is left behind."""
    head = head_of(*SDK_HEADERS, (b"traceparent", b"00-1"), (b"cookie", b"a=1"), (b"x-new-header", b"1"))
    sent = shared_request_headers(head, Dialect.OPENAI, CREDENTIAL)
    assert sent == [
        (b"accept", b"application/json"),
        (b"content-type", b"application/json"),
        (b"openai-organization", b"org-1"),
        (b"authorization", b"Bearer upstream"),
    ]


def test_shared_headers_are_the_semantic_ones_with_those_of_the_body() -> None:
    """What goes upstream and what goes into the key are made from one list."""
    head = head_of(*SDK_HEADERS, (b"openai-beta", b"assistants=v2"), (b"content-encoding", b"gzip"))
    sent = shared_request_headers(head, Dialect.OPENAI, [])
    body = [(b"content-encoding", b"gzip"), (b"content-type", b"application/json")]
    assert sent == sorted(sent)
    assert sorted(semantic_headers(head, Dialect.OPENAI) + body) == sent


@pytest.mark.parametrize(
    ("dialect", "kept"),
    [
        (Dialect.OPENAI, [b"openai-beta", b"openai-organization", b"openai-project"]),
        (
            Dialect.ANTHROPIC,
            [b"anthropic-beta", b"anthropic-user-profile-id", b"anthropic-version", b"anthropic-workspace-id"],
        ),
        (Dialect.MISTRAL, []),
    ],
)
def test_each_dialect_has_its_own_semantic_headers(dialect: Dialect, kept: list[bytes]) -> None:
    """One vendor's headers do not travel to another."""
    names = [
        b"openai-project",
        b"openai-organization",
        b"openai-beta",
        b"anthropic-workspace-id",
        b"anthropic-version",
        b"anthropic-user-profile-id",
        b"anthropic-beta",
        b"x-goog-user-project",
    ]
    head = head_of(*((name, b"v") for name in names))
    assert semantic_headers(head, dialect) == [(name, b"v") for name in kept]


def test_operator_may_name_further_semantic_headers() -> None:
    """They are keyed and forwarded alike, and the list stays sorted."""
    head = head_of((b"x-goog-user-project", b"p"), (b"accept", b"application/json"), (b"a-first", b"1"))
    extra = (b"x-goog-user-project", b"a-first")
    expected = [(b"a-first", b"1"), (b"accept", b"application/json"), (b"x-goog-user-project", b"p")]
    assert semantic_headers(head, Dialect.MISTRAL, extra) == expected
    assert shared_request_headers(head, Dialect.MISTRAL, [], extra) == expected


@pytest.mark.parametrize(
    ("accept", "reduced"),
    [
        (b"application/json", b"application/json"),
        (b"Application/JSON; charset=utf-8", b"application/json"),
        (b"text/event-stream", b"text/event-stream"),
        (b"text/event-stream, */*;q=0.1", b"text/event-stream"),
        (b"application/json, text/event-stream", b""),
        (b"*/*", b""),
        (b"application/octet-stream", b""),
        (b"", b""),
    ],
)
def test_accept_is_reduced_to_what_may_change_an_answer(accept: bytes, reduced: bytes) -> None:
    """Two spellings of the same wish are one key; no wish is no header."""
    expected = [(b"accept", reduced)] if reduced else []
    assert semantic_headers(head_of((b"accept", accept)), Dialect.OPENAI) == expected


@pytest.mark.parametrize("bad", [b"a\rb", b"a\nb", b"a\0b", b"a\x1fb", b"a\x7f"])
def test_value_with_a_control_byte_is_not_sent(bad: bytes) -> None:
    """It could become another header on the way."""
    head = head_of((b"openai-beta", bad), (b"content-type", bad), (b"x-any", bad), (b"x-tab", b"a\tb"))
    assert shared_request_headers(head, Dialect.OPENAI, []) == []
    assert private_request_headers(head, []) == [(b"x-tab", b"a\tb")]


def test_private_call_keeps_the_client_s_headers_in_their_order() -> None:
    """It has one caller, so what that caller sends may matter and stays, repeats included."""
    head = head_of(*SDK_HEADERS, (b"x-new", b"1"), (b"traceparent", b"00-1"), (b"x-new", b"2"))
    assert private_request_headers(head, CREDENTIAL) == [
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"accept", b"application/json"),
        (b"content-type", b"application/json"),
        (b"user-agent", b"AsyncOpenAI/Python 3.52.0"),
        (b"x-stainless-lang", b"python"),
        (b"x-stainless-package-version", b"3.52.0"),
        (b"x-stainless-os", b"Linux"),
        (b"x-stainless-retry-count", b"1"),
        (b"x-stainless-read-timeout", b"600"),
        (b"openai-organization", b"org-1"),
        (b"x-new", b"1"),
        (b"traceparent", b"00-1"),
        (b"x-new", b"2"),
        (b"authorization", b"Bearer upstream"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"host",
        b"content-length",
        b"expect",
        b"authorization",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-anything",
        b"x-real-ip",
        b"x-sameflight-share",
        b"x-sameflight-anything",
        b"content_type",
        b"x_api_key",
    ],
)
def test_private_call_leaves_out_what_is_not_the_client_s_to_say(name: bytes) -> None:
    """Connection, framing, credential, addresses, our own controls, and second spellings with underscores."""
    assert private_request_headers(head_of((name, b"v"), (b"x-keep", b"1")), []) == [(b"x-keep", b"1")]


@pytest.mark.parametrize("connection", [b"x-hop", b"close, X-Hop", b"keep-alive , x-hop,", b",x-hop"])
def test_header_nominated_by_connection_is_left_out(connection: bytes) -> None:
    """RFC 9110, 7.6.1, whatever the spelling."""
    head = head_of((b"connection", connection), (b"x-hop", b"1"), (b"x-end", b"2"))
    assert private_request_headers(head, []) == [(b"x-end", b"2")]


def test_nomination_counts_over_all_connection_headers() -> None:
    """An empty first one hides nothing behind it."""
    head = head_of((b"connection", b""), (b"connection", b"x-hop"), (b"x-hop", b"1"), (b"x-end", b"2"))
    assert private_request_headers(head, []) == [(b"x-end", b"2")]


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key", b"content-type", b"anthropic-version"])
def test_client_cannot_nominate_the_credential_or_the_body_s_kind_away(name: bytes) -> None:
    """Our headers are added behind the removal, and what the body is stays with it."""
    head = head_of((b"connection", name), (b"content-type", b"application/json"), (b"anthropic-version", b"1"))
    sent = private_request_headers(head, [(b"authorization", b"Bearer upstream"), (b"x-api-key", b"k")])
    assert sent == [
        (b"content-type", b"application/json"),
        (b"anthropic-version", b"1"),
        (b"authorization", b"Bearer upstream"),
        (b"x-api-key", b"k"),
    ]


VENDOR_RESPONSE: HeaderList = [
    (b"date", b"Mon, 01 Jan 2029 00:00:00 GMT"),
    (b"content-type", b"application/json"),
    (b"content-length", b"100"),
    (b"transfer-encoding", b"chunked"),
    (b"connection", b"keep-alive"),
    (b"openai-organization", b"org"),
    (b"openai-processing-ms", b"531"),
    (b"x-ratelimit-remaining-tokens", b"9"),
    (b"anthropic-ratelimit-requests-limit", b"9"),
    (b"retry-after", b"3"),
    (b"retry-after-ms", b"2500"),
    (b"x-request-id", b"req_1"),
    (b"set-cookie", b"__cf_bm=1"),
    (b"cf-ray", b"9-FRA"),
    (b"alt-svc", b"h3"),
    (b"nel", b"{}"),
    (b"report-to", b"{}"),
    (b"server", b"cloudflare"),
    (b"via", b"1.1 x"),
    (b"strict-transport-security", b"max-age=1"),
    (b"x-sameflight-request-id", b"forged"),
    (b"x_odd", b"1"),
]


def test_shared_answer_is_parted_into_what_all_get_and_what_the_leader_gets() -> None:
    """Rate limits describe one call; request id, Retry-After and cf-ray are for everybody."""
    shared, leader = split_response_headers(ResponseHead(200, VENDOR_RESPONSE))
    assert shared == [
        (b"content-type", b"application/json"),
        (b"openai-organization", b"org"),
        (b"retry-after", b"3"),
        (b"retry-after-ms", b"2500"),
        (b"x-request-id", b"req_1"),
        (b"cf-ray", b"9-FRA"),
        (b"x_odd", b"1"),
    ]
    assert leader == [
        (b"openai-processing-ms", b"531"),
        (b"x-ratelimit-remaining-tokens", b"9"),
        (b"anthropic-ratelimit-requests-limit", b"9"),
    ]


def test_private_answer_keeps_cookies_and_limits() -> None:
    """It has one reader; only framing and the origin's own lines go."""
    kept = [name for name, _ in private_response_headers(ResponseHead(200, VENDOR_RESPONSE))]
    shared, leader = split_response_headers(ResponseHead(200, VENDOR_RESPONSE))
    assert sorted(kept) == sorted([name for name, _ in shared + leader] + [b"set-cookie"])


def test_answer_s_nominated_headers_go_but_its_content_type_stays() -> None:
    """An upstream may not make an answer unreadable either."""
    lines = [(b"connection", b"keep-alive"), (b"x-hop", b"1"), (b"connection", b"X-Hop, content-type")]
    head = ResponseHead(200, [*lines, (b"content-type", b"a/b")])
    assert split_response_headers(head) == ([(b"content-type", b"a/b")], [])
    assert private_response_headers(head) == [(b"content-type", b"a/b")]


@pytest.mark.parametrize("bad", [b"a\r\nset-cookie: x", b"a\nb", b"a\0", b"\x1b[2J", b"a\x7f"])
def test_answer_header_with_control_bytes_is_dropped_alone(bad: bytes) -> None:
    """The rest of the head is fine and stays."""
    head = ResponseHead(200, [(b"x-bad", bad), (b"x-good", b"1\t2"), (b"x-ratelimit-x", bad)])
    assert split_response_headers(head) == ([(b"x-good", b"1\t2")], [])
    assert private_response_headers(head) == [(b"x-good", b"1\t2")]


def test_ten_thousand_new_names_are_judged_and_not_all_remembered() -> None:
    """Names come from the outside, so the memory for them is bounded; the judgement stays the same."""
    for number in range(10_000):
        head = ResponseHead(200, [(b"x-ratelimit-%d" % number, b"1"), (b"x-other-%d" % number, b"1")])
        shared, leader = split_response_headers(head)
        assert (len(shared), len(leader)) == (1, 1)
        assert len(_RESPONSE_VERDICTS) <= MAX_REMEMBERED_NAMES


def test_request_without_controls_has_none() -> None:
    """An SDK's ordinary request asks for nothing but its patience."""
    controls = parse_controls(head_of(*SDK_HEADERS))
    assert controls == Controls(retry_count=1, patience_s=600.0)
    assert parse_controls(head_of()) == Controls()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"no-store", Controls(no_store=True)),
        (b"No-Cache", Controls(no_cache=True)),
        (b"no-store, no-cache", Controls(no_store=True, no_cache=True)),
        (b"max-age=0", Controls(max_age_s=0.0)),
        (b'max-age="60"', Controls(max_age_s=60.0)),
        (b"max-age=60, max-age=5", Controls(max_age_s=5.0)),
        (b"max-stale", Controls(max_stale_s=float("inf"))),
        (b"max-stale=30", Controls(max_stale_s=30.0)),
        (b"max-stale, max-stale=30", Controls(max_stale_s=30.0)),
        (b"only-if-cached,max-age=1", Controls(only_if_cached=True, max_age_s=1.0)),
        (b"no-store-ever, x-no-cache, private, =, ,", Controls()),
        (b"max-age=-1, max-stale=soon, max-age=1e9, max-age=nan", Controls()),
    ],
)
def test_cache_control_is_read_by_its_directives(value: bytes, expected: Controls) -> None:
    """Unknown directives and malformed numbers count as absent, the stricter of two numbers counts."""
    assert parse_controls(head_of((b"cache-control", value))) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"x-sameflight-share", b"off", Controls(share="off")),
        (b"x-sameflight-share", b" ON ", Controls(share="on")),
        (b"x-sameflight-share", b"retry", Controls(share="retry")),
        (b"x-sameflight-share", b"on, off", Controls(share="off")),
        (b"x-sameflight-share", b"yes", Controls()),
        (b"x-sameflight-share", b"1", Controls()),
        (b"x-sameflight-share", b"", Controls()),
        (b"x-sameflight-cache", b"on", Controls(cache="on")),
        (b"x-sameflight-cache", b"off", Controls(cache="off")),
        (b"x-sameflight-cache", b"refresh", Controls(cache="refresh")),
        (b"x-sameflight-cache", b"only", Controls(cache="only")),
        (b"x-sameflight-cache", b"on, off", Controls(cache="off")),
        (b"x-sameflight-cache", b"true", Controls()),
        (b"x-sameflight-cache-ttl", b"30", Controls(cache_ttl_s=30.0)),
        (b"x-sameflight-cache-ttl", b"0.5", Controls(cache_ttl_s=0.5)),
        (b"x-sameflight-cache-ttl", b"0", Controls(cache_ttl_s=0.0)),
        (b"x-sameflight-cache-ttl", b"-1", Controls()),
        (b"x-sameflight-cache-ttl", b"inf", Controls()),
        (b"x-sameflight-cache-ttl", b"1_0", Controls()),
        (b"x-sameflight-cache-ttl", b"1.2.3", Controls()),
        (b"x-sameflight-cache-ttl", b"9" * 17, Controls()),
        (b"x-sameflight-variant", b"3", Controls(variant=b"3")),
        (b"x-sameflight-unknown", b"on", Controls()),
        (b"idempotency-key", b"abc", Controls(idempotency_key=b"abc")),
        (b"idempotency-key", b"", Controls()),
        (b"x-stainless-retry-count", b"2", Controls(retry_count=2)),
        (b"x-stainless-retry-count", b"0", Controls()),
        (b"x-stainless-retry-count", b"-1", Controls()),
        (b"x-stainless-retry-count", b"9999", Controls()),
        (b"x-stainless-read-timeout", b"12.5", Controls(patience_s=12.5)),
        (b"x-stainless-timeout", b"300", Controls(patience_s=300.0)),
        (b"x-stainless-timeout", b"NOT_GIVEN", Controls()),
        (b"x-stainless-timeout", b"None", Controls()),
        (b"x-stainless-timeout", b"0", Controls()),
    ],
)
def test_control_header_is_read_and_unknown_values_are_ignored(name: bytes, value: bytes, expected: Controls) -> None:
    """Never is a word that is not understood taken for a yes; of two words the stricter counts."""
    assert parse_controls(head_of((name, value))) == expected


def test_shorter_of_two_time_outs_is_the_patience() -> None:
    """The Anthropic SDK sends both."""
    head = head_of((b"x-stainless-timeout", b"600"), (b"x-stainless-read-timeout", b"5.0"))
    assert parse_controls(head).patience_s == 5.0


@pytest.mark.parametrize(
    ("name", "limit"),
    [(b"x-sameflight-variant", MAX_VARIANT_BYTES), (b"idempotency-key", MAX_IDEMPOTENCY_KEY_BYTES)],
)
def test_value_that_keeps_requests_apart_is_refused_when_too_long(name: bytes, limit: int) -> None:
    """Cutting or ignoring it would share what was meant to stay apart."""
    parse_controls(head_of((name, b"x" * limit)))
    for bad in (b"x" * (limit + 1), b"a\0b"):
        with pytest.raises(ProxyError) as caught:
            parse_controls(head_of((name, bad)))
        assert caught.value.kind is Kind.BAD_REQUEST
