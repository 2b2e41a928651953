"""What was found and weighed in one body so far, and whether that is something: thresholds and weights are of the sum
over all its texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.guard.base import Check, Finding

SIZE: Final = "size"


class Tally:
    """Of one body."""

    # Mutable: `note` and `weigh` add, `take` gives what was added since.
    __slots__ = ("_blocked", "_checks", "_counts", "_new", "_weighed", "_weights")

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = tuple(checks)
        self._counts: dict[tuple[int, str], int] = {}
        self._weights = [0] * len(self._checks)
        self._weighed = tuple(index for index, check in enumerate(self._checks) if check.most >= 0)
        self._new: list[Finding] = []
        self._blocked: Finding | None = None

    @property
    def is_blocked(self) -> bool:
        return self._blocked is not None

    def note(self, found: Sequence[tuple[int, Finding]]) -> None:
        """Findings with the indices of their checks."""
        for index, finding in found:
            self._count(index, finding, self._counts)

    def weigh(self, text: bytes) -> None:
        for index in self._weighed:
            self._add(index, self._checks[index].weigh(text), self._weights)

    def note_whole(self, found: Sequence[tuple[int, Finding]], texts: Sequence[bytes]) -> None:
        """Of texts that say again what was said before: they count by themselves."""
        counts: dict[tuple[int, str], int] = {}
        for index, finding in found:
            self._count(index, finding, counts)
        for index in self._weighed:
            self._add(index, sum(map(self._checks[index].weigh, texts)), [0] * len(self._checks))

    def take(self) -> tuple[tuple[Finding, ...], Finding | None]:
        """What is something, found since the last time; and what blocks, once there is such."""
        findings, self._new = tuple(self._new), []
        return findings, self._blocked

    def _count(self, index: int, finding: Finding, counts: dict[tuple[int, str], int]) -> None:
        check = self._checks[index]
        count = counts[index, finding.kind] = counts.get((index, finding.kind), 0) + 1
        if count >= check.threshold:
            self._tell(check, finding)

    def _add(self, index: int, weight: int, weights: list[int]) -> None:
        check = self._checks[index]
        before = weights[index]
        weights[index] = before + weight
        if before <= check.most < before + weight:
            self._tell(check, Finding(check.name, SIZE, 0, 0))

    def _tell(self, check: Check, finding: Finding) -> None:
        self._new.append(finding)
        if check.action == "block" and self._blocked is None:
            self._blocked = finding
