"""Money through the whole proxy: what the upstream charges, what the rows say, and what `sameflight usage` tells.

Three sets of books are kept and must agree: the upstream's (every call it answered), the clients' (every answer that
they got) and the store's.
"""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxy.access.issuing import Issued
from proxy.cli.main import make_parser
from proxy.config.keyform import state_of
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import Stage, as_bytes, chat, completion, delta
from tests.scenes.test_uploads_and_downloads import MULTIPART, form
from tests.scenes.test_websockets import CLOSE, TEXT, Caller, SocketUpstream, closing, handshake

PEPPER = "a-pepper-for-the-treasury"
IN_RATE, OUT_RATE = 150_000, 600_000
EVENTS = ("content-type", "text/event-stream")
CACHE_ON = [("x-sameflight-cache", "on")]
COLUMNS = (
    "request_id, key_id, role, outcome, status, input_tokens, output_tokens, upstream_tokens, cost_picodollars,"
    " upstream_picodollars, saved_picodollars"
)
CATALOG = """
routes:
  responses:
    cache: {ttl_s: 60, stale_while_revalidate_s: 60, stale_if_error_s: 600}
"""


class Row(NamedTuple):
    """A usage row."""

    request_id: str
    key_id: str
    role: str
    outcome: str
    status: int
    input_tokens: int
    output_tokens: int
    upstream_tokens: int
    cost_picodollars: int
    upstream_picodollars: int
    saved_picodollars: int


class Treasury:
    """A proxy, three keys of a team that share everything, and the books of the other two sides."""

    def __init__(self, stage: Stage, keys: list[Issued]) -> None:
        self.stage = stage
        self.keys = keys
        self.charged = 0
        """By the upstream, picodollars."""
        self.charged_tokens = 0
        self.calls = 0
        self.got: list[RawResponse] = []
        """Answers that clients read, wholly or in part."""
        self._prompt = 0

    def new_prompt(self) -> str:
        self._prompt += 1
        return f"prompt {self._prompt}"

    async def ask(self, who: int, body: object, **options: Any) -> RawResponse:
        response = await self.stage.ask(body, key=self.keys[who].token, **options)
        self.got.append(response)
        return response

    async def crowd(self, body: object, count: int = 3, **options: Any) -> list[RawResponse]:
        """One request of each key, attached in their order."""
        before = self.stage.app.table.subscribers
        responses = []
        for who in range(count):
            responses.append(await self.ask(who, body, **options))
            await self.stage.attached(before + who + 1)
        return responses

    def usage(self, given: int, made: int) -> dict[str, int]:
        """What the upstream reports, and with that charges."""
        self.charged += given * IN_RATE + made * OUT_RATE
        self.charged_tokens += given + made
        self.calls += 1
        return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}

    async def answer(self, given: int, made: int, *, call: Call | None = None) -> None:
        call = call or await self.stage.upstream.next_call()
        await call.answer_json({**completion("x"), "usage": self.usage(given, made)})

    async def rows(self) -> list[Row]:
        """All rows, once everything has been written."""
        await self.stage.settled()
        vault = self.stage.app.vault
        await wait_until(lambda: vault.ledger.is_empty and not vault.spool.running, "all rows are in the store")
        return read_rows(Path(self.stage.app.settings.state_dir))


def read_rows(state_dir: Path) -> list[Row]:
    [path] = state_dir.glob("*.db")
    plain = sqlite3.connect(path)
    rows = [Row(*each) for each in plain.execute(f"SELECT {COLUMNS} FROM usage")]
    plain.close()
    return rows


async def open_treasury(stage: Stage, charge: str) -> Treasury:
    fields = {"tenant": "acme", "team": "red", "scope": "team", "charge": charge}
    keys = [await stage.app.vault.issuer.create({"name": f"k{number}", **fields}) for number in range(3)]
    assert all(state_of(key.record, stage.app.clock.wall()) == "valid" for key in keys)
    return Treasury(stage, keys)


