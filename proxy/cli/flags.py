"""``sameflight flags``: what is on for whom, changing it, going back, and who changed what, in the database that the
settings name.

Works whether or not a proxy is running; running ones go by it within a second. Exit codes: 0 done, 1 not done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from proxy.cli.keys import print_table
from proxy.config.catalog import Catalog, CatalogError, default_catalog, load_catalog
from proxy.config.feature_flags import NO_FLAGS, SCOPES, Flags
from proxy.config.flag_changes import FlagChange, FlagEdit
from proxy.config.flag_form import (
    check_name,
    check_words,
    configured_names,
    describe_changes,
    describe_flags,
    doubt_of,
    make_edit,
)
from proxy.config.flags import add_setting_flags
from proxy.config.keyform import FormError
from proxy.config.keys import KeyRecord
from proxy.config.settings import Settings, SettingsError, load_settings
from proxy.errors import StoreError
from proxy.store.base import Store
from proxy.store.open import open_store

_SETTINGS: Final = ("config", "state_dir", "database_migrate")
_PAGE: Final = 1_000
_STORE_WORDS: Final = {
    "unavailable": "the database does not answer",
    "timeout": "the database does not answer in time",
    "read_only": "the database can only be read",
    "full": "the database has no room left",
}


class Tools(NamedTuple):
    """What a command works with."""

    store: Store
    catalog: Catalog | None
    """As the file has it; ``None`` where there is none that can be read."""
    who: str
    out: TextIO
    err: TextIO
    as_json: bool


Command = Callable[[argparse.Namespace, Tools], Awaitable[None]]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``flags`` and its commands to ``subparsers``; each sets ``run`` on the parsed arguments."""
    parser = subparsers.add_parser("flags", help="turn savings and guards on and off, for whom and for how many")
    commands = parser.add_subparsers(dest="flags_command", required=True, metavar="COMMAND")
    listing = _add(commands, "list", _list, "list flags with their rules and where these come from")
    listing.add_argument("flag", nargs="?", metavar="NAME", help="only this one")
    setting = _add(commands, "set", _set, "turn a flag on, off, or on for a part of the users")
    setting.add_argument("flag", metavar="NAME", help="such as pruning, tiers or guard:pii")
    setting.add_argument("value", metavar="VALUE", help="on, off, or a percentage such as 25%%")
    _add_subject(setting)
    _add_why(setting)
    clear = _add(commands, "clear", _clear, "take back what was set; what the catalog file says counts again")
    clear.add_argument("flag", nargs="?", metavar="NAME", help="which; all of its rules without a word about which")
    clear.add_argument("--all", action="store_true", help="all flags")
    clear.add_argument("--global", action="store_true", dest="everybody", help="only the rule for everybody")
    _add_subject(clear)
    _add_why(clear)
    rollback = _add(commands, "rollback", _roll_back, "go back by one change; once more goes back by another")
    rollback.add_argument("--to", type=int, metavar="CHANGE", help="as all was after this change; 0: before any")
    _add_why(rollback)
    audit = _add(commands, "audit", _audit, "who changed what, when and why, the newest first")
    audit.add_argument("flag", nargs="?", metavar="NAME", help="only this one")
    audit.add_argument("--limit", type=int, default=20, metavar="N", help="so many changes (20)")


def _add(commands: Any, name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text.capitalize())
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    add_setting_flags(parser, only=_SETTINGS)
    parser.set_defaults(run=run, flags_run=command)
    return parser


