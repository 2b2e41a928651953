"""Running guards over one matter: who is asked how, what is made of it, and what is remembered."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from proxy.config.guards import Guard, GuardSet, make_guard_set
from proxy.errors import Kind
from proxy.guard.remote import RemoteGuards
from proxy.guard.run import GuardRunner, Matter, Ruling
from proxy.protocol.call import parse_call
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import locate
from proxy.vetting import Vetting
from tests.fakes.clock import FrozenClock

CARD = b"4111 1111 1111 1111"


def matter(*texts: bytes) -> Matter:
    return Matter("request", texts, "chat.completions", "gpt", "key1", "req_1")


def guard(name: str = "cards", action: str = "block", **said: Any) -> Guard:
    return Guard(name, said.pop("kind", "personal_data"), "before", action, options=tuple(said.items()))


class Bench:
    """A runner whose remote guards nobody answers."""

    def __init__(self) -> None:
        self.bugs: list[BaseException] = []
        self.clock = FrozenClock()

        async def post(*_: object) -> tuple[int, bytes]:
            return 500, b""

        log = structlog.get_logger()
        self.runner = GuardRunner(
            RemoteGuards(post, self.clock), self.clock, log, lambda _, bug: self.bugs.append(bug)
        )


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_what_is_found_is_blocked_and_logged_without_the_text(bench: Bench) -> None:
    """The log says who, where and what kind of thing; the thing itself stands nowhere."""
    with capture_logs() as lines:
        ruling = bench.runner.rule([guard()], matter(b"hello", b"my card is " + CARD))

    assert ruling.error is not None
    assert (ruling.error.kind, ruling.error.detail) == (Kind.GUARD_BLOCKED, "card")
    (line,) = lines
    assert (line["event"], line["guard"], line["found"], line["key_id"]) == ("guard_blocked", "cards", "card", "key1")
    assert "4111" not in str(line)
    assert "4111" not in str(ruling.error)


async def test_guards_that_flag_and_redact_do_their_parts_beside_each_other(bench: Bench) -> None:
    """One says so, the other says where."""
    ruling = bench.runner.rule([guard("watch", "flag"), guard("cut", "redact")], matter(b"", b"a " + CARD))

    assert ruling.error is None
    assert ruling.flagged == ["watch"]
    assert [(each.start, each.stop) for each in ruling.found[1]] == [(2, 2 + len(CARD))]


async def test_a_check_that_crashes_follows_its_fail_mode(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a bug, it is counted, and the closed door stays closed."""

    def crash(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("proxy.guard.run.judge", crash)
    closed = bench.runner.rule([guard()], matter(b"hello"))
    opened = bench.runner.rule([Guard("open", "personal_data", "before", fail_open=True)], matter(b"hello"))

    assert closed.error is not None
    assert closed.error.kind is Kind.GUARD_FAILED
    assert opened.error is None
    assert [type(bug) for bug in bench.bugs] == [ZeroDivisionError, ZeroDivisionError]
    assert bench.runner.failures == {("cards", "crash"): 1, ("open", "crash"): 1}


async def test_a_guard_that_keeps_failing_is_logged_now_and_then(bench: Bench) -> None:
    """A thousand failures are one line in ten seconds."""
    hook = Guard("hook", "webhook", "before", fail_open=True, options=(("url", "http://guard.test/"),))
    with capture_logs() as lines:
        for _ in range(4):
            await bench.runner.rule_later([hook], matter(b"hello"))
        bench.clock.advance(10.0)
        await bench.runner.rule_later([hook], matter(b"hello"))

    assert [line["event"] for line in lines] == ["guard_failed", "guard_failed"]
    assert bench.runner.results["hook", "failed_open"] == 5


async def test_long_texts_are_not_for_the_loop(bench: Bench) -> None:
    """They give the same result, later."""
    long = matter(b"lorem ipsum " * 20_000 + CARD)

    assert bench.runner.is_quick([guard()], matter(b"hello " + CARD))
    assert not bench.runner.is_quick([guard()], long)
    ruling = await bench.runner.rule_later([guard()], long)
    assert ruling.error is not None


async def test_a_threshold_is_of_all_texts_together(bench: Bench) -> None:
    """Two words in two messages are two words."""
    topics = guard("topics", kind="topics", topics=(("gambling", ("roulette", "poker")),), threshold=2)

    assert bench.runner.rule([topics], matter(b"roulette", b"chess")).error is None
    assert bench.runner.rule([topics], matter(b"roulette", b"poker")).error is not None


# -- what is remembered of requests ---------------------------------------------------------------------------


class FakeTerms:
    """As much of a head's terms as vetting reads."""

    def __init__(self) -> None:
        self.located = locate(make_request_head("POST", "/v1/chat/completions", []))
        self.principal = type("P", (), {"key_id": "key1"})()


def vet(vetting: Vetting, guards: GuardSet, text: str) -> Any:
    terms: Any = FakeTerms()
    body = b'{"model":"gpt","messages":[{"role":"user","content":"%b"}]}' % text.encode()
    exchange: Any = type("E", (), {"request_id": "req_1", "body": body})()
    shaped: Any = type("S", (), {"flagged": ()})()
    assert vetting.vet(exchange, terms, guards, parse_call(terms.located.route, body), shaped) is None
    return exchange


async def test_what_is_remembered_of_requests_is_bounded_and_the_oldest_goes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many different prompts come by."""
    monkeypatch.setattr("proxy.vetting.MOST_REMEMBERED", 20)
    vetting = Vetting(bench.runner)
    guards = make_guard_set([guard("cut", "redact")])
    assert guards is not None
    assert b"[CARD]" in vet(vetting, guards, CARD.decode()).body
    for number in range(20):
        vet(vetting, guards, f"hello {number}")
    assert vetting.checked == 21
    vet(vetting, guards, "hello 19")
    assert vetting.remembered == 1

    assert b"[CARD]" in vet(vetting, guards, CARD.decode()).body
    assert vetting.checked == 22


async def test_a_check_that_failed_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was said is remembered, not that nothing could be said."""
    vetting = Vetting(bench.runner)
    guards = make_guard_set([guard()])
    assert guards is not None
    ruling = Ruling()
    ruling.error = bench.runner.fail(guard(), "crash", matter())
    with monkeypatch.context() as patch:
        patch.setattr(GuardRunner, "rule", lambda *_: ruling)
        with pytest.raises(Exception, match="could not be checked"):
            vet(vetting, guards, "hello")
    vet(vetting, guards, "hello")

    assert vetting.checked == 2
