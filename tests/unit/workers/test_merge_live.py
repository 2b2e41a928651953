"""The live state of several workers as one."""

from __future__ import annotations

from typing import Any

from proxy.workers.merge_live import MOST_FLIGHTS, merge_live


def target(name: str, **changes: Any) -> dict[str, Any]:
    return {"target": name, "state": "closed", "in_flight": 1, "p95_first_byte_ms": 5.0, "failed_10s": 0, **changes}


def view(**changes: Any) -> dict[str, Any]:
    return {"at": 1.0, "phase": "serving", "flights": {"in_air": 1, "oldest": []}, "targets": [], **changes}


def test_a_target_is_as_bad_as_the_worst_worker_finds_it() -> None:
    """Counts add up, the slowest time is shown; one that a single worker knows is there as well."""
    merged = merge_live(
        {
            "0": view(targets=[target("a/m"), target("b/m")]),
            "1": view(targets=[target("a/m", state="open", failed_10s=3, p95_first_byte_ms=9.0)]),
            "2": view(targets=[target("a/m", state="half_open")]),
        },
        {},
    )

    assert merged["targets"] == [
        target("a/m", state="open", in_flight=3, failed_10s=3, p95_first_byte_ms=9.0),
        target("b/m"),
    ]


def test_merging_changes_no_view() -> None:
    """Whoever reads them again reads what was said."""
    views = {"0": view(targets=[target("a/m")]), "1": view(targets=[target("a/m")])}
    merge_live(views, {})

    assert views == {"0": view(targets=[target("a/m")]), "1": view(targets=[target("a/m")])}


def test_the_oldest_flights_of_all_are_shown_and_no_more_than_of_one() -> None:
    """Each says whose it is."""
    flights = {str(worker): [{"flight": n, "age_s": n + worker} for n in range(MOST_FLIGHTS)] for worker in range(3)}
    merged = merge_live(
        {worker: view(flights={"in_air": 20, "oldest": oldest}) for worker, oldest in flights.items()}, {}
    )

    shown = merged["flights"]["oldest"]
    assert len(shown) == MOST_FLIGHTS
    assert shown[0] == {"flight": 19, "age_s": 21, "worker": "2"}
    assert merged["flights"]["in_air"] == 60


def test_workers_that_drain_do_not_make_the_whole_one_serve() -> None:
    """One that serves is enough."""
    draining = view(phase="draining")

    assert merge_live({"0": draining}, {"1": "timeout"})["phase"] == "away"
    assert merge_live({"0": draining, "1": view()}, {})["phase"] == "serving"
