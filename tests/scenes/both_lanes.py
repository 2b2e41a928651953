"""Scenes on both lanes of the edge: the fast one, which is the default, and in the long run the other one as well."""

from __future__ import annotations

from typing import Final

import pytest

from tests.scenes.stage import Stage

MODULES: Final = frozenset(
    (
        "test_accounts",
        "test_backpressure",
        "test_bad_requests",
        "test_endings",
        "test_failures",
        "test_faults_inside",
        "test_framing",
        "test_leaving",
        "test_retries_and_idempotency",
        "test_sharing_rules",
        "test_single_flight",
        "test_slow_clients",
        "test_streams",
        "test_vanishing_clients",
    )
)
"""What touches framing, limits, deadlines, drains, and how answers begin and end."""


@pytest.fixture(autouse=True)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage of the test is built on this lane."""
    monkeypatch.setattr(Stage, "fast_lane", getattr(request, "param", "fast") == "fast")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both lanes for the modules above."""
    if metafunc.module.__name__.rpartition(".")[2] in MODULES:
        lanes = ["fast", pytest.param("slow", marks=pytest.mark.long)]
        metafunc.parametrize("lane", lanes, indirect=True)
