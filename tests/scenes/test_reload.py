"""A new catalog under way: in force for the next request, unknown to whatever began before, and harmless when bad."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.stage import CHAT, KEY, Stage, as_bytes, chat, completion, delta, stream_events

SSE = [("content-type", "text/event-stream")]
MODELS: dict[str, Any] = {"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model"}]}


class Reloadable(Stage):
    """A stage with a catalog file that a scene rewrites."""

    def __init__(self, path: Path, clock: FrozenClock, **settings: object) -> None:
        super().__init__(clock=clock, config=str(path), **settings)
        self._path = path
        self.clock = clock

    @property
    def generation(self) -> int:
        return self.app.catalogs.current.generation

    def write(self, text: str) -> None:
        """Replace the file, as editors and Kubernetes do: by another one of the same name."""
        fresh = self._path.with_suffix(".next")
        fresh.write_text(text, "utf-8")
        fresh.replace(self._path)

    async def reload(self, text: str) -> None:
        """Rewrite the file and let it come into force."""
        before = self.generation
        self.write(text)
        self.app.reload()
        await wait_until(lambda: self.generation > before, "the catalog was reloaded")

    async def reload_in_vain(self, text: str) -> None:
        before = self.app.catalogs.reload_failures
        self.write(text)
        self.app.reload()
        await wait_until(lambda: self.app.catalogs.reload_failures > before, "the reload failed")

    async def models(self) -> str:
        """Ask for the models and let the upstream answer if it is asked; what `Cache-Status` says."""
        response = await self.ask(None, path="/v1/models", method="GET")
        await wait_until(lambda: response.status or self.upstream.waiting, "a hit or a call")
        if self.upstream.waiting:
            await (await self.upstream.next_call()).answer_json(MODELS)
        await response.read_end()
        await self.settled()
        return response.header("cache-status") or ""

    async def swept(self) -> None:
        """Until the janitor has fired what is due at this moment of the frozen clock."""
        runs = self.app.janitor.durations["deadlines"].runs
        await wait_until(lambda: self.app.janitor.durations["deadlines"].runs > runs + 1, "the janitor came round")

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == name]


def rule(text: str, route: str = "chat.completions") -> str:
    """A catalog with rules for one route."""
    return f"routes:\n  {route}: {{{text}}}\n"


@pytest.fixture
async def stage(tmp_path: Path, frozen_clock: FrozenClock) -> AsyncIterator[Reloadable]:
    """A stage on an empty catalog; at rest when the scene is over."""
    path = tmp_path / "catalog.yaml"
    path.write_text("{}\n", "utf-8")
    async with Reloadable(path, frozen_clock) as stage:
        yield stage
        await stage.at_rest()


async def answer_all(stage: Stage, count: int) -> None:
    for _ in range(count):
        await (await stage.upstream.next_call()).answer_json(completion())


# -- what a new catalog changes -------------------------------------------------------------------------------


async def test_a_new_sharing_profile_holds_for_the_next_request(stage: Reloadable) -> None:
    """off, then all: two calls, then one."""
    await stage.reload(rule("share: off"))
    responses = [await stage.ask(chat()) for _ in range(2)]
    await answer_all(stage, 2)
    for response in responses:
        await response.read_end()
    await stage.reload(rule("share: all"))
    responses = await stage.ask_many(2, chat())
    await answer_all(stage, 1)
    for response in responses:
        await response.read_end()

    assert stage.upstream.calls == 3
    assert [each.header("cache-status") for each in responses] == [
        "sameflight; fwd=miss",
        "sameflight; fwd=miss; collapsed",
    ]


async def test_a_new_leave_rule_holds_for_the_next_call_and_not_for_the_one_in_the_air(stage: Reloadable) -> None:
    """A stream begun under `finish` runs on without readers, one begun under `cancel` is closed."""
    await stage.reload(rule("leave: finish"))
    response, kept = await leave_a_stream(stage, "kept")
    await stage.reload(rule("leave: cancel"))
    other, dropped = await leave_a_stream(stage, "dropped")
    await response._client.reset()
    await other._client.reset()
    await dropped.client_gone()
    await stage.attached(0)

    assert not kept.gone
    await kept.send(as_bytes(["[DONE]"]))
    await kept.end()
    await stage.settled()
    assert stage.series('flights_total{ending="ok"}') == 1
    assert stage.series('flights_total{ending="abandoned"}') == 1


async def leave_a_stream(stage: Reloadable, text: str) -> Any:
    response = await stage.ask(chat(text, stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    await call.send(as_bytes([delta("begun")]))
    await response.read_until(b"begun")
    return response, call


async def test_a_call_lingers_for_as_long_as_the_catalog_said_when_it_began(stage: Reloadable) -> None:
    """Ten seconds, though the file says one by the time everybody leaves; the next call waits for one."""
    await stage.reload(rule("linger_s: 10"))
    (first,) = await stage.ask_many(1, chat("first"))
    long = await stage.upstream.next_call()
    await stage.reload(rule("linger_s: 1"))
    (second,) = await stage.ask_many(1, chat("second"))
    short = await stage.upstream.next_call()
    for response in (first, second):
        await response._client.reset()
    await stage.attached(0)
    stage.clock.advance(1.1)
    await short.client_gone()
    assert not long.gone
    stage.clock.advance(8.0)
    await stage.swept()
    assert not long.gone
    stage.clock.advance(1.0)
    await long.client_gone()


async def test_a_new_lifetime_holds_for_what_is_stored_from_now_on(stage: Reloadable) -> None:
    """A route gets a cache by a reload, and loses it by another one."""
    for text, answers in (("linger_s: 1", 2), ("cache: {ttl_s: 60}", 1), ("linger_s: 2", 2)):
        await stage.reload(rule(text))
        before = stage.upstream.calls
        for _ in range(2):
            response = await stage.ask(chat())
            await wait_until(lambda r=response: r.status or stage.upstream.waiting, "a hit or a call")
            if stage.upstream.waiting:
                await answer_all(stage, 1)
            await response.read_end()
            await stage.settled()

        assert stage.upstream.calls - before == answers, text


async def test_new_deadlines_hold_for_the_next_call_and_not_for_the_one_in_the_air(stage: Reloadable) -> None:
    """One call may take a minute to its first byte, the one after the reload two seconds."""
    await stage.reload(rule("first_byte_s: 60"))
    patient = await stage.ask(chat("patient"))
    slow = await stage.upstream.next_call()
    await stage.reload(rule("first_byte_s: 2"))
    hasty = await stage.ask(chat("hasty"))
    late = await stage.upstream.next_call()
    stage.clock.advance(2.5)
    await hasty.read_end()
    await late.client_gone()
    stage.clock.advance(40.0)
    await slow.answer_json(completion("at last"))
    await patient.read_end()

    assert (hasty.status, hasty.json()["error"]["code"]) == (504, "upstream_timeout")
    assert (patient.status, patient.json()) == (200, completion("at last"))


async def test_a_new_base_url_takes_the_next_request_elsewhere(stage: Reloadable) -> None:
    """What is in the air ends where it began; the next identical request neither joins it nor goes there."""
    async with ScriptedUpstream() as other:
        old = await stage.ask(chat())
        call = await stage.upstream.next_call()
        await stage.reload(f"providers:\n  openai: {{base_url: '{other.url}/elsewhere'}}\n")
        new = await stage.ask(chat())
        moved = await other.next_call()
        await moved.answer_json(completion("new"))
        await call.answer_json(completion("old"))
        for response in (old, new):
            await response.read_end()

        assert (old.json(), new.json()) == (completion("old"), completion("new"))
        assert moved.target == "/elsewhere/v1/chat/completions"
        assert (stage.upstream.calls, other.calls) == (1, 1)


async def test_a_new_provider_key_and_new_placeholders_hold_for_the_next_request(stage: Reloadable) -> None:
    """A key is rotated without a restart, and the old one is not sent again."""
    seen = []
    for text in (
        "providers:\n  openai: {api_key: sk-first}\n",
        "providers:\n  openai: {api_key: sk-second}\n",
        "providers:\n  openai: {api_key: sk-second}\nplaceholder_keys: [house]\n",
    ):
        await stage.reload(text)
        for key in ("dummy", "house"):
            response = await stage.ask(chat(), key=key)
            call = await stage.upstream.next_call()
            seen.append(call.header("authorization"))
            await call.answer_json(completion())
            await response.read_end()

    assert seen == [
        *("Bearer sk-first", "Bearer house"),
        *("Bearer sk-second", "Bearer house"),
        *("Bearer dummy", "Bearer sk-second"),
    ]


async def test_a_request_is_charged_at_the_price_of_the_catalog_it_began_with(stage: Reloadable) -> None:
    """Five tokens in and seven out, before and after a price rise; both ends of the books agree."""
    await stage.reload("prices:\n  gpt-4o-mini: {input: 1, output: 10}\n")
    old = await stage.ask(chat("one"))
    call = await stage.upstream.next_call()
    await stage.reload("prices:\n  gpt-4o-mini: {input: 2, output: 20}\n")
    new = await stage.ask(chat("two"))
    await call.answer_json(completion())
    await answer_all(stage, 1)
    for response in (old, new):
        await response.read_end()
    lines = {line["request_id"]: line for line in await stage.access_lines(2)}
    costs = [lines[each.header("x-sameflight-request-id") or ""]["cost_usd"] for each in (old, new)]

    assert costs == [75e-6, 150e-6]
    assert stage.series("cost_usd_total") == pytest.approx(225e-6, rel=1e-12)


# -- what is in the air ---------------------------------------------------------------------------------------


async def test_an_answer_whose_flight_began_before_a_reload_is_delivered_and_not_stored(stage: Reloadable) -> None:
    """TC119: everybody gets it; the cache, which serves by the new rules, does not."""
    await stage.reload(rule("cache: {ttl_s: 60}"))
    responses = await stage.ask_many(2, chat())
    call = await stage.upstream.next_call()
    await stage.reload(rule("cache: {ttl_s: 120}"))
    await call.answer_json(completion("old"))
    for response in responses:
        await response.read_end()
    await stage.settled()

    assert [response.json() for response in responses] == [completion("old")] * 2
    assert "stored" not in (responses[0].header("cache-status") or "")
    assert stage.app.hot.entries == 0

    again = await stage.ask(chat())
    await answer_all(stage, 1)
    await again.read_end()
    await stage.settled()

    assert again.header("cache-status") == "sameflight; fwd=miss; stored"
    assert stage.app.hot.entries == 1


async def test_a_request_after_a_reload_does_not_join_a_flight_from_before(stage: Reloadable) -> None:
    """What the proxy does to a request follows from its catalog, so it is a part of what makes two requests equal."""
    old = await stage.ask(chat())
    first = await stage.upstream.next_call()
    await stage.reload(rule("linger_s: 1"))
    new = await stage.ask(chat())
    second = await stage.upstream.next_call()
    await second.answer_json(completion("new"))
    await first.answer_json(completion("old"))
    for response in (old, new):
        await response.read_end()

    assert (old.json(), new.json()) == (completion("old"), completion("new"))
    assert new.header("cache-status") == "sameflight; fwd=miss"


async def test_a_stream_goes_on_over_any_number_of_reloads(stage: Reloadable) -> None:
    """Good ones and bad ones between its events; its callers notice nothing."""
    texts = [str(number) for number in range(6)]
    responses = await stage.ask_many(2, chat(stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, SSE, chunked=True)
    for number, text in enumerate(texts):
        if number % 2:
            await stage.reload_in_vain("routes: 7\n")
        else:
            await stage.reload(rule(f"linger_s: {number}"))
        await call.send(as_bytes([delta(text)]))
        await responses[0].read_until(as_bytes([delta(text)]))
    await call.send(as_bytes(["[DONE]"]))
    await call.end()
    for response in responses:
        await response.read_end()

    assert {response.body for response in responses} == {as_bytes(stream_events(*texts))}
    assert all(response.ended for response in responses)


# -- what a file may be ---------------------------------------------------------------------------------------

BAD = {
    "no YAML": "routes: [\n",
    "an unknown route": rule("share: all", route="chatt"),
    "an unknown word": rule("share: some"),
    "a wrong type": rule("linger_s: soon"),
    "an impossible URL": "providers:\n  openai: {base_url: 'ftp://example'}\n",
    "a reference to nothing": "providers:\n  openai: {api_key: '${NO_SUCH_VARIABLE}'}\n",
    "a name twice": rule("share: all") + rule("share: off"),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
async def test_a_bad_file_keeps_the_old_catalog_and_says_where_it_is_bad(stage: Reloadable, text: str) -> None:
    """Reported with file and line, shown by the metrics, and otherwise without effect; the next good one counts."""
    await stage.reload(rule("share: off"))
    assert stage.series("config_last_reload_successful") == 1
    await stage.reload_in_vain(text)
    responses = [await stage.ask(chat()) for _ in range(2)]
    await answer_all(stage, 2)
    for response in responses:
        await response.read_end()
    await wait_until(lambda: stage.events("config_reload_failed"), "the failure was logged")
    (event,) = stage.events("config_reload_failed")

    assert [response.header("cache-status") for response in responses] == ["sameflight; fwd=bypass"] * 2
    assert stage.generation == 2
    assert stage.series("config_last_reload_successful") == 0
    assert stage.series("config_reload_failures_total") == 1
    assert event["level"] == "error"
    assert event["problems"]
    assert all(problem.startswith(f"{stage._path}:") for problem in event["problems"])

    await stage.reload(rule("share: all"))
    assert stage.series("config_last_reload_successful") == 1
    assert stage.series("config_reload_failures_total") == 1


@pytest.mark.long
async def test_a_file_that_vanishes_keeps_the_catalog_and_its_return_is_noticed(stage: Reloadable) -> None:
    """Between an editor's two steps there may be no file at all."""
    await stage.reload(rule("share: off"))
    stage._path.unlink()
    stage.clock.advance(2.0)
    await wait_until(lambda: stage.app.catalogs.reload_failures == 1, "the file was missed")
    stage.write(rule("share: pure"))
    stage.clock.advance(2.0)
    await wait_until(lambda: stage.generation == 3, "the file's return was noticed")

    assert stage.app.catalogs.current.rules("chat.completions").share == "pure"
    assert stage.series("config_last_reload_successful") == 1


