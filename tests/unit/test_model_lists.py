"""How providers are asked for their models: paths, keys and what counts as an answer."""

from __future__ import annotations

import pytest

from proxy.config.catalog import Provider
from proxy.errors import Kind, ProxyError
from proxy.model_lists import asking_headers, fetch_list, list_target
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import within
from tests.fakes.transports import WireRig
from tests.fakes.wire_server import READ, Repeat, WireServer, Write, answer


def provider(kind: str, key: str = "k", version: str = "", port: int = 80) -> Provider:
    return Provider("p", "http", "127.0.0.1", port, "/base", key, kind, version=version)


@pytest.mark.parametrize(
    ("kind", "version", "target", "next_target", "header"),
    [
        ("openai", "", "/v1/models", "/v1/models?q", (b"authorization", b"Bearer k")),
        ("responses", "", "/v1/models", "/v1/models?q", (b"authorization", b"Bearer k")),
        ("compatible", "", "/v1/models", "/v1/models?q", (b"authorization", b"Bearer k")),
        ("mistral", "", "/v1/models", "/v1/models?q", (b"authorization", b"Bearer k")),
        ("anthropic", "", "/v1/models?limit=1000", "/v1/models?q", (b"x-api-key", b"k")),
        ("gemini", "", "/v1beta/models?pageSize=1000", "/v1beta/models?q", (b"x-goog-api-key", b"k")),
        ("azure", "", "/openai/v1/models", "/openai/v1/models", (b"api-key", b"k")),
        ("azure", "2024-10-21", *["/openai/models?api-version=2024-10-21"] * 2, (b"api-key", b"k")),
    ],
)
def test_each_kind_is_asked_as_it_wants(
    kind: str, version: str, target: str, next_target: str, header: tuple[bytes, bytes]
) -> None:
    """Its path, its page size, and its key in its header."""
    asked = provider(kind, version=version)
    assert (list_target(asked), list_target(asked, "q")) == (target, next_target)
    assert header in asking_headers(asked)
    assert header[0] not in dict(asking_headers(provider(kind, key="")))


def test_anthropic_is_told_the_version_of_its_api() -> None:
    """Without one it answers nothing."""
    assert dict(asking_headers(provider("anthropic")))[b"anthropic-version"] == b"2023-06-01"
    assert dict(asking_headers(provider("anthropic", version="2099-01-01")))[b"anthropic-version"] == b"2099-01-01"


async def test_list_is_fetched_from_its_base_path_with_its_key(frozen_clock: FrozenClock) -> None:
    """Over the transport that carries everything else."""
    rig = WireRig(frozen_clock)
    async with WireServer([Repeat((READ, Write(answer(b"[]"))))]) as server:
        asked = provider("openai", port=server.port)
        assert await within(fetch_list(rig.transport, asked, "/v1/models"), "the list came") == b"[]"
        (request,) = server.requests
        assert request.line == b"GET /base/v1/models HTTP/1.1"
        assert request.header(b"authorization") == [b"Bearer k"]
    await rig.wire.close()


@pytest.mark.parametrize("status", ["401 No", "404 No", "204 No Content", "302 Found", "500 No"])
async def test_any_other_status_is_no_list(frozen_clock: FrozenClock, status: str) -> None:
    """A refusal in JSON must not be taken for a list without models."""
    rig = WireRig(frozen_clock)
    async with WireServer([Repeat((READ, Write(answer(b'{"data": []}', status))))]) as server:
        with pytest.raises(ProxyError) as caught:
            await within(fetch_list(rig.transport, provider("openai", port=server.port), "/v1/models"), "it failed")
        assert (caught.value.kind, caught.value.why) == (Kind.UPSTREAM_BAD_RESPONSE, "model_list")
    await rig.wire.close()
