"""Requests that two readers could take for different ones: refused, or passed on as exactly one request."""

from __future__ import annotations

import pytest

from tests.adversity.conftest import AUTHORISED, is_closed, is_refusal, nothing_admitted, say
from tests.fakes.gates import wait_until
from tests.scenes.stage import CHAT, KEY, Stage, chat, completion

HOST = b"host: h\r\n"
SMUGGLED = b"GET /v1/secret HTTP/1.1\r\nhost: h\r\n\r\n"
BODY = b'{"model":"m"}'


def post(headers: bytes, body: bytes = b"", *, target: bytes = b"/v1/chat/completions", host: bytes = HOST) -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b" % (target, host, AUTHORISED, headers, body)


DOUBTFUL = {
    "both_length_and_chunks": b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
    "chunks_and_then_length": b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
    "two_different_lengths": b"content-length: 4\r\ncontent-length: 5\r\n",
    "the_same_length_twice": b"content-length: 4\r\ncontent-length: 4\r\n",
    "a_list_of_lengths": b"content-length: 4, 4\r\n",
    "a_signed_length": b"content-length: +4\r\n",
    "a_negative_length": b"content-length: -1\r\n",
    "a_hexadecimal_length": b"content-length: 0x4\r\n",
    "an_empty_length": b"content-length: \r\n",
    "a_length_beyond_64_bits": b"content-length: 99999999999999999999999\r\n",
    "a_blank_before_the_colon": b"content-length : 4\r\n",
    "an_unknown_coding": b"transfer-encoding: xchunked\r\n",
    "chunked_not_last": b"transfer-encoding: chunked, gzip\r\n",
    "chunked_twice": b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "identity": b"transfer-encoding: identity\r\n",
    "a_vertical_tab_in_the_coding": b"transfer-encoding: \x0bchunked\r\n",
    "a_folded_line": b"x-one: a\r\n b\r\ncontent-length: 0\r\n",
    "a_bare_carriage_return": b"x-one: a\rtransfer-encoding: chunked\r\ncontent-length: 0\r\n",
    "a_nul_in_a_value": b"x-one: a\0b\r\ncontent-length: 0\r\n",
    "an_empty_name": b": value\r\ncontent-length: 0\r\n",
    "a_line_without_colon": b"x-one\r\ncontent-length: 0\r\n",
    "a_control_character_in_a_name": b"x\x01one: a\r\ncontent-length: 0\r\n",
    "a_name_that_is_not_ascii": b"x\xc3\xa9: a\r\ncontent-length: 0\r\n",
}


@pytest.mark.parametrize("headers", DOUBTFUL.values(), ids=DOUBTFUL.keys())
async def test_framing_with_two_meanings_is_refused_and_what_follows_is_not_a_request(
    stage: Stage, headers: bytes
) -> None:
    """CVE-2021-40346, CVE-2023-25725, CVE-2023-40225, CVE-2023-37276, CVE-2022-23959, CVE-2018-8004 and aiohttp's
    framing errors: no guess is made, and the bytes behind are nobody's request."""
    client, response = await say(stage, post(headers, b"0\r\n\r\n" + SMUGGLED))

    is_refusal(response, 400, "bad_request")
    await is_closed(client)
    nothing_admitted(stage)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\nab\r\n",
        b"0x2\r\nab\r\n",
        b"2\nab\r\n0\r\n\r\n",
        b"2\r\nabc\r\n0\r\n\r\n",
        b"1" * 17 + b"\r\n",
    ],
    ids=["no_number", "negative", "hexadecimal_prefix", "line_feed_only", "longer_than_said", "beyond_64_bits"],
)
async def test_a_broken_chunk_is_refused_and_ends_the_connection(stage: Stage, chunks: bytes) -> None:
    """RELIABILITY A2: a chunked body is read by the letter."""
    client, response = await say(stage, post(b"transfer-encoding: chunked\r\n", chunks))

    is_refusal(response, 400, "bad_request")
    await is_closed(client)
    nothing_admitted(stage)


