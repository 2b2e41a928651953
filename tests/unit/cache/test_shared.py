"""The bounded memory backend, what reaches a backend, and the making of a shared cache."""

import asyncio
import subprocess
import sys

import pytest
from aiocache.base import BaseCache

from proxy.cache.memory import BoundedMemory
from proxy.cache.recording import Codec, Recording
from proxy.cache.shared import AiocacheShared, NoSharedCache, make_shared_cache
from proxy.clock import Clock
from proxy.protocol.usage import Usage
from tests.fakes.clock import FrozenClock

SECRET = b"a secret of the whole cluster"
KEY = bytes(range(32))


def recording(clock: Clock, body: bytes = b"x", **options: object) -> Recording:
    values = {"stored_at": clock.now(), "stored_wall": clock.wall(), "ttl_s": 60.0, **options}
    return Recording(200, [(b"content-type", b"text/plain")], (body,), **values)


async def set_(backend: BoundedMemory, name: str, value: bytes, ttl: float | None = None) -> bool:
    return await backend.set(name, value, ttl=ttl, timeout=0)


async def test_memory_gives_a_value_until_its_time_is_over():
    """No timer: the end is noticed by the look-up, and the memory comes back with it."""
    clock = FrozenClock()
    backend = BoundedMemory(10_000, clock)
    await set_(backend, "a", b"value", ttl=5.0)
    clock.advance(4.9)
    assert await backend.get("a") == b"value"
    clock.advance(0.1)
    assert await backend.get("a") is None
    assert (len(backend), backend.size_bytes) == (0, 0)


async def test_memory_without_room_drops_what_was_used_longest_ago():
    """The weight stays below the bound whatever is stored."""
    backend = BoundedMemory(3 * (100 + BoundedMemory._KEY_BYTES), FrozenClock())
    for name in "abc":
        await set_(backend, name, b"x" * 100)
    await backend.get("a")
    await set_(backend, "d", b"x" * 100)
    assert [name for name in "abcd" if await backend.get(name) is not None] == ["a", "c", "d"]
    assert (backend.evictions, backend.size_bytes) == (1, backend.max_bytes)


async def test_memory_refuses_a_value_above_its_bound():
    """And does not keep the older value of that key either."""
    backend = BoundedMemory(1000, FrozenClock())
    await set_(backend, "a", b"x")
    assert await set_(backend, "a", b"x" * 1000) is False
    assert await backend.get("a") is None
    assert backend.size_bytes == 0


async def test_memory_counts_a_replaced_value_once():
    """The last one is what weighs."""
    backend = BoundedMemory(10_000, FrozenClock())
    await set_(backend, "a", b"x" * 5000)
    await set_(backend, "a", b"y" * 10)
    assert backend.size_bytes == 10 + BoundedMemory._KEY_BYTES


async def test_memory_deletes_and_clears_as_aiocache_asks():
    """The two other calls of a backend that somebody may use by hand."""
    backend = BoundedMemory(10_000, FrozenClock())
    for name in ("one:a", "one:b", "two:a"):
        await set_(backend, name, b"x")
    assert [await backend.delete("one:a"), await backend.delete("one:a")] == [1, 0]
    await backend.clear(namespace="one:")
    assert await backend.get("two:a") == b"x"
    await backend.clear()
    assert (len(backend), backend.size_bytes) == (0, 0)


class Recorder(BaseCache):
    """A backend that notes what it is asked and how."""

    NAME = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[object, ...]] = []

    async def get(self, key, **options):
        self.calls.append(("get", key, options))

    async def set(self, key, value, **options):
        self.calls.append(("set", key, options))
        return True


async def test_backend_is_asked_by_versioned_hex_key_and_without_its_own_time_out():
    """Two releases never read each other's values, and aiocache makes no task for a call."""
    clock, backend = FrozenClock(), Recorder()
    shared = AiocacheShared(backend, Codec(SECRET), clock, random=lambda: 0.0)
    await shared.get(KEY)
    await shared.put(KEY, recording(clock), 60.0)
    name = "sameflight:1:answers:1:" + KEY.hex()
    assert backend.calls == [("get", name, {"timeout": 0}), ("set", name, {"timeout": 0, "ttl": 60.0})]


