"""The findings as lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from proxy.cli.demo.findings import Findings, Row, find_quantile
from proxy.cli.demo.screen import Style
from proxy.config.prices import AS_OF

WIDTH = 78
_MAX_DIFFERENCES = 5


def render(findings: Findings, style: Style) -> Iterator[str]:
    """Everything that is printed after the last step."""
    yield from _render_calls(findings, style)
    yield ""
    yield from _render_savings(findings, style)
    yield ""
    yield from _render_times(findings, style)
    yield ""
    yield from textwrap.wrap(_explain(), WIDTH, initial_indent=" ", subsequent_indent=" ")
    yield ""
    yield from _render_verdict(findings, style)


def _render_calls(findings: Findings, style: Style) -> Iterator[str]:
    yield style.dim(f" {'':<40}{'client':>11}{'upstream':>13}{'calls':>13}")
    yield style.dim(f" {'what the callers did':<40}{'requests':>11}{'calls':>13}{'expected':>13}")
    yield style.dim(" " + style.rule * (WIDTH - 1))
    for row in findings.rows:
        yield _render_row(row, style)
    yield style.dim(" " + style.rule * (WIDTH - 1))
    yield style.bold(_render_row(findings.total, style))


def _render_row(row: Row, style: Style) -> str:
    calls = f"{row.calls:>13,}"
    if row.calls != row.expected:
        calls = style.paint(calls, "31;1")
    return f" {row.name:<40}{row.requests:>11,}{calls}{row.expected:>13,}"


def _render_savings(findings: Findings, style: Style) -> Iterator[str]:
    total, savings = findings.total, findings.savings
    calls_saved = total.requests - total.calls
    tokens = savings.tokens_paid + savings.tokens_saved
    dollars = savings.usd_paid + savings.usd_saved
    yield _render_share("upstream calls saved", calls_saved, total.requests)
    yield _render_share("tokens saved", savings.tokens_saved, tokens)
    yield _render_share("dollars saved", savings.usd_saved, dollars, "${:.4f}")
    size = f"{findings.compared_bytes / 1e6:,.1f} MB"
    yield f"{_render_share('bodies equal to a direct call', findings.equal, findings.compared)}  {style.dim(size)}"


def _render_share(name: str, part: float, whole: float, form: str = "{:,}") -> str:
    share = f"{100 * part / whole:.1f} %" if whole else ""
    return f" {name:<31}{form.format(part):>9} of {form.format(whole):<9}{share:>9}"


def _render_times(findings: Findings, style: Style) -> Iterator[str]:
    times = findings.times
    yield style.dim(f" {'time to first byte':<46}{'callers':>9}{'p50':>11}{'p99':>11}")
    yield style.dim(" " + style.rule * (WIDTH - 1))
    yield _render_time("direct, without the proxy", times.direct)
    yield _render_time("through the proxy, with a call of their own", times.led)
    yield style.bold(_render_time("  added by the proxy", times.added, signed=True))
    yield style.bold(_render_time("  added where callers came one by one", times.added_calmly, signed=True))
    yield _render_time("through the proxy, joined another's call", times.joined)


def _render_time(name: str, values_s: Sequence[float], *, signed: bool = False) -> str:
    if not values_s:
        return f" {name:<46}{0:>9}"
    shown = [f"{find_quantile(values_s, share) * 1e3:{'+' if signed else ''}.1f} ms" for share in (0.5, 0.99)]
    return f" {name:<46}{len(values_s):>9,}{shown[0]:>11}{shown[1]:>11}"


def _explain() -> str:
    return (
        "Callers, proxy and mock upstream share one process here, so times include all three; p99 is that of a crowd "
        f"which asks within a millisecond. Dollars are tokens at Sameflight's built-in list prices of {AS_OF}; the "
        "mock counts four characters of a prompt as a token. Requests that were hung up count as requests, not as "
        "tokens."
    )


def _render_verdict(findings: Findings, style: Style) -> Iterator[str]:
    total = findings.total
    sentence = (
        f"{total.requests:,} requests cost {total.calls:,} upstream calls; "
        f"without Sameflight they would cost {total.requests:,}."
    )
    for line in textwrap.wrap(sentence, WIDTH + 1, initial_indent=" ", subsequent_indent=" "):
        yield style.bold(line)
    counted = f"{total.expected:,} upstream calls expected, {total.calls:,} counted by the mock"
    yield f" {style.mark(findings.calls_passed)} {counted}"
    yield f" {style.mark(findings.bodies_passed)} {findings.equal:,} of {findings.compared:,} bodies equal"
    different = len(findings.differences)
    for difference in findings.differences[:_MAX_DIFFERENCES]:
        yield from textwrap.wrap(difference, WIDTH, initial_indent="   ", subsequent_indent="     ")
    if different > _MAX_DIFFERENCES:
        yield f"   and {different - _MAX_DIFFERENCES:,} more"
