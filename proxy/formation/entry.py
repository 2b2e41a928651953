"""What processes say to each other about one flight, as bytes that nobody else can make.

An entry is a keyed hash, a number, meta data as JSON and a slice of the answer as it came from the upstream. The
hash covers the flight's key and the lead's token as well, so that whoever can write to the server can lose answers,
but can neither invent one, nor put one under another key, nor change the order of its pieces.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from proxy.errors import Kind, ProxyError
from proxy.formation.bounds import SLICE_BYTES
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.protocol.usage import Usage

VERSION: Final = 1

TOKEN_BYTES: Final = 16
_MAC_BYTES: Final = 16
_NUMBER_AT: Final = _MAC_BYTES
_META_AT: Final = _MAC_BYTES + 8
_MIN_SECRET_BYTES: Final = 16
MAX_ENTRY_BYTES: Final = SLICE_BYTES + 256 * 1024
"""A head may have as many headers as the wire allows."""
LEASE_BYTES: Final = TOKEN_BYTES + _MAC_BYTES

BEAT: Final = 0
"""The number of an entry that says only that the lead lives; it is not kept."""

REPLACED: Final = "replaced"
"""Why a lead is dropped of which another process thinks that it is dead."""

Meta = dict[str, Any]


class Entry(NamedTuple):
    """One message of a lead. ``number`` counts from 1 without a gap; 1 says that it has begun."""

    number: int
    meta: Meta
    data: bytes


class Seal:
    """Makes and believes entries; one for each secret. A ``secret`` of fewer than 16 bytes raises ``ValueError``."""

    __slots__ = ("_mac",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _MIN_SECRET_BYTES:
            raise ValueError(f"the secret of shared flights needs at least {_MIN_SECRET_BYTES} bytes")
        key = blake2b(secret, digest_size=64, person=b"sameflight-fleet").digest()
        self._mac = blake2b(b"%d" % VERSION, key=key, digest_size=_MAC_BYTES)

    def lease(self, key: bytes, token: bytes) -> bytes:
        """What stands under the lease of a key while ``token`` leads it."""
        return token + self._sign(b"L", key, token)

    def token(self, key: bytes, lease: object) -> bytes | None:
        """Whose lease this is, or ``None`` if it is nobody's of us."""
        if not isinstance(lease, bytes) or len(lease) != LEASE_BYTES:
            return None
        token = lease[:TOKEN_BYTES]
        return token if hmac.compare_digest(lease, self.lease(key, token)) else None

    def write(self, key: bytes, token: bytes, entry: Entry) -> bytes:
        meta = orjson.dumps(entry.meta) if entry.meta else b""
        sealed = b"".join((entry.number.to_bytes(4, "big"), len(meta).to_bytes(4, "big"), meta, entry.data))
        return self._sign(b"E", key, token, sealed) + sealed

    def read(self, key: bytes, token: bytes, data: object) -> Entry | None:
        """The entry, or ``None`` for anything that ``write`` did not make for this key and token."""
        if not isinstance(data, bytes) or not _META_AT <= len(data) <= MAX_ENTRY_BYTES:
            return None
        sealed = memoryview(data)[_MAC_BYTES:]
        if not hmac.compare_digest(data[:_MAC_BYTES], self._sign(b"E", key, token, sealed)):
            return None
        number = int.from_bytes(data[_NUMBER_AT : _NUMBER_AT + 4], "big")
        body_at = _META_AT + int.from_bytes(data[_NUMBER_AT + 4 : _META_AT], "big")
        meta = orjson.loads(data[_META_AT:body_at]) if body_at > _META_AT else {}
        return Entry(number, meta, data[body_at:])

    def _sign(self, kind: bytes, key: bytes, token: bytes, sealed: bytes | memoryview = b"") -> bytes:
        mac = self._mac.copy()
        # Lengths first: no two sets of parts may be read as the same bytes.
        mac.update(kind + len(key).to_bytes(2, "big") + key + token)
        mac.update(sealed)
        return mac.digest()


# -- meta data; what does not fit raises KeyError, TypeError or ValueError -----------------------------------------


def write_head(head: ResponseHead, goes: Collection[bytes], own: HeaderList, target: str) -> Meta:
    """The headers named in ``goes`` as the upstream sent them; the proxy's own lines; and whose answer it is, where
    the catalog had a choice."""
    return {
        "status": head.status,
        "headers": [_text(header) for header in head.headers if header[0] in goes],
        "own": [_text(header) for header in own],
        "target": target,
    }


def read_head(meta: Meta) -> tuple[ResponseHead, HeaderList, str]:
    headers = [_line(pair) for pair in meta["headers"]]
    return ResponseHead(int(meta["status"]), headers), [_line(pair) for pair in meta["own"]], str(meta["target"])


def _text(header: tuple[bytes, bytes]) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode("latin-1")


def _line(pair: list[str]) -> tuple[bytes, bytes]:
    name, value = pair
    return name.encode("latin-1"), value.encode("latin-1")


def write_error(error: ProxyError) -> Meta:
    """What callers may know of it; the detail stays where it was born."""
    return {"kind": error.kind.name, "public": error.public, "why": error.why, "after": error.retry_after_s}


def read_error(meta: Meta) -> ProxyError:
    after_s = meta["after"]
    return ProxyError(
        Kind[meta["kind"]],
        str(meta["public"]),
        detail="told by the process that made the call",
        why=str(meta["why"]),
        retry_after_s=None if after_s is None else float(after_s),
    )


def write_usage(usage: Usage) -> Meta:
    return usage._asdict()


def read_usage(meta: Meta) -> Usage:
    return Usage(**meta)
