"""The asyncio shell: one task for each flight, owned by nobody's request, and nobody hangs whatever becomes of it."""

import asyncio
import contextlib
import gc
import weakref
from contextvars import ContextVar

import pytest

from proxy.clock import Deadlines
from proxy.errors import Kind, ProxyError
from proxy.flight.flight import Ending, Phase
from proxy.flight.limits import Limits
from proxy.flight.runner import TaskRunner
from proxy.flight.subscription import Exit
from proxy.flight.table import Table
from tests.fakes.clock import FrozenClock
from tests.fakes.flight import RecordingSink

tenant: ContextVar[str] = ContextVar("tenant")


class Shell:
    """A table on a real loop, with a sink for each request."""

    def __init__(self, produce, loop=None):
        clock = FrozenClock()
        self.runner = TaskRunner(loop or asyncio.get_running_loop())
        self.runner.produce = produce
        self.table = Table(clock, Deadlines(clock), self.runner, Limits())

    def join(self, key=b"key", **more):
        sink = RecordingSink()
        options = {"key": key, "scope": b"scope", "registers": True, "joins": True, **more}
        sink.subscription = self.table.join(sink, "work", **options)
        sink.start()
        return sink

    async def until_idle(self):
        """Every task has ended and been accounted for."""
        async with asyncio.timeout(5):
            await self.runner.wait()

    def assert_clean(self):
        assert (self.table.live, self.table.retained_bytes, len(self.runner)) == ({}, 0, 0)


async def answer(flight):
    """A production that does what it should."""
    flight.begin("head")
    flight.append(b"body")
    flight.seal(Ending.OK)
    flight.flush()


async def test_flight_is_filled_by_its_own_task():
    """The join returns at once; the answer comes with the next turns of the loop."""
    shell = Shell(answer)
    sinks = [shell.join(), shell.join()]
    assert [sink.takes for sink in sinks] == [0, 0]
    assert len(shell.runner) == 1
    await shell.until_idle()
    assert [(sink.body, sink.exit) for sink in sinks] == [(b"body", Exit.COMPLETE)] * 2
    assert shell.runner.bugs == 0
    assert sinks[0].flight.task is None
    shell.assert_clean()


async def test_task_knows_nothing_of_the_request_that_came_first():
    """TC156: the first caller's context variable is unset inside the flight, and unchanged outside."""
    seen = []

    async def look(flight):
        seen.append(tenant.get("unset"))
        tenant.set("changed by the flight")
        await answer(flight)

    shell = Shell(look)
    tenant.set("leader")
    shell.join()
    tenant.set("follower")
    shell.join()
    await shell.until_idle()
    assert seen == ["unset"]
    assert tenant.get() == "follower"


@pytest.mark.parametrize("crashes", [False, True])
async def test_deliveries_from_the_task_know_nothing_of_the_first_request_either(crashes):
    """TC156: followers are served in an empty context, also when production has crashed and the shell tells them."""

    async def produce(flight):
        if crashes:
            raise ZeroDivisionError
        await answer(flight)

    shell = Shell(produce)
    tenant.set("leader")
    sinks = [shell.join() for _ in range(200)]
    seen, all_seen = [], asyncio.Event()

    def look(_):
        seen.append(tenant.get("unset"))
        if len(seen) == 200:
            all_seen.set()

    for sink in sinks:
        sink.on_take = look
    await shell.until_idle()
    await all_seen.wait()
    assert set(seen) == {"unset"}


class Unusual(BaseException):
    """Neither an ``Exception`` nor known to asyncio."""


async def _raise_at_once(flight):
    raise ZeroDivisionError


async def _raise_after_the_head(flight):
    flight.begin("head")
    flight.append(b"half")
    flight.flush()
    await asyncio.sleep(0)
    raise ZeroDivisionError


async def _raise_unusually(flight):
    raise Unusual


async def _raise_and_leave_failing_words(flight):
    flight.begin("head")
    flight.flush()
    flight.last_words = lambda error: 1 / 0
    raise ZeroDivisionError


async def _end_without_a_seal(flight):
    flight.begin("head")


