"""A proxy in a process of its own that is killed again and again under load, and what its clients know of it.

The client's log is the truth: an answer that was read to its end is one row with its price, whatever died meanwhile.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from proxy.access.token import Digester, mint
from proxy.config.keys import Budget, KeyRecord
from proxy.store.open import open_store
from tests.fakes.client import RawClient
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.scenes.stage import CHAT, chat, completion, delta
from tests.scenes.test_process import START_LIMIT_S, Serve

PEPPER = "a-pepper-for-the-killing-field"
KEY_ID = "key_00000000000000cc"
BUDGET = Budget(10**15, "total")
IN_RATE, OUT_RATE = 150_000, 600_000
"""Picodollars a token, of gpt-4o-mini."""
COLUMNS = "request_id, key_id, role, outcome, status, cost_picodollars, upstream_picodollars"
LONG_S = 60.0


class Row(NamedTuple):
    """What the store has of a request."""

    request_id: str
    key_id: str
    role: str
    outcome: str
    status: int
    cost_picodollars: int
    upstream_picodollars: int


def price_of(number: int) -> tuple[int, int]:
    """Tokens in and out of the answer to request ``number``: sums tell which ones are in them."""
    return 3 + number % 997, 5 + number % 1009


def cost_of(number: int) -> int:
    given, made = price_of(number)
    return given * IN_RATE + made * OUT_RATE


async def charge(call: Call) -> None:
    """The upstream: whole or streamed, each request at its own price."""
    body = call.json()
    given, made = price_of(int(body["messages"][0]["content"]))
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    with suppress(AssertionError):  # the proxy may be dead by now
        if body.get("stream"):
            await call.answer_sse([delta("a"), {**delta(""), "choices": [], "usage": usage}, "[DONE]"])
        else:
            await call.answer_json(completion(prompt_tokens=given, completion_tokens=made))


class Field:
    """One state directory, one database, one key; any number of proxies after each other."""

    def __init__(self, directory: Path, upstream: ScriptedUpstream, database_url: str) -> None:
        self.directory = directory
        self.upstream = upstream
        self.database_url = database_url
        self.state_dir = directory / ".sameflight"
        self.token = mint().decode()
        self.serve: Serve | None = None
        self.errors = ""
        self.asked = 0
        """Requests that were sent, and the number of the next."""
        self.finished: dict[str, int] = {}
        """Request id → number, of answers that were read to their end."""
        self.refused: Counter[int] = Counter()
        self.refused_ids: list[str] = []
        self.broken = 0
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False

    # -- the proxy --------------------------------------------------------------------------------------------

    async def add_key(self) -> None:
        self.state_dir.mkdir(exist_ok=True)
        store = open_store(self.database_url, self.state_dir)
        await store.open()
        digest = Digester(PEPPER.encode()).digest(self.token.encode())
        await store.add_key(KeyRecord(id=KEY_ID, digest=digest, name="killed", budget=BUDGET))
        await store.close()

    async def start(self, **env: str) -> Serve:
        env = {
            "SAMEFLIGHT_AUTH": "required",
            "SAMEFLIGHT_KEY_PEPPER": PEPPER,
            "OPENAI_API_KEY": "sk-of-the-operator",
            "SAMEFLIGHT_SHED_AFTER_MS": "0",  # a busy machine is not what is tested
            **({"SAMEFLIGHT_DATABASE_URL": self.database_url} if self.database_url else {}),
            **env,
        }
        self.serve = await Serve(self.directory, self.upstream, **env).__aenter__()
        return self.serve

    async def kill(self) -> None:
        serve, self.serve = self.serve, None
        assert serve is not None
        serve.send(signal.SIGKILL)
        await serve.__aexit__()
        self.errors += serve.errors

    async def stop(self) -> int:
        """End it politely."""
        serve, self.serve = self.serve, None
        assert serve is not None
        code = await serve.stop()
        await serve.__aexit__()
        self.errors += serve.errors
        return code

    # -- clients ----------------------------------------------------------------------------------------------

    def load(self, clients: int) -> None:
        """So many clients ask one request after the other, through whatever proxy there is."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(clients)]

    async def unload(self) -> None:
        """No new requests; what runs is finished."""
        self._stopping = True
        await asyncio.gather(*self._workers)
        self._workers = []

    async def _work(self) -> None:
        client: RawClient | None = None
        url = ""
        while not self._stopping:
            serve = self.serve
            if serve is None:
                await _turn()
                continue
            if client is None or client.peer_ended or url != serve.url:
                if client is not None:
                    await client.close()
                client, url = None, serve.url
                try:
                    client = await RawClient.connect_url(url)
                except OSError:
                    await _turn()
                    continue
            await self._ask(client)
        if client is not None:
            await client.close()

    async def _ask(self, client: RawClient) -> None:
        self.asked += 1
        number = self.asked
        body = chat(str(number), max_tokens=1010)
        if number % 3 == 0:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        response = await client.start("POST", CHAT, [("authorization", f"Bearer {self.token}")], body)
        await wait_until(lambda: response.ended or response.truncated, "an answer ended", LONG_S)
        request_id = response.header("x-sameflight-request-id") or ""
        if not response.ended:
            self.broken += 1
        elif response.status == 200:
            assert request_id not in self.finished
            self.finished[request_id] = number
        else:
            self.refused[response.status] += 1
            self.refused_ids.append(request_id)

    async def answered(self, count: int) -> None:
        """Until so many answers more were read to their end."""
        goal = len(self.finished) + count
        await wait_until(lambda: len(self.finished) >= goal or self._failed, f"{goal} answers", LONG_S)
        if self._failed:
            await asyncio.gather(*self._workers)

    @property
    def _failed(self) -> bool:
        return any(worker.done() for worker in self._workers)

    # -- afterwards -------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Until all spools of dead proxies were inherited and buried, then stop the last one."""
        spool = self.state_dir / "spool"
        await wait_until(
            lambda: sum(each.is_dir() for each in spool.iterdir()) <= 1,
            f"the spools of the dead are moved ({[each.name for each in spool.iterdir()]})",
            LONG_S,
        )
        assert await self.stop() == 0
        left = [each.name for each in spool.rglob("*") if each.is_file()]
        assert left == [], "everything is in the store"

    async def rows(self) -> list[Row]:
        """All usage rows, straight from the database."""
        if self.database_url:
            connection = await asyncpg.connect(self.database_url)
            try:
                found = await connection.fetch(f"SELECT {COLUMNS} FROM usage")
            finally:
                await connection.close()
            return [Row(*each) for each in found]
        [path] = self.state_dir.glob("*.db")
        with sqlite3.connect(path) as plain:
            rows = [Row(*each) for each in plain.execute(f"SELECT {COLUMNS} FROM usage")]
        plain.close()
        return rows

    async def spent(self) -> tuple[int, int]:
        """(spent, leased) by the books of the budget."""
        store = open_store(self.database_url, self.state_dir)
        await store.open()
        try:
            return await store.spent(f"key:{KEY_ID}", BUDGET)
        finally:
            await store.close()

    async def audit(self) -> dict[str, Any]:
        """Hold the store against the clients' log; some figures for people."""
        rows = await self.rows()
        by_id = {row.request_id: row for row in rows}
        ids = list(self.finished)
        assert len(by_id) == len(rows), "a request has two rows"
        missing = [each for each in ids if each not in by_id]
        assert missing == [], f"{len(missing)} of {len(ids)} answers have no row"
        assert [each for each in self.refused_ids if each in by_id] == [], "a refused request was charged"
        wrong = [
            (each, by_id[each]) for each, number in self.finished.items()
            if (by_id[each].outcome, by_id[each].cost_picodollars) != ("ok", cost_of(number))
        ]  # fmt: skip
        assert wrong == []
        charged = sum(cost_of(number) for number in self.finished.values())
        assert sum(by_id[each].cost_picodollars for each in ids) == charged
        assert sum(by_id[each].upstream_picodollars for each in ids) == charged
        assert len(rows) <= self.asked - sum(self.refused.values()), "more rows than requests"
        others = Counter(row.outcome for row in rows if row.request_id not in self.finished)
        assert {row.key_id for row in rows} == {KEY_ID}
        books, billed = await self.spent(), sum(row.cost_picodollars for row in rows)
        assert books == (billed, 0), f"the budget says {books}, the rows {billed}"
        assert self.errors == "", self.errors
        return {
            "asked": self.asked, "finished": len(ids), "broken": self.broken, "refused": dict(self.refused),
            "rows": len(rows), "other rows": dict(others),
        }  # fmt: skip


async def _turn() -> None:
    """Let others run, sockets included."""
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    timer = loop.call_later(0.001, turn.set_result, None)
    try:
        await turn
    finally:
        timer.cancel()


async def in_thread(blocking: Any) -> None:
    """Something that blocks, while the load goes on."""
    await asyncio.to_thread(blocking)


@asynccontextmanager
async def killing_field(directory: Path, database_url: str) -> AsyncIterator[Field]:
    """A field with a key and an upstream; nothing runs when it is left."""
    upstream = ScriptedUpstream()
    await upstream.start()
    upstream.respond_with(charge)
    field = Field(directory, upstream, database_url)
    await field.add_key()
    try:
        yield field
    finally:
        field._stopping = True
        for worker in field._workers:
            worker.cancel()
        await asyncio.gather(*field._workers, return_exceptions=True)
        if field.serve is not None:
            await field.kill()
        upstream.failures.clear()  # requests that a killed proxy did not finish
        await upstream.close()
        await run_ticks()


__all__ = ["START_LIMIT_S", "Awaitable", "Field", "Row", "in_thread", "killing_field"]
