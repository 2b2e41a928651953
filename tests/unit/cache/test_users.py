"""One user's answers in the cache inside the process: a bounded part, at nobody else's cost."""

from __future__ import annotations

import random

from tests.unit.cache.test_hot import WEIGHT, cache, key, keys_in, recording

SCOPE, OTHER = b"caller", b"another caller"


def test_a_user_who_stores_without_end_pushes_out_only_his_own_oldest() -> None:
    """Nobody evicts everybody: neither the other users of the caller, nor other callers."""
    hot = cache(320)  # a scope's share is 160 answers, a user's 10
    for number in range(5):
        hot.put(key(number), SCOPE, recording(), 0, b"modest")
        hot.put(key(10 + number), OTHER, recording(), 0)
    for number in range(1_000):
        hot.put(key(100 + number), SCOPE, recording(), 0, b"greedy")

    assert keys_in(hot, 20) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert [number for number in range(100, 1_100) if hot.lookup(key(number), 0.0)] == list(range(1_090, 1_100))
    assert hot.evictions == hot.user_evictions == 990
    assert hot.size_bytes == 20 * WEIGHT


def test_many_users_of_one_caller_push_out_only_that_callers_answers() -> None:
    """Inventing users gains nothing: the scope's own share still holds."""
    hot = cache(100)
    for number in range(40):
        hot.put(key(number), OTHER, recording(), 0)
    for number in range(1_000):
        hot.put(key(100 + number), SCOPE, recording(), 0, b"user %d" % number)

    assert keys_in(hot, 40) == list(range(40))
    assert hot.entries == 100


def test_the_same_user_of_two_callers_is_two_users() -> None:
    """Names are only unique within a scope."""
    hot = cache(320)
    for number in range(10):
        hot.put(key(number), SCOPE, recording(), 0, b"u")
        hot.put(key(20 + number), OTHER, recording(), 0, b"u")

    assert hot.entries == 20
    assert len(hot._users) == 2


def test_an_answer_larger_than_a_users_part_is_not_stored() -> None:
    """It would push out all others of his, and then itself."""
    hot = cache(32)

    assert not hot.put(key(1), SCOPE, recording(b"x" * 10_000), 0, b"u")
    assert hot.put(key(1), SCOPE, recording(), 0, b"u")
    assert hot.refused == 1


def test_nothing_is_left_of_users_whose_answers_are_gone() -> None:
    """However they went: replaced, expired, purged, shrunk, by key, scope or all."""
    rng = random.Random(7)
    hot = cache(200)
    for step in range(5_000):
        number = rng.randrange(300)
        user = rng.choice((b"", b"a", b"b", b"c"))
        hot.put(key(number), rng.choice((SCOPE, OTHER)), recording(at=step / 100), hot.generation, user)
        match rng.randrange(200):
            case 0:
                hot.purge(scope=SCOPE)
            case 1:
                hot.purge(key=key(number))
            case 2:
                hot.sweep(step / 100)
            case 3:
                hot.shrink(50 * WEIGHT)
    owned = {entry for shard in hot._index for entry in shard.values() if entry.own is not None}
    held = sum(user.size_bytes for user in hot._users._users.values())

    assert held == sum(entry.recording.size_bytes for entry in owned)
    assert all(user.size_bytes <= hot._users.share_bytes for user in hot._users._users.values())
    hot.purge()
    for _ in range(200):
        hot.sweep(1e9)
    assert (hot.entries, hot.size_bytes, len(hot._users), len(hot._scopes)) == (0, 0, 0, 0)
