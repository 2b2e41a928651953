"""What every shared cache promises, held against each implementation and against a backend that fails."""

import asyncio

import pytest
from aiocache.base import BaseCache

from proxy.cache.recording import Codec, Recording
from proxy.cache.shared import AiocacheShared, BoundedMemory, NoSharedCache, SharedCache
from proxy.clock import Clock
from tests.fakes.clock import FrozenClock

SECRET = b"a secret of the whole cluster"
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


class FaultyBackend(BaseCache):
    """A backend whose next calls do what ``fault`` says: ``none``, ``raise``, ``hang``, ``garbage``, ``cancel``."""

    NAME = "faulty"

    def __init__(self) -> None:
        super().__init__()
        self.fault = "none"
        self.calls = 0
        self.entered = asyncio.Event()
        self.abandoned = 0
        self.held: dict[str, bytes] = {}

    async def _act(self) -> None:
        self.calls += 1
        self.entered.set()
        if self.fault == "raise":
            raise ConnectionResetError("the cache went away")
        if self.fault == "cancel":
            raise asyncio.CancelledError
        if self.fault == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.abandoned += 1

    async def get(self, key, **options):
        await self._act()
        return b"\x80\x04pickle" if self.fault == "garbage" else self.held.get(key)

    async def set(self, key, value, **options):
        await self._act()
        self.held[key] = value
        return True

    async def close(self, **options):
        await self._act()


@pytest.fixture
def clock(frozen_clock: FrozenClock) -> FrozenClock:
    return frozen_clock


@pytest.fixture
def backend() -> FaultyBackend:
    return FaultyBackend()


def over(backend: BaseCache, clock: Clock) -> AiocacheShared:
    """Time-outs short enough to wait for: a hang is cut off in one turn of the loop."""
    return AiocacheShared(backend, Codec(SECRET), clock, get_timeout_s=0.0, put_timeout_s=0.0)


def recording(clock: Clock, body: bytes = b"x", **options: object) -> Recording:
    values = {"stored_at": clock.now(), "stored_wall": clock.wall(), "ttl_s": 60.0, **options}
    return Recording(200, [(b"content-type", b"text/plain")], (body,), **values)


@pytest.fixture(params=["none", "memory"])
def shared(request: pytest.FixtureRequest, clock: FrozenClock) -> SharedCache:
    """Every implementation there is."""
    if request.param == "none":
        return NoSharedCache()
    return AiocacheShared(BoundedMemory(1_000_000, clock), Codec(SECRET), clock)


async def test_key_that_was_never_stored_is_a_miss(shared):
    """The answer to not knowing is None."""
    assert await shared.get(KEY) is None


async def test_stored_recording_is_found_whole_or_not_at_all(shared, clock):
    """A cache may forget, but what it gives is what was put under that key."""
    one = recording(clock, b"body", report={"tokens": 5}, swr_s=5.0, streams=True)
    await shared.put(KEY, one, 65.0)
    found = await shared.get(KEY)
    assert await shared.get(OTHER) is None
    if not isinstance(shared, NoSharedCache):
        assert (found.status, found.headers, found.chunks) == (one.status, one.headers, one.chunks)
        assert (found.report, found.streams, found.ttl_s, found.swr_s) == ({"tokens": 5}, True, 60.0, 5.0)
        assert found.stored_at == one.stored_at


async def test_recording_is_not_given_after_its_time(shared, clock):
    """Neither after the time it was put for, nor after its own."""
    await shared.put(KEY, recording(clock), 30.0)
    await shared.put(OTHER, recording(clock, ttl_s=30.0), 1000.0)
    clock.advance(30.0)
    assert await shared.get(KEY) is None
    assert await shared.get(OTHER) is None


async def test_close_is_quiet(shared):
    """Also when it is called twice."""
    await shared.close()
    await shared.close()


async def test_recording_grows_old_while_it_is_stored(clock):
    """The age that a reader sees is the age since the answer was made."""
    shared = AiocacheShared(BoundedMemory(1_000_000, clock), Codec(SECRET), clock)
    await shared.put(KEY, recording(clock), 60.0)
    clock.advance(25.0)
    assert (await shared.get(KEY)).age_s(clock.now()) == 25.0


