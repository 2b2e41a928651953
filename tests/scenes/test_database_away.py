"""PostgreSQL goes away under load, for ten minutes by the proxy's clock: nobody notices but the spool."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from proxy.access.token import mint
from proxy.clock import Clock
from tests.fakes.client import RawClient
from tests.fakes.databases import PostgresServer
from tests.fakes.gates import wait_until
from tests.scenes.stage import CHAT, Stage, chat, completion

LONG_S = 60.0
CLIENTS = 16
OUTAGE_S = 600.0
ONE_STEP_S = 1.5
"""A longer one would be taken for a suspension of the process, after which all is asked for anew."""


STEPS = int(OUTAGE_S / ONE_STEP_S)


class ShiftedClock(Clock):
    """The system's clocks and what was added to them."""

    __slots__ = ("ahead_s",)

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.monotonic() + self.ahead_s

    def wall(self) -> float:
        return time.time() + self.ahead_s


class Crowd:
    """Clients that ask one thing after the other, and what they were told."""

    def __init__(self, stage: Stage, tokens: list[str]) -> None:
        self.stage = stage
        self.tokens = tokens
        self.ids: list[str] = []
        self.failed: list[tuple[int, bytes]] = []
        self.longest_s = 0.0
        self._asked = 0

    async def ask(self, requests: int, clients: int = CLIENTS) -> None:
        """So many requests, by so many clients at once."""
        until = self._asked + requests
        await asyncio.gather(*(self._work(until, number) for number in range(clients)))

    async def _work(self, until: int, number: int) -> None:
        client = await RawClient.connect_url(self.stage.app.url)
        key = [("authorization", f"Bearer {self.tokens[number % len(self.tokens)]}")]
        while self._asked < until:
            self._asked += 1
            began = time.monotonic()
            response = await client.start("POST", CHAT, key, chat(str(self._asked), max_tokens=20))
            await wait_until(lambda: response.ended or response.truncated, "an answer", LONG_S)  # noqa: B023
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if response.status == 200 and response.ended:
                self.ids.append(response.header("x-sameflight-request-id") or "")
            else:
                self.failed.append((response.status, response.body))
        await client.close()


async def ids_in(url: str) -> Counter[str]:
    connection = await asyncpg.connect(url)
    try:
        return Counter(row[0] for row in await connection.fetch("SELECT request_id FROM usage"))
    finally:
        await connection.close()


async def outlast(
    server: PostgresServer,
    requests: int,
    away: Callable[[], Any],
    back: Callable[[], Awaitable[None]],
) -> None:
    """Load before, during and after an outage; see what arrived."""
    clock, url = ShiftedClock(), server.create_database()
    env = {"SAMEFLIGHT_DATABASE_URL": url, "OPENAI_API_KEY": "sk-ours"}
    options = {"auth": "required", "shed_after_ms": 0, "budget_when_store_down": "allow", "budget_lease_s": 30}
    async with Stage(clock=clock, env=env, **options) as stage:
        stage.upstream.respond_with(lambda call: call.answer_json(completion()))
        issuer, vault = stage.app.vault.issuer, stage.app.vault
        keys = [await issuer.create({"name": "plain"}), await issuer.create({"name": "rich", "budget": "1000/total"})]
        crowd = Crowd(stage, [key.token for key in keys])
        await crowd.ask(requests // 10)
        away()
        while vault.ring.levels.up:  # until it is noticed; answers that do not come are waited for in real time
            await crowd.ask(CLIENTS)
        for step in range(STEPS):
            clock.ahead_s += ONE_STEP_S
            vault.feed.tick()
            if requests >= STEPS or step % 10 == 0:
                await crowd.ask(max(CLIENTS // 2, requests * 8 // 10 // STEPS), CLIENTS // 2)
        unknown = await (await stage.ask(key=mint().decode())).read_end()
        waiting = vault.spool.pending_records
        await back()
        await crowd.ask(requests // 10)
        await stage.settled()
        await wait_until(
            lambda: vault.ledger.is_empty and all(purse.pot.is_told for purse in vault.leases._purses.values()),
            "everything arrived and the budget has heard",
            LONG_S,
        )
        there = await ids_in(url)
        price = 5 * 150_000 + 7 * 600_000
        [spent] = {purse.pot.spent for purse in vault.leases._purses.values()}
        print(f"\n{len(crowd.ids)} answered, {waiting} waited for the database, longest {crowd.longest_s:.2f} s,"
              f" {vault.leases.unchecked} unchecked, flush errors {vault.ledger.errors}")  # fmt: skip
        await stage.at_rest()

        assert crowd.failed == []
        assert (unknown.status, unknown.json()["error"]["code"]) == (503, "auth_unavailable")
        assert waiting > requests // 2
        assert vault.spool.dropped == 0
        assert [each for each in crowd.ids if there[each] != 1] == []
        assert len(there) == len(crowd.ids)
        rich = list(await _costs(url, keys[1].record.id))
        assert spent == sum(rich) == len(rich) * price
        assert crowd.longest_s < 10.0  # nobody waited for the database; a busy machine is not what is tested


async def _costs(url: str, key_id: str) -> list[int]:
    connection = await asyncpg.connect(url)
    try:
        return [
            row[0] for row in await connection.fetch("SELECT cost_picodollars FROM usage WHERE key_id = $1", key_id)
        ]
    finally:
        await connection.close()


@pytest.mark.long
async def test_a_database_that_is_away_for_ten_minutes_is_noticed_by_nobody(private_postgres: PostgresServer) -> None:
    """It crashed; two keys, one of them under a budget."""

    async def back() -> None:
        await asyncio.to_thread(private_postgres.start)

    await outlast(private_postgres, 300, private_postgres.stop, back)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["hang", "crash", "shutdown", "kill"])
async def test_five_thousand_requests_in_ten_minutes_without_a_database_lose_nothing(
    private_postgres: PostgresServer, how: str
) -> None:
    """However it goes, and it comes back with all that it had."""
    numbers = {"crash": signal.SIGQUIT, "shutdown": signal.SIGINT, "kill": signal.SIGKILL}

    def away() -> None:
        if how == "hang":
            private_postgres.suspend()
        else:
            private_postgres.stop(numbers[how])

    async def back() -> None:
        if how == "hang":
            private_postgres.resume()
        else:
            await asyncio.to_thread(private_postgres.start)

    await outlast(private_postgres, 5_000, away, back)
