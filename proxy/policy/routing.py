"""In which order the targets of a model are tried, over a snapshot of their health. Pure: equal requests agree.

| strategy | order |
|---|---|
| `ordered` | as written |
| `cheapest` | by list price, three tokens in for one out; unknown prices last; equal ones as written |
| `round_robin` | by the hash of the request, equal shares |
| `weighted` | by the hash of the request, shares by weight |
| `sticky` | by the hash of who asks, shares by weight; a change of the targets moves only what it must |
| `least_in_flight` | smallest part of its limit in use; equal ones by the hash of the request |
| `lowest_latency` | two by the hash of the request, that with the earlier first byte ahead; the others by the hash |

In all of them targets with room come first, then those at their limit, then those that are ejected, each of these in
the strategy's order. A half-open target stays where it is: who gives out places there lets one probe in. Weight 0
means: only when all others fail. Such targets come behind those at their limit and, in turn, behind the ejected;
`ordered` and `cheapest` do not look at weights.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final, NamedTuple

from proxy.config.models import Model, ModelTarget
from proxy.config.prices import Price, make_prices
from proxy.policy.shares import POINT_BYTES, SLOTS, UNRANKED, Order, Rendezvous, Shares

_POINT: Final = slice(-POINT_BYTES, None)
_TRIALS: Final = 8
"""Calls in flight at a target without a known time: with more, it has not answered rather than not been asked."""
_NARROWEST: Final = 1e-9
_FIXED: Final = frozenset(("ordered", "cheapest"))


class TargetView(NamedTuple):
    """What is known of one target's health."""

    open: bool = False
    """Ejected, its breaker is open: only tried when nothing else is left."""
    probe: bool = False
    """Half open: one probe is welcome."""
    in_flight: int = 0
    """Calls that run there now."""
    limit: float = inf
    """Calls that may run there at a time: the adaptive limit of concurrency."""
    first_byte_s: float = 0.0
    """Moving average of the time to the first byte; 0: unknown."""


class HealthSnapshot(NamedTuple):
    """The health of all targets at one moment; immutable."""

    version: int
    """Changes with every new snapshot."""
    views: Mapping[str, TargetView]
    """By ``ModelTarget.id``; absent: nothing known, healthy."""


Targets = tuple[ModelTarget, ...]
FindPrice = Callable[[str], Price | None]
_Key = int | tuple[int, ...]
_LIST_PRICES: Final = make_prices()


class Router:
    """Puts targets in order. What can be known before the request is laid out once, and looked up by identity."""

    __slots__ = ("_find_price", "_most", "_tables", "dropped", "laid_out")

    # `_tables` is filled by `order` and emptied when full or by `forget`; a table keeps its model and targets alive,
    # so that their identities cannot come to mean others. `laid_out` and `dropped` count tables.

    def __init__(self, find_price: FindPrice = _LIST_PRICES.find, most_tables: int = 4096) -> None:
        """``find_price`` is asked for targets without a price of their own, by the model's name at the provider."""
        self._find_price = find_price
        self._most = most_tables
        self._tables: dict[_Key, _Table] = {}
        self.laid_out = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._tables)

    def order(
        self, model: Model, targets: Targets, snapshot: HealthSnapshot, fingerprint: bytes, sticky: bytes = b""
    ) -> Targets:
        """All of ``targets``, first choice first.

        ``targets`` are those of the model that this caller may use; ``model.targets`` itself is found fastest.
        ``fingerprint`` and ``sticky`` (of tenant, user and session; empty: as the fingerprint) are uniform hashes.
        """
        if len(targets) < 2:
            return targets
        key = id(model) if targets is model.targets else (id(model), *map(id, targets))
        table = self._tables.get(key)
        if table is None:
            table = self._lay_out(key, model, targets)
        if table.version != snapshot.version:
            table.refresh(snapshot)
        if table.fixed is not None:
            return table.fixed
        ranking = table.rendezvous
        if ranking is None:
            cell = bisect_right(table.edges, int.from_bytes(fingerprint[_POINT], "big"))
        else:
            slot = int.from_bytes((sticky or fingerprint)[_POINT], "big") % SLOTS
            cell = ranking.cells[slot]
            if cell == UNRANKED:
                cell = ranking.rank(slot)
        return table.orders.get(cell) or table.arrange(cell)

    def forget(self) -> None:
        """Let go of the models and targets of a catalog that was replaced."""
        self.dropped += len(self._tables)
        self._tables.clear()

    def _lay_out(self, key: _Key, model: Model, targets: Targets) -> _Table:
        if len(self._tables) >= self._most:
            self.forget()
        self.laid_out += 1
        table = self._tables[key] = _Table(model, targets, self._find_price)
        return table


