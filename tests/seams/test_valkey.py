"""The shared cache on a real Valkey: what two processes have, and a server that is away, hung, emptied or poisoned.

Each cache here is what one process would have: connections, a generation and a watch of its own.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.cache.level import AiocacheShared, Bounds
from proxy.cache.recording import Codec, Recording
from proxy.cache.shared import make_shared_cache
from proxy.protocol.usage import Usage
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until, within
from tests.fakes.valkey import ValkeyServer

SECRET = b"a secret of the whole cluster"
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
GENERATION = "sameflight:1:answers:generation"
PATIENT = Bounds(get_s=5.0, put_s=5.0)
HASTY = Bounds(get_s=0.05, put_s=0.05)
BOUND = PATIENT.gets + PATIENT.puts + 2

Opener = Callable[..., Awaitable[Any]]


def recording(clock: FrozenClock, body: bytes = b"x", **options: Any) -> Recording:
    values: dict[str, Any] = {"stored_at": clock.now(), "stored_wall": clock.wall(), "ttl_s": 600.0, **options}
    return Recording(200, [(b"content-type", b"text/plain")], (body,), **values)


class Process:
    """A cache and how often it was told to drop what the process holds."""

    def __init__(self, cache: AiocacheShared) -> None:
        self.cache = cache
        self.purges = 0

    def purged(self) -> None:
        self.purges += 1

    async def found(self, key: bytes = KEY) -> bytes | None:
        recording = await within(self.cache.get(key), "a look-up ends")
        return None if recording is None else recording.body


@pytest.fixture
async def opened(frozen_clock: FrozenClock) -> AsyncIterator[Opener]:
    """Opens caches as processes would; all are closed at the end."""
    made: list[AiocacheShared] = []

    async def open_one(url: str, *, watched: bool = True, **options: Any) -> Process:
        options = {"bounds": PATIENT, **options}
        cache = make_shared_cache(url, options.pop("secret", SECRET), frozen_clock, **options)
        assert isinstance(cache, AiocacheShared)
        made.append(cache)
        process = Process(cache)
        if watched:
            cache.start(process.purged)
            await wait_until(lambda: cache.up, "the process listens")
        else:
            cache.generation.on_change = process.purged
        process.purges = 0
        return process

    yield open_one
    for cache in made:
        await within(cache.close(), "a cache closes")


async def settled(process: Process) -> None:
    await wait_until(lambda: not process.cache.generation.owes, "the server was told")


# -- two processes -------------------------------------------------------------------------------------------------


async def test_a_second_process_finds_what_the_first_stored(valkey: ValkeyServer, opened, frozen_clock) -> None:
    """Whole, with its usage and its age, under a name that says nothing but where it belongs."""
    first, second = await opened(valkey.url), await opened(valkey.url)
    usage = Usage(100, 20, 30, 0, 5)
    await first.cache.put(KEY, recording(frozen_clock, b"body", report=usage, streams=True), 60.0)
    frozen_clock.advance(20.0)
    found = await second.cache.get(KEY)
    generation = first.cache.generation.value

    assert (found.body, found.report, found.streams, found.age_s(frozen_clock.now())) == (b"body", usage, True, 20.0)
    assert (first.cache.stored, second.cache.hits) == (1, 1)
    assert valkey.names() == [f"sameflight:1:answers:{generation:x}:{KEY.hex()}", GENERATION]
    assert 50_000 < valkey.ask("PTTL", valkey.names()[0]) <= 60_000


async def test_prefixes_namespaces_and_secrets_keep_apart_what_lies_side_by_side(
    valkey: ValkeyServer, opened, frozen_clock
) -> None:
    """Two groups of proxies on one server do not see each other, not even when they share a name."""
    one = await opened(valkey.url, prefix="team:one")
    others = [
        await opened(valkey.url, prefix="team:two"),
        await opened(valkey.url, prefix="team:one", namespace="models"),
        await opened(valkey.url, prefix="team:one", secret=b"another secret of a cluster"),
    ]
    await one.cache.put(KEY, recording(frozen_clock), 60.0)

    assert [await other.found() for other in others] == [None, None, None]
    assert [other.cache.rejected for other in others] == [0, 0, 1]


async def test_values_that_are_not_purged_together_need_no_generation(valkey, opened, frozen_clock) -> None:
    """Such as keys, which have times and versions of their own: nothing is listened to."""
    options = {"watched": False, "namespace": "keys", "purgeable": False}
    first, second = await opened(valkey.url, **options), await opened(valkey.url, **options)
    await first.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)

    assert await second.found() == b"body"
    assert valkey.names() == [f"sameflight:1:keys:1:{KEY.hex()}"]
    assert valkey.clients() == 2


# -- purges --------------------------------------------------------------------------------------------------------


async def test_a_purge_in_one_process_reaches_the_others(valkey: ValkeyServer, opened, frozen_clock) -> None:
    """They drop what they hold without having asked, and what was stored before is out of everybody's reach."""
    first, second = await opened(valkey.url), await opened(valkey.url)
    await first.cache.put(KEY, recording(frozen_clock, b"old"), 60.0)
    first.cache.purge()
    assert await first.found() is None
    await wait_until(lambda: second.purges, "the other heard of it")
    assert await second.found() is None
    await second.cache.put(KEY, recording(frozen_clock, b"new"), 60.0)

    assert await first.found() == b"new"
    assert (first.purges, second.purges, second.cache.generation.changes) == (0, 1, 1)


