"""One worker's place: who dies comes back, who does not come up costs nobody, and who is replaced goes last."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import proxy.workers.slot as module
from proxy.workers.listening import Address, Listening
from proxy.workers.slot import LONGEST_PAUSE_S, STUCK_TICKS, Slot
from tests.fakes.gates import wait_until


class FakeChild:
    """A process that does as the test says."""

    made: list[FakeChild]

    def __init__(self, index: int, generation: int, admin_path: Path) -> None:
        self.index, self.generation, self.admin_path = index, generation, admin_path
        self.state, self.ready_now, self.silent_ticks = "starting", False, 0
        self.why, self.final, self.pid, self.ready_at = "", "", generation, 0.0
        self.code: int | None = None
        loop = asyncio.get_running_loop()
        self.settled: asyncio.Future[bool] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self.drains: list[tuple[float, float]] = []
        self.listened_on: object = None
        self.hurried = False
        self.made.append(self)

    async def start(self, data: object, parts: int, flags: Mapping[str, str], on_end: Any) -> None:
        self.listened_on, self._on_end = data, on_end

    def come_up(self) -> None:
        self.state, self.ready_now = "ready", True
        self.ready_at = asyncio.get_running_loop().time()
        self.settled.set_result(True)

    def end(self, code: int, why: str = "") -> None:
        self.state, self.ready_now, self.code, self.why = "ended", False, code, why
        if not self.settled.done():
            self.settled.set_result(False)
        self.ended.set_result(code)
        self._on_end(self)

    def drain(self, delay_s: float, grace_s: float) -> None:
        self.state = "draining"
        self.drains.append((delay_s, grace_s))

    def hurry(self) -> None:
        self.hurried = True

    def kill(self) -> None:
        if self.state != "ended":
            self.end(-9)

    def describe(self) -> dict[str, Any]:
        return {"state": self.state}


class FakeOffice:
    """A parent that remembers."""

    def __init__(self, tmp_path: Path) -> None:
        self.log = self
        self.starts: Counter[str] = Counter()
        self.said: list[str] = []
        self.gone: list[int] = []
        self._path = tmp_path

    def orders_for(self, index: int) -> Mapping[str, str]:
        return {}

    def admin_path(self, index: int, generation: int) -> Path:
        return self._path / f"{index}.{generation}"

    def ended(self, child: Any) -> None:
        self.gone.append(child.generation)

    def error(self, event: str, **_: object) -> None:
        self.said.append(event)

    warning = info = error


class Scene:
    """A slot among fakes."""

    def __init__(self, tmp_path: Path, **options: float) -> None:
        self.office = FakeOffice(tmp_path)
        self.listening = Listening(Address(str(tmp_path / "w.sock")))
        self.slot = Slot(0, 2, self.listening, self.office, **options)
        self.children = FakeChild.made

    async def child(self, generation: int) -> FakeChild:
        """The process of a generation, once it is being started."""
        await wait_until(
            lambda: len(self.children) >= generation and self.slot.starting is not None, f"generation {generation}"
        )
        return self.children[generation - 1]

    async def serving(self) -> FakeChild:
        """A worker that has come up and is kept."""
        self.slot.keep()
        child = await self.child(1)
        child.come_up()
        await wait_until(lambda: self.slot.current is not None, "it serves")
        return child

    async def close(self) -> None:
        ending = asyncio.ensure_future(self.slot.drain(0.0, 0.0))
        await wait_until(lambda: ending.done() or any(each.drains for each in self.children), "it is drained")
        for child in self.children:
            child.kill()
        await ending
        self.listening.close()


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(FakeChild, "made", [], raising=False)
    monkeypatch.setattr(module, "Child", FakeChild)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    made = Scene(tmp_path)
    yield made
    await made.close()


async def test_a_worker_that_dies_is_started_again_on_the_same_socket(scene: Scene) -> None:
    """Whoever waits in its queue is served by the next one."""
    first = await scene.serving()
    first.end(-11)
    second = await scene.child(2)
    second.come_up()
    await wait_until(lambda: scene.slot.current is second, "it is back")

    assert second.listened_on is first.listened_on is scene.listening.socket
    assert scene.office.starts == {"start": 1, "crash": 1}
    assert scene.office.said == ["worker_ended"]
    assert scene.office.gone == [1]


async def test_the_pause_doubles_with_each_failure_up_to_a_bound_and_health_ends_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot live must not take the processor from those that can."""
    pauses = []
    for failures in (0, 1, 2, 3, 40):
        scene.slot.failures = failures
        pauses.append(scene.slot.pause_s())
    scene.slot.failures = 0
    first = await scene.serving()
    scene.slot.failures = 7
    monkeypatch.setattr(module, "HEALTHY_S", 0.0)
    first.end(1)
    await scene.child(2)

    assert pauses == [0.0, 0.001, 0.002, 0.004, LONGEST_PAUSE_S]
    assert scene.slot.failures == 1


