"""The one admin listener: views from all workers, none of whom can spoil them, and the admin API from one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

import proxy.workers.asking as asking
from proxy.config.settings import Settings, load_settings
from proxy.workers.admin import ParentAdmin
from proxy.workers.child import Child
from proxy.workers.merge import Totals, series_group
from proxy.workers.parent import Parent, divide
from tests.fakes.client import RawClient, RawResponse


class Worker:
    """A worker as the admin listener sees it, with a listener that answers everything in one way."""

    def __init__(self, path: Path, index: int, answer: bytes | None) -> None:
        self.admin_path, self.index, self.name = path, index, f"{index}.1"
        self.ready_now, self.state = True, "ready"
        self.asked: list[bytes] = []
        self._answer = answer
        self._server: asyncio.Server

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._handle, self.admin_path)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        self.asked.append(head + await reader.readexactly(length))
        if self._answer is None:
            await reader.read()
        else:
            body = self._answer
            head = b"HTTP/1.1 200 OK\r\nX-From: %d\r\nContent-Length: %d\r\n\r\n" % (self.index, len(body))
            writer.write(head + body)
        writer.close()

    def close(self) -> None:
        self._server.close()


class Team:
    """A parent that is whatever the test says."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.ready = True

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return self.ready

    def has_started(self) -> bool:
        return True

    def serving(self) -> dict[str, Child]:
        return {str(each.index): cast("Child", each) for each in self.workers}

    def describe(self) -> dict[str, Any]:
        return {"phase": "serving"}

    def own_series(self) -> list[Any]:
        return [series_group("workers", {"ready": 2.0})]


METRICS = b"# HELP a_total A.\n# TYPE a_total counter\na_total 2\n# HELP g G.\n# TYPE g gauge\ng 1\n"


class Scene:
    def __init__(self, team: Team, port: int) -> None:
        self.team = team
        self.port = port

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> RawResponse:
        async with await RawClient.connect(port=self.port) as client:
            return await client.request(method, path, list(headers.items()), body)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """Two workers that answer, one that never does, and one that is gone."""
    monkeypatch.setattr("proxy.workers.admin.ask", _hasty)
    workers = [Worker(tmp_path / str(number), number, METRICS) for number in range(2)]
    workers += [Worker(tmp_path / "2", 2, None), Worker(tmp_path / "3", 3, None)]
    for worker in workers[:3]:
        await worker.start()
    team = Team(workers)
    admin = ParentAdmin(team, Totals())
    listener = await asyncio.get_running_loop().create_server(admin, "127.0.0.1", 0)
    yield Scene(team, listener.sockets[0].getsockname()[1])
    listener.close()
    await admin.shutdown(0.1)
    for worker in workers[:3]:
        worker.close()


async def _hasty(path: Path, target: str, **options: Any) -> asking.Reply:
    return await asking.ask(path, target, **{**options, "timeout_s": 0.2})


async def test_metrics_are_merged_and_those_that_do_not_answer_are_named(scene: Scene) -> None:
    """A scrape never fails because of one worker."""
    response = await scene.ask("/metrics")
    lines = response.body.decode().splitlines()

    assert response.status == 200
    assert (response.header("content-type") or "").startswith("text/plain; version=0.0.4")
    assert "a_total 4" in lines
    assert 'g{worker="1"} 1' in lines
    assert 'sameflight_workers{state="ready"} 2' in lines
    assert [line for line in lines if line.startswith("sameflight_worker_up{")] == [
        f'sameflight_worker_up{{worker="{number}"}} {int(number < 2)}' for number in range(4)
    ]


