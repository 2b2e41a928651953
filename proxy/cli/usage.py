"""``sameflight usage``: what was asked for, what it cost, and what sharing, caching and policies saved.

Days are UTC. Exit codes: 0 done, 1 the database cannot be read, 2 wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from proxy.cli.usage_report import DAY_S, Asked, Line, Report, change, figures, make_report, period_of, share, usd
from proxy.clock import Clock
from proxy.config.flags import add_setting_flags
from proxy.config.keyform import FormError, parse_age_s
from proxy.config.settings import Settings, SettingsError, load_settings
from proxy.errors import StoreError
from proxy.store.base import Store
from proxy.store.open import open_store

BY: Final = ("day", "key", "team", "tenant", "model", "provider", "route", "class", "tier", "role")
_SETTINGS: Final = ("state_dir",)
_FILTERS: Final = ("key", "tenant", "team", "model")
_DEFAULT_LAST: Final = "7d"


class _Column(NamedTuple):
    title: str
    text: Any
    """(row) → what the table shows."""
    counts: str = ""
    """The figure without which there is no such column."""


_COLUMNS: Final = (
    _Column("requests", lambda row: f"{row['requests']:,}"),
    _Column("calls saved", lambda row: _percent(share(row["saved_calls"], row["saved_calls"] + row["calls"]))),
    _Column("tokens in", lambda row: f"{row['input_tokens']:,}"),
    _Column("tokens out", lambda row: f"{row['output_tokens']:,}"),
    _Column("cost", lambda row: _dollars(row["cost_picodollars"])),
    _Column("cost saved", lambda row: _dollars(row["saved_picodollars"])),
    _Column("policies saved", lambda row: _dollars(row["policy_saved_picodollars"]), "policy_saved_picodollars"),
    _Column("shadow saved", lambda row: _dollars(row["shadow_saved_picodollars"]), "shadow_saved_picodollars"),
    _Column("patterns", lambda row: _percent(share(row["patterns"], row["requests"])), "patterns"),
    _Column("hits", lambda row: _percent(share(row["hits"], row["requests"])), "hits"),
    _Column("pruned", lambda row: f"{row['pruned_tokens']:,}", "pruned_tokens"),
    _Column("errors", lambda row: _percent(share(row["errors"], row["requests"]))),
    _Column("p50", lambda row: _milliseconds(row["p50_ms"])),
    _Column("p95", lambda row: _milliseconds(row["p95_ms"])),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``usage`` to ``subparsers``."""
    parser = subparsers.add_parser(
        "usage",
        help="report requests, tokens, cost and savings",
        description="Reports usage from the database that the settings name. Each line is compared with what it was "
        "a day and a week before: cost, in percent. Days are UTC.",
    )
    parser.add_argument("--by", choices=BY, default="day", help="what each line is about; default: day")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--last", metavar="AGE", help=f"how far back, such as 24h, 7d or 4w; default: {_DEFAULT_LAST}")
    when.add_argument("--since", metavar="WHEN", help="from then on: 2026-11-01, 2026-11-01T12:00Z, or an age")
    parser.add_argument("--until", metavar="WHEN", help="up to then; default: now")
    parser.add_argument("--key", metavar="ID_OR_NAME", help="only this key")
    parser.add_argument("--tenant", help="only this tenant")
    parser.add_argument("--team", help="only this team")
    parser.add_argument("--model", help="only this model")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="lines at most; default: 100")
    shapes = ("table", "json", "csv")
    parser.add_argument("--format", choices=shapes, default="table", help="json and csv are for programs")
    add_setting_flags(parser, only=_SETTINGS)
    parser.set_defaults(run=run)


def run(  # noqa: PLR0917 - the commands' common shape
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
    store: Store | None = None,
    clock: Clock | None = None,
) -> int:
    """Report; ``store`` stands in for the one of the settings and stays open."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        settings = load_settings(env, {name: getattr(args, name) for name in _SETTINGS}).settings
        asked = _asked(args, (clock or Clock()).wall())
    except SettingsError as error:
        print(f"sameflight usage: {error}", file=err)
        return 1
    except FormError as error:
        print(f"sameflight usage: {error}", file=err)
        return 2
    try:
        report, names = asyncio.run(_fetch(settings, store, asked))
    except StoreError as error:
        print(f"sameflight usage: {error}", file=err)
        return 1
    _PRINTERS[args.format](report, names, out)
    return 0


# -- what is asked for -----------------------------------------------------------------------------------------


def _asked(args: argparse.Namespace, now: float) -> Asked:
    if args.limit < 1:
        raise FormError("--limit: expected 1 or more")
    until = now if args.until is None else _moment("--until", args.until, now)
    since = _moment("--since", args.since, now) if args.since else until - _age("--last", args.last or _DEFAULT_LAST)
    if args.by == "day" and not args.since:
        since = since - since % DAY_S + (DAY_S if since % DAY_S else 0.0)  # "7d" is today and the six days before
    if since >= until:
        raise FormError("the period ends before it begins")
    filters = {"key_id" if name == "key" else name: getattr(args, name) or "" for name in _FILTERS}
    return Asked(args.by, since, until, filters, args.limit)


def _age(flag: str, text: str) -> float:
    try:
        return parse_age_s(text)
    except FormError as error:
        raise FormError(f"{flag}: expected {error}") from None


def _moment(flag: str, text: str, now: float) -> float:
    """A date, a time (UTC unless it says otherwise) or an age."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return now - _age(flag, text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def _fetch(settings: Settings, given: Store | None, asked: Asked) -> tuple[Report, dict[str, str]]:
    """The report, and the names of the keys in it."""
    store = given or open_store(settings.database_url, Path(settings.state_dir), migrate=False)
    try:
        if given is None:
            await store.open()
        named = asked.filters["key_id"]
        if named and await store.get_key(named) is None:
            asked = asked._replace(filters={**asked.filters, "key_id": await _find_key(store, named)})
        report = await make_report(store, asked)
        return report, await _names(store, report)
    finally:
        if given is None:
            await store.close()


