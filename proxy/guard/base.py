"""What a guard's check is: a pure look at one text that says where something was found.

Texts are UTF-8 and places are offsets in bytes. A look takes time linear in the text, and what it finds is bounded: a
check that finds more than `MAX_FINDINGS` says that the whole rest of the text is a finding, so that nothing is let
through because there was much of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from proxy.guard.plain import read_plain
from proxy.linear import Expression

MAX_FINDINGS: Final = 1_000
"""Of one check in one text."""
DEFAULT_SPAN_BYTES: Final = 256
SLOW_BYTES: Final = 8 << 10
"""Texts beyond are not for the event loop; see `Check.is_slow`."""

_QUOTE: Final = re.compile(rb'["\\]')


class Finding(NamedTuple):
    """A place in a text, and what is there."""

    guard: str
    """The guard's name."""
    kind: str
    """Low-cardinality word: ``card``, ``openai_key``, ``word`` … It stands in brackets for what was redacted."""
    start: int
    stop: int


class Check(Protocol):
    """What one guard looks for. Immutable, and the same object for equal guards.

    What is judged is the sum over all texts of one body (`judge`): most checks ask for one finding and weigh nothing.
    ``look`` never raises.
    """

    @property
    def name(self) -> str:
        """The guard's."""

    @property
    def action(self) -> str:
        """``block``, ``redact`` or ``flag``."""

    @property
    def scanners(self) -> tuple[Scanner, ...]:
        """What looks for places; none if the check judges texts by something else."""

    @property
    def max_span_bytes(self) -> int:
        """The longest match there can be, with its surroundings; 0 without scanners."""

    @property
    def threshold(self) -> int:
        """So many findings of one kind in one body are something; fewer are nothing."""

    @property
    def most(self) -> int:
        """What the texts of one body may weigh; -1 for any weight."""

    @property
    def whole(self) -> bool:
        """Only whole answers can be judged: nothing is known before the last byte."""

    def look(self, text: bytes) -> list[Finding]:
        """What is found, from left to right, not overlapping, of `MAX_FINDINGS` at most."""

    def weigh(self, text: bytes) -> int:
        """What the text adds to the sum that is compared with ``most``."""

    def is_slow(self, text_bytes: int) -> bool:
        """Whether texts of this length may take longer than the event loop should be held (some milliseconds)."""


class Scanner:
    """Looks for one shape. Immutable. Subclasses give `scan`."""

    __slots__ = ("_cannot_begin", "alphabet", "gate", "needs", "span_bytes")

    def __init__(
        self,
        span_bytes: int,
        *,
        alphabet: bytes = b"",
        begins: bytes = b"",
        needs: bytes = b"",
        gate: Expression | None = None,
    ) -> None:
        self.span_bytes = span_bytes
        """The longest match, with one character on either side. What is longer is cut there."""
        self.alphabet = alphabet
        """All bytes that a match may have in it; empty for any."""
        self._cannot_begin = bytes(byte for byte in alphabet if begins and byte not in begins)
        self.needs = needs
        """What every match has in it."""
        self.gate = gate
        """What is found wherever this finds something; asked once for all scanners of a check that share it."""

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        """Kind, start and stop of each match that begins at ``at`` or behind it, from left to right, not overlapping.
        An empty kind for a place that turned out to be nothing and is not to be looked at again.

        What is found from ``at`` on depends on nothing before it but its last characters, so that a text that comes
        in portions gives the same as the whole text.
        """
        return iter(())

    @property
    def opens_like(self) -> object:
        """Equal for scanners whose `open_from` is the same for every text."""
        if type(self).open_from is Scanner.open_from:
            return self.span_bytes, self.alphabet, self._cannot_begin
        return id(self)

    def open_from(self, text: bytes) -> int:
        """The place in a text that goes on from which a match may be unfinished: what begins before is decided."""
        earliest = max(0, len(text) - self.span_bytes)
        if not self.alphabet:
            return earliest
        run = text[len(text.rstrip(self.alphabet)) :]
        if self._cannot_begin:
            run = run.lstrip(self._cannot_begin)
        return max(earliest, len(text) - len(run))


