"""The ring of keys in memory: what is served without waiting, what is fetched, and what nobody vouches for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import accumulate
from typing import Any

import pytest

from proxy.access.feed import KeyFeed
from proxy.access.keyring import Held, Keyring
from proxy.access.levels import Reading, Tuning
from proxy.access.token import mint
from proxy.config.keys import KeyRecord
from proxy.errors import Kind, ProxyError, StoreError
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks
from tests.fakes.keys import DIGESTER, FakeKeys, QuietLog, make_token

AWAY = StoreError("unavailable")
TOKEN = make_token(1)
FRESH_S, SOFT_S, STALE_S = 30.0, 24.0, 900.0


class Rig:
    """A ring over a fake database, on a clock that stands still."""

    def __init__(self, clock: FrozenClock, shared: Any = None, **tuning: Any) -> None:
        self.clock = clock
        self.keys = FakeKeys()
        self.shared = shared
        self.ring = Keyring(
            DIGESTER, self.keys, clock, Tuning(**tuning), shared=shared, jitter=lambda: 0.5
        )
        self.feed = KeyFeed(self.ring, self.keys, clock, QuietLog())
        self.ring.confirm = None  # the tests of the feed bring it back

    def find(self, token: bytes = TOKEN) -> Held | None:
        return self.ring.find(token, self.clock.now())

    async def ask(self, token: bytes = TOKEN) -> Held:
        """What a request does."""
        return self.find(token) or await self.ring.fetch(token)

    async def settled(self) -> None:
        await run_ticks(10)


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> AsyncIterator[Rig]:
    rig = Rig(frozen_clock)
    yield rig
    rig.keys.gate.set()
    await rig.ring.close()


def refusal(kind: Kind) -> Any:
    return pytest.raises(ProxyError, check=lambda error: error.kind is kind)


# -- a key that is known ---------------------------------------------------------------------------------------


async def test_a_key_is_fetched_once_and_then_found_without_waiting(rig: Rig) -> None:
    """A steady request asks nobody."""
    record = rig.keys.put(TOKEN)

    assert rig.find() is None
    assert (await rig.ring.fetch(TOKEN)).record is record
    for _ in range(1000):
        held = rig.find()
        assert held is not None
        assert held.record is record
    assert (rig.keys.finds, rig.ring.hits, rig.ring.misses) == (1, 1000, 1)


async def test_a_hundred_callers_of_one_new_key_make_one_query(rig: Rig) -> None:
    """They wait for the same look-up, and all get its result."""
    rig.keys.put(TOKEN)
    rig.keys.gate.clear()
    callers = [asyncio.ensure_future(rig.ask()) for _ in range(100)]
    await run_ticks()
    rig.keys.gate.set()
    held = await asyncio.gather(*callers)

    assert rig.keys.finds == 1
    assert len(set(map(id, held))) == 1


async def test_a_caller_that_leaves_does_not_take_the_look_up_with_it(rig: Rig) -> None:
    """The others still get their answer."""
    rig.keys.put(TOKEN)
    rig.keys.gate.clear()
    leaves, stays = asyncio.ensure_future(rig.ask()), asyncio.ensure_future(rig.ask())
    await run_ticks()
    leaves.cancel()
    await run_ticks()
    rig.keys.gate.set()

    assert (await stays).record.id == "key_0000000000000000"
    assert leaves.cancelled()
    assert rig.keys.finds == 1


async def test_a_key_in_use_is_read_again_behind_the_answer_before_it_is_outlived(rig: Rig) -> None:
    """Nobody waits for the renewal, and a burst starts only one."""
    rig.keys.put(TOKEN)
    await rig.ask()
    rig.clock.advance(SOFT_S - 0.1)
    assert rig.find() is not None
    assert rig.keys.finds == 1
    rig.clock.advance(0.2)
    for _ in range(50):
        assert rig.find() is not None
    await rig.settled()

    assert rig.keys.finds == 2
    rig.clock.advance(SOFT_S - 0.1)
    assert rig.find() is not None
    assert rig.keys.finds == 2


async def test_a_key_that_was_idle_for_longer_than_it_is_fresh_is_fetched_again(rig: Rig) -> None:
    """Nobody has vouched for it since."""
    rig.keys.put(TOKEN)
    await rig.ask()
    rig.clock.advance(FRESH_S)

    assert rig.find() is None
    await rig.ask()
    assert rig.keys.finds == 2


async def test_keys_read_at_the_same_time_are_renewed_at_different_times(frozen_clock: FrozenClock) -> None:
    """A tenth more or less keeps a start from becoming a pulse."""
    dice = iter([0.0, 1.0])
    keys = FakeKeys()
    ring = Keyring(DIGESTER, keys, frozen_clock, jitter=lambda: next(dice))
    for number in (1, 2):
        keys.put(make_token(number))
        held = await ring.fetch(make_token(number))
        assert held.fresh_s == pytest.approx((27.0, 33.0)[number - 1])


async def test_the_word_of_the_feed_is_good_for_all_keys(rig: Rig) -> None:
    """An answer that nothing changed renews every key in memory at once, idle ones as well."""
    rig.keys.put(TOKEN)
    await rig.ask()
    for _ in range(40):
        rig.clock.advance(5.0)
        rig.ring.confirmed(1, rig.clock.now())
    assert rig.find() is not None
    await rig.settled()

    assert rig.keys.finds == 1


async def test_a_key_is_read_again_after_a_while_even_if_the_feed_vouches_for_it(rig: Rig) -> None:
    """A change that the feed missed is not missed for ever, and again nobody waits."""
    rig.keys.put(TOKEN)
    await rig.ask()
    rig.keys.put(TOKEN, revoked_at=1.0)  # untold
    rig.clock.advance(10 * FRESH_S + 1)
    rig.ring.confirmed(1, rig.clock.now())
    assert rig.find() is not None
    await rig.settled()

    held = rig.find()
    assert held is not None
    assert held.record.revoked_at == 1.0


# -- a key that nobody knows -----------------------------------------------------------------------------------


async def test_an_unknown_key_is_looked_up_once_and_then_refused_from_memory(rig: Rig) -> None:
    """Guessing costs the guesser more than the database."""
    with refusal(Kind.INVALID_KEY):
        await rig.ask()
    for _ in range(100):
        with refusal(Kind.INVALID_KEY):
            rig.find()
    assert (rig.keys.finds, rig.ring.unknown_hits) == (1, 100)

    rig.clock.advance(7.6)  # 5 s and a half of as much again
    with refusal(Kind.INVALID_KEY):
        await rig.ask()
    assert rig.keys.finds == 2


async def test_a_hundred_callers_of_one_unknown_key_make_one_query(rig: Rig) -> None:
    """The look-up of an unknown key is shared as well."""
    rig.keys.gate.clear()
    callers = [asyncio.ensure_future(rig.ask()) for _ in range(100)]
    await run_ticks()
    rig.keys.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)

    assert {getattr(each, "kind", None) for each in outcomes} == {Kind.INVALID_KEY}
    assert rig.keys.finds == 1


async def test_guesses_evict_no_valid_key(frozen_clock: FrozenClock) -> None:
    """What is unknown has a bounded place of its own."""
    rig = Rig(frozen_clock, max_keys=10, max_unknown=50)
    tokens = [make_token(number) for number in range(10)]
    for token in tokens:
        rig.keys.put(token)
        await rig.ask(token)
    for number in range(1000, 1500):
        with refusal(Kind.INVALID_KEY):
            await rig.ask(make_token(number))

    assert all(rig.find(token) is not None for token in tokens)
    assert len(rig.ring._unknown) == 50


@pytest.mark.parametrize(
    "token", [b"sf-", b"sf-junk", mint()[:-1] + b"!", b"sf-" + b"A" * (1 << 20), b"sf-' OR ''='"], ids=range(5)
)
async def test_junk_is_refused_without_a_look_up(rig: Rig, token: bytes) -> None:
    """The checksum tells, and a long token is not even hashed."""
    with refusal(Kind.INVALID_KEY):
        rig.find(token)

    assert (rig.ring.junk, rig.keys.finds, rig.ring.misses) == (1, 0, 0)


async def test_a_key_that_is_made_after_it_was_refused_works_as_soon_as_the_feed_tells(rig: Rig) -> None:
    """The memory of the refusal does not outlive the news."""
    with refusal(Kind.INVALID_KEY):
        await rig.ask()
    record = rig.keys.put(TOKEN)
    rig.ring.apply(record)

    held = rig.find()
    assert held is not None
    assert held.record is record


async def test_a_full_ring_forgets_the_refusal_of_a_key_that_was_made_since(frozen_clock: FrozenClock) -> None:
    """There is no room for it, so it is fetched with its first request, and not refused."""
    rig = Rig(frozen_clock, max_keys=1)
    rig.keys.put(make_token(2))
    await rig.ask(make_token(2))
    with refusal(Kind.INVALID_KEY):
        await rig.ask()
    record = rig.keys.put(TOKEN)
    rig.ring.apply(record)

    assert (await rig.ask()).record is record


async def test_unknown_revoked_and_expired_keys_take_the_same_steps(rig: Rig) -> None:
    """What it costs does not tell which of them it was: one digest, one look in memory, one query, then memory."""
    rig.keys.put(make_token(2), revoked_at=1.0)
    rig.keys.put(make_token(3), expires_at=1.0)
    costs = []
    for number in (1, 2, 3):
        token, made = make_token(number), []
        rig.ring.digest = lambda text, made=made: made.append(text) or DIGESTER.digest(text)  # type: ignore[misc]
        before = rig.keys.finds
        for _ in range(3):
            with suppress(ProxyError):
                await rig.ask(token)
        costs.append((len(made), rig.keys.finds - before))

    assert costs == [(4, 1)] * 3


# -- the database is away --------------------------------------------------------------------------------------


async def test_a_key_seen_before_is_served_while_the_database_is_away(rig: Rig) -> None:
    """And nobody waits for the database that does not answer."""
    rig.keys.put(TOKEN)
    await rig.ask()
    rig.keys.error = AWAY
    rig.clock.advance(FRESH_S + 1)
    assert (await rig.ask()).record.id  # the first one finds out
    assert not rig.ring.database_up
    for _ in range(100):
        rig.clock.advance(5.0)
        assert rig.find() is not None
        await rig.settled()

    assert rig.ring.stale_served == 101
    assert rig.keys.finds <= 102


async def test_a_key_is_refused_as_unavailable_once_nobody_vouched_for_it_for_too_long(rig: Rig) -> None:
    """The bound is on the time since the last confirmation, and the answer is never 401."""
    rig.keys.put(TOKEN)
    await rig.ask()
    rig.keys.error = AWAY
    rig.clock.advance(STALE_S - 1)
    await rig.ask()
    rig.clock.advance(1)
    with refusal(Kind.AUTH_UNAVAILABLE):
        await rig.ask()

    rig.keys.error = None
    rig.clock.advance(5.6)
    with refusal(Kind.AUTH_UNAVAILABLE):
        rig.find()  # and behind it somebody asks
    await rig.settled()
    assert rig.find() is not None


async def test_an_unknown_key_is_neither_wrong_nor_let_in_while_the_database_is_away(rig: Rig) -> None:
    """503 with a time to come back, and a pause in which the database is left alone."""
    rig.keys.put(TOKEN)
    rig.keys.error = AWAY
    for _ in range(100):
        with refusal(Kind.AUTH_UNAVAILABLE) as caught:
            await rig.ask()
        assert caught.value.retry_after_s is not None
    assert rig.keys.finds == 1

    rig.clock.advance(0.25)
    rig.keys.error = None
    assert (await rig.ask()).record.id
    assert rig.ring.database_up


@pytest.mark.parametrize("error", [StoreError("timeout"), TimeoutError(), RuntimeError("a defect"), OSError(5, "x")])
async def test_whatever_goes_wrong_in_a_look_up_is_unavailable(rig: Rig, error: Exception) -> None:
    """CVE-2026-59822: no failure of the check is a permission, and none tells the caller that the key is wrong."""
    rig.keys.put(TOKEN)
    rig.keys.error = error

    with refusal(Kind.AUTH_UNAVAILABLE) as caught:
        await rig.ask()
    assert "defect" not in caught.value.public
    assert rig.ring.levels.fetch_failures == 1


async def test_the_pause_between_questions_grows_and_ends_with_the_first_answer(rig: Rig) -> None:
    """A dead database sees a few questions, not one for each caller."""
    rig.keys.error = AWAY
    for _ in range(600):
        with refusal(Kind.AUTH_UNAVAILABLE):
            await rig.ask()
        rig.clock.advance(0.1)
    assert 12 <= rig.keys.finds <= 20


async def test_more_new_keys_than_can_be_looked_up_at_once_are_turned_away(frozen_clock: FrozenClock) -> None:
    """Nothing waits without a bound, and at the database even fewer ask at the same time."""
    rig = Rig(frozen_clock, max_lookups=8, max_queries=2)
    rig.keys.gate.clear()
    callers = [asyncio.ensure_future(rig.ask(make_token(number))) for number in range(20)]
    await run_ticks(20)
    assert rig.keys.finds == 2
    rig.keys.gate.set()
    kinds = [getattr(each, "kind", None) for each in await asyncio.gather(*callers, return_exceptions=True)]

    assert kinds.count(Kind.AUTH_UNAVAILABLE) == 12
    assert kinds.count(Kind.INVALID_KEY) == 8
    assert rig.ring.turned_away == 12


# -- versions --------------------------------------------------------------------------------------------------


async def test_an_older_record_never_replaces_a_newer_one(rig: Rig) -> None:
    """Whichever comes last, the higher version stays."""
    old = rig.keys.put(TOKEN)
    await rig.ask()
    new = rig.keys.put(TOKEN, revoked_at=1.0)
    rig.ring.apply(new)
    rig.ring.apply(old)

    held = rig.find()
    assert held is not None
    assert held.record is new
    assert rig.ring.older_refused == 1


async def test_a_look_up_that_began_before_a_revocation_does_not_undo_it(rig: Rig) -> None:
    """The record that was on its way is older than the news that overtook it."""
    rig.keys.put(TOKEN)
    rig.keys.gate.clear()
    caller = asyncio.ensure_future(rig.ask())
    await run_ticks()
    rig.ring.apply(rig.keys.put(TOKEN, revoked_at=1.0))
    rig.keys.gate.set()

    assert (await caller).record.revoked_at == 1.0
    held = rig.find()
    assert held is not None
    assert held.record.revoked_at == 1.0


async def test_a_key_that_is_made_while_it_is_looked_up_is_found(rig: Rig) -> None:
    """The query saw no such key, the news did."""
    rig.keys.gate.clear()
    caller = asyncio.ensure_future(rig.ask())
    await run_ticks()
    record = rig.keys.put(TOKEN)
    rig.ring.apply(record)
    rig.keys.gate.set()

    assert (await caller).record is record


async def test_a_change_replaces_the_key_at_once_and_what_was_derived_from_it(rig: Rig) -> None:
    """The next request sees the new record; whoever keeps more of a key is told."""
    told: list[float] = []
    rig.ring.on_change = lambda record: told.append(record.revoked_at)
    rig.keys.put(TOKEN)
    held = await rig.ask()
    held.memo["derived"] = 1
    rig.ring.apply(rig.keys.put(TOKEN, revoked_at=5.0))

    again = rig.find()
    assert again is not None
    assert (again.record.revoked_at, again.memo, told) == (5.0, {}, [5.0])


async def test_a_key_that_is_gone_from_the_database_is_gone_from_memory(rig: Rig) -> None:
    """Somebody deleted the row by hand: the next reading ends it."""
    rig.keys.put(TOKEN)
    await rig.ask()
    rig.keys.by_id.clear()
    rig.clock.advance(FRESH_S)

    with refusal(Kind.INVALID_KEY):
        await rig.ask()
    assert len(rig.ring) == 0


# -- room ------------------------------------------------------------------------------------------------------


async def test_a_full_ring_lets_go_of_a_key_that_is_not_used(frozen_clock: FrozenClock) -> None:
    """Keys in use get a second chance each time."""
    rig = Rig(frozen_clock, max_keys=4)
    for number in range(4):
        rig.keys.put(make_token(number))
        await rig.ask(make_token(number))
    for number in (0, 1, 3):
        rig.find(make_token(number))
    rig.keys.put(make_token(9))
    await rig.ask(make_token(9))

    assert rig.find(make_token(2)) is None
    assert all(rig.find(make_token(number)) is not None for number in (0, 1, 3, 9))
    assert (len(rig.ring), rig.ring.evictions) == (4, 1)


@pytest.mark.long
async def test_a_hundred_thousand_keys_in_zipf_traffic_are_found_in_memory(frozen_clock: FrozenClock) -> None:
    """Hit rate above 99 % over minutes of traffic, one request in a hundred with a key that nobody knows: those are
    the only ones that ever wait."""
    rig = Rig(frozen_clock)
    rig.ring.confirm = rig.feed.confirm
    dice = random.Random(1)
    tokens = [b"sf-%049d" % number for number in range(100_000)]  # the checksum is looked at for strangers only
    for token in tokens:
        rig.keys.put(token)
    rig.feed.start()
    while rig.ring.version < rig.keys.version:
        await run_ticks()
    weights = list(accumulate(1.0 / rank for rank in range(1, len(tokens) + 1)))
    for second in range(330):
        frozen_clock.advance(1.0)
        rig.feed.tick()
        await run_ticks(4)
        for token in [*dice.choices(tokens, cum_weights=weights, k=100), make_token(dice.randrange(1, 50))]:
            with suppress(ProxyError):
                await rig.ask(token)
        if second == 300:
            rig.keys.put(tokens[0], name="renamed")

    assert rig.ring.hit_rate > 0.99
    assert rig.ring.misses <= 330  # strangers
    assert rig.keys.questions < 100 + 330 / 5 + 10
    assert len(rig.ring) == len(tokens)
    await rig.feed.close()


# -- suspension ------------------------------------------------------------------------------------------------


async def test_a_process_that_was_stopped_confirms_its_keys_before_the_next_request(rig: Rig) -> None:
    """One question for all keys, however many callers come at once; a revocation it slept through is seen."""
    rig.ring.confirm = rig.feed.confirm
    tokens = [make_token(number) for number in range(20)]
    for token in tokens:
        rig.keys.put(token)
    rig.feed.start()
    await rig.settled()
    assert all(rig.find(token) is not None for token in tokens)
    rig.keys.put(tokens[3], revoked_at=1.0)  # while it was stopped
    questions = rig.keys.questions
    rig.clock.advance(2.5)  # nobody ticked

    async def use(token: bytes) -> KeyRecord:
        return (await rig.ask(token)).record  # as it is at that moment

    crowd = [*reversed(tokens), *tokens[:4] * 4]
    records = await asyncio.gather(*map(use, crowd))

    assert [record.revoked_at for record in records if record.digest == DIGESTER.digest(tokens[3])] == [1.0] * 5
    assert all(rig.find(token) is not None for token in tokens)
    assert rig.keys.questions - questions <= 2
    assert (rig.keys.finds, rig.ring.doubts) == (0, 1)
    await rig.feed.close()


async def test_a_machine_that_slept_confirms_its_keys_at_the_next_tick(rig: Rig) -> None:
    """Monotonic time stood still meanwhile; wall time did not."""
    rig.keys.put(TOKEN)
    rig.feed.start()
    await rig.settled()
    rig.clock.advance(0.1)
    rig.clock.set_wall(rig.clock.wall() + 3600)
    rig.feed.tick()

    assert rig.find() is None
    await rig.settled()
    assert rig.find() is not None
    await rig.feed.close()


async def test_a_process_that_wakes_without_a_database_serves_what_it_knew(rig: Rig) -> None:
    """It tried to confirm, and the bound of stale keys holds from the last confirmation."""
    rig.ring.confirm = rig.feed.confirm
    rig.keys.put(TOKEN)
    rig.feed.start()
    await rig.settled()
    rig.keys.error = AWAY
    rig.clock.advance(60)

    assert (await rig.ask()).record.id
    assert rig.ring.stale_served == 1
    rig.clock.advance(STALE_S - 60)
    with refusal(Kind.AUTH_UNAVAILABLE):
        await rig.ask()
    await rig.feed.close()


# -- the shared level ------------------------------------------------------------------------------------------


class FakeShared:
    """A level in front of the database."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Reading] = {}
        self.gets = 0

    async def get(self, digest: bytes) -> Reading | None:
        self.gets += 1
        return self.kept.get(digest)

    async def put(self, reading: Reading) -> None:
        self.kept[reading.record.digest] = reading


