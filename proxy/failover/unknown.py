"""Which targets said a moment ago that they do not have a model: nobody has to ask them again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from proxy.config.models import ModelTarget

UNKNOWN_S: Final = 60.0
MAX_NAMES: Final = 4096
"""Callers make names up where the catalog's name ends in ``*``; the oldest is forgotten for a further one."""


class UnknownModels:
    """Bounded in number and time."""

    # Mutable state: _until, by target and name when to ask again, the oldest first.
    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def note(self, target: ModelTarget, name: str, now: float) -> None:
        key = target.id, name
        self._until.pop(key, None)
        self._until[key] = now + UNKNOWN_S
        if len(self._until) > MAX_NAMES:
            self._until.popitem(last=False)

    def knows(self, target: ModelTarget, name: str, now: float) -> bool:
        """Whether ``target`` has no such model, as far as it is known."""
        if not self._until:
            return False
        until = self._until.get((target.id, name))
        return until is not None and now < until

    def clear(self) -> None:
        self._until.clear()
