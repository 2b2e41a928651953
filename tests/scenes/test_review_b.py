"""Scenes of what a second look at the account, the hot path and its memory found: money first.

The books are right if the bills of all who had to do with a call add up to what the upstream charges for it, and a
budget is spent by every call that was made in its name.
"""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import msgspec
import pytest

from proxy.accounting.record import UsageRecord
from proxy.accounting.spool import Spool
from proxy.books import Books
from proxy.config.keys import Allowance, Budget, Limits
from proxy.edge.body import PaceGuard
from proxy.errors import Kind, ProxyError
from proxy.exchange import Exchange
from proxy.flight.subscription import Subscription
from proxy.upstream.wire import WireConnection
from proxy.usage_row import make_row
from tests.fakes.client import RawClient
from tests.fakes.gates import Gate, run_ticks, wait_until
from tests.scenes.stage import CHAT, Stage, as_bytes, chat, completion, delta
from tests.scenes.test_keys import make_key, make_stage

EVENTS = ("content-type", "text/event-stream")
USAGE = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}
SHARED = [("x-sameflight-share", "on")]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[UsageRecord]:
    """Every usage record that was closed."""
    closed: list[UsageRecord] = []
    close_record = Spool.close_record

    def keep(self: Spool, record: UsageRecord) -> None:
        closed.append(record)
        close_record(self, record)

    monkeypatch.setattr(Spool, "close_record", keep)
    return closed


async def make_keys(stage: Stage, count: int, **form: Any) -> list[str]:
    """Keys whose requests meet."""
    form = {"tenant": "acme", "scope": "tenant", **form}
    return [(await make_key(stage, name=f"n{number}", **form)).token for number in range(count)]


async def sit_down(stage: Stage, keys: list[str], **fields: Any) -> list[Any]:
    """The same request with each key, in this order, all attached; each with its client."""
    seats = []
    for number, key in enumerate(keys):
        client = await stage.client()
        response = await stage.ask(chat(**fields), key=key, headers=SHARED, client=client)
        await stage.attached(number + 1)
        seats.append((client, response))
    return seats


def billed(rows: list[UsageRecord]) -> int:
    return sum(row.cost_picodollars for row in rows)


def charged(rows: list[UsageRecord]) -> int:
    return sum(row.upstream_picodollars for row in rows)


# -- the charge policies ---------------------------------------------------------------------------------------------


async def test_a_payer_that_left_before_the_first_byte_is_one_of_those_who_share(rows: list[UsageRecord]) -> None:
    """Under `split` the bills add up to what the upstream charges, never more."""
    async with make_stage() as stage:
        keys = await make_keys(stage, 2, charge="split")
        (payer, first), (_, second) = await sit_down(stage, keys, stream=True)
        call = await stage.upstream.next_call()
        await call.send_head(200, [EVENTS], chunked=True)
        await first.read_head()
        await second.read_head()
        await payer.close()
        await stage.attached(1)
        await call.send(as_bytes([{**delta("a"), "usage": USAGE}, "[DONE]"]))
        await call.end()
        await second.read_end()
        await stage.at_rest()

        assert len(rows) == 2
        assert charged(rows) > 0
        assert billed(rows) == charged(rows)


async def test_one_that_lost_patience_before_the_answer_has_no_part_in_its_price(rows: list[UsageRecord]) -> None:
    """A refusal of ours is not some of the answer, however long it is."""
    async with make_stage() as stage:
        keys = await make_keys(stage, 2, charge="split")
        (_, first), (_, second) = await sit_down(stage, keys)
        flight = next(iter(stage.app.table.live))
        _, late = flight.subscribers
        late.eject(ProxyError(Kind.PATIENCE, "Too late."))
        assert (await second.read_end()).status >= 500
        await (await stage.upstream.next_call()).answer_json(completion("a", 1000, 1000))
        await first.read_end()
        await stage.at_rest()

        bills = {row.role: row.cost_picodollars for row in rows}
        assert bills["follower"] == 0
        assert billed(rows) == charged(rows) > 0


