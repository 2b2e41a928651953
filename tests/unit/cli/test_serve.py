"""``serve`` before there is a proxy."""

from __future__ import annotations

import signal
import socket
from argparse import Namespace
from collections.abc import Iterator

import pytest

from proxy.cli import serve
from proxy.config.settings import Settings
from proxy.telemetry.log import Logging


@pytest.fixture
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_signals")
def test_a_reload_that_is_asked_for_while_it_starts_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes the file and sends SIGHUP cannot know how far the process is."""
    seen: list[object] = []

    def begin(settings: Settings, logging: Logging, given: list[socket.socket]) -> int:
        seen.append(signal.getsignal(signal.SIGHUP))
        return 0

    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    monkeypatch.setattr(serve, "_serve_alone", begin)

    assert serve.run(Namespace()) == 0
    assert seen == [signal.SIG_IGN]
