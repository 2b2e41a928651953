"""The providers' own lists of models: fetched when asked for, kept, renewed behind answers, outlived when upstreams
fail. One fetch of a provider's list runs at a time, whoever waits for it."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final, NamedTuple

from proxy import __version__
from proxy.clock import Clock
from proxy.config.catalog import Provider
from proxy.errors import Kind, ProxyError
from proxy.protocol.message import HeaderList
from proxy.protocol.model_list import MAX_ENTRIES, MOST_PAGE_ENTRIES, ModelEntry, read_page
from proxy.providers.base import ANTHROPIC_VERSION
from proxy.providers.kinds import make_providers
from proxy.upstream import faults
from proxy.upstream.base import Origin, Patience, UpstreamRequest
from proxy.upstream.fetch import Asks, fetch

MAX_LIST_BYTES: Final = 4 * 1024 * 1024
"""Of one provider's list, all its pages together."""
MAX_PAGES: Final = 32
MAX_HELD: Final = 1000
MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""Over all lists; those not asked for lately go first."""
FETCH_S: Final = 15.0
"""The whole of one fetch."""
FETCHING: Final = Patience(connect_s=5.0, first_byte_s=10.0, idle_s=10.0, total_s=FETCH_S)
FIRST_HOLD_S: Final = 1.0
MOST_HOLD_S: Final = 60.0
_MOST_DOUBLINGS: Final = 16
_LARGE_BYTES: Final = 256 * 1024
"""From here on the loop does not wait for the parser."""

Fetch = Callable[[Provider, str], Awaitable[bytes]]
"""Asks a provider for path and query behind its base path; the body of a 200. Raises ``ProxyError``."""

_DIALECTS: Final = make_providers()


# -- the wire -----------------------------------------------------------------------------------------------------


def list_target(provider: Provider, query: str = "") -> str:
    """Path and query that ask for a page of its models; ``query`` comes from the page before."""
    if provider.kind == "gemini":
        return "/v1beta/models?" + (query or f"pageSize={MOST_PAGE_ENTRIES}")
    if provider.kind == "azure":
        return f"/openai/models?api-version={provider.version}" if provider.version else "/openai/v1/models"
    if provider.kind == "anthropic" and not query:
        query = f"limit={MOST_PAGE_ENTRIES}"
    return f"/v1/models?{query}" if query else "/v1/models"


def asking_headers(provider: Provider) -> HeaderList:
    """The headers of the proxy's own questions to a provider: its key by the dialect, and what that demands."""
    headers: HeaderList = [
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", f"sameflight/{__version__}".encode()),
    ]
    if provider.kind == "anthropic":
        headers.append((b"anthropic-version", (provider.version or ANTHROPIC_VERSION).encode()))
    if provider.api_key:
        headers += _DIALECTS[provider.kind].credential(provider.api_key)
    return headers


async def fetch_list(transport: Asks, provider: Provider, target: str, patience: Patience = FETCHING) -> bytes:
    """One page of a provider's list. Raises ``ProxyError``; ``UPSTREAM_BAD_RESPONSE`` for any status but 200."""
    origin = Origin(provider.scheme, provider.host, provider.port)
    request = UpstreamRequest(origin, "GET", provider.base_path + target, asking_headers(provider), b"")
    status, body = await fetch(transport, request, patience, MAX_LIST_BYTES)
    if status != 200:
        raise faults.bad_response("model_list", f"{provider.name} answered {status} for its models")
    return body


# -- what is held -------------------------------------------------------------------------------------------------


class Lifetimes(NamedTuple):
    """How long a list may be used, in seconds; the last two count from the end of the first."""

    fresh_s: float
    stale_s: float
    """While it is renewed."""
    stale_if_error_s: float
    """While it cannot be renewed."""


class ProviderList:
    """What is known of one provider's list; written by `ProviderLists` only."""

    __slots__ = (
        *("entries", "error", "failures", "fetched_at", "not_before"),
        *("provider", "size_bytes", "task", "version"),
    )

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.entries: dict[str, ModelEntry] | None = None
        """By name, in the provider's order; ``None``: never had."""
        self.version = 0
        """Of ``entries``: another number whenever they were fetched, unique in the process."""
        self.fetched_at = 0.0
        self.size_bytes = 0
        self.task: asyncio.Task[None] | None = None
        """The fetch under way."""
        self.error: ProxyError | None = None
        """Of the last fetch."""
        self.failures = 0
        self.not_before = 0.0
        """Monotonic seconds: after a failure nobody asks until then."""


