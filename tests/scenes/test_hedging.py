"""Where the first target is slow, a second is asked: the earlier answer is for all, the other call is given up."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.gates import Gate, wait_until
from tests.scenes.many import PLACEHOLDER, Many, answers, refusal, text_in, text_of
from tests.scenes.stage import chat
from tests.scenes.test_failover import COMPATIBLE, gated

TWO: dict[str, Any] = {"one": COMPATIBLE, "two": COMPATIBLE}
CROWD = 20


def smart(after_s: float = 0.05, most_share: float = 0.02, **said: Any) -> dict[str, Any]:
    hedging = {"after_s": after_s, "most_share": most_share}
    return {"smart": {"targets": ["one/llama", "two/qwen"], "hedging": hedging, **said}}


@pytest.mark.long
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
async def test_a_crowd_over_a_slow_target_reads_the_answer_of_the_quicker_one(streams: bool) -> None:
    """Two calls for all of them, and the slow one is given up as soon as the other has an answer."""
    slow = Gate("the slow target")
    async with Many(TWO, smart()) as stage:
        stage.upstreams["one"].respond_with(gated(slow, answers("one")))
        responses = await stage.crowd(CROWD, chat(model="smart", stream=streams))
        await wait_until(lambda: stage.upstreams["one"].aborted == 1, "the slow call was given up")
        await stage.at_rest()

        assert stage.calls() == {"one": 1, "two": 1}
        assert {text_in(response) for response in responses} == {text_of("two")}
        assert (stage.app.fleet.failover.hedges_started, stage.app.fleet.failover.hedges_won) == (1, 1)


async def test_a_first_target_that_answers_after_all_wins_over_a_second_that_is_slower() -> None:
    """Asking twice does not mean waiting for the second."""
    first, second = Gate("the first target"), Gate("the second target")
    async with Many(TWO, smart()) as stage:
        stage.upstreams["one"].respond_with(gated(first, answers("one")))
        stage.upstreams["two"].respond_with(gated(second, answers("two")))
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await first.reached()
        await second.reached()
        first.open()
        await response.read_end()
        await wait_until(lambda: stage.upstreams["two"].aborted == 1, "the second call was given up")
        await stage.at_rest()

        assert text_in(response) == text_of("one")
        assert (stage.app.fleet.failover.hedges_started, stage.app.fleet.failover.hedges_won) == (1, 0)


async def test_a_second_that_refuses_leaves_the_first_to_answer() -> None:
    """Its failure is nobody's as long as somebody may still answer."""
    first = Gate("the first target")
    async with Many(TWO, smart()) as stage:
        stage.upstreams["one"].respond_with(gated(first, answers("one")))
        stage.upstreams["two"].respond_with(refusal(500))
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await first.reached()
        await wait_until(lambda: stage.upstreams["two"].calls == 1, "the second was asked")
        first.open()
        await response.read_end()
        await stage.at_rest()

        assert text_in(response) == text_of("one")
        assert stage.calls() == {"one": 1, "two": 1}


async def test_where_both_fail_the_caller_hears_of_a_failure_once() -> None:
    """And the attempts were counted as two."""
    first = Gate("the first target")
    async with Many(TWO, smart(attempts=2)) as stage:
        stage.upstreams["one"].respond_with(gated(first, refusal(500)))
        stage.upstreams["two"].respond_with(refusal(500))
        response = await stage.ask(chat(model="smart"), key=PLACEHOLDER)
        await first.reached()
        await wait_until(lambda: stage.upstreams["two"].calls == 1, "the second was asked")
        first.open()
        await response.read_end()
        await stage.at_rest()

        assert response.status == 500
        assert stage.calls() == {"one": 1, "two": 1}


async def test_a_target_that_is_quick_enough_is_asked_alone() -> None:
    """A hedge costs money; it is not there for the usual case."""
    async with Many(TWO, smart(after_s=30.0)) as stage:
        response = await stage.say("smart")
        await stage.at_rest()

        assert text_in(response) == text_of("one")
        assert stage.calls() == {"one": 1}


async def test_hedging_stops_at_its_share_of_the_requests() -> None:
    """When everything is slow, a second call for each request would double the load: one in fifty, and no more."""
    first = Gate("the slow target")
    async with Many(TWO, smart(first_byte_s=20.0)) as stage:
        stage.upstreams["one"].respond_with(gated(first, answers("one")))
        stage.upstreams["two"].respond_with(gated(first, answers("two")))
        responses = [await stage.ask(chat(f"{number}", model="smart"), key=PLACEHOLDER) for number in range(10)]
        await wait_until(lambda: stage.upstreams["one"].calls == 10, "all were asked")
        await wait_until(lambda: stage.upstreams["two"].calls == 1, "one was asked twice")
        first.open()
        for response in responses:
            await response.read_end()
        await stage.at_rest()

        assert stage.calls() == {"one": 10, "two": 1}


async def test_when_everybody_leaves_both_calls_are_given_up() -> None:
    """Nobody pays for what nobody reads."""
    never = Gate("both targets")
    async with Many(TWO, smart()) as stage:
        for name in TWO:
            stage.upstreams[name].respond_with(gated(never, answers(name)))
        client = await stage.client()
        await stage.ask(chat(model="smart", stream=True), key=PLACEHOLDER, client=client)
        await wait_until(lambda: stage.calls() == {"one": 1, "two": 1}, "both were asked")
        await client.close()
        await wait_until(lambda: all(stage.upstreams[name].aborted == 1 for name in TWO), "both were given up")
        await stage.at_rest()
