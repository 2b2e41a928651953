"""nginx with the configuration that Sameflight prints, in front of four proxies, each a process of its own.

What is nginx's own doing is shown with workers that do as the test says (`hand_made`): Unix sockets on which a
`ScriptedUpstream` listens. The rest is whole: client, nginx, proxy, provider; the proxies run in the test's own loop
(`proxies`) where it makes no difference, because processes (`workers`) take seconds to start.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from loadtests.process import free_port
from proxy.app import App
from proxy.cli.nginx import SOCKET_NAME
from proxy.config.settings import load_settings
from proxy.mock import MockUpstream
from proxy.telemetry.log import configure_logging
from tests.fakes.client import RawResponse
from tests.fakes.gates import wait_until, within
from tests.fakes.nginx import BUILDS, SOCKETS, Nginx, Workers
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.scenes.stage import CHAT, KEY, OTHER_KEY, as_bytes, chat, completion, delta, stream_events
from tests.scenes.test_websockets import TEXT, Caller, SocketUpstream, handshake

MIB = 1 << 20
MANY_S = 60.0
"""A thousand connections take their time on a machine that runs other tests as well."""
SSE = [("content-type", "text/event-stream")]
AUTH = [("authorization", f"Bearer {KEY}")]
JSON = [*AUTH, ("content-type", "application/json")]

# The installed nginx is left to the long run: all of this is the same for it.
@pytest.fixture(
    scope="module",
    params=[build if build == "wheel" else pytest.param(build, marks=pytest.mark.long) for build in BUILDS],
)
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sfng-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def provider_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def workers(root: Path, provider_port: int) -> Iterator[Workers]:
    """Four proxies whose provider is whoever listens on ``provider_port``."""
    folder = root / "real"
    folder.mkdir()
    url = f"http://127.0.0.1:{provider_port}"
    # On a busy machine nobody is refused for being late, and no heartbeat comes before the first event.
    workers = Workers(folder, 4, openai_upstream=url, shed_after_ms="0", heartbeat_after_s="0")
    workers.start()
    yield workers
    workers.stop()


@pytest.fixture(scope="module")
def front(build: str, workers: Workers, root: Path) -> Iterator[Nginx]:
    """nginx in front of the four."""
    nginx = Nginx(build, root / "real")
    nginx.start()
    yield nginx
    nginx.stop()


@pytest.fixture
async def provider(provider_port: int) -> AsyncIterator[ScriptedUpstream]:
    provider = ScriptedUpstream()
    await provider.start(port=provider_port)
    yield provider
    await provider.close()


@pytest.fixture(scope="module")
def plain_front(build: str, root: Path) -> Iterator[Nginx]:
    """nginx in front of workers that are hand-made or not there."""
    folder = root / f"plain-{build}"
    (folder / SOCKETS).mkdir(parents=True)
    nginx = Nginx(build, folder)
    nginx.start()
    yield nginx
    nginx.stop()


class Proxies:
    """Four proxies in this loop, on the sockets that an nginx knows."""

    def __init__(self, root: Path, upstream: str) -> None:
        self._root = root
        self._upstream = upstream
        self._logging = configure_logging("info", "json", BytesIO())
        self.apps: list[App] = []

    async def start(self) -> None:
        for number in range(4):
            settings = {
                "unix_socket": str(self._root / SOCKETS / SOCKET_NAME.format(worker=number)),
                "admin_port": 0,
                "state_dir": str(self._root / f"state-{number}"),
                "openai_upstream": self._upstream,
                "key_secret": "the same in all proxies",
                "shed_after_ms": 0,
                "heartbeat_after_s": 0,
            }
            self.apps.append(App(load_settings({}, settings).settings, env={}, logging=self._logging))
            await self.apps[-1].start()

    async def close(self) -> None:
        for app in self.apps:
            await app.close()
        self._logging.close()

    async def subscribers(self) -> int:
        """Callers that are attached to flights, over all proxies."""
        await asyncio.sleep(0)
        return sum(app.table.subscribers for app in self.apps)


@pytest.fixture
async def proxies(plain_front: Nginx, provider: ScriptedUpstream) -> AsyncIterator[Proxies]:
    proxies = Proxies(plain_front.root, provider.url)
    await proxies.start()
    yield proxies
    await Nginx.close_clients()
    await proxies.close()


@pytest.fixture
async def hand_made(plain_front: Nginx) -> AsyncIterator[ScriptedUpstream]:
    """All four workers in one: what nginx sends to any of them comes to the test."""
    workers = ScriptedUpstream()
    paths = [plain_front.root / SOCKETS / SOCKET_NAME.format(worker=number) for number in range(4)]
    more = [await listen_too(workers, path) for path in paths[1:]]
    await workers.start(unix_path=str(paths[0]))
    yield workers
    for server in more:
        server.close()
    await workers.close()
    for path in paths:
        path.unlink(missing_ok=True)


async def listen_too(upstream: ScriptedUpstream, path: Path) -> asyncio.Server:
    """A second place where the same upstream listens."""
    from tests.fakes.upstream import _Connection

    return await asyncio.get_running_loop().create_unix_server(lambda: _Connection(upstream), str(path))


@pytest.fixture(autouse=True)
async def clients() -> AsyncIterator[None]:
    """Every connection to an nginx is closed when the test is over."""
    yield
    await Nginx.close_clients()


async def send_many(front: Nginx, bodies: list[object], connections: int) -> list[RawResponse]:
    """One request for each body over so many connections, one after another on each; all answers, read whole."""

    async def run(mine: list[object]) -> list[RawResponse]:
        async with await front.client() as client:
            return [await client.request("POST", CHAT, JSON, body) for body in mine]

    parts = [run(bodies[at::connections]) for at in range(connections)]
    return [answer for answers in await asyncio.gather(*parts) for answer in answers]


async def logged(front: Nginx, count: int) -> list[dict[str, str]]:
    """The access lines, once there are so many."""
    await wait_until(lambda: len(front.log()) >= count, f"{count} access lines (now {len(front.log())})")
    return front.log()


# -- one call for all -----------------------------------------------------------------------------------------


async def ask_at_once(front: Nginx, workers: Workers | Proxies, count: int, body: object) -> list[RawResponse]:
    """``count`` identical requests on connections of their own, all of them attached to a flight on return."""
    clients = [await front.client() for _ in range(count)]
    answers = [await client.start("POST", CHAT, JSON, body) for client in clients]
    while await workers.subscribers() < count:
        early = [answer for answer in answers if answer.status]
        assert not early, f"{early[0]} {early[0].body!r} came before all were there"
    return answers


async def meet(
    front: Nginx, workers: Workers | Proxies, provider: ScriptedUpstream, count: int, *, stream: bool
) -> None:
    answers = await within(ask_at_once(front, workers, count, chat("all at once", stream=stream)), "all came", MANY_S)
    call = await provider.next_call()
    events = stream_events("one ", "call")
    if stream:
        await call.answer_sse(events)
    else:
        await call.answer_json(completion("one call"))
    expected = as_bytes(events) if stream else json.dumps(completion("one call")).encode()
    await within(asyncio.gather(*(answer.read_end() for answer in answers)), "all were answered", MANY_S)
    assert {answer.status for answer in answers} == {200}
    assert all(answer.ended for answer in answers)
    if stream:
        assert {answer.body for answer in answers} == {expected}
    else:
        assert {json.dumps(answer.json()).encode() for answer in answers} == {expected}
    assert provider.calls == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_identical_requests_through_nginx_make_one_upstream_call(
    plain_front: Nginx, proxies: Proxies, provider: ScriptedUpstream, stream: bool
) -> None:
    """Whichever nginx process takes them, they meet at one of the four workers."""
    await meet(plain_front, proxies, provider, 80, stream=stream)


@pytest.mark.long
@pytest.mark.timeout(90)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_thousand_identical_requests_through_nginx_make_one_upstream_call(
    front: Nginx, workers: Workers, provider: ScriptedUpstream, stream: bool
) -> None:
    """As many as a flight takes."""
    await meet(front, workers, provider, 1_000, stream=stream)


async def test_one_request_under_two_spellings_of_its_path_is_one_upstream_call(
    plain_front: Nginx, proxies: Proxies, provider: ScriptedUpstream
) -> None:
    """Mount and version do not count for the choice of the worker, as they do not for the flight."""
    paths = [CHAT, "/chat/completions", "/openai/v1/chat/completions", "/openai/chat/completions"]
    clients = [await plain_front.client() for _ in paths]
    answers = [await client.start("POST", path, JSON, chat()) for client, path in zip(clients, paths, strict=True)]
    while await proxies.subscribers() < len(paths):
        assert not [answer for answer in answers if answer.status]
    await (await provider.next_call()).answer_json(completion())
    assert [(await answer.read_end()).status for answer in answers] == [200] * 4
    assert provider.calls == 1


# -- spreading ------------------------------------------------------------------------------------------------


async def test_distinct_requests_spread_evenly(plain_front: Nginx, hand_made: ScriptedUpstream) -> None:
    """Each worker gets a quarter of the requests, give or take a fifth of that."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    before = len(plain_front.log())
    await within(send_many(plain_front, [chat(f"question {n}") for n in range(1_200)], 20), "all answered", MANY_S)
    counts = Counter(line["worker"] for line in (await logged(plain_front, before + 1_200))[before:])
    assert len(counts) == 4
    assert all(240 <= count <= 360 for count in counts.values()), counts
    assert hand_made.calls == 1_200


