"""What makes two requests the same: a keyed 256-bit hash over every input of the upstream request.

The law: the upstream request is a pure function of its key. So each input of a request is declared in ``FIELDS``,
IN (hashed) or OUT (with the reason why it cannot change the answer), and the functions here take every IN field as a
keyword without a default: adding an input forces a decision. The hash is BLAKE2b (RFC 7693) in keyed mode with a
personalisation for each purpose; fields have a fixed order, a tag and a length in front, so that no two different
tuples give the same text. The body comes last: what is left after fields of known lengths needs none of its own, and
everything in front of it is hashed once for all requests that come with the same head (`flight_hasher`).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Any, Final

from proxy.protocol.message import HeaderList

SCHEMA: Final = b"flight/v2"

FIELDS: Final[dict[str, str]] = {
    "config_version": "IN: what the proxy does to a request follows from its configuration",
    "scope": "IN: whose requests may meet; one tenant never sees another's bytes",
    "provider": "IN: the catalog's name decides dialect and treatment",
    "origin": "IN: scheme, host, port and base path of the upstream",
    "credential": "IN: id of the upstream credential, never the secret; answers depend on the account",
    "method": "IN: names the operation",
    "path": "IN: names the operation; as sent to the upstream",
    "query": "IN: raw, in the order sent; an upstream may heed the order",
    "headers": "IN: the semantic ones, sorted; exactly those that are forwarded",
    "content_type": "IN: decides how the upstream reads the body",
    "encoding": "IN: content coding of the body as forwarded",
    "streams": "IN: part of the body too; kept apart so that a whole answer never meets a stream",
    "variant": "IN: the caller's way to ask for different samples",
    "idempotency_key": "IN: two keys are two operations; empty when the print is taken without it",
    "transform": "IN: id of any rewriting of the body that the proxy does before sending",
    "body": "IN: its exact bytes",
    "client_address": "OUT: not sent to the upstream",
    "client_headers": "OUT: all that are not semantic; dropped from a shared upstream request",
    "accept_encoding": "OUT: the proxy sends its own fixed value",
    "request_id": "OUT: minted for each request, carries no meaning",
    "deadline": "OUT: bounds one client's patience, never the flight",
    "cache_controls": "OUT: decide whether to look, not what to ask",
}

# Tags in the order of hashing; part of the hasher's prefix, so that a new order is a new key space.
_TAGS: Final = (
    b"config_version streams provider origin method path query "
    b"scope credential headers content_type encoding variant idempotency_key transform body"
)
_BLOCK_BYTES: Final = 128
# Two values and the lengths of all others but the body: of text in characters, of bytes in bytes.
_FRONT: Final = Struct(">Q?13I")
_PAIR: Final = Struct(">II")


@lru_cache(maxsize=32)
def _template(secret: bytes, person: bytes) -> blake2b:
    """A keyed hasher to copy: keying anew costs a compression for each request."""
    return blake2b(key=secret, digest_size=32, person=person)


@lru_cache(maxsize=8)
def _flight_template(secret: bytes) -> blake2b:
    hasher = blake2b(key=secret, digest_size=32, person=SCHEMA)
    hasher.update(_TAGS.ljust(256, b"\0"))  # a multiple of the block: nothing is left over to copy
    return hasher


def flight_hasher(
    secret: bytes,
    *,
    config_version: int,
    scope: bytes,
    provider: str,
    origin: str,
    credential: bytes,
    method: str,
    path: str,
    query: str,
    headers: HeaderList,
    content_type: bytes,
    encoding: bytes,
    streams: bool,
    variant: bytes,
    idempotency_key: bytes,
    transform: bytes,
) -> blake2b:
    """A hasher that has taken everything but the body; see ``FIELDS`` for what each argument stands for. It is copied
    for each body (`finish_key`).

    ``secret`` has 1 to 64 bytes and is the cluster's own. ``headers`` are sorted by the caller.
    """
    packed = _pack_headers(headers) if headers else b""
    front = _FRONT.pack(
        config_version,
        streams,
        len(provider),
        len(origin),
        len(method),
        len(path),
        len(query),
        len(scope),
        len(credential),
        len(packed),
        len(content_type),
        len(encoding),
        len(variant),
        len(idempotency_key),
        len(transform),
    )
    text = f"{provider}{origin}{method}{path}{query}".encode("utf-8", "surrogatepass")
    fields = b"".join(
        (front, text, scope, credential, packed, content_type, encoding, variant, idempotency_key, transform)
    )
    hasher = _flight_template(secret).copy()
    hasher.update(fields + bytes(-len(fields) % _BLOCK_BYTES))  # no half block is left to copy
    return hasher


def finish_key(hasher: blake2b, body: bytes) -> bytes:
    """The 32-byte fingerprint of a request with this body. The body is hashed where it lies."""
    own = hasher.copy()
    own.update(body)
    return own.digest()


def flight_key(secret: bytes, *, body: bytes, **fields: Any) -> bytes:
    """The fingerprint in one step: ``fields`` are those of `flight_hasher`."""
    return finish_key(flight_hasher(secret, **fields), body)


def _pack_headers(headers: HeaderList) -> bytes:
    """All names and values, each pair behind its lengths."""
    pieces: list[bytes] = []
    for name, value in headers:
        pieces += (_PAIR.pack(len(name), len(value)), name, value)
    return b"".join(pieces)


def idempotency_index(secret: bytes, scope: bytes, idempotency_key: bytes) -> bytes:
    """Where a scope's idempotency key is looked up, 32 bytes."""
    hasher = _template(secret, b"idempotency/v1").copy()
    hasher.update(_PAIR.pack(len(scope), len(idempotency_key)))
    hasher.update(scope)
    hasher.update(idempotency_key)
    return hasher.digest()


def digest16(secret: bytes, purpose: bytes, data: bytes) -> bytes:
    """A keyed 16-byte digest of ``data``, apart for each ``purpose`` (at most 16 bytes): scopes and
    credential ids. Different purposes never give related digests."""
    hasher = blake2b(data, key=secret, digest_size=16, person=purpose)
    return hasher.digest()