class _Table:
    """The orders of one model's targets under one snapshot, each put together when it is first drawn."""

    __slots__ = (
        *("_backup", "_base", "_costs", "_ids", "_ranks", "_shares", "_views"),
        *("edges", "fixed", "model", "orders", "rendezvous", "targets", "version"),
    )

    # `version` and `_views` are of the last snapshot, and so are `_ranks` and `_costs`, which empty `orders` (or
    # replace `fixed`) when they change; all are written by `refresh`. `orders` is filled by `arrange`. The rest is as
    # at the start.

    def __init__(self, model: Model, targets: Targets, find_price: FindPrice) -> None:
        strategy = model.strategy
        self.model = model
        self.targets = targets
        self.version: int | None = None
        self.fixed: Targets | None = None
        self.orders: dict[int, Targets] = {}
        self.rendezvous: Rendezvous | None = None
        self.edges: tuple[int, ...] = ()
        self._ids = [target.id for target in targets]
        self._views: list[TargetView | None] = []
        self._ranks: Order = ()
        self._costs: Order = ()
        self._shares: Shares | None = None
        self._base: Order = tuple(range(len(targets)))
        weights = [target.weight for target in targets]
        self._backup = [strategy not in _FIXED and not weight > 0 for weight in weights]
        if strategy == "cheapest":
            blended = [_blend(target, find_price) for target in targets]
            self._base = tuple(sorted(self._base, key=blended.__getitem__))
        elif strategy == "sticky":
            self.rendezvous = Rendezvous(self._ids, weights, model.name)
        elif strategy != "ordered":
            self._shares = Shares(weights if strategy == "weighted" else [1.0] * len(targets))
            self.edges = self._shares.edges

    def refresh(self, snapshot: HealthSnapshot) -> None:
        """Take over what the snapshot says, and keep the orders if that puts nobody elsewhere."""
        views = list(map(snapshot.views.get, self._ids))
        if views != self._views:
            self._views = views
            self._judge(views)
        self.version = snapshot.version

    def _judge(self, views: list[TargetView | None]) -> None:
        strategy = self.model.strategy
        ranks, costs = tuple(map(_rank, views, self._backup)), self._costs
        if strategy == "least_in_flight":
            ranks = _dense(list(zip(ranks, _loads(views), strict=True)))
        elif strategy == "lowest_latency":
            costs = _dense(list(map(_wait_s, views)))
        if ranks == self._ranks and costs == self._costs:
            return
        self._ranks, self._costs = ranks, costs
        self.orders.clear()
        if strategy in _FIXED:
            self.fixed = self._place(self._base)

    def arrange(self, cell: int) -> Targets:
        """The order of a cell that has not been drawn since health changed."""
        shares = self.rendezvous or self._shares
        found = self.orders[cell] = self._place(shares.order(cell) if shares is not None else self._base)
        return found

    def _place(self, order: Order) -> Targets:
        placed = sorted(order, key=self._ranks.__getitem__)
        if self._costs:
            first, second = placed[:2]
            if self._ranks[first] == self._ranks[second] and self._costs[second] < self._costs[first]:
                placed[:2] = second, first
        return tuple([self.targets[each] for each in placed])


def _rank(view: TargetView | None, backup: bool) -> int:
    if view is None:
        return 2 * backup
    if view.open and not view.probe:
        return 4 + backup
    return 2 * backup + (view.in_flight >= view.limit)


def _loads(views: Sequence[TargetView | None]) -> list[float]:
    """Parts of their limits that are in use. One without a limit counts as having the widest of the others'."""
    widest = max((view.limit for view in views if view is not None and view.limit < inf), default=1.0)
    return [0.0 if view is None else view.in_flight / max(min(view.limit, widest), _NARROWEST) for view in views]


def _wait_s(view: TargetView | None) -> float:
    """For the first byte, as far as known. Unknown is best, so that somebody tries, and worst once enough do."""
    if view is None:
        return 0.0
    return view.first_byte_s if view.first_byte_s > 0 or view.in_flight < _TRIALS else inf


def _blend(target: ModelTarget, find_price: FindPrice) -> float:
    """Of a million tokens, times four: reading far outweighs writing in most requests."""
    price = find_price(target.model) if target.price is None else target.price
    return inf if price is None else 3 * price.input + price.output


def _dense(keys: Sequence[Any]) -> Order:
    """Ranks without gaps, so that a change that puts nobody elsewhere is none."""
    ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return tuple([ranks[key] for key in keys])
