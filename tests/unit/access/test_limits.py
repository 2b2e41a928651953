"""Limits and budgets of a key, its team and its tenant, taken in one pass."""

from __future__ import annotations

import asyncio

import pytest

from proxy.access.budgets_leases import BudgetLeases
from proxy.access.limits import Limiter, Shortage
from proxy.access.limits_account import LimitOptions
from proxy.access.limits_bucket import Bucket
from proxy.access.limits_reservation import UNLIMITED, Reservation
from proxy.clock import Deadlines
from proxy.config.keys import Allowance, Budget, KeyRecord, Limits
from proxy.errors import Kind, ProxyError
from proxy.protocol.faults import error_headers
from tests.fakes.budgets import MemoryBudgets
from tests.fakes.clock import FrozenClock

NO_LIMITS = Limits()


def key(
    limits: Limits = NO_LIMITS, budget: Budget | None = None, *, number: int = 1, tenant: str = "t", team: str = "m"
) -> KeyRecord:
    return KeyRecord(
        id=f"key_{number}", digest=b"k" * 32, name="n", tenant=tenant, team=team, limits=limits, budget=budget
    )


@pytest.fixture
def limiter(frozen_clock: FrozenClock) -> Limiter:
    """Without budgets and alone."""
    return Limiter(frozen_clock, None)


def reserve(limiter: Limiter, record: KeyRecord, tokens: int = 0) -> Reservation:
    taken = limiter.reserve(limiter.ties(record), tokens)
    assert isinstance(taken, Reservation)
    return taken


def refusal(limiter: Limiter, record: KeyRecord, tokens: int = 0) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        limiter.reserve(limiter.ties(record), tokens)
    return caught.value


def test_a_key_without_limits_takes_nothing(limiter: Limiter) -> None:
    """One reservation for all of them, of which nothing is remembered."""
    assert reserve(limiter, key(), 100) is UNLIMITED
    UNLIMITED.settle(1, 1)
    UNLIMITED.refund()
    assert UNLIMITED.header_lines() == b""
    assert len(limiter) == 0


def test_a_hundred_requests_against_sixty_a_minute_are_sixty(limiter: Limiter) -> None:
    """TC112: the others are refused before they could join anything, and told when to come back."""
    record = key(Limits(requests_per_minute=60))
    for _ in range(60):
        reserve(limiter, record)
    errors = [refusal(limiter, record) for _ in range(40)]
    assert {error.kind for error in errors} == {Kind.RATE_LIMITED}
    assert errors[0].retry_after_s == pytest.approx(1.0)
    assert errors[0].why == "key_requests"
    assert errors[0].public == "Rate limit reached for this key: 60 requests per minute. Try again in 1s."


def test_after_the_wait_that_was_named_exactly_one_more_passes(limiter: Limiter, frozen_clock: FrozenClock) -> None:
    """The wait is neither too short nor too long."""
    record = key(Limits(requests_per_minute=60))
    for _ in range(60):
        reserve(limiter, record)
    wait_s = refusal(limiter, record).retry_after_s
    assert wait_s is not None
    frozen_clock.advance(wait_s)
    reserve(limiter, record)
    refusal(limiter, record)


def test_the_refusal_says_in_headers_when_to_try_again(limiter: Limiter) -> None:
    """`Retry-After` in whole seconds, `retry-after-ms` exactly, and that trying again is right."""
    record = key(Limits(requests_per_minute=100))
    for _ in range(100):
        reserve(limiter, record)
    headers = dict(error_headers(refusal(limiter, record), "req_1"))
    assert headers[b"retry-after"] == b"1"
    assert headers[b"retry-after-ms"] == b"600"
    assert headers[b"x-should-retry"] == b"true"


def test_a_burst_may_be_bounded(frozen_clock: FrozenClock) -> None:
    """Ten seconds' worth of sixty a minute are ten at once."""
    limiter = Limiter(frozen_clock, None, None, LimitOptions(burst_s=10.0))
    record = key(Limits(requests_per_minute=60))
    for _ in range(10):
        reserve(limiter, record)
    refusal(limiter, record)


