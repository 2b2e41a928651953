"""``sameflight keys``: make, list, change and end virtual keys, in the database that the settings name.

Works whether or not a proxy is running; running ones hear of it from the database. Exit codes: 0 done, 1 not done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from proxy.access.issuing import PAGE, Issued, Issuer, NoSuchKeyError
from proxy.access.pepper import PepperError, load_pepper
from proxy.access.token import Digester
from proxy.clock import Clock
from proxy.config.flags import add_setting_flags
from proxy.config.keyform import FormError, describe_allowance, describe_key, parse_age_s
from proxy.config.settings import Settings, SettingsError, load_settings
from proxy.errors import StoreError
from proxy.store.base import Store
from proxy.store.open import open_store

_SETTINGS: Final = ("state_dir", "database_migrate")
_LISTS: Final = {"models": "model", "routes": "route", "tags": "tag"}
_LIMITS: Final = ("requests_per_minute", "tokens_per_minute", "concurrent")
_STORE_WORDS: Final = {
    "conflict": "a valid key of that name exists in this tenant already",
    "unavailable": "the database does not answer",
    "timeout": "the database does not answer in time",
    "read_only": "the database can only be read",
    "full": "the database has no room left",
}


class Tools(NamedTuple):
    """What a command works with."""

    issuer: Issuer
    clock: Clock
    out: TextIO
    err: TextIO
    as_json: bool
    warning: str
    """For whoever makes keys on this machine; empty for none."""


Command = Callable[[argparse.Namespace, Tools], Awaitable[None]]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``keys`` and its commands to ``subparsers``; each sets ``run`` on the parsed arguments."""
    parser = subparsers.add_parser("keys", help="make, list, change and end virtual keys")
    commands = parser.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    create = _add(commands, "create", _create, "make a key; it is shown once")
    create.add_argument("name", help="what it is for; unique among the valid keys of a tenant")
    _add_fields(create)
    listing = _add(commands, "list", _list, "list keys")
    listing.add_argument("--tenant", help="only this tenant's")
    listing.add_argument("--team", help="only this team's")
    listing.add_argument("--revoked", action="store_true", help="revoked ones as well")
    show = _add(commands, "show", _show, "show all that is known of a key")
    revoke = _add(commands, "revoke", _revoke, "end a key for good")
    rotate = _add(commands, "rotate", _rotate, "make a new key in place of an old one; it is shown once")
    rotate.add_argument("--grace", default="0", metavar="AGE", help="how long the old one still works, such as 24h")
    change = _add(commands, "set", _set, "change what is said about a key")
    for each in (show, revoke, rotate, change):
        each.add_argument("key", metavar="ID_OR_NAME", help="its id (key_…) or its name")
    for each in (show, revoke, rotate):
        each.add_argument("--tenant", help="whose, where a name is not unique")
    change.add_argument("--name", help="a new name")
    _add_fields(change)
    allowance = commands.add_parser("allowance", help="limits and budgets that all keys of a team or tenant share")
    kinds = allowance.add_subparsers(dest="allowance_command", required=True, metavar="COMMAND")
    _add(kinds, "list", _list_allowances, "list them")
    setting = _add(kinds, "set", _set_allowance, "set what is given, leave the rest")
    setting.add_argument("kind", choices=("team", "tenant"))
    setting.add_argument("name", help="the tenant's name, or TENANT/TEAM for a team")
    _add_money(setting)


def _add(commands: Any, name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text.capitalize())
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    add_setting_flags(parser, only=_SETTINGS)
    parser.set_defaults(run=run, keys_run=command)
    return parser


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant", help="whom it belongs to; tenants never share anything")
    parser.add_argument("--team", help="the team within the tenant")
    many = {"action": "append", "metavar": "NAME"}
    parser.add_argument("--model", **many, help="a model it may use, NAME* for a prefix; repeat; 'any' for all")  # type: ignore[arg-type]
    parser.add_argument("--route", **many, help="a route it may use, such as chat.completions; repeat; 'any' for all")  # type: ignore[arg-type]
    parser.add_argument("--tag", **many, help="a word for reports; repeat")  # type: ignore[arg-type]
    _add_money(parser)
    parser.add_argument("--scope", choices=("key", "team", "tenant"), help="who may share calls and answers with it")
    parser.add_argument("--cache", choices=("default", "off"), help="off: no response cache for it")
    parser.add_argument("--charge", choices=("first", "split", "each"), help="who pays for a shared call")
    parser.add_argument("--expires", metavar="WHEN", help="30d, 12h, 2027-01-31, or never")


def _add_money(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="0: no limit")
    parser.add_argument("--tokens-per-minute", type=int, metavar="N", help="0: no limit")
    parser.add_argument("--concurrent", type=int, metavar="N", help="requests at the same time; 0: no limit")
    parser.add_argument("--budget", metavar="USD/PERIOD", help="25/month, 5/day, 100/total, or none")


# -- running ---------------------------------------------------------------------------------------------------


