"""Turns an answer into the pieces that go out one after another, with the body's faults worked in."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import islice
from typing import NamedTuple

from proxy.mock.answer import Answer, Call
from proxy.mock.options import MID_FAULTS, Fault

_BLOCK_BYTES = 64 * 1024
_GZIP = 31
"""Window bits that give a gzip wrapper."""


class Ending(Enum):
    """How the connection is left once every piece was sent."""

    DONE = "done"
    RESET = "reset"
    STALL = "stall"
    CLOSE = "close"


_ENDINGS = {Fault.RESET_MID: Ending.RESET, Fault.STALL: Ending.STALL, Fault.TRUNCATE: Ending.CLOSE}


class Composition(NamedTuple):
    pieces: Iterable[bytes]
    """What to send, without transfer coding."""
    length: int | None
    """``Content-Length``, or ``None`` for a chunked body. Not kept when ``ending`` is a fault."""
    ending: Ending
    headers: tuple[tuple[bytes, bytes], ...] = ()


def is_plain(call: Call, answer: Answer) -> bool:
    """Whether the answer is one body that needs no cutting and no compression."""
    return answer.pieces is None and answer.bulk_bytes < 0 and not (call.options.chunk_bytes or call.options.gzip)


def compose(call: Call, answer: Answer, fault: Fault) -> Composition:
    """The pieces of ``answer``, cut short, cut small and compressed as the call's options say."""
    if answer.bulk_bytes >= 0:
        return _compose_bulk(call, answer, fault)
    zipped = call.options.gzip and b"gzip" in call.headers.get(b"accept-encoding", b"")
    headers = ((b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")) if zipped else ()
    if answer.pieces is None:
        return _compose_whole(call, answer, fault, headers)
    pieces = _spoil(call, answer.pieces, answer, fault)
    if zipped:
        pieces = list(_zip(pieces))
    if call.options.chunk_bytes:
        pieces = cut(b"".join(pieces), call.options.chunk_bytes)
    ending = _ENDINGS.get(fault, Ending.DONE)
    if ending is not Ending.DONE:
        pieces = pieces[: _count_before(call, len(pieces))]
    return Composition(pieces, None, ending, headers)


def _compose_whole(
    call: Call, answer: Answer, fault: Fault, headers: tuple[tuple[bytes, bytes], ...]
) -> Composition:
    body = b"".join(_zip([answer.body])) if headers else answer.body
    size = call.options.chunk_bytes
    if fault not in MID_FAULTS:
        return Composition(cut(body, size), None, Ending.DONE, headers) if size else _one(body, headers)
    pieces = cut(body, size or (len(body) + 1) // 2 or 1)
    ending = _ENDINGS.get(fault, Ending.DONE)
    return Composition(pieces[: _count_before(call, len(pieces))], None if size else len(body), ending, headers)


def _one(body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Composition:
    return Composition((body,), len(body), Ending.DONE, headers)


def _compose_bulk(call: Call, answer: Answer, fault: Fault) -> Composition:
    size = call.options.chunk_bytes or _BLOCK_BYTES
    pieces: Iterator[bytes] = make_bulk(answer.bulk_bytes, size)
    ending = _ENDINGS.get(fault, Ending.DONE)
    if ending is not Ending.DONE:
        pieces = islice(pieces, _count_before(call, -(-answer.bulk_bytes // size)))
    return Composition(pieces, None if answer.chunked else answer.bulk_bytes, ending)


def make_bulk(size: int, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """``size`` deterministic bytes: byte ``i`` is ``i % 251``, a prime, so that a lost block shows."""
    pattern = bytes(range(251)) * (block_bytes // 251 + 2)
    at = 0
    while at < size:
        count = min(block_bytes, size - at)
        yield pattern[at % 251 : at % 251 + count]
        at += count


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


def _count_before(call: Call, count: int) -> int:
    """How many of ``count`` pieces go out before the fault."""
    after = call.options.fault_after
    return count // 2 if after < 0 else min(after, count)


def _spoil(call: Call, pieces: Sequence[bytes], answer: Answer, fault: Fault) -> Sequence[bytes]:
    if fault is Fault.NO_TERMINAL:
        return pieces[: len(pieces) - answer.terminal]
    if fault is Fault.ERROR_EVENT:
        return [*pieces[: _count_before(call, len(pieces))], answer.error_event]
    return pieces


def _zip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Each piece can be decompressed as soon as it is there."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    for piece in pieces:
        yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()