@pytest.mark.parametrize("charge", ["split", "each"])
async def test_one_that_was_let_go_from_what_cannot_be_shared_owes_nothing_for_it(
    rows: list[UsageRecord], charge: str
) -> None:
    """It was told that its operation is still running, and got no byte of the answer."""
    async with make_stage() as stage:
        keys = await make_keys(stage, 2, charge=charge)
        marked = [*SHARED, ("idempotency-key", "one")]
        first = await stage.ask(chat(), key=keys[0], headers=marked)
        await stage.attached(1)
        second = await stage.ask(chat(), key=keys[1], headers=marked)
        await stage.attached(2)
        call = await stage.upstream.next_call()
        body = b'{"usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}}'
        await call.answer(200, [("content-type", "application/json"), ("vary", "*")], body)
        assert (await first.read_end()).status == 200
        assert (await second.read_end()).status == 409
        await stage.at_rest()

        assert billed(rows) == charged(rows)
        assert [row.cost_picodollars for row in rows if row.status == 409] == [0]


async def test_under_each_one_that_leaves_before_the_end_pays_all_the_same(rows: list[UsageRecord]) -> None:
    """Its price is not known before the end: the account waits for it, as the payer's does."""
    async with make_stage() as stage:
        keys = await make_keys(stage, 2, charge="each")
        (_, first), (leaver, second) = await sit_down(stage, keys, stream=True)
        call = await stage.upstream.next_call()
        await call.send_head(200, [EVENTS], chunked=True)
        await call.send(as_bytes([delta("a")]))
        await second.read_until(b'"a"')
        await leaver.close()
        await stage.attached(1)
        await call.send(as_bytes([{**delta("b"), "usage": USAGE}, "[DONE]"]))
        await call.end()
        await first.read_end()
        await stage.at_rest()

        bills = {row.role: row.cost_picodollars for row in rows}
        assert bills["leader"] > 0
        assert bills["follower"] == bills["leader"]


# -- budgets ---------------------------------------------------------------------------------------------------------


async def test_a_call_that_everybody_left_before_its_head_is_spent_from_the_budget(rows: list[UsageRecord]) -> None:
    """It lingers for a retry and costs what it costs: whoever hangs up at once must not have it for nothing."""
    async with make_stage() as stage:
        issued = await make_key(stage, budget="100/total")
        client = await stage.client()
        await stage.ask(chat(), key=issued.token, headers=SHARED, client=client)
        await stage.attached(1)
        call = await stage.upstream.next_call()
        await client.close()
        await stage.attached(0)
        await call.answer_json(completion("a", 1000, 1000))
        await stage.at_rest()

        [purse] = stage.app.vault.leases._purses.values()
        assert charged(rows) > 0
        assert billed(rows) == charged(rows)
        assert purse.pot.reserved == 0
        assert purse.pot.spent == charged(rows)


@pytest.mark.parametrize("change", ["comes", "goes"])
async def test_a_budget_that_changes_while_one_waits_for_another_costs_nothing(change: str) -> None:
    """The key is given a budget, or loses it, while its request waits for the team's money: it goes on, and every
    place and every cent comes back."""
    async with make_stage() as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        vault, gate = stage.app.vault, Gate()
        budget = Budget(10**14, "total")
        vault.limiter.set_allowances([Allowance("team", "acme/red", Limits(), budget, version=1)])
        form: dict[str, Any] = {"budget": "100/total"} if change == "goes" else {}
        issued = await make_key(stage, tenant="acme", team="red", limits={"concurrent": 9}, **form)
        lease: Any = vault.store.lease

        async def lease_later(account: str, *arguments: Any, **options: Any) -> Any:
            if account.startswith("team:"):
                await gate.wait()
            return await lease(account, *arguments, **options)

        vault.store.lease = lease_later  # type: ignore[method-assign]
        first = await stage.ask(chat("1"), key=issued.token)
        await gate.reached()
        held = next(iter(vault.ring._held.values()))
        other = budget if change == "comes" else None
        vault.ring.apply(msgspec.structs.replace(held.record, budget=other, version=held.record.version + 1))
        second = await stage.ask(chat("2"), key=issued.token)
        await wait_until(lambda: len(stage.app.pipeline._waiting) == 2, "both wait")
        gate.open()

        assert [(await response.read_end()).status for response in (first, second)] == [200, 200]
        await stage.at_rest()
        assert vault.limiter.describe()["running"] == 0
        assert vault.leases.reserved_picodollars == 0


