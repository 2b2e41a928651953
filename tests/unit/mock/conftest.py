"""A mock upstream that records, and a raw client for it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.mock import MockUpstream
from tests.fakes.client import RawClient


@pytest.fixture
async def mock() -> AsyncIterator[MockUpstream]:
    async with MockUpstream(record=True) as mock:
        yield mock


@pytest.fixture
async def client(mock: MockUpstream) -> AsyncIterator[RawClient]:
    async with await RawClient.connect_url(mock.url) as client:
        yield client
