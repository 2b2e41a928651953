"""The command line as its users meet it: real processes, real signals, pipes that nobody reads.

A process is met at its log: `serve` says where it listens in the event `serving`, and each later event is waited for
by reading lines. Nothing here waits for time.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import pytest

from proxy import __version__
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.gates import wait_until, within
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.stage import CHAT, KEY, as_bytes, chat, completion, delta, stream_events

REPO = Path(__file__).parents[2]
START_LIMIT_S = 30.0
"""A process is slow to start on a machine that runs other tests as well."""

COMMANDS = [[], ["serve"], ["demo"], ["mock"], ["config"], ["config", "check"], ["config", "show"]]
COMMANDS += [["config", "schema"], ["healthcheck"], ["version"]]


class Ended(NamedTuple):
    """A command that ran to its end."""

    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    """Nothing of whoever runs the tests but what a process needs to start."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
    return {**kept, "PYTHONPATH": str(REPO), **extra}


async def run(*arguments: str, cwd: Path, **env: str) -> Ended:
    """One command from start to end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy"),
        *arguments,
        cwd=cwd,
        env=environment(**env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await within(process.communicate(), f"{arguments} ended", START_LIMIT_S)
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


class Serve:
    """`serve` in a process of its own, with free ports; started and ended as an asynchronous context manager."""

    def __init__(
        self, cwd: Path, upstream: ScriptedUpstream, *arguments: str, python: tuple[str, ...] = (), **env: str
    ) -> None:
        self._cwd = cwd
        self._errors = cwd / f"stderr-{id(self)}.txt"
        self._command = [sys.executable, *python, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0"]
        self._command += ["--openai-upstream", upstream.url, *arguments]
        self._env = env
        self._process: asyncio.subprocess.Process
        self._clients: list[RawClient] = []
        self.lines: list[dict[str, Any]] = []
        """Log lines read so far."""
        self.url = ""
        self.admin_url = ""

    async def __aenter__(self) -> Self:
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._cwd,
                env=environment(**self._env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        try:
            serving = await self.event("serving")
        except BaseException:
            await self.__aexit__()
            raise
        self.url, self.admin_url = serving["data"], serving["admin"]
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()

    # -- meeting points ---------------------------------------------------------------------------------------

    async def event(self, name: str) -> dict[str, Any]:
        """The next line of the log with this event; what is read before it stays in ``lines``."""
        assert self._process.stdout is not None
        while True:
            line = await within(self._process.stdout.readline(), f"the event {name}", START_LIMIT_S)
            assert line, f"the process ended before the event {name}: {self.errors}"
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == name:
                return self.lines[-1]

    async def ended(self) -> int:
        """The exit code, once the process has ended; the rest of its log is in ``lines``."""
        out, _ = await within(self._process.communicate(), "the process ended", START_LIMIT_S)
        self.lines += [json.loads(line) for line in out.splitlines()]
        assert self._process.returncode is not None
        return self._process.returncode

    @property
    def errors(self) -> str:
        """What stands on standard error."""
        return self._errors.read_text("utf-8")

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def stop(self) -> int:
        """End it politely and return its exit code."""
        self.send(signal.SIGTERM)
        return await self.ended()

    # -- requests ---------------------------------------------------------------------------------------------

    async def client(self) -> RawClient:
        client = (
            await RawClient.connect(unix_path=self.url)
            if self.url.startswith("/")
            else await RawClient.connect_url(self.url)
        )
        self._clients.append(client)
        return client

    async def ask(self, body: object | None = None, path: str = CHAT) -> RawResponse:
        """Send a request on a connection of its own and read nothing yet."""
        client = await self.client()
        return await client.start("POST", path, [("authorization", f"Bearer {KEY}")], body or chat())

    async def admin(self, path: str) -> RawResponse:
        client = await RawClient.connect_url(self.admin_url)
        async with client:
            return await client.request("GET", path)

    async def is_ready(self) -> bool:
        return (await self.admin("/readyz")).status == 200

    def admin_port(self) -> str:
        return str(urlsplit(self.admin_url).port)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """The vendor, in the process of the test."""
    async with ScriptedUpstream() as upstream:
        yield upstream


async def start_stream(serve: Serve, upstream: ScriptedUpstream) -> tuple[RawResponse, Any]:
    """A stream whose first event has arrived."""
    response = await serve.ask(chat(stream=True))
    call = await upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(as_bytes([delta("begun")]))
    await response.read_until(b"begun")
    return response, call


# -- starting -------------------------------------------------------------------------------------------------


async def test_serve_without_a_file_or_a_database_is_ready_and_answers(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A person with nothing but the package gets a working proxy, and it leaves nothing behind."""
    async with Serve(tmp_path, upstream) as serve:
        ready = await serve.is_ready()
        whole, stream = await serve.ask(), await serve.ask(chat(stream=True))
        for _ in range(2):
            call = await upstream.next_call()
            streams = call.json().get("stream")
            await (call.answer_sse(stream_events("hi")) if streams else call.answer_json(completion()))
        await whole.read_end()
        await stream.read_end()
        code = await serve.stop()

        assert ready
        assert whole.json() == completion()
        assert stream.body == as_bytes(stream_events("hi"))
        assert code == 0
        assert serve.errors == ""
        assert [line["event"] for line in serve.lines] == ["serving", "request", "request", "draining", "stopped"]
    assert [name for name in os.listdir(tmp_path) if not name.startswith("stderr")] == [".sameflight"]


