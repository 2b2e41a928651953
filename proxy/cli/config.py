"""``config check``, ``config show`` and ``config schema``: what the process would run with, before it does.

Exit codes: 0 when all is well, 1 when a setting or the catalog file is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from proxy.config.catalog import PROVIDERS, Catalog, CatalogError, RouteRules, make_catalog, read_catalog_file
from proxy.config.flags import add_setting_flags, flags_of
from proxy.config.prices import AS_OF, BUILT_IN
from proxy.config.schema import CatalogFile, json_schema
from proxy.config.settings import SETTINGS, Loaded, SettingsError, as_text, load_settings, shown

# Where a rule comes from that the file does not state; what is not here is a constant.
_SETTING_OF_RULE: Final = {
    "share": "share",
    "linger_s": "linger_s",
    "first_byte_s": "first_byte_timeout_s",
    "idle_s": "idle_timeout_s",
    "total_s": "total_timeout_s",
}
_SETTING_OF_MODELS_RULE: Final = {
    **_SETTING_OF_RULE,
    "ttl_s": "models_fresh_s",
    "stale_while_revalidate_s": "models_stale_s",
    "stale_if_error_s": "models_stale_if_error_s",
}


class _Line(NamedTuple):
    """One line of ``config show``."""

    name: str
    value: str
    source: str


class _Loaded(NamedTuple):
    """All that the commands work on."""

    settings: Loaded
    file: CatalogFile
    catalog: Catalog


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config`` and its commands to ``subparsers``; each sets ``run`` on the parsed arguments."""
    parser = subparsers.add_parser("config", help="check or show the configuration")
    commands = parser.add_subparsers(dest="config_command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check settings and catalog file; every error is listed")
    check.add_argument("file", nargs="?", help="catalog file; default: the one of the settings")
    check.set_defaults(run=check_config)
    show = commands.add_parser("show", help="show effective settings and catalog, and where each value comes from")
    show.add_argument("--json", action="store_true", help="as one JSON object")
    show.set_defaults(run=show_config)
    for command in (check, show):
        add_setting_flags(command)
    schema = commands.add_parser("schema", help="print the JSON Schema of the catalog file")
    schema.set_defaults(run=show_schema)


def check_config(
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run ``config check``."""
    loaded = _load(args, err or sys.stderr, os.environ if env is None else env)
    if loaded is None:
        return 1
    where = loaded.settings.settings.config or "no catalog file"
    print(f"ok: {len(SETTINGS)} settings, {where}", file=out or sys.stdout)
    return 0


def show_config(
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run ``config show``."""
    loaded = _load(args, err or sys.stderr, os.environ if env is None else env)
    if loaded is None:
        return 1
    out = out or sys.stdout
    settings, catalog = list(_setting_lines(loaded.settings)), list(_catalog_lines(loaded))
    if args.json:
        sections = {"settings": settings, "catalog": catalog}
        text = {
            title: {line.name: {"value": line.value, "source": line.source} for line in lines}
            for title, lines in sections.items()
        }
        print(json.dumps(text, indent=2), file=out)
        return 0
    for lines in (settings, catalog):
        _print_table(lines, out)
    return 0


def show_schema(_args: argparse.Namespace, out: TextIO | None = None) -> int:
    """Run ``config schema``."""
    print(json.dumps(json_schema(), indent=2), file=out or sys.stdout)
    return 0


def _load(args: argparse.Namespace, err: TextIO, env: Mapping[str, str]) -> _Loaded | None:
    """Settings and catalog, or ``None`` after every problem was written to ``err``."""
    flags = flags_of(args)
    if getattr(args, "file", None):
        flags["config"] = args.file
    try:
        settings = load_settings(env, flags)
    except SettingsError as error:
        print(error, file=err)
        return None
    for warning in settings.warnings:
        print(f"warning: {warning}", file=err)
    path = settings.settings.config
    try:
        file = read_catalog_file(Path(path), env) if path else CatalogFile()
        catalog = make_catalog(file, settings.settings)
    except CatalogError as error:
        print(error, file=err)
        return None
    return _Loaded(settings, file, catalog)


def _setting_lines(loaded: Loaded) -> Iterator[_Line]:
    for row in SETTINGS:
        value = getattr(loaded.settings, row.name)
        yield _Line(row.env, shown(row, value), loaded.sources[row.name])


def _catalog_lines(loaded: _Loaded) -> Iterator[_Line]:
    sources, file, catalog = loaded.settings.sources, loaded.file, loaded.catalog
    for name in PROVIDERS:
        provider, said = catalog.providers[name], getattr(file.providers, name)
        port = "" if provider.port == (443 if provider.scheme == "https" else 80) else f":{provider.port}"
        host = f"[{provider.host}]" if ":" in provider.host else provider.host
        url_source = "file" if said.base_url else sources[f"{name}_upstream"]
        yield _Line(
            f"providers.{name}.base_url", f"{provider.scheme}://{host}{port}{provider.base_path}", url_source
        )
        key_source = "file" if said.api_key is not None else sources[f"{name}_api_key"]
        yield _Line(f"providers.{name}.api_key", "set" if provider.api_key else "unset", key_source)
    for name in sorted({"models", "model", *file.routes}):
        yield from _route_lines(name, catalog.rules(name), file, sources)
    for name in sorted(file.prices):
        price = catalog.prices.by_name[name]
        cached = "" if price.cached_input is None else f", cached input {as_text(price.cached_input)}"
        text = f"input {as_text(price.input)}{cached}, output {as_text(price.output)}"
        yield _Line(f"prices.{name}", text, "file")
    own = [name for name, price in catalog.prices.by_name.items() if price is not BUILT_IN.get(name)]
    listed = len(set(own) - file.prices.keys())
    if listed:
        yield _Line("prices", f"{listed} in {loaded.settings.settings.prices_file}", sources["prices_file"])
    yield _Line("prices.built_in", f"{len(BUILT_IN.keys() - set(own))} as of {AS_OF}", "default")
    placeholder_source = "file" if file.placeholder_keys is not None else sources["placeholder_keys"]
    placeholders = ",".join(sorted(key.decode() for key in catalog.placeholder_keys))
    yield _Line("placeholder_keys", placeholders, placeholder_source)


def _route_lines(name: str, rules: RouteRules, file: CatalogFile, sources: Mapping[str, str]) -> Iterator[_Line]:
    said = file.routes.get(name)
    settings = _SETTING_OF_MODELS_RULE if name in ("models", "model") else _SETTING_OF_RULE
    for each in fields(RouteRules):
        holder = said.cache if said and each.name not in _RULES_OF_ROUTE else said
        stated = holder is not None and getattr(holder, each.name, None) is not None
        source = "file" if stated else sources.get(settings.get(each.name, ""), "default")
        value = getattr(rules, each.name)
        yield _Line(f"routes.{name}.{each.name}", "by kind of answer" if value is None else as_text(value), source)


_RULES_OF_ROUTE: Final = frozenset((*_SETTING_OF_RULE, "leave"))


def _print_table(lines: list[_Line], out: TextIO) -> None:
    name_width = max(len(line.name) for line in lines)
    value_width = min(max(len(line.value) for line in lines), 60)
    for line in lines:
        print(f"{line.name:<{name_width}}  {line.value:<{value_width}}  {line.source}".rstrip(), file=out)
    print(file=out)
