"""The cache inside the process: what it finds, what it keeps, whom it evicts."""

import gc
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.cache.hot import Freshness, Hit, HotCache
from proxy.cache.recording import Recording
from proxy.cache.refresh import Refreshes


def key(number: int) -> bytes:
    return number.to_bytes(4, "little") + bytes(28)


def recording(body: bytes = b"x", *, at: float = 0.0, ttl_s: float = 100.0, **options: object) -> Recording:
    return Recording(200, [], (body,), stored_at=at, stored_wall=at, ttl_s=ttl_s, **options)


WEIGHT = recording().size_bytes


def cache(entries: int = 100, *, jitter: float = 0.5, **options: object) -> HotCache:
    """A cache with room for ``entries`` one-byte answers; a jitter of 0.5 is none."""
    values = {"max_entry_bytes": 10 * WEIGHT, "random": lambda: jitter, **options}
    return HotCache(entries * WEIGHT, **values)


def keys_in(hot: HotCache, count: int, now: float = 0.0) -> list[int]:
    return [number for number in range(count) if hot.lookup(key(number), now) is not None]


def test_stored_recording_is_found_until_its_time_is_over():
    """Fresh to the last moment, then gone, and the memory with it."""
    hot = cache()
    one = recording(at=10.0, ttl_s=60.0)
    assert hot.put(key(1), b"scope", one, hot.generation)
    hit = hot.lookup(key(1), 69.9)
    assert hit.recording is one
    assert hit.freshness is Freshness.FRESH
    assert hit.age_s == pytest.approx(59.9)
    assert hit.ttl_left_s == pytest.approx(0.1)
    assert hot.lookup(key(1), 70.0) is None
    assert (hot.hits, hot.misses, hot.expired, hot.entries, hot.size_bytes) == (1, 1, 1, 0, 0)


@pytest.mark.parametrize(("random", "ttl_s"), [(0.0, 90.0), (0.5, 100.0), (1.0, 110.0)])
def test_time_to_live_is_spread_by_a_tenth(random, ttl_s):
    """Entries stored together do not end together."""
    hot = cache(jitter=random)
    hot.put(key(1), b"scope", recording(ttl_s=100.0), 0)
    assert hot.lookup(key(1), ttl_s - 0.01) is not None
    assert hot.lookup(key(1), ttl_s + 0.01) is None


@pytest.mark.parametrize(
    ("now", "found", "serves", "masks"),
    [(9.0, Freshness.FRESH, True, True), (15.0, Freshness.STALE, True, True), (25.0, Freshness.STALE, False, True)],
)
def test_stale_entry_is_found_for_what_it_may_still_be_used(now, found, serves, masks):
    """Ten seconds fresh, ten more while it is refreshed, twenty more if the upstream fails."""
    hot = cache()
    hot.put(key(1), b"scope", recording(ttl_s=10.0, swr_s=10.0, sie_s=30.0), 0)
    hit = hot.lookup(key(1), now)
    assert (hit.freshness, hit.may_serve, hit.may_mask_error) == (found, serves, masks)


def test_entry_that_may_be_served_stale_may_not_mask_an_error_unless_it_says_so():
    """The two windows are independent."""
    hot = cache()
    hot.put(key(1), b"scope", recording(ttl_s=10.0, swr_s=10.0), 0)
    hit = hot.lookup(key(1), 15.0)
    assert (hit.may_serve, hit.may_mask_error) == (True, False)
    assert hot.lookup(key(1), 20.0) is None


def test_lookups_are_counted_by_what_they_are_worth():
    """An entry that can only mask an error is a miss for the statistics."""
    hot = cache()
    hot.put(key(1), b"scope", recording(ttl_s=10.0, swr_s=10.0, sie_s=30.0), 0)
    for now in (1.0, 2.0, 11.0, 25.0, 26.0, 27.0):
        hot.lookup(key(1), now)
    hot.lookup(key(2), 1.0)
    assert (hot.hits, hot.stale_hits, hot.misses) == (2, 1, 4)


def test_newer_recording_replaces_the_older_in_place():
    """One key, one entry, its weight counted once, also when the scope changes."""
    hot = cache()
    hot.put(key(1), b"a", recording(b"old"), 0)
    hot.put(key(1), b"b", newer := recording(b"newer"), 0)
    assert hot.lookup(key(1), 1.0).recording is newer
    assert (hot.entries, hot.size_bytes) == (1, newer.size_bytes)
    assert hot.purge(scope=b"a") == 0
    assert hot.lookup(key(1), 1.0) is not None