async def _cancel_itself(flight):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "produce",
    [
        _raise_at_once,
        _raise_after_the_head,
        _raise_unusually,
        _raise_and_leave_failing_words,
        _end_without_a_seal,
        _cancel_itself,
    ],
)
async def test_production_that_breaks_its_promise_hangs_nobody(produce):
    """TC058, TC088: every reader gets one error value, the flight is forgotten, the bug is counted."""
    shell = Shell(produce)
    sinks = [shell.join() for _ in range(3)]
    await shell.until_idle()
    assert {(sink.exit, sink.error.kind, sink.ends) for sink in sinks} == {(Exit.ERROR, Kind.BUG, 1)}
    assert len({bytes(sink.received) for sink in sinks}) == 1
    assert sinks[0].flight.ending is Ending.BUG
    assert (shell.runner.bugs, shell.table.endings[Ending.BUG]) == (1, 1)
    shell.assert_clean()


@pytest.mark.parametrize("leaving", [SystemExit, KeyboardInterrupt])
def test_process_that_is_told_to_exit_inside_production_hangs_nobody(leaving):
    """TC088: asyncio lets these two through; when the loop runs on to clean up, the readers are told."""
    loop = asyncio.new_event_loop()
    try:

        async def leave(flight):
            raise leaving

        shell = Shell(leave, loop)
        sinks = [shell.join(), shell.join()]
        with pytest.raises(leaving):
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(shell.runner.wait())
        assert {(sink.exit, sink.error.kind) for sink in sinks} == {(Exit.ERROR, Kind.BUG)}
        shell.assert_clean()
    finally:
        loop.close()


async def test_text_of_a_bug_is_for_the_operator_alone():
    """The client must not see our exception; the log must."""

    async def crash(flight):
        raise ValueError("postgres://secret")

    shell = Shell(crash)
    sink = shell.join()
    await shell.until_idle()
    assert "secret" not in sink.error.public
    assert "secret" in sink.error.detail


async def test_failure_after_the_seal_harms_no_reader_and_is_counted():
    """The answer is whole; that something is wrong shows in the counter."""

    async def crash_late(flight):
        await answer(flight)
        raise ZeroDivisionError

    shell = Shell(crash_late)
    sink = shell.join()
    await shell.until_idle()
    assert (sink.exit, sink.error) == (Exit.COMPLETE, None)
    assert (shell.runner.bugs, sink.flight.ending) == (1, Ending.OK)
    shell.assert_clean()


async def test_failure_of_the_cache_write_harms_no_reader():
    """FILLING: the readers have their answer already, and the flight is unmapped all the same."""

    async def crash_while_filling(flight):
        flight.begin("head")
        flight.seal(Ending.OK, filling=True)
        flight.flush()
        raise ZeroDivisionError

    shell = Shell(crash_while_filling)
    sink = shell.join()
    await shell.until_idle()
    assert (sink.exit, sink.flight.ending, sink.flight.phase) == (Exit.COMPLETE, Ending.OK, Phase.ENDED)
    assert shell.runner.bugs == 1
    shell.assert_clean()


async def test_task_cancelled_from_outside_is_an_error_value_for_its_readers():
    """TC058, I7: nobody but the task itself sees a ``CancelledError``."""
    running = asyncio.Event()

    async def wait(flight):
        running.set()
        await asyncio.Event().wait()

    shell = Shell(wait)
    sinks = [shell.join(), shell.join()]
    await running.wait()
    sinks[0].flight.task.cancel()
    await shell.until_idle()
    assert {(sink.exit, sink.error.kind) for sink in sinks} == {(Exit.ERROR, Kind.BUG)}
    shell.assert_clean()


async def test_departure_of_the_last_reader_cancels_the_task():
    """TC048: production is told by a ``CancelledError`` at the point where it waits, and that is no bug."""
    running, told = asyncio.Event(), []

    async def wait(flight):
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append(flight.ending)
            raise

    shell = Shell(wait)
    sink = shell.join()
    await running.wait()
    sink.place.leave()
    await shell.until_idle()
    assert told == [Ending.ABANDONED]
    assert shell.runner.bugs == 0
    shell.assert_clean()


async def test_reader_that_leaves_before_the_task_has_begun():
    """The task is cancelled before its first step: production never runs, and nothing is left."""
    ran = []

    async def note(flight):
        ran.append(flight)

    shell = Shell(note)
    shell.join().place.leave()
    await shell.until_idle()
    assert (ran, shell.runner.bugs) == ([], 0)
    shell.assert_clean()


