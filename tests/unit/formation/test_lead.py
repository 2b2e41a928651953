"""What a lead tells and when it stops, with a writer that is moved by hand."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import Kind, ProxyError
from proxy.formation.bounds import SLICE_BYTES, Bounds
from proxy.formation.entry import Entry, Seal
from proxy.formation.lead import Lead
from proxy.formation.server import Telling, Told
from proxy.protocol.message import ResponseHead

KEY, TOKEN = b"k" * 32, b"t" * 16
SEAL = Seal(b"a secret of sixteen bytes")
HEAD = ResponseHead(200, [(b"content-type", b"text/event-stream")])
GOES = {b"content-type", b"content-length"}
HEARD = Told(2, True, True)


class Names:
    """As much of a server as a lead knows."""

    def names(self, key: bytes, token: bytes) -> tuple[str, str]:
        return "stream", "lease"


class Hand:
    """As much of a writer."""

    def __init__(self) -> None:
        self.pending_bytes = 0
        self.stored_bytes = 0
        self.woken = 0

    def wake(self, lead: Lead) -> None:
        self.woken += 1


class Bench:
    def __init__(self, **bounds: Any) -> None:
        self.hand = Hand()
        self.bounds = Bounds(**bounds)
        self.lead = Lead(Names(), self.hand, SEAL, self.bounds, 0.0, KEY, TOKEN)  # type: ignore[arg-type]
        self.told: list[Entry] = []

    def tell(self, told: Told | None = HEARD, now: float = 1.0) -> Telling:
        """One entry goes out, and is confirmed unless ``told`` is ``None``."""
        telling = self.lead.compose(now)
        assert telling is not None
        if told is None:
            self.lead.untold(now)
        else:
            entry = SEAL.read(KEY, TOKEN, telling.entry)
            assert entry is not None
            self.told.append(entry)
            self.lead.told(told, now)
        return telling


def test_it_begins_and_ends_in_one_entry_where_all_came_at_once() -> None:
    """The number is 1, and the lease is given up with it."""
    bench = Bench()
    bench.lead.head(HEAD, GOES, [], "")
    bench.lead.append(b"all")
    bench.lead.end()
    telling = bench.tell()

    assert (telling.number, telling.lease_ms) == (1, 0)
    assert (bench.told[0].data, set(bench.told[0].meta)) == (b"all", {"begun", "head", "end"})
    assert bench.lead.over
    assert (bench.hand.pending_bytes, bench.hand.stored_bytes) == (0, 0)


def test_a_long_answer_is_told_in_slices_whose_last_one_brings_the_end() -> None:
    """Whole, in order, numbered without a gap; the lease is kept until then."""
    bench = Bench()
    body = bytes(range(256)) * 1_000
    bench.lead.head(HEAD, GOES, [], "")
    for at in range(0, len(body), 100_000):
        bench.lead.append(body[at : at + 100_000])
    bench.lead.end()
    while bench.lead.eager:
        bench.tell()

    assert b"".join(entry.data for entry in bench.told) == body
    assert [entry.number for entry in bench.told] == list(range(1, len(bench.told) + 1))
    assert max(len(entry.data) for entry in bench.told) == SLICE_BYTES
    assert [("head" in e.meta, "end" in e.meta) for e in bench.told] == [(True, False), (False, False),
                                                                         (False, False), (False, True)]  # fmt: skip
    assert bench.hand.pending_bytes == 0


def test_it_beats_where_there_is_nothing_to_tell() -> None:
    """A beat is not kept and takes no number."""
    bench = Bench()
    bench.tell()
    assert bench.tell().number == 0
    bench.lead.append(b"more")
    assert bench.tell().number == 2


def test_what_was_not_confirmed_is_told_again_as_it_was() -> None:
    """It may have arrived; what came meanwhile follows in the next one."""
    bench = Bench()
    first = bench.tell(None)
    bench.lead.append(b"more")

    assert bench.tell(None, 2.0).entry == first.entry == bench.tell(HEARD, 3.0).entry
    bench.tell()
    assert [entry.data for entry in bench.told] == [b"", b"more"]


def test_what_cannot_be_told_for_a_lease_is_given_up_and_so_are_the_last_words_in_the_end() -> None:
    """Whoever follows hears that there will be no more as soon as it can hear anything."""
    bench = Bench()
    bench.lead.append(b"never")
    bench.tell(None, 1.0)
    bench.tell(None, 7.0)
    assert (bench.lead.dropped, bench.hand.pending_bytes) == ("unreachable", 0)
    bench.tell(None, 8.0)
    assert not bench.lead.over
    telling = bench.lead.compose(9.0)
    assert telling is not None
    assert telling.number == 2
    entry = SEAL.read(KEY, TOKEN, telling.entry)
    assert entry is not None
    assert entry.meta == {"dropped": "unreachable"}
    bench.tell(None, 40.0)
    assert bench.lead.over


def test_a_long_answer_loses_its_beginning_and_takes_nobody_new() -> None:
    """Not more of it is kept than one answer may have."""
    bench = Bench(max_bytes=3 * SLICE_BYTES)
    for number in range(1, 7):
        bench.lead.append(b"x" * SLICE_BYTES)
        telling = bench.tell()
        assert bench.hand.stored_bytes <= 3 * SLICE_BYTES + 1_000
        assert bench.lead.closed == (number >= 3)
        assert telling.lease_ms == (0 if number >= 3 else 5_000)
    assert telling.keep_from > 1


def test_everything_on_the_server_has_a_bound_together() -> None:
    """Over it a flight keeps no more than a slice."""
    bench = Bench()
    bench.hand.stored_bytes = bench.bounds.total_bytes
    bench.lead.append(b"x" * SLICE_BYTES)
    bench.tell()
    bench.lead.append(b"x" * SLICE_BYTES)
    assert bench.tell().lease_ms == 0


@pytest.mark.parametrize(("length", "closed"), [(4 << 20, False), ((4 << 20) + 1, True)])
def test_an_answer_that_says_that_it_is_too_long_is_not_told_at_all(length: int, closed: bool) -> None:
    """The others call for themselves before anybody waits for it."""
    bench = Bench()
    head = ResponseHead(200, [(b"content-length", b"%d" % length)])
    bench.lead.head(head, GOES, [], "")
    bench.tell()
    assert (bench.told[0].meta == {"dropped": "too_large"}) is closed
    assert bench.lead.over is closed


def test_what_comes_faster_than_it_can_be_told_is_given_up() -> None:
    """Memory is bounded by the answer's bound."""
    bench = Bench(max_bytes=1 << 20)
    for _ in range(17):
        bench.lead.append(b"x" * SLICE_BYTES)
    assert (bench.lead.dropped, bench.hand.pending_bytes) == ("slow", 0)
    bench.lead.append(b"more")
    bench.lead.end()
    bench.tell()
    assert bench.told[0].meta == {"dropped": "slow"}


