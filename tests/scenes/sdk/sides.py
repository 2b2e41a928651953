"""Two equal upstreams, one asked directly and one through the proxy, and the means to run a program against both.

Everything serves from a thread with a loop of its own, so that blocking clients can be asked as well. The upstreams
count their calls from one and name things after that count and the request's bytes: if the proxy changes nothing,
even ids and rate limits are equal on both sides, and so are the hashes of the bodies that arrived.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from hashlib import sha256
from io import BytesIO
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self, TypeVar

from proxy.app import App
from proxy.config.settings import load_settings
from proxy.mock import MockUpstream
from proxy.telemetry.log import configure_logging
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until

T = TypeVar("T")

LIMIT_S = 30.0

_WHEN = frozenset(("created", "created_at", "completed_at"))
_WHEN_AS_TEXT = re.compile(rf'"({"|".join(sorted(_WHEN))})":[0-9]+')

OF_THE_CONNECTION = frozenset(("connection", "date"))
DROPPED = frozenset(("alt-svc", "server", "set-cookie", "via"))
"""What the vendors' edges say about themselves, which the proxy does not repeat. Cookies stay where one client alone
gets the answer."""
ADDED = frozenset(("cache-status", "server-timing", "x-response-time", "x-sameflight-request-id"))
OF_STREAMS = frozenset(("cache-control", "content-length", "transfer-encoding", "x-accel-buffering"))
"""Streams are marked for the proxies behind this one, and one that came at once is not cut into chunks again."""


class Side(NamedTuple):
    """Where a client points, and the upstream that gets its calls in the end."""

    name: str
    url: str
    """Without a path."""
    mock: MockUpstream

    @property
    def counts(self) -> dict[str, int]:
        """Calls by the hash of their body."""
        return dict(self.mock.calls_by_key)

    @property
    def repetitions(self) -> list[int]:
        """Calls for each body, whatever its bytes: the boundary of an upload is drawn anew each time."""
        return sorted(self.mock.calls_by_key.values())


class Sides:
    """The direct side, the proxied side and the thread that serves both. Use as a context manager."""

    # Mutable state: everything below is written while entering, by the thread's loop, and only read afterwards.
    def __init__(self, *, stands_still: bool = True, **settings: object) -> None:
        """``stands_still`` stops the upstreams' time: their latency passes by `advance` only. ``settings`` are the
        proxy's."""
        self._clock = FrozenClock() if stands_still else None
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sides", daemon=True)
        self.app: App
        self.direct: Side
        self.proxied: Side

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self._stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LIMIT_S)
            self._loop.close()

    def __iter__(self) -> Iterator[Side]:
        return iter((self.direct, self.proxied))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the serving thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def wait(self, predicate: Callable[[], object], what: str) -> None:
        """Wait until ``predicate``, asked in the serving thread, is true."""
        self.run(wait_until(predicate, what))

    def outcomes(self) -> dict[str, int]:
        """How the proxy accounts for the requests so far: outcome to number."""
        found: dict[str, int] = {}
        for line in self.app.metrics.render(["text/plain"])[0].decode().splitlines():
            if line.startswith("sameflight_requests_total{"):
                name = line.partition('outcome="')[2].partition('"')[0]
                found[name] = found.get(name, 0) + int(float(line.rpartition(" ")[2]))
        return found

    def advance(self, seconds: float) -> None:
        """Let time pass at both upstreams."""
        clock = self._clock
        assert clock is not None
        self._loop.call_soon_threadsafe(clock.advance, seconds)

    async def _start(self) -> None:
        plain, behind = (MockUpstream(clock=self._clock) for _ in range(2))
        await plain.start()
        await behind.start()
        self._state_dir = TemporaryDirectory(prefix="sameflight-sides-")
        flags: dict[str, object] = {
            "state_dir": self._state_dir.name,
            "port": 0,
            "admin_port": 0,
            "openai_upstream": behind.url,
            "anthropic_upstream": behind.url,
            "mistral_upstream": f"{behind.url}/mistral",
            "key_secret": "a secret for tests",
            **self._settings,
        }
        settings = load_settings({}, flags).settings
        self._logging = configure_logging(settings.log_level, "json", BytesIO())
        self.app = App(settings, env={}, logging=self._logging)
        await self.app.start()
        self.direct = Side("direct", plain.url, plain)
        self.proxied = Side("proxied", self.app.url, behind)

    async def _stop(self) -> None:
        app = self.app
        if self._clock is not None:
            self._clock.advance(3600)  # what nobody waits for any more comes to its end
        await wait_until(lambda: not app.table.live, f"no flight is left (now {app.table.describe()})", LIMIT_S)
        assert app.metrics.last_bug == ""
        await app.close()
        for side in self:
            await side.mock.close()
        self._logging.close()
        self._state_dir.cleanup()


