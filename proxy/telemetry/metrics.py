"""Counting with plain numbers, rendering with aioprometheus when somebody scrapes.

A writer holds a child (``Count`` or ``Histogram``) or asks a family for one by its label values, and adds to it:
``metrics.requests_total.at("openai", "models", "other", "200", "ok").value += 1``. Values that other rooms own are
read by callables registered at start. aioprometheus sees numbers only while it renders: its own counters serialise
labels with each update, and it escapes no label value, which is why values are sanitised here.
"""

from __future__ import annotations

import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, TypeVar

from aioprometheus import collectors
from aioprometheus.renderer import render

from proxy import __version__
from proxy.telemetry import process
from proxy.telemetry.series import PREFIX, SERIES, Series, describe_series

__all__ = ["SERIES", "Count", "Family", "Histogram", "Metrics", "Series", "describe_series"]

MAX_SERIES: Final = 5_000
"""Lines of exposition that label values may create in all; beyond it updates go to a child called ``other``."""
MAX_MODELS: Final = 200
MAX_TABLE_ROWS: Final = 200
_MAX_LABEL_CHARS: Final = 120
_UNCLEAN: Final = re.compile(r'[^\x20-\x7e]|["\\]')
OTHER: Final = "other"

Labels = tuple[str, ...]
Read = Callable[[], float]
ReadTable = Callable[[], Mapping[Labels, float]]


class Count:
    """One series of a counter or a gauge: ``value += 1``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """One series of a histogram."""

    # `counts` has one more place than there are bounds: what is above all of them. Not cumulative.
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulate(self) -> dict[Any, float]:
        """What aioprometheus renders: upper bound → observations at or below it, then ``count`` and ``sum``."""
        rows: dict[Any, float] = {}
        seen = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            rows[bound] = seen
        rows["count"] = seen
        rows["sum"] = self.total
        return rows


C = TypeVar("C", Count, Histogram)


class Room:
    """How many lines of exposition are left for label values, over all families."""

    __slots__ = ("left", "refused")

    def __init__(self, lines: int) -> None:
        self.left = lines
        self.refused = Count()


class Family(Generic[C]):
    """All series of one name."""

    # Mutable state: `_children` maps label values as given to children, `_clean` maps sanitised ones; both grow in
    # `_make` only, as long as there is room. `_reads` and `_tables` grow at start.
    __slots__ = ("_children", "_clean", "_make_child", "_reads", "_room", "_tables", "_weight", "row")

    def __init__(self, row: Series, make_child: Callable[[], C], room: Room) -> None:
        self.row = row
        self._make_child: Callable[[], C] = make_child
        self._room = room
        self._weight = len(row.buckets) + 3 if row.buckets else 1
        self._children: dict[Labels, C] = {}
        self._clean: dict[Labels, C] = {}
        self._reads: dict[Labels, Read] = {}
        self._tables: list[ReadTable] = []

    def at(self, *labels: str) -> C:
        """The child with these label values, in the order of the row's labels; made when it is new."""
        child = self._children.get(labels)
        return self._make(labels) if child is None else child

    def _make(self, labels: Labels) -> C:
        if len(labels) != len(self.row.labels):
            raise TypeError(f"{self.row.name} has the labels {self.row.labels}, got {labels}")
        if labels and self._room.left < self._weight:
            self._room.refused.value += 1
            labels = (OTHER,) * len(labels)
        clean = sanitise(labels)
        child = self._clean.get(clean)
        if child is None:
            child = self._clean[clean] = self._make_child()
        # An odd spelling of known values takes room as well, or spellings without end would take memory without end.
        if labels not in self._children:
            self._children[labels] = child
            self._room.left -= self._weight if labels else 0
        return child

    def read_from(self, labels: Labels, read: Read) -> None:
        self._reads[sanitise(labels)] = read

    def read_table(self, read: ReadTable) -> None:
        self._tables.append(read)

    def rows(self) -> list[tuple[dict[str, str], Any]]:
        """Label names and values with the value, for the renderer."""
        values: dict[Labels, Any] = dict(self._read())
        for labels, child in self._clean.items():
            if isinstance(child, Histogram):
                values[labels] = child.cumulate()
            elif isinstance(child, Count):
                values[labels] = values.get(labels, 0) + child.value
        names = self.row.labels
        return [(dict(zip(names, labels, strict=True)), value) for labels, value in values.items()]

    def _read(self) -> dict[Labels, float]:
        numbers = {labels: read() for labels, read in self._reads.items()}
        for table in self._tables:
            for labels, number in table().items():
                clean = sanitise(labels)
                if clean not in numbers and len(numbers) >= MAX_TABLE_ROWS:
                    clean = (OTHER,) * len(labels)
                numbers[clean] = numbers.get(clean, 0) + number
        return numbers


def sanitise(labels: Labels) -> Labels:
    """Label values that need no escaping and have a bounded length."""
    return tuple(_UNCLEAN.sub("_", label)[:_MAX_LABEL_CHARS] for label in labels)


class _View:
    """What aioprometheus takes for a collector: it hands over a family's rows and keeps nothing itself."""

    family: Family[Any]

    def get_all(self) -> list[tuple[dict[str, str], Any]]:
        return self.family.rows()


class _CounterView(_View, collectors.Counter):
    pass


class _GaugeView(_View, collectors.Gauge):
    pass


class _HistogramView(_View, collectors.Histogram):
    pass


