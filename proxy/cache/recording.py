"""A finished answer that can be given again, and its encoding for a cache that other processes write to.

A ``Recording`` is made once, by the flight that sealed the answer, and never changes; every hit shares it. ``Codec``
turns it into bytes and back. What comes back from a shared cache is believed only if its keyed hash fits the secret
of this cluster, the version of this encoding and the very key it is asked for: whoever can write to the cache can
lose answers, but can neither invent one nor put one person's answer under another's key.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Final

import orjson

from proxy.protocol.answer import AnswerHead
from proxy.protocol.message import HeaderList

# What an entry costs beside its payload: the recording, its rendered head, the cache's bookkeeping, its place in the
# index (800 bytes by tracemalloc on CPython 3.11; tests/unit/cache holds the sum to the truth). A header is a pair
# of byte strings in a tuple and a line of the rendered head, a chunk one byte string and the reference to it.
_ENTRY_BYTES: Final = 870
_HEADER_BYTES: Final = 56 + 2 * 33 + 8 + 4
_CHUNK_BYTES: Final = 33 + 8 + 8


class Recording:
    """One answer as it was delivered. Treat it as frozen, its header list included: it is shared by everyone.

    Times in seconds; ``stored_at`` is monotonic time of this process, ``stored_wall`` seconds since the epoch.
    """

    # What changes after construction changes no meaning: `body` makes one chunk of several, `head` is made when first
    # asked for.
    __slots__ = (
        "_head",
        "chunks",
        "headers",
        "report",
        "sie_s",
        "size_bytes",
        "status",
        "stored_at",
        "stored_wall",
        "streams",
        "swr_s",
        "ttl_s",
    )

    def __init__(
        self,
        status: int,
        headers: HeaderList,
        chunks: tuple[bytes, ...],
        *,
        stored_at: float,
        stored_wall: float,
        ttl_s: float,
        swr_s: float = 0.0,
        sie_s: float = 0.0,
        streams: bool = False,
        report: object = None,
    ) -> None:
        self.status = status
        self.headers = headers
        """What every receiver of the answer may see: no cookies, no rate limits; the upstream's request id stays."""
        self.chunks = chunks
        """The body in order; for a stream as it was cut at event boundaries."""
        self.stored_at = stored_at
        self.stored_wall = stored_wall
        self.ttl_s = ttl_s
        self.swr_s = swr_s
        """How long past ``ttl_s`` it may be served while it is refreshed."""
        self.sie_s = sie_s
        """How long past ``ttl_s`` it may stand in for a failing upstream."""
        self.streams = streams
        self.report = report
        """What the answer used (tokens and the like); opaque here."""
        self._head: AnswerHead | None = None
        self.size_bytes = (
            _ENTRY_BYTES
            + sum(2 * (len(name) + len(value)) + _HEADER_BYTES for name, value in headers)
            + sum(len(chunk) + _CHUNK_BYTES for chunk in chunks)
        )
        """What keeping it costs in memory, bookkeeping included."""

    @property
    def head(self) -> AnswerHead:
        """The head as it is sent to everybody, rendered once."""
        head = self._head
        if head is None:
            length = sum(map(len, self.chunks))
            head = self._head = AnswerHead(self.status, self.headers, length=length, streams=self.streams)
        return head

    @property
    def body(self) -> bytes:
        """The whole body; joined when first asked for. A stream keeps its pieces, a whole answer needs only one."""
        chunks = self.chunks
        if len(chunks) == 1:
            return chunks[0]
        body = b"".join(chunks)
        if not self.streams:
            self.chunks = (body,)
        return body

    @property
    def keeps_s(self) -> float:
        """How long after ``stored_at`` it is of any use."""
        return self.ttl_s + max(self.swr_s, self.sie_s)

    def age_s(self, now: float) -> float:
        return max(0.0, now - self.stored_at)

    def __repr__(self) -> str:
        kind = "stream" if self.streams else "answer"
        return f"<Recording {self.status} {kind} {self.size_bytes} bytes ttl {self.ttl_s:g}s>"


VERSION: Final = 1
"""Of the encoding below; raise it with every change of layout or meaning. Other versions read as a miss."""

_PREFIX: Final = b"SFRC" + bytes([VERSION])
_MAC_BYTES: Final = 32
_META_AT: Final = len(_PREFIX) + _MAC_BYTES + 4
_MIN_SECRET_BYTES: Final = 16