def test_processes_that_do_not_share_take_a_part_each(frozen_clock: FrozenClock) -> None:
    """Sixty a minute and nine at once among three processes are twenty and three."""
    limiter = Limiter(frozen_clock, None, None, LimitOptions(parts=3))
    for _ in range(20):
        reserve(limiter, key(Limits(requests_per_minute=60)))
    refusal(limiter, key(Limits(requests_per_minute=60)))
    crowd = key(Limits(concurrent=9), number=2)
    for _ in range(3):
        reserve(limiter, crowd)
    assert refusal(limiter, crowd).why == "key_concurrent"


def test_the_estimate_counts_until_the_truth_is_known(limiter: Limiter) -> None:
    """A thousand tokens a minute: two requests of four hundred, and a third when the first turns out to be small."""
    record = key(Limits(tokens_per_minute=1000))
    first = reserve(limiter, record, 400)
    reserve(limiter, record, 400)
    error = refusal(limiter, record, 400)
    assert (error.why, error.retry_after_s) == ("key_tokens", pytest.approx(12.0))
    first.settle(100, 0)
    reserve(limiter, record, 400)
    refusal(limiter, record, 200)


def test_an_answer_longer_than_estimated_is_counted_in_full(limiter: Limiter) -> None:
    """The debt is worked off before the next request."""
    record = key(Limits(tokens_per_minute=1000))
    reserve(limiter, record, 100).settle(2000, 0)
    assert refusal(limiter, record, 100).retry_after_s == pytest.approx(66.0)


def test_a_request_larger_than_a_minutes_tokens_passes_when_nothing_else_was_used(limiter: Limiter) -> None:
    """It would never pass otherwise; what it takes beyond the limit the next ones wait for."""
    record = key(Limits(tokens_per_minute=1000))
    large = reserve(limiter, record, 5000)
    assert refusal(limiter, record, 5000).retry_after_s == pytest.approx(300.0)
    large.settle(900, 0)
    reserve(limiter, record, 100)


def test_what_is_settled_once_is_settled(limiter: Limiter) -> None:
    """Whatever comes after the first settlement or refund has no effect."""
    record = key(Limits(tokens_per_minute=1000, concurrent=1))
    taken = reserve(limiter, record, 500)
    taken.settle(500, 0)
    taken.settle(100, 0)
    taken.refund()
    reserve(limiter, record, 500)
    assert refusal(limiter, record, 1).why == "key_concurrent"


def test_a_refund_gives_back_tokens_and_the_place_but_not_the_request(limiter: Limiter) -> None:
    """That it was made still counts."""
    record = key(Limits(requests_per_minute=2, tokens_per_minute=1000, concurrent=1))
    reserve(limiter, record, 1000).refund()
    reserve(limiter, record, 1000).refund()
    assert refusal(limiter, record, 1000).why == "key_requests"


def test_a_refused_step_leaves_the_steps_before_it_as_they_were(limiter: Limiter) -> None:
    """The tenant's crowd is full: key and team have counted nothing."""
    limiter.set_allowances(
        [
            Allowance("team", "t/m", Limits(requests_per_minute=5), version=1),
            Allowance("tenant", "t", Limits(concurrent=1), version=2),
        ]
    )
    record = key(Limits(requests_per_minute=2, tokens_per_minute=100))
    taken = reserve(limiter, record, 50)
    for _ in range(20):
        assert refusal(limiter, record, 50).why == "tenant_concurrent"
    taken.settle(50, 0)
    reserve(limiter, record, 50)
    assert refusal(limiter, record).why == "key_requests"


def test_keys_of_one_team_share_its_limits_and_equal_names_of_tenants_do_not(limiter: Limiter) -> None:
    """A team is named by its tenant too."""
    limiter.set_allowances([Allowance("team", "t/m", Limits(requests_per_minute=2), version=1)])
    reserve(limiter, key(number=1))
    reserve(limiter, key(number=2))
    assert refusal(limiter, key(number=3)).why == "team_requests"
    assert reserve(limiter, key(number=4, tenant="u")) is UNLIMITED


