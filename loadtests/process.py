"""Child processes: started on one core, measured from ``/proc``, ended with everything they started."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPO = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_START_S = 30.0
_STOP_S = 10.0


def free_port() -> int:
    """A port of loopback that nobody listens on now, and none of those given out last: two in a row are two."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _GIVEN:
            _GIVEN.append(port)
            return port


_GIVEN: deque[int] = deque(maxlen=32)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what would change the proxy's settings, send loopback through a proxy, or have Python
    compile its sources at every start (an installed package is compiled)."""
    unwanted = ("SAMEFLIGHT_", "OPENAI_", "ANTHROPIC_", "MISTRAL_", "PYTHONDONTWRITEBYTECODE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and not name.lower().endswith("_proxy")
    }
    return {**kept, "PYTHONPATH": str(REPO), **(extra or {})}


class Child:
    """One process and its descendants. Use as a context manager."""

    # The mutable state: the process between `start` and `stop`.
    def __init__(
        self, name: str, command: Sequence[str], core: int, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._core = core
        self._env = clean_environment(env)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start on its core. Raises ``OSError``."""
        # A child inherits the affinity of the thread that makes it; so it is on its core from its first instruction.
        before = os.sched_getaffinity(0)
        with self.log.open("ab") as log:
            os.sched_setaffinity(0, {self._core})
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=self._env,
                    cwd=REPO,
                    start_new_session=True,
                )
            finally:
                os.sched_setaffinity(0, before)

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, wait_s in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
                break

    def wait_for(self, port: int, within_s: float = _START_S) -> None:
        """Until it listens on ``port``. Raises ``RuntimeError`` with the end of its log if it does not."""
        assert self._process is not None
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            time.sleep(0.005)
        tail = self.log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(f"{self.name} does not listen on {port}:\n{tail}")

    def pids(self) -> list[int]:
        """The process and all below it."""
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(each) for each in task.read_text().split()]
        return found

    def cpu_s(self) -> float:
        """User and system time so far, in seconds."""
        return sum(cpu_ticks(pid) for pid in self.pids()) / _TICKS

    def rss_bytes(self) -> int:
        """Resident memory."""
        return sum(_read_rss(pid) for pid in self.pids())

    def open_files(self) -> int:
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/fd"))
        return total

    def threads(self) -> int:
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/task"))
        return total


def cpu_ticks(pid: int) -> int:
    """``utime`` and ``stime`` of proc_pid_stat(5); 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return sum(int(each) for each in text.rpartition(")")[2].split()[11:13])


def _read_rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def fetch_json(port: int, path: str, method: str = "GET", context: Any = None) -> Any:
    """A small JSON answer from a process on loopback. Raises ``OSError`` and ``ValueError``."""
    if context is not None:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection("localhost", port, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def run_python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our own modules."""
    return [sys.executable, "-m", module, *arguments]
