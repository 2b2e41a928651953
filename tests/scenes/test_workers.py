"""Several workers under one parent, as real processes: who dies takes only its own requests along, and who is
replaced takes none."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest

from loadtests.rolling import Course
from loadtests.rolling import run as run_course
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.gates import wait_until
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.kubelet import pause
from tests.scenes.stage import CHAT, KEY, as_bytes, chat, completion, delta
from tests.scenes.test_process import START_LIMIT_S, Serve, run

SSE = [("content-type", "text/event-stream")]
FIRST = as_bytes([delta("begun")])
REST = as_bytes([delta("the rest"), "[DONE]"])
ADMIN_TOKEN = "an-admin-token-for-tests"


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as made:
        yield made
        made.failures.clear()  # requests that a killed worker did not finish


class Workers(Serve):
    """`serve --workers 2` on Unix sockets."""

    def __init__(self, cwd: Path, upstream: ScriptedUpstream, *arguments: str, **env: str) -> None:
        super().__init__(
            cwd, upstream, "--workers", "2", "--unix-socket", "w-{worker}.sock", "--drain-grace-s", "10", *arguments,
            **{"SAMEFLIGHT_ADMIN_TOKEN": ADMIN_TOKEN, **env},
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.paths = [str(self._cwd / path) for path in self.url]
        return self

    async def client_of(self, worker: int) -> RawClient:
        client = await RawClient.connect(unix_path=self.paths[worker])
        self._clients.append(client)
        return client

    async def ask_of(self, worker: int, body: object, client: RawClient | None = None) -> RawResponse:
        client = client or await self.client_of(worker)
        return await client.start("POST", CHAT, [("authorization", f"Bearer {KEY}")], body)

    async def workers(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin("/workers")).json()["workers"]
        return found

    async def becomes(self, worker: int, generation: int) -> dict[str, Any]:
        """Until a worker of that generation is ready."""
        found: dict[str, Any] = {}
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + START_LIMIT_S
        while not (found.get("ready") and found.get("generation") == generation):
            assert loop.time() < gives_up_at, f"worker {worker} is {found}, {self.errors}"
            await pause(0.05)
            found = (await self.workers())[str(worker)]
        return found

    async def series(self, *names: str) -> dict[str, float]:
        """Samples that begin with one of the names."""
        text = (await self.admin("/metrics")).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(names)]
        return {sample: float(value) for sample, _, value in lines}


def rows_of(directory: Path) -> list[tuple[str, str]]:
    [path] = (directory / ".sameflight").glob("*.db")
    with sqlite3.connect(path) as plain:
        rows = plain.execute("SELECT request_id, outcome FROM usage").fetchall()
    plain.close()
    return rows


def sockets_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.is_socket()]


async def begin(upstream: ScriptedUpstream, response: RawResponse) -> Any:
    """The upstream's end of a stream that has begun."""
    call = await upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(FIRST)
    await response.read_until(FIRST)
    return call


