"""How remote guards reach the network."""

from __future__ import annotations

import pytest

from proxy.errors import Kind, ProxyError
from proxy.guard.remote import MAX_ANSWER_BYTES
from proxy.guarding import make_post
from proxy.protocol.message import ResponseHead
from proxy.upstream.base import Origin, Patience, Receiver, UpstreamRequest


class OneAnswer:
    """A transport with one answer for everybody."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked: list[tuple[UpstreamRequest, Patience]] = []

    async def exchange(self, request: UpstreamRequest, receiver: Receiver, patience: Patience) -> None:
        self.asked.append((request, patience))
        receiver.on_read(ResponseHead(200, []), self.body, True)


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("https://guard.test/check?a=1", Origin("https", "guard.test", 443), "/check?a=1"),
        ("http://guard.test", Origin("http", "guard.test", 80), "/"),
        ("http://[::1]:8080/x", Origin("http", "::1", 8080), "/x"),
    ],
)
async def test_a_guards_address_becomes_an_origin_and_a_target(url: str, origin: Origin, target: str) -> None:
    """And its deadline is that of every phase of the call."""
    transport = OneAnswer(b"{}")
    assert await make_post(transport)(url, [(b"a", b"b")], b"body", 0.5) == (200, b"{}")

    ((request, patience),) = transport.asked
    assert request == UpstreamRequest(origin, "POST", target, [(b"a", b"b")], b"body")
    assert patience == Patience(0.5, 0.5, 0.5, 0.5)


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """A guard has little to say."""
    with pytest.raises(ProxyError) as refused:
        await make_post(OneAnswer(b"x" * (MAX_ANSWER_BYTES + 1)))("http://guard.test/", [], b"", 0.5)

    assert refused.value.kind is Kind.UPSTREAM_TOO_LARGE