@pytest.mark.long
async def test_a_thousand_distinct_requests_spread_evenly_over_proxies(
    front: Nginx, workers: Workers, provider_port: int
) -> None:
    """One upstream call for each, counted by the built-in upstream, a quarter of them by each proxy."""
    mock = MockUpstream()
    await mock.start(port=provider_port)
    before = len(front.log())
    bodies = [chat(f"distinct {number}") for number in range(1_000)]
    answers = await within(send_many(front, bodies, 20), "all were answered", MANY_S)
    assert {answer.status for answer in answers} == {200}
    assert mock.calls == len(mock.calls_by_key) == 1_000
    counts = Counter(line["worker"] for line in (await logged(front, before + 1_000))[before:])
    await mock.close()
    assert len(counts) == 4
    assert all(200 <= count <= 300 for count in counts.values()), counts


@pytest.mark.parametrize(
    ("method", "path", "headers", "meets"),
    [
        ("POST", CHAT, [], True),
        ("POST", CHAT, [("x-sameflight-variant", "3")], True),
        ("GET", "/v1/models", [], True),
        ("POST", CHAT, [("x-sameflight-share", "off")], False),
        ("POST", CHAT, [("cache-control", "max-age=0, no-store")], False),
        ("POST", "/v1/threads", [], False),
        ("GET", "/v1/files/file-1", [], False),
        ("POST", "/v1/files", [], False),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_what_may_share_meets_and_what_may_not_spreads(
    plain_front: Nginx,
    hand_made: ScriptedUpstream,
    method: str,
    path: str,
    headers: list[tuple[str, str]],
    meets: bool,
) -> None:
    """Twenty equal requests go to one worker, or to several if they would not share there."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    before = len(plain_front.log())
    async with await plain_front.client() as client:
        for _ in range(20):
            await client.request(method, path, [*AUTH, *headers], chat() if method == "POST" else b"")
    seen = (await logged(plain_front, before + 20))[before:]
    assert (len({line["worker"] for line in seen}) == 1) is meets
    assert {line["choice"] for line in seen} == {"ring" if meets else "spread"}


async def test_two_callers_with_one_body_are_not_bound_to_one_worker(
    plain_front: Nginx, hand_made: ScriptedUpstream
) -> None:
    """The credential counts, in whichever header it comes."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    before = len(plain_front.log())
    async with await plain_front.client() as client:
        for number in range(20):
            name = ("authorization", "x-api-key", "api-key")[number % 3]
            await client.request("POST", CHAT, [(name, f"{OTHER_KEY}-{number}")], chat())
    assert len({line["worker"] for line in (await logged(plain_front, before + 20))[before:]}) == 4


# -- large bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [False, True], ids=["under", "over"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_at_the_limit_of_the_buffer_gets_its_answer_and_a_larger_one_spreads(
    plain_front: Nginx, hand_made: ScriptedUpstream, over: bool, framing: str
) -> None:
    """nginx keeps a quarter more than the buffer in memory if it knows the length, and what came with the head
    (4 KiB) beside it; what is beyond goes to a file, where the choice of the worker cannot see it: such requests must
    not all go to one."""
    limit = MIB * 5 // 4 if framing == "length" else MIB
    body = b"x" * (limit + (8_192 if over else -1))
    received: list[bool] = []

    async def answer(call: Call) -> None:
        received.append(call.body == body)
        await call.answer_json({"size": len(call.body)})

    hand_made.respond_with(answer)
    before = len(plain_front.log())
    if framing == "chunks":
        headers, sent = [*JSON, ("transfer-encoding", "chunked")], b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        headers, sent = JSON, body
    async with await plain_front.client() as client:
        for _ in range(12):
            reply = await client.request("POST", CHAT, headers, sent)
            assert (reply.status, reply.json()) == (200, {"size": len(body)})
    chosen = {line["worker"] for line in (await logged(plain_front, before + 12))[before:]}
    assert (len(chosen) > 1) is over
    assert received == [True] * 12


async def test_a_large_body_reaches_the_provider_through_a_proxy(
    plain_front: Nginx, proxies: Proxies, provider: ScriptedUpstream
) -> None:
    """Whole, although it was in a file on its way."""
    body = chat("long " * (MIB // 3))
    async with await plain_front.client() as client:
        answer = await client.start("POST", CHAT, JSON, body)
        call = await provider.next_call()
        assert call.json() == body
        await call.answer_json(completion("short"))
        assert (await answer.read_end()).json() == completion("short")


async def test_uploads_go_on_as_they_come_and_other_bodies_when_they_are_whole(
    plain_front: Nginx, hand_made: ScriptedUpstream
) -> None:
    """A worker sees the head of an upload while its body is on the way; of a JSON body it sees nothing yet."""
    slow, fast = await plain_front.client(), await plain_front.client()
    head = "POST {} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\ncontent-type: {}\r\n\r\n"
    await slow.send(head.format(CHAT, "application/json").encode() + b"12345")
    await fast.send(head.format("/v1/audio/transcriptions", "multipart/form-data; boundary=b").encode() + b"12345")
    uploading = await hand_made.next_call(whole=False)
    assert uploading.path == "/v1/audio/transcriptions"
    assert not uploading.received
    await fast.send(b"67890")
    assert await uploading.read_body() == b"1234567890"
    assert len(hand_made.history) == 1
    await slow.send(b"67890")
    whole = await hand_made.next_call()
    assert whole.body == b"1234567890"
    for client, call in ((fast, uploading), (slow, whole)):
        answer = client.expect("POST")
        await call.answer_json({})
        await answer.read_end()
        await client.close()


async def test_a_body_beyond_every_limit_is_refused_in_the_shape_of_the_sdks(plain_front: Nginx) -> None:
    """Before it is sent."""
    async with await plain_front.client() as client:
        await client.send(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n" % CHAT.encode())
        answer = await client.expect("POST").read_end()
    assert answer.status == 413
    assert answer.json()["error"]["code"] == "request_too_large"


# -- workers that die -----------------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_worker_that_is_killed_takes_only_its_own_requests_with_it_and_gets_them_back(
    front: Nginx, workers: Workers, provider: ScriptedUpstream
) -> None:
    """Twelve streams run on four workers when one is killed: its streams break off and the others end whole. Its
    requests go to the next on the ring, nobody else's move, and they come back when it does."""
    bodies = [chat(f"stream {number}", stream=True) for number in range(12)]
    before = len(front.log())
    places = await where_they_go(front, provider, bodies, before)
    victim = Counter(places).most_common(1)[0][0]
    clients = [await front.client() for _ in bodies]
    running = []
    for client, body in zip(clients, bodies, strict=True):
        answer = await client.start("POST", CHAT, JSON, body)
        call = await provider.next_call()
        await call.send_head(200, SSE, chunked=True)
        await call.send(as_bytes([delta("begun")]))
        await answer.read_until(b"begun")
        running.append((answer, call))

    workers.kill(victim)
    for place, (answer, call) in zip(places, running, strict=True):
        if place == victim:
            await answer.read_end()
            assert answer.truncated
            await call.client_gone()
        else:
            await call.send(as_bytes(stream_events("end")))
            await call.end()
            assert (await answer.read_end()).ended

    moved = await where_they_go(front, provider, bodies, len(await logged(front, before + 24)))
    assert [new for new, old in zip(moved, places, strict=True) if old != victim] == [
        place for place in places if place != victim
    ]
    assert victim not in moved
    workers.start(victim)
    assert await where_they_go(front, provider, bodies, len(front.log())) == places


async def where_they_go(front: Nginx, provider: ScriptedUpstream, bodies: list[object], before: int) -> list[str]:
    """The worker that answers each of the requests, by nginx's log, which held ``before`` lines."""
    provider.respond_with(lambda call: call.answer_sse(stream_events("there")))
    async with await front.client() as client:
        for body in bodies:
            answer = await client.request("POST", CHAT, JSON, body)
            assert (answer.status, answer.ended) == (200, True)
    provider.respond_with(None)
    lines = (await logged(front, before + len(bodies)))[before:]
    return [line["worker"].rpartition(", ")[2] for line in lines]


async def test_a_post_is_not_sent_again_once_a_worker_has_read_it(
    plain_front: Nginx, hand_made: ScriptedUpstream
) -> None:
    """The worker dies without an answer: the client hears so, and no other worker hears of the request. A GET, which
    costs nothing, is tried at the next one."""
    async with await plain_front.client() as client:
        answer = await client.start("POST", CHAT, JSON, chat())
        (await hand_made.next_call()).close()
        await answer.read_end()
        assert answer.status == 502
        assert answer.json()["error"]["code"] == "bad_gateway"
        assert hand_made.calls == 1

        answer = await client.start("POST", CHAT, JSON, chat())
        (await hand_made.next_call()).reset()
        assert (await answer.read_end()).status == 502
        assert hand_made.calls == 2

        answer = await client.start("GET", "/v1/models", AUTH)
        (await hand_made.next_call()).close()
        await (await hand_made.next_call()).answer_json({"data": []})
        assert (await answer.read_end()).status == 200
    assert hand_made.calls == 4


async def test_without_any_worker_nginx_is_healthy_and_says_what_is_missing(plain_front: Nginx) -> None:
    """Its own health is not that of the workers; requests get an error that SDKs understand."""
    async with await plain_front.client() as client:
        health = await client.request("GET", "/health")
        assert (health.status, health.json()) == (200, {"status": "ok"})
        answer = await client.request("POST", CHAT, JSON, chat())
        assert (answer.status, answer.header("content-type")) == (502, "application/json")
        assert answer.json()["error"]["code"] == "bad_gateway"
        assert answer.header("server") == "nginx"


# -- answers --------------------------------------------------------------------------------------------------


async def test_events_arrive_one_by_one(plain_front: Nginx, proxies: Proxies, provider: ScriptedUpstream) -> None:
    """The client has read each event before the provider sends the next, whatever compression it would take."""
    async with await plain_front.client() as client:
        answer = await client.start("POST", CHAT, [*JSON, ("accept-encoding", "gzip")], chat(stream=True))
        call = await provider.next_call()
        await call.send_head(200, SSE, chunked=True)
        for word in ("first", "second", "third"):
            await call.send(as_bytes([delta(word)]))
            await answer.read_until(word.encode())
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        await answer.read_end()
    assert answer.body == as_bytes(stream_events("first", "second", "third"))
    assert answer.header("content-encoding") is None
    assert (answer.header("content-type") or "").startswith("text/event-stream")


async def test_large_json_is_compressed_and_nothing_else(plain_front: Nginx, hand_made: ScriptedUpstream) -> None:
    """For those who take it; small answers and streams go as they are."""
    large = json.dumps({"data": ["something to embed"] * 1_000}).encode()
    cases = [
        ("application/json", large, "gzip", "gzip"),
        ("application/json", large, "identity", None),
        ("application/json", b'{"small":1}', "gzip", None),
        ("text/event-stream", as_bytes([delta("x" * 9_000)]), "gzip", None),
        ("audio/mpeg", large, "gzip", None),
    ]
    async with await plain_front.client() as client:
        for kind, body, accepted, expected in cases:
            answer = await client.start("POST", CHAT, [*JSON, ("accept-encoding", accepted)], chat())
            await (await hand_made.next_call()).answer(200, [("content-type", kind)], body)
            await answer.read_end()
            assert answer.header("content-encoding") == expected, (kind, len(body))
            assert (gzip.decompress(answer.body) if expected else answer.body) == body


async def test_an_answer_cannot_give_orders_to_nginx(plain_front: Nginx, hand_made: ScriptedUpstream) -> None:
    """A provider's headers neither lead a request elsewhere nor make nginx hold a stream back."""
    async with await plain_front.client() as client:
        answer = await client.start("POST", CHAT, JSON, chat())
        call = await hand_made.next_call()
        orders = [("x-accel-redirect", "/health"), ("x-accel-buffering", "yes"), ("x-accel-limit-rate", "1")]
        await call.send_head(200, [*SSE, *orders], chunked=True)
        await call.send(as_bytes([delta("mine")]))
        await answer.read_until(b"mine")
        await call.end()
        assert (await answer.read_end()).body == as_bytes([delta("mine")])


async def test_both_sides_of_nginx_keep_their_connections(plain_front: Nginx, hand_made: ScriptedUpstream) -> None:
    """Ten requests on one connection are one connection at the worker for each process of nginx."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    made = hand_made.connections_made
    async with await plain_front.client() as client:
        for _ in range(10):
            await client.request("POST", CHAT, JSON, chat())
    assert hand_made.connections_made - made == 1
    assert {call.header("connection") for call in hand_made.history} == {None}


async def test_a_worker_that_hangs_up_on_idle_connections_costs_nobody_a_request(
    plain_front: Nginx, hand_made: ScriptedUpstream
) -> None:
    """nginx notices, and takes a new connection for the next."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    async with await plain_front.client() as client:
        for _ in range(10):
            assert (await client.request("POST", CHAT, JSON, chat())).status == 200
            assert hand_made.close_idle() == 1
            await wait_until(lambda: not hand_made.open_connections, "nginx hung up as well")


# -- headers, sockets, log ------------------------------------------------------------------------------------


async def test_a_worker_sees_the_headers_of_the_client_and_who_it_is(
    plain_front: Nginx, hand_made: ScriptedUpstream
) -> None:
    """Odd names included; what the client says of its address is not believed."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    odd = [("x_with_underscore", "1"), ("x-long", "y" * 40_000), ("x-forwarded-for", "10.0.0.1")]
    async with await plain_front.client() as client:
        assert (await client.request("POST", f"{CHAT}?a=%20b", [*JSON, *odd], chat())).status == 200
    (call,) = hand_made.history
    assert call.target == f"{CHAT}?a=%20b"
    assert call.header("x_with_underscore") == "1"
    assert len(call.header("x-long") or "") == 40_000
    assert call.header("x-forwarded-for") == "127.0.0.1"
    assert call.header("x-forwarded-proto") == "http"


async def test_a_websocket_passes_in_both_directions(plain_front: Nginx) -> None:
    """On an operation that has one, through nginx and a proxy."""
    upstream = SocketUpstream()
    await upstream.start()
    proxies = Proxies(plain_front.root, upstream.url)
    await proxies.start()
    client = await plain_front.client()
    caller = Caller(client, client.expect("GET"))
    await client.send(handshake(client, "/v1/realtime?model=gpt-realtime", AUTH))
    peer = await upstream.next_peer()
    peer.accept()
    assert (await caller.response.read_head()).status == 101
    await caller.send(TEXT, b"to the provider")
    assert await peer.next_frame() == (TEXT, b"to the provider")
    peer.send(TEXT, b"to the client")
    assert await caller.next_frame() == (TEXT, b"to the client")
    await client.close()
    await peer.gone()
    await proxies.close()
    await upstream.close()


async def test_an_upgrade_elsewhere_is_an_ordinary_request(plain_front: Nginx, hand_made: ScriptedUpstream) -> None:
    """The worker is not asked for a socket."""
    hand_made.respond_with(lambda call: call.answer_json({}))
    async with await plain_front.client() as client:
        answer = client.expect("GET")
        await client.send(handshake(client, "/v1/models"))
        assert (await answer.read_end()).status == 200
    assert hand_made.history[0].header("upgrade") is None
    assert hand_made.history[0].header("connection") is None


async def test_each_line_of_the_log_is_json_and_none_tells_a_credential(
    plain_front: Nginx, proxies: Proxies, provider: ScriptedUpstream
) -> None:
    """With what the worker did and when; a key in a query is left out with the query."""
    provider.respond_with(lambda call: call.answer_json(completion()))
    before = len(plain_front.log())
    headers = [*JSON, ("user-agent", 'odd "agent" \\ \t'), ("x-stainless-retry-count", "1")]
    async with await plain_front.client() as client:
        assert (await client.request("POST", f"{CHAT}?key=sk-in-query", headers, chat("logged"))).status == 200
        await client.request("GET", "/health")
        odd = [("user-agent", "\xff\xfe"), ("traceparent", '\xff"'), ("x-stainless-retry-count", "\\")]
        await client.request("GET", "/v1/\xe4?x", odd)
    for rude in (b"NONSENSE\r\n\r\n", b"POST /%00 HTTP/1.1\r\nhost: x\r\n\r\n"):
        async with await plain_front.client() as client:
            await client.send(rude)
            await client.expect().read_end()
    line = (await logged(plain_front, before + 4))[before]
    assert (line["status"], line["method"], line["path"]) == ("200", "POST", CHAT)
    assert line["worker"].startswith(f"unix:{SOCKETS}/worker-")
    assert line["worker_status"] == "200"
    assert all(float(line[name]) >= 0 for name in ("connect_s", "head_s", "answer_s", "duration_s"))
    assert line["sameflight_id"]
    assert "sameflight" in line["cache_status"]
    assert line["choice"] == "ring"
    text = (plain_front.run_dir / "access.log").read_text("utf-8")
    assert KEY not in text
    assert "sk-in-query" not in text
    assert "/health" not in text
    assert KEY not in plain_front.errors


# -- TLS ------------------------------------------------------------------------------------------------------


async def test_tls_ends_at_nginx(build: str, root: Path, hand_made: ScriptedUpstream, plain_front: Nginx) -> None:
    """The worker speaks plain HTTP, the client what is current, and is told to come back with TLS only."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    files = plain_front.root / "cert.pem", plain_front.root / "key.pem"
    files[0].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    files[1].write_bytes(certificate.private_key_pem.bytes())
    front = Nginx(build, plain_front.root, certificate=str(files[0]), key=str(files[1]), host="localhost")
    front.start()
    hand_made.respond_with(lambda call: call.answer_json({}))
    try:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with await front.client(context) as client:
            answer = await client.request("POST", CHAT, JSON, chat())
        assert answer.status == 200
        assert "max-age" in (answer.header("strict-transport-security") or "")
        assert (await logged(front, 1))[0]["tls"] == "TLSv1.3"
        assert hand_made.history[0].header("x-forwarded-proto") == "https"
    finally:
        front.stop()
