"""How a parent is found, and what `sameflight restart` makes of it."""

from __future__ import annotations

import argparse
import io
import os
import signal
from pathlib import Path

import pytest

from proxy.cli import restart
from proxy.workers.status import FILE_NAME, ParentThereError, StatusFile, read_status

FACTS = {"admin": "http://127.0.0.1:8081", "workers": 2, "wanted": 0, "done": 0, "why": ""}


def test_a_parent_is_found_while_it_lives_and_not_afterwards(tmp_path: Path) -> None:
    """A number in a file that nobody holds may be anybody's by now."""
    assert read_status(tmp_path) is None
    status = StatusFile(tmp_path)
    assert read_status(tmp_path) == {}
    status.write(FACTS)
    assert read_status(tmp_path) == {"pid": os.getpid(), **FACTS}
    status.close()
    (tmp_path / FILE_NAME).write_text('{"pid": 1}', "ascii")

    assert read_status(tmp_path) is None


def test_a_state_directory_has_one_parent(tmp_path: Path) -> None:
    """Two would take each other's sockets away."""
    status = StatusFile(tmp_path)
    with pytest.raises(ParentThereError, match="another parent"):
        StatusFile(tmp_path)
    status.close()
    StatusFile(tmp_path).close()


class Asked:
    """Runs the command against a parent that does as ``answer`` says."""

    def __init__(self, tmp_path: Path, status: StatusFile | None, *, answer: dict[str, object] | None = None) -> None:
        self.sent: list[tuple[int, int]] = []
        self._status = status
        self._answer = answer
        self.out, self.err = io.StringIO(), io.StringIO()
        self._env = {"SAMEFLIGHT_STATE_DIR": str(tmp_path)}

    def run(self, *arguments: str) -> int:
        parser = argparse.ArgumentParser()
        restart.add_parser(parser.add_subparsers())
        args = parser.parse_args(["restart", *arguments])
        return restart.run(args, self.out, self.err, self._env, send=self._send, sleep=self._sleep)

    def _send(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))

    def _sleep(self, _: float) -> None:
        assert self._status is not None
        if self._answer is not None:
            self._status.write({**FACTS, **self._answer})


@pytest.fixture
def status(tmp_path: Path) -> object:
    made = StatusFile(tmp_path)
    made.write(FACTS)
    yield made
    made.close()


def test_restart_asks_the_parent_and_waits_until_all_were_replaced(tmp_path: Path, status: StatusFile) -> None:
    """Exit code 0 means that it is done."""
    asked = Asked(tmp_path, status, answer={"wanted": 1, "done": 1})

    assert asked.run() == 0
    assert asked.sent == [(os.getpid(), signal.SIGUSR2)]
    assert asked.out.getvalue() == "2 workers were replaced\n"


def test_restart_says_why_it_stopped(tmp_path: Path, status: StatusFile) -> None:
    """The old workers go on, and whoever deploys must know."""
    asked = Asked(tmp_path, status, answer={"wanted": 1, "done": 1, "why": "worker 0: no such file"})

    assert asked.run() == 1
    assert asked.err.getvalue() == "stopped, the old workers go on: worker 0: no such file\n"


def test_restart_need_not_wait_and_does_not_wait_for_ever(tmp_path: Path, status: StatusFile) -> None:
    """Scripts have deadlines of their own."""
    assert Asked(tmp_path, status).run("--no-wait") == 0
    late = Asked(tmp_path, status, answer={"wanted": 1, "done": 0})
    assert late.run("--timeout-s", "0.01") == 1
    assert late.err.getvalue() == "it is not over yet, and goes on\n"


def test_restart_without_a_parent_says_so(tmp_path: Path) -> None:
    """A single process has none."""
    asked = Asked(tmp_path, None)

    assert asked.run() == 1
    assert "no parent of workers runs" in asked.err.getvalue()