def test_full_cache_evicts_what_was_used_longest_ago():
    """A hit moves an entry away from the end."""
    hot = cache(3, share=1.0)
    for number in range(3):
        hot.put(key(number), b"scope", recording(), 0)
    hot.lookup(key(0), 5.0)
    hot.put(key(3), b"scope", recording(at=6.0), 0)
    assert keys_in(hot, 4, 6.0) == [0, 2, 3]
    assert hot.evictions == 1


def test_scope_alone_may_fill_the_whole_cache():
    """The share binds only where others want room."""
    hot = cache(10, max_entry_bytes=WEIGHT)
    for number in range(25):
        hot.put(key(number), b"only", recording(), 0)
    assert keys_in(hot, 25) == list(range(15, 25))


def test_scope_over_its_share_makes_room_with_its_own_oldest():
    """A tenant that floods the cache evicts itself and leaves its neighbour's older entries alone."""
    hot = cache(10, max_entry_bytes=WEIGHT)
    for number in range(3):
        hot.put(key(number), b"small", recording(), 0)
    for number in range(3, 200):
        hot.put(key(number), b"flood", recording(at=1.0), 0)
    assert keys_in(hot, 200, 1.0) == [0, 1, 2, *range(193, 200)]


def test_scope_that_wants_room_gets_it_from_the_one_over_its_share():
    """A newcomer does not have to evict its own or anybody's who keeps to the share."""
    hot = cache(10, max_entry_bytes=WEIGHT)
    hot.put(key(0), b"small", recording(), 0)
    for number in range(1, 10):
        hot.put(key(number), b"big", recording(at=1.0), 0)
    for number in range(10, 14):
        hot.put(key(number), b"new", recording(at=2.0), 0)
    assert keys_in(hot, 14, 2.0) == [0, *range(5, 14)]


def test_without_anybody_over_the_share_the_oldest_of_all_goes():
    """Scopes within their share stand in one common order."""
    hot = cache(4, max_entry_bytes=WEIGHT)
    for number, scope in enumerate((b"a", b"b", b"b", b"c", b"c")):
        hot.put(key(number), scope, recording(), 0)
    assert keys_in(hot, 5, 5.0) == [1, 2, 3, 4]


def test_hit_in_one_scope_turns_the_eviction_to_another():
    """The common order is one of use, not of storing."""
    hot = cache(4, max_entry_bytes=WEIGHT)
    for number, scope in enumerate((b"a", b"b", b"b", b"c")):
        hot.put(key(number), scope, recording(), 0)
    hot.lookup(key(0), 5.0)
    hot.put(key(4), b"c", recording(at=5.0), 0)
    assert keys_in(hot, 5, 5.0) == [0, 2, 3, 4]


def test_recording_above_the_entry_bound_is_refused():
    """One answer cannot sweep out the rest."""
    hot = cache(10, max_entry_bytes=2 * WEIGHT)
    assert not hot.put(key(1), b"scope", recording(b"x" * 2 * WEIGHT), 0)
    assert (hot.refused, hot.entries) == (1, 0)


def test_entry_bound_never_exceeds_a_scopes_share():
    """Otherwise an entry would have to be evicted to make room for itself."""
    assert cache(10, share=0.2, max_entry_bytes=10 * WEIGHT).max_entry_bytes == 2 * WEIGHT


def test_recording_that_is_of_no_use_is_refused():
    """No time to live, no entry."""
    hot = cache()
    assert not hot.put(key(1), b"scope", recording(ttl_s=0.0), 0)
    assert hot.put(key(1), b"scope", recording(ttl_s=0.0, sie_s=5.0), 0)


def test_cache_of_no_bytes_keeps_nothing():
    """Switched off by its size."""
    hot = HotCache(0)
    assert not hot.put(key(1), b"scope", recording(), 0)
    assert hot.lookup(key(1), 0.0) is None