Program = Callable[[Any], Awaitable[object]]
"""What an application does with a client; returns what it has seen."""


class Outcome(NamedTuple):
    """What came of a program on one side."""

    value: Any
    """What it returned, as plain data."""
    failure: dict[str, Any] | None
    """What it raised, as plain data."""
    calls: dict[str, int]
    """What arrived at the upstream: calls by the hash of their body."""


async def observe(side: Side, program: Callable[[Side], Awaitable[object]]) -> Outcome:
    """Run ``program`` against one side and write down what its author could see."""
    value: object = None
    failure = None
    try:
        value = await program(side)
    except Exception as error:
        failure = describe(error)
    return Outcome(plain(value), failure, side.counts)


async def run_both(sides: Sides, program: Callable[[Side], Awaitable[object]]) -> Outcome:
    """Run ``program`` directly and through the proxy, and insist on the same outcome, which is returned."""
    direct = await observe(sides.direct, program)
    proxied = await observe(sides.proxied, program)
    assert proxied == direct
    return proxied


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as the code that catches it sees it."""
    seen: dict[str, Any] = {"class": f"{type(error).__module__}.{type(error).__qualname__}", "text": str(error)}
    for name in ("status_code", "code", "type", "param", "body", "request_id", "message"):
        if hasattr(error, name):
            seen[name] = plain(getattr(error, name))
    response = getattr(error, "response", None)
    if response is not None:
        seen["headers"] = vendor_headers(response.headers, also=OF_STREAMS)
    return seen


def plain(value: Any) -> Any:
    """Models as dictionaries with their request ids, long bytes as their hash, moments as nothing."""
    if hasattr(value, "model_dump"):
        dumped = value.model_dump(warnings=False)
        request_id = getattr(value, "_request_id", None)
        return {"class": type(value).__name__, "_request_id": request_id, **plain(dumped)}
    if isinstance(value, bytes | bytearray):
        return bytes(value) if len(value) < 64 else (len(value), sha256(value).hexdigest())
    if isinstance(value, Mapping):
        return {key: None if key in _WHEN else plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    return _WHEN_AS_TEXT.sub(r'"\1":null', value) if isinstance(value, str) else value


def vendor_headers(headers: Mapping[str, str], *, also: frozenset[str] = frozenset()) -> dict[str, str]:
    """The headers that have to be equal on both sides."""
    left_out = OF_THE_CONNECTION | DROPPED | ADDED | also
    return {name.lower(): value for name, value in headers.items() if name.lower() not in left_out}


async def resolve(value: Any) -> Any:
    """What some SDKs return at once and others promise."""
    return await value if inspect.isawaitable(value) else value


class Eager:
    """A blocking client that reads like an asynchronous one, so that one program serves both kinds.

    A call is made at once and blocks; its result can be awaited, entered and iterated asynchronously. Method names of
    the asynchronous kind (``complete_async``) are understood.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name.removesuffix("_async"))
        return value if isinstance(value, _PLAIN) else Eager(value)

    def __call__(self, *args: Any, **fields: Any) -> Any:
        return Eager(self._inner(*args, **fields))

    def __await__(self) -> Iterator[Any]:
        yield from ()
        return _wrap(self._inner)

    async def __aenter__(self) -> Any:
        return _wrap(self._inner.__enter__())

    async def __aexit__(self, *raised: Any) -> Any:
        return self._inner.__exit__(*raised)

    async def __aiter__(self) -> Any:
        for item in self._inner:
            yield item


_PLAIN = (str, bytes, int, float, type(None), Mapping, list, tuple)


def _wrap(value: Any) -> Any:
    """Streams, managers and raw responses go on being asked asynchronously; data is data."""
    asked_on = hasattr(value, "__enter__") or hasattr(value, "http_request") or hasattr(value, "read")
    return Eager(value) if asked_on and not isinstance(value, _PLAIN) else value
