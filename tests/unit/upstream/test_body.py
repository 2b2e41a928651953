"""A streamed body is held to its word."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.upstream.body import MeasuredBody
from tests.fakes.receiver import HandFedBody


async def read_all(body: MeasuredBody, data: bytearray) -> bytes:
    while piece := await body.read():
        data += piece
    return bytes(data)


@pytest.mark.parametrize("length", [None, 6])
async def test_body_of_its_announced_length_passes(length: int | None) -> None:
    """So does one that announced nothing."""
    body = MeasuredBody(HandFedBody(length).feed(b"abc", b"def", b""))
    assert (body.length, await read_all(body, bytearray())) == (length, b"abcdef")


@pytest.mark.parametrize("length", [0, 3, 5, 7])
async def test_body_of_another_length_fails(length: int) -> None:
    """Before the surplus is handed out, or at the missing end."""
    handed_out = bytearray()
    with pytest.raises(ProxyError) as caught:
        await read_all(MeasuredBody(HandFedBody(length).feed(b"abc", b"def", b"")), handed_out)
    assert len(handed_out) <= length
    assert (caught.value.kind, caught.value.why) == (Kind.BAD_REQUEST, "body_length")