async def test_reader_that_leaves_inside_a_delivery_cancels_the_task_at_its_next_await():
    """The task that is running is the one to be stopped."""
    reached = []

    async def produce(flight):
        flight.begin("head")
        flight.flush()
        reached.append("flushed")
        await asyncio.sleep(0)
        reached.append("went on")

    shell = Shell(produce)
    sink = shell.join()
    sink.on_take = lambda sink: sink.place.leave()
    await shell.until_idle()
    assert reached == ["flushed"]
    assert (sink.exit, shell.runner.bugs) == (Exit.LEFT, 0)
    shell.assert_clean()


async def test_stop_of_a_flight_whose_task_has_ended_does_nothing():
    """The watchdog and the drain stop whatever they find."""
    shell = Shell(answer)
    flight = shell.join().flight
    await shell.until_idle()
    shell.runner.stop(flight)
    assert flight.task is None


async def test_running_task_survives_garbage_collection():
    """Invariant 3: the loop holds tasks weakly, the runner does not."""
    gate = asyncio.Event()

    async def wait(flight):
        await gate.wait()
        await answer(flight)

    shell = Shell(wait)
    sink = shell.join()
    task = weakref.ref(sink.flight.task)
    await asyncio.sleep(0)
    sink.flight.task = None
    gc.collect()
    assert task() is not None
    assert len(shell.runner) == 1
    gate.set()
    await shell.until_idle()
    assert sink.exit is Exit.COMPLETE


async def test_ended_flight_is_garbage():
    """Nothing in the shell or the table holds a flight, its task or its work after the end."""

    class Work:
        pass

    shell = Shell(answer)
    work = Work()
    sink = RecordingSink()
    place = shell.table.join(sink, work, key=b"k", scope=b"s", registers=True, joins=True)
    alive = [weakref.ref(work), weakref.ref(place.flight.task)]
    await shell.until_idle()
    del work, place
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


async def test_deferred_callback_runs_on_the_next_turn():
    """Others get their turn in between."""
    order = []
    shell = Shell(answer)
    asyncio.get_running_loop().call_soon(order.append, "other")
    shell.runner.defer(lambda: order.append("deferred"))
    assert order == []
    await asyncio.sleep(0)
    assert order == ["other", "deferred"]


async def test_thousand_followers_let_the_loop_turn_while_they_are_served():
    """TC079: between the head and the last follower's head the loop turned at least fifteen times."""
    shell = Shell(answer)
    sinks = [shell.join() for _ in range(1_000)]
    turns = 0
    while any(sink.exit is None for sink in sinks):
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 15
    assert {sink.body for sink in sinks} == {b"body"}
    await shell.until_idle()
    shell.assert_clean()


async def test_wait_returns_at_once_when_nothing_runs():
    """A drain of an idle process."""
    shell = Shell(answer)
    await shell.until_idle()
    assert len(shell.runner) == 0


async def test_wait_waits_for_tasks_that_start_meanwhile():
    """A flight may begin while another one ends."""
    shell = Shell(None)

    async def chain(flight):
        if flight.id < 4:
            shell.join(b"key%d" % flight.id)
        await answer(flight)

    shell.runner.produce = chain
    shell.join()
    await shell.until_idle()
    assert shell.table.started == 4
    shell.assert_clean()


async def test_wait_that_is_given_up_leaves_the_tasks_running():
    """The caller bounds the wait, and what still runs is not harmed by that."""
    gate = asyncio.Event()

    async def wait(flight):
        await gate.wait()
        await answer(flight)

    shell = Shell(wait)
    sink = shell.join()
    waiting = asyncio.ensure_future(shell.runner.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    gate.set()
    await shell.until_idle()
    assert sink.exit is Exit.COMPLETE
    shell.assert_clean()


async def test_shut_stops_every_task_and_tells_every_reader():
    """The last step of a drain: no task is left, no reader hangs."""
    running = asyncio.Event()

    async def wait(flight):
        flight.begin("head")
        flight.flush()
        if flight.id == 5:
            running.set()
        await asyncio.Event().wait()

    shell = Shell(wait)
    sinks = [shell.join(b"key%d" % number) for number in range(5)]
    await running.wait()
    shell.table.shut(ProxyError(Kind.DRAINING, "Going away."))
    await shell.until_idle()
    assert {(sink.exit, sink.error.kind) for sink in sinks} == {(Exit.ERROR, Kind.DRAINING)}
    assert shell.runner.bugs == 0
    shell.assert_clean()