@pytest.mark.parametrize("python", [("-W", "error"), ("-X", "dev")], ids=["warnings-as-errors", "dev-mode"])
@pytest.mark.long
async def test_serve_has_nothing_to_complain_about_when_python_is_strict(
    tmp_path: Path, upstream: ScriptedUpstream, python: tuple[str, ...]
) -> None:
    """TC155: no warning at start, under way or at the end, be it a failure or a client that leaves."""
    async with Serve(tmp_path, upstream, python=python) as serve:
        response, call = await start_stream(serve, upstream)
        await call.send(as_bytes([delta("more"), "[DONE]"]))
        await call.end()
        await response.read_end()
        broken, call = await start_stream(serve, upstream)
        call.reset()
        await broken.read_end()
        left, call = await start_stream(serve, upstream)
        await left._client.reset()
        await call.client_gone()
        await serve.admin("/metrics")
        code = await serve.stop()

        assert response.ended
        assert broken.truncated
        assert code == 0
        assert serve.errors == ""


async def test_serve_imports_nothing_that_it_does_not_run(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """What is installed for tests, for the demo or for other commands costs a server neither time nor memory."""
    async with Serve(tmp_path, upstream, python=("-X", "importtime")) as serve:
        await serve.stop()
        imported = {line.rpartition("|")[2].strip() for line in serve.errors.splitlines() if "|" in line}
    unwanted = {"openai", "anthropic", "mistralai", "pytest", "hypothesis", "trustme", "asyncpg", "httpx", "pydantic"}
    unwanted |= {"matplotlib", "numpy", "email_validator", "unittest", "doctest", "pdb", "tkinter", "setuptools"}

    assert {"proxy.app", "proxy.edge.server", "proxy.upstream.client"} <= imported
    assert {name for name in imported if name.split(".")[0] in unwanted} == set()
    assert {name for name in imported if name.startswith(("proxy.mock", "proxy.cli.demo", "proxy.cli.mock"))} == set()


async def test_an_idle_proxy_is_small(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """The resident memory of a process that has served nothing, as it reports it itself."""
    async with Serve(tmp_path, upstream) as serve:
        series = (await serve.admin("/metrics")).body.decode().splitlines()
        sizes = [float(line.split()[1]) for line in series if line.startswith("process_resident_memory_bytes ")]
    if not sizes:
        pytest.skip("the system has no /proc")
    print(f"\nidle: {sizes[0] / 2**20:.1f} MiB resident")

    assert sizes[0] < 100 * 2**20


async def test_an_unknown_setting_is_named_and_the_proxy_runs(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A typing error must not be found weeks later."""
    async with Serve(tmp_path, upstream, SAMEFLIGHT_LINGERS="7", SAMEFLIGHT_SERVICE_HOST="10.0.0.1") as serve:
        assert await serve.is_ready()
        assert await serve.stop() == 0
        assert serve.errors.splitlines() == [
            "sameflight serve: SAMEFLIGHT_LINGERS: there is no such setting (did you mean 'SAMEFLIGHT_LINGER_S'?)"
        ]


async def test_settings_that_cannot_be_used_are_all_named_and_exit_with_2(tmp_path: Path) -> None:
    """Whoever mends a configuration sees the whole list at once, without the secrets in it."""
    secret = "sk-proj-\x7f-never-shown"
    ended = await run(
        *("serve", "--linger-s", "soon", "--port", "99999"),
        cwd=tmp_path,
        SAMEFLIGHT_SHARE="everything",
        SAMEFLIGHT_OPENAI_UPSTREAM="https://user:never-shown@api.example",
        OPENAI_API_KEY=secret,
    )

    assert ended.code == 2
    for name in ("--linger-s", "--port", "SAMEFLIGHT_SHARE", "SAMEFLIGHT_OPENAI_UPSTREAM", "OPENAI_API_KEY"):
        assert name in ended.err
    assert "never-shown" not in ended.err + ended.out
    assert "Traceback" not in ended.err


async def test_a_bad_catalog_exits_with_1_and_names_file_and_line(tmp_path: Path) -> None:
    """A process does not start on a file that it understands in part."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("routes:\n  chat.completions:\n    linger_s: -1\n  chatt: {}\n", "utf-8")
    ended = await run("serve", "--config", str(catalog), "--port", "0", "--admin-port", "0", cwd=tmp_path)

    assert ended.code == 1
    assert f"{catalog}:3:" in ended.err
    assert f"{catalog}:4:" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("taken", ["--port", "--admin-port"])
async def test_a_port_that_is_taken_exits_with_1_and_a_clear_line(tmp_path: Path, taken: str) -> None:
    """One line with the address, no traceback, and nothing left running."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        free = "--admin-port" if taken == "--port" else "--port"
        ended = await run("serve", taken, port, free, "0", "--log-format", "json", cwd=tmp_path)

    assert ended.code == 1
    assert ended.err.startswith("sameflight serve: cannot listen: ")
    assert port in ended.err
    assert len(ended.err.splitlines()) == 1
    assert ended.out == ""


# -- stopping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_a_running_stream_completes(
    tmp_path: Path, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    """TC159: nobody new gets in, whoever is in gets the whole answer, and the exit code is 0."""
    async with Serve(tmp_path, upstream) as serve:
        idle = await serve.client()
        response, call = await start_stream(serve, upstream)
        serve.send(number)
        draining = await serve.event("draining")
        await idle.peer_closed()
        with pytest.raises(OSError, match=r"refused|Connect"):
            await serve.client()
        ready = await serve.is_ready()
        await call.send(as_bytes([delta("the rest"), "[DONE]"]))
        await call.end()
        await response.read_end()
        code = await serve.ended()

    assert draining["running"] == 1
    assert not ready
    assert response.body == as_bytes(stream_events("begun", "the rest"))
    assert response.ended
    assert code == 0
    assert [line["outcome"] for line in serve.lines if line["event"] == "request"] == ["ok"]
    assert serve.errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
async def test_a_second_signal_cuts_the_grace_short(
    tmp_path: Path, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    """Whoever is in a hurry gets an end at once; the caller sees that its answer is not whole."""
    async with Serve(tmp_path, upstream, "--drain-grace-s", "3600") as serve:
        response, call = await start_stream(serve, upstream)
        serve.send(number)
        await serve.event("draining")
        serve.send(number)
        await serve.event("drain_cut_short")
        await response.read_end()
        await call.client_gone()
        code = await serve.ended()

    assert response.truncated
    assert b"[DONE]" not in response.body
    assert code == 0
    assert serve.errors == ""


@pytest.mark.long
async def test_a_grace_that_is_over_ends_the_stream_with_an_error_event(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A stream that is cut by the shutdown says so before it breaks."""
    async with Serve(tmp_path, upstream, "--drain-grace-s", "0") as serve:
        response, call = await start_stream(serve, upstream)
        serve.send(signal.SIGTERM)
        await response.read_end()
        await call.client_gone()
        code = await serve.ended()

    assert response.truncated
    assert json.loads(response.events()[-1].removeprefix(b"data: "))["error"]["code"] == "draining"
    assert code == 0


# -- reloading ------------------------------------------------------------------------------------------------


async def test_sighup_reloads_the_catalog_and_a_bad_one_keeps_the_old(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """The new file is in force for the next request; a bad one is reported with file and line and changes nothing."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("routes:\n  chat.completions: {share: all}\n", "utf-8")
    # The file's time is put back after each change, so that it is the signal that brings it in.
    at = catalog.stat().st_mtime_ns
    async with Serve(tmp_path, upstream, "--config", str(catalog)) as serve:
        catalog.write_text("routes:\n  chat.completions: {share: off}\n", "utf-8")
        os.utime(catalog, ns=(at, at))
        serve.send(signal.SIGHUP)
        reloaded = await serve.event("config_reloaded")
        catalog.write_text("routes:\n  chat.completions: {share: some}\n", "utf-8")
        serve.send(signal.SIGHUP)
        failed = await serve.event("config_reload_failed")
        metrics = (await serve.admin("/metrics")).body
        responses = [await serve.ask(), await serve.ask()]
        for call in [await upstream.next_call(), await upstream.next_call()]:
            await call.answer_json(completion())
        statuses = [(await response.read_end()).header("cache-status") for response in responses]
        code = await serve.stop()

    assert reloaded["generation"] == 2
    assert [problem.startswith(f"{catalog}:2:") for problem in failed["problems"]] == [True]
    assert b"\nsameflight_config_last_reload_successful 0\n" in metrics
    assert statuses == ["sameflight; fwd=bypass"] * 2
    assert code == 0


@pytest.mark.long
async def test_a_change_of_the_file_is_noticed_without_a_signal(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A mounted file is swapped by somebody who knows no process id; here as Kubernetes does it."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "1" / "catalog.yaml").write_text("routes:\n  chat.completions: {linger_s: 1}\n", "utf-8")
    (tmp_path / "2" / "catalog.yaml").write_text("routes:\n  chat.completions: {linger_s: 2}\n", "utf-8")
    (tmp_path / "..data").symlink_to("1")
    catalog = tmp_path / "catalog.yaml"
    catalog.symlink_to("..data/catalog.yaml")
    async with Serve(tmp_path, upstream, "--config", str(catalog)) as serve:
        (tmp_path / "..next").symlink_to("2")
        (tmp_path / "..next").rename(tmp_path / "..data")
        reloaded = await serve.event("config_reloaded")
        code = await serve.stop()

    assert reloaded["generation"] == 2
    assert code == 0


# -- the Unix socket ------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_unix_socket_serves_and_one_left_by_a_killed_process_is_taken_over(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A crash must not need a hand to remove what it left."""
    upstream.respond_with(lambda call: call.answer_json(completion()))
    path = tmp_path / "proxy.sock"
    async with Serve(tmp_path, upstream, "--unix-socket", str(path)) as serve:
        first = await (await serve.ask()).read_end()
        serve.send(signal.SIGKILL)
        await serve.ended()
    left = path.is_socket()
    async with Serve(tmp_path, upstream, "--unix-socket", str(path)) as serve:
        second = await (await serve.ask()).read_end()
        code = await serve.stop()

    assert first.json() == second.json() == completion()
    assert left
    assert code == 0
    assert not path.exists()


@pytest.mark.long
async def test_a_unix_socket_in_use_exits_with_1_and_leaves_it_to_its_owner(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """A second process neither takes the socket over nor removes it on its way out."""
    upstream.respond_with(lambda call: call.answer_json(completion()))
    path = tmp_path / "proxy.sock"
    async with Serve(tmp_path, upstream, "--unix-socket", str(path)) as serve:
        ended = await run("serve", "--unix-socket", str(path), "--admin-port", "0", cwd=tmp_path)
        answered = await (await serve.ask()).read_end()

    assert ended.code == 1
    assert ended.err.startswith("sameflight serve: cannot listen: ")
    assert answered.json() == completion()


@pytest.mark.long
async def test_a_file_in_the_place_of_the_unix_socket_is_not_removed(tmp_path: Path) -> None:
    """A mistaken path costs a message, not a file."""
    path = tmp_path / "precious.txt"
    path.write_text("precious", "utf-8")
    ended = await run("serve", "--unix-socket", str(path), "--admin-port", "0", cwd=tmp_path)

    assert ended.code == 1
    assert "cannot listen" in ended.err
    assert path.read_text("utf-8") == "precious"


# -- the log's pipe -------------------------------------------------------------------------------------------


async def start_with_pipe(tmp_path: Path, upstream: ScriptedUpstream, read_end: int, write_end: int) -> Any:
    """`serve` writing its log into a pipe of ours: the process, the port of its data and of its admin listener."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0"),
        *("--openai-upstream", upstream.url),
        cwd=tmp_path,
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=write_end,
    )
    os.close(write_end)
    line = await within(asyncio.to_thread(os.read, read_end, 4096), "the event serving", START_LIMIT_S)
    serving = json.loads(line)
    return process, urlsplit(serving["data"]).port, urlsplit(serving["admin"]).port


async def repeat(port: int, count: int) -> list[int]:
    """The statuses of ``count`` equal requests on one connection, sent in rows of a hundred and answered from the
    cache. Their model's name makes the line of each 2 KiB longer."""
    statuses = []
    headers = [("authorization", f"Bearer {KEY}"), ("x-sameflight-cache", "on"), ("x-sameflight-cache-ttl", "3600")]
    async with await RawClient.connect(port=port) as client:
        request = client.make_request("POST", CHAT, headers, chat(model="\U0001f6eb" * 512))
        for _ in range(count // 100):
            responses = [client.expect() for _ in range(100)]
            await client.send(request * 100)
            await responses[-1].read_end()
            statuses += [response.status for response in responses]
    return statuses


async def dropped_lines(admin_port: int) -> float:
    async with await RawClient.connect(port=admin_port) as client:
        response = await client.request("GET", "/metrics")
    marker = "sameflight_log_lines_dropped_total "
    return next(float(line.split()[1]) for line in response.body.decode().splitlines() if line.startswith(marker))


@pytest.mark.long
async def test_a_log_pipe_that_nobody_reads_holds_up_no_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Requests go on as if nothing were; lines beyond the buffer are dropped and counted; even the end comes."""
    upstream.respond_with(lambda call: call.answer_json(completion()))
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    process, port, admin_port = await start_with_pipe(tmp_path, upstream, read_end, write_end)
    try:
        statuses: list[int] = []
        while not await dropped_lines(admin_port):
            statuses += await within(repeat(port, 1000), "1000 requests were answered", START_LIMIT_S)
            assert len(statuses) <= 10_000, "8 MiB of lines were never full"
        process.send_signal(signal.SIGTERM)
        code = await within(process.wait(), "the process ended", START_LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(read_end)

    assert set(statuses) == {200}
    assert upstream.calls == 1
    assert code == 0


@pytest.mark.long
async def test_a_log_pipe_that_was_closed_holds_up_no_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Whoever collected the log has gone: its lines are dropped and counted, and nothing else changes."""
    upstream.respond_with(lambda call: call.answer_json(completion()))
    read_end, write_end = os.pipe()
    process, port, admin_port = await start_with_pipe(tmp_path, upstream, read_end, write_end)
    os.close(read_end)
    try:
        statuses = await repeat(port, 100)
        lost = 0.0
        while lost < 100:  # the writer has a thread of its own, and each look is a round trip to the process
            lost = await dropped_lines(admin_port)
        process.send_signal(signal.SIGTERM)
        code = await within(process.wait(), "the process ended", START_LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert statuses == [200] * 100
    assert lost == 100
    assert code == 0


# -- the other commands ---------------------------------------------------------------------------------------


@pytest.mark.long
async def test_healthcheck_tells_a_ready_process_from_none(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """0 while it serves, 1 while it drains and 1 when it has gone: what a container's HEALTHCHECK needs."""
    async with Serve(tmp_path, upstream) as serve:
        port = serve.admin_port()
        ready = await run("healthcheck", "--admin-port", port, cwd=tmp_path)
        response, call = await start_stream(serve, upstream)
        serve.send(signal.SIGTERM)
        await serve.event("draining")
        draining = await run("healthcheck", cwd=tmp_path, SAMEFLIGHT_ADMIN_PORT=port)
        await call.end()
        await response.read_end()
        await serve.ended()
    gone = await run("healthcheck", "--admin-port", port, cwd=tmp_path)

    assert (ready.code, ready.out) == (0, "ready\n")
    assert (draining.code, gone.code) == (1, 1)
    assert draining.err.startswith("not ready: 503")
    assert len(gone.err.splitlines()) == 1


async def test_version_names_the_version(tmp_path: Path) -> None:
    """As a command, which also says whether the build is compiled, and as an option."""
    for words, build in (("version", " (pure)"), ("--version", "")):
        ended = await run(words, cwd=tmp_path)

        assert (ended.code, ended.out, ended.err) == (0, f"sameflight {__version__}{build}\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "sameflight")
async def test_help_exits_with_0(tmp_path: Path, command: list[str]) -> None:
    """Every command explains itself, and on standard output, so that it can be paged."""
    ended = await run(*command, "--help", cwd=tmp_path)

    assert ended.code == 0
    assert ended.out.startswith("usage: sameflight")
    assert ended.err == ""


@pytest.mark.parametrize(
    "words", [[], ["serv"], ["serve", "--no-such"], ["config"], ["serve", "rest"]], ids=" ".join
)
async def test_wrong_use_exits_with_2(tmp_path: Path, words: list[str]) -> None:
    """A script can tell a typing error from a failure."""
    ended = await run(*words, cwd=tmp_path)

    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("usage: sameflight")


@pytest.mark.parametrize("shape", [[], ["--json"]], ids=["table", "json"])
async def test_config_show_never_prints_a_secret(tmp_path: Path, shape: list[str]) -> None:
    """Whether a secret is set is all that is shown, wherever it comes from."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        "providers:\n  openai: {api_key: sk-from-the-file}\n  mistral: {api_key: '${REFERENCE}'}\n", "utf-8"
    )
    secret_file = tmp_path / "anthropic-key"
    secret_file.write_text("sk-ant-from-a-mount\n", "utf-8")
    secrets = {
        "OPENAI_API_KEY": "sk-from-the-environment",
        "SAMEFLIGHT_KEY_SECRET": "from-the-key-secret",
        "REFERENCE": "sk-from-a-reference",
    }
    ended = await run(
        *("config", "show", "--config", str(catalog), *shape),
        cwd=tmp_path,
        ANTHROPIC_API_KEY_FILE=str(secret_file),
        **secrets,
    )
    checked = await run("config", "check", str(catalog), cwd=tmp_path, **secrets)
    shown = ended.out + ended.err + checked.out + checked.err
    hidden = [*secrets.values(), "sk-from-the-file", "sk-ant-from-a-mount"]

    assert (ended.code, checked.code) == (0, 0)
    assert [secret for secret in hidden if secret in shown] == []
    assert ended.out.count("set") >= 6


async def test_output_that_nobody_wants_any_more_ends_a_command_quietly(tmp_path: Path) -> None:
    """`sameflight config schema | head -1` prints no traceback."""
    read_end, write_end = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "config", "schema"),
        cwd=tmp_path,
        env=environment(),
        stdout=write_end,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write_end)
    os.close(read_end)
    _, err = await within(process.communicate(), "the command ended", START_LIMIT_S)

    assert err == b""
    await wait_until(lambda: process.returncode is not None, "the command was reaped")