async def test_a_change_is_noticed_by_the_clock_and_a_bad_file_is_tried_once(stage: Reloadable) -> None:
    """Every two seconds somebody looks; a file that stays bad is not read, reported and counted for ever."""
    stage.write(rule("share: some"))
    stage.clock.advance(2.0)
    await wait_until(lambda: stage.app.catalogs.reload_failures == 1, "the change was noticed")
    for _ in range(5):
        stage.clock.advance(2.0)
        await stage.swept()

    assert stage.app.catalogs.reload_failures == 1
    stage.write(rule("share: off"))
    stage.clock.advance(2.0)
    await wait_until(lambda: stage.generation == 2, "the repair was noticed")


async def test_a_file_that_says_the_same_as_before_changes_nothing(stage: Reloadable) -> None:
    """Touched, or written in another way: what is cached stays, and so does the generation."""
    assert await stage.models() == "sameflight; fwd=miss; stored"
    for text in ("{}\n", "# nothing yet\nroutes: {}\n"):
        reloads = stage.app.catalogs.reloads
        stage.write(text)
        os.utime(stage._path)
        stage.app.reload()
        await wait_until(lambda n=reloads: stage.app.catalogs.reloads > n, "the file was read")

    assert stage.generation == 1
    assert (await stage.models()).startswith("sameflight; hit")
    assert stage.events("config_reloaded") == []


