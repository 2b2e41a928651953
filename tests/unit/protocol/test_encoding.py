"""Decoding request bodies to look at them."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable

import brotli
import pytest
from backports import zstd

from proxy.protocol.encoding import MAX_RATIO, decode_body

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"' + b"hello, hello " * 40 + b'"}]}'
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}
codings = pytest.mark.parametrize("coding", sorted(ENCODERS))


@codings
def test_encoded_body_is_decoded(coding: str) -> None:
    """Whatever the spelling of the coding's name."""
    encoded = ENCODERS[coding](BODY)
    assert decode_body(coding.encode(), encoded, 10_000) == BODY
    assert decode_body(f" {coding.upper()} ".encode(), encoded, 10_000) == BODY


@codings
@pytest.mark.long
def test_large_body_that_does_not_compress_is_decoded(coding: str) -> None:
    """In one piece, beyond any inner buffer."""
    body = random.Random(7).randbytes(1_500_000)
    assert decode_body(coding.encode(), ENCODERS[coding](body), 2_000_000) == body


@pytest.mark.parametrize("coding", [b"", b"identity", b"Identity"])
def test_plain_body_is_itself(coding: bytes) -> None:
    """The same object, if it is within the limit."""
    assert decode_body(coding, BODY, len(BODY)) is BODY
    assert decode_body(coding, BODY, len(BODY) - 1) is None


@codings
def test_limit_is_exact(coding: str) -> None:
    """At the limit it is decoded, one byte less is too little."""
    encoded = ENCODERS[coding](BODY)
    assert decode_body(coding.encode(), encoded, len(BODY)) == BODY
    assert decode_body(coding.encode(), encoded, len(BODY) - 1) is None


@codings
@pytest.mark.long
def test_bomb_is_refused_by_its_ratio(coding: str) -> None:
    """Although the limit would allow its size."""
    encoded = ENCODERS[coding](bytes(20_000_000))
    assert len(encoded) * MAX_RATIO < 20_000_000
    assert decode_body(coding.encode(), encoded, 100_000_000) is None


@codings
def test_body_that_does_not_end_cleanly_is_refused(coding: str) -> None:
    """Cut off, followed by anything, doubled, damaged or no such coding at all."""
    encoded = ENCODERS[coding](BODY)
    damaged = bytearray(encoded)
    damaged[len(damaged) // 2] ^= 0xFF
    for bad in (encoded[:-1], encoded[:4], encoded + b"x", encoded + encoded, b"x" + encoded, BODY, b""):
        assert decode_body(coding.encode(), bad, 100_000) is None
    assert decode_body(coding.encode(), bytes(damaged), 100_000) != BODY


@pytest.mark.parametrize("coding", [b"gzip, br", b"compress", b"gzip;q=1", b"zstd, identity", b"\xff"])
def test_unknown_or_stacked_coding_is_refused(coding: bytes) -> None:
    """Such a body is relayed as it is."""
    assert decode_body(coding, gzip.compress(BODY), 10_000) is None


def test_zstd_window_beyond_the_coding_s_limit_is_refused() -> None:
    """RFC 9659: a decoder need not hold more than 8 MiB."""
    options = {zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    body = random.Random(7).randbytes(100_000)
    encoded = compressor.compress(body) + compressor.flush()
    assert decode_body(b"zstd", encoded, 1_000_000) is None