async def test_a_view_shows_each_worker_or_why_it_does_not(scene: Scene) -> None:
    """A hung worker costs its time-out and no more."""
    for worker in scene.team.workers[:2]:
        worker._answer = b'{"flights":[]}'
    response = await scene.ask("/flights")
    workers = response.json()["workers"]

    assert response.status == 200
    assert workers["0"] == workers["1"] == {"flights": []}
    assert workers["2"] == {"error": "timeout"}
    assert "error" in workers["3"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/health", "/health/readiness"])
async def test_probes_ask_no_worker(scene: Scene, path: str) -> None:
    """A probe has a second; a hung worker must not take it."""
    response = await scene.ask(path)

    assert (response.status, response.json()) == (200, {"status": "ok", "phase": "serving"})
    assert [worker.asked for worker in scene.team.workers] == [[]] * 4


async def test_readiness_that_is_off_is_a_503(scene: Scene) -> None:
    """Endpoints are taken away by it."""
    scene.team.ready = False
    response = await scene.ask("/readyz")

    assert (response.status, response.json()["status"]) == (503, "unavailable")


async def test_the_admin_api_is_carried_out_by_one_worker_and_comes_back_unchanged(scene: Scene) -> None:
    """With its method, target, credential and body; once."""
    response = await scene.ask("/admin/keys?limit=2", "POST", b'{"name":"x"}', Authorization="Bearer t")

    assert (response.status, response.header("x-from"), response.body) == (200, "0", METRICS)
    [asked] = scene.team.workers[0].asked
    assert asked.startswith(b"POST /admin/keys?limit=2 HTTP/1.0\r\n")
    assert b"\r\nAuthorization: Bearer t\r\n" in asked
    assert asked.endswith(b'\r\n\r\n{"name":"x"}')
    assert scene.team.workers[1].asked == []


async def test_another_worker_is_asked_only_where_the_first_cannot_have_acted(scene: Scene) -> None:
    """Else a key would be made twice."""
    gone, hung, good = scene.team.workers[3], scene.team.workers[2], scene.team.workers[1]
    scene.team.workers = [gone, good]
    passed_on = await scene.ask("/admin/keys", "POST", b"{}")
    scene.team.workers = [hung, good]
    unknown = await scene.ask("/admin/keys", "POST", b"{}")
    scene.team.workers = []
    nobody = await scene.ask("/admin/keys", "POST", b"{}")

    assert passed_on.header("x-from") == "1"
    assert (unknown.status, unknown.json()["error"]["code"]) == (504, "worker_unanswered")
    assert (nobody.status, nobody.json()["error"]["code"]) == (503, "no_worker")
    assert len(good.asked) == 1


async def test_a_large_request_to_the_admin_api_is_refused(scene: Scene) -> None:
    """The parent holds no more than the API takes."""
    response = await scene.ask("/admin/keys", "POST", b"x" * 200_000)

    assert response.status == 413


# -- the admin page ----------------------------------------------------------------------------------------------

LIVE = (
    b'{"at":%d,"phase":"serving","flights":{"in_air":2,"oldest":[{"flight":1,"age_s":%d}]},"requests":{"running":1},'
    b'"hot_cache":{"entries":3},"usage":{"pending":0},"targets":[]}'
)


async def test_the_page_and_its_figures_come_from_one_worker(scene: Scene) -> None:
    """Figures are the store's and so everybody's. The worker hears by which name the parent was asked, and nobody
    else can tell it one."""
    for path in ("/", "/dashboard", "/dashboard/dashboard.js", "/dashboard/figures"):
        response = await scene.ask(path, Host="figures.example", **{"x-sameflight-asked-host": "localhost"})
        asked = scene.team.workers[0].asked.pop()

        assert (response.status, response.header("x-from")) == (200, "0")
        assert asked.startswith(b"GET %s HTTP/1.0\r\n" % path.encode())
        assert asked.lower().count(b"x-sameflight-asked-host") == 1
        assert b"X-Sameflight-Asked-Host: figures.example\r\n" in asked
    head = await scene.ask("/dashboard", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert scene.team.workers[1].asked == []


async def test_what_is_live_is_the_sum_of_all_workers_and_names_the_silent(scene: Scene) -> None:
    """Each gets the token that was presented."""
    for number, worker in enumerate(scene.team.workers[:2]):
        worker._answer = LIVE % (100 + number, number)
    response = await scene.ask("/dashboard/live", Authorization="Bearer t")
    live = response.json()

    assert response.status == 200
    assert (live["flights"]["in_air"], live["requests"]["running"], live["hot_cache"]["entries"]) == (4, 2, 6)
    assert [flight["worker"] for flight in live["flights"]["oldest"]] == ["1", "0"]
    assert live["at"] == 101
    assert live["workers"] == {"0": "", "1": "", "2": "timeout", "3": live["workers"]["3"]}
    assert live["workers"]["3"]
    assert all(b"\r\nAuthorization: Bearer t\r\n" in worker.asked[0] for worker in scene.team.workers[:2])


# -- what a worker is told ---------------------------------------------------------------------------------------


def test_what_belongs_to_the_whole_program_is_divided() -> None:
    """A container has its memory once, however many workers there are."""
    settings = Settings(memory_limit_bytes=1000, max_connections=9, spool_bytes=1 << 30)

    assert divide(settings, 4) == {
        "memory_limit_bytes": "250", "max_connections": "3", "spool_bytes": str(1 << 28),
    }  # fmt: skip
    assert divide(Settings(spool_bytes=8 << 20), 4) == {"spool_bytes": str(8 << 20)}


async def make_parent(tmp_path: Path, **flags: object) -> Parent:
    flags = {"unix_socket": str(tmp_path / "w.sock"), "state_dir": str(tmp_path), "admin_port": 0, **flags}
    parent = Parent(load_settings({}, flags), flags, 2)
    await parent._open()
    return parent


async def test_workers_get_the_parents_flags_and_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under different secrets two workers would not know the same credential, nor a worker its predecessor's."""
    monkeypatch.delenv("SAMEFLIGHT_KEY_SECRET", raising=False)
    parent = await make_parent(tmp_path, linger_s=7, workers=2)
    first, second = parent.orders_for(0), parent.orders_for(1)
    again = parent.orders_for(0)
    monkeypatch.setenv("SAMEFLIGHT_KEY_SECRET", "given")
    configured = parent.orders_for(0)
    await parent._close()

    assert first["key_secret"] == second["key_secret"] == again["key_secret"] != ""
    assert "key_secret" not in configured
    assert (first["linger_s"], first["workers"], first["limit_workers"]) == ("7", "1", "2")
    assert second["unix_socket"] == str(tmp_path / "w-1.sock")


async def test_limits_that_were_divided_already_are_not_divided_again(tmp_path: Path) -> None:
    """Whoever counts the processes of all machines has counted ours."""
    parent = await make_parent(tmp_path, limit_workers=12)
    orders = parent.orders_for(0)
    await parent._close()

    assert orders["limit_workers"] == "12"


def test_ports_of_workers_and_the_admin_listener_must_not_meet() -> None:
    """It is said at the start, not by a worker that cannot listen."""
    with pytest.raises(Exception, match=r"8081 is a worker's port as well, they are 8080 to 8083"):
        load_settings({}, {"workers": 4})
    assert load_settings({}, {"workers": "auto"}).settings.workers == 0
