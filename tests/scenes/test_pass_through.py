"""What the proxy does not understand it hands on: method, path, headers and body, and the answer likewise."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.fakes.client import RawClient
from tests.fakes.gates import wait_until
from tests.scenes.stage import CHAT, KEY, MESSAGES, Stage, chat, completion

CREDENTIAL = ("authorization", f"Bearer {KEY}")
BYTES = bytes(range(256)) * 40


def names(headers: list[tuple[bytes, bytes]]) -> list[str]:
    return [name.decode().lower() for name, _ in headers]


# -- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND"])
@pytest.mark.parametrize("path", ["/v1/nowhere/at-all?x=%41&x=2", "/", "/favicon.ico", "/v1/batches/batch_1/cancel"])
async def test_an_unknown_path_passes_with_its_method_query_body_and_status(
    stage: Stage, method: str, path: str
) -> None:
    """Every method and every path; the answer's status is the upstream's, whatever it is."""
    body = b"" if method in ("GET", "HEAD") else BYTES
    response = await stage.ask(body, path=path, method=method, headers=[("content-type", "application/x-thing")])
    call = await stage.upstream.next_call()
    await call.answer(418, [("content-type", "text/tea"), ("x-pot", "short")], b"" if method == "HEAD" else BYTES)
    await response.read_end()

    assert (call.method, call.target, call.body) == (method, path, body)
    assert call.header("content-type") == "application/x-thing"
    assert (response.status, response.body) == (418, b"" if method == "HEAD" else BYTES)
    assert (response.header("content-type"), response.header("x-pot")) == ("text/tea", "short")


async def test_an_extension_method_that_the_parser_does_not_know_is_refused(stage: Stage) -> None:
    """It is answered, though, and nothing is guessed."""
    response = await stage.ask(None, path="/v1/models", method="BREW")
    await response.read_end()

    assert response.status == 400
    assert stage.upstream.calls == 0


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ("/models", "/v1/models"),
        ("/openai/v1/files?limit=1", "/v1/files?limit=1"),
        ("/anthropic/v1/messages/batches", "/v1/messages/batches"),
        ("/mistral/models", "/v1/models"),
        ("/anthropic/messages/batches/b/results", "/v1/messages/batches/b/results"),
        ("/mistral/v1/agents/ag_1", "/v1/agents/ag_1"),
    ],
)
async def test_a_mount_and_a_missing_version_are_put_right(stage: Stage, sent: str, arrives: str) -> None:
    """PROTOCOL 1.2: base URLs come with /v1 and without."""
    response = await stage.ask(None, path=sent, method="GET")
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert (call.target, response.status) == (arrives, 200)


async def test_a_private_call_carries_the_clients_headers_and_a_mark_and_nothing_else(stage: Stage) -> None:
    """Names, order and repeats are the client's; host, framing and the mark are ours."""
    sent = [
        ("User-Agent", "thing/1"),
        ("X-Twice", "a"),
        ("x-twice", "b"),
        ("Accept-Encoding", "br;q=1.0, zstd"),
        ("Cookie", "a=1"),
        ("traceparent", "00-1-2-01"),
        ("x-empty", ""),
        ("x-utf-8", "\u00fc"),
    ]
    response = await stage.ask(BYTES, path="/v1/nowhere", headers=sent)
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    got = [(name.decode().lower(), value.decode("latin-1")) for name, value in call.headers]
    assert [header for header in got if header[0] not in ("host", "via", "authorization", "content-length")] == [
        (name.lower(), value) for name, value in sent
    ]
    assert call.header("authorization") == f"Bearer {KEY}"
    assert call.header("host") == stage.upstream.url.removeprefix("http://")
    assert (call.header("via") or "").startswith("1.1 sameflight-")


