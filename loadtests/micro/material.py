"""What the parts are fed with: the bodies and heads of the load tests, and rooms put together as the app does it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final

from loadtests.drive.spec import make_body
from loadtests.upstream.answers import make_body as make_answer
from proxy.cache.hot import HotCache
from proxy.cache.recording import Recording
from proxy.clock import Clock, Deadlines
from proxy.config.keys import KeyRecord
from proxy.flight.limits import Limits
from proxy.flight.table import Table
from proxy.protocol.message import RequestHead, make_request_head

SECRET: Final = b"s" * 32
BODY: Final = make_body(0, 832, stream=False)
ANSWER: Final = make_answer(1042)
EVENT: Final = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
HEADERS: Final = [
    (b"Host", b"127.0.0.1:8080"),
    (b"Accept", b"application/json"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"OpenAI/Python 3.52.0"),
    (b"Authorization", b"Bearer sk-load"),
    (b"Content-Length", b"832"),
]


def make_head() -> RequestHead:
    return make_request_head("POST", "/v1/chat/completions", HEADERS)


def make_keys(count: int) -> Iterator[bytes]:
    """Fingerprints: 32 bytes that look like chance and are the same in each run."""
    return (blake2b(number.to_bytes(8, "big"), digest_size=32).digest() for number in range(count))


def make_recording(now: float, ttl_s: float = 1e6) -> Recording:
    return Recording(
        200, [(b"content-type", b"application/json")], (ANSWER,), stored_at=now, stored_wall=0.0, ttl_s=ttl_s
    )


def make_cache(entries: int, now: float) -> HotCache:
    """A cache that holds so many entries, of one recording, in 100 scopes."""
    cache = HotCache(1 << 40, max_entry_bytes=1 << 20)
    recording = make_recording(now)
    scopes = [b"scope%d" % number for number in range(100)]
    for key, scope in zip(make_keys(entries), itertools.cycle(scopes)):
        cache.put(key, scope, recording, cache.generation)
    return cache


class Idle:
    """A runner that runs nothing: flights stay in the air."""

    def start(self, flight: Any) -> None:
        flight.task = None

    def stop(self, flight: Any) -> None:
        """Nothing was started."""

    def defer(self, callback: Any) -> None:
        callback()


class Sink:
    """A client that takes everything."""

    def take(self, head: Any, data: bytes, ended: bool) -> None:
        """Thrown away."""

    def released(self) -> None:
        """As well."""


def make_table(flights: int) -> Table:
    """A table with so many flights in the air, each with one reader."""
    clock = Clock()
    table = Table(clock, Deadlines(clock), Idle(), Limits(max_flights=1 << 30, max_flights_per_scope=1 << 30))
    for key in make_keys(flights):
        join(table, key)
    return table


def join(table: Table, key: bytes) -> Any:
    return table.join(Sink(), None, key=key, scope=b"scope", registers=True, joins=True)


def make_record(digest: bytes, number: int) -> KeyRecord:
    return KeyRecord(f"key_{number:016x}", digest, f"key {number}", tenant=f"t{number % 100}", version=number + 1)


def make_token() -> bytes:
    from proxy.access.token import mint

    return mint(os.urandom(32))
