"""``config check``, ``config show`` and ``config schema``: what the process would run with, before it does.

Exit codes: 0 when all is well, 1 when a setting or the catalog file is wrong. Warnings go to the errors' stream and
change no exit code.
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

from proxy.config.catalog import (
    PROVIDERS,
    Catalog,
    CatalogError,
    Provider,
    RouteRules,
    make_catalog,
    read_catalog,
)
from proxy.config.flags import add_setting_flags, flags_of
from proxy.config.models import Model, ModelTarget
from proxy.config.prices import AS_OF, BUILT_IN, Price
from proxy.config.schema import CatalogFile, ProviderFile, json_schema
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


_SHOWN_OF_PROVIDER: Final = (
    *("version", "first_byte_s", "idle_s", "total_s"),
    *("max_in_flight", "max_queue", "queue_s", "keep_warm", "ping_s", "ping_path"),
)
_SHOWN_OF_TARGET: Final = (
    *("weight", "first_byte_s", "idle_s", "total_s", "max_tokens", "most_tokens"),
    *("cache_markers", "json_output", "thinking", "version"),
)


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
    catalog = loaded.catalog
    counts = {
        "provider": len(catalog.providers),
        "model": len(catalog.models.by_name) + len(catalog.models.patterns),
        "alias": len(catalog.models.aliases),
        "warning": len(loaded.settings.warnings) + len(catalog.warnings),
    }
    told = "".join(f", {_counted(count, noun)}" for noun, count in counts.items() if count)
    print(f"ok: {len(SETTINGS)} settings, {where}{told}", file=out or sys.stdout)
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


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
        file, document = read_catalog(Path(path), env) if path else (CatalogFile(), None)
        catalog = make_catalog(file, settings.settings, document)
    except CatalogError as error:
        print(error, file=err)
        return None
    for problem in catalog.warnings:
        print(f"warning: {problem}", file=err)
    return _Loaded(settings, file, catalog)


def _setting_lines(loaded: Loaded) -> Iterator[_Line]:
    for row in SETTINGS:
        value = getattr(loaded.settings, row.name)
        yield _Line(row.env, shown(row, value), loaded.sources[row.name])


def _catalog_lines(loaded: _Loaded) -> Iterator[_Line]:
    sources, file, catalog = loaded.settings.sources, loaded.file, loaded.catalog
    for provider in catalog.providers.values():
        yield from _provider_lines(provider, file.providers.get(provider.name, ProviderFile()), sources)
    for model in (*catalog.models.by_name.values(), *(model for _, model in catalog.models.patterns)):
        yield from _model_lines(model)
    for alias, name in catalog.models.aliases.items():
        yield _Line(f"aliases.{alias}", name, "file")
    for name in sorted({"models", "model", *file.routes}):
        yield from _route_lines(name, catalog.rules(name), file, sources)
    for name in sorted(file.prices):
        yield _Line(f"prices.{name}", _price_text(catalog.prices.by_name[name]), "file")
    own = [name for name, price in catalog.prices.by_name.items() if price is not BUILT_IN.get(name)]
    listed = len(set(own) - file.prices.keys())
    if listed:
        yield _Line("prices", f"{listed} in {loaded.settings.settings.prices_file}", sources["prices_file"])
    yield _Line("prices.built_in", f"{len(BUILT_IN.keys() - set(own))} as of {AS_OF}", "default")
    placeholder_source = "file" if file.placeholder_keys is not None else sources["placeholder_keys"]
    placeholders = ",".join(sorted(key.decode() for key in catalog.placeholder_keys))
    yield _Line("placeholder_keys", placeholders, placeholder_source)


def _provider_lines(provider: Provider, said: ProviderFile, sources: Mapping[str, str]) -> Iterator[_Line]:
    """Where it is and whether there are keys always; the rest where the file says something."""
    at, name = f"providers.{provider.name}", provider.name
    built_in = name in PROVIDERS
    if not built_in or said.kind:
        yield _Line(f"{at}.kind", provider.kind, "file")
    url_source = "file" if said.base_url or said.region else sources.get(f"{name}_upstream", "default")
    yield _Line(f"{at}.base_url", f"{provider.origin}{provider.base_path}", url_source)
    if said.api_keys is not None:
        names = ", ".join(key.name for key in provider.keys)
        yield _Line(f"{at}.api_keys", f"{len(provider.keys)} set: {names}" if names else "unset", "file")
    else:
        here = said.api_key is not None or said.api_key_file is not None
        key_source = "file" if here else sources.get(f"{name}_api_key", "default")
        yield _Line(f"{at}.api_key", "set" if provider.api_key else "unset", key_source)
    for key in _SHOWN_OF_PROVIDER:
        if getattr(said, key) is not None:
            yield _Line(f"{at}.{key}", as_text(getattr(provider, key)), "file")


def _model_lines(model: Model) -> Iterator[_Line]:
    """Targets in their order; of the rest what differs from the default."""
    at = f"models.{model.name}"
    usual = Model(model.name, model.targets)
    for index, target in enumerate(model.targets):
        yield _Line(f"{at}.targets[{index}]", _target_text(target), "file")
    yield _Line(f"{at}.strategy", model.strategy, "file" if model.strategy != usual.strategy else "default")
    for key in ("attempts", "retry_unsafe", "description"):
        if getattr(model, key) != getattr(usual, key):
            yield _Line(f"{at}.{key}", as_text(getattr(model, key)), "file")
    if model.hedging is not None:
        after = f"after {as_text(model.hedging.after_s)} s" if model.hedging.after_s else "after the 95th percentile"
        yield _Line(f"{at}.hedging", f"{after}, at most {as_text(model.hedging.most_share * 100)} %", "file")
    if model.batching is not None:
        text = f"at most {model.batching.most_inputs} inputs within {as_text(model.batching.window_s * 1000)} ms"
        yield _Line(f"{at}.batching", text, "file")


def _target_text(target: ModelTarget) -> str:
    """``provider/model`` and what is said about it, parameters by name: their values may be long or private."""
    usual = ModelTarget(target.id, target.provider, target.model)
    told = [
        f"{key} {as_text(getattr(target, key))}"
        for key in _SHOWN_OF_TARGET
        if getattr(target, key) != getattr(usual, key)
    ]
    if target.price is not None:
        told.append(_price_text(target.price))
    if target.parameters:
        told.append(f"parameters {' '.join(name for name, _ in target.parameters)}")
    return ", ".join([target.id, *told])


def _price_text(price: Price) -> str:
    cached = "" if price.cached_input is None else f", cached input {as_text(price.cached_input)}"
    return f"input {as_text(price.input)}{cached}, output {as_text(price.output)}"


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