async def test_http_1_0_with_chunks_is_refused(stage: Stage) -> None:
    """CVE-2026-2835: a 1.0 message has no transfer coding, and whoever sends one is read in two ways."""
    request = post(b"transfer-encoding: chunked\r\n", b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    client, response = await say(stage, request)

    is_refusal(response, 400, "bad_request")
    await is_closed(client)
    nothing_admitted(stage)


@pytest.mark.parametrize(
    "host", [b"", HOST + HOST, b"host: a\r\nhost: b\r\n"], ids=["none", "the_same_twice", "two"]
)
async def test_a_request_without_exactly_one_host_is_refused(stage: Stage, host: bytes) -> None:
    """CVE-2026-34525, RELIABILITY A5."""
    client, response = await say(stage, post(b"content-length: 0\r\n", host=host))

    is_refusal(response, 400, "bad_request")
    await is_closed(client)
    nothing_admitted(stage)


@pytest.mark.parametrize("host", [b"h/?", b"h#", b"user@h", b"h\\x", b"[::1", b"/v1/models", b"h:99999"])
@pytest.mark.parametrize("target", [b"/v1/chat/completions", b"/v1/files", b"/anything"])
async def test_a_host_that_rewrites_the_url_opens_no_protected_route(host: bytes, target: bytes) -> None:
    """CVE-2026-49468, CVE-2026-48710: routing and authentication read the raw path and nothing else."""
    async with Stage(auth="required") as stage:
        request = post(b"content-length: 0\r\n", target=target, host=b"host: " + host + b"\r\n")
        client, response = await say(stage, request)

        assert response.status in (400, 401)
        assert response.header("connection") in (None, "close")
        nothing_admitted(stage)
        await client.close()
        await stage.at_rest()


TARGETS = {
    "absolute_form": b"http://h/v1/chat/completions",
    "another_host": b"http://evil.example/v1/models",
    "authority_form": b"h:443",
    "asterisk": b"*",
    "no_slash": b"@host",
    "dot_segments": b"/v1/files/../models",
    "a_dot_segment": b"/v1/./models",
    "escaped_dots": b"/v1/files/%2e%2e/models",
    "half_escaped_dots": b"/v1/files/.%2E/models",
    "two_slashes": b"/v1//models",
    "slashes_in_front": b"//v1/models",
    "an_escaped_slash": b"/v1/files%2fabc",
    "an_escaped_nul": b"/v1/files/a%00b",
    "an_escaped_line_break": b"/v1/files/a%0d%0ab",
    "a_backslash": b"/v1/files\\abc",
    "an_escaped_backslash": b"/v1/files%5cabc",
    "an_escape_of_a_letter": b"/v1/%6dodels",
    "a_broken_escape": b"/v1/files/%zz",
    "a_fragment": b"/v1/files/a#b",
    "bytes_beyond_ascii": b"/v1/files/\xc3\xa9",
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
async def test_a_target_with_two_readings_is_refused(stage: Stage, target: bytes) -> None:
    """PYSEC-2026-4369, RELIABILITY A5 and A6: the upstream gets a path or nothing."""
    client, response = await say(stage, b"GET %b HTTP/1.1\r\nhost: h\r\n%b\r\n" % (target, AUTHORISED), "GET")

    is_refusal(response, 400, "bad_request")
    nothing_admitted(stage)
    await client.close()


async def test_a_query_reaches_the_upstream_as_it_was_sent(stage: Stage) -> None:
    """CVE-2022-2880, CVE-2026-39825: what is not understood is neither dropped nor rewritten."""
    query = "&".join(f"p{number}=%2F;{number}" for number in range(500)) + "&p0=again&=&&a=b=c%00"
    response = await stage.ask(None, method="GET", path="/v1/vector_stores?" + query)
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert call.target == "/v1/vector_stores?" + query
    assert response.status == 200


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
@pytest.mark.parametrize("target", ["/v1/models", "h:443"])
async def test_trace_and_connect_are_refused_and_nothing_behind_them_is_read(
    stage: Stage, method: str, target: str
) -> None:
    """CVE-2026-56866, CVE-2026-94439, RELIABILITY row 22: no tunnel, and no request hidden in one."""
    request = f"{method} {target} HTTP/1.1\r\nhost: h\r\n".encode() + AUTHORISED + b"\r\n"
    client, response = await say(stage, request + SMUGGLED, method)

    is_refusal(response, 405 if target.startswith("/") else 400)
    await is_closed(client)
    nothing_admitted(stage)


@pytest.mark.parametrize(
    "headers",
    [
        b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
        b"connection: upgrade\r\nupgrade: tls/1.3\r\n",
        b"upgrade: websocket\r\n",
    ],
    ids=["h2c", "h2c_with_settings", "websocket", "tls", "without_connection"],
)
async def test_an_upgrade_elsewhere_is_refused_and_the_bytes_behind_it_are_dropped(
    stage: Stage, headers: bytes
) -> None:
    """CVE-2026-69243, CVE-2026-2833, CVE-2026-73548, CVE-2024-23326: none of these can be upgraded."""
    client, response = await say(stage, post(headers + b"content-length: 0\r\n", SMUGGLED))

    is_refusal(response, 400, "upgrade_refused")
    await is_closed(client)
    nothing_admitted(stage)


NOT_HTTP = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    "the_http2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "random_bytes": bytes((7919 * number >> 3) % 256 for number in range(1, 400)),
    "a_line_of_text": b"hello there\r\n\r\n",
    "http_0_9": b"GET /\r\n\r\n",
    "a_version_of_tomorrow": b"GET / HTTP/9.9\r\nhost: h\r\n\r\n",
    "a_method_with_a_line_break": b"GE\rT / HTTP/1.1\r\nhost: h\r\n\r\n",
    "an_unknown_method": b"FETCH / HTTP/1.1\r\nhost: h\r\n\r\n",
    "a_tab_for_a_space": b"GET\t/v1/models\tHTTP/1.1\r\nhost: h\r\n\r\n",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_bytes_that_are_no_http_are_answered_once_and_closed(stage: Stage, data: bytes) -> None:
    """RELIABILITY row 19, CVE-2023-49082: TLS, HTTP/2 and noise on the plain port."""
    client, response = await say(stage, data, "GET")

    is_refusal(response, 400, "bad_request")
    await is_closed(client)
    nothing_admitted(stage)
    assert stage.series("rejections_total") == 1


async def test_a_path_of_ten_thousand_kinds_leaves_no_trace_in_memory(stage: Stage) -> None:
    """CVE-2024-52303: an unroutable request is not remembered; series and tables stay as they were."""
    client = await stage.client()
    stage.upstream.respond_with(lambda call: call.answer_json({}))
    for number in range(300):
        await client.request("GET", f"/v1/nothing/{number}", [("authorization", f"Bearer {KEY}")])
    lines = [line for line in stage.app.metrics.render(["text/plain"])[0].splitlines() if b"nothing" in line]

    assert lines == []
    assert len(stage.app.table) == 0
    assert stage.app.table.pass_markers == 0


# -- several requests on one connection ------------------------------------------------------------------------------


async def test_thirty_three_pipelined_requests_are_answered_in_order(stage: Stage) -> None:
    """RELIABILITY row 18, CVE-2026-54273: the 33rd waits outside, and nobody is mixed up."""
    client = await stage.client()
    credential = [("authorization", f"Bearer {KEY}")]
    requests = [client.make_request("POST", CHAT, credential, chat(str(number))) for number in range(33)]
    responses = [client.expect("POST") for _ in requests]
    await client.send(b"".join(requests))
    for number in range(33):
        call = await stage.upstream.next_call()
        assert stage.app.server.running == 1
        assert len(next(iter(stage.app.server.connections))._messages) <= 32
        assert call.json()["messages"][0]["content"] == str(number)
        await call.answer_json(completion(str(number)))
    texts = [(await r.read_end()).json()["choices"][0]["message"]["content"] for r in responses]

    assert texts == [str(number) for number in range(33)]
    assert client.unread == b""


async def test_a_thousand_pipelined_requests_hold_no_more_than_thirty_two(stage: Stage) -> None:
    """CVE-2026-54273: reading stops until the queue has room."""
    stage.upstream.respond_with(None)
    client = await stage.client()
    one = client.make_request("GET", "/health")
    responses = [client.expect() for _ in range(1000)]
    [first] = [client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat())]
    blocker = client.expect("POST")
    client._reader.expected.insert(0, client._reader.expected.pop())
    client._transport.write(first + one * 1000)
    call = await stage.upstream.next_call()
    [connection] = stage.app.server.connections
    await wait_until(lambda: connection._buffer_paused, "reading has stopped")

    assert len(connection._messages) == 32
    await call.answer_json(completion())
    for response in [blocker, *responses]:
        await response.read_end()
    assert {response.status for response in responses} == {200}


async def test_a_bad_request_behind_a_good_one_spoils_only_itself(stage: Stage) -> None:
    """The good one is answered first, then the bad one, then the connection ends."""
    client = await stage.client()
    good, bad = client.expect("POST"), client.expect("GET")
    await client.send(client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat()))
    call = await stage.upstream.next_call()
    await client.send(b"\x16\x03\x01 nonsense\r\n\r\n")
    await call.answer_json(completion())
    await bad.read_end()

    assert good.json() == completion()
    is_refusal(bad, 400)
    await is_closed(client)


