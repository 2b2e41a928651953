"""Four proxies behind a balancer that knows nothing of them: identical requests share one call through Valkey.

The proxies are whole ones in the process of the test; one scene has them in processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.formation.formation import Formation
from tests.fakes.client import RawResponse
from tests.fakes.gates import Gate, wait_until, within
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.fakes.valkey import ValkeyServer
from tests.scenes.many import PLACEHOLDER, Many
from tests.scenes.stage import Stage, as_bytes, chat, completion, delta, stream_events
from tests.scenes.test_process import Serve

SSE = [("content-type", "text/event-stream")]
SECRET = "a secret that four processes have"


def together(server: ValkeyServer, **settings: object) -> dict[str, Any]:
    # The time-out is for machines that run other tests as well; what it does is shown with the default below.
    base = {"cache_url": server.url, "shared_flights": True, "shared_flight_timeout_ms": 1_000, "key_secret": SECRET}
    return {**base, **settings}


def message(text: str) -> dict[str, Any]:
    """A whole answer in Anthropic's shape."""
    usage = {"input_tokens": 5, "output_tokens": 7}
    content = [{"type": "text", "text": text}]
    fixed = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn"}
    return {**fixed, "content": content, "stop_sequence": None, "usage": usage}


class Four:
    """Proxies before one upstream, and a balancer that chooses by lot."""

    def __init__(self, stages: list[Stage], server: ValkeyServer) -> None:
        self.stages = stages
        self.server = server
        self.upstream = stages[0].upstream
        self.lot = random.Random(5)

    @property
    def calls(self) -> int:
        return self.upstream.calls

    def formation(self, at: int) -> Formation:
        formation = self.stages[at].app.formation
        assert formation is not None
        return formation

    async def spread(self, count: int, body: object) -> list[RawResponse]:
        """So many identical requests, all on their way and attached when this returns."""
        before = self.subscribers
        responses = [await self.lot.choice(self.stages).ask(body) for _ in range(count)]
        await wait_until(lambda: self.subscribers == before + count, f"{count} are attached")
        return responses

    @property
    def subscribers(self) -> int:
        return sum(stage.app.table.subscribers for stage in self.stages)

    @property
    def leader(self) -> int:
        """Which of them makes the call."""
        (leads,) = (at for at in range(len(self.stages)) if self.formation(at).leads)
        return leads

    async def follow(self, count: int) -> None:
        """Until so many proxies hear what the leader tells."""
        await wait_until(
            lambda: sum(stage.app.formation.wings for stage in self.stages) == count,  # type: ignore[union-attr]
            f"{count} proxies follow",
        )

    async def at_rest(self) -> None:
        for stage in self.stages:
            await stage.at_rest()
        for at in range(len(self.stages)):
            formation = self.formation(at)
            await wait_until(lambda formation=formation: not formation.leads, "everything is told")
            assert (formation.wings, formation.writer.stored_bytes, formation.writer.pending_bytes) == (0, 0, 0)


Opener = Callable[..., Awaitable[Four]]


@pytest.fixture
async def opened(private_valkey: ValkeyServer) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def open_some(count: int = 4, **settings: object) -> Four:
            words = together(private_valkey, **settings)
            stages = [await stack.enter_async_context(Stage(**words))]
            url = stages[0].upstream.url
            urls = {f"{name}_upstream": url for name in ("openai", "anthropic", "mistral")}
            for _ in range(count - 1):
                stages.append(await stack.enter_async_context(Stage(**words, **urls)))
            four = Four(stages, private_valkey)
            for at in range(count):
                listener = four.formation(at).listener
                await wait_until(lambda listener=listener: listener.connected, "the proxy listens")
            return four

        yield open_some


@pytest.fixture
async def four(opened: Opener) -> AsyncIterator[Four]:
    four = await opened()
    yield four
    await four.at_rest()


@pytest.fixture
async def pair(opened: Opener) -> AsyncIterator[Four]:
    pair = await opened(2)
    yield pair
    await pair.at_rest()


