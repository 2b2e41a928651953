"""What the settings say about shared flights."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proxy.clock import Clock
from proxy.config.settings import SettingsError, load_settings
from proxy.formation.make import make_formation

SERVER = {"cache_url": "unix:///nowhere", "key_secret": "a secret of sixteen bytes"}


def test_flights_are_a_process_s_own_unless_somebody_says_so() -> None:
    """A server for other things changes nothing."""
    assert make_formation(load_settings({}, SERVER).settings, b"s" * 32, Clock()) is None


@pytest.mark.parametrize("lacking", ["cache_url", "key_secret"])
def test_shared_flights_need_a_server_and_a_secret(lacking: str) -> None:
    """Said at the start, not found out later."""
    with pytest.raises(SettingsError, match="SHARED_FLIGHTS"):
        load_settings({}, {**SERVER, "shared_flights": "on", lacking: ""})


def test_shared_flights_need_more_than_a_database() -> None:
    """PostgreSQL keeps answers, and has no way to hand on one that is being given."""
    with pytest.raises(SettingsError, match="not PostgreSQL"):
        load_settings({}, {**SERVER, "shared_flights": "on", "cache_url": "postgresql://db/name"})


async def test_the_settings_are_the_bounds() -> None:
    """Those that have one; nothing connects before it is started."""
    said = {"shared_flights": "on", "shared_flight_timeout_ms": 10, "shared_flight_lease_s": 3}
    settings = load_settings({}, {**SERVER, **said, "shared_flight_bytes": 1 << 20, "max_join_age_s": 60}).settings
    formation = make_formation(settings, b"s" * 32, Clock())
    assert formation is not None
    bounds = formation.bounds
    await formation.close()

    assert (bounds.ask_s, bounds.lease_s, bounds.max_bytes, bounds.max_join_age_s) == (0.01, 3.0, 1 << 20, 60.0)
    assert bounds.beat_s == 1.0


def test_redis_is_not_loaded_where_nothing_is_shared() -> None:
    """It takes a tenth of a second at every start."""
    code = "import sys, proxy.formation.make, proxy.formation.landing; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
