"""The header by which a caller names the tier of a virtual model."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.headers import MAX_TIER_BYTES, parse_controls
from proxy.protocol.message import make_request_head


def tier(*said: bytes) -> str:
    headers = [(b"x-sameflight-tier", value) for value in said]
    return parse_controls(make_request_head("POST", "/v1/chat/completions", headers)).tier


def test_a_tier_is_read_without_regard_to_case_and_space() -> None:
    """Headers are written by hand."""
    assert [tier(b"complex"), tier(b" Complex "), tier(b""), tier()] == ["complex", "complex", "", ""]


@pytest.mark.parametrize("said", [b"x" * (MAX_TIER_BYTES + 1), b"a\x01b"])
def test_what_can_be_no_tier_is_refused(said: bytes) -> None:
    """To leave it out would let another model answer than was asked for."""
    with pytest.raises(ProxyError) as caught:
        tier(said)

    assert caught.value.kind is Kind.BAD_REQUEST


def test_a_tier_that_is_not_ascii_is_read_and_will_not_be_found() -> None:
    """Nothing breaks."""
    assert tier(b"\xff\xfe") == "\xff\xfe"
