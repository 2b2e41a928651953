"""The metrics of all workers as those of one program: counters and histograms added up, gauges told apart.

A sum must not fall when a worker ends, or everybody who derives a rate from it sees a leap. So the last counts of
those that have ended are kept and added, and a worker that does not answer counts as it did when it last did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from proxy.telemetry.series import SERIES

_ADDED: Final = ("counter", "histogram")
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Group:
    """One series with all its samples."""

    __slots__ = ("help", "name", "samples", "type")

    def __init__(self, name: str, help_text: str, kind: str) -> None:
        self.name = name
        self.help = help_text
        self.type = kind
        self.samples: dict[str, float] = {}
        """``name{labels}`` as it stood in the text → value."""


Groups = dict[str, Group]
_ROWS: Final = {row.short: row for row in SERIES}


def series_group(short: str, samples: Mapping[str, float] | None = None) -> Group:
    """A parent's own series by its name without prefix; ``samples`` by the value of its only label."""
    row = _ROWS[short]
    group = Group(row.name, row.help, row.type)
    for value, number in (samples or {}).items():
        group.samples[f'{row.name}{{{row.labels[0]}="{value}"}}'] = number
    return group


def parse(text: str) -> Groups:
    """An exposition that Sameflight wrote: each series' lines follow its type. Lines that are none are left out."""
    groups: Groups = {}
    helps: dict[str, str] = {}
    current: Group | None = None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, words = line[7:].partition(" ")
            helps[name] = words
        elif line.startswith("# TYPE "):
            name, _, kind = line[7:].partition(" ")
            current = groups[name] = Group(name, helps.get(name, ""), kind)
        elif current is not None and line.startswith(current.name):
            sample, _, value = line.rpartition(" ")
            try:
                current.samples[sample] = float(value)
            except ValueError:
                continue
    return groups


class Totals:
    """What is added up over the life of a parent."""

    # Mutable state: `_last` maps processes alive to what they last said, `_dead` is what the dead had counted;
    # written by `hear` and `bury`.
    def __init__(self) -> None:
        self._last: dict[str, Groups] = {}
        self._dead: Groups = {}

    def hear(self, process: str, text: str) -> None:
        """What a process says about itself now."""
        self._last[process] = parse(text)

    def bury(self, process: str, final: str = "") -> None:
        """A process has ended; ``final`` is what it said at last, if it still could."""
        last = parse(final) if final else {}
        groups = last or self._last.get(process, {})
        self._last.pop(process, None)
        for group in groups.values():
            if group.type in _ADDED:
                _add(self._dead, group)

    def merge(self, workers: Mapping[str, str], own: Iterable[Group] = ()) -> str:
        """The exposition. ``workers`` maps processes whose gauges are shown to the value of the label ``worker``;
        ``own`` is what the parent says about itself."""
        merged: Groups = {}
        for groups in (self._dead, *self._last.values()):
            for group in groups.values():
                if group.type in _ADDED:
                    _add(merged, group)
        for process, worker in workers.items():
            for group in self._last.get(process, {}).values():
                if group.type not in _ADDED:
                    _add(merged, group, worker)
        for group in own:
            _add(merged, group)
        return "".join(_render(merged[name]) for name in merged)


def _add(groups: Groups, group: Group, worker: str = "") -> None:
    into = groups.get(group.name)
    if into is None:
        into = groups[group.name] = Group(group.name, group.help, group.type)
    for sample, value in group.samples.items():
        name = _label(sample, worker) if worker else sample
        into.samples[name] = into.samples.get(name, 0.0) + value


def _label(sample: str, worker: str) -> str:
    """The sample with one label more, the first."""
    name, brace, rest = sample.partition("{")
    return f'{name}{{worker="{worker}"' + ("," + rest if brace and rest != "}" else "}")


def _render(group: Group) -> str:
    lines = [f"# HELP {group.name} {group.help}", f"# TYPE {group.name} {group.type}"]
    lines += [f"{sample} {_number(value)}" for sample, value in group.samples.items()]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
