"""Fixtures of the scenes: the usual stage, and one whose time stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.clock import FrozenClock
from tests.scenes.both_lanes import lane, pytest_generate_tests  # noqa: F401 - pytest finds them here
from tests.scenes.stage import Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """A proxy with default settings; at rest when the scene is over."""
    async with Stage() as stage:
        yield stage
        await stage.at_rest()


@pytest.fixture
async def frozen_stage(frozen_clock: FrozenClock) -> AsyncIterator[Stage]:
    """A proxy whose time is moved by ``frozen_clock.advance`` only."""
    async with Stage(clock=frozen_clock) as stage:
        yield stage
        await stage.at_rest()
