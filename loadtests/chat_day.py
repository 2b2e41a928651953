"""A day of chat in seconds: a real proxy in front of the built-in mock, with patterns, caches and tiers, whose wall
clock is set from hour to hour. What is in the store afterwards came through the proxy, request by request.

    async with ChatDay(seed=1) as day:
        await day.live()
        day.app.admin_url
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml

from proxy.app import App
from proxy.clock import Clock
from proxy.config.settings import load_settings
from proxy.mock import MockOptions, MockUpstream
from proxy.telemetry.log import Logging, configure_logging

TOKEN: Final = "an-admin-token-for-a-day"
_HOUR_S: Final = 3_600.0
_DAY_S: Final = 86_400.0
_GREETINGS: Final = ("good morning", "hello", "thanks!", "hi", "ok", "Hallo", "merci")
_EASY: Final = ("What time does the shop open on day {}?", "Translate 'bread {}' into French.", "Where is order {}?")
_HARD: Final = (
    "Analyse the goal of project {}, compare both plans and say why one is better, step by step.",
    "Why does this pattern fail for case {}? Explain the reasoning and prove it.",
)
_REPEATED: Final = tuple(f"What is our return policy, part {number}?" for number in range(6))
_NAMES: Final = ("web shop", "support desk", "mobile app", "night jobs")


class DayClock(Clock):
    """The system's clock with its wall time moved."""

    # Mutable state: `shift_s`, set by whoever has the day go on.
    __slots__ = ("shift_s",)

    def __init__(self) -> None:
        self.shift_s = 0.0

    def wall(self) -> float:
        return time.time() + self.shift_s


def make_catalog(upstream: str) -> dict[str, Any]:
    """Two models behind one name, a cache, rules for greetings, and a model that is broken."""
    provider = {"kind": "compatible", "base_url": upstream, "api_key": "not-a-key"}
    answers = {"phrases": [each.strip("!") for each in _GREETINGS], "answers": ["Good to hear from you."]}
    return {
        "providers": {"house": provider, "annex": provider},
        "models": {
            "small": {"targets": ["house/small"]},
            "large": {"targets": ["annex/large"]},
            "legacy": {"targets": ["annex/legacy?fault=500"], "attempts": 1},
        },
        "prices": {
            "small": {"input": 0.5, "output": 2.0},
            "large": {"input": 5.0, "output": 25.0},
            "legacy?fault=500": {"input": 1.0, "output": 1.0},
        },
        "routes": {"chat.completions": {"cache": {"ttl_s": 3600}}},
        "patterns": {"time_zone": "UTC", "rules": {"greetings": {**answers, "first_turn": False}}},
        "tiers": {"auto": {"tiers": {"simple": "small", "complex": "large"}, "baseline": "large"}},
        "flags": {"tiers": {"tenants": {"acme": "on"}}},
    }


class ChatDay:
    """Use as an asynchronous context manager."""

    # Mutable state: everything that is made when it is entered; `requests` counts.
    def __init__(self, *, seed: int = 1, scale: float = 1.0, token: str = TOKEN, **settings: object) -> None:
        """``scale`` 1 is some three thousand requests."""
        self._random = random.Random(seed)
        self._scale = scale
        self._settings = {"admin_token": token, **settings}
        self._stack = AsyncExitStack()
        self.clock = DayClock()
        self.requests = 0
        self.keys: list[str] = []
        self.app: App
        self._client: aiohttp.ClientSession
        self._logging: Logging

    async def __aenter__(self) -> Self:
        stack = self._stack
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sameflight-day-")))
        options = MockOptions(latency_ms=15.0, tokens=60, repeatable=True)
        mock = await stack.enter_async_context(MockUpstream(options))
        catalog = folder / "catalog.yaml"
        catalog.write_text(yaml.safe_dump(make_catalog(mock.url), sort_keys=False), "utf-8")
        output = stack.enter_context((folder / "log").open("wb"))
        self._logging = configure_logging("error", "json", output)
        stack.callback(self._logging.close)
        flags = {
            "port": 0, "admin_port": 0, "state_dir": str(folder / "state"), "config": str(catalog),
            "openai_upstream": mock.url, "anthropic_upstream": mock.url, "mistral_upstream": mock.url,
            "auth": "required", "key_pepper": "a-pepper-for-a-day", **self._settings,
        }  # fmt: skip
        loaded = load_settings({"OPENAI_API_KEY": "not-a-key"}, flags)
        self.app = App(loaded.settings, env={}, logging=self._logging, clock=self.clock)
        stack.push_async_callback(self.app.close)
        await self.app.start()
        self.clock.shift_s = -8 * _DAY_S
        for name in _NAMES:
            issued = await self.app.vault.issuer.create({"name": name, "tenant": "acme"})
            self.keys.append(issued.token)
        self._client = await stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()

    async def live(self) -> None:
        """A week ago, yesterday, and the last day hour by hour; then until all of it is in the store."""
        for days_ago, share in ((7, 0.7), (6, 0.2), (2, 0.2), (1, 0.9)):
            for hours_ago in range(0, 20, 4):
                await self._hour(-days_ago * _DAY_S - hours_ago * _HOUR_S, 4 * share)
        for hours_ago in range(23, -1, -1):
            await self._hour(-hours_ago * _HOUR_S, 1.0)
        self.clock.shift_s = 0.0
        await self.written()

    async def written(self) -> None:
        """Until every request is in the store."""
        vault = self.app.vault
        self.app.books.post()
        async with asyncio.timeout(30):
            while self.app.server.running or not vault.ledger.is_empty or vault.spool.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _hour(self, shift_s: float, share: float) -> None:
        self.clock.shift_s = shift_s
        hour = (self.clock.wall() % _DAY_S) / _HOUR_S
        busy = 0.35 + 0.65 * math.sin(math.pi * min(1.0, max(0.0, (hour - 5) / 17))) ** 2
        count = max(1, round(60 * self._scale * share * busy))
        await asyncio.gather(*(self.ask(self._draw()) for _ in range(count)))
        for _ in range(max(1, count // 20)):
            question = self._draw(burst=True)
            await asyncio.gather(*(self.ask(question) for _ in range(4)))

    def _draw(self, *, burst: bool = False) -> tuple[str, str]:
        """A model and a question; of a burst nothing that a rule would answer."""
        draw = self._random
        chance = 0.4 + 0.6 * draw.random() if burst else draw.random()
        number = draw.randrange(100_000)
        if chance < 0.2:
            return "auto", draw.choice(_GREETINGS)
        if chance < 0.36:
            return "auto", draw.choice(_REPEATED)
        if chance < 0.88:
            return "auto", draw.choice(_EASY).format(number)
        if chance < 0.895:
            return "legacy", f"Is anybody there? {number}"
        return "auto", draw.choice(_HARD).format(number)

    async def ask(self, question: tuple[str, str], key: str = "") -> None:
        """One request: a model and what is said to it. By which key follows from what is said, unless it is given."""
        model, text = question
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        key = key or self.keys[hash_of(text) % len(self.keys)]
        self.requests += 1
        async with self._client.post(
            f"{self.app.url}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {key}", "x-sameflight-cache": "on"},
        ) as response:
            await response.read()


def hash_of(text: str) -> int:
    """The same in every process."""
    return sum(map(ord, text))