def treasury_stage(tmp_path: Path, clock: FrozenClock | None = None, **settings: Any) -> Stage:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(CATALOG, "utf-8")
    env = {"SAMEFLIGHT_KEY_PEPPER": PEPPER, "OPENAI_API_KEY": "sk-operator"}
    settings = {"auth": "required", "linger_s": 3.0, "config": str(catalog), **settings}
    return Stage(clock=clock, env=env, **settings)


# -- what happens -------------------------------------------------------------------------------------------------


async def all_read(books: Treasury) -> None:
    """A whole answer for three."""
    responses = await books.crowd(chat(books.new_prompt()))
    await books.answer(101, 53)
    for response in responses:
        await response.read_end()


async def begin_stream(books: Treasury) -> tuple[list[RawResponse], Call]:
    responses = await books.crowd(chat(books.new_prompt(), stream=True))
    call = await books.stage.upstream.next_call()
    await call.send_head(200, [EVENTS], chunked=True)
    await call.send(as_bytes([delta("a")]))
    for response in responses:
        await response.read_until(b'"a"')
    return responses, call


async def end_stream(books: Treasury, responses: list[RawResponse], call: Call, given: int, made: int) -> None:
    usage = {**delta(""), "choices": [], "usage": books.usage(given, made)}
    await call.send(as_bytes([delta("b"), usage, "[DONE]"]))
    await call.end()
    for response in responses:
        await response.read_end()


async def payer_leaves_early(books: Treasury) -> None:
    responses, call = await begin_stream(books)
    await responses.pop(0)._client.close()
    await books.stage.attached(2)
    await end_stream(books, responses, call, 211, 97)


async def followers_leave(books: Treasury) -> None:
    responses, call = await begin_stream(books)
    for left in (2, 1):
        await responses.pop()._client.close()
        await books.stage.attached(left)
    await end_stream(books, responses, call, 307, 89)


async def everybody_leaves_before_the_head(books: Treasury) -> None:
    """The call goes on for the retry that may come, and nobody is there to pay."""
    responses = await books.crowd(chat(books.new_prompt()))
    call = await books.stage.upstream.next_call()
    for left, response in zip((2, 1, 0), responses, strict=True):
        await response._client.close()
        await books.stage.attached(left)
    await books.answer(401, 31, call=call)
    await books.stage.settled()


async def hits(books: Treasury) -> None:
    body = chat(books.new_prompt())
    first = await books.ask(0, body, headers=CACHE_ON)
    await books.answer(503, 71)
    await first.read_end()
    for who in (0, 1, 2):
        again = await (await books.ask(who, body, headers=CACHE_ON)).read_end()
        assert "hit" in (again.header("cache-status") or "")


async def shared_level_hits(books: Treasury) -> None:
    body = chat(books.new_prompt())
    first = await books.ask(0, body, headers=CACHE_ON)
    await books.answer(601, 73)
    await first.read_end()
    await books.stage.settled()
    books.stage.app.hot.purge()
    await (await books.ask(1, body, headers=CACHE_ON)).read_end()


async def refusals(books: Treasury) -> None:
    """No row and no charge."""
    limited = await books.stage.app.vault.issuer.create({"name": "limited", "models": ["gpt-4o*"]})
    refused = await (await books.stage.ask(chat(model="o3"), key=limited.token)).read_end()
    unknown = await (await books.stage.ask(chat(), key="sk-nobody")).read_end()
    broken = await (await books.stage.ask(b"{", key=books.keys[0].token)).read_end()
    assert [refused.status, unknown.status, broken.status] == [403, 401, 400]


async def upstream_errors(books: Treasury) -> None:
    responses = await books.crowd(chat(books.new_prompt()))
    call = await books.stage.upstream.next_call()
    await call.answer_json({"error": {"message": "no"}}, status=500)
    books.calls += 1
    for response in responses:
        assert (await response.read_end()).status == 500