async def test_a_refused_request_on_a_kept_connection_leaves_it_usable(stage: Stage) -> None:
    """A refusal whose body has been read is an answer like any other."""
    client = await stage.client()
    refused = await client.request("POST", CHAT, [("authorization", f"Bearer {KEY}")], b"{broken")
    accepted = client.expect("POST")
    await client.send(client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat()))
    await (await stage.upstream.next_call()).answer_json(completion())
    await accepted.read_end()

    is_refusal(refused, 400, "invalid_json")
    assert accepted.json() == completion()


# -- HTTP/1.0 and connection options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [False, True])
async def test_http_1_0_is_answered_and_kept_only_if_it_asks(stage: Stage, keeps: bool) -> None:
    """RFC 9112, 9.3: and a client that asks is told that it was heard."""
    client = await stage.client()
    request = client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat())
    if keeps:
        request = request.replace(b"\r\n\r\n", b"\r\nconnection: keep-alive\r\n\r\n", 1)
    response = client.expect("POST")
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert response.json() == completion()
    assert response.header("connection") == ("keep-alive" if keeps else "close")
    if keeps:
        assert (await client.request("GET", "/health")).status == 200
    else:
        await is_closed(client)


async def test_http_1_0_gets_a_stream_without_chunks_and_its_end_is_the_connections(stage: Stage) -> None:
    """A client that knows no chunks reads until the connection ends."""
    client = await stage.client()
    response = client.expect("POST")
    request = client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat(stream=True))
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await response.read_head()
    await call.send(b"data: one\n\ndata: [DONE]\n\n")
    await call.end()
    await response.read_end()

    assert (response.close_delimited, response.header("transfer-encoding")) == (True, None)
    assert response.body == b"data: one\n\ndata: [DONE]\n\n"
    assert not client.was_reset