async def test_under_strict_a_refused_request_takes_no_room_of_those_that_run(
    rows: list[UsageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not admitted: it has no row, and what it had reserved is free."""
    async with make_stage(spool_policy="strict") as stage:
        issued = await make_key(stage, limits={"concurrent": 1})
        monkeypatch.setattr(Spool, "_has_room", lambda _: False)
        for _ in range(2):
            assert (await (await stage.ask(chat(), key=issued.token)).read_end()).status == 503
        await stage.at_rest()

        assert rows == []
        assert stage.app.vault.limiter.describe()["running"] == 0


async def test_under_strict_a_hit_needs_room_for_its_row_as_well(
    rows: list[UsageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that cannot be kept is no less lost for being cheap."""
    cached = [("x-sameflight-cache", "on")]
    async with make_stage(spool_policy="strict") as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        issued = await make_key(stage)
        for _ in range(2):
            assert (await (await stage.ask(chat(), key=issued.token, headers=cached)).read_end()).status == 200
        assert [row.role for row in rows] == ["leader", "hit"]
        monkeypatch.setattr(Spool, "_has_room", lambda _: False)
        assert (await (await stage.ask(chat(), key=issued.token, headers=cached)).read_end()).status == 503
        await stage.at_rest()

        assert len(rows) == 2


# -- faults in the books ---------------------------------------------------------------------------------------------


async def test_a_line_that_cannot_be_written_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are written many at once; each is only its own."""
    async with Stage() as stage:
        log_access: Any = Books._log_access
        spoiled: list[Exchange] = []

        def log_or_fail(self: Books, access: Any, exchange: Exchange, *rest: Any) -> None:
            if not spoiled:
                spoiled.append(exchange)
                raise RuntimeError("no ink")
            log_access(self, access, exchange, *rest)

        monkeypatch.setattr(Books, "_log_access", log_or_fail)
        responses = await stage.ask_many(3, headers=SHARED)
        await (await stage.upstream.next_call()).answer_json(completion())
        for response in responses:
            await response.read_end()
        stage.app.books.post()

        assert len(await stage.access_lines(2)) == 2
        assert "no ink" in stage.app.metrics.last_bug


async def test_an_account_that_fails_gives_back_what_was_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each fault would take one of the concurrent requests for ever."""

    def fail(*_: object) -> None:
        raise RuntimeError("no row")

    async with make_stage() as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        issued = await make_key(stage, limits={"concurrent": 1})
        monkeypatch.setattr("proxy.books.make_row", fail)
        assert (await (await stage.ask(chat(), key=issued.token)).read_end()).status == 200
        monkeypatch.undo()
        assert (await (await stage.ask(chat("again"), key=issued.token)).read_end()).status == 200
        await stage.settled()

        assert "no row" in stage.app.metrics.last_bug


async def test_an_account_that_fails_at_the_end_of_a_flight_leaves_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those who wait for the price of one call are settled one by one."""
    spoiled: list[object] = []

    def make_or_fail(exchange: Exchange, *rest: Any) -> Any:
        if not spoiled:
            spoiled.append(exchange)
            raise RuntimeError("no row")
        return make_row(exchange, *rest)

    async with make_stage() as stage:
        keys = await make_keys(stage, 3, charge="split", limits={"concurrent": 1})
        seats = await sit_down(stage, keys)
        monkeypatch.setattr("proxy.books.make_row", make_or_fail)
        await (await stage.upstream.next_call()).answer_json(completion())
        for _, response in seats:
            await response.read_end()
        await stage.settled()

        assert "no row" in stage.app.metrics.last_bug
        assert stage.app.vault.limiter.describe()["running"] == 0


# -- flights without a task ------------------------------------------------------------------------------------------


async def warm_up(stage: Stage) -> None:
    """An idle connection to the upstream."""
    response = await stage.ask(chat("warm"))
    await (await stage.upstream.next_call()).answer_json(completion())
    await response.read_end()
    await stage.settled()


async def test_a_flight_that_cannot_be_launched_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails in the tick of its birth: it is filled by a task, and the connection is not lost either."""
    async with Stage() as stage:
        await warm_up(stage)
        send: Any = WireConnection.send
        failed: list[object] = []

        def send_or_fail(self: WireConnection, *arguments: Any) -> None:
            if not failed:
                failed.append(self)
                raise RuntimeError("no wire")
            send(self, *arguments)

        monkeypatch.setattr(WireConnection, "send", send_or_fail)
        response = await stage.ask(chat("next"), headers=SHARED)
        await (await stage.upstream.next_call()).answer_json(completion())

        assert (await response.read_end()).status == 200
        await stage.settled()
        assert len(stage.app.table) == 0
        assert "no wire" in stage.app.metrics.last_bug
        assert [pool for pool in stage.app.transport.describe()["pools"] if pool["busy"]] == []


async def test_an_answer_that_is_given_up_with_its_last_byte_is_no_fault() -> None:
    """The end and the bound came in one read: the flight lets go of the connection in the middle of it."""
    faults: list[Any] = []
    async with Stage(max_answer_bytes=200) as stage:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        response = await stage.ask(chat("warm"))
        await (await stage.upstream.next_call()).answer(200, [("content-type", "application/json")], b"{}")
        await response.read_end()
        await stage.settled()
        response = await stage.ask(chat(stream=True), headers=SHARED)
        call = await stage.upstream.next_call()
        events = as_bytes([delta("a" * 300)])
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        await call.send_raw(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))
        await response.read_end()
        await stage.settled()
        asyncio.get_running_loop().set_exception_handler(None)

        assert faults == []
        assert stage.app.metrics.last_bug == ""


@pytest.mark.parametrize("charge", ["first", "split", "each"])
async def test_one_that_goes_before_its_flight_has_begun_is_accounted_all_the_same(
    rows: list[UsageRecord], monkeypatch: pytest.MonkeyPatch, charge: str
) -> None:
    """The task that was to fill it never ran, so nobody will ever book that flight."""
    start = Subscription.start

    def start_and_go(self: Subscription) -> None:
        start(self)
        self.eject(ProxyError(Kind.SLOW_READER, "Go.", why="test"))

    monkeypatch.setattr(Subscription, "start", start_and_go)
    async with make_stage() as stage:
        [key] = await make_keys(stage, 1, charge=charge, limits={"concurrent": 1}, budget="100/total")
        response = await stage.ask(chat(stream=True), key=key)
        assert (await response.read_end()).status >= 400
        await stage.at_rest()

        assert len(rows) == 1
        assert stage.app.vault.limiter.describe()["running"] == 0
        assert stage.app.vault.leases.reserved_picodollars == 0
        assert stage.app.books._pledges == {}


# -- what is left behind ---------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_an_upload_that_was_answered_early_leaves_no_deadline_behind(stage: Stage) -> None:
    """Its pace is nobody's business any more."""
    await run_ticks()
    before = armed(stage)
    client = await stage.client()
    head = [("content-type", "multipart/form-data; boundary=b"), ("authorization", "Bearer sk-x")]
    await client.send(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n"
        + b"".join(f"{name}: {value}\r\n".encode() for name, value in head)
        + b"\r\n--b"
    )
    response = client.expect("POST")
    call = await stage.upstream.next_call(whole=False)
    await call.answer(400, [("content-type", "application/json")], b"{}")
    await response.read_end()
    await client.close()
    await stage.at_rest()
    await wait_until(lambda: not stage.app.server.clients, "the connection is gone")

    assert armed(stage) <= before


def armed(stage: Stage) -> int:
    """Deadlines of uploads that are still watched."""
    return sum(1 for each in gc.get_objects() if isinstance(each, PaceGuard) and each._deadline is not None)


async def test_a_request_that_the_end_of_the_process_cuts_off_has_its_line() -> None:
    """It waited for its body; its line is written before the log is closed."""
    async with Stage() as stage:
        client = await RawClient.connect_url(stage.app.url)
        await client.send(
            b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-x\r\n"
            b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
        )
        await wait_until(lambda: stage.app.server.running == 1, "it has begun")
    await client.close()

    assert len(stage._lines()) == 1


# -- keys that change under a request --------------------------------------------------------------------------------


async def test_a_key_that_is_revoked_while_a_body_comes_lets_nothing_through() -> None:
    """A body may take a minute; what counts is whether the key is good when the request begins."""
    async with make_stage() as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        issued = await make_key(stage)
        client = await stage.client()
        body = json.dumps(chat()).encode()
        await client.send(
            b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (CHAT.encode(), issued.token.encode(), len(body), body[:5])
        )
        response = client.expect("POST")
        await wait_until(lambda: stage.app.server.running == 1, "it has begun")
        await stage.app.vault.issuer.revoke(issued.record.id)
        await client.send(body[5:])

        assert (await response.read_end()).status == 401
        assert stage.upstream.calls == 0
        await stage.at_rest()
