"""Compressed bodies: passed as they are, looked into only to find the equal ones, and never to anybody's harm."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import brotli
import pytest
from backports import zstd

from tests.scenes.stage import CHAT, Stage, as_bytes, chat, completion, stream_events

Compress = Callable[[bytes], bytes]
CODINGS: dict[str, Compress] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}
each_coding = pytest.mark.parametrize(("coding", "compress"), CODINGS.items(), ids=CODINGS.keys())

JSON = ("content-type", "application/json")
ANSWER = json.dumps(completion("a long answer " * 200)).encode()


def body_of(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# -- answers -------------------------------------------------------------------------------------------------


@each_coding
@pytest.mark.parametrize("path", ["/v1/nowhere", "/v1/files/f/content", "/v1/batches"])
async def test_a_compressed_answer_to_one_caller_passes_as_it_is(
    stage: Stage, path: str, coding: str, compress: Compress
) -> None:
    """What the client accepts is what the upstream is told, and what comes is what arrives."""
    accepted = f"{coding}, identity;q=0.5"
    response = await stage.ask(None, method="GET", path=path, headers=[("accept-encoding", accepted)])
    call = await stage.upstream.next_call()
    await call.answer(200, [JSON, ("content-encoding", coding), ("vary", "accept-encoding")], compress(ANSWER))
    await response.read_end()

    assert call.header("accept-encoding") == accepted
    assert (response.header("content-encoding"), response.header("vary")) == (coding, "accept-encoding")
    assert response.body == compress(ANSWER)
    assert response.header("content-length") == str(len(response.body))


async def test_a_call_for_many_asks_for_plain_bytes(stage: Stage) -> None:
    """Callers accept different codings, and one answer is for all of them."""
    one = await stage.ask(chat(), headers=[("accept-encoding", "gzip, br")])
    other = await stage.ask(chat(), headers=[("accept-encoding", "zstd")])
    await stage.attached(2)
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    bodies = {(await response.read_end()).body for response in (one, other)}

    assert call.header("accept-encoding") == "identity"
    assert len(bodies) == 1
    assert stage.upstream.calls == 1


@each_coding
async def test_an_upstream_that_compresses_unasked_is_passed_on_with_its_word_for_it(
    stage: Stage, coding: str, compress: Compress
) -> None:
    """RELIABILITY row 44: nothing is unpacked, so nothing can explode; the client is told what it has got."""
    response = await stage.ask(chat())
    call = await stage.upstream.next_call()
    await call.answer(200, [JSON, ("content-encoding", coding)], compress(ANSWER))
    await response.read_end()

    assert (response.header("content-encoding"), response.body) == (coding, compress(ANSWER))


async def test_a_compressed_stream_is_handed_on_event_for_event(stage: Stage) -> None:
    """RELIABILITY row 66: flushed as it comes, not collected."""
    events = [as_bytes([event]) for event in stream_events("one", "two")]
    packer = zlib.compressobj(wbits=31)
    response = await stage.ask(chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream"), ("content-encoding", "gzip")], chunked=True)
    unpacker = zlib.decompressobj(wbits=31)
    for event in events:
        packed = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
        await call.send(packed)
        assert unpacker.decompress(await response.read_until(packed)) == event
    await call.send(packer.flush())
    await call.end()
    await response.read_end()

    assert response.header("content-encoding") == "gzip"
    assert response.ended
    assert gzip.decompress(response.body) == b"".join(events)


# -- requests ------------------------------------------------------------------------------------------------


@each_coding
async def test_equal_compressed_requests_share_one_call_and_the_bytes_go_up_as_they_came(
    stage: Stage, coding: str, compress: Compress
) -> None:
    """Decoded to make the key, and for nothing else."""
    packed = compress(body_of(chat(temperature=0)))
    headers = [JSON, ("content-encoding", coding)]
    responses = await stage.ask_many(3, packed, headers=headers)
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    for response in responses:
        await response.read_end()

    assert (call.body, call.header("content-encoding")) == (packed, coding)
    assert {response.status for response in responses} == {200}
    assert [r.header("cache-status") for r in responses].count("sameflight; fwd=miss; collapsed") == 2
    assert stage.upstream.calls == 1


async def test_equal_bodies_in_other_bytes_of_the_same_coding_share_a_call(stage: Stage) -> None:
    """The level of compression is nobody's question."""
    plain = body_of(chat(temperature=0))
    one = await stage.ask(gzip.compress(plain, 1), headers=[JSON, ("content-encoding", "gzip")])
    other = await stage.ask(gzip.compress(plain, 9, mtime=7), headers=[JSON, ("content-encoding", "gzip")])
    await stage.attached(2)
    await (await stage.upstream.next_call()).answer_json(completion())
    statuses = [(await response.read_end()).status for response in (one, other)]

    assert (statuses, stage.upstream.calls) == ([200, 200], 1)


