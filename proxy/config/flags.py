"""Command-line flags for the table of settings."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from proxy.config.settings import SETTINGS, shown


def add_setting_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Give ``parser`` one flag for each setting (or for those named in ``only``).

    Secrets get none: a command line can be read by every user of the machine. Values stay text here, because
    ``load_settings`` parses them and reports all that is wrong at once.
    """
    group = parser.add_argument_group("settings", "Each is also read from the environment variable in brackets.")
    for row in SETTINGS:
        if row.secret or (only is not None and row.name not in only):
            continue
        unit = f", in {row.unit}" if row.unit else ""
        default = f", default {shown(row, row.default)}" if row.default not in ("", ()) else ""
        help_text = f"{row.help.rstrip('.')}{unit}{default} [{row.env}]".replace("%", "%%")
        group.add_argument(row.flag, dest=row.name, default=None, metavar=row.type.upper(), help=help_text)


def flags_of(args: argparse.Namespace) -> dict[str, object]:
    """The settings that were given as flags, for ``load_settings``."""
    names = {row.name for row in SETTINGS if not row.secret}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}