class Spans:
    """A check that finds places."""

    # Mutable state: none.
    __slots__ = (
        *("_gates", "_quick_bytes", "action", "max_span_bytes", "most", "name", "scanners", "threshold", "whole"),
    )

    def __init__(
        self,
        name: str,
        action: str,
        scanners: Sequence[Scanner],
        threshold: int = 1,
        *,
        quick_bytes: int = SLOW_BYTES,
    ) -> None:
        """``quick_bytes``: the longest text for the event loop."""
        self.name = name
        self.action = action
        self.scanners = tuple(scanners)
        self.max_span_bytes = max((each.span_bytes for each in scanners), default=0)
        self.threshold = threshold
        self.most = -1
        self.whole = False
        self._quick_bytes = quick_bytes
        self._gates = tuple({id(each.gate): each.gate for each in scanners if each.gate is not None}.values())

    def look(self, text: bytes) -> list[Finding]:
        found = self._find(text)
        plain = read_plain(text)
        if plain is not None:
            found += [
                each._replace(start=start, stop=stop)
                for each in self._find(plain.text)
                for start, stop in (plain.span(each.start, each.stop),)
                if stop - start != each.stop - each.start  # else it stands there as it is
            ]
        if len(found) > 1:
            found = merge_findings(found)
        if len(found) > MAX_FINDINGS:
            rest = found[MAX_FINDINGS - 1]
            found[MAX_FINDINGS - 1 :] = [rest._replace(stop=len(text))]
        return found

    def _find(self, text: bytes) -> list[Finding]:
        closed = {id(gate) for gate in self._gates if gate.search(text) is None}
        found: list[Finding] = []
        for scanner in self.scanners:
            if scanner.needs in text and id(scanner.gate) not in closed:
                found += [Finding(self.name, *each) for each in scanner.scan(text, 0) if each[0]]
        return found

    def weigh(self, text: bytes) -> int:
        return 0

    def is_slow(self, text_bytes: int) -> bool:
        return text_bytes > self._quick_bytes


def merge_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Of several checks: what overlaps becomes one, under the name of the first."""
    merged: list[Finding] = []
    for each in sorted(findings, key=lambda one: (one.start, -one.stop, one.guard)):
        last = merged[-1] if merged else None
        if last is not None and each.start < last.stop:
            merged[-1] = last._replace(stop=max(last.stop, each.stop))
        else:
            merged.append(each)
    return merged


def spell_replacement(finding: Finding) -> bytes:
    """What stands in the place of what was found."""
    return b"[" + finding.kind.upper().encode() + b"]"


class Said(bytes):
    """A text that knows what it is in its body: ``text`` (what somebody says), ``thought``, ``refusal``,
    ``arguments`` (JSON) or ``other``."""

    kind: str

    def __new__(cls, text: bytes, kind: str = "text") -> Said:
        said = super().__new__(cls, text)
        said.kind = kind
        return said


class Quotes:
    """Whether a place in a JSON text is inside a string. Fed from the start, in order."""

    # Mutable, written by `feed`: _inside, and whether the next byte is escaped.
    __slots__ = ("_escaped", "_inside", "at")

    def __init__(self) -> None:
        self._inside = False
        self._escaped = False
        self.at = 0
        """Bytes fed."""

    def feed(self, text: bytes) -> bool:
        """Take the next bytes; whether what follows them is inside a string."""
        if not text:
            return self._inside
        skipped = 1 if self._escaped else 0
        for match in _QUOTE.finditer(text):
            place = match.start()
            if place < skipped:
                continue
            if text[place] == 92:
                skipped = place + 2
            else:
                self._inside = not self._inside
        self._escaped = skipped > len(text)
        self.at += len(text)
        return self._inside


def redact(text: bytes, findings: Sequence[Finding]) -> bytes:
    """The text without what was found. ``findings`` as `merge_findings` gives them. Arguments stay JSON."""
    quotes = Quotes() if isinstance(text, Said) and text.kind == "arguments" else None
    pieces: list[bytes] = []
    done = 0
    for each in findings:
        replacement = spell_replacement(each)
        if quotes is not None and not quotes.feed(text[quotes.at : each.start]):
            replacement = b'"' + replacement + b'"'
        pieces += (text[done : each.start], replacement)
        done = each.stop
    return b"".join((*pieces, text[done:]))
