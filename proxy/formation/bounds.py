"""The bounds of flights that processes share: seconds, bytes, counts."""

from __future__ import annotations

from typing import Final, NamedTuple

SLICE_BYTES: Final = 64 * 1024
"""Most bytes of an answer in one entry."""

LOOK_ENTRIES: Final = 16
"""Most entries that one look brings: a mebibyte of an answer."""


class Bounds(NamedTuple):
    """Fixed when the formation is made. Reaching one makes a flight this process's own; after a byte of the answer
    was let go it breaks off, as it would with an upstream."""

    ask_s: float = 0.02
    """Longest wait for a lease. Turns in which this process was late itself do not count against the server."""
    asks: int = 8
    """Leases asked for at once, each over a connection of its own."""
    waiting_asks: int = 128
    lease_s: float = 5.0
    """A lead that was not heard of for so long is dead; it tells that it lives three times as often."""
    open_s: float = 0.5
    """A lead that did not even begin within this time never was one: it was not there any more when it won."""
    write_s: float = 0.5
    look_s: float = 0.25
    probe_every_s: float = 0.02
    """While somebody waits for the first byte from another process, the server is asked so often whether it lives."""
    probe_s: float = 0.02
    spacing_s: float = 0.01
    """What comes within this time is written at once: a server's work grows with entries, not with bytes."""
    max_bytes: int = 4 << 20
    """Of one answer: a longer one takes no new process, and only this much of it is kept for those that lag."""
    total_bytes: int = 64 << 20
    """Of all answers that this process keeps on the server, and of what it has still to write."""
    max_leads: int = 1_000
    max_wings: int = 1_000
    max_join_age_s: float = 600.0
    keep_s: float = 5.0
    """How long an ended answer stays for those who are still reading it."""
    forget_s: float = 30.0
    """How long the server is still to be told of a lead that was given up."""
    tries: int = 3
    """Leads that one flight follows, one after another, before it goes alone."""

    @property
    def beat_s(self) -> float:
        return self.lease_s / 3
