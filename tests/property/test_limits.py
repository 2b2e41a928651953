"""Limits against models: a bucket against a log of everything that happened, budgets against a naive ledger."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.access.budgets import Purse
from proxy.access.budgets_leases import BudgetLeases
from proxy.access.limits import Limiter, Shortage
from proxy.access.limits_bucket import Bucket
from proxy.access.limits_reservation import Reservation
from proxy.clock import Deadlines
from proxy.config.keys import Allowance, Budget, KeyRecord
from proxy.errors import Kind, ProxyError
from tests.fakes.budgets import MemoryBudgets
from tests.fakes.clock import FrozenClock

PER_MINUTE, BURST_S = 120, 5.0
CAPACITY = 10

steps = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 14)), max_size=60)


def fits(log: list[tuple[float, int]], now: float, units: int) -> bool:
    """Whether no span of time up to now would hold more than the capacity and what drains in it."""
    total = 0
    for at, taken in reversed(log):
        total += taken
        most = CAPACITY - units if units <= CAPACITY else 0
        if total > most + (now - at) * PER_MINUTE / 60 + 1e-9:
            return False
    return True


@given(steps)
def test_a_bucket_admits_exactly_what_a_log_of_all_times_admits(given_steps: list[tuple[int, int]]) -> None:
    """One number remembers as much as the whole history, and the wait that it names is the shortest that helps."""
    bucket, log, now = Bucket(PER_MINUTE, BURST_S), [], 100.0
    for turn, (quarters, units) in enumerate(given_steps, 1):
        now += quarters / 4
        wait_s = bucket.wait_s(now, units)
        assert (wait_s == 0.0) == fits(log, now, units)
        if wait_s == 0.0:
            bucket.take(now, units, turn)
            log.append((now, units))
        else:
            assert fits(log, now + wait_s + 1e-6, units)
            assert not fits(log, now + wait_s - 1e-3, units)


@given(steps, st.data())
def test_what_is_given_back_never_lets_more_pass_than_was_used_and_misjudged(
    given_steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Estimates that turn out too high come back in any order: no span holds more of what was really used than the
    capacity, what drains in it, and one estimate's error."""
    bucket, now = Bucket(PER_MINUTE, BURST_S), 100.0
    log: list[tuple[float, int]] = []
    open_takings: list[tuple[int, int]] = []
    for turn, (quarters, units) in enumerate(given_steps, 1):
        now += quarters / 4
        if bucket.wait_s(now, units) == 0.0:
            bucket.take(now, units, turn)
            log.append((now, units))
            open_takings.append((turn, len(log) - 1))
        if open_takings and data.draw(st.booleans()):
            taken_turn, at = open_takings.pop(data.draw(st.integers(0, len(open_takings) - 1)))
            real = data.draw(st.integers(0, log[at][1]))
            before = bucket.empty_at
            bucket.amend(now, taken_turn, log[at][1] - real)
            assert bucket.empty_at <= before
            assert bucket.empty_at >= min(before, now)
            log[at] = log[at][0], real
    largest = 14
    for first in range(len(log)):
        used = 0
        for at, real in log[first:]:
            used += real
            assert used <= max(CAPACITY, largest) + (at - log[first][0]) * PER_MINUTE / 60 + largest + 1e-9


@given(st.integers(1, 10), st.integers(1, 10))
def test_what_is_given_back_at_once_was_never_taken(first: int, second: int) -> None:
    """No time has passed, so nothing has drained: the bucket is as it was."""
    bucket = Bucket(PER_MINUTE, BURST_S)
    bucket.take(100.0, first, 1)
    before = bucket.empty_at
    bucket.take(100.0, second, 2)
    bucket.amend(100.0, 2, second)
    assert abs(bucket.empty_at - before) < 1e-9


# -- budgets ----------------------------------------------------------------------------------------------------

