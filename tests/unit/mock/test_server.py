"""The mock as a server: connections, counters, pace, limits."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from proxy.mock import MockOptions, MockUpstream, key_of
from proxy.mock.connection import MAX_BODY_BYTES
from tests.fakes.client import RawClient
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.unit.mock.asking import KEY, make_chat

_PATH = "/v1/chat/completions"


async def test_calls_are_counted_recorded_and_told(client: RawClient, mock: MockUpstream) -> None:
    """Counters, keys and recorded requests agree, in Python and over HTTP."""
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"x"}]}'
    for _ in range(2):
        assert (await client.request("POST", f"{_PATH}?a=1", [*KEY, ("X-Odd", "Case")], body)).status == 200
    await client.request("GET", "/v1/models", KEY)
    stats = (await client.request("GET", "/__mock/stats")).json()
    assert (mock.calls, mock.in_flight, mock.aborted, mock.peak_in_flight) == (3, 0, 0, 1)
    assert mock.calls_by_key[key_of(body)] == 2
    assert (stats["calls"], stats["distinct"], stats["keys"][key_of(body)]) == (3, 2, 2)
    seen = mock.requests[0]
    assert (seen.method, seen.target, seen.body) == ("POST", f"{_PATH}?a=1", body)
    assert (b"X-Odd", b"Case") in seen.headers


async def test_counters_are_reset_on_request(client: RawClient, mock: MockUpstream) -> None:
    """A load test starts from zero; other control routes do not exist."""
    await client.request("GET", "/v1/models", KEY)
    assert (await client.request("POST", "/__mock/reset")).json()["calls"] == 0
    assert (mock.calls, mock.calls_by_key) == (0, {})
    assert (await client.request("GET", "/__mock/other")).status == 404


async def test_oldest_key_is_forgotten_beyond_the_bound(
    client: RawClient, mock: MockUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long load test does not fill the memory with keys."""
    monkeypatch.setattr("proxy.mock.server.MAX_KEYS", 2)
    for number in range(4):
        await client.request("GET", f"/v1/models/{number}", KEY)
    assert (len(mock.calls_by_key), mock.keys_forgotten, mock.describe()["distinct"]) == (2, 2, 4)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/unknown", 404),
        ("GET", "/", 404),
        ("GET", _PATH, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/files", 400),
        ("GET", "/v1/files/file-1/other", 404),
        ("GET", "/v1/files/file-99999999999999", 404),
        ("GET", "/v1/models/missing-model", 404),
        ("POST", _PATH, 400),
    ],
)
async def test_request_that_has_no_answer_is_refused(client: RawClient, method: str, path: str, status: int) -> None:
    """Unknown paths, wrong methods and empty bodies get the vendor's error and keep the connection."""
    response = await client.request(method, path, KEY)
    assert (response.status, response.json().keys(), client.peer_ended) == (status, {"error"}, False)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"model": 3, "messages": {}}', b'{"model":"m","messages":[1],"n":"x"}']
)
async def test_body_that_makes_no_sense_is_a_bad_request(client: RawClient, body: bytes) -> None:
    """Broken JSON, other values than objects and fields of wrong types."""
    assert (await client.request("POST", _PATH, KEY, body)).status == 400


@pytest.mark.parametrize(
    "headers", [[], [("authorization", "Bearer ")], [("authorization", "Basic abc")], [("x-api-key", "")]]
)
async def test_call_without_a_credential_is_refused(client: RawClient, headers: list[tuple[str, str]]) -> None:
    """A bearer token or a vendor's key, and neither may be empty."""
    assert (await client.request("GET", "/v1/models", headers)).status == 401
    anthropic = await client.request("POST", "/v1/messages", headers, make_chat())
    assert (anthropic.status, anthropic.json()["error"]["type"]) == (401, "authentication_error")