def _same(value: object) -> object:
    return value


class Codec:
    """Recordings to bytes and back: prefix, keyed BLAKE2b, length of the meta data, meta data as JSON, body.

    ``pack_report`` turns a recording's report into what orjson can write, ``unpack_report`` does the reverse. A
    ``secret`` of fewer than 16 bytes raises ``ValueError``.
    """

    __slots__ = ("_mac", "_pack_report", "_unpack_report", "max_bytes")

    def __init__(
        self,
        secret: bytes,
        *,
        max_bytes: int = 4 * 1024 * 1024,
        pack_report: Callable[[object], object] = _same,
        unpack_report: Callable[[object], object] = _same,
    ) -> None:
        if len(secret) < _MIN_SECRET_BYTES:
            raise ValueError(f"the secret of the shared cache needs at least {_MIN_SECRET_BYTES} bytes")
        # Derived, so that a secret of any length fits BLAKE2b's 64 and other uses of the same secret stay apart.
        key = blake2b(secret, digest_size=64, person=b"sameflight-cache").digest()
        self._mac = blake2b(_PREFIX, key=key, digest_size=_MAC_BYTES)
        self._pack_report = pack_report
        self._unpack_report = unpack_report
        self.max_bytes = max_bytes
        """Encodings longer than this are neither written nor looked into."""

    def encode(self, key: bytes, recording: Recording) -> bytes | None:
        """The bytes to store under ``key``, or ``None`` if they would be more than ``max_bytes``.

        Raises ``TypeError`` if the packed report is not JSON.
        """
        if sum(map(len, recording.chunks)) > self.max_bytes:
            return None
        meta = orjson.dumps(
            {
                "status": recording.status,
                "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in recording.headers],
                "lengths": [len(chunk) for chunk in recording.chunks],
                "wall": recording.stored_wall,
                "ttl": recording.ttl_s,
                "swr": recording.swr_s,
                "sie": recording.sie_s,
                "streams": recording.streams,
                "report": None if recording.report is None else self._pack_report(recording.report),
            }
        )
        sealed = b"".join((len(meta).to_bytes(4, "big"), meta, *recording.chunks))
        data = b"".join((_PREFIX, self._sign(key, sealed), sealed))
        return data if len(data) <= self.max_bytes else None

    def decode(self, key: bytes, data: object, now: float, wall: float) -> Recording | None:
        """The recording, or ``None`` for anything that ``encode`` did not make for this key with this secret.

        ``now`` and ``wall`` are this process's clocks: the age is carried over by wall time, and never negative.
        """
        if not isinstance(data, bytes) or not _META_AT < len(data) <= self.max_bytes:
            return None
        mac_end = len(_PREFIX) + _MAC_BYTES
        if not data.startswith(_PREFIX):
            return None
        if not hmac.compare_digest(data[len(_PREFIX) : mac_end], self._sign(key, memoryview(data)[mac_end:])):
            return None
        try:
            return self._read(data, now, wall)
        except (KeyError, TypeError, ValueError, AttributeError):
            # Authentic, yet not what this code writes: a report of another release, at most.
            return None

    def _read(self, data: bytes, now: float, wall: float) -> Recording:
        body_at = _META_AT + int.from_bytes(data[_META_AT - 4 : _META_AT], "big")
        meta = orjson.loads(data[_META_AT:body_at])
        cuts = pairwise(accumulate(meta["lengths"], initial=body_at))
        report = meta["report"]
        stored_wall = float(meta["wall"])
        return Recording(
            int(meta["status"]),
            [(name.encode("latin-1"), value.encode("latin-1")) for name, value in meta["headers"]],
            tuple(data[start:end] for start, end in cuts),
            stored_at=now - max(0.0, wall - stored_wall),
            stored_wall=stored_wall,
            ttl_s=float(meta["ttl"]),
            swr_s=float(meta["swr"]),
            sie_s=float(meta["sie"]),
            streams=bool(meta["streams"]),
            report=None if report is None else self._unpack_report(report),
        )

    def _sign(self, key: bytes, sealed: bytes | memoryview) -> bytes:
        mac = self._mac.copy()
        # The length first: no key and payload may be read as another pair.
        mac.update(len(key).to_bytes(2, "big") + key)
        mac.update(sealed)
        return mac.digest()