async def test_purges_without_end_are_all_heard_of(valkey: ValkeyServer, opened) -> None:
    """The last one is what counts; all processes end with the same number."""
    processes = [await opened(valkey.url) for _ in range(3)]
    for _ in range(20):
        for process in processes:
            process.cache.purge()
        await asyncio.sleep(0)
    await wait_until(
        lambda: len({process.cache.generation.value for process in processes}) == 1
        and not any(process.cache.generation.owes for process in processes),
        "everybody agrees",
    )
    assert valkey.ask("GET", GENERATION) == b"%d" % processes[0].cache.generation.value


async def test_a_message_that_was_lost_is_made_up_for_by_the_next_look_up(valkey, opened, frozen_clock) -> None:
    """Each look-up brings the generation along."""
    first, deaf = await opened(valkey.url), await opened(valkey.url, watched=False)
    await deaf.found()
    await wait_until(lambda: deaf.cache.generation.value, "the generation was asked for")
    await first.cache.put(KEY, recording(frozen_clock, b"old"), 60.0)
    assert await deaf.found() == b"old"
    first.cache.purge()
    await settled(first)
    deaf.purges = 0
    assert await deaf.found() is None
    await wait_until(lambda: deaf.purges, "it asked")

    assert deaf.cache.outdated == 2  # of which the first was the very first look-up
    assert deaf.cache.generation.value == first.cache.generation.value


async def test_what_is_stored_by_a_process_that_has_not_heard_yet_is_found_by_nobody(
    valkey: ValkeyServer, opened, frozen_clock
) -> None:
    """It answers from before the purge, however late it is written."""
    first, deaf = await opened(valkey.url), await opened(valkey.url, watched=False)
    await deaf.found()
    await wait_until(lambda: deaf.cache.generation.value, "the generation was asked for")
    first.cache.purge()
    await settled(first)
    await deaf.cache.put(KEY, recording(frozen_clock, b"old"), 60.0)

    assert deaf.cache.stored == 1
    assert await first.found() is None


async def test_a_change_that_everybody_reports_is_one_purge(valkey: ValkeyServer, opened) -> None:
    """All processes read the same new configuration, each at its time; going back to the old one counts again."""
    processes = [await opened(valkey.url) for _ in range(3)]

    async def announce(cause: bytes) -> None:
        for process in processes:
            process.cache.announce(cause)
            await settled(process)

    await announce(b"first")
    await wait_until(lambda: all(process.purges for process in processes), "everybody heard of it")
    assert [process.purges for process in processes] == [1, 1, 1]
    await announce(b"second")
    await announce(b"first")
    await wait_until(lambda: all(process.purges == 3 for process in processes), "both others as well")


async def test_a_purge_while_the_server_is_away_is_made_up_for(private_valkey, opened, frozen_clock) -> None:
    """Here it holds at once; the others learn of it when the server is back, although it has lost its memory."""
    first, second = await opened(private_valkey.url), await opened(private_valkey.url)
    private_valkey.stop()
    await wait_until(lambda: not first.cache.up and not second.cache.up, "both noticed")
    first.cache.purge()
    assert first.cache.generation.owes
    private_valkey.start()
    await wait_until(lambda: second.purges, "the other heard of it")
    await wait_until(lambda: first.cache.up and second.cache.up, "both are back")

    assert first.cache.generation.value == second.cache.generation.value
    assert not first.cache.generation.owes


async def test_closing_tells_the_server_of_a_purge_first(valkey: ValkeyServer, opened) -> None:
    """A process that purges and ends was heard."""
    first, second = await opened(valkey.url), await opened(valkey.url)
    first.cache.purge()
    await first.cache.close()
    await wait_until(lambda: second.purges, "the other heard of it")