_VIEWS: Final[dict[str, Any]] = {"counter": _CounterView, "gauge": _GaugeView, "histogram": _HistogramView}

Counts = Family[Count]
Histograms = Family[Histogram]


class Metrics:
    """Every series of the process. A series without labels is its only child, one with labels is the family."""

    # Mutable state: `_models` grows in `model_label` up to MAX_MODELS; `last_bug` is written by `bug`; the numbers by
    # whoever holds a child. All of it, rendering included, happens in the event loop's thread.
    requests_total: Counts
    request_duration_seconds: Histograms
    time_to_first_token_seconds: Histograms
    overhead_seconds: Histograms
    streams_inflight: Count
    streams_truncated_total: Counts
    rejections_total: Counts
    tokens_total: Counts
    tokens_saved_total: Counts
    cost_usd_total: Counts
    saved_usd_total: Counts
    policy_saved_usd_total: Counts
    policy_lost_usd_total: Counts
    policy_saved_tokens_total: Counts
    cache_class_requests_total: Counts
    upstream_requests_total: Counts
    upstream_duration_seconds: Histograms
    upstream_connect_errors_total: Counts
    upstream_retries_total: Counts
    upstream_connections: Counts
    dns_stale_used_total: Count
    embedding_batch_size: Histogram
    flights_total: Counts
    flights_in_air: Count
    flight_subscribers: Count
    coalesce_followers: Histogram
    joins_total: Counts
    join_refused_total: Counts
    released_total: Counts
    coalesce_bypass_total: Counts
    collapse_saved_total: Count
    linger_total: Counts
    detached_total: Counts
    retained_bytes: Count
    pass_markers: Count
    flight_watchdog_total: Count
    cache_hits_total: Counts
    cache_misses_total: Counts
    cache_evictions_total: Counts
    cache_bytes: Counts
    cache_stores_total: Counts
    cache_failures_total: Counts
    cache_purges_total: Counts
    cache_up: Counts
    stale_served_total: Counts
    connections: Counts
    connections_closed_total: Counts
    event_loop_lag_seconds: Histogram
    log_lines_dropped_total: Count
    metric_series_refused_total: Count
    bugs_total: Counts
    config_last_reload_successful: Count
    config_reload_failures_total: Count

    def __init__(self, models: Iterable[str] = ()) -> None:
        """``models`` are names that have series of their own from the start."""
        self.before_render: list[Callable[[], None]] = []
        """Called before each rendering, by whoever counts in batches."""
        self._models: dict[str, str] = {name: name for name in list(models)[:MAX_MODELS]}
        self.last_bug = ""
        """Where the last unexpected exception came from, and what it was."""
        room = Room(MAX_SERIES)
        self._registry = collectors.Registry()
        self._families: dict[str, Family[Any]] = {}
        for row in SERIES:
            self._add(row, room)
        self.counter_from("metric_series_refused_total", lambda: room.refused.value)
        self.gauge_from("build_info", lambda: 1, __version__, platform.python_version())
        for name, read in process.readers().items():
            self._families[name].read_from((), read)

    def _add(self, row: Series, room: Room) -> None:
        make_child: Callable[[], Any] = (lambda: Histogram(row.buckets)) if row.buckets else Count
        family: Family[Any] = Family(row, make_child, room)
        self._families[row.name] = family
        view = _VIEWS[row.type](row.name, row.help, registry=self._registry)
        view.family = family
        if row.short in Metrics.__annotations__:
            setattr(self, row.short, family if row.labels else family.at())

    def gauge_from(self, name: str, read: Read, *labels: str) -> None:
        """Let a gauge (name without prefix) be read by ``read`` with each scrape."""
        self._source(name, "gauge", len(labels)).read_from(labels, read)

    def counter_from(self, name: str, read: Read, *labels: str) -> None:
        """Let a counter be read by ``read``, which must never go down."""
        self._source(name, "counter", len(labels)).read_from(labels, read)

    def table_from(self, name: str, read: ReadTable) -> None:
        """Let a counter or gauge with labels be read as a whole: ``read`` returns label values → number. Several
        tables of one series are added up; beyond ``MAX_TABLE_ROWS`` the rest is added up as ``other``."""
        self._source(name, "", None).read_table(read)

    def _source(self, name: str, kind: str, labels: int | None) -> Family[Any]:
        family = self._families.get(PREFIX + name)
        if family is None or kind not in ("", family.row.type) or family.row.type == "histogram":
            raise ValueError(f"there is no {kind or 'readable'} series {name!r}")
        if labels is not None and labels != len(family.row.labels):
            raise ValueError(f"{name} has the labels {family.row.labels}")
        return family

    def model_label(self, model: str, answered: bool) -> str:
        """The value of the label ``model``: the name itself if it is known or an upstream just ``answered`` for it,
        else ``other``; so that names that callers make up get no series."""
        label = self._models.get(model)
        if label is not None:
            return label
        if answered and model and len(self._models) < MAX_MODELS:
            label = self._models[model] = sanitise((model,))[0]
            return label
        return OTHER

    def bug(self, where: str, error: BaseException) -> None:
        """Count an exception that nobody foresaw."""
        self.bugs_total.at(where).value += 1
        self.last_bug = f"{where}: {error!r}"

    def render(self, accept: list[str]) -> tuple[bytes, str]:
        """The exposition and its content type, for the values of the scraper's ``Accept`` headers."""
        for catch_up in self.before_render:
            catch_up()
        body, headers = render(self._registry, accept)
        return body, headers["Content-Type"]
