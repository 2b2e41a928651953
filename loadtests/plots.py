"""Plain SVG pictures of results: bars, quantile curves, lines over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_WIDTH, _ROW = 640, 26
_COLOURS = ("#2a6fbb", "#c2603c", "#4b8f4b", "#8a5aa8", "#7a7a7a", "#b59b2b")
_TEXT = 'font-family="sans-serif" font-size="12" fill="#333"'


def bars(title: str, values: Mapping[str, tuple[float, float, float]], unit: str) -> str:
    """One bar for each name: median with a whisker from the lowest to the highest round."""
    top = max((high for _, _, high in values.values()), default=1.0) or 1.0
    scale = (_WIDTH - 240) / top
    parts = []
    for place, (name, (middle, low, high)) in enumerate(values.items()):
        y = 34 + place * _ROW
        colour = _COLOURS[0] if name == "sameflight" else "#9a9a9a"
        parts += [
            f'<text x="130" y="{y + 13}" text-anchor="end" {_TEXT}>{_escape(name)}</text>',
            f'<rect x="140" y="{y}" width="{middle * scale:.1f}" height="18" fill="{colour}"/>',
            _line(140 + low * scale, y + 9, 140 + high * scale, y + 9, "#111"),
            f'<text x="{148 + high * scale:.1f}" y="{y + 13}" {_TEXT}>{middle:.4g} {_escape(unit)}</text>',
        ]
    return _picture(title, 44 + len(values) * _ROW, parts)


def quantiles(title: str, histograms: Mapping[str, Sequence[tuple[float, int]]]) -> str:
    """Latency (log scale) by share of requests, out to one in ten thousand."""
    height, left, right = 260, 60, _WIDTH - 120
    longest = max((value for buckets in histograms.values() for value, _ in buckets), default=1.0)
    shortest = max(1.0, min((buckets[0][0] for buckets in histograms.values() if buckets), default=1.0))
    low, high = math.log10(shortest), math.log10(max(longest, shortest * 10))

    def place_x(beyond: float) -> float:
        return left + (right - left) * min(4.0, -math.log10(max(beyond, 1e-4))) / 4

    def place_y(value: float) -> float:
        return height - 30 - (height - 70) * (math.log10(max(value, shortest)) - low) / (high - low)

    parts = [
        f'<text x="{place_x(beyond):.0f}" y="{height - 8}" text-anchor="middle" {_TEXT}>{name}</text>'
        for name, beyond in (("0", 1.0), ("p90", 0.1), ("p99", 0.01), ("p99.9", 0.001), ("p99.99", 0.0001))
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        y = place_y(10**power)
        parts.append(_line(left, y, right, y, "#ddd"))
        parts.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" {_TEXT}>{10**power / 1000:g} ms</text>')
    for number, (name, buckets) in enumerate(histograms.items()):
        total = sum(count for _, count in buckets)
        seen, points = 0, []
        for value, count in buckets:
            points.append((place_x((total - seen) / total), place_y(value)))
            seen += count
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_polyline(points, colour))
        if points:
            parts.append(
                f'<text x="{right + 8}" y="{points[-1][1] + 4:.0f}" font-family="sans-serif" font-size="12" '
                f'fill="{colour}">{_escape(name)}</text>'
            )
    return _picture(title, height, parts)


def over_time(title: str, points: Sequence[tuple[float, float]]) -> str:
    """One line; seconds to the right."""
    height, left, right = 180, 60, _WIDTH - 20
    top = max((y for _, y in points), default=1.0) * 1.1 or 1.0
    last = max((x for x, _ in points), default=1.0) or 1.0
    placed = [(left + (right - left) * x / last, height - 30 - (height - 60) * y / top) for x, y in points]
    parts = [
        _line(left, height - 30, right, height - 30, "#999"),
        f'<text x="{left - 6}" y="44" text-anchor="end" {_TEXT}>{top:.4g}</text>',
        f'<text x="{left - 6}" y="{height - 26}" text-anchor="end" {_TEXT}>0</text>',
        f'<text x="{right}" y="{height - 10}" text-anchor="end" {_TEXT}>{last:.0f} s</text>',
        _polyline(placed, _COLOURS[0]),
    ]
    return _picture(title, height, parts)


def percentages(title: str, curves: Mapping[str, Sequence[tuple[float, float]]], below: str, limit: float) -> str:
    """Percentages over percentages, both from 0 to 100; ``below`` names what is to the right, ``limit`` is a dashed
    line."""
    height, left, right = 280, 60, _WIDTH - 150
    bottom, top = height - 46, 40

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / 100, bottom - (bottom - top) * min(100.0, max(0.0, y)) / 100

    parts = []
    for each in range(0, 101, 20):
        x, y = place(each, each)
        parts += [
            _line(left, y, right, y, "#ddd"),
            f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" {_TEXT}>{each} %</text>',
            f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle" {_TEXT}>{each} %</text>',
        ]
    parts.append(
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 36}" text-anchor="middle" {_TEXT}>{_escape(below)}</text>'
    )
    _, y = place(0, limit)
    parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#c00" stroke-dasharray="5 4"/>')
    for number, (name, points) in enumerate(curves.items()):
        colour, placed = _COLOURS[number % len(_COLOURS)], [place(*point) for point in points]
        parts.append(_polyline(placed, colour))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(
            f'<text x="{right + 8}" y="{placed[-1][1] + 4 - 14 * number:.0f}" font-family="sans-serif" '
            f'font-size="12" fill="{colour}">{_escape(name)}</text>'
        )
    return _picture(title, height, parts)


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}">'
    ground = f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    caption = f'<text x="12" y="20" font-weight="bold" {_TEXT}>{_escape(title)}</text>'
    return "\n".join([head, ground, caption, *parts, "</svg>", ""])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _polyline(points: Sequence[tuple[float, float]], colour: str) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