# -- a server in trouble -------------------------------------------------------------------------------------------


async def test_a_server_that_is_gone_costs_three_refusals_and_then_nothing(
    private_valkey, opened, frozen_clock
) -> None:
    """Until it is back: then it is used again, without anybody's doing."""
    process = await opened(private_valkey.url)
    await process.cache.put(KEY, recording(frozen_clock), 60.0)
    private_valkey.stop()
    for _ in range(10):
        assert await process.found() is None
    cache = process.cache
    await wait_until(lambda: not cache.watch.connected, "the watch noticed")
    assert (cache.errors, cache.skipped, cache.breaker.opened, cache.up) == (3, 7, 1, False)
    await cache.put(KEY, recording(frozen_clock), 60.0)
    assert cache.skipped == 8
    private_valkey.start()
    await wait_until(lambda: cache.watch.connected, "the watch found the server again")
    frozen_clock.advance(5.0)
    await cache.put(KEY, recording(frozen_clock, b"again"), 60.0)

    assert await process.found() == b"again"
    assert (cache.up, cache.errors) == (True, 3)


async def test_a_server_that_hangs_costs_the_time_out_once_and_then_nothing(
    private_valkey, opened, frozen_clock
) -> None:
    """However many ask at once: a bounded number waits for the time-out, the rest goes on at once."""
    process = await opened(private_valkey.url, bounds=HASTY)
    cache = process.cache
    private_valkey.suspend()
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = await asyncio.gather(*(cache.get(KEY) for _ in range(1000)))
    for _ in range(100):
        assert await cache.get(KEY) is None
    took_s = loop.time() - began
    private_valkey.resume()

    assert found == [None] * 1000
    assert cache.crowded == 1000 - HASTY.gets - HASTY.waiting_gets
    assert cache.timeouts == HASTY.gets + HASTY.waiting_gets
    assert (cache.skipped, cache.breaker.opened) == (100, 1)
    assert took_s < 2.0  # a time-out of 0.05 s, on a busy machine
    await wait_until(lambda: private_valkey.clients() <= 2, "what was cancelled is disconnected")


async def test_a_hang_that_ends_is_forgotten(private_valkey, opened, frozen_clock) -> None:
    """One look-up tries after five seconds, and its success lets all of them through."""
    process = await opened(private_valkey.url, bounds=Bounds(get_s=0.05, put_s=5.0))
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    private_valkey.suspend()
    for _ in range(4):
        assert await process.found() is None
    private_valkey.resume()
    await wait_until(lambda: process.cache.watch.connected, "the watch found the server again")
    found = None
    while found is None:  # a try may meet a busy machine; the breaker then waits for five seconds more
        frozen_clock.advance(5.0)
        found = await process.found()

    assert found == b"body"
    assert process.cache.generation.changes == 0


async def test_a_server_that_is_slow_is_waited_for_within_the_time_out(private_valkey, opened, frozen_clock) -> None:
    """A late answer within it is a hit like any other."""
    process = await opened(private_valkey.url)
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    private_valkey.suspend()
    look_up = asyncio.create_task(process.cache.get(KEY))
    await run_ticks(20)
    assert not look_up.done()
    private_valkey.resume()

    assert (await within(look_up, "the look-up ends")).body == b"body"


async def test_a_flushed_server_is_filled_again(valkey: ValkeyServer, opened, frozen_clock) -> None:
    """It is taught the generation anew; what processes hold by themselves stays."""
    first, second = await opened(valkey.url), await opened(valkey.url)
    await first.cache.put(KEY, recording(frozen_clock), 60.0)
    valkey.ask("FLUSHALL")
    assert await second.found() is None
    await wait_until(lambda: valkey.names() == [GENERATION], "the server knows the generation again")
    await first.cache.put(KEY, recording(frozen_clock, b"again"), 60.0)

    assert await second.found() == b"again"
    assert (first.purges, second.purges) == (0, 0)


async def test_a_full_server_refuses_to_store_and_is_still_read(opened, private_valkey, frozen_clock) -> None:
    """A write that fails costs nothing but its entry."""
    process = await opened(private_valkey.url)
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    private_valkey.ask("CONFIG", "SET", "maxmemory", "1")
    await process.cache.put(OTHER, recording(frozen_clock), 60.0)

    assert await process.found() == b"body"
    assert (process.cache.errors, process.cache.stored, process.cache.breaker.failures) == (1, 1, 0)


