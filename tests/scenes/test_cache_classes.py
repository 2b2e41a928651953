"""Scenes of cache classes: who finds whose answer again, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, text_of
from tests.scenes.stage import chat, completion

PROVIDERS: dict[str, Any] = {"one": {"kind": "compatible"}}
MODELS: dict[str, Any] = {"m": {"targets": ["one/llama"], "attempts": 1}}
HOUR_S, DAY_S = 3_600.0, 86_400.0
LONG = "Tell me how a steam engine works. " * 10


def house(clock: FrozenClock | None = None, said: dict[str, Any] | None = None, **extra: Any) -> Many:
    return Many(PROVIDERS, MODELS, clock=clock, extra={"cache_classes": said or {}, **extra})


def is_hit(response: RawResponse) -> bool:
    return "hit" in (response.header("cache-status") or "")


async def test_each_class_is_kept_for_its_own_time() -> None:
    """A small question for a week, another one for a day, a user's for an hour."""
    clock = FrozenClock()
    found = []
    async with house(clock) as stage:
        for passed_s in (0.0, 0.8 * HOUR_S, 0.8 * DAY_S, 5 * DAY_S, 3 * DAY_S):
            clock.advance(passed_s)
            asked = [await stage.say("m", "hi"), await stage.say("m", LONG), await stage.say("m", "hi", user="u")]
            found.append([is_hit(response) for response in asked])
        lines = await stage.access_lines(15)
        await stage.at_rest()

        # After a day the answers have been made anew.
        assert found == [
            [False, False, False],
            [True, True, True],
            [True, True, False],
            [True, False, False],
            [False, False, False],
        ]
        assert [line["cache_class"] for line in lines[:3]] == ["small", "exact", "user"]
        assert stage.series('cache_class_requests_total{class="small",result="hit"}') == 3
        assert stage.series('cache_class_requests_total{class="small",result="miss"}') == 2
        assert stage.series('cache_class_requests_total{class="user",result="hit"}') == 1


async def test_what_depends_on_the_moment_or_on_what_was_said_is_never_kept_but_still_shared() -> None:
    """Whatever the route says; unless the request itself asks for it."""
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    body = {"model": "m", "messages": [*history, {"role": "user", "content": "and then?"}]}
    routes = {"chat.completions": {"cache": {"ttl_s": 600}}}
    gate = Gate("the second is there")
    async with house(routes=routes) as stage:
        for _ in range(2):
            assert not is_hit(await stage.say("m", "what is the weather like now?"))
            assert not is_hit((await stage.crowd(1, body))[0])
        assert stage.calls() == {"one": 4}
        wished = [(await stage.crowd(1, body, headers=[("x-sameflight-cache", "on")]))[0] for _ in range(2)]
        assert [is_hit(response) for response in wished] == [False, True]

        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json(completion(text_of("one")))

        stage.upstreams["one"].respond_with(wait)
        asked = await stage.ask_many(20, chat("the latest news", model="m"), key=PLACEHOLDER)
        gate.open()
        for response in asked:
            await response.read_end()
        await stage.at_rest()

        assert stage.calls() == {"one": 6}
        assert stage.series('cache_class_requests_total{class="timely",result="joined"}') == 19
        assert stage.series('cache_class_requests_total{class="timely",result="unkept"}') == 3


@pytest.mark.long
async def test_users_do_not_find_each_others_answers_and_have_parts_of_their_own() -> None:
    """One who asks without end pushes out his own answers only."""
    async with house() as stage:
        await stage.say("m", "mine", user="modest")
        await stage.say("m", "ours")
        share = stage.app.hot._users.share_bytes = 20_000
        for number in range(40):
            await stage.say("m", f"question {number}", user="greedy")
        again = [await stage.say("m", "mine", user="modest"), await stage.say("m", "ours")]
        first, last = [await stage.say("m", f"question {number}", user="greedy") for number in (0, 39)]
        other = await stage.say("m", "mine", user="other")
        await stage.at_rest()

        assert [is_hit(response) for response in (*again, first, last, other)] == [True, True, False, True, False]
        assert stage.app.hot.user_evictions > 0
        assert all(user.size_bytes <= share for user in stage.app.hot._users._users.values())


async def test_a_class_that_keeps_for_less_long_is_believed_at_once() -> None:
    """What was kept under the old rules is not given out under the new ones."""
    clock = FrozenClock()
    async with house(clock, {"classes": {"small": {"ttl_s": 600.0}}}) as stage:
        await stage.say("m", "hi")
        clock.advance(300.0)
        assert is_hit(await stage.say("m", "hi"))
        stage.extra["cache_classes"] = {"classes": {"small": {"ttl_s": 60.0}}}
        await stage.reload()
        assert not is_hit(await stage.say("m", "hi"))
        clock.advance(30.0)
        assert is_hit(await stage.say("m", "hi"))
        await stage.at_rest()


@pytest.mark.long
async def test_stale_answers_of_a_class_stand_in_while_they_are_renewed_and_for_a_failing_upstream() -> None:
    """As a route's do."""
    clock = FrozenClock()
    said = {"classes": {"small": {"ttl_s": 60.0, "stale_while_revalidate_s": 60.0, "stale_if_error_s": 600.0}}}
    async with house(clock, said) as stage:
        await stage.say("m", "hi")
        stage.refuse()
        clock.advance(80.0)
        stale = await stage.say("m", "hi")
        await wait_until(lambda: stage.calls() == {"one": 2}, "it was renewed in vain")
        clock.advance(200.0)
        masked = await stage.say("m", "hi")

        assert is_hit(stale)
        assert masked.status == 200
        assert "stale-if-error" in (masked.header("cache-status") or "")
        assert stage.series('cache_class_requests_total{class="small",result="stale"}') == 1


@pytest.mark.long
async def test_without_the_section_the_route_alone_decides_and_nothing_is_counted() -> None:
    """As ever."""
    async with Many(PROVIDERS, MODELS) as stage:
        for _ in range(2):
            assert not is_hit(await stage.say("m", "hi"))
        lines = await stage.access_lines(2)
        await stage.at_rest()

        assert "cache_class" not in lines[0]
        assert stage.calls() == {"one": 2}
