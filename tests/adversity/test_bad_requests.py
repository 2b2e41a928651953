"""Requests that are wrong, too large or not allowed: a clear answer, nothing admitted, nothing leaked."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import time
import tracemalloc
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from tests.adversity.conftest import AUTHORISED, is_closed, is_refusal, nothing_admitted, say
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.scenes.stage import CHAT, KEY, MESSAGES, Stage, chat, completion

CREDENTIAL = ("authorization", f"Bearer {KEY}")
JSON = b"content-type: application/json\r\n"


def head(method: str, target: str, *lines: bytes) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nhost: h\r\n".encode() + AUTHORISED + b"".join(lines) + b"\r\n"


# -- bodies that are no JSON -----------------------------------------------------------------------------------------

BAD_JSON = {
    "empty": b"",
    "blank": b"   \n",
    "broken": b'{"model": "m"',
    "an_array": b'[{"model":"m"}]',
    "a_string": b'"model"',
    "null": b"null",
    "bytes_behind_it": b'{"model":"m"}{}',
    "a_byte_order_mark": b'\xef\xbb\xbf{"model":"m"}',
    "utf_16": '{"model":"m"}'.encode("utf-16"),
    "wrong_utf_8": b'{"model":"\xff"}',
    "an_overlong_form": b'{"model":"\xc0\xae"}',
    "a_lone_surrogate": b'{"model":"\\ud800"}',
    "an_encoded_surrogate": b'{"model":"\xed\xa0\x80"}',
    "nan": b'{"model":"m","temperature":NaN}',
    "infinity": b'{"model":"m","temperature":-Infinity}',
    "a_comment": b'{"model":"m" /* cheap */}',
    "single_quotes": b"{'model':'m'}",
    "a_trailing_comma": b'{"model":"m",}',
    "a_name_twice": b'{"model":"cheap","model":"dear"}',
    "a_name_twice_in_another_spelling": b'{"model":"cheap","mod\\u0065l":"dear"}',
    "a_name_twice_deep_inside": b'{"model":"m","a":[{"b":{"c":1,"c":2}}]}',
    "100_000_lists_deep": b'{"model":"m","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100_000_objects_deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "65_levels": b'{"model":"m","a":' + b"[" * 65 + b"]" * 65 + b"}",
    "a_control_character": b'{"model":"a\x01b"}',
    "nul_bytes": b'{"model":"m"}\0\0',
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/v1/audio/speech"])
async def test_a_body_that_is_not_one_clear_json_object_is_refused(stage: Stage, path: str, body: bytes) -> None:
    """RELIABILITY row 23 and C: two parsers must not read two requests; in no time, and nothing is repeated."""
    began_at = time.process_time()
    response = await stage.ask(body, path=path)
    await response.read_end()

    error = is_refusal(response, 400, "invalid_json")
    assert time.process_time() - began_at < 0.5
    assert "cheap" not in error["message"]
    nothing_admitted(stage)
    assert stage.series("requests_total") == 1
    assert stage.series('rejections_total{reason="invalid_json"}') == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":7}',
        b'{"model":["m"]}',
        b'{"model":"' + b"m" * 600 + b'"}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"m","stream":1}',
    ],
)
async def test_a_member_that_decides_with_a_wrong_type_is_refused(stage: Stage, body: bytes) -> None:
    """What the proxy decides by, it must be able to read."""
    response = await (await stage.ask(body)).read_end()

    is_refusal(response, 400, "bad_request")
    nothing_admitted(stage)


@pytest.mark.parametrize("number", ["1" * 1_000_000, "1e999", "-1e999", "0." + "1" * 100_000])
async def test_a_number_of_any_length_costs_little_and_harms_nobody(stage: Stage, number: str) -> None:
    """RELIABILITY row 23: refused or passed on as it is, never expanded."""
    body = f'{{"model":"m","messages":[],"seed":{number}}}'.encode()
    stage.upstream.respond_with(lambda call: call.answer_json(completion()))
    began_at = time.process_time()
    response = await (await stage.ask(body)).read_end()

    assert time.process_time() - began_at < 0.5
    assert response.status in (200, 400)
    assert [call.body for call in stage.upstream.history] == ([body] if response.status == 200 else [])


async def test_a_thousand_mutilated_bodies_never_make_the_proxy_fail(stage: Stage) -> None:
    """Whatever it is, the answer is 400 or the upstream's, on the same connection. Seeded."""
    stage.upstream.respond_with(lambda call: call.answer_json(completion()))
    mutate = random.Random(20261121)
    whole = json.dumps(chat("a\u2713\\\"b", tools=[{"type": "function", "a": [1, {"b": None}]}], seed=1)).encode()
    client = await stage.client()
    statuses = set()
    for _ in range(1000):
        body = bytearray(whole)
        for _ in range(mutate.randint(1, 4)):
            at = mutate.randrange(len(body))
            how = mutate.randrange(3)
            if how == 0:
                body[at] = mutate.randrange(256)
            elif how == 1:
                del body[at : at + mutate.randint(1, 5)]
            else:
                body[at:at] = mutate.choice([b'"', b"{", b"\\u", b"\\ud8", b"\xed\xa0", b":", b",", b"\0", b"]"])
        response = await client.request("POST", CHAT, [CREDENTIAL], bytes(body))
        statuses.add(response.status)

    assert statuses == {200, 400}
    assert stage.app.metrics.last_bug == ""


