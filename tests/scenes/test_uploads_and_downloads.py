"""Large bodies in either direction: streamed, paced by the slower side, and held in memory by nobody."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from typing import cast

import pytest

from tests.fakes.client import RawClient, RawResponse
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import KEY, Stage, chat

MIB = 1 << 20
BOUNDARY = "----sameflight-test"
MULTIPART = ("content-type", f"multipart/form-data; boundary={BOUNDARY}")
ROUTES = ["/v1/files", "/v1/uploads/u_1/parts", "/v1/audio/transcriptions", "/v1/images/edits", "/anthropic/v1/files"]


def form(content: bytes, name: str = "a.jsonl") -> bytes:
    """A form with a purpose and a file."""
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n'
    head += f'content-disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode("utf-8", "surrogateescape") + content + f"\r\n--{BOUNDARY}--\r\n".encode()


async def begin(
    stage: Stage, length: int | None, *, path: str = "/v1/files", window: int = 0
) -> tuple[RawClient, RawResponse, Call]:
    """An upload whose head has reached the upstream, and no byte of whose body has been sent."""
    client = await stage.client(receive_buffer_bytes=window) if window else await stage.client()
    framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
    response = await client.start("POST", path, [("authorization", f"Bearer {KEY}"), MULTIPART, framing])
    return client, response, await stage.upstream.next_call(whole=False)


# -- uploads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_form_arrives_byte_for_byte(stage: Stage, path: str, chunked: bool) -> None:
    """The boundary is the client's and so is every byte between; framing with a length stays one with a length."""
    body = form(bytes(range(256)) * 300)
    client = await stage.client()
    headers = [("authorization", f"Bearer {KEY}"), MULTIPART]
    if chunked:
        headers.append(("transfer-encoding", "chunked"))
        pieces = (body[:1], body[1:70_000], body[70_000:])
        sent = b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]) + b"0\r\n\r\n"
    else:
        sent = body
    response = await client.start("POST", path, headers, sent)
    call = await stage.upstream.next_call()
    await call.answer_json({"id": "file-1"})
    await response.read_end()

    assert call.body == body
    assert call.header("content-type") == MULTIPART[1]
    assert call.header("content-length") == (None if chunked else str(len(body)))
    assert response.json() == {"id": "file-1"}
    assert (await client.request("GET", "/health")).status == 200
    [line] = await stage.access_lines(1)
    assert (line["bytes_in"], line["outcome"]) == (len(body), "ok")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\0b", "a\x01b", "\u2713 \u00e9.txt", "x" * 10_000])
async def test_a_hostile_file_name_is_only_bytes(stage: Stage, name: str) -> None:
    """PYSEC-2026-1540, CVE-2026-34514, CVE-2026-50269: forms are not parsed, so nothing can be put into one."""
    body = form(b"content", name)
    response = await stage.ask(body, path="/v1/files", headers=[MULTIPART])
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert call.body == body


async def test_a_boundary_of_a_megabyte_costs_nothing(stage: Stage) -> None:
    """PYSEC-2026-1545: too long for a head; and one that fits is not looked at."""
    for size, status in ((1 << 20, 431), (40_000, 200)):
        kind = ("content-type", "multipart/form-data; boundary=" + "-" * size)
        response = await stage.ask(b"x", path="/v1/files", headers=[kind])
        if status == 200:
            await (await stage.upstream.next_call()).answer_json({})
        await response.read_end()

        assert response.status == status


