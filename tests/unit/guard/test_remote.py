"""Remote guards: what they are sent, how their answers are read, and the bounds of asking them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proxy.config.guards import Guard
from proxy.errors import Kind, ProxyError
from proxy.guard.remote import (
    FAILURES_IN_A_ROW,
    MAX_SENT_BYTES,
    OPEN_S,
    GuardFailedError,
    RemoteGuards,
    Subject,
    Verdict,
)
from proxy.protocol.message import HeaderList
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate

URL = "http://guard.test/check"
ABOUT = Subject("request", ["hello"], "chat.completions", "gpt", "key1", "req_1")
Answer = Callable[[], Awaitable[tuple[int, bytes]]]


def webhook(**options: Any) -> Guard:
    timeout_s = options.pop("timeout_s", 5.0)
    given = {"url": URL, "headers": (("Authorization", "Bearer x"),), **options}
    return Guard("hook", "webhook", "during", timeout_s=timeout_s, options=tuple(given.items()))


def moderation(**options: Any) -> Guard:
    return Guard("mod", "moderation", "during", options=tuple({"url": URL, **options}.items()))


class FakePost:
    """Answers what it is told and keeps what it was sent."""

    def __init__(self, said: object = None, status: int = 200) -> None:
        self.said: object = {"action": "allow"} if said is None else said
        self.status = status
        self.answer: Answer | None = None
        self.sent: list[tuple[str, HeaderList, Any, float]] = []

    async def __call__(self, url: str, headers: HeaderList, body: bytes, deadline_s: float) -> tuple[int, bytes]:
        self.sent.append((url, headers, json.loads(body), deadline_s))
        if self.answer is not None:
            return await self.answer()
        return self.status, self.said if isinstance(self.said, bytes) else json.dumps(self.said).encode()


async def why_of(remote: RemoteGuards, guard: Guard, about: Subject = ABOUT) -> str:
    with pytest.raises(GuardFailedError) as failed:
        await remote.ask(guard, about)
    return failed.value.why


async def test_a_webhook_is_told_whose_text_it_is_and_with_the_operators_headers() -> None:
    """All that the operator needs to decide, and no credential of the caller's."""
    post = FakePost()
    verdict = await RemoteGuards(post, FrozenClock()).ask(webhook(), ABOUT)

    assert verdict == Verdict("allow")
    url, headers, body, deadline_s = post.sent[0]
    assert (url, deadline_s) == (URL, 5.0)
    assert (b"authorization", b"Bearer x") in headers
    assert body == {
        "guard": "hook",
        "direction": "request",
        "texts": ["hello"],
        "route": "chat.completions",
        "model": "gpt",
        "key_id": "key1",
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({"action": "block", "reason": "pii"}, Verdict("block", "pii")),
        ({"action": "flag"}, Verdict("flag")),
        ({"action": "block", "reason": "the text said: hello"}, Verdict("block")),
    ],
)
async def test_a_webhooks_verdict_is_taken_and_only_a_word_of_its_reason(said: object, verdict: Verdict) -> None:
    """What it writes in prose may quote the text, which stands in no log."""
    assert await RemoteGuards(FakePost(said), FrozenClock()).ask(webhook(), ABOUT) == verdict


@pytest.mark.parametrize(
    ("said", "status", "why"),
    [
        ({"action": "perhaps"}, 200, "answer"),
        ([], 200, "answer"),
        (b"<html>", 200, "answer"),
        ({"action": "allow"}, 500, "status"),
        ({"action": "allow"}, 302, "status"),
    ],
)
async def test_an_answer_that_is_none_is_a_failure(said: object, status: int, why: str) -> None:
    """Nothing is read into what was not said."""
    assert await why_of(RemoteGuards(FakePost(said, status), FrozenClock()), webhook()) == why


def result(flagged: bool = False, **scores: float) -> dict[str, Any]:
    return {
        "flagged": flagged,
        "categories": {name: score >= 0.5 for name, score in scores.items()},
        "category_scores": scores,
    }


@pytest.mark.parametrize(
    ("options", "results", "verdict"),
    [
        ({}, [result()], Verdict("allow")),
        ({}, [result(), result(True, violence=0.9)], Verdict("block", "violence")),
        ({"categories": ("hate",)}, [result(True, violence=0.9)], Verdict("allow")),
        ({"categories": ("hate",)}, [result(True, hate=0.6)], Verdict("block", "hate")),
        ({"thresholds": (("violence", 0.2),)}, [result(violence=0.3)], Verdict("block", "violence")),
        ({"thresholds": (("violence", 0.95),)}, [result(True, violence=0.9)], Verdict("allow")),
    ],
)
async def test_a_moderation_is_read_by_its_categories_and_thresholds(
    options: dict[str, Any], results: list[Any], verdict: Verdict
) -> None:
    """The operator's threshold stands above the endpoint's own opinion."""
    post = FakePost({"results": results})

    assert await RemoteGuards(post, FrozenClock()).ask(moderation(**options), ABOUT) == verdict
    assert post.sent[0][2] == {"input": ["hello"]}


