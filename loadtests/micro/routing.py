"""``python -m loadtests.micro.routing``: what it costs to put the targets of a model in order, by strategy.

1,000 models of 5 targets each are asked for in turn. Three costs: under a snapshot of health that is known; with a
snapshot that is new and says what the last one said; with one under which loads and times have changed. The last two
are paid once for each model and snapshot. Microseconds of this thread, the best of some rounds.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from time import thread_time
from typing import Any, Final

from loadtests.micro.material import make_keys
from proxy.config.models import STRATEGIES, Model, ModelTarget
from proxy.config.prices import Price
from proxy.policy.routing import HealthSnapshot, Router, TargetView

MODELS: Final = 1000
MOST_US: Final = 2.0
_TARGETS: Final = 5
_WEIGHTS: Final = (40.0, 30.0, 15.0, 10.0, 5.0)
_REQUESTS: Final = 5000
_PROVIDER: Final[Any] = None  # routing never looks at it


def make_models(strategy: str, count: int) -> list[Model]:
    return [_make_model(strategy, f"model-{number}") for number in range(count)]


def _make_model(strategy: str, name: str) -> Model:
    targets = [
        ModelTarget(f"provider-{each}/{name}", _PROVIDER, name, _WEIGHTS[each], Price(1.0 + each, 5.0))
        for each in range(_TARGETS)
    ]
    return Model(name, tuple(targets), strategy)


def make_snapshots(models: list[Model]) -> Iterator[HealthSnapshot]:
    """Each with other loads and times than the one before; all targets have room."""
    names = [target.id for model in models for target in model.targets]
    for version in itertools.count(1):
        busy = [(number * (version + 2) + version) % 7 for number in range(len(names))]
        views = (TargetView(in_flight=each, limit=20, first_byte_s=0.1 + each / 10) for each in busy)
        yield HealthSnapshot(version, dict(zip(names, views, strict=True)))


def make_order(strategy: str, count: int = MODELS) -> Callable[[], object]:
    """A call that puts the targets of the next of so many models in order, for the next request."""
    models, router = make_models(strategy, count), Router()
    snapshot = next(make_snapshots(models))
    asked = itertools.cycle([(each, each.targets, snapshot) for each in models])
    keys = itertools.cycle(list(make_keys(_REQUESTS + 1)))  # prime to the models, so that each meets other keys
    return lambda: router.order(*next(asked), next(keys))


def measure(strategy: str, rounds: int) -> tuple[float, float, float]:
    """Microseconds under a known snapshot, under a new one without news, and under a changed one."""
    models, router = make_models(strategy, MODELS), Router()
    keys = make_keys(_REQUESTS)
    turns = [[(model, model.targets, next(keys)) for model in models] for _ in range(_REQUESTS // MODELS)]
    snapshots = make_snapshots(models)
    known = next(snapshots)
    for turn in turns:
        _time(router, turn, known)
    warm = min(_time(router, turn, known) for turn in turns * rounds)
    fresh = (known._replace(version=-version) for version in itertools.count(1))
    unchanged = min(_time(router, turns[0], next(fresh)) for _ in range(rounds))
    changed = min(_time(router, turns[0], next(snapshots)) for _ in range(rounds))
    return warm, unchanged, changed


def _time(router: Router, asked: list[tuple[Model, tuple[ModelTarget, ...], bytes]], health: HealthSnapshot) -> float:
    order = router.order
    began = thread_time()
    for model, targets, key in asked:
        order(model, targets, health, key)
    return (thread_time() - began) / len(asked) * 1e6


def main(arguments: list[str]) -> int:
    """1 if a strategy costs more than `MOST_US` under a known snapshot."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.micro.routing", description="Costs of routing.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args(arguments).rounds
    print(f"{MODELS} models of {_TARGETS} targets, microseconds for a request\n")
    print("| strategy | known snapshot | new, says the same | new, changed |\n|---|--:|--:|--:|")
    worst = 0.0
    gc.disable()
    for strategy in STRATEGIES:
        found = measure(strategy, rounds)
        worst = max(worst, found[0])
        print(f"| {strategy} | " + " | ".join(f"{cost:.2f}" for cost in found) + " |")
    return int(worst > MOST_US)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
