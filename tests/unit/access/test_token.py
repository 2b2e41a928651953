"""The text of a key: made, recognised, and digested."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.token import KEY_BYTES, PREFIX, Digester, checksum, digest, is_key, mint

RANDOM = st.binary(min_size=32, max_size=32)


@given(RANDOM)
def test_every_key_that_is_made_is_recognised(random: bytes) -> None:
    """Length, alphabet and checksum hold for any 32 bytes."""
    key = mint(random)

    assert is_key(key)
    assert len(key) == KEY_BYTES
    assert key.startswith(PREFIX)


@given(RANDOM, RANDOM)
def test_different_bytes_make_different_keys(one: bytes, other: bytes) -> None:
    """Nothing of the 256 bits is lost in the text."""
    assert (mint(one) == mint(other)) == (one == other)


@given(RANDOM, st.integers(0, KEY_BYTES - 1), st.integers(1, 255))
def test_a_key_with_one_wrong_byte_is_no_key(random: bytes, place: int, change: int) -> None:
    """A CRC finds every error within 32 bits, wherever it is; a byte from outside the alphabet is found before."""
    key = bytearray(mint(random))
    key[place] ^= change

    assert not is_key(bytes(key))


@given(st.binary(max_size=200))
def test_junk_is_no_key(junk: bytes) -> None:
    """Whatever comes is looked at without raising."""
    assert not is_key(junk)


@pytest.mark.parametrize(
    "token",
    [
        b"",
        b"sf-",
        b"sf-' OR 1=1; --",
        mint() + b"x",
        mint()[:-1],
        mint().upper(),
        mint() + b"\0",
        b"sf-" + b"A" * (1 << 20),
        b"gw-" + mint()[3:],
        b"sf-" + "é".encode() * 23 + b"AAA",
    ],
    ids=["empty", "prefix", "sql", "longer", "shorter", "case", "nul", "1MiB", "other_prefix", "not_ascii"],
)
def test_what_looks_nearly_like_a_key_is_no_key(token: bytes) -> None:
    """The form is checked whole."""
    assert not is_key(token)


def test_keys_that_share_every_prefix_but_the_last_characters_stay_apart() -> None:
    """CVE-2026-35030: twins differ in their digest from the first to the last byte of it."""
    key = mint(b"\1" * 32)
    twin = key[:45] + (b"B" if key[45:46] != b"B" else b"C")
    twin += checksum(twin)

    assert is_key(twin)
    assert key[:45] == twin[:45]
    assert DIGEST(key) != DIGEST(twin)


DIGEST = Digester(b"pepper").digest


def test_a_key_from_the_source_of_randomness_is_never_the_same() -> None:
    """Without bytes of its own, a key is random."""
    assert len({mint() for _ in range(100)}) == 100


def test_too_few_random_bytes_are_refused() -> None:
    """A key of less than 256 bits does not exist."""
    with pytest.raises(ValueError, match="32 random bytes"):
        mint(b"\0" * 16)


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=200))
def test_a_digest_is_hmac_sha256_for_a_pepper_of_any_length(pepper: bytes, token: bytes) -> None:
    """The short way gives what RFC 2104 says, also for peppers longer than a block."""
    assert digest(token, pepper) == hmac.digest(pepper, token, "sha256")


def test_an_empty_pepper_is_refused() -> None:
    """It would be a plain hash with a public salt."""
    with pytest.raises(ValueError, match="empty"):
        Digester(b"")
