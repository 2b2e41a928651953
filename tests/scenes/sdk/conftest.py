"""Fixtures of the SDK scenes: both sides, fresh for each scene, and the two kinds of client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenes.sdk.sides import Sides

BLOCKING = "blocking"
ASYNCHRONOUS = "asynchronous"


@pytest.fixture
def sides() -> Iterator[Sides]:
    """A direct upstream and a proxied one, both untouched."""
    with Sides() as sides:
        yield sides


@pytest.fixture(params=[BLOCKING, ASYNCHRONOUS])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of an SDK's two clients runs the program."""
    return str(request.param)
