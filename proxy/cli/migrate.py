"""``migrate``: bring the database's schema up to date, or with ``--check`` only say whether it is.

Exit codes: 0 when the schema is the one this version needs, 1 when it is not or the database cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from proxy.config.flags import add_setting_flags, flags_of
from proxy.config.settings import SettingsError, load_settings
from proxy.config.values import mask_url
from proxy.errors import StoreError
from proxy.store.open import open_store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``migrate`` to ``subparsers``."""
    parser = subparsers.add_parser("migrate", help="bring the database's schema up to date")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 0 if the schema is up to date")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    add_setting_flags(parser, only=("state_dir",))
    parser.set_defaults(run=run)


def run(
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Migrate, or check, the database that the settings name."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        settings = load_settings(env, flags_of(args)).settings
    except SettingsError as error:
        print(error, file=err)
        return 1
    path = Path(settings.state_dir)
    where = mask_url(settings.database_url) or f"SQLite in {path}"
    try:
        about = asyncio.run(_open(settings.database_url, path, migrate=not args.check))
    except StoreError as error:
        print(f"{where}: {error}", file=err)
        return 1
    if args.json:
        print(json.dumps({"kind": about["kind"], "schema_version": about["schema_version"]}), file=out)
    else:
        print(f"{where}: schema {about['schema_version']}, up to date", file=out)
    return 0


async def _open(url: str, path: Path, *, migrate: bool) -> dict[str, Any]:
    store = open_store(url, path, migrate=migrate)
    try:
        await store.open()
        return store.describe()
    finally:
        await store.close()