async def test_a_server_that_does_not_let_us_in_is_a_miss(private_valkey, opened) -> None:
    """A wrong password, and it is in no counter and no text."""
    private_valkey.ask("CONFIG", "SET", "requirepass", "right")
    process = await opened(private_valkey.url.replace("unix://", "unix://:hunter2@"), watched=False)
    assert await process.found() is None
    await wait_until(lambda: process.cache.errors, "it was refused")
    assert "hunter2" not in str(process.cache.describe())
    trusted = await opened(private_valkey.url.replace("unix://", "unix://:right@"))
    assert trusted.cache.up


# -- poison --------------------------------------------------------------------------------------------------------

POISONS: dict[str, Callable[[ValkeyServer, str], object]] = {
    "garbage": lambda server, name: server.ask("SET", name, b"\x80\x04\x95garbage"),
    "another type": lambda server, name: (server.ask("DEL", name), server.ask("HSET", name, "a", "b")),
    "a changed byte": lambda server, name: server.ask("SETRANGE", name, "60", "!"),
    "more than is looked into": lambda server, name: server.ask("SETRANGE", name, str(32 << 20), "!"),
    "a little more": lambda server, name: server.ask("APPEND", name, "!"),
    "less": lambda server, name: server.ask("SET", name, server.ask("GETRANGE", name, "0", "-2")),
}


@pytest.mark.parametrize("poison", POISONS)
async def test_a_poisoned_value_is_a_miss_and_is_written_over(poison, valkey, opened, frozen_clock) -> None:
    """It opens no breaker, and only as much of it is read as a value may have."""
    process = await opened(valkey.url)
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    (name,) = valkey.names("*:" + KEY.hex())
    POISONS[poison](valkey, name)

    assert await process.found() is None
    assert (process.cache.rejected, process.cache.errors, process.cache.breaker.failures) == (1, 0, 0)
    await process.cache.put(KEY, recording(frozen_clock, b"new"), 60.0)
    assert await process.found() == b"new"


async def test_no_more_of_a_value_crosses_the_wire_than_one_may_have(valkey, opened, frozen_clock) -> None:
    """The server cuts it off."""
    process = await opened(valkey.url, codec=Codec(SECRET, max_bytes=1000))
    await process.cache.put(KEY, recording(frozen_clock), 60.0)
    (name,) = valkey.names("*:" + KEY.hex())
    valkey.ask("SET", name, b"x" * 1_000_000)
    valkey.ask("CONFIG", "RESETSTAT")
    assert await process.found() is None
    stats = valkey.ask("INFO", "stats")
    sent = int(stats.partition(b"total_net_output_bytes:")[2].split(b"\r\n")[0])

    assert process.cache.rejected == 1
    assert sent < 5000


async def test_an_old_value_under_a_new_name_is_not_believed(valkey, opened, frozen_clock) -> None:
    """What was purged stays purged, whoever copies it; nor does a value serve under another key."""
    process = await opened(valkey.url)
    await process.cache.put(KEY, recording(frozen_clock, b"purged"), 60.0)
    (old,) = valkey.names("*:" + KEY.hex())
    process.cache.purge()
    await settled(process)
    new = f"sameflight:1:answers:{process.cache.generation.value:x}:"
    value = valkey.ask("GET", old)
    valkey.ask("SET", new + KEY.hex(), value)
    valkey.ask("SET", new + OTHER.hex(), value)

    assert [await process.found(KEY), await process.found(OTHER)] == [None, None]
    assert process.cache.rejected == 2


@pytest.mark.parametrize(
    "poison", [b"", b"garbage", b"-1", b"nan", b"inf", b"1", b"9007199254740993", b"1e300", b"0x7fffffffffff", b" 1 "]
)
async def test_a_poisoned_generation_is_put_right(poison, valkey, opened, frozen_clock) -> None:
    """Nothing is found while it is wrong; afterwards purges work as before."""
    first, second = await opened(valkey.url), await opened(valkey.url)
    before = first.cache.generation.value
    await first.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    valkey.ask("SET", GENERATION, poison)
    assert await second.found() is None
    await wait_until(lambda: valkey.ask("GET", GENERATION) == b"%d" % before, "it was put right")
    assert await second.found() == b"body"
    first.cache.purge()
    await wait_until(lambda: second.purges, "the other heard of it")
    assert await second.found() is None