def test_a_changed_limit_holds_from_the_next_request_and_forgets_nothing(limiter: Limiter) -> None:
    """Ten of ten are taken; with twenty allowed half of it is free."""
    for _ in range(10):
        reserve(limiter, key(Limits(requests_per_minute=10)))
    refusal(limiter, key(Limits(requests_per_minute=10)))
    for _ in range(10):
        reserve(limiter, key(Limits(requests_per_minute=20)))
    refusal(limiter, key(Limits(requests_per_minute=20)))


def test_an_older_allowance_does_not_replace_a_newer_one(limiter: Limiter) -> None:
    """News may arrive in any order."""
    limiter.set_allowances([Allowance("tenant", "t", Limits(concurrent=1), version=7)])
    limiter.set_allowances([Allowance("tenant", "t", Limits(concurrent=50), version=6)])
    reserve(limiter, key())
    assert refusal(limiter, key()).why == "tenant_concurrent"


def test_headers_tell_the_limit_that_is_nearest_to_its_end(limiter: Limiter, frozen_clock: FrozenClock) -> None:
    """As the vendors write them, of the key for tokens and of the tenant for requests."""
    limiter.set_allowances([Allowance("tenant", "t", Limits(requests_per_minute=10), version=1)])
    taken = reserve(limiter, key(Limits(requests_per_minute=60, tokens_per_minute=6000)), 600)
    frozen_clock.advance(1.0)
    assert taken.header_lines().decode().splitlines() == [
        "x-ratelimit-limit-requests: 10",
        "x-ratelimit-remaining-requests: 9",
        "x-ratelimit-reset-requests: 5.00s",
        "x-ratelimit-limit-tokens: 6000",
        "x-ratelimit-remaining-tokens: 5500",
        "x-ratelimit-reset-tokens: 5.00s",
    ]


def test_idle_accounts_are_forgotten_and_running_ones_are_not(limiter: Limiter, frozen_clock: FrozenClock) -> None:
    """Only what is as if it had never been."""
    for number in range(2_500):
        taken = reserve(limiter, key(Limits(concurrent=1), number=number))
        if number:
            taken.settle(0, 0)
    frozen_clock.advance(3600.0)
    for _ in range(3):
        limiter.sweep()
    assert len(limiter) == 1
    assert refusal(limiter, key(Limits(concurrent=1), number=0)).why == "key_concurrent"
    reserve(limiter, key(Limits(concurrent=1), number=7))
    refusal(limiter, key(Limits(concurrent=1), number=7))


def test_a_full_bucket_is_not_forgotten(limiter: Limiter, frozen_clock: FrozenClock) -> None:
    """However long nobody asked: what is owed is owed."""
    record = key(Limits(tokens_per_minute=10))
    reserve(limiter, record, 1).settle(10_000, 0)
    frozen_clock.advance(3600.0)
    limiter.sweep()
    assert len(limiter) == 1
    refusal(limiter, record, 1)


# -- budgets ------------------------------------------------------------------------------------------------------


class Bench:
    """A limiter with budgets in memory."""

    def __init__(self, clock: FrozenClock, **options: bool) -> None:
        self.clock = clock
        self.deadlines = Deadlines(clock)
        self.store = MemoryBudgets(clock.now)
        self.leases = BudgetLeases(self.store, "req_" + "0" * 12, clock, self.deadlines, **options)
        self.limiter = Limiter(clock, self.leases)

    def start(self, record: KeyRecord, money: int, tokens: int = 0) -> Reservation | asyncio.Task[Reservation]:
        taken = self.limiter.reserve(self.limiter.ties(record), tokens, money)
        if isinstance(taken, Shortage):
            return asyncio.get_running_loop().create_task(self.limiter.obtain(taken))
        return taken

    async def reserve(self, record: KeyRecord, money: int, tokens: int = 0) -> Reservation:
        taken = self.start(record, money, tokens)
        return taken if isinstance(taken, Reservation) else await taken

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()
        self.leases.tick()
        await turns()


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@pytest.fixture
def bench(frozen_clock: FrozenClock) -> Bench:
    return Bench(frozen_clock)