async def test_what_another_process_read_saves_the_query(frozen_clock: FrozenClock) -> None:
    """The second process asks the shared level, and the database not at all."""
    shared = FakeShared()
    first, second = Rig(frozen_clock, shared), Rig(frozen_clock, shared)
    record = first.keys.put(TOKEN)
    await first.ask()

    assert (await second.ask()).record is record
    assert (first.keys.finds, second.keys.finds, second.ring.levels.shared_hits) == (1, 0, 1)


async def test_what_is_shared_says_how_far_its_reader_knew_the_changes(frozen_clock: FrozenClock) -> None:
    """At the beginning of the reading: what came during it may be missing."""
    shared = FakeShared()
    rig = Rig(frozen_clock, shared)
    record = rig.keys.put(TOKEN)
    rig.ring.confirmed(5, frozen_clock.now())
    rig.keys.gate.clear()
    caller = asyncio.ensure_future(rig.ask())
    await run_ticks()
    rig.ring.confirmed(9, frozen_clock.now())
    rig.keys.gate.set()
    await caller

    assert shared.kept[record.digest].as_of == 5


async def test_a_shared_record_older_than_the_news_is_not_believed(frozen_clock: FrozenClock) -> None:
    """A revocation that this process heard of and had no room for counts against what others left behind."""
    shared = FakeShared()
    rig = Rig(frozen_clock, shared, max_keys=1)
    old = rig.keys.put(TOKEN)
    shared.kept[old.digest] = Reading(old, old.version, frozen_clock.now())
    rig.keys.put(make_token(2))
    await rig.ask(make_token(2))  # the ring is full
    rig.ring.apply(rig.keys.put(TOKEN, revoked_at=1.0))

    assert (await rig.ask()).record.revoked_at == 1.0
    assert shared.kept[old.digest].record.revoked_at == 1.0


async def test_a_shared_record_that_is_nearly_outlived_is_not_believed(frozen_clock: FrozenClock) -> None:
    """Ages do not add up over levels."""
    shared = FakeShared()
    rig = Rig(frozen_clock, shared)
    record = rig.keys.put(TOKEN)
    shared.kept[record.digest] = Reading(record, 1, frozen_clock.now() - SOFT_S)
    await rig.ask()

    assert rig.keys.finds == 1