# -- heads that are too large ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/files"])
@pytest.mark.parametrize(
    "lines",
    [
        [b"x-big: " + b"a" * 70_000 + b"\r\n"],
        [b"x-%d: %b\r\n" % (number, b"a" * 1000) for number in range(80)],
        [b"x-%d: b\r\n" % number for number in range(500)],
        [b"n" * 70_000 + b": 1\r\n"],
    ],
    ids=["one_line", "all_together", "five_hundred", "a_name"],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_head_that_is_too_large_is_refused(
    stage: Stage, path: str, lines: list[bytes], at_once: bool
) -> None:
    """RELIABILITY row 7: 431, whole and readable, whether it comes in one read or in many."""
    request = head("POST", path, *lines, b"content-length: 0\r\n")
    client = await stage.client()
    response = client.expect("POST")
    for piece in [request] if at_once else [request[at : at + 8_000] for at in range(0, len(request), 8_000)]:
        if not client.peer_ended:
            await client.dribble(piece, len(piece))
    await response.read_end()

    assert response.status == 431
    assert b"headers_too_large" in response.body or b"invalid_request_error" in response.body
    await is_closed(client)
    nothing_admitted(stage)


@pytest.mark.parametrize(("size", "status"), [(65_000, 200), (65_600, 431)])
async def test_a_head_just_below_the_limit_passes(stage: Stage, size: int, status: int) -> None:
    """The limit is where it says."""
    stage.upstream.respond_with(lambda call: call.answer_json({}))
    lines = [b"x-%02d: %b\r\n" % (number, b"a" * 992) for number in range(size // 1000)]
    filler = b"x-filler: " + b"b" * (size % 1000) + b"\r\n"
    client = await stage.client()
    response = client.expect("GET")
    await client.send(b"GET /v1/vector_stores HTTP/1.1\r\nhost: h\r\n" + b"".join(lines) + filler + b"\r\n")
    await response.read_end()

    assert response.status == status


@pytest.mark.parametrize("size", [8_192, 20_000, 60_000, 100_000])
@pytest.mark.parametrize("prefix", ["/v1/files/", "/v1/models?q="])
async def test_a_target_that_is_too_long_is_refused(stage: Stage, prefix: str, size: int) -> None:
    """RELIABILITY row 7: 414."""
    client, response = await say(stage, head("GET", prefix + "a" * size), "GET")

    is_refusal(response, 414, "uri_too_long")
    nothing_admitted(stage)
    await client.close()


async def test_a_head_that_never_ends_is_refused_at_the_limit(stage: Stage) -> None:
    """Without a line end there is no line that is too long; the bytes are counted all the same."""
    client = await stage.client()
    response = client.expect("GET")
    await client.send(b"GET /v1/models HTTP/1.1\r\n")
    for number in range(100):
        if not response.ended:
            await client.dribble(b"x-%d: %b\r\n" % (number, b"c" * 990), 1000)
    await response.read_end()

    is_refusal(response, 431, "headers_too_large")
    await is_closed(client)


async def test_what_follows_a_refused_head_is_thrown_away_and_refused_no_second_time(stage: Stage) -> None:
    """One request, one refusal, however much comes behind it."""
    client = await stage.client()
    client.eof_received = lambda: client._reader.finish() or True  # type: ignore[method-assign,func-returns-value]
    response = client.expect("GET")
    await client.send(b"GET /v1/models HTTP/1.1\r\n")
    for _ in range(70):
        await client.dribble(b"x-one: " + b"c" * 991 + b"\r\n", 1000)
    await response.read_end()
    [connection] = stage.app.server.connections
    for _ in range(20):
        await client.dribble(b"x" * 10_000, 10_000)
    assert connection.transport is not None
    await client.close()

    is_refusal(response, 431, "headers_too_large")
    assert stage.series("rejections_total") == 1
    assert client.received.count(b"HTTP/1.1") == 1


# -- bodies that are too large ---------------------------------------------------------------------------------------


async def test_a_declared_body_above_the_limit_is_refused_before_it_is_read() -> None:
    """RELIABILITY row 8."""
    async with Stage(max_body_bytes=1000) as stage:
        client, response = await say(stage, head("POST", CHAT, JSON, b"content-length: 1001\r\n"))

        is_refusal(response, 413, "request_too_large")
        assert response.header("connection") == "close"
        await is_closed(client)
        nothing_admitted(stage)
        await stage.at_rest()


@pytest.mark.parametrize(("size", "status"), [(999, 200), (1000, 200), (1001, 413)])
@pytest.mark.parametrize("chunked", [True, False])
async def test_the_limit_of_a_body_is_where_it_says(size: int, status: int, chunked: bool) -> None:
    """RELIABILITY B: at the limit less one, at the limit, and one above."""
    async with Stage(max_body_bytes=1000) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        body = b'{"model":"m","a":"%b"}' % (b"x" * (size - 20))
        assert len(body) == size
        framing = b"transfer-encoding: chunked\r\n" if chunked else b"content-length: %d\r\n" % size
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body
        client, response = await say(stage, head("POST", CHAT, JSON, framing) + sent)

        assert response.status == status
        await client.close()
        await stage.at_rest()


async def test_a_chunked_body_without_end_is_refused_at_the_limit() -> None:
    """RELIABILITY rows 5 and 9, CVE-2025-69228: undeclared, so it is counted; no more than that is held."""
    async with Stage(max_body_bytes=1 << 20) as stage:
        client = await stage.client()
        response = client.expect("POST")
        await client.send(head("POST", CHAT, JSON, b"transfer-encoding: chunked\r\n"))
        piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        sent = 0
        while not response.ended and sent < 64 << 20:
            await client.send(piece)
            sent += len(piece)

        is_refusal(await response.read_end(), 413, "request_too_large")
        assert sent < 16 << 20
        await is_closed(client)
        nothing_admitted(stage)
        await stage.at_rest()


def send_all_then_read(port: int, request: bytes, pieces: list[bytes]) -> bytes:
    """What a simple client does: it reads when it has sent everything, and not before."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        return answer


@pytest.mark.parametrize("auth", ["passthrough", "required"])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_client_that_sends_a_hundred_megabytes_first_can_read_the_refusal(declared: bool, auth: str) -> None:
    """The answer must not be lost to a reset: what is still sent is read and thrown away, in bounded memory."""
    size, piece = 100 << 20, b"x" * (1 << 20)
    framing = b"content-length: %d\r\n" % size if declared else b"transfer-encoding: chunked\r\n"
    request = head("POST", CHAT, JSON, framing)
    pieces = [piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece)] * 100
    async with Stage(max_body_bytes=1 << 20, auth=auth) as stage:
        tracemalloc.start()
        answer = await asyncio.to_thread(send_all_then_read, stage.app.port, request, pieces)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        status = b"413" if auth == "passthrough" else b"401"

        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"}")
        assert peak < 12 << 20
        await stage.at_rest()


async def test_a_client_that_never_stops_sending_is_cut_off_after_a_while(frozen_clock: FrozenClock) -> None:
    """What is thrown away is bounded in time."""
    async with Stage(clock=frozen_clock, max_body_bytes=1000) as stage:
        client = await stage.client()
        client.eof_received = lambda: client._reader.finish() or True  # type: ignore[method-assign,func-returns-value]
        response = client.expect("POST")
        await client.send(head("POST", CHAT, JSON, b"content-length: 100000000\r\n"))
        await response.read_end()
        [connection] = stage.app.server.connections
        await client.send(b"x" * 100_000)
        assert connection.transport is not None
        frozen_clock.advance(5.1)
        await wait_until(lambda: not stage.app.server.connections, "the proxy has closed the connection")

        is_refusal(response, 413, "request_too_large")
        await stage.at_rest()


@pytest.mark.long
@pytest.mark.parametrize("size", [1 << 20, 65_536])
async def test_a_body_in_one_byte_chunks_costs_little_more_than_one_chunk(size: int) -> None:
    """CVE-2020-8659, CVE-2025-69229, RELIABILITY row 6: neither memory nor processor time explodes."""
    async with Stage() as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        body = b'{"model":"m","a":"' + b"x" * (size - 20) + b'"}'
        request = head("POST", CHAT, JSON, b"transfer-encoding: chunked\r\n")
        request += b"".join([b"1\r\n%c\r\n" % byte for byte in body]) + b"0\r\n\r\n"
        client = await stage.client()
        response = client.expect("POST")
        began_at = time.process_time()
        await client.send(request)
        await response.read_end()
        took_s = time.process_time() - began_at

        assert response.status in (200, 400)
        assert [call.body for call in stage.upstream.history] == ([body] if response.status == 200 else [])
        assert took_s < 8.0 * size / (1 << 20) + 1.0
        await client.close()
        await stage.at_rest()


@pytest.mark.parametrize("count", [2_000, 100_000])
async def test_trailers_without_end_are_refused(stage: Stage, count: int) -> None:
    """CVE-2026-22815: trailers are headers and bounded like them."""
    client = await stage.client()
    response = client.expect("POST")
    request = head("POST", CHAT, JSON, b"transfer-encoding: chunked\r\n") + b"2\r\n{}\r\n0\r\n"
    client._transport.write(request + b"".join([b"t%d: x\r\n" % number for number in range(count)]) + b"\r\n")
    await response.read_end()

    is_refusal(response, 431, "headers_too_large")
    nothing_admitted(stage)


# -- encodings that are not what they say ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/files", "/v1/nowhere"])
async def test_a_compressed_bomb_is_never_unpacked(stage: Stage, path: str) -> None:
    """RELIABILITY row 10, CVE-2025-69223, CVE-2026-54278, CVE-2026-128131: it goes alone, as it came."""
    bomb = gzip.compress(b'{"model":"' + b"m" * (30 << 20) + b'"}')
    many = b"".join([gzip.compress(b"")] * 10_000)
    for body in (bomb, many):
        tracemalloc.start()
        response = await stage.ask(body, path=path, headers=[("content-encoding", "gzip")])
        call = await stage.upstream.next_call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await call.answer_json({"error": {}}, status=400)
        await response.read_end()

        assert (call.body, call.header("content-encoding")) == (body, "gzip")
        assert peak < 16 << 20
        assert response.status == 400


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
async def test_a_bomb_at_a_refused_request_is_not_unpacked_either(path: str) -> None:
    """CVE-2026-54278: while a body is thrown away it is only counted."""
    async with Stage(auth="required") as stage:
        bomb = gzip.compress(b"\0" * (30 << 20))
        lines = [b"content-encoding: gzip\r\n", b"content-length: %d\r\n" % len(bomb)]
        tracemalloc.start()
        client, response = await say(stage, head("POST", path, *lines) + bomb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        is_refusal(response, 401, "invalid_api_key")
        assert peak < 4 << 20
        await client.close()
        await stage.at_rest()


# -- who asks --------------------------------------------------------------------------------------------------------

TWO_CREDENTIALS = {
    "authorization_twice": [CREDENTIAL, CREDENTIAL],
    "bearer_and_x_api_key": [CREDENTIAL, ("x-api-key", "k")],
    "x_api_key_twice": [("x-api-key", "k"), ("X-Api-Key", "other")],
    "bearer_and_api_key": [CREDENTIAL, ("api-key", "k")],
    "one_of_them_empty": [CREDENTIAL, ("x-api-key", "")],
}


@pytest.mark.parametrize("headers", TWO_CREDENTIALS.values(), ids=TWO_CREDENTIALS.keys())
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/mistral/v1/chat/completions"])
async def test_two_credentials_at_once_are_refused_in_the_dialect_of_the_route(
    stage: Stage, path: str, headers: list[tuple[str, str]]
) -> None:
    """RELIABILITY row 20: no rule picks a winner."""
    response = await (await stage.ask(chat(), path=path, headers=headers, key=None)).read_end()

    assert response.status == 400
    body = response.json()
    if path == MESSAGES:
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
        assert body["request_id"] == response.header("request-id")
    else:
        assert body.get("error", body)["code"] == "ambiguous_credential"
    nothing_admitted(stage)


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer sf-0123456789"),
        ("authorization", "bearer  sf-0123456789"),
        ("authorization", "sf-0123456789"),
        ("authorization", "Bearer\tsf-0123456789"),
        ("authorization", "Token sf-0123456789"),
        ("x-api-key", "sf-0123456789"),
        ("api-key", "sf-0123456789"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/files", "/v1/nowhere", "/v1/realtime"])
@pytest.mark.parametrize("auth", ["passthrough", "required"])
async def test_a_virtual_key_is_refused_and_never_reaches_an_upstream(
    header: tuple[str, str], path: str, auth: str
) -> None:
    """A key of ours belongs to nobody else."""
    async with Stage(auth=auth) as stage:
        response = await (await stage.ask(chat(), path=path, headers=[header], key=None)).read_end()

        assert response.status == 401
        assert response.header("x-should-retry") == "false"
        assert b"0123456789" not in response.body
        assert b"0123456789" not in stage.log_output.getvalue()
        nothing_admitted(stage)
        await stage.at_rest()


@pytest.mark.parametrize("headers", [[], [CREDENTIAL], [("x-api-key", "k")], [("authorization", "Basic eDp5")]])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/files", "/v1/nowhere", "/openai/v1/models"])
async def test_nobody_gets_in_without_a_key_of_ours_where_one_is_required(
    path: str, headers: list[tuple[str, str]]
) -> None:
    """CVE-2026-59822: no way of failing to authenticate falls through to the upstream."""
    async with Stage(auth="required", env={"OPENAI_API_KEY": "sk-ours"}) as stage:
        response = await (await stage.ask(chat(), path=path, headers=headers, key=None)).read_end()

        assert response.status == 401
        nothing_admitted(stage)
        await stage.at_rest()


async def test_an_authentication_that_fails_in_itself_lets_nobody_in(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-59822: an exception is no permission."""

    def fail(*_: object) -> None:
        raise RuntimeError("the key store is on fire: secret-detail")

    monkeypatch.setattr(type(stage.app.pipeline._identity), "authenticate", fail)
    response = await (await stage.ask(chat())).read_end()

    is_refusal(response, 500, "internal_error")
    assert b"secret-detail" not in response.body
    nothing_admitted(stage)
    stage.app.metrics.last_bug = ""


async def test_no_field_at_any_depth_changes_the_host_that_is_called(stage: Stage) -> None:
    """PYSEC-2026-4070, CVE-2024-6587, CVE-2025-66405, CVE-2026-108719: where it goes is the operator's alone."""
    stage.upstream.respond_with(lambda call: call.answer_json(completion()))
    elsewhere = "http://192.0.2.1:9/"
    names = ["api_base", "base_url", "api_url", "callback_url", "user_config", "webhook", "proxy", "host"]
    fields: dict[str, Any] = dict.fromkeys(names, elsewhere)
    body = chat(**fields, litellm_params={"user_config": [fields]})
    headers = [(f"x-{name.replace('_', '-')}", elsewhere) for name in names]
    headers += [("x-portkey-custom-host", elsewhere), ("forwarded", "host=192.0.2.1")]
    query = "&".join(f"{name}={elsewhere}" for name in names)
    response = await stage.ask(body, path=f"{CHAT}?{query}", headers=headers)
    await response.read_end()

    assert response.status == 200
    assert stage.upstream.calls == 1


# -- our own failures ------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


PLACES = {
    "admit": ("pipeline", "admit"),
    "parse": ("pipeline", "plan"),
    "plan": ("pipeline", "plan"),
    "look_up": ("hot", "lookup"),
    "join": ("table", "join"),
    "produce": ("transport", "exchange"),
}


@pytest.mark.parametrize(("owner", "name"), PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("error", [RuntimeError("secret-detail"), KeyError("secret-detail")])
async def test_a_bug_anywhere_is_a_500_with_a_metric_and_no_trace(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, error: Exception
) -> None:
    """The client gets an answer, the log gets the trace, the books get a line, and the next request is served."""
    with monkeypatch.context() as patch:
        patch.setattr(type(getattr(stage.app, owner)), name, raising(error))
        if name == "lookup":
            response = await (await stage.ask(None, method="GET", path="/v1/models")).read_end()
        else:
            response = await (await stage.ask(chat())).read_end()
    is_refusal(response, 500, "internal_error")
    assert b"secret-detail" not in response.body
    assert stage.series("bugs_total") == 1
    assert stage.app.metrics.last_bug != ""
    [line] = await stage.access_lines(1)
    assert (line["status"], line["error_type"]) == (500, "internal_error")
    stage.app.metrics.last_bug = ""

    again = await stage.ask(chat())
    await (await stage.upstream.next_call()).answer_json(completion())
    assert (await again.read_end()).status == 200


async def test_a_bug_after_the_answer_began_breaks_it_off(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way back to a status: the answer ends as a broken one."""
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(b"data: one\n\n")
    await response.read_until(b"data: one\n\n")
    monkeypatch.setattr("proxy.intake.Intake._take", raising(RuntimeError("secret-detail")))
    call.raw(b"b\r\ndata: two\n\n\r\n")
    await response.read_end()
    stage.app.metrics.last_bug = ""

    assert response.truncated
    assert b"[DONE]" not in response.body
    assert b"secret-detail" not in response.body


DIALECTS = {
    "openai": (CHAT, {"error"}),
    "anthropic": (MESSAGES, {"type", "error", "request_id"}),
    "mistral": ("/mistral/v1/chat/completions", {"object", "message", "type", "param", "code"}),
    "pass_through": ("/v1/nowhere", {"error"}),
    "anthropic_pass_through": ("/v1/messages/batches", {"type", "error", "request_id"}),
}


@pytest.mark.parametrize(("path", "members"), DIALECTS.values(), ids=DIALECTS.keys())
async def test_every_kind_of_error_is_told_in_the_dialect_of_the_route(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, path: str, members: set[str]
) -> None:
    """PROTOCOL 1.3: shape, request id, the word on retries, and nothing of the detail."""
    errors = iter([ProxyError(kind, "It failed.", detail="secret-detail", retry_after_s=1.5) for kind in Kind])
    admit = stage.app.pipeline.admit
    current: list[ProxyError] = []

    def fail(exchange: Exchange) -> None:
        admit(exchange)
        current.append(next(errors))
        raise current[-1]

    monkeypatch.setattr(stage.app.pipeline, "admit", fail)
    for kind in Kind:
        response = await (await stage.ask(chat(), path=path)).read_end()
        body = response.json()

        assert (response.status, set(body)) == (kind.status, members)
        request_id = response.header("x-sameflight-request-id")
        assert request_id == response.header("x-request-id") is not None
        expected = {True: "true", False: "false", None: None}[kind.value.should_retry]
        assert response.header("x-should-retry") == expected
        assert (response.header("retry-after"), response.header("retry-after-ms")) == ("2", "1500")
        assert b"secret-detail" not in response.body
        if "request_id" in members:
            assert body["type"] == "error"
            assert body["error"] == {"type": kind.value.anthropic_type, "message": "It failed."}
            assert body["request_id"] == request_id == response.header("request-id")
        elif "object" in members:
            assert (body["object"], body["type"], body["code"]) == ("error", kind.value.openai_type, kind.code)
        else:
            assert body["error"] == {
                "message": "It failed.", "type": kind.value.openai_type, "param": None, "code": kind.code,
            }  # fmt: skip
        assert response.ended
    assert len(current) == len(Kind)


async def test_a_head_request_that_is_refused_has_a_status_and_no_body(stage: Stage) -> None:
    """RFC 9110, 9.3.2."""
    client = await stage.client()
    response = await client.request("HEAD", "/v1/files/%2e%2e/x", [CREDENTIAL])
    again = await client.request("GET", "/health")

    assert (response.status, response.body) == (400, b"")
    assert int(response.header("content-length") or 0) > 0
    assert again.status == 200


# -- loops, secrets, many --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/files", MESSAGES])
async def test_a_request_that_came_from_here_is_a_loop(stage: Stage, path: str) -> None:
    """The mark that the upstream saw comes back: 508, and the circle ends at its first turn."""
    first = await stage.ask(chat(), path=path)
    call = await stage.upstream.next_call()
    via = call.header("via")
    assert via is not None
    await call.answer_json(completion())
    await first.read_end()
    for value in (via, "1.1 other, " + via, via + ", 1.1 nginx"):
        response = await (await stage.ask(chat(), path=path, headers=[("via", value)])).read_end()

        assert response.status == 508
        assert response.header("x-should-retry") == "false"
    assert stage.upstream.calls == 1
    other = await stage.ask(chat(), path=path, headers=[("via", "1.1 sameflight-ffffffffffff, 1.1 nginx")])
    await (await stage.upstream.next_call()).answer_json(completion())
    assert (await other.read_end()).status == 200


async def test_a_hundred_refusals_at_once_harm_nobody_else(stage: Stage) -> None:
    """Bad input is cheap, and good input beside it is served."""
    good = await stage.ask(chat())
    call = await stage.upstream.next_call()
    bad = await asyncio.gather(*(stage.ask(b"{", path=CHAT) for _ in range(100)))
    for response in bad:
        is_refusal(await response.read_end(), 400, "invalid_json")
    await call.answer_json(completion())

    assert (await good.read_end()).json() == completion()
    assert stage.upstream.calls == 1
