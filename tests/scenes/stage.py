"""The stage of a scene: one whole proxy on the loopback interface between raw clients and a scripted upstream.

Everything is real but the vendor: sockets, parsers, the event loop. A scene meets at gates and counters; where time
itself is the matter, it builds the stage on a `FrozenClock` and moves that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import BytesIO
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import urlsplit

from proxy.app import App
from proxy.clock import Clock
from proxy.config.settings import SETTINGS, Settings, load_settings
from proxy.telemetry.log import Logging, configure_logging
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.gates import wait_until
from tests.fakes.upstream import ScriptedUpstream, make_event

Header = tuple[str, str]

KEY = "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa"
OTHER_KEY = "sk-test-bbbbbbbbbbbbbbbbbbbbbbbb"
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


def chat(content: str = "hi", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **fields}


def completion(text: str = "hello", prompt_tokens: int = 5, completion_tokens: int = 7) -> dict[str, Any]:
    """A whole answer in OpenAI's shape."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def delta(text: str) -> dict[str, Any]:
    """One chunk of a streamed answer in OpenAI's shape."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }


def stream_events(*texts: str) -> list[object]:
    """A whole stream in OpenAI's shape, for `Call.answer_sse`."""
    return [*(delta(text) for text in texts), "[DONE]"]


def as_bytes(events: Iterable[object]) -> bytes:
    """What a direct client would read of such a stream."""
    return b"".join(make_event(event) for event in events)


_LEAST_SECRET = 12
"""Shorter ones stand in words by chance."""


def secrets_of(settings: Settings) -> set[str]:
    """The settings that are secret; of URLs the password."""
    values = {str(getattr(settings, row.name)) for row in SETTINGS if row.secret}
    values = {(urlsplit(value).password or "") if "://" in value else value for value in values}
    return {value for value in values if len(value) >= _LEAST_SECRET}


class Stage:
    """One proxy, one upstream, any number of clients. Use as an asynchronous context manager."""

    fast_lane = True
    """Of every stage that is built from now on; see `both_lanes`."""

    def __init__(self, *, clock: Clock | None = None, env: dict[str, str] | None = None, **settings: object) -> None:
        self._settings = settings
        self._clock = clock
        self._env = env or {}
        self.upstream = ScriptedUpstream()
        self.log_output = BytesIO()
        self.clients: list[RawClient] = []
        self.secrets: set[str] = set()
        """What nobody may read in the log or the metrics: credentials of clients, and what is set as a secret."""
        self.app: App
        self._logging: Logging

    async def __aenter__(self) -> Self:
        await self.upstream.start()
        self._state_dir = TemporaryDirectory(prefix="sameflight-stage-")
        flags: dict[str, object] = {
            "state_dir": self._state_dir.name,
            "port": 0,
            "admin_port": 0,
            "openai_upstream": self.upstream.url,
            "anthropic_upstream": self.upstream.url,
            "mistral_upstream": self.upstream.url,
            "key_secret": "a secret for tests",
            "fast_lane": self.fast_lane,
            **self._settings,
        }
        settings = load_settings(self._env, flags).settings
        self.secrets |= secrets_of(settings)
        self._logging = configure_logging(settings.log_level, "json", self.log_output)
        self.app = App(settings, env=self._env, logging=self._logging, clock=self._clock)
        await self.app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.close()
        await self.app.close()
        await self.upstream.close()
        self._logging.close()
        self._state_dir.cleanup()
        self.keeps_secrets()

    def keeps_secrets(self) -> None:
        """No secret is in the log or in the metrics; held against every scene."""
        said = self.log_output.getvalue() + self.app.metrics.render(["text/plain"])[0]
        told = [secret[:4] + "…" for secret in self.secrets if secret.encode("utf-8", "surrogateescape") in said]
        assert told == [], "the log or the metrics tell secrets"

    # -- clients --------------------------------------------------------------------------------------------------

    async def client(self, **options: Any) -> RawClient:
        """A new connection to the proxy, closed with the stage."""
        client = await RawClient.connect_url(self.app.url, **options)
        self.clients.append(client)
        return client

    async def ask(
        self,
        body: object | None = None,
        *,
        path: str = CHAT,
        method: str = "POST",
        headers: Iterable[Header] = (),
        key: str | None = KEY,
        client: RawClient | None = None,
    ) -> RawResponse:
        """Send a request on a connection of its own (or on ``client``) and read nothing yet."""
        client = client or await self.client()
        credential = [("authorization", f"Bearer {key}")] if key is not None else []
        if key is not None and len(key) >= _LEAST_SECRET:
            self.secrets.add(key)
        payload = b"" if body is None and method in ("GET", "DELETE", "HEAD") else chat() if body is None else body
        return await client.start(method, path, [*credential, *headers], payload)

    async def ask_many(self, count: int, body: object | None = None, **options: Any) -> list[RawResponse]:
        """``count`` identical requests, each on its own connection, all of them attached when this returns."""
        before = self.app.table.subscribers
        responses = [await self.ask(body, **options) for _ in range(count)]
        await self.attached(before + count)
        return responses

    # -- meeting points -------------------------------------------------------------------------------------------

    async def attached(self, count: int) -> None:
        """Until so many callers are subscribed to flights."""
        table = self.app.table
        await wait_until(
            lambda: table.subscribers == count, f"{count} callers are attached (now {table.subscribers})"
        )

    async def settled(self) -> None:
        """Until nothing is in the air and every exchange has been accounted."""
        app = self.app
        await wait_until(
            lambda: not app.table.live and not app.server.running and not len(app.runner),
            f"the proxy is at rest (flights {app.table.describe()}, running {app.server.running})",
        )

    async def at_rest(self) -> None:
        """Settled, and nothing is left of what was: the end of every scene."""
        await self.settled()
        table = self.app.table
        left = {
            "keys": len(table),
            "retained_bytes": table.retained_bytes,
            "lingering": table.lingering,
            "subscribers": table.subscribers,
        }
        assert left == dict.fromkeys(left, 0)
        busy = [pool for pool in self.app.transport.describe()["pools"] if pool["busy"] or pool["waiting"]]
        assert busy == []
        assert self.app.metrics.last_bug == ""

    # -- what the proxy said --------------------------------------------------------------------------------------

    def series(self, name: str) -> float:
        """The sum of a series over all its labels, as a scrape would show it; ``name`` without prefix, with labels
        if one child is meant."""
        body, _ = self.app.metrics.render(["text/plain"])
        total = 0.0
        for line in body.decode().splitlines():
            if line.startswith(("sameflight_" + name + " ", "sameflight_" + name + "{")):
                total += float(line.rpartition(" ")[2])
        return total

    async def access_lines(self, count: int) -> list[dict[str, Any]]:
        """The access lines written so far, once there are ``count``."""
        await wait_until(lambda: len(self._lines()) >= count, f"{count} access lines (now {len(self._lines())})")
        return self._lines()

    def _lines(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_output.getvalue().splitlines()]
        return [line for line in lines if line["event"] == "request"]