async def uploads(books: Treasury) -> None:
    token = books.keys[0].token
    client = await books.stage.client()
    lines = [("authorization", f"Bearer {token}"), MULTIPART]
    response = await client.start("POST", "/v1/files", lines, form(b"x" * 100_000))
    books.got.append(response)
    await (await books.stage.upstream.next_call()).answer_json({"id": "file-1"})
    books.calls += 1
    await response.read_end()


STORY: list[Callable[[Treasury], Any]] = [
    all_read, payer_leaves_early, followers_leave, everybody_leaves_before_the_head, hits, shared_level_hits,
    refusals, upstream_errors, uploads,
]  # fmt: skip


@pytest.mark.parametrize("charge", ["first", "split", "each"])
async def test_the_books_of_the_store_are_those_of_the_upstream(tmp_path: Path, charge: str) -> None:
    """Whoever leaves, whatever is cached: under `first` and `split` the bills add up to what the upstream charged, to
    the last picodollar; under `each` nobody pays less. What the calls cost stands in the rows once in any case."""
    async with treasury_stage(tmp_path, cache_url="memory://") as stage:
        books = await open_treasury(stage, charge)
        for happens in STORY:
            await happens(books)
        rows = await books.rows()
        billed = sum(row.cost_picodollars for row in rows)
        await stage.at_rest()

        assert sum(row.upstream_picodollars for row in rows) == books.charged
        assert sum(row.upstream_tokens for row in rows) == books.charged_tokens
        if charge == "each":
            assert billed > books.charged
        else:
            assert billed == books.charged
            assert sum(row.input_tokens + row.output_tokens for row in rows) == books.charged_tokens
        told = [response.header("x-sameflight-request-id") for response in books.got if response.status]
        by_id = {row.request_id: row for row in rows}
        assert len(by_id) == len(rows)
        assert [each for each in told if each not in by_id] == []
        # Beside those of the clients at most one for a call that nobody was left to pay.
        assert len(rows) == len(books.got) + Counter(row.role for row in rows)["none"]
        assert {row.key_id for row in rows} <= {key.record.id for key in books.keys}
        assert stage.series("usage_records_total") > 0


@pytest.mark.parametrize("charge", ["first", "split", "each"])
async def test_renewals_and_stand_ins_are_paid_once(
    tmp_path: Path, frozen_clock: FrozenClock, charge: str
) -> None:
    """A renewal behind a stale answer is on nobody's bill but in the sum; a stale answer in place of an error costs
    nothing."""
    body = {"model": "gpt-4o-mini", "input": "x", "store": False}

    def answer_of(books: Treasury, given: int, made: int) -> dict[str, Any]:
        books.usage(given, made)
        usage = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        return {"id": "r", "object": "response", "status": "completed", "output": [], "usage": usage}

    async with treasury_stage(tmp_path, frozen_clock) as stage:
        books = await open_treasury(stage, charge)
        first = await books.ask(0, body, path="/v1/responses")
        await (await stage.upstream.next_call()).answer_json(answer_of(books, 1009, 503))
        await first.read_end()
        frozen_clock.advance(90)
        stale = await (await books.ask(1, body, path="/v1/responses")).read_end()
        await (await stage.upstream.next_call()).answer_json(answer_of(books, 1013, 509))
        await stage.settled()
        frozen_clock.advance(300)
        masked = await books.ask(2, body, path="/v1/responses")
        await (await stage.upstream.next_call()).answer_json({"error": {"message": "down"}}, status=500)
        await masked.read_end()
        rows = await books.rows()
        await stage.at_rest()

        assert "stale-while-revalidate" in (stale.header("cache-status") or "")
        assert (masked.status, "stale-if-error" in (masked.header("cache-status") or "")) == (200, True)
        assert Counter(row.role for row in rows)["refresh"] == 1
        assert sum(row.upstream_picodollars for row in rows) == books.charged
        if charge != "each":
            assert sum(row.cost_picodollars for row in rows) == books.charged
        assert len(rows) == 4