@pytest.mark.parametrize(
    "connection",
    [
        [("connection", "authorization, content-type, x-own")],
        [("connection", ""), ("connection", "x-own, authorization")],
        [("connection", "close, X-Own"), ("connection", "Authorization")],
    ],
    ids=["all_in_one", "an_empty_one_first", "two_lines"],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/nowhere"])
async def test_a_client_can_nominate_its_own_headers_away_and_none_of_ours(
    stage: Stage, path: str, connection: list[tuple[str, str]]
) -> None:
    """CVE-2026-105299, CVE-2021-33197, RELIABILITY A3: ours are added after the removal."""
    headers = [*connection, ("x-own", "1"), ("keep-alive", "timeout=5"), ("te", "trailers"), ("trailer", "x"),
               ("proxy-connection", "keep-alive"), ("proxy-authorization", "Basic eDp5"),
               ("content-type", "application/json")]  # fmt: skip
    response = await stage.ask(b'{"model":"m"}', path=path, headers=headers)
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()

    assert call.header("authorization") == f"Bearer {KEY}"
    assert call.header("content-type") == "application/json"
    assert call.header("via") is not None
    hidden = {"x-own", "connection", "keep-alive", "te", "trailer", "proxy-connection", "proxy-authorization"}
    assert hidden.isdisjoint(names(call.headers))


async def test_our_own_controls_and_what_others_say_about_the_client_stay_here(stage: Stage) -> None:
    """The upstream learns of the caller what the caller told it, and nothing of the network."""
    own = [("x-sameflight-variant", "a"), ("x-forwarded-for", "10.0.0.1"), ("forwarded", "for=10.0.0.1")]
    own += [("x-real-ip", "10.0.0.1"), ("x_api_key", "sneaky")]
    response = await stage.ask(BYTES, path="/v1/nowhere", headers=own)
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert {name for name, _ in own}.isdisjoint(names(call.headers))


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (204, [], b""),
        (304, [("etag", '"a"')], b""),
        (206, [("content-range", "bytes 0-3/10")], b"abcd"),
        (201, [("location", "/v1/things/1")], b"{}"),
        (416, [("content-range", "bytes */10")], b""),
        (429, [("retry-after", "7"), ("x-ratelimit-remaining-requests", "0")], b'{"error":{}}'),
        (500, [("x-should-retry", "true")], b"oops"),
        (299, [], b"odd"),
        (599, [], b"odder"),
    ],
)
async def test_any_status_passes_with_its_headers_and_its_body(
    stage: Stage, status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    """Nothing is interpreted, and the connection stays usable."""
    client = await stage.client()
    response = await stage.ask(None, method="GET", path="/v1/nowhere", client=client)
    call = await stage.upstream.next_call()
    if status in (204, 304):
        call.raw(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, b"".join(f"{n}: {v}\r\n".encode() for n, v in headers)))
        call.done()
    else:
        await call.answer(status, headers, body)
    await response.read_end()
    again = await client.request("GET", "/health")

    assert (response.status, response.body, response.ended) == (status, body, True)
    assert [(name, response.header(name)) for name, _ in headers] == headers
    if status in (204, 304):
        assert response.header("content-length") is None
    assert again.status == 200


@pytest.mark.parametrize("length", [None, 1234])
@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304)])
async def test_an_answer_without_body_says_the_length_that_the_upstream_said(
    stage: Stage, method: str, status: int, length: int | None
) -> None:
    """RFC 9110, 8.6: the length of what would have come, or none; never that of the nothing that came."""
    response = await stage.ask(None, method=method, path="/v1/files/f/content")
    call = await stage.upstream.next_call()
    said = b"content-length: %d\r\n" % length if length is not None else b""
    call.raw(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, said))
    call.done()
    await response.read_end()

    assert (response.status, response.body) == (status, b"")
    assert response.header("content-length") == (str(length) if length is not None else None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [CHAT, "/v1/files", "/v1/models"])
async def test_a_redirect_to_another_host_is_handed_to_the_client_and_not_followed(
    stage: Stage, path: str, status: int
) -> None:
    """GHSA-966j-vmvw-g2g9, CVE-2026-47265, RELIABILITY row 48: credentials go nowhere but to the upstream."""
    method = "GET" if path == "/v1/models" else "POST"
    response = await stage.ask(None, path=path, method=method)
    await (await stage.upstream.next_call()).answer(status, [("location", "http://192.0.2.1/v1/x")], b"moved")
    await response.read_end()

    assert (response.status, response.header("location")) == (status, "http://192.0.2.1/v1/x")
    assert response.body == b"moved"
    assert stage.upstream.calls == 1