async def refused(work: Reservation | asyncio.Task[Reservation]) -> ProxyError:
    assert isinstance(work, asyncio.Task)
    with pytest.raises(ProxyError) as caught:
        await work
    return caught.value


async def test_a_steady_request_asks_nobody(bench: Bench) -> None:
    """After the first ones a chunk is there: a thousand requests cost a few calls, none of them waited for."""
    record = key(budget=Budget(10**12))
    (await bench.reserve(record, 1000)).settle(0, 900)
    await turns()
    waits = bench.leases.waits
    for number in range(1000):
        taken = bench.start(record, 1000)
        assert isinstance(taken, Reservation)
        taken.settle(0, 900)
        if number % 10 == 0:
            await turns()
    assert bench.leases.waits == waits
    assert bench.store.leases < 100


async def test_a_spent_budget_is_refused_with_its_account_and_window(bench: Bench) -> None:
    """402, not to be tried again, and nothing asked of the store for the next ones."""
    record = key(budget=Budget(5 * 10**12, "month"))
    bench.store.ends_at = bench.clock.wall() + 86_400.0
    (await bench.reserve(record, 5 * 10**12)).settle(0, 5 * 10**12)
    await bench.pass_time(0.25)
    error = await refused(bench.start(record, 10**10))
    assert (error.kind, error.why) == (Kind.BUDGET_SPENT, "key_budget_month")
    assert error.public == (
        "The budget of this key is spent: $5.00 for this month (UTC), of which less is left than the $0.01 that this "
        "request may cost. It is renewed at 2026-01-02T00:00:00Z."
    )
    assert dict(error_headers(error, "r"))[b"x-should-retry"] == b"false"
    calls = bench.store.leases
    for _ in range(50):
        await refused(bench.start(record, 10**10))
    assert bench.store.leases == calls


async def test_money_that_another_process_holds_idle_comes_back_to_who_needs_it(
    bench: Bench, frozen_clock: FrozenClock
) -> None:
    """Nobody is refused for money that somebody only holds."""
    other = Bench(frozen_clock)
    other.store = bench.store
    other.leases = BudgetLeases(bench.store, "req_" + "1" * 12, frozen_clock, other.deadlines)
    other.limiter = Limiter(frozen_clock, other.leases)
    record = key(budget=Budget(1_000))
    (await other.reserve(record, 600)).settle(0, 100)
    waiting = bench.start(record, 700)
    await turns()
    assert isinstance(waiting, asyncio.Task)
    assert not waiting.done()
    await other.pass_time(0.25)
    await bench.pass_time(0.25)
    taken = await waiting
    taken.settle(0, 700)
    assert bench.store.most <= 1_000


async def test_all_that_wait_for_one_account_are_served_by_one_call(bench: Bench) -> None:
    """A hundred requests on an empty purse, one lease."""
    record = key(budget=Budget(10**6))
    waiting = [bench.start(record, 10) for _ in range(100)]
    await turns()
    assert bench.store.leases <= 2, "the second one fetches ahead"
    assert all(isinstance(each, asyncio.Task) and each.done() for each in waiting)


async def test_a_refund_serves_who_waits_at_once(bench: Bench) -> None:
    """The money did not have to go round by the store."""
    record = key(budget=Budget(100))
    first = await bench.reserve(record, 100)
    waiting = bench.start(record, 80)
    await turns()
    first.refund()
    taken = await waiting if isinstance(waiting, asyncio.Task) else waiting
    taken.settle(0, 80)
    await bench.leases.close()
    assert bench.store.total("key:key_1") == (80, 0)


