"""Send the trace through a real proxy in front of the built-in mock, and read from the store what it cost."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import yaml

from loadtests.savings.trace import Message
from proxy.app import App
from proxy.config.settings import load_settings
from proxy.mock import MockOptions, MockUpstream
from proxy.telemetry.log import configure_logging

STRONG: Final = {"input": 2.5, "output": 10.0}
CHEAP: Final = {"input": 0.15, "output": 0.6}
"""Dollars for a million tokens: what a large and a small model of one maker cost in 2026, about 17 to 1."""
POLICIES: Final = ("patterns", "cache_classes", "tiers", "pruning", "slimming")
ANSWER_TOKENS: Final = 120
TOKEN_CAP: Final = 2_500
"""Of a conversation's prompt."""
_AT_ONCE: Final = 24
_TRIES: Final = 8
_EXAMPLES: Final = Path(__file__).parents[2] / "deploy" / "examples"


class Outcome(NamedTuple):
    """What became of the trace. Money in dollars."""

    on: tuple[str, ...]
    """Policies that were on."""
    requests: int
    failed: int
    calls: int
    """Upstream, summaries included."""
    summaries: int
    pattern: int
    """Answered by a rule."""
    hits: int
    joined: int
    cheap: int
    """Answered by the cheap model."""
    strong: int
    tokens: int
    """Of all upstream calls, prompts and answers."""
    most_prompt_tokens: int
    """Of one call."""
    cost_usd: float
    summaries_usd: float
    booked_usd: float
    """Saved, as the usage records say: by sharing and caching, and by policies."""


def make_catalog(upstream: str, on: Sequence[str]) -> dict[str, Any]:
    """Everything is configured; what is not ``on`` is switched off by its flag."""
    starter = yaml.safe_load((_EXAMPLES / "patterns.yaml").read_text("utf-8"))
    return {
        "providers": {"house": {"kind": "compatible", "base_url": upstream, "api_key": "not-a-key"}},
        "models": {"strong": {"targets": ["house/strong"]}, "cheap": {"targets": ["house/cheap"]}},
        "prices": {"strong": STRONG, "cheap": CHEAP},
        "tiers": {
            "auto": {
                "tiers": {"simple": "cheap", "complex": "strong"},
                "baseline": "strong",
                "newcomers": {"messages": 1},
                # A long talk at this shop is no harder than a short one, and looking up stock needs no thought.
                "score": {"points": {"depth": 5, "context": 5, "calls": 10}},
            }
        },
        "patterns": starter["patterns"],
        "cache_classes": {"use": "default"},
        "pruning": {"messages": 20, "tokens": TOKEN_CAP, "block": 10, "summary": "cheap"},
        "slimming": {"squeeze": True, "drop": [{"begin": "<example>", "end": "</example>"}]},
        "flags": {name: "on" if name in on else "off" for name in POLICIES},
    }


async def replay(trace: Sequence[Message], on: Sequence[str]) -> Outcome:
    """The whole trace, in its order, some requests at a time; turns of a conversation one after the other."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sameflight-savings-")))
        mock = await stack.enter_async_context(MockUpstream(MockOptions(tokens=ANSWER_TOKENS, repeatable=True)))
        app = await _start(stack, folder, mock.url, on)
        client = await stack.enter_async_context(aiohttp.ClientSession())
        failed = await _send_all(client, app.url, trace)
        app.books.post()
        async with asyncio.timeout(60):
            while app.server.running or not app.vault.ledger.is_empty or app.vault.spool.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return _read(folder / "state", tuple(on), len(trace), failed)


async def _start(stack: AsyncExitStack, folder: Path, upstream: str, on: Sequence[str]) -> App:
    catalog = folder / "catalog.yaml"
    catalog.write_text(yaml.safe_dump(make_catalog(upstream, on), sort_keys=False, allow_unicode=True), "utf-8")
    logging = configure_logging("error", "json", stack.enter_context((folder / "log").open("wb")))
    stack.callback(logging.close)
    flags: dict[str, object] = {
        "port": 0, "admin_port": 0, "state_dir": str(folder / "state"), "config": str(catalog),
        "openai_upstream": upstream, "auth": "passthrough", "memory_limit_bytes": 8 << 30,
    }  # fmt: skip
    app = App(load_settings({"OPENAI_API_KEY": "not-a-key"}, flags).settings, env={}, logging=logging)
    stack.push_async_callback(app.close)
    await app.start()
    return app


async def _send_all(client: aiohttp.ClientSession, url: str, trace: Sequence[Message]) -> int:
    turns: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
    room, failed = asyncio.Semaphore(_AT_ONCE), 0

    async def send(message: Message) -> None:
        nonlocal failed
        async with room:
            if not await _ask(client, url, message):
                failed += 1

    async def send_turn(message: Message) -> None:
        async with turns[message.thread]:
            await send(message)

    running: set[asyncio.Task[None]] = set()
    for message in trace:
        task = asyncio.ensure_future(send(message) if message.thread < 0 else send_turn(message))
        running.add(task)
        if len(running) >= 4 * _AT_ONCE:
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*running)
    return failed


async def _ask(client: aiohttp.ClientSession, url: str, message: Message) -> bool:
    body: dict[str, Any] = {"model": "auto", "messages": message.messages, "user": message.user, "temperature": 0}
    if message.kind in ("repeat", "small_talk"):
        del body["user"]  # what everybody asks is asked on nobody's behalf
    if message.tools:
        body["tools"] = message.tools
    headers = {"authorization": "Bearer placeholder"}
    for _ in range(_TRIES):
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
            if response.status != 503:
                return response.status == 200
            wait_s = float(response.headers.get("retry-after", "1"))
        await asyncio.sleep(wait_s)  # the machine has others to serve as well
    return False


def _read(state: Path, on: tuple[str, ...], requests: int, failed: int) -> Outcome:
    (path,) = state.glob("*.db")
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM usage")]
    asked = [row for row in rows if not _is_summary(row)]
    summaries = [row for row in rows if _is_summary(row)]
    called = [row for row in rows if row["upstream_picodollars"] or row["role"] in ("leader", "alone", "refresh")]
    dollars = 1e-12
    return Outcome(
        on=on,
        requests=requests,
        failed=failed,
        calls=len(called),
        summaries=len([row for row in summaries if row in called]),
        pattern=_count(asked, "pattern"),
        hits=_count(asked, "hit"),
        joined=_count(asked, "follower"),
        cheap=sum(row["model"] == "cheap" for row in asked if row["role"] in ("leader", "alone")),
        strong=sum(row["model"] != "cheap" for row in asked if row["role"] in ("leader", "alone")),
        tokens=sum(row["upstream_tokens"] for row in rows),
        most_prompt_tokens=max((row["input_tokens"] for row in asked), default=0),
        cost_usd=sum(row["upstream_picodollars"] for row in rows) * dollars,
        summaries_usd=sum(row["upstream_picodollars"] for row in summaries) * dollars,
        booked_usd=sum(row["saved_picodollars"] + row["policy_saved_picodollars"] for row in rows) * dollars,
    )


def _is_summary(row: dict[str, Any]) -> bool:
    """A call of the proxy's own is booked as a loss of its whole cost."""
    return bool(0 < row["upstream_picodollars"] == -row["policy_saved_picodollars"])


def _count(rows: Sequence[dict[str, Any]], role: str) -> int:
    return sum(row["role"] == role for row in rows)