@pytest.mark.parametrize("path", [CHAT, "/v1/nowhere"])
async def test_cookies_are_kept_for_one_caller_and_dropped_for_many(stage: Stage, path: str) -> None:
    """A cookie is one caller's."""
    response = await stage.ask(chat(), path=path)
    cookies = [("set-cookie", "a=1; HttpOnly"), ("set-cookie", "b=2")]
    await (await stage.upstream.next_call()).answer_json(completion(), headers=cookies)
    await response.read_end()

    shared = path == CHAT
    assert response.header_values("set-cookie") == ([] if shared else ["a=1; HttpOnly", "b=2"])


async def test_an_answers_own_connection_headers_stay_behind(stage: Stage) -> None:
    """Hop-by-hop in the other direction, nominated ones included; framing and date are ours."""
    headers = [
        ("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=5"), ("proxy-authenticate", "Basic"),
        ("server", "them"), ("via", "1.1 them"), ("alt-svc", "h3=\":443\""),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("strict-transport-security", "max-age=1"), ("x-kept", "1"),
        ("x-sameflight-request-id", "forged"), ("cache-status", "them; hit"),
    ]  # fmt: skip
    response = await stage.ask(None, method="GET", path="/v1/nowhere")
    await (await stage.upstream.next_call()).answer(200, headers, b"x")
    await response.read_end()

    got = names(response.headers)
    assert {"x-hop", "keep-alive", "proxy-authenticate", "server", "via", "alt-svc"}.isdisjoint(got)
    assert "strict-transport-security" not in got
    assert response.header("x-kept") == "1"
    assert response.header_values("date") != ["Thu, 01 Jan 1970 00:00:00 GMT"]
    assert len(response.header_values("date")) == 1
    assert response.header_values("x-sameflight-request-id") != ["forged"]
    assert len(response.header_values("x-sameflight-request-id")) == 1


@pytest.mark.parametrize("path", [CHAT, "/v1/nowhere"])
@pytest.mark.parametrize(
    "line",
    [b"x-bad: a\rset-cookie: b=1", b"x-bad: a\nx-split: 1", b"x-bad: a\0b", b"x-bad: a\x1b[31mb", b"x-bad\r\n : y"],
    ids=["cr", "lf", "nul", "escape", "folded"],
)
async def test_control_bytes_of_an_answers_headers_are_never_echoed(stage: Stage, path: str, line: bytes) -> None:
    """CVE-2026-34520, RELIABILITY row 49: the header goes, or the answer is refused; nothing is split."""
    response = await stage.ask(chat(), path=path)
    call = await stage.upstream.next_call()
    body = b'{"a":1}'
    call.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%b\r\ncontent-length: 7\r\n\r\n%b" % (line, body))
    call.done()
    await response.read_end()

    assert response.status in (200, 502)
    assert response.header("x-bad") is None
    assert response.header("set-cookie") is None
    for byte in (b"\0", b"\x1b"):
        assert byte not in b"".join(value for _, value in response.headers)
    if b"\n" not in line:
        assert response.header("x-split") is None


async def test_a_reason_phrase_is_never_handed_on(stage: Stage) -> None:
    """CVE-2023-49082, CVE-2026-34519: reason phrases are our own."""
    response = await stage.ask(None, method="GET", path="/v1/nowhere")
    call = await stage.upstream.next_call()
    call.raw(b"HTTP/1.1 200 Fine <script>\r\ncontent-length: 0\r\n\r\n")
    call.done()
    await response.read_end()

    assert (response.status, response.reason) == (200, "OK")