@pytest.mark.parametrize(
    "event",
    [
        lambda hot: hot.purge(),
        lambda hot: hot.purge(scope=b"other"),
        lambda hot: hot.purge(key=key(9)),
        lambda hot: hot.advance(),
    ],
    ids=["purge", "purge a scope", "purge a key", "reload or revocation"],
)
def test_answer_whose_flight_began_before_a_purge_is_not_stored_after_it(event):
    """The generation is the lease: it was taken before, so it does not count any more."""
    hot = cache()
    generation = hot.generation
    event(hot)
    assert not hot.put(key(1), b"scope", recording(), generation)
    assert hot.put(key(1), b"scope", recording(), hot.generation)
    assert hot.refused == 1


def test_reload_keeps_what_is_already_stored():
    """It overtakes flights, not entries."""
    hot = cache()
    hot.put(key(1), b"scope", recording(), 0)
    hot.advance()
    assert hot.lookup(key(1), 1.0) is not None


def test_purged_scope_is_gone_at_once_and_its_memory_with_the_sweeps():
    """Nobody sees its entries any more, others keep theirs, and the weight is honest all the time."""
    hot = cache()
    for number in range(10):
        hot.put(key(number), b"gone" if number < 7 else b"stays", recording(), 0)
    assert hot.purge(scope=b"gone") == 7
    assert keys_in(hot, 10) == [7, 8, 9]
    assert hot.entries == 10
    assert hot.sweep(1.0, limit=4) == 4
    assert hot.sweep(1.0, limit=4) == 3
    assert (hot.entries, hot.size_bytes) == (3, 3 * WEIGHT)


def test_purged_scope_can_be_filled_again_before_it_is_swept():
    """The name is free at once; old entries neither come back nor take new ones with them."""
    hot = cache()
    hot.put(key(1), b"scope", recording(b"1"), 0)
    hot.put(key(2), b"scope", recording(b"2"), 0)
    hot.purge(scope=b"scope")
    hot.put(key(1), b"scope", again := recording(b"again"), hot.generation)
    hot.sweep(1.0)
    assert hot.lookup(key(1), 1.0).recording is again
    assert hot.lookup(key(2), 1.0) is None
    assert (hot.entries, hot.size_bytes) == (1, again.size_bytes)


def test_purged_entries_are_evicted_before_any_other():
    """What nobody can see is the first to make room."""
    hot = cache(4, share=1.0)
    hot.put(key(0), b"old", recording(), 0)
    for number in (1, 2, 3):
        hot.put(key(number), b"purged", recording(at=1.0), 0)
    hot.purge(scope=b"purged")
    for number in (4, 5, 6):
        hot.put(key(number), b"new", recording(at=2.0), hot.generation)
    assert keys_in(hot, 7, 2.0) == [0, 4, 5, 6]


def test_purge_of_everything_leaves_nothing_to_find():
    """Entries and negative entries of all scopes."""
    hot = cache()
    for number in range(6):
        hot.put(key(number), bytes([number % 3]), recording(), 0)
    hot.remember_missing(key(9), 10.0, 0.0)
    assert hot.purge() == 6
    assert keys_in(hot, 6) == []
    assert not hot.is_missing(key(9), 1.0)
    hot.sweep(1.0)
    assert (hot.entries, hot.size_bytes) == (0, 0)


def test_purge_of_a_key_takes_that_entry_only():
    """And says whether there was one."""
    hot = cache()
    hot.put(key(1), b"scope", recording(), 0)
    hot.put(key(2), b"scope", recording(), 0)
    assert [hot.purge(key=key(1)), hot.purge(key=key(1))] == [1, 0]
    assert keys_in(hot, 3) == [2]


def test_sweeps_remove_what_has_ended_with_bounded_work_each():
    """A round of sweeps over the index finds every ended entry and no other."""
    hot = cache(1000)
    for number in range(600):
        hot.put(key(number), b"scope", recording(ttl_s=10.0 if number < 400 else 1000.0), 0)
    gone = [hot.sweep(50.0, limit=3) for _ in range(128 * 2)]
    assert max(gone) == 3
    assert sum(gone) == 400
    assert (hot.entries, hot.expired, hot.size_bytes) == (200, 400, 200 * WEIGHT)


def test_missing_key_is_remembered_until_its_time_is_over():
    """By time alone: look-ups do not prolong it."""
    hot = cache()
    hot.remember_missing(key(1), 15.0, 100.0)
    assert [hot.is_missing(key(1), now) for now in (100.0, 114.9, 115.0, 101.0)] == [True, True, False, False]