async def read(responses: list[RawResponse]) -> set[tuple[int, bytes]]:
    """Every status with its body."""
    for response in responses:
        await response.read_end()
    return {(response.status, response.body) for response in responses}


async def begin(call: Call, *texts: str) -> None:
    await call.send_head(200, [*SSE, ("x-ratelimit-remaining-requests", "7"), ("x-request-id", "one")], chunked=True)
    for text in texts:
        await call.send(as_bytes([delta(text)]))


# -- one call ------------------------------------------------------------------------------------------------------


async def test_two_hundred_streams_at_four_proxies_are_one_call_and_late_joiners_are_whole(four: Four) -> None:
    """Wherever they come in, and however late."""
    early = await four.spread(150, chat(stream=True))
    call = await four.upstream.next_call()
    await begin(call, "one", "two")
    for response in early:
        await response.read_until(b"two")
    late = await four.spread(50, chat(stream=True))
    await call.send(as_bytes([delta("three")]))
    for response in late:
        await response.read_until(b"three")
    await call.send(as_bytes(["[DONE]"]))
    await call.end()
    answers = await read([*early, *late])

    assert four.calls == 1
    assert answers == {(200, as_bytes(stream_events("one", "two", "three")))}
    assert sum(four.formation(at).led for at in range(4)) == 1
    assert sum(four.formation(at).followed for at in range(4)) == 3


async def test_a_whole_answer_is_one_call(pair: Four) -> None:
    """Held until it is complete, at each proxy."""
    responses = await pair.spread(40, chat())
    call = await pair.upstream.next_call()
    await call.answer_json(completion("for all"))
    answers = await read(responses)

    assert (pair.calls, len(answers)) == (1, 1)
    assert {status for status, _ in answers} == {200}


