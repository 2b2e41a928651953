"""Does it grow? The same call with few and with many of what there may be many of.

What is asked for is a working set of a hundred among all there are, so that the ratio shows what the data structures
cost. That a million entries do not fit the processor's caches is shown beside it, without a verdict, by asking for
all of them in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from loadtests.micro.material import (
    SECRET,
    join,
    make_cache,
    make_keys,
    make_record,
    make_recording,
    make_table,
    make_token,
)

Call = Callable[[], object]
MOST = 1.5
_ASKED = 100


class Line(NamedTuple):
    """One call, made with few and with many."""

    name: str
    few: int
    many: int
    make: Callable[[int], Call]
    judged: bool = True


def make_finder(count: int, asked: int = _ASKED) -> Call:
    """A ring with so many keys, and the look-up of a held one."""
    from proxy.access.keyring import Keyring, Tuning
    from proxy.access.token import Digester
    from proxy.clock import Clock

    class Nobody:
        async def find_key(self, digest: bytes, /) -> None:
            raise LookupError(digest)

    digester = Digester(SECRET)
    ring = Keyring(digester, Nobody(), Clock(), Tuning(max_keys=2 * count + 10, unwatched_s=1e9))
    tokens = [make_token() for _ in range(min(asked, count))]
    known = [digester.digest(token) for token in tokens]
    digests = itertools.chain(known, make_keys(count - len(known)))
    ring.restore((make_record(digest, number) for number, digest in enumerate(digests)), count, 1000.0)
    presented = itertools.cycle(tokens)
    return lambda: ring.find(next(presented), 1001.0)


def _price(count: int) -> Call:
    from proxy.config.prices import BUILT_IN, make_prices

    price = next(iter(BUILT_IN.values()))
    prices = make_prices({f"model-{number}": price for number in range(count)})
    names = itertools.cycle([f"model-{number}" for number in range(min(count, _ASKED))])
    return lambda: prices.find(next(names))


def _label(count: int) -> Call:
    from proxy.telemetry.metrics import Metrics

    metrics = Metrics([f"model-{number}" for number in range(count)])
    names = itertools.cycle([f"model-{number}" for number in range(count)])
    return lambda: metrics.model_label(next(names), False)


def _look_up(count: int) -> Call:
    cache = make_cache(count, 0.0)
    keys = itertools.cycle(list(_spread(count, _ASKED)))
    return lambda: cache.lookup(next(keys), 0.5)


def _look_up_all(count: int) -> Call:
    cache = make_cache(count, 0.0)
    keys = itertools.cycle(list(make_keys(count)))
    return lambda: cache.lookup(next(keys), 0.5)


def _store(count: int) -> Call:
    """Into a cache that is full: each makes room for itself."""
    cache = make_cache(count, 0.0)
    cache.max_bytes = cache.size_bytes
    cache.share_bytes = cache.max_bytes
    recording = make_recording(0.0)
    fresh = (b"%032d" % number for number in itertools.count())
    return lambda: cache.put(next(fresh), b"scope", recording, cache.generation)


def _lead(count: int) -> Call:
    table = make_table(count)
    fresh = itertools.cycle([b"%032d" % number for number in range(_ASKED)])
    return lambda: join(table, next(fresh)).leave()


def _follow(count: int) -> Call:
    table = make_table(count)
    known = itertools.cycle(list(_spread(count, _ASKED)))
    return lambda: join(table, next(known)).leave()


def _arm(count: int) -> Call:
    from proxy.clock import Clock, Deadlines

    deadlines = Deadlines(Clock())
    for number in range(count):
        deadlines.arm(10.0 + number % 600, lambda: None)
    return lambda: deadlines.arm(300.0, lambda: None).cancel()


def _spread(count: int, most: int) -> Iterator[bytes]:
    """Keys from all over those of `make_keys`."""
    step = max(1, count // most)
    return (key for number, key in enumerate(make_keys(count)) if number % step == 0)


def make_lines(quick: bool) -> tuple[Line, ...]:
    entries = 100_000 if quick else 1_000_000
    return (
        Line("virtual key found, among keys", 1000, 100_000, make_finder),
        Line("price found, among models", 10, 1000, _price),
        Line("label of a model found, among models", 10, 200, _label),
        Line("hot cache look-up, among entries", 1000, entries, _look_up),
        Line("hot cache store into a full one, among entries", 1000, entries, _store),
        Line("flight begun and ended, among flights", 10, 10_000, _lead),
        Line("flight joined and left, among flights", 10, 10_000, _follow),
        Line("deadline armed and cancelled, among deadlines", 10, 100_000, _arm),
        Line("hot cache look-up of all entries in turn", 1000, entries, _look_up_all, judged=False),
    )