async def test_a_flock_of_signals_reads_the_file_once(stage: Reloadable) -> None:
    """Fifty at once are one wish."""
    before = stage.app.catalogs.reloads
    stage.write(rule("linger_s: 7"))
    for _ in range(50):
        stage.app.reload()
    await wait_until(lambda: stage.generation == 2, "the catalog was reloaded")
    await run_ticks()

    assert stage.app.catalogs.reloads == before + 1
    assert stage.app.catalogs.current.rules("chat.completions").linger_s == 7


async def test_while_the_file_is_read_requests_go_on_and_no_signal_is_lost(
    stage: Reloadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a slow disk is read by a thread and nobody waits for it; a signal that comes too late for what is
    being read has it read once more."""
    loop = asyncio.get_running_loop()
    reads, gate = [], asyncio.Event()
    read = type(stage.app.catalogs).reload

    def read_and_dawdle(holder: Any) -> Any:
        result = read(holder)
        reads.append(result.generation)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(5)
        return result

    monkeypatch.setattr(type(stage.app.catalogs), "reload", read_and_dawdle)
    stage.write(rule("linger_s: 7"))
    stage.app.reload()
    await wait_until(lambda: reads == [2], "the file was read")
    stage.write(rule("linger_s: 8"))
    for _ in range(3):
        stage.app.reload()
    responses = await stage.ask_many(2, chat())
    await answer_all(stage, 1)
    for response in responses:
        await response.read_end()
    gate.set()
    await wait_until(lambda: stage.generation == 3, "the catalog was reloaded")
    await run_ticks()

    assert stage.upstream.calls == 1
    assert reads == [2, 3]
    assert stage.app.catalogs.current.rules("chat.completions").linger_s == 8


async def test_a_keep_alive_connection_lives_through_a_reload(stage: Reloadable) -> None:
    """The next request on the same connection goes by the new catalog."""
    client = await stage.client()
    statuses = []
    for text in ("linger_s: 9", "share: off"):
        await stage.reload(rule(text))
        response = await client.start("POST", CHAT, [("authorization", f"Bearer {KEY}")], chat())
        await answer_all(stage, 1)
        statuses.append((await response.read_end()).header("cache-status"))

    assert statuses == ["sameflight; fwd=miss", "sameflight; fwd=bypass"]


async def test_a_reload_under_way_does_not_outlive_the_proxy(tmp_path: Path, frozen_clock: FrozenClock) -> None:
    """Asked for in the very moment of the end, it is over when the proxy is."""
    path = tmp_path / "catalog.yaml"
    path.write_text("{}\n", "utf-8")
    async with Reloadable(path, frozen_clock) as stage:
        stage.write(rule("share: off"))
        stage.app.reload()
        task = stage.app._reloading

    assert task is not None
    assert task.done()
    assert stage.generation == 2