async def test_the_cost_is_booked_by_one_process_and_the_limits_are_told_to_one_caller(pair: Four) -> None:
    """All others are followers that saved it, each in the metrics of its own process."""
    responses = await pair.spread(20, chat(stream=True, stream_options={"include_usage": True}))
    call = await pair.upstream.next_call()
    usage = {**delta(""), "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}
    await begin(call, "one")
    await call.send(as_bytes([usage, "[DONE]"]))
    await call.end()
    assert len(await read(responses)) == 1
    for stage in pair.stages:
        await stage.settled()
    costs = [stage.series("cost_usd_total") for stage in pair.stages]
    saved = [stage.series("saved_usd_total") for stage in pair.stages]
    price = max(costs)

    assert sum(response.header("x-ratelimit-remaining-requests") is not None for response in responses) == 1
    assert {response.header("x-request-id") for response in responses} == {"one"}
    assert price > 0
    assert sorted(costs) == pytest.approx([0, price])
    assert sum(saved) == pytest.approx(19 * price)
    assert sum(stage.series("upstream_requests_total") for stage in pair.stages) == 1
    assert sum(stage.series("collapse_saved_total") for stage in pair.stages) == 19


async def test_what_the_upstream_refuses_is_refused_at_all_of_them(pair: Four) -> None:
    """One call, one refusal, for everybody who is there."""
    responses = await pair.spread(10, chat())
    call = await pair.upstream.next_call()
    await call.answer_json({"error": {"message": "too many", "type": "rate_limit_error"}}, status=429)

    assert {status for status, _ in await read(responses)} == {429}
    assert pair.calls == 1


async def test_a_call_that_fails_fails_for_all_of_them(pair: Four) -> None:
    """Nobody asks again what has just gone wrong for everybody."""
    responses = await pair.spread(6, chat())
    call = await pair.upstream.next_call()
    call.raw(b"this is no HTTP\r\n\r\n")
    call.close()
    answers = await read(responses)

    assert {status for status, _ in answers} == {502}
    assert {json.loads(body)["error"]["code"] for _, body in answers} == {"upstream_bad_response"}
    assert pair.calls == 1


@pytest.mark.long
async def test_an_upstream_that_breaks_off_breaks_off_for_all(pair: Four) -> None:
    """With what was sent until then, and the error event after it."""
    responses = await pair.spread(10, chat(stream=True))
    call = await pair.upstream.next_call()
    await begin(call, "one")
    for response in responses:
        await response.read_until(b"one")
    call.reset()
    for response in responses:
        await response.read_end()

    assert pair.calls == 1
    assert {b"one" in response.body and b"upstream" in response.body for response in responses} == {True}
    assert {b"[DONE]" in response.body for response in responses} == {False}


@pytest.mark.long
async def test_a_routed_flight_is_shared_as_it_was_translated(private_valkey: ValkeyServer) -> None:
    """Whose answer it is and its tokens are known at the other process as well; the attempts are the first's."""
    models = {"smart": {"targets": ["one/llama", "two/claude"]}}
    providers = {"one": {"kind": "compatible"}, "two": {"kind": "anthropic"}}
    words = together(private_valkey)
    async with Many(providers, models, **words) as first:
        first.upstreams["one"].respond_with(lambda call: call.answer_json({"error": {"message": "no"}}, status=500))
        gate = Gate("the second target's answer")

        async def claude(call: Call) -> None:
            await gate.wait()
            await call.answer_json(message("from the second"))

        first.upstreams["two"].respond_with(claude)
        known = {name: {**said, "base_url": first.upstreams[name].url} for name, said in providers.items()}
        urls = {f"{name}_upstream": first.upstream.url for name in ("openai", "anthropic", "mistral")}
        async with Many(known, models, **words, **urls) as second:
            for stage in (first, second):
                assert stage.app.formation is not None
                await wait_until(lambda stage=stage: stage.app.formation.up, "the proxy listens")
            here = await first.ask(chat(model="smart"), key=PLACEHOLDER)
            await gate.reached()
            there = await second.ask(chat(model="smart"), key=PLACEHOLDER)
            await wait_until(lambda: second.app.formation.wings, "it follows")  # type: ignore[union-attr]
            gate.open()
            answers = await read([here, there])
            for stage in (first, second):
                await stage.settled()

            assert len(answers) == 1
            assert b"from the second" in here.body
            assert "two/claude" in (there.header("server-timing") or "")
            assert (first.upstreams["one"].calls, first.upstreams["two"].calls) == (1, 1)
            assert second.series("upstream_requests_total") == 0
            assert second.series("tokens_saved_total") == 12


# -- coming and going ----------------------------------------------------------------------------------------------


async def test_the_call_goes_on_for_the_others_when_everybody_leaves_its_own_process(opened: Opener) -> None:
    """And ends with the last of them."""
    pair = await opened(2, linger_s=0, shared_flight_lease_s=0.6)
    here = [await pair.stages[0].ask(chat(stream=True)) for _ in range(2)]
    call = await pair.upstream.next_call()
    there = [await pair.stages[1].ask(chat(stream=True)) for _ in range(2)]
    await pair.follow(1)
    await begin(call, "one")
    for response in [*here, *there]:
        await response.read_until(b"one")
    for client in pair.stages[0].clients:
        await client.close()
    await pair.stages[0].attached(0)
    await call.send(as_bytes([delta("two")]))
    for response in there:
        await response.read_until(b"two")
    assert not call.gone
    for client in pair.stages[1].clients:
        await client.close()
    await call.client_gone()

    await pair.at_rest()
    assert pair.calls == 1


@pytest.mark.long
async def test_a_caller_alone_who_leaves_ends_the_call(opened: Opener) -> None:
    """Nobody elsewhere was told anything, so nobody is waited for."""
    pair = await opened(2, linger_s=0)
    await pair.stages[0].ask(chat(stream=True))
    call = await pair.upstream.next_call()
    await pair.stages[0].clients[0].close()
    await call.client_gone()
    response = await pair.stages[1].ask(chat(stream=True))
    call = await pair.upstream.next_call()
    await begin(call, "one")
    await call.send(as_bytes(["[DONE]"]))
    await call.end()
    await response.read_end()

    assert response.body == as_bytes(stream_events("one"))
    await pair.at_rest()


class Nowhere:
    """A server that cannot be reached."""

    async def tell(self, tellings: object, within_s: float) -> None:
        raise OSError

    part = tell


def cut_off(formation: Formation) -> None:
    """From here on it tells nothing."""
    formation.writer._server = Nowhere()  # type: ignore[assignment]


async def test_a_leader_that_is_gone_before_the_head_is_replaced_by_one_of_those_who_followed(
    opened: Opener,
) -> None:
    """It is cut off from the server; the others wait for a lease and no longer."""
    three = await opened(3, shared_flight_lease_s=0.3)
    responses = [await stage.ask(chat(stream=True)) for stage in three.stages]
    await three.follow(2)
    await three.upstream.next_call()
    leader = three.leader
    cut_off(three.formation(leader))
    second = await three.upstream.next_call()
    await begin(second, "one")
    await second.send(as_bytes(["[DONE]"]))
    await second.end()
    others = [response for at, response in enumerate(responses) if at != leader]

    assert await read(others) == {(200, as_bytes(stream_events("one")))}
    assert three.calls == 2


@pytest.mark.long
async def test_a_leader_that_is_gone_in_the_middle_breaks_off_for_those_who_followed(opened: Opener) -> None:
    """Nothing is begun anew once a byte was let go."""
    pair = await opened(2, shared_flight_lease_s=0.3)
    here, there = [await stage.ask(chat(stream=True)) for stage in pair.stages]
    await pair.follow(1)
    call = await pair.upstream.next_call()
    await begin(call, "one")
    for response in (here, there):
        await response.read_until(b"one")
    leader = pair.leader
    responses = [here, there]
    cut_off(pair.formation(leader))
    other = responses.pop(1 - leader)
    await other.read_end()
    await call.send(as_bytes(["[DONE]"]))
    await call.end()
    await responses[0].read_end()

    assert responses[0].body == as_bytes(stream_events("one"))
    assert other.body.startswith(as_bytes([delta("one")]))
    assert b"[DONE]" not in other.body
    assert pair.calls == 1


# -- what is not shared --------------------------------------------------------------------------------------------


async def test_an_answer_that_cannot_be_shared_is_asked_for_by_each(pair: Four) -> None:
    """One call for each process that asked, and then one for each caller."""
    responses = [await stage.ask(chat()) for stage in pair.stages]
    await pair.follow(1)

    async def answer(call: Call) -> None:
        await call.answer_json(completion("private"), headers=[("vary", "*")])

    first = await pair.upstream.next_call()
    pair.upstream.respond_with(answer)
    await answer(first)

    assert {status for status, _ in await read(responses)} == {200}
    assert pair.calls == 2


@pytest.mark.long
async def test_an_answer_over_the_bound_is_asked_for_by_each(opened: Opener) -> None:
    """Its length says so at once."""
    pair = await opened(2, shared_flight_bytes=65_536)
    responses = [await stage.ask(chat()) for stage in pair.stages]
    await pair.follow(1)
    for _ in range(2):
        call = await pair.upstream.next_call()
        await call.answer_json(completion("x" * 70_000))

    assert {status for status, _ in await read(responses)} == {200}
    assert pair.calls == 2


@pytest.mark.long
async def test_a_stream_that_grows_over_the_bound_takes_nobody_new(opened: Opener) -> None:
    """Who is there gets all of it; who comes to another process later asks anew."""
    three = await opened(3, shared_flight_bytes=65_536)
    here, there = [await stage.ask(chat(stream=True)) for stage in three.stages[:2]]
    await three.follow(1)
    call = await three.upstream.next_call()
    await begin(call)
    piece = as_bytes([delta("y" * 20_000)])
    for count in range(1, 9):
        await call.send(piece)
        for response in (here, there):
            await wait_until(lambda: len(response.body) == count * len(piece), "the piece has come")  # noqa: B023
    await three.stages[2].ask(chat(stream=True))
    second = await three.upstream.next_call()
    await second.answer_sse(stream_events("anew"))
    await call.send(as_bytes(["[DONE]"]))
    await call.end()

    assert await read([here, there]) == {(200, piece * 8 + as_bytes(["[DONE]"]))}
    names = [name for name in three.server.names("*flights*") if name.count(":") == 4]
    assert all(three.server.ask("PTTL", name) != -1 for name in names)


# -- the server is in trouble --------------------------------------------------------------------------------------


def disturb(server: ValkeyServer, trouble: str) -> None:
    if trouble == "stopped":
        server.stop()
    elif trouble == "hung":
        server.suspend()
    elif trouble == "flushed":
        server.ask("FLUSHALL")
    else:
        for name in server.names("*flights*"):
            server.ask("SET", name, b"\x80\x04poison")


OTHERS = ["stopped", "flushed", "poisoned"]
TROUBLES = ["hung", *OTHERS]


async def listens(serve: Serve) -> None:
    """Until it hears the others."""
    for _ in range(200):
        if b"\nsameflight_shared_flights_up 1" in (await serve.admin("/metrics")).body:
            return
    raise AssertionError("it does not listen")


async def who_leads(serves: list[Serve]) -> int:
    """Which of them makes the call."""
    (leads,) = [
        at
        for at, serve in enumerate(serves)
        if b'\nsameflight_shared_flights_in_air{part="leads"} 1' in (await serve.admin("/metrics")).body
    ]
    return leads


async def follow(serves: list[Serve], count: int) -> None:
    """Until so many of them hear what the leader tells."""
    for _ in range(500):
        told = [(await serve.admin("/metrics")).body for serve in serves]
        if sum(b'\nsameflight_shared_flights_in_air{part="wings"} 1' in body for body in told) == count:
            return
    raise AssertionError("they do not follow")


async def answer_all(call: Call) -> None:
    await call.answer_sse(stream_events("one", "two"))


@pytest.mark.parametrize("trouble", ["hung", *(pytest.param(each, marks=pytest.mark.long) for each in OTHERS)])
async def test_no_new_caller_notices_that_the_server_is_in_trouble(opened: Opener, trouble: str) -> None:
    """A flight is its process's own then; with the time-out that is the default."""
    pair = await opened(2, shared_flight_timeout_ms=20)
    pair.upstream.respond_with(answer_all)
    disturb(pair.server, trouble)
    responses = [await pair.stages[at % 2].ask(chat(f"{at // 2}", stream=True)) for at in range(20)]

    assert await read(responses) == {(200, as_bytes(stream_events("one", "two")))}
    assert 10 <= pair.calls <= 20
    for at in range(2):
        assert pair.formation(at).timeouts + pair.formation(at).errors <= 12


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_no_caller_who_waits_notices_that_the_server_is_in_trouble(opened: Opener, trouble: str) -> None:
    """Who follows another process's call makes one of its own at once, or goes on to follow."""
    pair = await opened(2, shared_flight_timeout_ms=20 if trouble == "hung" else 1_000)
    responses = [await pair.stages[at % 2].ask(chat(stream=True)) for at in range(10)]
    await pair.follow(1)
    first = await pair.upstream.next_call()
    if trouble in ("stopped", "hung"):
        disturb(pair.server, trouble)
        second = await pair.upstream.next_call()
        await second.answer_sse(stream_events("one", "two"))
    else:
        disturb(pair.server, trouble)
    await first.answer_sse(stream_events("one", "two"))

    assert await read(responses) == {(200, as_bytes(stream_events("one", "two")))}
    assert pair.calls <= 2


@pytest.mark.long
async def test_flights_are_shared_again_after_the_server_was_away(opened: Opener) -> None:
    """Without anybody's doing, once the breakers let somebody try."""
    pair = await opened(2)
    pair.server.stop()
    pair.upstream.respond_with(answer_all)
    await read([await stage.ask(chat(f"{number}", stream=True)) for stage in pair.stages for number in range(4)])
    pair.upstream.respond_with(None)
    pair.server.start()
    for at in range(2):
        formation = pair.formation(at)
        formation.breaker.succeed()  # what five seconds would do
        await wait_until(lambda formation=formation: formation.up, "the proxy listens again")
    calls = pair.calls
    responses = await pair.spread(10, chat(stream=True))
    call = await pair.upstream.next_call()
    await call.answer_sse(stream_events("one", "two"))

    assert await read(responses) == {(200, as_bytes(stream_events("one", "two")))}
    assert pair.calls == calls + 1


@pytest.mark.long
async def test_a_stream_goes_on_after_the_server_was_restarted(opened: Opener) -> None:
    """It forgot everything; who followed had heard all that was said, and hears the rest."""
    pair = await opened(2)
    here, there = [await stage.ask(chat(stream=True)) for stage in pair.stages]
    await pair.follow(1)
    call = await pair.upstream.next_call()
    await begin(call, "one")
    for response in (here, there):
        await response.read_until(b"one")
    pair.server.stop()
    await call.send(as_bytes([delta("two")]))
    pair.server.start()
    await call.send(as_bytes([delta("three"), "[DONE]"]))
    await call.end()

    assert await read([here, there]) == {(200, as_bytes(stream_events("one", "two", "three")))}
    assert pair.calls == 1


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_four_processes_make_one_call_and_outlive_the_one_that_makes_it(
    tmp_path: Path, private_valkey: ValkeyServer
) -> None:
    """200 streams, balanced by lot; then the leader is killed before a head, and the next one in a stream."""
    lot = random.Random(7)
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(ScriptedUpstream())
        settings = {**together(private_valkey), "shared_flight_lease_s": 1.0}
        env = {f"SAMEFLIGHT_{name.upper()}": str(value) for name, value in settings.items()}
        serves: list[Serve] = []
        for number in range(4):
            folder = tmp_path / str(number)
            folder.mkdir()
            serve = Serve(folder, upstream, **env)
            serves.append(await stack.enter_async_context(serve))
        for serve in serves:
            await listens(serve)
        early = await asyncio.gather(*(lot.choice(serves).ask(chat(stream=True)) for _ in range(150)))
        call = await upstream.next_call()
        await begin(call, "one")
        for response in early:
            await within(response.read_until(b"one"), "the first event came", 20.0)
        late = await asyncio.gather(*(lot.choice(serves).ask(chat(stream=True)) for _ in range(50)))
        await call.send(as_bytes([delta("two"), "[DONE]"]))
        await call.end()

        assert await read([*early, *late]) == {(200, as_bytes(stream_events("one", "two")))}
        assert upstream.calls == 1

        asked = await asyncio.gather(*(serve.ask(chat("before a head", stream=True)) for serve in serves))
        await upstream.next_call()
        leader = await who_leads(serves)
        await follow(serves, 3)
        serves[leader].send(signal.SIGKILL)
        call = await within(upstream.next_call(), "another one leads", 20.0)
        await begin(call, "one")
        await call.send(as_bytes(["[DONE]"]))
        await call.end()
        rest = [response for at, response in enumerate(asked) if at != leader]

        assert await read(rest) == {(200, as_bytes(stream_events("one")))}
        assert upstream.calls == 3

        serves.pop(leader)
        asked = await asyncio.gather(*(serve.ask(chat("in a stream", stream=True)) for serve in serves))
        call = await upstream.next_call()
        await begin(call, "one")
        for response in asked:
            await response.read_until(b"one")
        leader = await who_leads(serves)
        serves[leader].send(signal.SIGKILL)
        rest = [response for at, response in enumerate(asked) if at != leader]
        for response in rest:
            await within(response.read_end(), "the stream broke off", 20.0)

        assert {b"lead" in response.body or b"error" in response.body for response in rest} == {True}
        assert upstream.calls == 4
