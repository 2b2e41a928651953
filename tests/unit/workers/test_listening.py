"""The sockets that a parent keeps: bound first, listened on later, refused when nobody comes for them."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

import pytest

from proxy.config.settings import Settings
from proxy.workers.listening import Address, Listening, addresses, worker_path
from proxy.workers.systemd import notify, take_sockets


def connect(address: Address) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX if address.path else socket.AF_INET)
    try:
        caller.connect(address.path or (address.host, address.port))
    except OSError:
        caller.close()
        raise
    return caller


@pytest.fixture(params=["unix", "tcp"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    where = Address(str(tmp_path / "w.sock")) if request.param == "unix" else Address("", "127.0.0.1", 0)
    made = Listening(where)
    yield made
    made.close()


def test_nobody_waits_for_a_worker_that_never_listened(listening: Listening) -> None:
    """A balancer goes to the next worker at once."""
    with pytest.raises(ConnectionRefusedError):
        connect(listening.address)


def test_once_somebody_listened_callers_wait_whoever_dies(listening: Listening) -> None:
    """The worker's copy is closed with it, the parent's keeps the queue."""
    with listening.socket.dup() as workers_own:
        workers_own.listen()
    with connect(listening.address):
        successor, _ = listening.socket.accept()
        successor.close()


def test_a_queue_that_is_dropped_refuses_until_somebody_listens_on_the_same_address(listening: Listening) -> None:
    """Those who waited learn it at once, and nobody else takes the address meanwhile."""
    listening.socket.listen()
    before = listening.address
    with connect(before) as waiting:
        listening.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(before)
        waiting.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):
            assert waiting.recv(1) == b""
    listening.socket.listen()
    connect(before).close()

    assert listening.address == before


def test_the_path_goes_with_the_parent_and_its_mode_is_as_wished(tmp_path: Path) -> None:
    """nginx runs as somebody else and must be let in."""
    path = tmp_path / "w.sock"
    listening = Listening(Address(str(path)), "660")
    mode = stat.S_IMODE(path.stat().st_mode)
    listening.close()

    assert mode == 0o660
    assert not path.exists()


def test_a_path_that_a_killed_process_left_is_taken_and_one_in_use_is_not(tmp_path: Path) -> None:
    """Whoever listens there would never hear of anybody again."""
    path = tmp_path / "w.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    Listening(Address(str(path))).close()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            Listening(Address(str(path)))
        assert path.exists()


@pytest.mark.parametrize(
    ("path", "count", "second"),
    [
        ("/run/x/worker.sock", 2, "/run/x/worker-1.sock"),
        ("/run/x/{worker}.sock", 2, "/run/x/1.sock"),
        ("/run/{worker}/s", 2, "/run/1/s"),
        ("/run/x/worker", 4, "/run/x/worker-1"),
    ],
)
def test_each_worker_has_a_path_of_its_own(path: str, count: int, second: str) -> None:
    """Its number is where the placeholder is, or before the suffix."""
    assert str(addresses(Settings(unix_socket=path), count)[1]) == second


def test_one_worker_has_the_path_itself_and_ports_follow_each_other() -> None:
    """Port 0 stays 0: each takes a free one."""
    assert worker_path("/run/w.sock", 0, 1) == "/run/w.sock"
    assert [each.port for each in addresses(Settings(port=9000), 3)] == [9000, 9001, 9002]
    assert [each.port for each in addresses(Settings(port=0), 3)] == [0, 0, 0]


# -- systemd -------------------------------------------------------------------------------------------------


def test_sockets_of_systemd_are_taken_once_and_only_by_whom_they_are_meant_for() -> None:
    """A child that inherits the environment must not take its parent's files for sockets."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        fd = os.dup(made.fileno())
    env: MutableMapping[str, str] = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert take_sockets(env, fd) == []
    env = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "data", "PATH": "/bin"}
    [given] = take_sockets(env, fd)
    with given:
        assert not given.get_inheritable()
        assert env == {"PATH": "/bin"}


def test_a_socket_of_systemd_is_never_bound_anew(tmp_path: Path) -> None:
    """It is systemd's, and so is its path."""
    path = tmp_path / "s"
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(path))
    listening = Listening(Address(str(path)), given=given)
    listening.refuse()
    kept = listening.socket is given
    listening.close()

    assert kept
    assert path.exists()


def test_systemd_is_told_where_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody is told anything where it does not."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
