"""Whether this process shares flights with others: asked once, before redis is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.clock import Clock
from proxy.config.settings import Settings
from proxy.formation.bounds import Bounds

if TYPE_CHECKING:
    from proxy.formation.formation import Formation


def make_formation(settings: Settings, secret: bytes, clock: Clock) -> Formation | None:
    """The formation that the settings ask for; ``None`` where they do not. ``secret`` must be the same in all
    processes that share."""
    if not settings.shared_flights:
        return None
    from proxy.formation.formation import connect_formation

    bounds = Bounds(
        ask_s=settings.shared_flight_timeout_ms / 1e3,
        probe_s=settings.shared_flight_timeout_ms / 1e3,
        lease_s=settings.shared_flight_lease_s,
        max_bytes=settings.shared_flight_bytes,
        total_bytes=max(16 * settings.shared_flight_bytes, Bounds().total_bytes),
        max_join_age_s=settings.max_join_age_s,
    )
    return connect_formation(settings.cache_url, secret, clock, prefix=settings.cache_prefix, bounds=bounds)