class ProviderLists:
    """Lists by provider. A provider with another address or key is another provider.

    ``spread`` gives numbers in [0, 1): holds after failures differ by ±10 %.
    """

    # Mutable state: _held, used last at the end, at most MAX_HELD and MAX_HELD_BYTES but for lists that are being
    # fetched; _held_bytes is their sum. Counters only grow.
    __slots__ = (
        "_bug",
        "_clock",
        "_fetch",
        "_fetch_s",
        "_held",
        "_spread",
        "_versions",
        "failed",
        "fetched",
        "held_bytes",
    )

    def __init__(
        self,
        clock: Clock,
        fetch: Fetch,
        *,
        bug: Callable[[str, BaseException], None],
        fetch_s: float = FETCH_S,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._fetch = fetch
        self._bug = bug
        self._fetch_s = fetch_s
        self._spread = spread
        self._versions = count(1)
        self._held: OrderedDict[Provider, ProviderList] = OrderedDict()
        self.held_bytes = 0
        self.fetched = 0
        self.failed = 0

    def of(self, provider: Provider) -> ProviderList:
        """What is known of the list, with or without entries."""
        held = self._held.get(provider)
        if held is None:
            held = self._held[provider] = ProviderList(provider)
            self._trim()
        else:
            self._held.move_to_end(provider)
        return held

    def is_settled(self, held: ProviderList, lifetimes: Lifetimes, now: float) -> bool:
        """Whether waiting for a fetch would bring nothing, or nothing that is needed."""
        if held.entries is not None and now - held.fetched_at < lifetimes.fresh_s + lifetimes.stale_s:
            return True
        return now < held.not_before

    def entries_of(
        self, held: ProviderList, lifetimes: Lifetimes, now: float, since: float
    ) -> dict[str, ModelEntry] | None:
        """The entries, if they may be used; ``since`` is when the one who asks began to wait, for whom a list that
        was fetched later is good however short its life."""
        if held.entries is None or held.fetched_at >= since:
            return held.entries
        over_s = now - held.fetched_at - lifetimes.fresh_s
        allowed_s = max(lifetimes.stale_s, lifetimes.stale_if_error_s if held.error is not None else 0.0)
        return held.entries if over_s < 0 or over_s < allowed_s else None

    def renew_if_stale(self, held: ProviderList, lifetimes: Lifetimes, now: float) -> None:
        """Fetch it behind the answer that uses it."""
        if now - held.fetched_at >= lifetimes.fresh_s and now >= held.not_before:
            self.begin(held)

    def begin(self, held: ProviderList) -> asyncio.Task[None]:
        """The fetch under way, or a new one. It fails by `ProviderList.error` only, and is its waiters' to await but
        not to cancel."""
        if held.task is None:
            held.task = asyncio.get_running_loop().create_task(self._renew(held))
        return held.task

    async def _renew(self, held: ProviderList) -> None:
        try:
            async with asyncio.timeout(self._fetch_s):
                entries, size_bytes = await self._read_pages(held.provider)
        except ProxyError as error:
            self._note_failure(held, error)
        except TimeoutError:
            self._note_failure(held, faults.timed_out("total", f"the models of {held.provider.name}"))
        except ValueError as error:
            self._note_failure(held, faults.bad_response("model_list", f"{held.provider.name}: {error}"))
        except Exception as bug:  # noqa: BLE001 - whoever waits must be answered
            self._bug("model_lists", bug)
            self._note_failure(held, ProxyError(Kind.BUG, "Internal error.", detail=repr(bug)))
        else:
            self._keep(held, entries, size_bytes)
        finally:
            held.task = None

    async def _read_pages(self, provider: Provider) -> tuple[dict[str, ModelEntry], int]:
        entries: dict[str, ModelEntry] = {}
        query, size_bytes = "", 0
        for _ in range(MAX_PAGES):
            body = await self._fetch(provider, list_target(provider, query))
            size_bytes += len(body)
            if size_bytes > MAX_LIST_BYTES:
                raise faults.too_large(MAX_LIST_BYTES)
            page = read_page(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(read_page, body)
            for entry in page.entries[: MAX_ENTRIES - len(entries)]:
                entries.setdefault(entry.id, entry)
            if not page.next_query or page.next_query == query or len(entries) >= MAX_ENTRIES:
                break
            query = page.next_query
        return entries, size_bytes

    def _keep(self, held: ProviderList, entries: dict[str, ModelEntry], size_bytes: int) -> None:
        self.fetched += 1
        if self._held.get(held.provider) is held:
            self.held_bytes += size_bytes - held.size_bytes
        held.entries, held.size_bytes, held.version = entries, size_bytes, next(self._versions)
        held.fetched_at = self._clock.now()
        held.error, held.failures, held.not_before = None, 0, 0.0
        self._trim()

    def _note_failure(self, held: ProviderList, error: ProxyError) -> None:
        self.failed += 1
        held.error = error.with_traceback(None)
        hold_s = min(FIRST_HOLD_S * 2.0 ** min(held.failures, _MOST_DOUBLINGS), MOST_HOLD_S)
        held.failures += 1
        held.not_before = self._clock.now() + hold_s * (0.9 + 0.2 * self._spread())

    def _trim(self) -> None:
        """Forget what was not asked for lately. Whoever uses it just now has it in hand."""
        while len(self._held) > MAX_HELD or (self.held_bytes > MAX_HELD_BYTES and len(self._held) > 1):
            _, held = self._held.popitem(last=False)
            self.held_bytes -= held.size_bytes

    async def close(self) -> None:
        """End the fetches that are under way."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def describe(self) -> list[dict[str, Any]]:
        """What is held of each provider."""
        now = self._clock.now()
        return [
            {
                "provider": held.provider.name,
                "models": None if held.entries is None else len(held.entries),
                "age_s": None if held.entries is None else round(now - held.fetched_at, 3),
                "failures": held.failures,
                "error": "" if held.error is None else held.error.why,
                "fetching": held.task is not None,
            }
            for held in self._held.values()
        ]