class Sink(asyncio.Protocol):
    """An upstream that counts the body it is sent and keeps none of it; answers when it was told to."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.head = b""
        self.counted = 0
        self.last = b""

    @classmethod
    async def listen(cls) -> tuple[Sink, asyncio.Server, str]:
        """One for the only connection that there will be, its server and its URL."""
        sink = cls()
        server = await asyncio.get_running_loop().create_server(lambda: sink, "127.0.0.1", 0)
        return sink, server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if b"\r\n\r\n" not in self.head:
            head, found, data = (self.head + data).partition(b"\r\n\r\n")
            self.head = head + found
        self.counted += data.count(b"\xff")
        self.last = data[-5:] or self.last

    def answer(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


async def upload_to_sink(stage: Stage, sink: Sink, framing: tuple[str, str]) -> tuple[RawClient, RawResponse]:
    """An upload whose head is there."""
    client = await stage.client()
    response = await client.start("POST", "/v1/files", [("authorization", f"Bearer {KEY}"), MULTIPART, framing])
    await wait_until(lambda: sink.head, "the head reached the upstream")
    return client, response


@pytest.mark.parametrize("chunked", [False, True])
async def test_sixty_four_megabytes_go_through_in_constant_memory(chunked: bool) -> None:
    """Above the limit of bodies that are held, and none of it is."""
    piece, size = b"\xff" * MIB, 64 * MIB
    sink, server, url = await Sink.listen()
    async with Stage(openai_upstream=url) as stage:
        framing = ("transfer-encoding", "chunked") if chunked else ("content-length", str(size))
        client, response = await upload_to_sink(stage, sink, framing)
        tracemalloc.start()
        for _ in range(64):
            await client.send(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
        await client.send(b"0\r\n\r\n" if chunked else b"")
        await wait_until(lambda: sink.counted == size, "the upload is complete", 30.0)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if chunked:
            await wait_until(lambda: sink.last == b"0\r\n\r\n", "the last chunk is there")
        sink.answer()
        await response.read_end()

        assert peak < 12 * MIB
        assert response.json() == {}
        await stage.at_rest()
    server.close()
    await server.wait_closed()


async def test_a_slow_upstream_holds_the_client_back_and_nothing_piles_up() -> None:
    """Back-pressure goes all the way: the client stops, and what waits in between is bounded."""
    piece, size = b"\xff" * MIB, 64 * MIB
    sink, server, url = await Sink.listen()
    async with Stage(openai_upstream=url) as stage:
        client, response = await upload_to_sink(stage, sink, ("content-length", str(size)))
        sink.transport.pause_reading()
        sent = 0
        while not client._write_paused:
            client._transport.write(piece)
            sent += MIB
            await run_ticks(30)
        [connection] = stage.app.server.connections
        await wait_until(lambda: connection._reading_paused, "the proxy has stopped reading")

        assert sent < 32 * MIB
        assert connection._current_request is not None
        assert connection._current_request.content._size < 2 * MIB
        sink.transport.resume_reading()
        while sent < size:
            await client.send(piece)
            sent += MIB
        await wait_until(lambda: sink.counted == size, "the upload is complete", 30.0)
        sink.answer()
        assert (await response.read_end()).status == 200
        await stage.at_rest()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("reset", [False, True])
async def test_an_upload_that_its_client_gives_up_is_given_up_upstream(stage: Stage, reset: bool) -> None:
    """The upstream sees a broken request, never a short one that looks whole."""
    client, _, call = await begin(stage, None)
    await client.send(b"5\r\nhello\r\n")
    await wait_until(lambda: call.body == b"hello", "what came was passed on")
    await (client.reset() if reset else client.close())
    await call.client_gone()

    assert not call.received
    assert stage.upstream.calls == 0


@pytest.mark.parametrize("closes", [False, True])
async def test_an_upstream_that_answers_before_the_upload_is_over_is_heard(stage: Stage, closes: bool) -> None:
    """RELIABILITY row 41: a 413 of the upstream's own reaches a client that is still sending."""
    client, response, call = await begin(stage, 64 * MIB)
    await client.send(b"x" * MIB)
    body = b'{"error":{"message":"too large"}}'
    call.raw(b"HTTP/1.1 413 Too Large\r\ncontent-type: application/json\r\ncontent-length: 33\r\n\r\n" + body)
    call.done()
    if closes:
        call.close()
    await response.read_end()

    assert (response.status, response.body) == (413, body)
    assert response.header("connection") == "close"
    await client.peer_closed()
    assert not client.was_reset
    assert stage.series("upstream_connections") == 0
    [line] = await stage.access_lines(1)
    assert (line["status"], line["outcome"]) == (413, "upstream_error")


async def test_an_upload_that_is_longer_than_its_length_leaves_a_request_and_no_more(stage: Stage) -> None:
    """What follows the announced length is the next request on the connection, here as everywhere."""
    client, response, call = await begin(stage, 5)
    await client.send(b"helloGARBAGE\r\n\r\n")
    await call.read_body()
    await call.answer_json({})
    second = client.expect("GET")
    await second.read_end()

    assert call.body == b"hello"
    assert response.status == 200
    assert second.status == 400