@pytest.mark.parametrize("told", [Told(1, False, True), Told(1, True, False)])
def test_a_lead_that_lost_its_lease_or_its_beginning_goes_on_for_those_who_are_there(told: Told) -> None:
    """Somebody else may lead for whoever comes now."""
    bench = Bench()
    bench.tell(told)
    bench.lead.append(b"more")
    assert bench.tell().lease_ms == 0
    assert bench.told[-1].data == b"more"


def test_it_takes_nobody_new_when_it_is_old() -> None:
    """As a flight does."""
    bench = Bench(max_join_age_s=600.0)
    assert bench.tell(now=599.0).lease_ms > 0
    assert bench.tell(now=600.0).lease_ms == 0


@pytest.mark.parametrize(
    ("kind", "meta"), [(Kind.UPSTREAM_TIMEOUT, "error"), (Kind.DRAINING, "dropped"), (Kind.BUG, "dropped")]
)
def test_a_failure_of_the_call_is_told_and_one_of_the_process_is_not(kind: Kind, meta: str) -> None:
    """The others can still call for themselves in the latter case."""
    bench = Bench()
    bench.lead.fail(ProxyError(kind, "No."))
    bench.lead.end()
    bench.tell()
    assert (set(bench.told[0].meta) - {"begun"}, bench.lead.over) == ({meta}, True)


def test_a_flight_that_is_left_is_ended_once_nobody_elsewhere_listens() -> None:
    """Asked again with each beat; whoever comes back here takes the question back."""
    bench, ended, empty = Bench(), [], [True]
    bench.tell()
    assert bench.lead.part(lambda: empty[0], lambda: ended.append(1))
    assert bench.lead.farewell() is not None
    bench.lead.answered(1)
    assert not ended
    empty[0] = False
    assert bench.lead.farewell() is None
    empty[0] = True
    assert bench.lead.farewell() is None  # nobody asked again
    bench.lead.part(lambda: True, lambda: ended.append(2))
    assert bench.lead.farewell() is not None
    bench.lead.answered(0)

    assert (ended, bench.lead.over) == ([2], True)
    assert not bench.lead.part(lambda: True, lambda: ended.append(3))