async def test_get_makes_no_task_and_leaves_no_timer_behind():
    """A look-up in memory stays inside the flight's own task."""
    clock = FrozenClock()
    shared = AiocacheShared(BoundedMemory(10_000, clock), Codec(SECRET), clock)
    await shared.put(KEY, recording(clock), 60.0)
    before = asyncio.all_tasks()
    assert await shared.get(KEY) is not None
    assert asyncio.all_tasks() == before
    assert all(handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)


async def test_recording_whose_report_is_no_json_is_counted_and_not_stored():
    """A defect in packing costs the second level, not the answer."""
    clock = FrozenClock()
    shared = AiocacheShared(BoundedMemory(10_000, clock), Codec(SECRET), clock)
    await shared.put(KEY, recording(clock, report=object()), 60.0)
    assert (shared.errors, shared.stored) == (1, 0)


async def test_recording_of_no_use_or_too_large_is_refused():
    """Without a call to the backend."""
    clock, backend = FrozenClock(), Recorder()
    shared = AiocacheShared(backend, Codec(SECRET, max_bytes=4000), clock)
    await shared.put(KEY, recording(clock), 0.0)
    await shared.put(KEY, recording(clock, b"x" * 5000), 60.0)
    assert (shared.refused, backend.calls) == (2, [])


def test_no_url_means_no_second_level():
    """The null object, which costs nothing."""
    shared = make_shared_cache("", b"", Clock())
    assert isinstance(shared, NoSharedCache)
    assert not shared.enabled


async def test_memory_url_gives_a_bounded_cache_with_a_secret_of_its_own():
    """Inside one process nobody else has to know the secret."""
    clock = FrozenClock()
    shared = make_shared_cache("memory://", b"", clock, max_bytes=5000)
    for number in range(20):
        await shared.put(bytes([number]) * 32, recording(clock, b"x" * 500), 60.0)
    found = [number for number in range(20) if await shared.get(bytes([number]) * 32) is not None]
    assert found == list(range(20 - len(found), 20))
    assert 0 < len(found) < 10


async def test_usage_of_an_answer_comes_back_as_a_usage():
    """What a hit reports is what the answer reported."""
    clock, usage = FrozenClock(), Usage(100, 20, 30, 0, 5)
    shared = make_shared_cache("memory://", SECRET, clock)
    await shared.put(KEY, recording(clock, report=usage), 60.0)
    assert (await shared.get(KEY)).report == usage


async def test_recording_without_a_usage_where_one_is_expected_is_a_miss():
    """A report of another shape is not handed to those who add it up."""
    clock = FrozenClock()
    shared = make_shared_cache("memory://", SECRET, clock)
    for report in ({"tokens": 5}, [1, 2]):
        await shared.put(KEY, recording(clock, report=report), 60.0)
        assert await shared.get(KEY) is None
    assert shared.rejected == 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memcached://me:hunter2@host:6379", "memcached://"),
        ("hunter2@host", "no scheme"),
        ("memory:hunter2", "no scheme"),
    ],
)
def test_url_of_another_kind_is_refused_without_repeating_its_password(url, words):
    """The message names the setting and what may stand there."""
    with pytest.raises(ValueError, match=words) as raised:
        make_shared_cache(url, SECRET, Clock())
    assert "SAMEFLIGHT_CACHE_URL" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_process_without_a_second_level_loads_neither_aiocache_nor_redis():
    """They would be a third of its start."""
    program = "import sys, proxy.app; print({'aiocache', 'redis'} & {name.split('.')[0] for name in sys.modules})"
    words = [sys.executable, "-c", program]
    assert subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout == "set()\n"
