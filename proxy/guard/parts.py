"""One text of an answer as it comes in: what was found in it, and how far it is decided.

A part is appended to and advanced. Each scanner has a place in it up to which everything is decided: what it would
find there in the whole text it has found. A part keeps only what scanners still have to see, and a little before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxy.guard.base import Check, Finding, Quotes, Scanner, merge_findings, spell_replacement
from proxy.guard.plain import Plain, read_plain

CONTEXT_BYTES: Final = 72
"""Kept before the first undecided place: surroundings of matches, and beginnings of words."""
MAX_OPEN_BYTES: Final = 8_192
"""A match that has reached the end of the text is waited for so long."""
MOST_UNSEEN: Final = 64
"""Characters in a row that cannot be seen and are passed over: what is read again and again must not grow by them."""


class Looker:
    """The scanners of all checks, with what they have in common."""

    # Mutable state: none.
    __slots__ = ("checks", "gates", "opens_like", "rows")

    def __init__(self, checks: Sequence[Check]) -> None:
        self.checks = tuple(checks)
        self.rows: tuple[tuple[int, Scanner], ...] = tuple(
            (index, scanner) for index, check in enumerate(checks) for scanner in check.scanners
        )
        """Index of the check, and one of its scanners."""
        self.opens_like: tuple[object, ...] = tuple(scanner.opens_like for _, scanner in self.rows)
        """For each row; see `Scanner.opens_like`."""
        self.gates = tuple({id(row.gate): row.gate for _, row in self.rows if row.gate is not None}.values())

    def closed_gates(self, text: bytes) -> set[int]:
        """Ids of gates that do not open for the text."""
        return {id(gate) for gate in self.gates if gate.search(text) is None}


class Part:
    """One text. Places are offsets in the part's bytes from its beginning."""

    # Mutable, written by `append`, `advance` and `forget`:
    #   _tail     the text from _base on
    #   _cursors  for each row of the looker the place up to which it has decided, in the text as it is
    #   _reads    the same, in the text as it reads (`plain`)
    #   _raw      what redacting checks have found, not yet merged; merged into `cuts` as far as it is decided
    #   _quotes   for arguments: whether what comes next is inside a string
    __slots__ = ("_base", "_cursors", "_looker", "_quotes", "_raw", "_reads", "_tail", "cuts", "kind", "settled")

    def __init__(self, looker: Looker, kind: str) -> None:
        self._looker = looker
        self._tail = bytearray()
        self._base = 0
        self._cursors = [0] * len(looker.rows)
        self._reads = [0] * len(looker.rows)
        self._raw: list[Finding] = []
        self._quotes = Quotes() if kind == "arguments" else None
        self.kind = kind
        self.settled = 0
        """What is before this place may go."""
        self.cuts: list[tuple[int, int, bytes]] = []
        """Start, stop and replacement of what is to be redacted before ``settled``."""

    @property
    def size(self) -> int:
        return self._base + len(self._tail)

    def append(self, text: bytes) -> None:
        self._tail += text

    def advance(self, *, ends: bool) -> list[tuple[int, Finding]]:
        """Decide what can be decided; with ``ends``, all. What was found now, with the index of its check."""
        found: list[tuple[int, Finding]] = []
        text = bytes(self._tail)
        looker = self._looker
        base = self._base
        self._cursors = [base + at for at in self._look(text, [at - base for at in self._cursors], found, None, ends)]
        plain = read_plain(text, MOST_UNSEEN)
        if plain is None:
            self._reads = list(map(max, self._reads, self._cursors))
        else:
            reads = self._look(plain.text, [plain.find(at - base) for at in self._reads], found, plain, ends)
            self._reads = [base + plain.place(at) for at in reads]
        held = len(text)
        for row, (index, _) in enumerate(looker.rows):
            if looker.checks[index].action != "flag":
                held = min(held, self._cursors[row] - base, self._reads[row] - base)
        self._raw += [finding for index, finding in found if looker.checks[index].action == "redact"]
        self._settle(self._base + held, text)
        self._forget(text)
        return found

    def _look(
        self, text: bytes, cursors: list[int], found: list[tuple[int, Finding]], plain: Plain | None, ends: bool
    ) -> list[int]:
        """Up to where each scanner has decided, in the text as it is or, with ``plain``, as it reads; what they found
        is added."""
        looker = self._looker
        closed = looker.closed_gates(text)
        limits: dict[object, int] = {}
        decided = []
        for row, (_, scanner) in enumerate(looker.rows):
            cursor = cursors[row]
            limit = len(text) if ends else limits.get(looker.opens_like[row], -1)
            if limit < 0:
                limit = limits[looker.opens_like[row]] = scanner.open_from(text)
            if scanner.needs in text and id(scanner.gate) not in closed:
                cursor = self._scan(text, row, cursor, limit, found, plain, ends)
            else:
                cursor = max(cursor, limit)
            decided.append(cursor)
        return decided

    def _scan(  # noqa: PLR0917 - as `_look`
        self,
        text: bytes,
        row: int,
        cursor: int,
        limit: int,
        found: list[tuple[int, Finding]],
        plain: Plain | None,
        ends: bool,
    ) -> int:
        """Up to where one scanner has decided."""
        index, scanner = self._looker.rows[row]
        name = self._looker.checks[index].name
        for kind, start, stop in scanner.scan(text, cursor):
            if start >= limit:
                break
            if not ends and stop == len(text) and stop - start < MAX_OPEN_BYTES:
                return max(cursor, start)
            first, last = (start, stop) if plain is None else plain.span(start, stop)
            if kind and (plain is None or last - first != stop - start):
                found.append((index, Finding(name, kind, self._base + first, self._base + last)))
            cursor = stop
        return max(cursor, limit)

    def _settle(self, settled: int, text: bytes) -> None:
        """Merge what was found; a match that reaches beyond what is decided may grow into another one."""
        if self._raw:
            merged = merge_findings(self._raw)
            self._raw = []
            for each in merged:
                if each.start >= settled:
                    self._raw.append(each)
                elif each.stop <= settled or each.stop - each.start >= MAX_OPEN_BYTES:
                    self._cut(each, text)
                else:
                    settled = each.start
                    self._raw.append(each)
        self.settled = max(self.settled, settled)

    def _cut(self, finding: Finding, text: bytes) -> None:
        replacement = spell_replacement(finding)
        if self._quotes is not None:
            done = self._quotes.at - self._base
            if not self._quotes.feed(text[done : finding.start - self._base]):
                replacement = b'"' + replacement + b'"'
        self.cuts.append((finding.start, finding.stop, replacement))

    def _forget(self, text: bytes) -> None:
        first = min([*self._cursors, *self._reads, self.settled, *(each.start for each in self._raw)]) - CONTEXT_BYTES
        gone = first - self._base
        if gone <= 0:
            return
        while gone and text[gone] & 0xC0 == 0x80:  # not inside a character
            gone -= 1
        if self._quotes is not None and self._quotes.at < self._base + gone:
            self._quotes.feed(text[self._quotes.at - self._base : gone])
        del self._tail[:gone]
        self._base += gone

    def rewrite(self, text: bytes, start: int) -> bytes:
        """A piece of the part that begins at ``start``, without what is to be redacted. Pieces are asked for in
        order: what lies before is forgotten."""
        stop = start + len(text)
        while self.cuts and self.cuts[0][1] <= start:
            del self.cuts[0]
        pieces: list[bytes] = []
        done = start
        for first, last, replacement in self.cuts:
            if first >= stop:
                break
            if first >= start:
                pieces += (text[done - start : first - start], replacement)
            done = min(last, stop)
        pieces.append(text[done - start :])
        return b"".join(pieces)


def scrub(looker: Looker, text: bytes, kind: str) -> tuple[bytes, list[tuple[int, Finding]]]:
    """A whole text without what redacting checks find in it, and what all checks find."""
    part = Part(looker, kind)
    part.append(text)
    found = part.advance(ends=True)
    return part.rewrite(text, 0), found