async def test_a_stream_that_breaks_for_http_1_0_ends_with_a_reset(stage: Stage) -> None:
    """Without chunks a FIN would say that the answer is whole."""
    client = await stage.client()
    response = client.expect("POST")
    request = client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat(stream=True))
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(b"data: one\n\n")
    await response.read_until(b"data: one\n\n")
    call.reset()
    await client.peer_closed()
    await wait_until(lambda: client.was_reset, "the connection was reset")

    assert b"[DONE]" not in response.body


async def test_connection_close_is_heeded(stage: Stage) -> None:
    """The client's wish is repeated in the answer and kept."""
    client = await stage.client()
    response = client.expect("POST")
    headers = [("authorization", f"Bearer {KEY}"), ("connection", "close")]
    await client.send(client.make_request("POST", CHAT, headers, chat()))
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert response.header("connection") == "close"
    await is_closed(client)


# -- expectations ----------------------------------------------------------------------------------------------------


async def test_a_client_that_expects_100_gets_it_and_then_the_answer(stage: Stage) -> None:
    """RFC 9110, 10.1.1: the body comes when it is asked for."""
    client = await stage.client()
    body = b'{"model":"gpt-4o-mini","messages":[]}'
    response = client.expect("POST")
    await client.send(post(b"expect: 100-continue\r\ncontent-length: %d\r\n" % len(body)))
    await wait_until(lambda: response.informational == [100], "the body was asked for")
    nothing_admitted(stage)
    await client.send(body)
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()

    assert call.body == body
    assert call.header("expect") is None
    assert response.json() == completion()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"authorization: Bearer sf-unknown\r\ncontent-length: 10\r\n", 401),
        (AUTHORISED + b"content-length: 99999999999\r\n", 413),
        (AUTHORISED + b"x-api-key: k\r\ncontent-length: 10\r\n", 400),
    ],
)
async def test_an_expectation_of_a_refused_request_is_refused_without_100(
    stage: Stage, headers: bytes, status: int
) -> None:
    """RELIABILITY row 21: the body is not asked for only to be thrown away."""
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n" + headers + b"\r\n"
    client, response = await say(stage, request)

    is_refusal(response, status)
    assert response.informational == []
    await is_closed(client)
    nothing_admitted(stage)


async def test_http_1_0_is_never_sent_an_interim_response(stage: Stage) -> None:
    """RFC 9110, 15.2: a 1.0 client would take it for the answer."""
    client = await stage.client()
    response = client.expect("POST")
    request = post(b"expect: 100-continue\r\ncontent-length: %d\r\n" % len(BODY), BODY)
    await client.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()

    assert response.informational == []
    assert response.json() == completion()


# -- odd but allowed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 40])
async def test_a_request_split_anywhere_is_the_same_request(stage: Stage, size: int) -> None:
    """TCP has no messages."""
    client = await stage.client()
    response = client.expect("POST")
    await client.dribble(client.make_request("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat()), size)
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()

    assert call.json() == chat()
    assert response.json() == completion()


async def test_a_chunked_request_reaches_the_upstream_whole_with_a_length(stage: Stage) -> None:
    """A body that is held goes on with a length, its extensions and trailers dropped."""
    client = await stage.client()
    response = client.expect("POST")
    chunks = b"8;a=b\r\n" + BODY[:8] + b"\r\n5\r\n" + BODY[8:] + b"\r\n0\r\nx-trailer: 1\r\n\r\n"
    await client.send(post(b"transfer-encoding: chunked\r\ntrailer: x-trailer\r\n", chunks))
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()

    assert call.body == BODY
    assert (call.header("content-length"), call.header("transfer-encoding")) == (str(len(BODY)), None)
    assert call.header("x-trailer") is None