async def test_an_answer_that_switches_protocols_unasked_is_refused(stage: Stage) -> None:
    """CVE-2026-73548, CVE-2024-23326: a 101 on a pooled connection belongs to nobody."""
    response = await stage.ask(None, method="GET", path="/v1/nowhere")
    call = await stage.upstream.next_call()
    call.raw(b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nHTTP/1.1 200 OK\r\n")
    call.done()
    await response.read_end()

    assert response.status == 502
    assert stage.series("upstream_connections") == 0


@pytest.mark.parametrize("path", [CHAT, "/v1/nowhere"])
async def test_an_upstream_that_cannot_be_reached_is_a_502(path: str) -> None:
    """RELIABILITY row 24, for every kind of route."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with Stage(openai_upstream=f"http://127.0.0.1:{port}") as stage:
        response = await (await stage.ask(chat(), path=path)).read_end()

        assert (response.status, response.json()["error"]["code"]) == (502, "upstream_unreachable")
        assert str(port) not in response.body.decode()
        await stage.at_rest()


async def test_a_private_answer_that_breaks_off_never_looks_whole(stage: Stage) -> None:
    """With a length it ends short of it, in chunks without the last one."""
    for chunked in (False, True):
        response = await stage.ask(None, method="GET", path="/v1/nowhere")
        call = await stage.upstream.next_call()
        await call.send_head(200, [], content_length=None if chunked else 100, chunked=chunked)
        await call.send(b"x" * 10)
        await response.read_until(b"x" * 10)
        call.reset()
        await response.read_end()

        assert (response.truncated, response.ended, response.body) == (True, False, b"x" * 10)


async def test_an_answer_that_ends_with_its_connection_is_passed_on_in_chunks(stage: Stage) -> None:
    """The client's connection is kept although the upstream's was not."""
    client = await stage.client()
    response = await stage.ask(None, method="GET", path="/v1/nowhere", client=client)
    call = await stage.upstream.next_call()
    await call.send_head(200, [])
    await call.send(BYTES)
    await call.end()
    await response.read_end()

    assert (response.body, response.header("transfer-encoding")) == (BYTES, "chunked")
    assert (await client.request("GET", "/health")).status == 200


# -- credentials ---------------------------------------------------------------------------------------------

KEYS = {"OPENAI_API_KEY": "sk-our-openai", "ANTHROPIC_API_KEY": "sk-our-anthropic", "MISTRAL_API_KEY": "our-mistral"}


@pytest.mark.parametrize(
    ("path", "presented", "arrives"),
    [
        (CHAT, None, ("authorization", "Bearer sk-our-openai")),
        (CHAT, ("authorization", "Bearer DUMMY_KEY"), ("authorization", "Bearer sk-our-openai")),
        (CHAT, ("authorization", "Bearer not-needed"), ("authorization", "Bearer sk-our-openai")),
        (CHAT, ("authorization", "Bearer "), ("authorization", "Bearer sk-our-openai")),
        (CHAT, ("authorization", "Bearer sk-theirs"), ("authorization", "Bearer sk-theirs")),
        ("/v1/files", None, ("authorization", "Bearer sk-our-openai")),
        ("/v1/nowhere", ("authorization", "Bearer dummy"), ("authorization", "Bearer sk-our-openai")),
        (MESSAGES, None, ("x-api-key", "sk-our-anthropic")),
        (MESSAGES, ("x-api-key", "dummy"), ("x-api-key", "sk-our-anthropic")),
        (MESSAGES, ("authorization", "Bearer dummy"), ("authorization", "Bearer sk-our-anthropic")),
        (MESSAGES, ("x-api-key", "sk-theirs"), ("x-api-key", "sk-theirs")),
        ("/mistral/v1/chat/completions", None, ("authorization", "Bearer our-mistral")),
    ],
)
async def test_who_brings_no_credential_of_its_own_gets_ours(
    path: str, presented: tuple[str, str] | None, arrives: tuple[str, str]
) -> None:
    """PROTOCOL 1.2, key rule: one credential goes upstream, in the header that the caller's SDK uses."""
    async with Stage(env=KEYS) as stage:
        response = await stage.ask(chat(), path=path, key=None, headers=[presented] if presented else [])
        call = await stage.upstream.next_call()
        await call.answer_json(completion())
        await response.read_end()
        carried = [(name, call.header(name)) for name in ("authorization", "x-api-key", "api-key")]

        assert [header for header in carried if header[1] is not None] == [arrives]
        assert response.status == 200
        await stage.at_rest()


async def test_without_a_key_anywhere_the_request_goes_as_it_came(stage: Stage) -> None:
    """The upstream says what it thinks of that."""
    response = await stage.ask(chat(), key=None)
    call = await stage.upstream.next_call()
    await call.answer_json({"error": {"message": "no key"}}, status=401)
    await response.read_end()

    assert call.header("authorization") is None
    assert (response.status, response.json()) == (401, {"error": {"message": "no key"}})


async def test_keys_that_share_a_prefix_of_any_length_never_share_an_answer(stage: Stage) -> None:
    """CVE-2026-35030: the whole credential counts, to its last character."""
    key = "sk-0123456789abcdefghij"
    twins = [key[:length] + "X" * (len(key) - length) for length in range(3, len(key))] + [key, key + "a"]
    for twin in twins:
        await stage.ask(chat(temperature=0), key=twin)
    calls = [await stage.upstream.next_call() for _ in twins]
    for call in calls:
        await call.answer_json(completion(call.header("authorization") or ""))

    assert {call.header("authorization") for call in calls} == {f"Bearer {twin}" for twin in twins}


@pytest.mark.parametrize("key", ["' OR 1=1 --", "a'; SELECT pg_sleep(9); --", "%_%_%", "\u00fc" * 10, "k" * 60_000])
async def test_a_strange_credential_is_only_a_credential(stage: Stage, key: str) -> None:
    """CVE-2026-42208, CVE-2026-25591: it is hashed and handed on, never read."""
    response = await stage.ask(chat(), key=None, headers=[("authorization", f"Bearer {key}".encode())])
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()

    sent = next(value for name, value in call.headers if name.lower() == b"authorization")
    assert sent == f"Bearer {key}".encode()
    assert response.status == 200


# -- listeners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stale", [False, True])
async def test_a_unix_socket_serves_like_a_port_even_where_a_dead_one_lies(tmp_path: Path, stale: bool) -> None:
    """A socket file of a killed process is no obstacle, and is gone afterwards."""
    path = str(tmp_path / "proxy.sock")
    if stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    assert os.listdir(tmp_path) == (["proxy.sock"] if stale else [])
    async with Stage(unix_socket=path) as stage:
        client = await RawClient.connect(unix_path=path)
        stage.clients.append(client)
        response = client.expect("POST")
        await client.send(client.make_request("POST", CHAT, [CREDENTIAL], chat()))
        await (await stage.upstream.next_call()).answer_json(completion())
        await response.read_end()
        refused = await client.request("POST", CHAT, [CREDENTIAL], b"{")

        assert response.json() == completion()
        assert refused.status == 400
        leaver = await RawClient.connect(unix_path=path)
        await leaver.send(leaver.make_request("POST", CHAT, [CREDENTIAL], chat(stream=True)))
        call = await stage.upstream.next_call()
        await leaver.close()
        await call.client_gone()
        await stage.at_rest()
    assert os.listdir(tmp_path) == []


async def test_a_unix_socket_that_somebody_listens_on_is_not_taken_away(tmp_path: Path) -> None:
    """Two processes on one path is a mistake that must show at the second one."""
    path = str(tmp_path / "proxy.sock")
    async with Stage(unix_socket=path) as stage:
        second = Stage(unix_socket=path)
        with pytest.raises(OSError, match="in use"):
            await second.__aenter__()
        await second.upstream.close()
        second._logging.close()
        second._state_dir.cleanup()
        client = await RawClient.connect(unix_path=path)
        stage.clients.append(client)

        assert (await client.request("GET", "/health")).status == 200


async def test_health_is_answered_on_the_data_port_and_is_no_traffic(stage: Stage) -> None:
    """Probes of load balancers are neither logged nor counted nor forwarded."""
    client = await stage.client()
    whole = await client.request("GET", "/health")
    head = await client.request("HEAD", "/health")
    posted = client.expect("POST")
    await client.send(client.make_request("POST", "/health", [CREDENTIAL], b""))
    await (await stage.upstream.next_call()).answer_json({})
    await posted.read_end()
    await wait_until(lambda: stage.series("requests_total") == 1, "the forwarded one was counted")

    assert (whole.status, whole.json(), head.status, head.body) == (200, {"status": "ok"}, 200, b"")
    assert posted.status == 200