async def test_callers_of_a_worker_that_does_not_come_back_are_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer then goes to the next one, instead of waiting for an answer until its time-out."""
    first = await scene.serving()
    first.end(1)
    second = await scene.child(2)
    kept = scene.listening.socket
    monkeypatch.setattr(module, "QUEUE_S", 0.0)
    second.end(1, "no memory")
    third = await scene.child(3)

    assert second.listened_on is kept
    assert third.listened_on is scene.listening.socket is not kept
    assert "worker_failed" in scene.office.said


async def test_a_worker_that_never_becomes_ready_is_ended(
    tmp_path: Path, scene: Scene
) -> None:
    """Its place is not blocked for good by one bad start."""
    scene.slot._start_s = 0.01
    child, why = await scene.slot.start("start")

    assert child is None
    assert why == "not ready within 0.01 s"
    assert scene.children[0].code == -9


async def test_a_new_generation_is_ready_before_the_old_one_is_drained(scene: Scene) -> None:
    """At no time is nobody there."""
    first = await scene.serving()
    replacing = asyncio.ensure_future(scene.slot.replace(25.0))
    second = await scene.child(2)
    before = list(first.drains)
    second.come_up()
    old, why = await replacing

    assert before == []
    assert (old, why) == (first, "")
    assert first.drains == [(0.0, 25.0)]
    assert scene.slot.current is second
    assert scene.slot.parting == [first]
    first.end(0)
    assert scene.slot.parting == []
    assert scene.office.said == []


async def test_a_new_generation_that_cannot_start_leaves_the_old_one_alone(scene: Scene) -> None:
    """A bad configuration is no reason to stop."""
    first = await scene.serving()
    replacing = asyncio.ensure_future(scene.slot.replace(25.0))
    (await scene.child(2)).end(1, "the configuration file cannot be used")

    assert await replacing == (None, "the configuration file cannot be used")
    assert scene.slot.current is first
    assert first.drains == []


async def test_an_old_one_that_dies_while_its_successor_starts_is_replaced_once(scene: Scene) -> None:
    """The successor is there; nobody starts a third one."""
    first = await scene.serving()
    replacing = asyncio.ensure_future(scene.slot.replace(25.0))
    second = await scene.child(2)
    first.end(-9)
    second.come_up()
    assert await replacing == (None, "")
    await wait_until(lambda: scene.office.said == ["worker_ended"], "the death was seen")

    assert scene.slot.current is second
    assert len(scene.children) == 2


async def test_a_worker_that_says_nothing_any_more_is_ended_and_comes_back(scene: Scene) -> None:
    """Its loop is stuck, so it serves nobody; a probe of the parent would never see that."""
    first = await scene.serving()
    for _ in range(STUCK_TICKS):
        scene.slot.tick()
    alive = first.code is None
    scene.slot.tick()

    assert alive
    assert first.code == -9
    await scene.child(2)


async def test_an_end_during_a_start_leaves_no_process(scene: Scene) -> None:
    """Neither the one that is being started nor one more."""
    scene.slot.keep()
    child = await scene.child(1)
    await scene.slot.drain(0.0, 25.0)

    assert child.code == -9
    assert scene.slot.processes == []
    assert len(scene.children) == 1