LIMIT = 1_000
KEY = KeyRecord(id="key_1", digest=b"x" * 32, name="one", tenant="t", team="m", budget=Budget(LIMIT, "total"))
TEAM = Allowance("team", "t/m", budget=Budget(LIMIT // 2, "total"))
ACCOUNTS = {"key:key_1": LIMIT, "team:t/m": LIMIT // 2}


@dataclass
class Process:
    """One proxy process over the common store."""

    holder: str
    leases: BudgetLeases
    limiter: Limiter
    deadlines: Deadlines
    open: list[tuple[Reservation, int]] = field(default_factory=list)
    waiting: list[tuple[asyncio.Task[Reservation], int]] = field(default_factory=list)
    billed: int = 0


class BudgetMachine(RuleBasedStateMachine):
    """Processes that reserve, settle, refund, wait, lose answers of the store, and die."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FrozenClock()
        self.store = MemoryBudgets(self.clock.now)
        self.processes: list[Process] = []
        self.born = 0
        self.dead: list[str] = []
        self.billed = 0

    @initialize()
    def start(self) -> None:
        for _ in range(2):
            self._bear()

    def teardown(self) -> None:
        self.store.failing.clear()
        for process in self.processes:
            for task, _ in process.waiting:
                task.cancel()
        self._run()
        for process in self.processes:
            for reservation, _ in process.open:
                reservation.refund()
            process.open.clear()
        for _ in range(4):
            self.wait(40.0)  # the leases of the dead lapse
        for process in self.processes:
            self.loop.run_until_complete(process.leases.close())
        spent = {account: self.store.total(account) for account in ACCOUNTS}
        self.loop.close()
        assert spent == dict.fromkeys(ACCOUNTS, (self.billed, 0)), "every bill is told once, nothing stays leased"

    def _bear(self) -> None:
        self.born += 1
        holder = f"req_{self.born:012x}"
        deadlines = Deadlines(self.clock)
        leases = BudgetLeases(self.store, holder, self.clock, deadlines, lasts_s=30.0)
        limiter = Limiter(self.clock, leases)
        limiter.set_allowances([TEAM])
        self.processes.append(Process(holder, leases, limiter, deadlines))

    def _run(self) -> None:
        async def turns() -> None:
            for _ in range(60):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        for process in self.processes:
            for task, money in list(process.waiting):
                if task.done():
                    process.waiting.remove((task, money))
                    if not task.cancelled() and (error := task.exception()) is None:
                        process.open.append((task.result(), money))
                    elif not task.cancelled():
                        assert isinstance(error, ProxyError)
                        assert error.kind in (Kind.BUDGET_SPENT, Kind.BUDGET_UNAVAILABLE)

    @rule(which=st.integers(0, 9), money=st.integers(1, 120), asks=st.integers(1, 5))
    def reserve(self, which: int, money: int, asks: int) -> None:
        process = self.processes[which % len(self.processes)]

        async def ask() -> None:
            for _ in range(asks):
                taken = process.limiter.reserve(process.limiter.ties(KEY), 10, money)
                if isinstance(taken, Shortage):
                    process.waiting.append((self.loop.create_task(process.limiter.obtain(taken)), money))
                else:
                    process.open.append((taken, money))

        self.loop.run_until_complete(ask())
        self._run()

    @rule(which=st.integers(0, 9), at=st.integers(0, 99), part=st.integers(0, 4), twice=st.booleans())
    def end(self, which: int, at: int, part: int, twice: bool) -> None:
        process = self.processes[which % len(self.processes)]
        if process.open:
            reservation, money = process.open.pop(at % len(process.open))
            bill = money * part // 4

            async def settle() -> None:
                reservation.settle(10, bill)
                if twice:
                    reservation.settle(10, money)
                    reservation.refund()

            self.loop.run_until_complete(settle())
            process.billed += bill
            self.billed += bill
            self._run()

    @rule(which=st.integers(0, 9), at=st.integers(0, 99))
    def leave(self, which: int, at: int) -> None:
        process = self.processes[which % len(self.processes)]
        if process.waiting:
            process.waiting.pop(at % len(process.waiting))[0].cancel()
            self._run()

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.2, 2.5]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

        async def tick() -> None:
            for process in self.processes:
                process.deadlines.sweep()
                process.leases.tick()

        self.loop.run_until_complete(tick())
        self._run()

    @rule(how=st.sampled_from(["refuse", "lose"]))
    def fail(self, how: str) -> None:
        self.store.failing.append(how)

    @precondition(lambda self: len(self.processes) > 1)
    @rule(which=st.integers(0, 9))
    def kill(self, which: int) -> None:
        """It dies; what it had billed is in the usage records, and another takes its place."""
        process = self.processes.pop(which % len(self.processes))
        for task, _ in process.waiting:
            task.cancel()
        for task in process.leases._talkers:
            task.cancel()
        for account in ACCOUNTS:
            self.store.billed[account, "total", process.holder] = process.billed
        self.dead.append(process.holder)
        self._bear()
        self._tell_of_the_dead()

    def _tell_of_the_dead(self) -> None:
        """As the recovery of spools does, again and again."""
        for process in self.processes:
            for holder in self.dead:
                process.leases.recovered(holder)

    @invariant()
    def nothing_is_overspent(self) -> None:
        """In the store's books, and in truth: what was billed and what is promised never exceed the limit."""
        promised = sum(money for process in self.processes for _, money in process.open)
        for account, limit in ACCOUNTS.items():
            spent, leased = self.store.total(account)
            assert spent + leased <= limit
            assert self.billed + promised <= limit, account
            assert spent <= self.billed

    @invariant()
    def every_purse_adds_up(self) -> None:
        """What is reserved is the sum of the open reservations and of what waits half served."""
        for process in self.processes:
            for purse in process.leases._purses.values():
                self._check(process, purse)

    def _check(self, process: Process, purse: Purse) -> None:
        pot = purse.pot
        promised = sum(money for _, money in process.open)
        assert pot.free >= 0
        assert pot.reserved >= promised
        if not process.waiting:
            assert pot.reserved == promised
        assert pot.spent == process.billed
        held = self.store.holders.get((purse.account, "total", process.holder))
        if held is not None and not purse.busy:
            unheard = pot.spent - pot.told_spent + pot.returned - pot.told_returned
            assert pot.free + pot.reserved + unheard <= held.granted - pot.told_spent - pot.told_returned


BudgetMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBudgetMachine = BudgetMachine.TestCase


def test_a_budget_without_an_end_has_no_end() -> None:
    """Guards the model: the machine runs in one window."""
    assert MemoryBudgets().ends_at == math.inf
