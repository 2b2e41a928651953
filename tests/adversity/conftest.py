"""Fixtures of the adversities: the scenes' stages, and what a refusal must look like whoever it is for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.scenes.both_lanes import lane, pytest_generate_tests  # noqa: F401 - pytest finds them here
from tests.scenes.stage import KEY, Stage

AUTHORISED = f"authorization: Bearer {KEY}\r\n".encode()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A proxy with default settings; at rest when the adversity is over."""
    async with Stage() as stage:
        yield stage
        await stage.at_rest()


@pytest.fixture
async def frozen_stage(frozen_clock: FrozenClock) -> AsyncIterator[Stage]:
    """A proxy whose time is moved by ``frozen_clock.advance`` only."""
    async with Stage(clock=frozen_clock) as stage:
        yield stage
        await stage.at_rest()


async def swept(stage: Stage) -> None:
    """Until every deadline that is due has fired."""
    runs = stage.app.janitor.durations["deadlines"].runs
    await wait_until(lambda: stage.app.janitor.durations["deadlines"].runs > runs + 1, "the deadlines were swept")


async def say(stage: Stage, data: bytes, method: str = "POST", **options: Any) -> tuple[RawClient, RawResponse]:
    """Bytes on a connection of their own, and the one response that they bring, whole."""
    client = await stage.client(**options)
    response = client.expect(method)
    await client.send(data)
    await response.read_end()
    return client, response


def is_refusal(response: RawResponse, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert that this is an error of ours, whole, in OpenAI's shape, with a request id and without a trace."""
    assert (response.status, response.ended, response.truncated) == (status, True, False), response.body
    assert response.header("content-type") == "application/json"
    assert response.header("x-sameflight-request-id") == response.header("x-request-id")
    assert (response.header("x-request-id") or "").startswith("req_")
    for trace in (b"Traceback", b".py", b"Error(", b"proxy.", KEY.encode()):
        assert trace not in response.body
    error: dict[str, Any] = json.loads(response.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code
    return error


async def is_closed(client: RawClient) -> None:
    """Assert that the proxy ended the connection in good order, with nothing said after the answer."""
    await client.peer_closed()
    assert not client.was_reset
    assert client.unread == b""


def heads_begun(stage: Stage) -> int:
    """On how many connections a head has begun and not ended; such a connection is aiohttp's, on either lane."""
    return sum(bool(getattr(each, "_head_bytes", 0)) for each in stage.app.server.connections)


def nothing_admitted(stage: Stage) -> None:
    """Assert that no upstream has heard of it."""
    assert stage.upstream.history == []
    assert stage.upstream.connections_made == 0
    assert stage.app.table.started == 0
