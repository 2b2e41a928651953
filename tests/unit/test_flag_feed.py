"""The feed of flags: when it asks, what it does with the answer, and what happens while there is none."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from proxy.config.feature_flags import Flag, Flags
from proxy.config.flag_changes import FlagMark, StoredFlags
from proxy.errors import StoreError
from proxy.flag_feed import MAX_TOLD, FlagFeed
from proxy.flag_snapshot import FlagSnapshot
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import run_ticks, wait_until, within
from tests.fakes.keys import QuietLog

OFF = Flag("pruning", percent=0.0)


class FakeSource:
    """A store whose rules and whose mood a test decides."""

    def __init__(self) -> None:
        self.stored = StoredFlags(Flags(), FlagMark())
        self.failure: StoreError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[FlagMark | None] = []

    def put(self, *rules: Flag) -> None:
        change = self.stored.mark.change + 1
        self.stored = StoredFlags(Flags(rules, change), FlagMark(change, 1000.0 + change))

    async def read_flags(self, seen: FlagMark | None = None) -> StoredFlags | None:
        self.seen.append(seen)
        stored, failure = self.stored, self.failure
        await self.gate.wait()
        if failure is not None:
            raise failure
        return None if stored.mark == seen else stored


class Rig:
    def __init__(self, clock: FrozenClock, path: Path) -> None:
        self.clock = clock
        self.source = FakeSource()
        self.log = QuietLog()
        self.adopted: list[Flags] = []
        self.hears = True
        self.snapshot = FlagSnapshot(path / "flags.json", self.log, database="one")
        self.feed = self.make_feed()

    def make_feed(self) -> FlagFeed:
        return FlagFeed(
            self.source, self.adopt, self.clock, self.log, hears=lambda: self.hears, snapshot=self.snapshot
        )

    def adopt(self, flags: Flags) -> bool:
        self.adopted.append(flags)
        return True

    async def pass_time(self, seconds: float) -> None:
        """As the janitor does: a tick every half second."""
        for _ in range(int(seconds * 2)):
            self.clock.advance(0.5)
            self.feed.tick()
            await run_ticks(5)

    async def rest(self) -> None:
        await wait_until(lambda: self.feed._task is None or self.feed._task.done(), "the feed is at rest")

    def in_force(self) -> Sequence[Flag]:
        return self.adopted[-1].rules()


@pytest.fixture
async def rig(frozen_clock: FrozenClock, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(frozen_clock, tmp_path)
    yield rig
    rig.source.gate.set()
    await rig.feed.close()


async def test_the_rules_are_in_force_before_anybody_is_served(rig: Rig) -> None:
    """A process never begins with a flag on that the store has off."""
    rig.source.put(OFF)

    await rig.feed.start(wait=True)

    assert rig.in_force() == [OFF]
    assert rig.log.names == ["flags_changed"]
    assert rig.log.events[0][1]["rules"] == ["pruning global: none → off"]


async def test_where_news_arrive_it_asks_every_five_seconds(rig: Rig) -> None:
    """And not again for rules that it has: the store compares marks."""
    await rig.feed.start(wait=True)
    await rig.pass_time(20.0)

    assert 3 <= len(rig.source.seen) - 1 <= 4
    assert set(rig.source.seen[1:]) == {FlagMark()}
    assert len(rig.adopted) == 1


async def test_where_no_news_arrive_a_change_is_in_force_within_a_second(rig: Rig) -> None:
    """Behind a pooler, say, that swallows notifications."""
    rig.hears = False
    await rig.feed.start(wait=True)
    rig.source.put(OFF)

    await rig.pass_time(0.5)
    await rig.rest()

    assert rig.in_force() == [OFF]


async def test_news_during_a_question_lead_to_one_more(rig: Rig) -> None:
    """The answer in the air may be older than they are; a hundred of them are one question."""
    await rig.feed.start(wait=True)
    rig.source.gate.clear()
    rig.feed.wake()
    await run_ticks(3)
    rig.source.put(OFF)
    for _ in range(100):
        rig.feed.wake()
    rig.source.gate.set()
    await rig.rest()

    assert rig.in_force() == [OFF]
    assert len(rig.source.seen) == 3


async def test_a_store_that_is_away_changes_nothing(rig: Rig) -> None:
    """The last known rules stay, the age says since when, and one line of the log says so."""
    rig.source.put(OFF)
    await rig.feed.start(wait=True)
    rig.source.failure = StoreError("unavailable")
    await rig.pass_time(60.0)

    assert rig.in_force() == [OFF]
    assert rig.feed.age_s() == 60.0
    assert rig.feed.failures >= 11
    assert rig.log.names.count("flags_unconfirmed") == 1

    rig.source.failure = None
    await rig.pass_time(5.5)
    assert rig.log.names[-1] == "flags_confirmed_again"
    assert rig.feed.age_s() < 5.0
    assert len(rig.adopted) == 1


async def test_a_process_that_starts_without_the_store_takes_what_the_last_one_knew(rig: Rig) -> None:
    """What was turned off stays off; the store's word counts as soon as there is one."""
    rig.source.put(OFF, Flag("guard:pii", "tenant", "acme", 50.0))
    await rig.feed.start(wait=True)
    await rig.feed.close()
    rig.source.failure = StoreError("unavailable")

    second = rig.feed = rig.make_feed()
    await second.start(wait=False)

    assert rig.in_force() == [Flag("guard:pii", "tenant", "acme", 50.0), OFF]
    assert second.flags.version == 1
    assert rig.log.names[-2:] == ["flags_restored", "flags_changed"]
    rig.source.failure = None
    rig.source.put()
    await second.confirm()
    assert rig.source.seen[-1] is None
    assert rig.in_force() == []


