"""Bytes that leave the process and come back: whether they are ours is proven by an HMAC under a derived secret."""

from __future__ import annotations

import hmac
from typing import Final

_MAGIC: Final = b"SFSEAL1\n"
_MAC_BYTES: Final = 32
_PAYLOAD_AT: Final = len(_MAGIC) + _MAC_BYTES


def seal(secret: bytes, label: bytes, payload: bytes) -> bytes:
    """``payload`` behind a mark and its HMAC-SHA-256. ``label`` says what it is, and is not part of the bytes."""
    return _MAGIC + _sign(secret, label, payload) + payload


def unseal(secret: bytes, label: bytes, data: bytes) -> bytes | None:
    """The payload, or ``None`` for anything that `seal` did not make with this secret and label."""
    payload = data[_PAYLOAD_AT:]
    if not data.startswith(_MAGIC) or len(data) < _PAYLOAD_AT:
        return None
    right = hmac.compare_digest(data[len(_MAGIC) : _PAYLOAD_AT], _sign(secret, label, payload))
    return payload if right else None


def _sign(secret: bytes, label: bytes, payload: bytes) -> bytes:
    # The length first: no label and payload may be read as another pair.
    return hmac.digest(secret, len(label).to_bytes(4, "big") + label + payload, "sha256")
