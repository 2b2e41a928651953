"""The feed: how changes reach the ring, and what happens when news, answers or versions fail."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.access.feed import PAGE, KeyFeed
from proxy.access.keyring import Keyring, Tuning
from proxy.config.keys import Allowance, Limits
from proxy.errors import ProxyError, StoreError
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks
from tests.fakes.keys import DIGESTER, FakeKeys, QuietLog, make_token

TOKEN = make_token(1)


class Rig:
    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self.keys = FakeKeys()
        self.log = QuietLog()
        self.allowances: list[Allowance] = []
        self.ring = Keyring(DIGESTER, self.keys, clock, Tuning(), jitter=lambda: 0.5)
        self.feed = KeyFeed(self.ring, self.keys, clock, self.log, on_allowance=self.allowances.append)

    async def begin(self) -> None:
        self.feed.start()
        await run_ticks(20)

    async def pass_time(self, seconds: float) -> None:
        """As the janitor does: a tick every half second."""
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)
            self.feed.tick()
            await run_ticks(5)

    def revoked(self, token: bytes = TOKEN) -> bool | None:
        """What a request would find; ``None`` if it had to wait."""
        held = self.ring.find(token, self.clock.now())
        return None if held is None else held.record.revoked_at > 0


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> AsyncIterator[Rig]:
    rig = Rig(frozen_clock)
    yield rig
    rig.keys.gate.set()
    await rig.feed.close()
    await rig.ring.close()


async def test_all_keys_are_in_memory_after_the_start(rig: Rig) -> None:
    """Page by page, so that the first request of a key waits no more than the others."""
    for number in range(2 * PAGE + 5):
        rig.keys.put(make_token(number))
    await rig.begin()

    assert len(rig.ring) == 2 * PAGE + 5
    assert rig.keys.questions == 4  # three pages, and once more after the subscription
    assert rig.ring.version_lag == 0
    assert rig.revoked(make_token(2 * PAGE + 4)) is False


async def test_keys_that_were_revoked_long_ago_take_no_room(rig: Rig) -> None:
    """They are refused by the database, once."""
    rig.keys.put(TOKEN, revoked_at=1.0)
    await rig.begin()

    assert len(rig.ring) == 0


async def test_a_revocation_is_known_as_soon_as_it_is_told(rig: Rig) -> None:
    """No time passes between the news and the next request."""
    rig.keys.put(TOKEN)
    await rig.begin()
    assert rig.revoked() is False
    rig.keys.put(TOKEN, revoked_at=1.0)
    rig.keys.tell()
    await run_ticks(5)

    assert rig.revoked() is True
    assert rig.keys.finds == 0


async def test_a_storm_of_news_becomes_a_few_questions(rig: Rig) -> None:
    """Ten thousand revocations are one question at a time, and the last news is in the last answer."""
    for number in range(100):
        rig.keys.put(make_token(number))
    await rig.begin()
    asked = rig.keys.questions
    rig.keys.gate.clear()
    for number in range(100):
        rig.keys.put(make_token(number), revoked_at=1.0)
        for _ in range(100):
            rig.keys.tell()
    await run_ticks()
    rig.keys.gate.set()
    await run_ticks(20)

    assert rig.keys.questions - asked <= 3
    assert all(rig.revoked(make_token(number)) for number in range(100))


async def test_a_revocation_nobody_tells_of_is_found_by_asking(rig: Rig) -> None:
    """LISTEN is dead: the poll finds it within five seconds."""
    rig.keys.put(TOKEN)
    await rig.begin()
    rig.keys.deaf = True
    rig.keys.watches[0].alive = False
    rig.keys.put(TOKEN, revoked_at=1.0)
    rig.keys.tell()
    await rig.pass_time(5.5)

    assert rig.revoked() is True
    assert not rig.feed.alive


async def test_a_quiet_hour_asks_for_no_key(rig: Rig) -> None:
    """One question in five seconds for the process, whatever the number of keys, and every key stays fresh."""
    for number in range(50):
        rig.keys.put(make_token(number))
    await rig.begin()
    asked = rig.keys.questions
    for _ in range(28):
        await rig.pass_time(10)
        assert all(rig.revoked(make_token(number)) is False for number in range(50))

    assert rig.keys.finds == 0
    assert 50 <= rig.keys.questions - asked <= 57


async def test_while_the_database_is_away_the_feed_asks_on_and_tells_once(rig: Rig) -> None:
    """And what changed meanwhile is known with the first answer."""
    rig.keys.put(TOKEN)
    await rig.begin()
    rig.keys.error = StoreError("unavailable")
    rig.keys.put(TOKEN, revoked_at=1.0)
    await rig.pass_time(60)
    assert rig.revoked() is False
    assert not rig.ring.database_up
    rig.keys.error = None
    await rig.pass_time(5.5)

    assert rig.revoked() is True
    assert rig.log.names == ["keys_unconfirmed", "keys_confirmed_again"]


async def test_a_database_that_was_away_at_the_start_is_listened_to_later(rig: Rig) -> None:
    """The subscription is made as soon as it can be."""
    rig.keys.error = StoreError("unavailable")
    rig.keys.put(TOKEN)
    await rig.begin()
    assert not rig.feed.alive
    with pytest.raises(ProxyError, match="auth_unavailable"):
        await rig.ring.fetch(TOKEN)
    rig.keys.error = None
    await rig.pass_time(5.5)

    assert rig.feed.alive
    assert rig.revoked() is False


async def test_a_database_restored_from_a_backup_is_read_anew(rig: Rig) -> None:
    """Its versions went back, so nothing that is held can be compared with it."""
    rig.keys.put(make_token(2))
    rig.keys.put(TOKEN)
    await rig.begin()
    rig.keys.by_id.pop("key_0000000000000001")
    rig.keys.version = 1
    await rig.pass_time(5.5)

    assert rig.revoked(make_token(2)) is False
    assert len(rig.ring) == 1
    assert rig.feed.resets == 1


async def test_allowances_come_with_the_keys(rig: Rig) -> None:
    """Whoever keeps them is told of each."""
    await rig.begin()
    await rig.keys.set_allowance(Allowance("team", "acme/red", Limits(concurrent=3)))
    await run_ticks(5)

    assert [allowance.name for allowance in rig.allowances] == ["acme/red"]


async def test_an_answer_that_never_comes_is_given_up(frozen_clock: FrozenClock) -> None:
    """A hung database is one that is away; the wait has an end of its own."""
    keys, log = FakeKeys(), QuietLog()
    keys.gate.clear()
    ring = Keyring(DIGESTER, keys, frozen_clock)
    feed = KeyFeed(ring, keys, frozen_clock, log, answer_s=0.0)
    feed.start()
    await feed.confirm()

    assert feed.failures >= 1
    assert not ring.database_up
    await feed.close()


async def test_the_end_closes_the_subscription_and_asks_no_more(rig: Rig) -> None:
    """Nothing of it is left running."""
    await rig.begin()
    await rig.feed.close()
    asked = rig.keys.questions
    rig.feed.heard(99)
    rig.feed.tick()
    await run_ticks(5)

    assert rig.keys.watches[0].closed
    assert rig.keys.questions == asked