async def test_a_request_that_goes_away_while_it_waits_leaves_no_promise(bench: Bench) -> None:
    """Before the grant, and in the very moment of it."""
    record = key(budget=Budget(100))
    bench.store.gate.clear()
    early, late = bench.start(record, 60), bench.start(record, 60)
    assert isinstance(early, asyncio.Task)
    assert isinstance(late, asyncio.Task)
    await turns()
    early.cancel()
    await turns()
    bench.store.gate.set()
    purse = bench.leases.purse("key:key_1", Budget(100))
    while purse.pot.reserved == 0:  # noqa: ASYNC110 - the very turn
        await asyncio.sleep(0)
    late.cancel()
    await turns()
    assert purse.pot.reserved == 0
    (await bench.reserve(record, 100)).refund()


async def test_a_limit_that_is_reached_while_money_is_fetched_gives_the_money_back(bench: Bench) -> None:
    """Two wait for money, one place is free."""
    record = key(Limits(concurrent=1), Budget(100))
    one, two = bench.start(record, 50), bench.start(record, 50)
    assert isinstance(one, asyncio.Task)
    await one
    assert (await refused(two)).why == "key_concurrent"
    assert bench.leases.purse("key:key_1", Budget(100)).pot.reserved == 50


async def test_without_the_store_what_was_leased_is_used_up_and_then_it_is_503(bench: Bench) -> None:
    """A budget that cannot be checked is not a budget that is spent."""
    record = key(budget=Budget(10**9))
    (await bench.reserve(record, 10)).settle(0, 10)
    (await bench.reserve(record, 10)).settle(0, 10)
    await turns()
    bench.store.failing = ["refuse"] * 10_000
    served = 0
    while isinstance(taken := bench.start(record, 10), Reservation):
        taken.settle(0, 10)
        served += 1
    assert served > 10
    await turns()
    await bench.pass_time(0.1)
    error = await refused(taken)
    assert (error.kind.status, error.kind.code, error.retry_after_s) == (503, "budget_unavailable", 1.0)
    assert (await refused(bench.start(record, 10))).kind is Kind.BUDGET_UNAVAILABLE
    bench.store.failing = []
    await bench.pass_time(1.5)
    (await bench.reserve(record, 10)).settle(0, 10)


async def test_without_the_store_requests_pass_where_the_operator_wants_that_and_are_charged_later(
    frozen_clock: FrozenClock,
) -> None:
    """The bill is told when the store is back."""
    bench = Bench(frozen_clock, allow_when_down=True)
    record = key(budget=Budget(1_000))
    bench.store.failing = ["refuse"] * 4
    work = bench.start(record, 10)
    await turns()
    await bench.pass_time(0.1)
    taken = await work if isinstance(work, asyncio.Task) else work
    taken.settle(0, 10)
    assert bench.leases.unchecked == 1
    bench.store.failing = []
    await bench.pass_time(1.5)
    await bench.reserve(record, 10)
    await bench.pass_time(1.5)
    assert bench.store.total("key:key_1")[0] == 10


async def test_a_new_window_begins_with_the_store_and_old_bills_stay_in_the_old_one(bench: Bench) -> None:
    """A request that began before midnight is paid by the day before."""
    record = key(budget=Budget(100, "day"))
    bench.store.window, bench.store.ends_at = "2026-01-01", bench.clock.wall() + 10.0
    old = await bench.reserve(record, 100)
    bench.clock.advance(11.0)
    bench.store.window, bench.store.ends_at = "2026-01-02", bench.clock.wall() + 86_400.0
    new = await bench.reserve(record, 100)
    old.settle(0, 70)
    new.settle(0, 30)
    await bench.leases.close()
    assert bench.store.total("key:key_1", "2026-01-01") == (70, 0)
    assert bench.store.total("key:key_1", "2026-01-02") == (30, 0)


async def test_a_wall_clock_that_is_an_hour_ahead_opens_no_window(bench: Bench) -> None:
    """Row 116: the store's clock decides, and steady requests still need not ask for each."""
    record = key(budget=Budget(10**12, "day"))
    bench.store.window, bench.store.ends_at = "2026-01-01", bench.clock.wall() - 3_600.0
    (await bench.reserve(record, 10)).settle(0, 10)
    (await bench.reserve(record, 10)).settle(0, 10)
    await turns()
    taken = bench.start(record, 10)
    assert isinstance(taken, Reservation)
    taken.settle(0, 10)
    await bench.leases.close()
    assert bench.store.total("key:key_1", "2026-01-01") == (30, 0)