async def test_a_compressed_and_a_plain_body_do_not_meet(stage: Stage) -> None:
    """An upstream may not know the coding, and the plain caller must not learn that."""
    plain = body_of(chat(temperature=0))
    packed = await stage.ask(gzip.compress(plain), headers=[JSON, ("content-encoding", "gzip")])
    bare = await stage.ask(plain, headers=[JSON])
    calls = [await stage.upstream.next_call() for _ in range(2)]
    for call in calls:
        await call.answer_json({"coding": call.header("content-encoding")}, status=200)
    codings = [(await response.read_end()).json()["coding"] for response in (packed, bare)]

    assert codings == ["gzip", None]


@each_coding
@pytest.mark.parametrize("streams", [False, True])
async def test_what_a_compressed_request_asks_for_is_understood(
    stage: Stage, coding: str, compress: Compress, streams: bool
) -> None:
    """Model and stream are read through the coding, for the log and for everything that is decided."""
    packed = compress(body_of(chat(stream=streams)))
    response = await stage.ask(packed, headers=[JSON, ("content-encoding", coding)])
    call = await stage.upstream.next_call()
    if streams:
        await call.answer_sse(stream_events("one"))
    else:
        await call.answer_json(completion())
    await response.read_end()
    [line] = await stage.access_lines(1)

    assert (line["model"], line["stream"], line["role"]) == ("gpt-4o-mini", streams, "leader")


ODD = {
    "garbage": ("gzip", b"this is not gzip"),
    "cut_off": ("gzip", gzip.compress(body_of(chat()))[:-6]),
    "bytes_behind_it": ("gzip", gzip.compress(body_of(chat())) + b"x"),
    "two_members": ("gzip", gzip.compress(b'{"model":') + gzip.compress(b'"m"}')),
    "an_unknown_coding": ("compress", b"\x1f\x9d\x90"),
    "two_codings": ("gzip, br", gzip.compress(brotli.compress(body_of(chat())))),
    "raw_deflate": ("deflate", zlib.compress(body_of(chat()))[2:-4]),
    "an_empty_body": ("gzip", b""),
    "a_bomb": ("gzip", gzip.compress(b'{"model":"' + b"m" * (20 << 20) + b'"}')),
    "a_brotli_bomb": ("br", brotli.compress(b'{"model":"' + b"m" * (20 << 20) + b'"}', quality=4)),
    "a_zstd_bomb": ("zstd", zstd.compress(b'{"model":"' + b"m" * (20 << 20) + b'"}')),
}


@pytest.mark.parametrize(("coding", "body"), ODD.values(), ids=ODD.keys())
async def test_a_body_that_cannot_be_looked_into_goes_alone_as_it_came(
    stage: Stage, coding: str, body: bytes
) -> None:
    """CVE-2026-48044: whether it is right is the upstream's to say; here it is only not shared."""
    responses = [await stage.ask(body, headers=[JSON, ("content-encoding", coding)]) for _ in range(2)]
    calls = [await stage.upstream.next_call() for _ in range(2)]
    for call in calls:
        await call.answer_json({"error": {"message": "what?"}}, status=400)
    for response in responses:
        await response.read_end()

    assert [(call.body, call.header("content-encoding")) for call in calls] == [(body, coding)] * 2
    assert {response.status for response in responses} == {400}
    assert {response.header("cache-status") for response in responses} == {"sameflight; fwd=bypass"}


@each_coding
async def test_a_compressed_text_that_is_no_clear_json_is_refused_like_a_plain_one(
    stage: Stage, coding: str, compress: Compress
) -> None:
    """A coding is no way around the rules: the upstream must not read another request than was judged."""
    packed = compress(b'{"model":"cheap","model":"dear"}')
    response = await stage.ask(packed, headers=[JSON, ("content-encoding", coding)])
    await response.read_end()

    assert (response.status, response.json()["error"]["code"]) == (400, "invalid_json")
    assert stage.upstream.calls == 0


async def test_two_codings_declared_in_two_lines_are_refused(stage: Stage) -> None:
    """Which is the outer one cannot be known."""
    packed = gzip.compress(body_of(chat()))
    response = await stage.ask(packed, headers=[("content-encoding", "gzip"), ("content-encoding", "gzip")])
    await response.read_end()

    assert response.status == 400
    assert stage.upstream.calls == 0


@pytest.mark.parametrize("path", ["/v1/files", "/v1/nowhere"])
async def test_a_compressed_body_of_a_route_that_is_not_understood_is_not_looked_at(stage: Stage, path: str) -> None:
    """Uploads and the unknown pass byte for byte."""
    packed = gzip.compress(b"anything at all")
    response = await stage.ask(packed, path=path, headers=[("content-encoding", "gzip")])
    call = await stage.upstream.next_call()
    await call.answer_json({})
    await response.read_end()

    assert (call.body, call.header("content-encoding")) == (packed, "gzip")


async def test_identity_is_no_coding(stage: Stage) -> None:
    """A client that says so says nothing."""
    response = await stage.ask(chat(), path=CHAT, headers=[("content-encoding", "identity")])
    await (await stage.upstream.next_call()).answer_json(completion())

    assert (await response.read_end()).header("cache-status") == "sameflight; fwd=miss"
