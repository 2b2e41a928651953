"""What holds for every test: no network but the loopback interface, no task left behind, and a clock that stands."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.fakes.clock import FrozenClock

pytest_plugins = ["tests.fakes.databases", "tests.fakes.valkey"]

_TICKS_TO_END = 20


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True
    host = str(address[0]).partition("%")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A socket of this process connects to the loopback interface or not at all.

    uvloop connects without Python's sockets and passes this by; tests of it bind to 127.0.0.1 by themselves.
    """
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def check(connection: socket.socket, address: Any) -> None:
        if connection.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address):
            raise RuntimeError(f"a test may not leave the loopback interface: {address!r}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        check(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        check(self, address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


@pytest.fixture
async def _task_check() -> AsyncIterator[None]:
    yield
    current = asyncio.current_task()
    for _ in range(_TICKS_TO_END):
        # A task that was cancelled or has what it waited for needs a few turns to end.
        if not [task for task in asyncio.all_tasks() if task is not current]:
            return
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not current]
    if left:
        names = "\n".join(sorted(f"  {task.get_name()}: {task.get_coro()!r}" for task in left))
        for task in left:
            task.cancel()
        pytest.fail(f"{len(left)} tasks were left running:\n{names}", pytrace=False)


@pytest.fixture(autouse=True)
def _leak_check(request: pytest.FixtureRequest) -> None:
    """Asynchronous tests end with no task but their own, after their fixtures were torn down."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("_task_check")


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """A clock that moves by ``advance`` only."""
    return FrozenClock()
