"""Which order of n targets a hash stands for. Pure.

`Shares` draws without putting back: the first by the weights of all, the second by the weights of the others, and so
on. All orders are laid side by side on a line, each as wide as its chance, and a hash is a point on that line. The
order does not depend on anybody's health, so that passing over a target moves its share alone, and to the others by
their weights.

`Rendezvous` ranks the targets anew for each of 8,192 slots (weighted rendezvous hashing; Thaler and Ravishankar,
1998), so that a target that is added takes its share and nothing else moves. Its shares are as even as 8,192 throws
of the dice: a share of one fifth comes within 2 % of itself two times in three.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, permutations
from math import inf, log
from typing import Final

Order = tuple[int, ...]
"""Positions of targets, first choice first."""

POINT_BYTES: Final = 6
"""Of a hash, for a point on the line."""
_LINE: Final = 1 << 8 * POINT_BYTES
_MOST_CELLS: Final = 1000
_LEAST: Final = 1e-12
"""Weight of nothing, as a part of the largest: so small that it is never met, and can still be divided by."""

SLOTS: Final = 1 << 13
UNRANKED: Final = 0xFFFF


class Shares:
    """The orders of the targets with these weights. ``order`` of the cell in which ``edges`` puts a point."""

    __slots__ = ("_heads", "_weights", "edges")

    # Nothing is written after the start.

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = _normal(weights)
        depth = _depth(len(weights))
        self._heads = _heads(len(weights), depth)
        self.edges = _edges(self._weights, depth)
        """Where one cell ends and the next begins, ascending: one fewer than there are cells."""

    @property
    def cells(self) -> int:
        return len(self._heads)

    def order(self, cell: int) -> Order:
        """All positions. Behind the exact draws of many targets, each cell has an order of its own for the rest."""
        head = self._heads[cell]
        rest = set(range(len(self._weights))).difference(head)
        if not rest:
            return head
        return head + tuple(sorted(rest, key=lambda each: _score(b"%d %d" % (cell, each), self._weights[each])))


class Rendezvous:
    """The orders of the targets with these names and weights; ``salt`` keeps equal names of two models apart."""

    __slots__ = ("_names", "_numbers", "_orders", "_salt", "_weights", "cells")

    # `cells`, `_orders` and `_numbers` (the orders by number, and back) are filled by `rank`, with what can be
    # computed again.

    def __init__(self, names: Sequence[str], weights: Sequence[float], salt: str) -> None:
        self._names = [name.encode() for name in names]
        self._weights = _normal(weights)
        self._salt = blake2b(salt.encode(), digest_size=16).digest()
        self.cells = array("H", (UNRANKED,)) * SLOTS
        """By slot, which is a hash modulo `SLOTS`; slots with equal orders have one cell."""
        self._orders: list[Order] = []
        self._numbers: dict[Order, int] = {}

    def order(self, cell: int) -> Order:
        """All positions, in a cell that `rank` gave."""
        return self._orders[cell]

    def rank(self, slot: int) -> int:
        """The cell of a slot that is `UNRANKED` so far."""
        seed = b"%b%d " % (self._salt, slot)
        scores = [_score(seed + name, weight) for name, weight in zip(self._names, self._weights, strict=True)]
        order = tuple(sorted(range(len(scores)), key=scores.__getitem__))
        cell = self.cells[slot] = self._numbers.setdefault(order, len(self._orders))
        if cell == len(self._orders):
            self._orders.append(order)
        return cell


def _normal(weights: Sequence[float]) -> tuple[float, ...]:
    """As parts of the largest; all equal where nobody has one."""
    sound = [weight if 0 < weight < inf else 0.0 for weight in weights]
    largest = max(sound, default=0.0)
    return tuple(max(weight / largest, _LEAST) if largest else 1.0 for weight in sound)


def _score(seed: bytes, weight: float) -> float:
    """The time to an event that comes ``weight`` times in a unit of time: each is the first as often as weighted."""
    chance = int.from_bytes(blake2b(seed, digest_size=8).digest(), "big")
    return -log((chance + 1) / (1 << 64)) / weight


def _depth(count: int) -> int:
    """How many draws are laid out exactly: all up to six targets, then what a thousand cells hold, at least two."""
    cells, depth = 1, 0
    while depth < count and (cells * (count - depth) <= _MOST_CELLS or depth < 2):
        cells, depth = cells * (count - depth), depth + 1
    return depth


@lru_cache(maxsize=64)
def _heads(count: int, depth: int) -> tuple[Order, ...]:
    return tuple(permutations(range(count), depth))


@lru_cache(maxsize=1024)
def _edges(weights: tuple[float, ...], depth: int) -> tuple[int, ...]:
    """Most models weigh their targets alike, and share one line."""
    ends = accumulate(_chances(1.0, weights, depth))
    return tuple(min(int(end * _LINE), _LINE) for end in ends)[:-1]


def _chances(chance: float, weights: tuple[float, ...], depth: int) -> Iterator[float]:
    """Of all draws of ``depth`` out of these, in the order of `permutations`."""
    if not depth:
        yield chance
        return
    whole = sum(weights)
    for each, weight in enumerate(weights):
        yield from _chances(chance * weight / whole, weights[:each] + weights[each + 1 :], depth - 1)