async def test_overrides_can_be_forbidden(client: RawClient, mock: MockUpstream) -> None:
    """The suffix is then part of a name like any other."""
    mock.options = MockOptions(allow_overrides=False)
    answer = await client.request("POST", _PATH, [*KEY, ("x-mock-fault", "500")], make_chat("gpt-4o?fault=429"))
    assert (answer.status, answer.json()["model"]) == (200, "gpt-4o?fault=429")


async def test_pipelined_requests_are_answered_in_order(client: RawClient) -> None:
    """A slow first answer holds the fast second one back."""
    first, second = client.expect("POST"), client.expect("GET")
    slow = client.make_request("POST", _PATH, KEY, make_chat("gpt-4o?latency_ms=20"))
    await client.send(slow + client.make_request("GET", "/v1/models", KEY))
    await second.read_end()
    assert (first.json()["object"], second.json()["object"], client.unread) == ("chat.completion", "list", b"")


async def test_dribbled_request_is_answered_once(client: RawClient, mock: MockUpstream) -> None:
    """Bytes may come one by one."""
    response = client.expect("POST")
    await client.dribble(client.make_request("POST", _PATH, KEY, make_chat()))
    await response.read_end()
    assert (response.status, mock.calls) == (200, 1)


async def test_old_client_gets_a_stream_without_chunks(client: RawClient) -> None:
    """HTTP/1.0 has no transfer codings: the stream ends with the connection."""
    request = client.make_request("POST", _PATH, KEY, make_chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
    response = client.expect("POST")
    await client.send(request)
    await response.read_end()
    assert (response.close_delimited, response.ended, len(response.events())) == (True, True, 23)


async def test_expectation_is_met_before_the_body(client: RawClient) -> None:
    """100 Continue comes while the body is awaited."""
    headers = [*KEY, ("expect", "100-continue"), ("content-length", "2")]
    response = client.expect("POST")
    await client.send(client.make_request("POST", _PATH, headers))
    await client.wait_for(lambda: response.informational, "100 Continue arrived")
    await client.send(b"{}")
    await response.read_end()
    assert (response.informational, response.status) == ([100], 400)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000, 431),
    ],
)
async def test_request_that_cannot_be_read_closes_its_connection(
    client: RawClient, mock: MockUpstream, sent: bytes, status: int
) -> None:
    """One refusal, then FIN, and no call is counted."""
    response = client.expect()
    await client.send(sent)
    await response.read_end()
    await client.peer_closed()
    assert (response.status, mock.calls) == (status, 0)


