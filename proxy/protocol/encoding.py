"""Content codings of request bodies, decoded under bounds: only to look at a body, never to change it.

Every function answers ``None`` for anything odd (a bomb, several members, bytes behind the end, an unknown coding):
such a body is relayed as it is and merely cannot be fingerprinted. Nothing raises.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final


def _import_first(*names: str) -> Any:
    """The first of these optional modules that is installed, or ``None``."""
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


_brotli: Final = _import_first("brotli")
_zstd: Final = _import_first("compression.zstd", "backports.zstd")

MAX_RATIO: Final = 100
# Small bodies compress well without ill intent; a ratio says something beyond this size only.
_FREE_BYTES: Final = 65536
# RFC 9659: a sender may not ask for a window beyond 8 MiB in this coding.
_ZSTD_WINDOW_LOG: Final = 23


def decode_body(encoding: bytes, body: bytes, limit: int) -> bytes | None:
    """The body behind the ``Content-Encoding`` value ``encoding``, at most ``limit`` bytes; ``None`` if it cannot be
    had cleanly. Identity gives the body itself."""
    coding = encoding.strip().lower()
    if coding in (b"", b"identity"):
        return body if len(body) <= limit else None
    decoder = _DECODERS.get(coding)
    if decoder is None or not body:
        return None
    bound = min(limit, max(len(body) * MAX_RATIO, _FREE_BYTES))
    try:
        return decoder(body, bound)
    except Exception:  # noqa: BLE001 - three libraries, each with errors of its own, and one answer to all of them
        return None


def _decode_gzip(body: bytes, bound: int) -> bytes | None:
    return _inflate(zlib.decompressobj(31), body, bound)


def _decode_deflate(body: bytes, bound: int) -> bytes | None:
    """RFC 9110, 8.4.1.2: the zlib format. Raw deflate, which some senders mean, is ambiguous and refused."""
    return _inflate(zlib.decompressobj(15), body, bound)


def _inflate(decoder: zlib._Decompress, body: bytes, bound: int) -> bytes | None:
    # One byte more than allowed tells "exactly full" from "too much".
    decoded = decoder.decompress(body, bound + 1)
    if len(decoded) > bound or not decoder.eof or decoder.unused_data:
        return None
    return decoded


def _decode_brotli(body: bytes, bound: int) -> bytes | None:
    decoder = _brotli.Decompressor()
    decoded: bytes = decoder.process(body, output_buffer_limit=bound + 1)
    while not decoder.is_finished() and len(decoded) <= bound:
        more: bytes = decoder.process(b"", output_buffer_limit=bound + 1 - len(decoded))
        if not more:
            break
        decoded += more
    return decoded if decoder.is_finished() and len(decoded) <= bound else None


def _decode_zstd(body: bytes, bound: int) -> bytes | None:
    decoder = _zstd.ZstdDecompressor(options={_zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    decoded: bytes = decoder.decompress(body, max_length=bound + 1)
    if len(decoded) > bound or not decoder.eof or decoder.unused_data:
        return None
    return decoded


def _known_decoders() -> dict[bytes, Callable[[bytes, int], bytes | None]]:
    known: dict[bytes, Callable[[bytes, int], bytes | None]] = {
        b"gzip": _decode_gzip,
        b"x-gzip": _decode_gzip,
        b"deflate": _decode_deflate,
    }
    if _brotli is not None:
        known[b"br"] = _decode_brotli
    if _zstd is not None:
        known[b"zstd"] = _decode_zstd
    return known


_DECODERS: Final = _known_decoders()