async def test_a_websocket_has_its_row_and_it_is_closed(tmp_path: Path) -> None:
    """One that ended, one that the upstream refused, one whose client just went away."""
    upstream = SocketUpstream()
    await upstream.start()
    async with treasury_stage(tmp_path, openai_upstream=upstream.url) as stage:
        books = await open_treasury(stage, "first")
        ids = []
        for ending in ("farewell", "refused", "gone"):
            client: RawClient = await stage.client()
            response = client.expect("GET")
            lines = [("authorization", f"Bearer {books.keys[0].token}")]
            await client.send(handshake(client, "/v1/realtime?model=gpt-4o-realtime", lines))
            peer = await upstream.next_peer()
            if ending == "refused":
                peer.transport.write(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n")
                await response.read_head()
            else:
                peer.accept()
                await response.read_head()
                caller = Caller(client, response)
                await caller.send(TEXT, b"hello")
                await peer.next_frame()
                if ending == "farewell":
                    await caller.send(CLOSE, closing(1000))
                    await peer.next_frame()
                    peer.send(CLOSE, closing(1000))
            await client.close()
            peer.transport.close()
            ids.append(response.header("x-sameflight-request-id"))
        await wait_until(lambda: stage.app.vault.spool.running == 0, "all records are closed")
        rows = {row.request_id: row for row in await books.rows()}

        assert list(rows) == ids or set(rows) == set(ids)
        assert {row.status for row in rows.values()} == {101, 403}
        assert all(row.cost_picodollars == 0 for row in rows.values())
        assert all(row.outcome for row in rows.values())
        await stage.at_rest()
    await upstream.close()


async def test_the_usage_command_tells_what_the_clients_know(tmp_path: Path) -> None:
    """Requests, calls, tokens and cost of each key, out of the store, against the clients' own log."""
    async with treasury_stage(tmp_path, cache_url="memory://") as stage:
        books = await open_treasury(stage, "first")
        expected: dict[str, Counter[str]] = {key.record.id: Counter() for key in books.keys}
        for number in range(40):
            who, given, made = number % 3, 11 + number, 7 + 2 * number
            response = await books.ask(who, chat(books.new_prompt()))
            await books.answer(given, made)
            seen = (await response.read_end()).json()["usage"]
            cost = seen["prompt_tokens"] * IN_RATE + seen["completion_tokens"] * OUT_RATE
            expected[books.keys[who].record.id].update(
                requests=1, calls=1, input_tokens=given, output_tokens=made, cost_picodollars=cost
            )
        await all_read(books)
        for who, key in enumerate(books.keys):
            expected[key.record.id].update(requests=1, saved_calls=int(who > 0))
        expected[books.keys[0].record.id].update(
            calls=1, input_tokens=101, output_tokens=53, cost_picodollars=101 * IN_RATE + 53 * OUT_RATE
        )
        await books.rows()
        arguments = make_parser("usage").parse_args(["usage", "--by", "key", "--last", "1d", "--format", "json"])
        env = {"SAMEFLIGHT_STATE_DIR": str(stage.app.settings.state_dir)}
        out, err = io.StringIO(), io.StringIO()
        code = await asyncio.to_thread(lambda: arguments.run(arguments, out, err, env))
        report = json.loads(out.getvalue())

        assert (code, err.getvalue()) == (0, "")
        lines = {line["label"]: line for line in report["lines"]}
        told = {
            label: {name: lines[label][name] for name in numbers if name != "cost_picodollars"}
            for label, numbers in expected.items()
        }
        wanted = {
            label: {name: count for name, count in numbers.items() if name != "cost_picodollars"}
            for label, numbers in expected.items()
        }
        assert told == wanted
        for label, numbers in expected.items():
            assert lines[label]["cost_usd"] == pytest.approx(numbers["cost_picodollars"] / 1e12)
        await run_ticks()
        await stage.at_rest()