async def test_a_moderation_without_results_is_a_failure() -> None:
    """Silence is no permission."""
    assert await why_of(RemoteGuards(FakePost({"results": []}), FrozenClock()), moderation()) == "answer"


async def test_a_guard_that_hangs_is_given_up_at_its_deadline() -> None:
    """The deadline covers the wait for a place as well."""
    post, gate = FakePost(), Gate("never")

    async def hang() -> tuple[int, bytes]:
        await gate.wait()
        raise AssertionError

    post.answer = hang
    assert await why_of(RemoteGuards(post, FrozenClock()), webhook(timeout_s=0.01)) == "timeout"


@pytest.mark.parametrize(
    ("kind", "why"), [(Kind.UPSTREAM_TIMEOUT, "timeout"), (Kind.UPSTREAM_UNREACHABLE, "unreachable")]
)
async def test_a_transport_that_fails_is_told_apart_by_its_time_outs(kind: Kind, why: str) -> None:
    """Both are the guard's failure, and neither is the caller's error."""
    post = FakePost()

    async def fail() -> tuple[int, bytes]:
        raise ProxyError(kind, "no")

    post.answer = fail
    assert await why_of(RemoteGuards(post, FrozenClock()), webhook()) == why


async def test_no_more_calls_than_configured_are_under_way() -> None:
    """The others wait for a place, and get it."""
    post, gate = FakePost(), Gate("the guard")

    async def wait() -> tuple[int, bytes]:
        await gate.wait()
        return 200, b'{"action":"allow"}'

    post.answer = wait
    remote, guard = RemoteGuards(post, FrozenClock()), webhook(most_concurrent=2)
    asking = [asyncio.create_task(remote.ask(guard, ABOUT)) for _ in range(5)]
    await gate.reached()
    for _ in range(20):
        await asyncio.sleep(0)

    assert len(post.sent) == 2
    gate.open()
    assert await asyncio.gather(*asking) == [Verdict("allow")] * 5
    assert len(post.sent) == 5


async def test_a_guard_that_keeps_failing_is_not_asked_until_a_probe_goes_well() -> None:
    """After five failures it rests; one question tries it, and a good answer brings it back."""
    clock = FrozenClock()
    post = FakePost(status=500)
    remote = RemoteGuards(post, clock)
    for _ in range(FAILURES_IN_A_ROW):
        assert await why_of(remote, webhook()) == "status"
    assert await why_of(remote, webhook()) == "breaker"
    assert remote.opened == {"hook": 1}
    assert remote.is_open() == {"hook": True}

    clock.advance(OPEN_S + 0.1)
    assert await why_of(remote, webhook()) == "status"
    clock.advance(OPEN_S + 0.1)
    assert await why_of(remote, webhook()) == "breaker", "it rests twice as long after a probe that failed"
    clock.advance(OPEN_S)
    post.status = 200
    assert await remote.ask(webhook(), ABOUT) == Verdict("allow")
    assert await remote.ask(webhook(), ABOUT) == Verdict("allow")
    assert remote.is_open() == {"hook": False}


async def test_a_probe_that_is_given_up_leaves_the_next_one_to_try() -> None:
    """The caller of the flight left: that tells nothing about the guard."""
    clock = FrozenClock()
    post, gate = FakePost(status=500), Gate("never")
    remote = RemoteGuards(post, clock)
    for _ in range(FAILURES_IN_A_ROW):
        await why_of(remote, webhook())
    clock.advance(OPEN_S + 0.1)

    async def hang() -> tuple[int, bytes]:
        await gate.wait()
        raise AssertionError

    post.answer = hang
    probe = asyncio.create_task(remote.ask(webhook(), ABOUT))
    await gate.reached()
    probe.cancel()
    await asyncio.wait([probe])
    post.answer, post.status = None, 200

    assert await remote.ask(webhook(), ABOUT) == Verdict("allow")


async def test_a_guard_that_was_configured_anew_is_another_guard() -> None:
    """The breaker of what was wrong does not hold up what is right."""
    post = FakePost(status=500)
    remote = RemoteGuards(post, FrozenClock())
    for _ in range(FAILURES_IN_A_ROW):
        await why_of(remote, webhook())
    post.status = 200

    assert await remote.ask(webhook(url="http://other.test/"), ABOUT) == Verdict("allow")
    assert post.sent[-1][0] == "http://other.test/"


async def test_texts_beyond_the_bound_are_not_sent() -> None:
    """They could not be checked, which is for the fail mode to judge."""
    post = FakePost()
    about = ABOUT._replace(texts=["a" * MAX_SENT_BYTES])

    assert await why_of(RemoteGuards(post, FrozenClock()), webhook(), about) == "too_large"
    assert post.sent == []


async def test_a_request_without_text_is_not_asked_about() -> None:
    """There is nothing to be found in it."""
    post = FakePost({"action": "block"})

    assert await RemoteGuards(post, FrozenClock()).ask(webhook(), ABOUT._replace(texts=["", ""])) == Verdict("allow")
    assert post.sent == []