async def test_body_beyond_the_bound_is_refused(client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for bodies has an end."""
    assert MAX_BODY_BYTES == 64 << 20
    monkeypatch.setattr("proxy.mock.connection.MAX_BODY_BYTES", 1000)
    response = await client.start("POST", _PATH, KEY, b"x" * 1001)
    await response.read_end()
    assert response.status == 413


async def test_paced_stream_takes_its_time() -> None:
    """On a clock that stands still nothing beyond the first event comes until the clock moves."""
    clock = FrozenClock()
    async with MockUpstream(MockOptions(latency_ms=300, pace_ms=100, tokens=2), clock=clock) as mock:
        client = await RawClient.connect_url(mock.url)
        response = await client.start("POST", _PATH, KEY, make_chat(stream=True))
        await wait_until(lambda: mock.in_flight == 1, "the call arrived")
        await run_ticks()
        assert client.bytes_received == 0
        clock.advance(0.301)
        await response.read_until(b"\n\n")
        assert (response.status, len(response.events())) == (200, 1)
        for count in (2, 3, 4, 5):
            assert len(response.events()) == count - 1
            clock.advance(0.101)
            await response.read_until(b"\n\n")
        await response.read_end()
        assert (response.ended, len(response.chunks)) == (True, 5)
        await client.close()


async def test_client_that_leaves_during_the_latency_is_counted() -> None:
    """The timer of an answer that nobody awaits is given up."""
    clock = FrozenClock()
    async with MockUpstream(MockOptions(latency_ms=1000), clock=clock) as mock:
        client = await RawClient.connect_url(mock.url)
        await client.start("POST", _PATH, KEY, make_chat())
        await wait_until(lambda: mock.in_flight == 1, "the call arrived")
        await client.reset()
        await wait_until(lambda: mock.aborted == 1, "the abort was counted")
        clock.advance(2)
        await run_ticks()
        assert (mock.in_flight, mock.open_connections) == (0, 0)


async def test_reader_that_stops_holds_a_huge_download(mock: MockUpstream) -> None:
    """A terabyte is on offer; what is sent is what fits in the buffers, and leaving ends it."""
    client = await RawClient.connect_url(mock.url, receive_buffer_bytes=8192)
    response = await client.stream("GET", "/v1/files/file-1000000000000/content", KEY)
    client.pause()
    await wait_until(lambda: any(connection._paused for connection in mock._connections), "the sender was held")
    assert (response.header("content-length"), client.bytes_received < 64 << 20) == ("1000000000000", True)
    await client.reset()
    await wait_until(lambda: mock.aborted == 1, "the abort was counted")


async def test_upload_is_counted_and_not_kept(client: RawClient, mock: MockUpstream) -> None:
    """Eight megabytes in, one small object out, no body on record."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body = head + b"z" * (8 << 20) + b"\r\n--b--\r\n"
    headers = [*KEY, ("content-type", "multipart/form-data; boundary=b")]
    response = await client.request("POST", "/v1/files", headers, body)
    assert (response.json()["bytes"], mock.requests[0].body) == (8 << 20, b"")
    assert mock.calls_by_key == {key_of(body): 1}
    broken = await client.request("POST", "/v1/files", headers, body[:-4])
    assert broken.status == 400


async def test_canned_answers_are_given_without_reading(mock: MockUpstream, client: RawClient) -> None:
    """One answer for each target and form; calls are counted, keys are not."""
    mock.options = MockOptions(canned=True)
    first = await client.request("POST", _PATH, KEY, make_chat(text="a"))
    second = await client.request("POST", _PATH, KEY, b"whatever")
    stream = await client.request("POST", _PATH, KEY, make_chat(stream=True))
    assert (second.status, first.body == second.body, len(stream.events())) == (200, True, 23)
    assert (mock.calls, mock.in_flight, mock.calls_by_key) == (3, 0, {})


async def test_unix_socket_and_tls_serve_alike(tmp_path: Path) -> None:
    """The listener may be a path, and it may speak TLS."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    unix, sealed = MockUpstream(), MockUpstream()
    await unix.start(unix_path=str(tmp_path / "m.sock"))
    await sealed.start(ssl_context=server_context)
    clients = [
        await RawClient.connect(unix_path=str(tmp_path / "m.sock")),
        await RawClient.connect_url(sealed.url, ssl_context=client_context),
    ]
    for client in clients:
        assert (await client.request("POST", _PATH, KEY, make_chat())).status == 200
        await client.close()
    assert (sealed.url.startswith("https://127.0.0.1:"), unix.port) == (True, 0)
    await unix.close()
    await sealed.close()


async def test_close_breaks_off_what_is_running() -> None:
    """Closing waits for every connection to be gone, and can be repeated."""
    mock = MockUpstream(MockOptions(latency_ms=60_000))
    await mock.start()
    client = await RawClient.connect_url(mock.url)
    await client.start("POST", _PATH, KEY, make_chat())
    await wait_until(lambda: mock.in_flight == 1, "the call arrived")
    await mock.close()
    await mock.close()
    assert (mock.open_connections, mock.in_flight, mock.aborted) == (0, 0, 1)
    await client.peer_closed()


def test_url_of_a_mock_that_was_not_started_is_an_error() -> None:
    """There is no address before there is a listener."""
    with pytest.raises(RuntimeError, match="not been started"):
        MockUpstream().url  # noqa: B018