async def test_messages_that_nobody_of_us_sent_change_nothing(valkey, opened, frozen_clock) -> None:
    """They are hints: what counts is what the server says when asked."""
    process = await opened(valkey.url)
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    settled_before = process.cache.watch.settled
    for word in (b"", b"garbage", b"9" * 40, b"\xff" * 1000, b"1"):
        valkey.ask("PUBLISH", "sameflight:1:answers:purges", word)
    await wait_until(lambda: process.cache.watch.settled >= settled_before + 5, "each made it ask")

    assert await process.found() == b"body"
    assert process.purges == 0


# -- connections ---------------------------------------------------------------------------------------------------


async def test_a_crowd_shares_a_bounded_number_of_connections(valkey, opened, frozen_clock) -> None:
    """Whatever the number of look-ups, stores and purges at once."""
    process = await opened(valkey.url)
    for number in range(3):
        await asyncio.gather(
            *(process.cache.put(bytes([each]) * 32, recording(frozen_clock), 60.0) for each in range(30)),
            *(process.cache.get(bytes([each]) * 32) for each in range(100)),
        )
        process.cache.purge()
        assert valkey.clients() <= BOUND, number
    assert (process.cache.errors, process.cache.timeouts, process.cache.crowded) == (0, 0, 0)


async def test_cancelled_look_ups_never_leave_their_answers_to_others(valkey, opened, frozen_clock) -> None:
    """A connection whose reply nobody waits for is closed: every answer is to its own question."""
    process = await opened(valkey.url, bounds=Bounds(get_s=30.0, put_s=30.0, gets=4, waiting_gets=1000))
    keys = [bytes([number]) * 32 for number in range(20)]
    for key in keys:
        await process.cache.put(key, recording(frozen_clock, b"of %d" % key[0]), 60.0)
    chance = random.Random(7)
    completed = cancelled = 0
    for _ in range(20):
        tasks = {asyncio.create_task(process.cache.get(key)): key for key in chance.sample(keys, 12)}
        for _ in range(chance.randrange(8)):
            await asyncio.sleep(0)
        for task in chance.sample(list(tasks), 4):
            task.cancel()
        for task, key in tasks.items():
            with suppress(asyncio.CancelledError):
                found = await within(task, "a look-up ends")
                assert found is not None
                assert found.body == b"of %d" % key[0]
                completed += 1
                continue
            cancelled += 1
    assert completed >= 100
    assert cancelled >= 20
    assert (process.cache.rejected, process.cache.outdated, process.cache.errors) == (0, 0, 0)
    assert valkey.clients() <= 8


async def test_closing_leaves_neither_connection_nor_task(valkey: ValkeyServer, opened) -> None:
    """Twice is as good as once."""
    process = await opened(valkey.url)
    assert valkey.clients() == 2
    for _ in range(2):
        await process.cache.close()
    await wait_until(lambda: valkey.clients() == 0, "the server saw them go")
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def front(valkey: ValkeyServer, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Puts TCP, and with ``authority`` TLS, before the server; gives the place as ``localhost:port``."""
    servers: list[asyncio.Server] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(valkey.path)
        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))

    async def listen(authority: trustme.CA | None = None) -> str:
        context = None
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(context)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        servers.append(server)
        return f"localhost:{server.sockets[0].getsockname()[1]}"

    yield listen
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_a_server_is_reached_by_tcp(scheme, front, opened, frozen_clock) -> None:
    """Both names are the same protocol; the database is the URL's."""
    process = await opened(f"{scheme}://{await front()}/3")
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    assert await process.found() == b"body"
    await process.cache.close()


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_a_server_is_reached_by_tls_if_its_name_is_vouched_for(
    scheme, front, opened, frozen_clock, tmp_path
) -> None:
    """By the authority that the URL names; else it is as if there were none."""
    authority, stranger = trustme.CA(), trustme.CA()
    files = {"ours": authority, "theirs": stranger}
    for name, each in files.items():
        each.cert_pem.write_to_path(str(tmp_path / name))
    place = await front(authority)
    process = await opened(f"{scheme}://{place}?ssl_ca_certs={tmp_path}/ours")
    await process.cache.put(KEY, recording(frozen_clock, b"body"), 60.0)
    assert await process.found() == b"body"
    wary = await opened(f"{scheme}://{place}?ssl_ca_certs={tmp_path}/theirs", watched=False)
    misnamed = await opened(
        f"{scheme}://{place.replace('localhost', '127.0.0.1')}?ssl_ca_certs={tmp_path}/ours", watched=False
    )
    for refused in (wary, misnamed):
        assert await refused.found() is None
        assert refused.cache.errors == 1
        await refused.cache.close()
    await process.cache.close()
