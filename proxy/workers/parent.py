"""The parent: keeps the listening sockets, starts the workers on them, and starts, replaces and ends those.

It carries no request. What it does when:

    SIGTERM, SIGINT   drain all workers, exit 0; a second one cuts the drain short
    SIGHUP            all workers read the configuration again
    SIGUSR2           rolling restart: worker after worker a new process, ready before the old one stops
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from proxy.config.settings import Loaded, Settings, as_text, load_settings
from proxy.telemetry import process
from proxy.telemetry.log import get_logger
from proxy.workers import StartError, systemd
from proxy.workers.admin import ParentAdmin
from proxy.workers.child import Child, fits
from proxy.workers.listening import Listening, addresses
from proxy.workers.merge import Group, Totals, series_group
from proxy.workers.slot import START_S, Slot
from proxy.workers.status import ParentThereError, StatusFile

_LEAST_SPOOL_BYTES: Final = 8 << 20
_PACE_S: Final = 5.0
"""How long a rolling restart waits for an old worker to end before it goes on with the next one."""
_SILENT_TICKS: Final = 3
_STATES: Final = ("starting", "ready", "unready", "draining", "stuck", "waiting")


class Rolls(NamedTuple):
    """Rolling restarts so far."""

    wanted: int = 0
    done: int = 0
    """Those that are over, well or not."""
    why: str = ""
    """Why the last one stopped; empty if it did not."""


class Parent:
    """One parent and its workers. ``run`` is its whole life."""

    # Mutable state: the slots between start and end; `rolls` and `_rolling`; `phase`; `starts` and `results` count.
    # Written by the methods here, and `starts` by the slots.
    def __init__(
        self, loaded: Loaded, flags: Mapping[str, object], count: int, *, given: Iterable[socket.socket] = ()
    ) -> None:
        """``flags`` are the settings of the command line, ``given`` sockets of systemd, one for each worker. Needs a
        running loop."""
        self.settings = loaded.settings
        self.log = get_logger()
        self.count = count
        self.phase = "starting"
        self.starts: Counter[str] = Counter()
        self.results: Counter[str] = Counter()
        self.rolls = Rolls()
        self.slots: list[Slot] = []
        self.totals = Totals()
        self.admin = ParentAdmin(self, self.totals)
        self.start_s = START_S
        self._flags = {name: as_text(value) for name, value in flags.items() if value is not None}
        self._secret = secrets.token_hex(32)
        self._given = list(given)
        self._status: StatusFile | None = None
        self._directory = Path()
        self._stop = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._listener: asyncio.Server | None = None

    # -- life -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal. Raises ``StartError``."""
        loop = asyncio.get_running_loop()
        try:
            await self._open()
            self._heed_signals(loop)
            await self._first_start()
            await self._stop.wait()
            await self._drain()
        finally:
            await self._close()

    async def _open(self) -> None:
        settings = self.settings
        try:
            self._status = StatusFile(settings.state_dir)
            self._directory = self._make_directory()
            self._listener = await asyncio.get_running_loop().create_server(
                self.admin, settings.admin_host, settings.admin_port
            )
            places = addresses(settings, self.count)
            if self._given and len(self._given) != self.count:
                raise StartError(f"{len(self._given)} sockets were handed over for {self.count} workers")
            for index, address in enumerate(places):
                given = self._given[index] if self._given else None
                listening = Listening(address, settings.unix_socket_mode, given)
                self.slots.append(Slot(index, self.count, listening, self, start_s=self.start_s))
        except ParentThereError as error:
            raise StartError(str(error)) from None
        except OSError as error:
            raise StartError(f"cannot listen: {error}") from None

    def _make_directory(self) -> Path:
        """Where the admin sockets of workers are: nobody else may look in."""
        directory = (Path(self.settings.state_dir) / "workers").absolute()
        if fits(directory / f"{self.count}.{10**6}.sock"):
            shutil.rmtree(directory, ignore_errors=True)  # of a parent that was killed
            directory.mkdir(mode=0o700, parents=True)
            return directory
        return Path(tempfile.mkdtemp(prefix="sameflight-"))

    async def _first_start(self) -> None:
        """The first worker alone, because it brings the database up to date and finds what is wrong with the
        configuration; then all others."""
        first = self.slots[0]
        child, why = await first.start("start")
        if child is None:
            if self._stop.is_set():
                return
            raise StartError(why)
        first.current = child
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        for slot in self.slots:
            slot.keep()
        if not self._stop.is_set():
            self.phase = "serving"
        tried = asyncio.gather(*(slot.tried.wait() for slot in self.slots[1:]))
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((tried, stop), return_when=asyncio.FIRST_COMPLETED)
        if tried.done():
            self._tell()
        for task in (tried, stop):
            task.cancel()
        await asyncio.gather(tried, stop, return_exceptions=True)

    def _tell(self) -> None:
        data = [str(slot.listening.address) for slot in self.slots]
        self.log.info("serving", data=data, admin=self.admin_url, workers=self.count, share=self.settings.share)
        self._write_status()
        systemd.notify("READY=1")

    async def _drain(self) -> None:
        delay_s, grace_s = self.settings.drain_delay_s, self.settings.drain_grace_s
        self.phase = "draining"
        systemd.notify("STOPPING=1")
        running = sum(len(slot.processes) for slot in self.slots)
        self.log.info("draining", grace_s=grace_s, delay_s=delay_s, processes=running)
        self._stop.clear()
        drains = [asyncio.ensure_future(slot.drain(delay_s, grace_s)) for slot in self.slots]
        drained = asyncio.gather(*drains)
        again = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((again, drained), return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():
            self.log.warning("drain_cut_short")
            for slot in self.slots:
                slot.hurry()
        await drained
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    async def _close(self) -> None:
        self.phase = "stopped"
        for task in (self._rolling, self._ticking):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        alive = [child for slot in self.slots for child in slot.processes]
        for child in alive:
            child.kill()
        if alive:
            await asyncio.wait([child.ended for child in alive])
        for slot in self.slots:
            slot.listening.close()
        if self._listener is not None:
            self._listener.close()
            await self.admin.shutdown(0.1)
        if self._directory != Path():
            shutil.rmtree(self._directory, ignore_errors=True)
        if self._status is not None:
            self._status.close()

    def _heed_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop_or_hurry)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        loop.add_signal_handler(signal.SIGUSR2, self.roll)

    def _stop_or_hurry(self) -> None:
        self._stop.set()
        if self.phase == "starting":
            for slot in self.slots:
                if slot.starting is not None:
                    slot.starting.kill()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for slot in self.slots:
                slot.tick()

    # -- orders -----------------------------------------------------------------------------------------------

    def reload(self) -> None:
        for slot in self.slots:
            for child in slot.processes:
                child.reload()

    def roll(self) -> None:
        """Replace all workers, one after the other. Asked for while one is under way, it is done once more."""
        if self.phase != "serving":
            return
        self.rolls = self.rolls._replace(wanted=self.rolls.wanted + 1)
        self._write_status()
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.get_running_loop().create_task(self._roll())

    async def _roll(self) -> None:
        while self.rolls.done < self.rolls.wanted:
            wanted = self.rolls.wanted
            await self._wait_for_old()
            self.log.info("roll_begins", workers=self.count)
            why = await self._roll_once()
            self.results["stopped" if why else "done"] += 1
            if why:
                self.log.error("roll_stopped", why=why)
            else:
                self.log.info("roll_done", workers=self.count)
            self.rolls = self.rolls._replace(done=wanted, why=why)
            self._write_status()

    async def _wait_for_old(self) -> None:
        """There are never more than two processes for each worker: those of the last roll end first."""
        ends = [child.ended for slot in self.slots for child in slot.parting]
        if ends:
            await asyncio.wait(ends)

    async def _roll_once(self) -> str:
        """Why it stopped, if it did."""
        for slot in self.slots:
            old, why = await slot.replace(self.settings.drain_grace_s)
            if why:
                return f"worker {slot.index}: {why}"
            if old is not None:
                await asyncio.wait((old.ended,), timeout=_PACE_S)
        return ""

    # -- what slots ask ---------------------------------------------------------------------------------------

    def orders_for(self, index: int) -> Mapping[str, str]:
        """Read anew for each process, so that secrets come from their files as they are now. Raises
        ``SettingsError``."""
        loaded = load_settings(flags=self._flags)
        settings, address = loaded.settings, self.slots[index].listening.address
        orders = dict(self._flags)
        orders |= {"workers": "1", "supervised": "false", "unix_socket": address.path}
        if not address.path:
            orders["port"] = str(address.port)
        orders |= divide(settings, self.count)
        if loaded.sources["limit_workers"] == "default":
            orders["limit_workers"] = str(self.count)
        if not settings.key_secret:
            orders["key_secret"] = self._secret
        return orders

    def admin_path(self, index: int, generation: int) -> Path:
        return self._directory / f"{index}.{generation}.sock"

    def ended(self, child: Child) -> None:
        self.totals.bury(child.name, child.final)
        if child.state == "ended" and child.final:
            self.log.info("worker_gone", worker=child.index, generation=child.generation, code=child.code)

    # -- what the admin listener asks -------------------------------------------------------------------------

    def is_live(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return self.phase == "serving" and any(self._is_ready(slot) for slot in self.slots)

    def has_started(self) -> bool:
        return self.phase != "starting"

    def _is_ready(self, slot: Slot) -> bool:
        child = slot.current
        return child is not None and child.ready_now and child.silent_ticks <= _SILENT_TICKS

    def serving(self) -> dict[str, Child]:
        found: dict[str, Child] = {}
        for slot in self.slots:
            if slot.current is not None:
                found[str(slot.index)] = slot.current
            for number, child in enumerate(slot.parting):
                found[f"{slot.index}-draining" + (f"-{number}" if number else "")] = child
        return found

    def describe(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "ready_workers": sum(self._is_ready(slot) for slot in self.slots),
            "workers": {str(slot.index): slot.describe() for slot in self.slots},
            "rolls": self.rolls._asdict(),
        }

    def own_series(self) -> list[Group]:
        states = dict.fromkeys(_STATES, 0.0)
        for slot in self.slots:
            states[self._state_of(slot)] += 1
            states["draining"] += len(slot.parting)
        return [
            series_group("workers", states),
            series_group("worker_starts_total", {name: float(count) for name, count in self.starts.items()}),
            series_group("worker_rolls_total", {name: float(count) for name, count in self.results.items()}),
            *_process_groups(),
        ]

    def _state_of(self, slot: Slot) -> str:
        child = slot.current
        if child is None:
            return "waiting" if slot.starting is None else "starting"
        if child.silent_ticks > _SILENT_TICKS:
            return "stuck"
        return child.state if child.state != "ready" or child.ready_now else "unready"

    # -- addresses --------------------------------------------------------------------------------------------

    @property
    def admin_url(self) -> str:
        assert self._listener is not None
        return f"http://{self.settings.admin_host}:{self._listener.sockets[0].getsockname()[1]}"

    def _write_status(self) -> None:
        if self._status is not None:
            data = [str(slot.listening.address) for slot in self.slots] if self.phase == "serving" else []
            facts = {"admin": self.admin_url, "data": data, "workers": self.count}
            self._status.write({**facts, **self.rolls._asdict()})


def divide(settings: Settings, count: int) -> dict[str, str]:
    """What the settings give to the whole program, in equal parts. What holds for each process is left as it is."""
    parts = {"spool_bytes": max(_LEAST_SPOOL_BYTES, settings.spool_bytes // count)}
    if settings.memory_limit_bytes:
        parts["memory_limit_bytes"] = max(1, settings.memory_limit_bytes // count)
    if settings.max_connections:
        parts["max_connections"] = -(-settings.max_connections // count)
    return {name: str(value) for name, value in parts.items()}


def _process_groups() -> list[Group]:
    """The parent's own share of the ``process_…`` series."""
    groups = []
    for name, read in process.readers().items():
        if name.endswith("_total"):
            group = Group(name, "", "counter")
            group.samples[name] = read()
        else:
            group = Group(name, "", "gauge")
            group.samples[f'{name}{{worker="parent"}}'] = read()
        groups.append(group)
    return groups