async def _find_key(store: Store, name: str) -> str:
    """The id of the key of that name; the name itself if there is none: callers with credentials of their own are
    known by a digest."""
    after = ""
    while page := await store.list_keys(revoked=True, after=after):
        for record in page:
            if record.name == name:
                return record.id
        after = page[-1].id
    return name


async def _names(store: Store, report: Report) -> dict[str, str]:
    if report.asked.by != "key":
        return {}
    records = [await store.get_key(line.label) for line in report.lines if line.label.startswith("key_")]
    return {record.id: record.name for record in records if record is not None}


# -- what is printed -------------------------------------------------------------------------------------------


def _print_table(report: Report, names: Mapping[str, str], out: TextIO) -> None:
    since, until = period_of(report.asked)
    if not report.lines:
        print(f"no requests from {since} to {until}", file=out)
        return
    columns = [each for each in _COLUMNS if not each.counts or any(line.row[each.counts] for line in report.lines)]
    titles = [report.asked.by, *(column.title for column in columns), "day before", "week before"]
    rows = [_cells(line, names, columns) for line in report.lines]
    if len(rows) > 1:
        rows.append(_cells(report.total._replace(label="total"), {}, columns))
    widths = [max(len(row[index]) for row in (titles, *rows)) for index in range(len(titles))]
    for row in (titles, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join((row[0].ljust(widths[0]), *cells)).rstrip(), file=out)
    print(f"\nfrom {since} to {until}", file=out)


def _cells(line: Line, names: Mapping[str, str], columns: Sequence[_Column]) -> list[str]:
    label = f"{names[line.label]} ({line.label})" if line.label in names else line.label or "-"
    changes = [_change(line, name) for name in ("day_before", "week_before")]
    return [label, *(column.text(line.row) for column in columns), *changes]


def _change(line: Line, name: str) -> str:
    row = line.before.get(name)
    more = change(line.row["cost_picodollars"], row["cost_picodollars"]) if row is not None else None
    return "-" if more is None else f"{more * 100:+.0f}%"


def _print_json(report: Report, names: Mapping[str, str], out: TextIO) -> None:
    since, until = period_of(report.asked)
    lines = [figures(line) for line in report.lines]
    for line in lines:
        if line["label"] in names:
            line["name"] = names[line["label"]]
    whole = {"by": report.asked.by, "since": since, "until": until, "lines": lines, "total": figures(report.total)}
    print(json.dumps(whole, indent=2), file=out)


def _print_csv(report: Report, names: Mapping[str, str], out: TextIO) -> None:
    """One line each, without a total: whoever reads it can add up. Nested figures get flat names."""
    flat = [{"name": names.get(line.label, ""), **_flatten(figures(line))} for line in report.lines]
    titles = list(dict.fromkeys(title for row in flat for title in row)) or ["name", "label"]
    writer = csv.DictWriter(out, titles, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({title: _harmless(value) for title, value in row.items()} for row in flat)


def _flatten(found: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{inner}": each for inner, each in value.items()}
        elif value is not None:
            flat[name] = value
    return flat


def _harmless(value: Any) -> Any:
    """Callers choose names of models: none may be a formula in somebody's spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


_PRINTERS: Final = {"table": _print_table, "json": _print_json, "csv": _print_csv}


def _percent(part: float) -> str:
    return f"{part * 100:.1f}%"


def _dollars(picodollars: int) -> str:
    amount = usd(picodollars)
    if amount < 0:
        return "-" + _dollars(-picodollars)
    return f"${amount:,.2f}" if amount >= 0.01 or not picodollars else f"${amount:.6f}"


def _milliseconds(value: float) -> str:
    return f"{value / 1e3:.2f} s" if value >= 1e3 else f"{value:.0f} ms"
