"""The bounds of the flight room: counts, bytes, seconds."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Fixed when the table is made. Where a bound is reached, a request goes alone or one reader is cut; none of them
    is a reason for an answer to fail, except ``max_answer_bytes`` and ``max_flight_age_s``."""

    max_subscribers: int = 1_000
    max_tape_bytes: int = 8 << 20
    """Above it a shared flight keeps no beginning: no joiner, no cache."""
    max_answer_bytes: int = 64 << 20
    """Above it a flight with a key ends in OVERRUN."""
    max_lag_bytes: int = 1 << 20
    """Most bytes between a subscriber and the fastest one, beside what was there when it joined, on a tape that is
    not kept from its beginning."""
    run_ahead_bytes: int = 1 << 20
    """Most bytes between the upstream and the fastest subscriber."""
    max_stall_s: float = 60.0
    """Longest pause of one subscriber."""
    retained_bytes: int = 256 << 20
    """High water of all tapes: above it nothing new is shared; at twice it nothing that grows is kept."""
    max_flights: int = 10_000
    max_flights_per_scope: int = 1_000
    max_lingering_per_scope: int = 100
    max_join_age_s: float = 600.0
    max_flight_age_s: float = 3_900.0
    pass_marker_s: float = 10.0