def test_flood_of_missing_keys_evicts_none_of_the_entries():
    """Guesses are bounded by number, in a map of their own."""
    hot = cache(10, max_missing=50)
    hot.put(key(0), b"scope", recording(), 0)
    for number in range(1, 1000):
        hot.remember_missing(key(number), 15.0, 0.0)
    assert hot.lookup(key(0), 1.0) is not None
    assert (len(hot.missing), hot.missing.displaced) == (50, 949)
    assert [number for number in range(1000) if hot.is_missing(key(number), 1.0)] == list(range(950, 1000))


def test_answer_for_a_missing_key_ends_its_being_missing():
    """What was stored later knows better."""
    hot = cache()
    hot.remember_missing(key(1), 15.0, 0.0)
    hot.put(key(1), b"scope", recording(), 0)
    assert not hot.is_missing(key(1), 1.0)


def test_sweep_forgets_missing_keys_that_are_over():
    """They do not wait for somebody to ask."""
    hot = cache()
    for number in range(5):
        hot.remember_missing(key(number), 10.0 + number, 0.0)
    assert hot.sweep(12.0) == 3
    assert len(hot.missing) == 2


def stale_cache() -> HotCache:
    hot = cache()
    hot.put(key(1), b"scope", recording(ttl_s=10.0, swr_s=1e6), 0)
    return hot


def test_stale_entry_is_refreshed_by_one_at_a_time():
    """A hundred look-ups in the same moment start one refresh."""
    hot = stale_cache()
    assert [hot.begin_refresh(key(1), 20.0) for _ in range(100)].count(True) == 1
    hot.put(key(1), b"scope", recording(at=21.0, ttl_s=10.0), 0)
    assert hot.refreshes.running == 0
    assert hot.begin_refresh(key(1), 40.0)


def test_failed_refresh_is_held_off_longer_each_time_and_never_forgotten():
    """One, two, four seconds up to a minute; the entry stays to be served and asked for again."""
    hot = stale_cache()
    now, waits = 20.0, []
    assert hot.begin_refresh(key(1), now)
    for _ in range(9):
        hot.end_refresh(key(1), now)
        failed_at = now
        while not hot.begin_refresh(key(1), now):
            now += 0.5
        waits.append(now - failed_at)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert hot.lookup(key(1), now).may_serve


def test_refresh_that_succeeds_ends_the_hold_off():
    """The next failure starts from the shortest wait."""
    hot = stale_cache()
    for now in (20.0, 30.0, 50.0):
        assert hot.begin_refresh(key(1), now)
        hot.end_refresh(key(1), now)
    hot.put(key(1), b"scope", recording(at=60.0, ttl_s=10.0, swr_s=1e6), 0)
    assert hot.begin_refresh(key(1), 75.0)
    hot.end_refresh(key(1), 75.0)
    assert [hot.begin_refresh(key(1), now) for now in (75.9, 76.1)] == [False, True]


def test_refreshes_under_way_are_bounded():
    """What does not fit waits for a later look-up and is counted."""
    refreshes = Refreshes(lambda: 0.5, max_running=2)
    assert [refreshes.begin(key(number), 0.0) for number in range(3)] == [True, True, False]
    assert refreshes.deferred == 1
    refreshes.end(key(0), 0.0, ok=True)
    assert refreshes.begin(key(2), 0.0)


def test_refresh_that_never_ends_gives_its_place_back():
    """A lost flight blocks neither its key nor the budget for ever."""
    refreshes = Refreshes(lambda: 0.5, max_running=1, lost_after_s=600.0)
    assert refreshes.begin(key(1), 0.0)
    refreshes.sweep(599.0)
    assert not refreshes.begin(key(2), 599.0)
    assert refreshes.begin(key(1), 600.0)
    refreshes.sweep(1200.0)
    assert refreshes.begin(key(2), 1200.0)


def test_refresh_bookkeeping_goes_with_its_entry():
    """Nothing is kept about keys that are not in the cache."""
    hot = stale_cache()
    assert hot.begin_refresh(key(1), 20.0)
    hot.purge(key=key(1))
    hot.end_refresh(key(1), 21.0)
    assert (hot.refreshes.running, hot.refreshes.failed, hot.refreshes._held) == (0, 0, {})
    assert not hot.begin_refresh(key(1), 22.0)