def run(
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
    store: Store | None = None,
) -> int:
    """Run one of the commands; ``store`` stands in for the one of the settings and stays open."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        # Not `flags_of`: words such as --charge are about the key here, whatever settings may be called.
        settings = load_settings(env, {name: getattr(args, name) for name in _SETTINGS}).settings
        pepper = load_pepper(settings.key_pepper, settings.state_dir)
    except (SettingsError, PepperError) as error:
        print(f"sameflight keys: {error}", file=err)
        return 1
    warning = _warning(settings, pepper.path)

    async def carry_out(opened: Store) -> None:
        issuer = Issuer(opened, Digester(pepper.secret), Clock())
        await args.keys_run(args, Tools(issuer, Clock(), out, err, args.json, warning))

    try:
        asyncio.run(_with_store(settings, store, carry_out))
    except (FormError, NoSuchKeyError) as error:
        print(f"sameflight keys: {error}", file=err)
        return 1
    except StoreError as error:
        print(f"sameflight keys: {_STORE_WORDS.get(error.why, error)}", file=err)
        return 1
    return 0


async def _with_store(settings: Settings, given: Store | None, work: Callable[[Store], Awaitable[None]]) -> None:
    if given is not None:
        await work(given)
        return
    store = open_store(settings.database_url, Path(settings.state_dir), migrate=settings.database_migrate)
    try:
        await store.open()
        await work(store)
    finally:
        await store.close()


def _warning(settings: Settings, pepper_path: str) -> str:
    if not settings.database_url or not pepper_path:
        return ""
    return (
        f"the pepper is that of {pepper_path}: proxies on other machines know this key only if "
        "SAMEFLIGHT_KEY_PEPPER is the same for all of them"
    )


def _form(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What the flags say, in the words of a form; what was not given is left out."""
    form = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    for name, flag in _LISTS.items():
        given = getattr(args, flag, None)
        if given is not None:
            form[name] = [] if given == ["any"] else given
    limits = {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}
    return {**form, "limits": limits} if limits else form


_FIELDS: Final = ("name", "tenant", "team", "budget", "scope", "cache", "charge", "expires")


async def _create(args: argparse.Namespace, tools: Tools) -> None:
    issued = await tools.issuer.create(_form(args, *_FIELDS))
    _print_issued(issued, tools)


async def _rotate(args: argparse.Namespace, tools: Tools) -> None:
    issued = await tools.issuer.rotate(args.key, parse_age_s(args.grace), args.tenant)
    _print_issued(issued, tools)


async def _show(args: argparse.Namespace, tools: Tools) -> None:
    _print_key(describe_key(await tools.issuer.find(args.key, args.tenant), tools.clock.wall()), tools)


async def _set(args: argparse.Namespace, tools: Tools) -> None:
    record = await tools.issuer.change(args.key, _form(args, *_FIELDS))
    _print_key(describe_key(record, tools.clock.wall()), tools)


async def _revoke(args: argparse.Namespace, tools: Tools) -> None:
    record = await tools.issuer.revoke(args.key, args.tenant)
    if tools.as_json:
        _print_key(describe_key(record, tools.clock.wall()), tools)
    else:
        print(f"revoked {record.id} ({record.name})", file=tools.out)


async def _list(args: argparse.Namespace, tools: Tools) -> None:
    now, after = tools.clock.wall(), ""
    keys: list[dict[str, Any]] = []
    while True:
        page = await tools.issuer.keys(
            tenant=args.tenant, team=args.team, revoked=args.revoked, after=after, limit=PAGE
        )
        keys += [describe_key(record, now) for record in page]
        if len(page) < PAGE:
            break
        after = page[-1].id
    if tools.as_json:
        print(json.dumps(keys, indent=2), file=tools.out)
        return
    rows = [
        (key["id"], key["name"], key["state"], key["tenant"], key["team"], _budget(key), key["expires"] or "never")
        for key in keys
    ]
    print_table(("ID", "NAME", "STATE", "TENANT", "TEAM", "BUDGET", "EXPIRES"), rows, tools.out)


async def _set_allowance(args: argparse.Namespace, tools: Tools) -> None:
    allowance = await tools.issuer.set_allowance(_form(args, "kind", "name", "budget"))
    _print_key(describe_allowance(allowance), tools)


async def _list_allowances(_args: argparse.Namespace, tools: Tools) -> None:
    known = [describe_allowance(each) for each in await tools.issuer.allowances()]
    if tools.as_json:
        print(json.dumps(known, indent=2), file=tools.out)
        return
    rows = [
        (each["kind"], each["name"], *(str(each["limits"][name] or "-") for name in _LIMITS), _budget(each))
        for each in known
    ]
    print_table(("KIND", "NAME", "REQUESTS/MIN", "TOKENS/MIN", "CONCURRENT", "BUDGET"), rows, tools.out)


# -- printing --------------------------------------------------------------------------------------------------


def _print_issued(issued: Issued, tools: Tools) -> None:
    if tools.warning:
        print(f"sameflight keys: {tools.warning}", file=tools.err)
    described = describe_key(issued.record, tools.clock.wall())
    if tools.as_json:
        print(json.dumps({**described, "key": issued.token}, indent=2), file=tools.out)
        return
    print(issued.token, file=tools.out)
    if tools.out.isatty():
        text = f"{issued.record.id} ({issued.record.name}). The key is shown only now: it is stored nowhere."
        print(text, file=tools.err)


def _print_key(described: dict[str, Any], tools: Tools) -> None:
    if tools.as_json:
        print(json.dumps(described, indent=2), file=tools.out)
        return
    for name, value in described.items():
        print(f"{name:<9} {_as_text(name, value)}".rstrip(), file=tools.out)


def _as_text(name: str, value: Any) -> str:
    if name == "budget":
        return _budget({"budget": value})
    if name == "limits":
        return ", ".join(f"{limit} {number}" for limit, number in value.items() if number) or "none"
    if isinstance(value, list):
        return ", ".join(value) or ("any" if name in ("models", "routes") else "-")
    return "never" if value is None else str(value) or "-"


def _budget(described: Mapping[str, Any]) -> str:
    budget = described["budget"]
    return f"{budget['usd']}/{budget['period']}" if budget else "-"


def print_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], out: TextIO) -> None:
    """Columns as wide as their longest cell."""
    lines = [titles, *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=out)
