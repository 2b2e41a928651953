"""The text of a virtual key: ``sf-``, 43 digits and a checksum of 6, all in base62.

The digits are 32 random bytes; the checksum (CRC-32) lets junk be refused without a look-up and lets scanners for
leaked secrets tell a key from a word. A key is kept nowhere: what is stored is its HMAC-SHA-256 (RFC 2104) under the
pepper, and `Digester` makes that.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Final
from zlib import crc32

PREFIX: Final = b"sf-"
KEY_BYTES: Final = 52
"""Length of every key: prefix 3, digits 43, checksum 6."""

_ALPHABET: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS: Final = 43
_CHECKSUM_DIGITS: Final = 6
_CHECKSUM_AT: Final = KEY_BYTES - _CHECKSUM_DIGITS
_BLOCK: Final = 64
_INNER: Final = bytes(each ^ 0x36 for each in range(256))
_OUTER: Final = bytes(each ^ 0x5C for each in range(256))


def mint(random: bytes | None = None) -> bytes:
    """A new key: ``random`` has 32 bytes and is for tests."""
    value = secrets.token_bytes(32) if random is None else random
    if len(value) != 32:
        raise ValueError("a key is made of 32 random bytes")
    text = PREFIX + _base62(int.from_bytes(value, "big"), _DIGITS)
    return text + checksum(text)


def checksum(text: bytes) -> bytes:
    """The last six characters of the key that begins with ``text``."""
    return _base62(crc32(text), _CHECKSUM_DIGITS)


def is_key(token: bytes) -> bool:
    """Whether ``token`` has the form of a key. Says nothing about whether anybody knows it."""
    return (
        len(token) == KEY_BYTES
        and token.startswith(PREFIX)
        and token[3:].isalnum()
        and token[_CHECKSUM_AT:] == checksum(token[:_CHECKSUM_AT])
    )


def _base62(number: int, digits: int) -> bytes:
    text = bytearray(digits)
    for place in range(digits - 1, -1, -1):
        number, digit = divmod(number, 62)
        text[place] = _ALPHABET[digit]
    return bytes(text)


class Digester:
    """HMAC-SHA-256 under one pepper, with the pepper's two blocks hashed once: a third of the cost of the library's
    one-shot function for texts as short as a key."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, pepper: bytes) -> None:
        """Raises ``ValueError`` for an empty pepper."""
        if not pepper:
            raise ValueError("the pepper is empty")
        block = (sha256(pepper).digest() if len(pepper) > _BLOCK else pepper).ljust(_BLOCK, b"\0")
        self._inner = sha256(block.translate(_INNER))
        self._outer = sha256(block.translate(_OUTER))

    def digest(self, token: bytes) -> bytes:
        """32 bytes: what the store knows a key by."""
        inner = self._inner.copy()
        inner.update(token)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


def digest(token: bytes, pepper: bytes) -> bytes:
    """The same for one key. Raises ``ValueError`` for an empty pepper."""
    return Digester(pepper).digest(token)
