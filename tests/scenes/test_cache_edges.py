"""The edges of the response cache: the shared level and time, what may not be kept, and wary callers."""

from __future__ import annotations

import gzip

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.clock import FrozenClock
from tests.scenes.stage import Header, Stage, chat, completion

MISSING = {"error": {"code": "model_not_found", "message": "no gpt-4o-mini"}}


async def ask_models(stage: Stage, *headers: Header) -> RawResponse:
    """A request for the list of models, not read yet."""
    return await stage.ask(method="GET", path="/v1/models", headers=headers)


async def answer_models(stage: Stage, name: str) -> None:
    """The upstream gives a list of one model."""
    await (await stage.upstream.next_call()).answer_json({"data": [{"id": name}]})


async def fill(stage: Stage, name: str = "old") -> None:
    """One list of models on every level."""
    response = await ask_models(stage)
    await answer_models(stage, name)
    await response.read_end()
    await stage.settled()


# -- the shared level ------------------------------------------------------------------------------------------------


async def test_the_shared_level_serves_no_outlived_list(frozen_clock: FrozenClock) -> None:
    """It keeps a list for a day, in case the upstream fails; an hour later a healthy one is asked."""
    async with Stage(clock=frozen_clock, cache_url="memory://") as stage:
        await fill(stage)
        frozen_clock.advance(3600)
        response = await ask_models(stage)
        await answer_models(stage, "new")
        await response.read_end()
        await stage.at_rest()

        assert response.json() == {"data": [{"id": "new"}]}


async def test_what_the_shared_level_outlived_still_stands_in_for_a_failing_upstream(
    frozen_clock: FrozenClock,
) -> None:
    """That is what it was kept for, and the first level may have lost it."""
    async with Stage(clock=frozen_clock, cache_url="memory://") as stage:
        await fill(stage)
        stage.app.hot.purge()
        frozen_clock.advance(3600)
        response = await ask_models(stage)
        await (await stage.upstream.next_call()).answer_json({"error": {"message": "no"}}, status=500)
        await response.read_end()
        await stage.at_rest()

        assert (response.status, response.json()) == (200, {"data": [{"id": "old"}]})


async def test_a_renewal_is_not_answered_by_the_shared_level(frozen_clock: FrozenClock) -> None:
    """It would renew the list with itself."""
    async with Stage(clock=frozen_clock, cache_url="memory://") as stage:
        await fill(stage)
        frozen_clock.advance(120)
        stale = await ask_models(stage)
        await stale.read_end()
        await answer_models(stage, "new")
        await stage.settled()
        renewed = await ask_models(stage)
        await renewed.read_end()
        await stage.at_rest()

        assert [stale.json(), renewed.json()] == [{"data": [{"id": "old"}]}, {"data": [{"id": "new"}]}]
        assert stage.upstream.calls == 2


async def test_the_shared_level_heeds_the_age_a_caller_accepts(frozen_clock: FrozenClock) -> None:
    """`max-age` bounds what any level gives."""
    async with Stage(clock=frozen_clock, cache_url="memory://") as stage:
        await fill(stage)
        frozen_clock.advance(30)
        response = await ask_models(stage, ("cache-control", "max-age=10"))
        await answer_models(stage, "new")
        await response.read_end()
        await stage.at_rest()

        assert response.json() == {"data": [{"id": "new"}]}


# -- what may not be kept --------------------------------------------------------------------------------------------


async def test_an_answer_that_only_the_connection_ended_is_passed_on_and_not_kept(stage: Stage) -> None:
    """Nothing proves that it was whole, so the next caller asks again."""
    first = await ask_models(stage)
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "application/json")])
    await call.send_raw(b'{"object":"list","data":[{"id":"a"')
    call.close()
    await first.read_end()
    second = await ask_models(stage)
    await answer_models(stage, "whole")
    await second.read_end()

    assert first.body == b'{"object":"list","data":[{"id":"a"'
    assert second.json() == {"data": [{"id": "whole"}]}


@pytest.mark.parametrize("word", ["no-store", "no-store, private", "private, No-Store"])
async def test_an_answer_that_forbids_it_is_not_kept(stage: Stage, word: str) -> None:
    """The upstream knows best."""
    first = await ask_models(stage)
    await (await stage.upstream.next_call()).answer_json({"data": []}, headers=[("cache-control", word)])
    await first.read_end()
    second = await ask_models(stage)
    await answer_models(stage, "new")
    await second.read_end()

    assert stage.app.hot.hits == 0
    assert second.json() == {"data": [{"id": "new"}]}


async def test_what_came_compressed_unasked_is_not_given_to_one_that_cannot_read_it(stage: Stage) -> None:
    """The key says nothing of codings, because nobody was to use one."""
    first = await ask_models(stage, ("accept-encoding", "gzip"))
    kind = [("content-type", "application/json"), ("content-encoding", "gzip")]
    await (await stage.upstream.next_call()).answer(200, kind, gzip.compress(b'{"data":[]}'))
    await first.read_end()
    second = await ask_models(stage)
    await answer_models(stage, "plain")
    await second.read_end()

    assert second.header("content-encoding") is None
    assert second.json() == {"data": [{"id": "plain"}]}


# -- negative entries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wary", [("x-sameflight-cache", "off"), ("x-sameflight-cache", "refresh"), ("cache-control", "max-age=0")]
)
async def test_a_missing_model_is_asked_for_again_by_one_that_wants_no_cache(stage: Stage, wary: Header) -> None:
    """A remembered 404 is an answer of the cache like any other."""
    first = await stage.ask(chat())
    await (await stage.upstream.next_call()).answer_json(MISSING, status=404)
    await first.read_end()
    second = await stage.ask(chat(), headers=[wary])
    await (await stage.upstream.next_call()).answer_json(completion())
    await second.read_end()

    assert [first.status, second.status] == [404, 200]


# -- only what is there ----------------------------------------------------------------------------------------------

ONLY = [("cache-control", "only-if-cached"), ("x-sameflight-cache", "only")]


@pytest.mark.parametrize("only", ONLY)
async def test_one_that_shares_nothing_and_takes_only_what_is_there_gets_504(stage: Stage, only: Header) -> None:
    """Going alone is no licence to make a call."""
    response = await stage.ask(chat(), headers=[only, ("x-sameflight-share", "off")])
    await response.read_end()

    assert (response.status, stage.upstream.calls) == (504, 0)


@pytest.mark.parametrize("only", ONLY)
async def test_what_has_effects_is_not_done_for_one_that_takes_only_what_is_there(
    stage: Stage, only: Header
) -> None:
    """There can be nothing there, so it is 504."""
    response = await stage.ask({"model": "m", "input": "x"}, path="/v1/responses", headers=[only])
    await response.read_end()

    assert (response.status, stage.upstream.calls) == (504, 0)


async def test_one_that_joined_what_turns_out_private_makes_no_call_if_it_said_so(stage: Stage) -> None:
    """It is released from the flight like the others and, unlike them, told 504."""
    leader = await stage.ask(chat())
    await stage.attached(1)
    follower = await stage.ask(chat(), headers=[("cache-control", "only-if-cached")])
    await stage.attached(2)
    await (await stage.upstream.next_call()).answer(200, [("content-type", "text/html")], b"hello")
    await leader.read_end()
    await follower.read_end()

    assert [leader.status, follower.status] == [200, 504]
    assert stage.upstream.calls == 1