@pytest.mark.long
async def test_a_worker_that_is_killed_fails_its_own_requests_alone_and_is_back(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Who comes meanwhile waits in its queue, what was finished stays booked once, and one port tells it all."""
    async with Workers(tmp_path, upstream) as serve:
        before = await serve.workers()
        finished = [await serve.ask_of(worker, chat(f"finished {worker}")) for worker in (0, 1)]
        for _ in finished:
            await (await upstream.next_call()).answer_json(completion())
        for response in finished:
            await response.read_end()
        killed = await serve.ask_of(1, chat("killed", stream=True))
        await begin(upstream, killed)
        spared = await serve.ask_of(0, chat("spared", stream=True))
        call = await begin(upstream, spared)
        counted = await serve.series("sameflight_requests_total{")
        os.kill(before["1"]["pid"], signal.SIGKILL)
        await killed.read_end()
        waiting = await serve.ask_of(1, chat("came meanwhile"))  # neither refused nor lost
        await call.send(REST)
        await call.end()
        await spared.read_end()
        await serve.becomes(1, 2)
        await (await upstream.next_call()).answer_json(completion())
        await waiting.read_end()
        after = await serve.workers()
        async with await RawClient.connect_url(serve.admin_url) as client:
            token = [("authorization", f"Bearer {ADMIN_TOKEN}")]
            keys = await client.request("GET", "/admin/keys", token)
        later = await serve.series("sameflight_requests_total{", "sameflight_worker")
        code = await serve.stop()

    assert killed.truncated
    assert spared.ended
    assert waiting.json() == completion()
    assert [after[each]["generation"] for each in "01"] == [1, 2]
    assert keys.status == 200
    assert sum(counted.values()) == 2
    assert sum(value for name, value in later.items() if "requests_total" in name) == 4
    assert later['sameflight_worker_starts_total{reason="crash"}'] == 1
    assert later['sameflight_worker_up{worker="1"}'] == 1
    assert code == 0
    rows = rows_of(tmp_path)
    ids = [response.header("x-sameflight-request-id") for response in (*finished, waiting, spared)]
    assert sorted(each for each, outcome in rows if outcome == "ok") == sorted(ids)
    assert len(rows) == len(set(rows)) == 5, "the killed stream is one row as well"
    assert serve.errors == ""
    assert sockets_in(tmp_path) == []


async def open_parent(serve: Workers, *, keep: int) -> list[int]:
    """Process ids of the workers."""
    found = await serve.workers()
    return [found[str(number)]["pid"] for number in range(keep)]


@pytest.mark.long
async def test_a_rolling_restart_cuts_no_stream_and_its_command_says_when_it_is_over(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Old streams run on while new requests on the same socket are the new process's."""
    async with Workers(tmp_path, upstream, "--drain-grace-s", "60") as serve:
        pids = await open_parent(serve, keep=2)
        stream = await serve.ask_of(0, chat(stream=True))
        call = await begin(upstream, stream)
        ended = await run("restart", cwd=tmp_path)
        state = await serve.workers()
        fresh = await serve.ask_of(0, chat("fresh"))
        await (await upstream.next_call()).answer_json(completion())
        await fresh.read_end()
        gauges = await serve.series("sameflight_streams_inflight")
        await call.send(REST)
        await call.end()
        await stream.read_end()
        code = await serve.stop()
        nobody = await run("restart", cwd=tmp_path)

    assert (ended.code, ended.out) == (0, "2 workers were replaced\n")
    assert [state[each]["generation"] for each in "01"] == [2, 2]
    assert [each["pid"] for each in state["0"]["draining"]] == pids[:1]
    assert fresh.json() == completion()
    assert gauges['sameflight_streams_inflight{worker="0-draining"}'] == 1
    assert (stream.ended, stream.body) == (True, FIRST + REST)
    assert code == 0
    assert (nobody.code, nobody.out) == (1, "")
    assert serve.errors == ""


@pytest.mark.long
async def test_a_new_generation_that_cannot_start_stops_the_roll_and_the_old_one_serves_on(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A mistake in a file is found before anybody feels it; mended, the next roll goes through."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("routes:\n  chat.completions:\n    linger_s: 1\n", "utf-8")
    async with Workers(tmp_path, upstream, "--config", str(catalog)) as serve:
        catalog.write_text("routes:\n  chat.completions:\n    linger_s: -1\n", "utf-8")
        stopped = await run("restart", cwd=tmp_path)
        response = await serve.ask_of(0, chat())
        await (await upstream.next_call()).answer_json(completion())
        await response.read_end()
        state = await serve.workers()
        catalog.write_text("routes:\n  chat.completions:\n    linger_s: 2\n", "utf-8")
        done = await run("restart", cwd=tmp_path)
        series = await serve.series("sameflight_worker_rolls_total")
        code = await serve.stop()

    assert stopped.code == 1
    assert "the old workers go on: worker 0: the configuration file cannot be used" in stopped.err
    assert (response.status, state["0"]["generation"]) == (200, 1)
    assert done.code == 0
    assert series == {
        'sameflight_worker_rolls_total{result="stopped"}': 1,
        'sameflight_worker_rolls_total{result="done"}': 1,
    }
    assert code == 0


@pytest.mark.long
async def test_a_configuration_that_cannot_be_used_ends_the_parent_with_its_words(tmp_path: Path) -> None:
    """As it ends a process alone: on the first start nothing is worth keeping."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("routes:\n  chatt: {}\n", "utf-8")
    arguments = ("--workers", "2", "--unix-socket", "w.sock", "--admin-port", "0", "--config", str(catalog))
    ended = await run("serve", *arguments, cwd=tmp_path)

    assert ended.code == 1
    assert ended.err.startswith("sameflight serve: the configuration file cannot be used:\n")
    assert f"{catalog}:2:" in ended.err
    assert sockets_in(tmp_path) == []


@pytest.mark.long
async def test_workers_whose_parent_is_killed_finish_what_runs_and_go(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Nobody is left behind to hold sockets that the next parent wants."""
    async with Workers(tmp_path, upstream) as serve:
        pids = await open_parent(serve, keep=2)
        stream = await serve.ask_of(0, chat(stream=True))
        call = await begin(upstream, stream)
        serve.send(signal.SIGKILL)
        await wait_until(lambda: not is_alive(pids[1]), "the idle one is gone", START_LIMIT_S)
        kept = is_alive(pids[0])
        await call.send(REST)
        await call.end()
        await stream.read_end()
        await wait_until(lambda: not is_alive(pids[0]), "the busy one is gone", START_LIMIT_S)
    async with Workers(tmp_path, upstream) as serve:
        assert await serve.stop() == 0

    assert kept
    assert stream.ended
    assert len(rows_of(tmp_path)) == 1


def is_alive(pid: int) -> bool:
    """Neither gone nor waiting for somebody to look at its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
async def test_a_hung_worker_is_named_and_costs_no_view_more_than_its_time(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Stopped as by a stuck loop: metrics, probes and the other worker go on."""
    async with Workers(tmp_path, upstream) as serve:
        pids = await open_parent(serve, keep=2)
        os.kill(pids[1], signal.SIGSTOP)
        try:
            up = await serve.series("sameflight_worker_up")
            flights = (await serve.admin("/flights")).json()["workers"]
            ready = await serve.is_ready()
        finally:
            os.kill(pids[1], signal.SIGCONT)
        code = await serve.stop()

    assert up == {'sameflight_worker_up{worker="0"}': 1, 'sameflight_worker_up{worker="1"}': 0}
    assert flights["1"] == {"error": "timeout"}
    assert flights["0"]["flights"] == []
    assert ready
    assert code == 0


@pytest.mark.long
async def test_a_second_signal_ends_streams_of_all_workers_at_once(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Whoever is in a hurry need not wait for the grace."""
    async with Workers(tmp_path, upstream, "--drain-grace-s", "3600") as serve:
        streams = [await serve.ask_of(worker, chat(f"{worker}", stream=True)) for worker in (0, 1)]
        calls = [await upstream.next_call(), await upstream.next_call()]
        for call in calls:
            await call.send_head(200, SSE, chunked=True)
            await call.send(FIRST)
        for stream in streams:
            await stream.read_until(FIRST)
        serve.send(signal.SIGTERM)
        await serve.event("draining")
        serve.send(signal.SIGTERM)
        for stream in streams:
            await stream.read_end()
        code = await serve.ended()

    assert all(stream.truncated for stream in streams)
    assert code == 0


@pytest.mark.long
async def test_sockets_of_systemd_are_served_by_workers_in_their_order(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Socket activation: the sockets were there before the program, and stay when it is gone."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    script = (
        "import os, sys\n"
        "fds = [int(word) for word in sys.argv[1].split(',')]\n"
        "high = [os.dup(os.dup(fd)) for fd in fds]\n"
        "for want, fd in enumerate(high, 3): os.dup2(fd, want)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'proxy', *sys.argv[2:]])\n"
    )
    fds = ",".join(str(each.fileno()) for each in sockets)
    arguments = ("serve", "--workers", "2", "--admin-port", "0", "--openai-upstream", upstream.url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, fds, *arguments),
        pass_fds=[each.fileno() for each in sockets],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        for number, each in enumerate(sockets):
            async with await RawClient.connect(port=each.getsockname()[1]) as client:
                headers = [("authorization", f"Bearer {KEY}")]
                response = await client.start("POST", CHAT, headers, chat(str(number)))
                await wait_until(lambda: upstream.waiting, "the worker asks", START_LIMIT_S)
                await (await upstream.next_call()).answer_json(completion())
                await response.read_end()
                assert response.status == 200
        process.terminate()
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
        for each in sockets:
            each.close()


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_over_rolling_restarts_nobody_is_refused_reset_or_cut(tmp_path: Path) -> None:
    """Steady load on kept connections and live streams; what the client saw is what the usage records say. The whole
    course, 100,000 requests, 200 streams and 20 restarts, is `python -m loadtests.rolling`."""
    course = Course(requests=5_000, rate=150.0, streams=40, rolls=3, workers=2, stream_s=2.0)
    found = await run_course(course, tmp_path)
    print("\n" + found.describe())

    assert found.good, found.describe()
    assert found.rolls == 3
    assert found.rows == found.asked