async def test_a_bill_beyond_the_estimate_is_told_and_comes_out_of_the_next_grant(bench: Bench) -> None:
    """The answer is there and has to be paid."""
    record = key(budget=Budget(1_000))
    (await bench.reserve(record, 100)).settle(0, 400)
    (await bench.reserve(record, 600)).settle(0, 600)
    assert (await refused(bench.start(record, 1))).kind is Kind.BUDGET_SPENT
    await bench.leases.close()
    assert bench.store.total("key:key_1") == (1_000, 0)


async def test_a_request_of_unknown_price_is_let_through_and_counted_or_refused(bench: Bench) -> None:
    """As the operator said."""
    record = key(budget=Budget(100))
    taken = bench.limiter.reserve(bench.limiter.ties(record), 10, 0, priced=False)
    assert isinstance(taken, Reservation)
    assert bench.limiter.unpriced == 1
    strict = Limiter(bench.clock, bench.leases, None, LimitOptions(refuse_unpriced=True))
    with pytest.raises(ProxyError) as caught:
        strict.reserve(strict.ties(record), 10, 0, priced=False)
    assert (caught.value.kind, caught.value.why) == (Kind.BUDGET_SPENT, "key_unpriced")


async def test_the_leases_of_a_dead_process_come_back_once_its_usage_is_written(bench: Bench) -> None:
    """Not before: what it spent would be lent out again."""
    record = key(budget=Budget(1_000))
    dead = BudgetLeases(bench.store, "req_" + "d" * 12, bench.clock, bench.deadlines, lasts_s=10.0)
    await dead.obtain(dead.purse("key:key_1", Budget(1_000)), 900)
    await bench.pass_time(60.0)
    assert (await bench.store.expired_leases())[0][2] == dead.holder
    waiting = bench.start(record, 500)
    await bench.pass_time(0.1)
    assert isinstance(waiting, asyncio.Task)
    assert not waiting.done()
    bench.store.billed["key:key_1", "total", dead.holder] = 300
    bench.leases.recovered(dead.holder)
    await bench.pass_time(0.3)
    await bench.pass_time(0.3)
    (await waiting).settle(0, 500)
    await bench.leases.close()
    assert bench.store.total("key:key_1") == (800, 0)


async def test_a_bill_that_comes_while_the_store_is_asked_is_not_lent_out_again(bench: Bench) -> None:
    """The store's answer does not know of it yet."""
    record = key(budget=Budget(100))
    first = await bench.reserve(record, 60)
    bench.store.gate.clear()
    second = bench.start(record, 60)
    await turns()
    first.settle(0, 60)
    bench.store.gate.set()
    await turns()
    await bench.pass_time(0.1)
    assert (await refused(second)).kind is Kind.BUDGET_SPENT
    await bench.leases.close()
    assert bench.store.total("key:key_1") == (60, 0)