async def test_two_equal_uploads_are_two_calls(stage: Stage) -> None:
    """What is not understood has effects until it is proved otherwise."""
    responses = [await stage.ask(form(b"same"), path="/v1/files", headers=[MULTIPART]) for _ in range(2)]
    calls = [await stage.upstream.next_call() for _ in range(2)]
    for number, call in enumerate(calls):
        await call.answer_json({"id": number})
    ids = {(await response.read_end()).json()["id"] for response in responses}

    assert ids == {0, 1}


async def test_a_form_where_json_is_expected_is_handed_on_as_a_form(stage: Stage) -> None:
    """A client that is ahead of us."""
    response = await stage.ask(form(b"x"), path="/v1/images/generations", headers=[MULTIPART])
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert call.body == form(b"x")


# -- downloads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_speech_is_streamed_to_all_who_asked_for_the_same(stage: Stage, chunked: bool) -> None:
    """Binary answers are shared byte for byte, as they come."""
    sound = bytes(range(256)) * 1000
    body = {"model": "tts-1", "input": "hello", "voice": "alloy"}
    responses = await stage.ask_many(3, body, path="/v1/audio/speech")
    call = await stage.upstream.next_call()
    length = None if chunked else len(sound)
    await call.send_head(200, [("content-type", "audio/mpeg")], content_length=length, chunked=chunked)
    await call.send(sound[:1000])
    for response in responses:
        assert await response.read_until(sound[:1000]) == sound[:1000]
    await call.send(sound[1000:])
    await call.end()
    for response in responses:
        await response.read_end()

    assert {response.body for response in responses} == {sound}
    assert {response.header("content-type") for response in responses} == {"audio/mpeg"}
    assert {response.header("content-length") for response in responses} == {None if chunked else str(len(sound))}
    assert stage.upstream.calls == 1


async def test_speech_as_events_is_a_stream(stage: Stage) -> None:
    """``stream_format: sse`` on the same route."""
    body = {"model": "tts-1", "input": "hello", "voice": "alloy", "stream_format": "sse"}
    response = await stage.ask(body, path="/v1/audio/speech")
    events = [{"type": "speech.audio.delta"}, {"type": "speech.audio.done"}]
    await (await stage.upstream.next_call()).answer_sse(events)
    await response.read_end()

    assert len(response.events()) == 2
    assert (response.header("content-type") or "").startswith("text/event-stream")


@pytest.mark.parametrize("requested", ["bytes=0-3", "bytes=-2"])
async def test_a_part_of_a_file_is_asked_for_and_answered_as_a_part(stage: Stage, requested: str) -> None:
    """Range and 206 are between the client and the upstream."""
    headers = [("range", requested), ("if-none-match", '"x"')]
    response = await stage.ask(None, method="GET", path="/v1/files/f/content", headers=headers)
    call = await stage.upstream.next_call()
    await call.answer(206, [("content-range", "bytes 0-3/10"), ("etag", '"y"')], b"abcd")
    await response.read_end()

    assert (call.header("range"), call.header("if-none-match")) == (requested, '"x"')
    assert (response.status, response.body, response.header("content-range")) == (206, b"abcd", "bytes 0-3/10")
    assert response.header("etag") == '"y"'


async def test_sixty_four_megabytes_come_through_in_constant_memory(stage: Stage) -> None:
    """Nothing of a download is kept longer than its reader needs it."""
    piece, count = bytes(range(256)) * 4096, 64
    response = await stage.ask(None, method="GET", path="/v1/files/f/content")
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "application/octet-stream")], content_length=count * MIB)
    for _ in range(count):
        await call.send(piece)
        assert stage.app.table.retained_bytes < 4 * MIB
    await call.end()
    await response.read_end()

    assert hashlib.sha256(response.body).digest() == hashlib.sha256(piece * count).digest()


async def test_a_download_and_an_upload_do_not_hold_up_a_chat(stage: Stage) -> None:
    """Large and small share a process."""
    _, upload, sending = await begin(stage, 10 * MIB)
    download = await stage.ask(None, method="GET", path="/v1/files/f/content")
    receiving = await stage.upstream.next_call()
    await receiving.send_head(200, [], content_length=10 * MIB)
    response = await stage.ask(chat())
    call = await stage.upstream.next_call()
    await call.answer_json({"object": "chat.completion"})
    assert (await response.read_end()).status == 200
    client = stage.clients[0]
    await asyncio.gather(receiving.send(b"x" * 10 * MIB), client.send(b"x" * 10 * MIB))
    await sending.read_body()
    await sending.answer_json({})

    assert len((await download.read_end()).body) == 10 * MIB
    assert (await upload.read_end()).status == 200