def test_purged_entry_is_not_refreshed():
    """What is invisible has nothing to be refreshed for."""
    hot = stale_cache()
    hot.purge(scope=b"scope")
    assert not hot.begin_refresh(key(1), 20.0)


@pytest.mark.long
@pytest.mark.parametrize(("headers", "chunks"), [(0, (b"",)), (10, (b"x" * 2000,)), (4, (b"y" * 90,) * 150)])
def test_weight_counted_is_what_the_entries_really_take(headers, chunks):
    """The byte bound is a bound of memory, not of payload."""
    gc.collect()
    tracemalloc.start()
    try:
        hot = HotCache(1 << 40, max_entry_bytes=1 << 30)
        empty = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            lines = [(b"name-%d-%d" % (line, number), b"value-%d-%d" % (line, number)) for line in range(headers)]
            copies = tuple(bytes(bytearray(chunk)) for chunk in chunks)
            values = {"stored_at": 1.0 * number, "stored_wall": 2.0 * number, "ttl_s": 3.0 + number}
            one = Recording(200, lines, copies, **values)
            assert one.head.status == 200
            hot.put(key(number * 7919), b"scope", one, 0)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - empty
    finally:
        tracemalloc.stop()
    assert 0.8 * hot.size_bytes < taken < 1.05 * hot.size_bytes


def test_repr_tells_what_a_person_wants_to_know():
    """Both the cache and a hit describe themselves."""
    hot = stale_cache()
    assert repr(hot).startswith(f"<HotCache 1 entries {WEIGHT}/")
    assert "stale" in repr(hot.lookup(key(1), 12.0))


class HotCacheMachine(RuleBasedStateMachine):
    """Random use against a plain model: what is found is what was stored last and not purged, and weights add up."""

    def __init__(self) -> None:
        super().__init__()
        self.hot = cache(6, share=0.5, max_entry_bytes=3 * WEIGHT)
        self.now = 0.0
        self.model: dict[int, tuple[bytes, Recording]] = {}

    @rule(number=st.integers(0, 9), scope=st.sampled_from([b"a", b"b", b"c"]), size=st.integers(1, 2 * WEIGHT))
    def put(self, number, scope, size):
        one = recording(b"x" * size, at=self.now, ttl_s=20.0, swr_s=5.0)
        if self.hot.put(key(number), scope, one, self.hot.generation):
            self.model[number] = (scope, one)

    @rule(number=st.integers(0, 9))
    def lookup(self, number):
        hit = self.hot.lookup(key(number), self.now)
        if hit is not None:
            assert isinstance(hit, Hit)
            assert hit.recording is self.model[number][1]
            assert hit.age_s < 25.0

    @rule(number=st.integers(0, 9))
    def purge_key(self, number):
        self.hot.purge(key=key(number))
        self.model.pop(number, None)

    @rule(scope=st.sampled_from([b"a", b"b", b"c"]))
    def purge_scope(self, scope):
        self.hot.purge(scope=scope)
        self.model = {number: pair for number, pair in self.model.items() if pair[0] != scope}

    @rule()
    def purge_all(self):
        self.hot.purge()
        self.model.clear()

    @rule(seconds=st.floats(0.0, 30.0))
    def pass_time(self, seconds):
        self.now += seconds

    @rule(limit=st.integers(1, 5))
    def sweep(self, limit):
        self.hot.sweep(self.now, limit)

    @invariant()
    def books_balance(self):
        hot = self.hot
        entries = [entry for shard in hot._index for entry in shard.values()]
        assert len(entries) == hot.entries
        assert sum(entry.recording.size_bytes for entry in entries) == hot.size_bytes <= hot.max_bytes
        scopes = {entry.scope for entry in entries}
        assert scopes == set(hot._scopes.values()) | set(hot._purged)
        for scope in scopes:
            own = [entry for entry in entries if entry.scope is scope]
            assert (scope.count, scope.size_bytes) == (len(own), sum(entry.recording.size_bytes for entry in own))
            assert (scope in hot._over) == (not scope.purged and scope.size_bytes > hot.share_bytes)
        ordered, node = [], hot._order._end.newer
        while node is not hot._order._end:
            ordered.append(node)
            node = node.newer
        assert sorted(map(id, ordered)) == sorted(map(id, entries))


TestHotCacheMachine = HotCacheMachine.TestCase
TestHotCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
