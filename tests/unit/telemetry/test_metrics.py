"""Counting and rendering: numbers come out as they went in, and labels cannot break or flood the exposition."""

import platform
import re

import pytest

from proxy import __version__
from proxy.telemetry import metrics as module
from proxy.telemetry.metrics import SERIES, Family, Histogram, Metrics, Room, Series, describe_series
from proxy.telemetry.series import PREFIX

_LINE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*\})? -?[0-9.e+-]+')


@pytest.fixture
def metrics():
    return Metrics()


def lines_of(metrics):
    body, content_type = metrics.render(["text/plain"])
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return body.decode().splitlines()


def samples_of(metrics, name):
    """Text between name and end of each sample line of a series."""
    return [line for line in lines_of(metrics) if re.match(rf"{PREFIX}{name}[ {{]", line)]


def test_a_counted_request_is_rendered_with_its_labels(metrics):
    """Asking twice for the same labels is asking for the same number."""
    for _ in range(3):
        metrics.requests_total.at("openai", "chat.completions", "gpt-4o", "200", "ok").value += 1
    labels = 'model="gpt-4o",outcome="ok",provider="openai",route="chat.completions",status="200"'
    assert samples_of(metrics, "requests_total") == [f"sameflight_requests_total{{{labels}}} 3"]


def test_a_series_without_labels_is_there_from_the_start(metrics):
    """A rate needs a first value."""
    assert samples_of(metrics, "collapse_saved_total") == ["sameflight_collapse_saved_total 0"]
    metrics.collapse_saved_total.value += 2
    assert samples_of(metrics, "collapse_saved_total") == ["sameflight_collapse_saved_total 2"]


def test_a_gauge_goes_up_and_down(metrics):
    """Streams come and go."""
    metrics.streams_inflight.value += 2
    metrics.streams_inflight.value -= 1
    assert samples_of(metrics, "streams_inflight") == ["sameflight_streams_inflight 1"]


@pytest.mark.parametrize(("value", "index"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (4.0, 2), (4.1, 3)])
def test_an_observation_is_counted_in_the_first_bucket_that_holds_it(value, index):
    """A bound belongs to its bucket."""
    histogram = Histogram((1.0, 2.0, 4.0))
    histogram.observe(value)
    assert histogram.counts.index(1) == index


def test_buckets_are_rendered_cumulatively_with_count_and_sum(metrics):
    """As Prometheus reads them."""
    for followers in (0, 1, 3, 5_000):
        metrics.coalesce_followers.observe(followers)
    lines = lines_of(metrics)
    bounds = ["1.0", "2.0", "4.0", "1024.0", "+Inf"]
    found = [f'sameflight_coalesce_followers_bucket{{le="{bound}"}} ' for bound in bounds]
    values = [float(next(line for line in lines if line.startswith(start)).split()[-1]) for start in found]
    assert values == [2, 2, 3, 3, 4]
    assert "sameflight_coalesce_followers_count 4.0" in lines
    assert "sameflight_coalesce_followers_sum 5004.0" in lines


def test_values_of_other_rooms_are_read_when_scraped(metrics):
    """Nobody has to tell when they change."""
    owned = [5]
    metrics.gauge_from("retained_bytes", lambda: owned[0])
    metrics.counter_from("flights_total", lambda: owned[0] + 1, "ok")
    owned[0] = 7
    assert samples_of(metrics, "retained_bytes") == ["sameflight_retained_bytes 7"]
    assert samples_of(metrics, "flights_total") == ['sameflight_flights_total{ending="ok"} 8']


def test_a_table_of_another_room_is_read_as_a_whole(metrics):
    """Several tables of one series are added up, with what was counted here."""
    metrics.table_from("upstream_connections", lambda: {("https://a", "idle"): 1, ("https://b", "idle"): 2})
    metrics.table_from("upstream_connections", lambda: {("https://a", "idle"): 3})
    metrics.upstream_connections.at("https://b", "idle").value += 5
    assert samples_of(metrics, "upstream_connections") == [
        'sameflight_upstream_connections{origin="https://a",state="idle"} 4',
        'sameflight_upstream_connections{origin="https://b",state="idle"} 7',
    ]


def test_a_table_without_end_is_cut(metrics, monkeypatch):
    """Beyond the limit rows are added up under one name."""
    monkeypatch.setattr(module, "MAX_TABLE_ROWS", 2)
    metrics.table_from("joins_total", lambda: {(f"s{number}",): 1 for number in range(5)})
    assert samples_of(metrics, "joins_total") == [
        'sameflight_joins_total{state="s0"} 1',
        'sameflight_joins_total{state="s1"} 1',
        'sameflight_joins_total{state="other"} 3',
    ]


@pytest.mark.parametrize(
    ("name", "labels", "kind"),
    [
        ("nonsense", (), "gauge_from"),
        ("collapse_saved_total", (), "gauge_from"),
        ("retained_bytes", (), "counter_from"),
        ("overhead_seconds", ("models",), "gauge_from"),
        ("cache_bytes", (), "gauge_from"),
    ],
)
def test_a_reader_for_a_series_that_is_not_so_is_refused_at_start(metrics, name, labels, kind):
    """A misspelt name would be missing from every dashboard."""
    with pytest.raises(ValueError, match=name):
        getattr(metrics, kind)(name, lambda: 0, *labels)