async def test_what_another_database_said_is_not_taken(rig: Rig, tmp_path: Path) -> None:
    """A file that lies about, or is damaged, is as good as none."""
    rig.source.put(OFF)
    await rig.feed.start(wait=True)
    await rig.feed.close()
    assert FlagSnapshot(tmp_path / "flags.json", rig.log, database="two").read() is None
    assert rig.snapshot.read() == rig.source.stored

    for damaged in (b"", b"{}", b'{"form": 1', b"[]", json.dumps({"form": 1, "database": "one"}).encode()):
        (tmp_path / "flags.json").write_bytes(damaged)
        assert rig.snapshot.read() is None
    assert rig.log.names.count("flag_snapshot_refused") == 5
    (tmp_path / "flags.json").unlink()
    (tmp_path / "flags.json").mkdir()
    rig.snapshot.write(rig.source.stored)
    assert rig.log.names[-1] == "flag_snapshot_failed"
    assert os.listdir(tmp_path) == ["flags.json"]


async def test_a_database_that_was_set_back_is_read_again(rig: Rig) -> None:
    """Its last change has the same number, perhaps, and not the same time."""
    rig.source.put(OFF)
    await rig.feed.start(wait=True)
    rig.source.stored = StoredFlags(Flags([], 1), FlagMark(1, 5.0))

    await rig.feed.confirm()

    assert rig.in_force() == []


async def test_a_change_of_many_rules_is_a_short_line_in_the_log(rig: Rig) -> None:
    """With the number of those that are left out."""
    rig.source.put(*(Flag("tiers", "tenant", f"t{n:03}", 0.0) for n in range(100)))

    await rig.feed.start(wait=True)

    told = rig.log.events[-1][1]
    assert (len(told["rules"]), told["more"]) == (MAX_TOLD, 80)


async def test_closing_ends_a_question_in_the_air(rig: Rig) -> None:
    """And nobody asks after it."""
    await rig.feed.start(wait=True)
    rig.source.gate.clear()
    rig.feed.wake()
    await run_ticks(3)

    await within(rig.feed.close(), "the feed was closed")

    rig.feed.wake()
    await run_ticks(3)
    assert len(rig.source.seen) == 2