@pytest.mark.parametrize("fault", ["raise", "hang", "cancel"])
async def test_failing_backend_is_a_miss_and_a_count(fault, backend, clock):
    """Neither a refusal, nor a hang, nor a cancellation from within reaches the caller."""
    shared = over(backend, clock)
    await shared.put(KEY, recording(clock), 60.0)
    backend.fault = fault
    assert await shared.get(KEY) is None
    await shared.put(KEY, recording(clock), 60.0)
    await shared.close()
    counted = shared.timeouts if fault == "hang" else shared.errors
    assert (counted, shared.misses, shared.stored) == (3, 1, 1)
    assert shared.last_error in ("ConnectionResetError", "TimeoutError", "CancelledError")


async def test_hanging_backend_is_left_alone_with_its_call_cancelled(backend, clock):
    """A time-out ends the call; nothing runs on behind it."""
    shared = over(backend, clock)
    backend.fault = "hang"
    assert await shared.get(KEY) is None
    assert (backend.calls, backend.abandoned) == (1, 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_garbage_is_a_miss_that_does_not_blame_the_backend(backend, clock):
    """A poisoned value is counted apart and opens no breaker."""
    shared = over(backend, clock)
    backend.fault = "garbage"
    for _ in range(10):
        assert await shared.get(KEY) is None
    assert (shared.rejected, shared.errors, shared.skipped, backend.calls) == (10, 0, 0, 10)


async def test_value_copied_from_another_key_is_a_miss(backend, clock):
    """Who can write to the cache cannot hand out somebody else's answer."""
    shared = over(backend, clock)
    await shared.put(OTHER, recording(clock, b"of somebody else"), 60.0)
    (value,) = backend.held.values()
    (name,) = backend.held
    backend.held[name.replace(OTHER.hex(), KEY.hex())] = value
    assert await shared.get(OTHER) is not None
    assert await shared.get(KEY) is None
    assert shared.rejected == 1


async def test_backend_that_fails_three_times_is_not_asked_for_five_seconds(backend, clock):
    """Then one call tries, and its success lets all of them through again."""
    shared = over(backend, clock)
    backend.fault = "raise"
    for _ in range(10):
        assert await shared.get(KEY) is None
    assert (backend.calls, shared.skipped, shared.breaker.opened) == (3, 7, 1)
    backend.fault = "none"
    clock.advance(4.9)
    await shared.put(KEY, recording(clock), 60.0)
    assert backend.calls == 3
    clock.advance(0.1)
    await shared.put(KEY, recording(clock), 60.0)
    assert await shared.get(KEY) is not None
    assert backend.calls == 5


async def test_cancelled_caller_is_cancelled_and_blames_nobody(backend, clock):
    """A flight that ends takes its look-up with it; the breaker learns nothing from that."""
    shared = AiocacheShared(backend, Codec(SECRET), clock, get_timeout_s=60.0)
    backend.fault = "hang"
    task = asyncio.create_task(shared.get(KEY))
    await backend.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.abandoned, shared.breaker.failures, shared.errors, shared.timeouts) == (1, 0, 0, 0)


async def test_cancelled_try_of_a_cache_that_failed_lets_the_next_caller_try(backend, clock):
    """The one call after an opening was withdrawn, so somebody else makes it."""
    shared = AiocacheShared(backend, Codec(SECRET), clock, get_timeout_s=60.0)
    backend.fault = "raise"
    for _ in range(3):
        await shared.get(KEY)
    clock.advance(5.0)
    backend.fault = "hang"
    backend.entered.clear()
    task = asyncio.create_task(shared.get(KEY))
    await backend.entered.wait()
    task.cancel()
    await asyncio.wait([task])
    backend.fault = "none"
    await shared.get(KEY)
    assert (backend.calls, shared.skipped, shared.breaker.failures) == (5, 0, 0)