def test_labels_of_the_wrong_number_are_refused(metrics):
    """They would be rendered under the wrong names."""
    with pytest.raises(TypeError, match="has the labels"):
        metrics.requests_total.at("openai")


def test_label_values_cannot_break_the_exposition(metrics):
    """Quotes, backslashes, line breaks, surrogates and length are taken out."""
    for value in ('a"b', "a\\b", "a\nb", "a\ud800b", "aéb"):
        metrics.rejections_total.at(value).value += 1
    metrics.rejections_total.at("x" * 1_000).value += 1
    assert samples_of(metrics, "rejections_total") == [
        'sameflight_rejections_total{reason="a_b"} 5',
        f'sameflight_rejections_total{{reason="{"x" * 120}"}} 1',
    ]


def test_too_many_label_values_end_in_one_series_and_are_counted(monkeypatch):
    """Memory and scrapes stay bounded, and nothing that was known before is lost."""
    monkeypatch.setattr(module, "MAX_SERIES", 3)
    metrics = Metrics()
    for number in range(10):
        metrics.rejections_total.at(f"r{number}").value += 1
    metrics.rejections_total.at("r0").value += 1
    assert samples_of(metrics, "rejections_total") == [
        'sameflight_rejections_total{reason="r0"} 2',
        'sameflight_rejections_total{reason="r1"} 1',
        'sameflight_rejections_total{reason="r2"} 1',
        'sameflight_rejections_total{reason="other"} 7',
    ]
    assert samples_of(metrics, "metric_series_refused_total") == ["sameflight_metric_series_refused_total 7"]


def test_odd_spellings_of_one_value_take_room_each():
    """Otherwise the dictionary that finds them could grow without end."""
    room = Room(4)
    row = Series("x", "counter", ("a",), "X.")
    family = Family(row, module.Count, room)
    for number in range(100):
        family.at(chr(0x400 + number)).value += 1
    assert len(family._children) <= 5
    assert sum(value for _, value in family.rows()) == 100


def test_a_histogram_takes_room_for_all_its_lines():
    """Buckets are lines of the exposition as well."""
    room = Room(10)
    family = Family(Series("x", "histogram", ("a",), "X.", (1.0, 2.0)), lambda: Histogram((1.0, 2.0)), room)
    family.at("one")
    assert room.left == 5


def test_a_model_has_a_series_when_an_upstream_answered_for_it(metrics):
    """Names that callers make up are counted together."""
    assert metrics.model_label("made-up", answered=False) == "other"
    assert metrics.model_label("real", answered=True) == "real"
    assert metrics.model_label("real", answered=False) == "real"
    assert metrics.model_label("", answered=True) == "other"
    assert Metrics(["known"]).model_label("known", answered=False) == "known"


def test_models_without_end_are_cut(metrics, monkeypatch):
    """Even an upstream may answer for every name."""
    monkeypatch.setattr(module, "MAX_MODELS", 2)
    assert [metrics.model_label(f"m{number}", True) for number in range(3)] == ["m0", "m1", "other"]


def test_a_bug_is_counted_and_remembered(metrics):
    """It must be zero in every test, so it must be seen."""
    metrics.bug("production", ValueError("x"))
    assert samples_of(metrics, "bugs_total") == ['sameflight_bugs_total{where="production"} 1']
    assert metrics.last_bug == "production: ValueError('x')"


def test_every_line_is_valid_exposition(metrics):
    """With a child in every family."""
    for row in SERIES:
        family = metrics._families[row.name]
        child = family.at(*("some value" for _ in row.labels))
        if isinstance(child, Histogram):
            child.observe(0.3)
    lines = lines_of(metrics)
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or _LINE.fullmatch(line.replace("+Inf", "1")), line
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_the_process_tells_what_it_is(metrics):
    """Version and interpreter."""
    expected = f'sameflight_build_info{{python="{platform.python_version()}",version="{__version__}"}} 1'
    assert expected in lines_of(metrics)


def test_the_kernel_is_asked_about_the_process(metrics):
    """CPU time, memory, descriptors and start, under their usual names."""
    values = {line.split()[0]: float(line.split()[1]) for line in lines_of(metrics) if line.startswith("process_")}
    assert values["process_cpu_seconds_total"] > 0
    assert 1 << 20 < values["process_resident_memory_bytes"] < 1 << 34
    assert 0 < values["process_open_fds"] <= values["process_max_fds"]
    assert 1.5e9 < values["process_start_time_seconds"] < 1e10


def test_every_attribute_for_writers_is_a_series():
    """Nobody counts what is never shown; series that are only read need no attribute."""
    assert set(Metrics.__annotations__) <= {row.short for row in SERIES if row.name.startswith(PREFIX)}


def test_every_series_is_named_and_described_as_is_customary():
    """Counters end in _total, nothing has more than 16 buckets, every help is one sentence."""
    names = [row.name for row in SERIES]
    assert len(names) == len(set(names))
    for row in SERIES:
        assert (row.type == "counter") == row.name.endswith("_total"), row.name
        assert (row.type == "histogram") == bool(row.buckets), row.name
        assert list(row.buckets) == sorted(set(row.buckets)), row.name
        assert len(row.buckets) < 16, row.name
        assert row.help.endswith("."), row.name
        assert f"| `{row.name}` | {row.type} |" in describe_series()
