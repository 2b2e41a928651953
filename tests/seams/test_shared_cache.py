"""What every shared cache promises, held against each implementation and against a backend that fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiocache.base import BaseCache

from proxy.cache.memory import BoundedMemory
from proxy.cache.recording import Codec, Recording
from proxy.cache.shared import AiocacheShared, Bounds, NoSharedCache, SharedCache, make_shared_cache
from proxy.clock import Clock
from proxy.store.open import open_cache_database
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until

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
    return AiocacheShared(backend, Codec(SECRET), clock, bounds=Bounds(get_s=0.0, put_s=0.0))


def recording(clock: Clock, body: bytes = b"x", **options: object) -> Recording:
    values = {"stored_at": clock.now(), "stored_wall": clock.wall(), "ttl_s": 60.0, **options}
    return Recording(200, [(b"content-type", b"text/plain")], (body,), **values)


@pytest.fixture(params=["none", "memory", "valkey", "postgres"])
async def shared(request: pytest.FixtureRequest, clock: FrozenClock) -> AsyncIterator[SharedCache]:
    """Every implementation there is."""
    url = {"none": "", "memory": "memory://"}.get(request.param)
    if request.param == "valkey":
        url = request.getfixturevalue("valkey").url
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    bounds = Bounds(get_s=5.0, put_s=5.0)  # the server shares its processor with other tests
    codec = Codec(SECRET)
    made = make_shared_cache(url, SECRET, clock, codec=codec, bounds=bounds, open_database=open_cache_database)
    made.start(lambda: None)
    if isinstance(made, AiocacheShared):
        await wait_until(lambda: made.up, "the server was asked for its generation")
    yield made
    await made.close()


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
    """Even if the cache was told to keep it for longer."""
    await shared.put(KEY, recording(clock, ttl_s=30.0), 1000.0)
    clock.advance(30.0)
    assert await shared.get(KEY) is None


async def test_what_was_purged_is_not_found_and_what_comes_later_is(shared, clock):
    """At once, without waiting for anybody."""
    await shared.put(KEY, recording(clock, b"old"), 60.0)
    await shared.put(OTHER, recording(clock, b"old"), 60.0)
    shared.purge()
    assert await shared.get(KEY) is None
    if isinstance(shared, AiocacheShared) and shared.watch is not None:
        await wait_until(lambda: not shared.generation.owes, "the server was told")
    await shared.put(KEY, recording(clock, b"new"), 60.0)
    found = await shared.get(KEY)
    assert await shared.get(OTHER) is None
    assert isinstance(shared, NoSharedCache) or found.body == b"new"


async def test_announcing_a_cause_is_quiet(shared):
    """Whoever is there to hear it."""
    shared.announce(b"a changed configuration")


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
    shared = AiocacheShared(backend, Codec(SECRET), clock, bounds=Bounds(get_s=60.0))
    backend.fault = "hang"
    task = asyncio.create_task(shared.get(KEY))
    await backend.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.abandoned, shared.breaker.failures, shared.errors, shared.timeouts) == (1, 0, 0, 0)


async def test_cancelled_try_of_a_cache_that_failed_lets_the_next_caller_try(backend, clock):
    """The one call after an opening was withdrawn, so somebody else makes it."""
    shared = AiocacheShared(backend, Codec(SECRET), clock, bounds=Bounds(get_s=60.0))
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


async def test_recording_in_memory_is_not_given_after_the_time_it_was_put_for(clock):
    """A server has its own clock; the map inside the process has ours."""
    shared = AiocacheShared(BoundedMemory(1_000_000, clock), Codec(SECRET), clock, random=lambda: 0.0)
    await shared.put(KEY, recording(clock), 30.0)
    clock.advance(29.9)
    assert await shared.get(KEY) is not None
    clock.advance(0.1)
    assert await shared.get(KEY) is None


async def test_look_ups_beyond_the_places_wait_and_those_beyond_the_waiting_are_misses(backend, clock):
    """A slow backend can gather no crowd."""
    shared = AiocacheShared(backend, Codec(SECRET), clock, bounds=Bounds(get_s=60.0, gets=2, waiting_gets=3))
    backend.fault = "hang"
    tasks = [asyncio.create_task(shared.get(KEY)) for _ in range(20)]
    await wait_until(lambda: sum(task.done() for task in tasks) == 15, "fifteen were sent on")
    assert (backend.calls, shared.crowded, shared.describe()["waiting"]) == (2, 15, 3)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (shared.describe()["waiting"], shared.breaker.failures) == (0, 0)
    backend.fault = "none"
    await asyncio.gather(*(shared.get(KEY) for _ in range(5)))
    assert (backend.calls, shared.crowded) == (7, 15)


async def test_stores_that_hang_do_not_keep_look_ups_waiting(backend, clock):
    """Each has places of its own."""
    shared = AiocacheShared(backend, Codec(SECRET), clock, bounds=Bounds(put_s=60.0, puts=1, waiting_puts=1))
    backend.fault = "hang"
    tasks = [asyncio.create_task(shared.put(KEY, recording(clock), 60.0)) for _ in range(4)]
    await wait_until(lambda: sum(task.done() for task in tasks) == 2, "two were given up")
    backend.fault = "none"
    assert await shared.get(KEY) is None
    assert (shared.crowded, shared.misses, shared.timeouts) == (2, 1, 0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_what_is_purged_while_a_store_waits_its_turn_is_not_stored_anew(backend, clock):
    """It goes under the name that it would have had before."""
    shared = AiocacheShared(backend, Codec(SECRET), clock, bounds=Bounds(put_s=60.0, puts=1))
    backend.fault = "hang"
    first = asyncio.create_task(shared.put(OTHER, recording(clock), 60.0))
    await backend.entered.wait()
    backend.fault = "none"
    second = asyncio.create_task(shared.put(KEY, recording(clock), 60.0))
    await wait_until(lambda: shared.describe()["waiting"] == 1, "the second waits")
    shared.purge()
    first.cancel()
    await asyncio.wait([first])
    await second
    assert (shared.stored, len(backend.held)) == (1, 1)
    assert await shared.get(KEY) is None


async def test_times_to_live_differ_and_are_never_longer_than_asked_for(backend, clock):
    """What was stored in one burst does not end in one."""
    told: list[float] = []

    async def note(key, value, **options):
        told.append(options["ttl"])
        return True

    backend.set = note
    for number in (0.0, 0.5, 0.999):
        shared = AiocacheShared(backend, Codec(SECRET), clock, random=lambda number=number: number)
        await shared.put(KEY, recording(clock), 100.0)
    await shared.put(KEY, recording(clock), 1e-9)
    assert told[:2] == [100.0, 95.0]
    assert 90.0 < told[2] < 90.1
    assert told[3] == 0.001