def _add_subject(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--tenant", help="for one tenant only")
    group.add_argument("--route", help="for one route only, such as chat.completions")
    group.add_argument("--key", metavar="ID_OR_NAME", help="for one key only")


def _add_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--why", default="", metavar="TEXT", help="what the audit is to say of it")


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
        # Not `flags_of`: words such as --route are about the flag here, whatever settings may be called.
        settings = load_settings(env, {name: getattr(args, name) for name in _SETTINGS}).settings
    except SettingsError as error:
        print(f"sameflight flags: {error}", file=err)
        return 1
    catalog = _load_catalog(settings, os.environ if env is None else env, err)

    async def carry_out(opened: Store) -> None:
        await args.flags_run(args, Tools(opened, catalog, _who(), out, err, args.json))

    try:
        asyncio.run(_with_store(settings, store, carry_out))
    except FormError as error:
        print(f"sameflight flags: {error}", file=err)
        return 1
    except StoreError as error:
        text = str(error).partition(": ")[2] if error.why in ("unknown_change", "invalid") else str(error)
        print(f"sameflight flags: {_STORE_WORDS.get(error.why, text)}", file=err)
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


def _load_catalog(settings: Settings, env: Mapping[str, str], err: TextIO) -> Catalog | None:
    """What a flag switches. A file that cannot be used here (it may name secrets that only the proxy has) must not
    keep anybody from turning something off."""
    try:
        return load_catalog(Path(settings.config), env, settings) if settings.config else default_catalog(settings)
    except CatalogError as error:
        print(f"sameflight flags: the catalog cannot be read here, so only the database counts: {error}", file=err)
        return None


def _who() -> str:
    """The user of the operating system, whoever the environment says it is."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"cli:{name}@{socket.gethostname()}"[:200]


# -- commands --------------------------------------------------------------------------------------------------


async def _list(args: argparse.Namespace, tools: Tools) -> None:
    if args.flag:
        check_name(args.flag)
    stored = await _read_rules(tools)
    savings, filed = (tools.catalog.savings, tools.catalog.flags) if tools.catalog is not None else (None, NO_FLAGS)
    described = [
        flag for flag in describe_flags(savings, filed, stored) if not args.flag or flag["name"] == args.flag
    ]
    if tools.as_json:
        print(json.dumps({"version": stored.version, "flags": described}, indent=2), file=tools.out)
        return
    rows = []
    for flag in described:
        there = "" if flag["configured"] or tools.catalog is None else "not configured"
        rules = flag["rules"]
        if not any(rule["scope"] == "global" for rule in rules):
            rows.append((flag["name"], "everybody", flag["value"], "default", there))
        for rule in rules:
            whom = f"{rule['scope']} {rule['subject']}" if rule["subject"] else "everybody"
            note = f"the file says {rule['file']}" if rule["file"] else there
            rows.append((flag["name"], whom, rule["value"], rule["origin"], note))
    print_table(("FLAG", "FOR", "VALUE", "FROM", "NOTE"), rows, tools.out)


async def _set(args: argparse.Namespace, tools: Tools) -> None:
    scope, subject = await _subject(args, tools)
    edit = make_edit(args.flag, scope, subject, args.value)
    who, why = check_words(tools.who, args.why)
    _warn_of(args.flag, tools)
    _print_changes(await tools.store.change_flags([edit], who=who, why=why), tools)


async def _clear(args: argparse.Namespace, tools: Tools) -> None:
    who, why = check_words(tools.who, args.why)
    scope, subject = await _subject(args, tools)
    if args.all:
        if args.flag or args.everybody or subject:
            raise FormError("--all stands alone")
        _print_changes(await tools.store.replace_flags((), who=who, why=why), tools)
        return
    if not args.flag:
        raise FormError("name a flag, or say --all")
    if args.everybody and subject:
        raise FormError("--global, or one of --tenant, --route and --key")
    if args.everybody or subject:
        edits = [make_edit(args.flag, scope, subject, None)]
    else:
        check_name(args.flag)
        rules = (await _read_rules(tools)).rules()
        edits = [FlagEdit(rule.name, rule.scope, rule.subject, None) for rule in rules if rule.name == args.flag]
    _print_changes(await tools.store.change_flags(edits, who=who, why=why), tools)


async def _roll_back(args: argparse.Namespace, tools: Tools) -> None:
    if args.to is not None and not 0 <= args.to < 1 << 63:
        raise FormError("--to: the number of a change, or 0 for before any")
    who, why = check_words(tools.who, args.why)
    _print_changes(await tools.store.roll_back_flags(args.to, who=who, why=why), tools)


async def _audit(args: argparse.Namespace, tools: Tools) -> None:
    if args.flag:
        check_name(args.flag)
    if not 1 <= args.limit <= _PAGE:
        raise FormError(f"--limit is from 1 to {_PAGE}")
    changes = describe_changes(await tools.store.list_flag_changes(name=args.flag or "", limit=args.limit))
    if tools.as_json:
        print(json.dumps(changes, indent=2), file=tools.out)
        return
    rows = [
        (str(change["change"]), change["at"], change["who"], text, _reason(change))
        for change in changes
        for text in map(_spell, change["rules"])
    ]
    print_table(("CHANGE", "AT", "WHO", "WHAT", "WHY"), rows, tools.out)


# -- parts -----------------------------------------------------------------------------------------------------


async def _read_rules(tools: Tools) -> Flags:
    stored = await tools.store.read_flags()
    return stored.flags if stored is not None else NO_FLAGS


async def _subject(args: argparse.Namespace, tools: Tools) -> tuple[str, str]:
    if args.key is not None:
        return "key", await _find_key(args.key, tools.store)
    for scope in SCOPES:
        subject = getattr(args, scope, None)
        if isinstance(subject, str):
            return scope, subject
    return "global", ""


async def _find_key(name: str, store: Store) -> str:
    """The id of the key of that id or name."""
    found: list[KeyRecord] = []
    if name.startswith("key_"):
        record = await store.get_key(name)
        found = [record] if record is not None else []
    else:
        after = ""
        while True:
            page = await store.list_keys(after=after, limit=_PAGE)
            found += [key for key in page if key.name == name]
            if len(page) < _PAGE:
                break
            after = page[-1].id
    if not found:
        raise FormError(f"there is no key {name[:100]!r}")
    if len(found) > 1:
        raise FormError(f"several keys have that name: {', '.join(key.id for key in found[:5])}")
    return found[0].id


def _warn_of(name: str, tools: Tools) -> None:
    if tools.catalog is not None:
        doubt = doubt_of(name, configured_names(tools.catalog.savings))
        if doubt:
            print(f"sameflight flags: {doubt}", file=tools.err)


def _print_changes(changes: Sequence[FlagChange], tools: Tools) -> None:
    described = describe_changes(changes)
    if tools.as_json:
        print(json.dumps(described[0] if described else None, indent=2), file=tools.out)
    elif not described:
        print("nothing changed", file=tools.out)
    else:
        print(f"change {described[0]['change']}", file=tools.out)
        for rule in described[0]["rules"]:
            print(f"  {_spell(rule)}", file=tools.out)


def _spell(rule: Mapping[str, Any]) -> str:
    whom = f" {rule['scope']} {rule['subject']}" if rule["subject"] else ""
    return f"{rule['name']}{whom}: {rule['before'] or 'not set'} → {rule['after'] or 'not set'}"


def _reason(change: Mapping[str, Any]) -> str:
    restores = change["restores"]
    back = "" if restores is None else f"(back to {'before any change' if restores == 0 else f'change {restores}'})"
    return " ".join(filter(None, (str(change["why"]).replace("\n", " "), back)))