async def test_two_processes_that_hold_a_part_each_of_what_each_needs_do_not_both_wait_in_vain(
    bench: Bench, frozen_clock: FrozenClock
) -> None:
    """Fifty here, fifty there and twenty in the store bear one request of eighty."""
    other = Bench(frozen_clock)
    other.store = bench.store
    other.leases = BudgetLeases(bench.store, "req_" + "1" * 12, frozen_clock, other.deadlines)
    other.limiter = Limiter(frozen_clock, other.leases)
    record = key(budget=Budget(120))
    (await bench.reserve(record, 50)).refund()
    (await other.reserve(record, 50)).refund()
    waiting = [bench.start(record, 80), other.start(record, 80)]
    await turns()
    for at in range(60):
        await bench.pass_time(0.05)
        await other.pass_time(0.0)
        if at == 20:
            done = [isinstance(each, asyncio.Task) and each.done() for each in waiting]
            assert sorted(done) == [False, True], "within a second, long before anybody gives up"
    outcomes = await asyncio.gather(
        *(each for each in waiting if isinstance(each, asyncio.Task)), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["ProxyError", "Reservation"]


async def test_a_lease_that_could_not_be_extended_is_not_spent(bench: Bench) -> None:
    """Others may have been given it by then."""
    record = key(budget=Budget(10**9))
    for _ in range(3):
        (await bench.reserve(record, 10)).settle(0, 10)
        await turns()
    taken = bench.start(record, 10)
    assert isinstance(taken, Reservation)
    taken.refund()
    bench.store.failing = ["refuse"] * 1_000
    bench.clock.advance(119.0)
    late = bench.start(record, 10)
    await turns()
    await bench.pass_time(0.1)
    assert (await refused(late)).kind is Kind.BUDGET_UNAVAILABLE


async def test_nobody_passes_those_who_wait(bench: Bench) -> None:
    """A dear request is not kept waiting by a stream of cheap ones."""
    record = key(budget=Budget(100))
    (await bench.reserve(record, 100)).refund()
    large = bench.start(record, 70)
    assert isinstance(large, Reservation)
    bench.store.gate.clear()
    dear = bench.start(record, 50)
    await turns()
    cheap = bench.start(record, 20)
    assert isinstance(dear, asyncio.Task)
    assert isinstance(cheap, asyncio.Task)
    large.refund()
    bench.store.gate.set()
    (await dear).refund()
    (await cheap).refund()


def test_what_has_drained_is_not_given_back() -> None:
    """The bucket was empty in between: giving back the first taking would forget the second."""
    bucket = Bucket(60)
    bucket.take(100.0, 10, 1)
    bucket.take(200.0, 30, 2)
    bucket.amend(200.0, 1, 10)
    assert bucket.remaining(200.0) == 30
    bucket.amend(200.0, 2, 10)
    assert bucket.remaining(200.0) == 40


async def test_a_store_that_hangs_is_not_taken_for_a_budget_that_is_spent(bench: Bench) -> None:
    """Nothing was heard when the wait is over: 503, not 402; and the next one is told at once."""
    record = key(budget=Budget(1_000))
    bench.store.gate.clear()
    work = bench.start(record, 10)
    await turns()
    await bench.pass_time(2.1)
    assert (await refused(work)).kind is Kind.BUDGET_UNAVAILABLE
    assert (await refused(bench.start(record, 10))).kind is Kind.BUDGET_UNAVAILABLE
    assert bench.leases.waiting == 0
    bench.store.gate.set()
    await bench.pass_time(1.5)
    (await bench.reserve(record, 10)).settle(0, 10)


async def test_where_the_operator_wants_that_a_store_that_hangs_holds_up_the_first_request_alone(
    frozen_clock: FrozenClock,
) -> None:
    """It waits as long as the settings say; whoever comes behind it passes without a wait and is charged later."""
    bench = Bench(frozen_clock, allow_when_down=True)
    record = key(budget=Budget(1_000))
    bench.store.gate.clear()
    first = bench.start(record, 10)
    await turns()
    await bench.pass_time(2.1)
    assert isinstance(first, asyncio.Task)
    (await first).settle(0, 10)
    for _ in range(5):
        work = bench.start(record, 10)
        await asyncio.sleep(0)
        assert isinstance(work, asyncio.Task)
        assert work.done()
        work.result().settle(0, 10)
    assert bench.leases.unchecked == 6
    bench.store.gate.set()
    await bench.pass_time(1.5)
    await bench.reserve(record, 10)
    await bench.pass_time(1.5)
    assert bench.store.total("key:key_1")[0] == 60


def test_a_refused_request_is_told_the_limits_that_refused_it(limiter: Limiter) -> None:
    """It holds nothing of them."""
    record = key(Limits(requests_per_minute=1))
    reserve(limiter, record)
    refusal(limiter, record)
    told = limiter.refused_reservation(limiter.ties(record))
    told.settle(1, 1)
    assert b"x-ratelimit-remaining-requests: 0\r\n" in told.header_lines()
    assert limiter.describe()["running"] == 1
