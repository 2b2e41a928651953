"""Time through objects that a test can hold still: ``Clock`` reads it, ``Deadlines`` waits for it.

``Deadlines`` replaces a timer per request. It is a wheel of slots, each a dictionary of handles: arming and
cancelling are one dictionary write, and one sweep (driven by the janitor in the process, by hand in tests) fires
what is due. Whoever needs a time-out that is re-armed with each byte keeps the time of its last byte and lets the
callback answer with the next time to ask: see ``Deadlines``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_NOWHERE = -1


class Clock:
    """The system's clocks. ``now`` is monotonic and decides; ``wall`` is for people and headers."""

    __slots__ = ()

    # The functions themselves: a method around them would cost more than they do, fifteen times a request.
    now: Callable[[], float] = staticmethod(time.monotonic)
    """Monotonic seconds."""
    wall: Callable[[], float] = staticmethod(time.time)
    """Seconds since the Unix epoch."""


class Deadline:
    """One armed deadline. ``cancel`` is idempotent and safe after it fired."""

    __slots__ = ("_slot", "_wheel", "at", "callback")

    def __init__(self, wheel: Deadlines, at: float, callback: Callable[[], float | None]) -> None:
        self._wheel = wheel
        self._slot = _NOWHERE
        self.at = at
        self.callback: Callable[[], float | None] | None = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._wheel._drop(self, self._slot)
        self._slot = _NOWHERE  # also while it fires: then what its callback returns does not arm it again


class Deadlines:
    """A wheel of deadlines with a resolution of ``tick_s``: nothing fires early, nothing later than one tick.

    The callback returns ``None`` to be done or a new absolute time to be armed for again, which is how an idle
    time-out follows the last byte without touching the wheel for each byte.
    """

    # The mutable state: _slots maps slot number -> armed handles; _swept is the last slot already fired.
    # Only `arm`, `_drop` and `sweep` write them.
    __slots__ = ("_clock", "_slots", "_swept", "armed", "tick_s")

    def __init__(self, clock: Clock, tick_s: float = 0.02) -> None:
        self._clock = clock
        self.tick_s = tick_s
        self._slots: dict[int, dict[Deadline, None]] = {}
        self._swept = int(clock.now() / tick_s)
        self.armed = 0

    def arm(self, delay_s: float, callback: Callable[[], float | None]) -> Deadline:
        """Call ``callback`` once ``delay_s`` seconds have passed."""
        return self.arm_at(self._clock.now() + delay_s, callback)

    def arm_at(self, at: float, callback: Callable[[], float | None]) -> Deadline:
        handle = Deadline(self, at, callback)
        self._insert(handle)
        return handle

    def _insert(self, handle: Deadline) -> None:
        # Rounded up so that no deadline fires early, and never into a slot that was swept already.
        slot = max(int(handle.at / self.tick_s) + 1, self._swept + 1)
        handle._slot = slot
        try:
            self._slots[slot][handle] = None
        except KeyError:
            self._slots[slot] = {handle: None}
        self.armed += 1

    def _drop(self, handle: Deadline, slot: int) -> None:
        handles = self._slots.get(slot)
        if handles is not None and handles.pop(handle, self) is None:
            self.armed -= 1
            if not handles:
                del self._slots[slot]

    def sweep(self) -> int:
        """Fire everything that is due and return how many fired. Callbacks may arm and cancel freely."""
        last = int(self._clock.now() / self.tick_s)
        if last <= self._swept:
            return 0
        # A long pause (suspend, a stopped process) leaves many empty slots; visit the armed ones instead.
        due = sorted(slot for slot in self._slots if slot <= last)
        self._swept = last
        fired = 0
        for slot in due:
            handles = self._slots.get(slot)
            while handles:
                handle, _ = handles.popitem()
                self.armed -= 1
                callback, handle.callback = handle.callback, None
                if callback is None:
                    continue
                fired += 1
                again = callback()
                if again is not None and handle._slot != _NOWHERE:
                    handle.at = again
                    handle.callback = callback
                    self._insert(handle)
            self._slots.pop(slot, None)
        return fired
