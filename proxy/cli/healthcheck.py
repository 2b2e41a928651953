"""``healthcheck``: ask the admin port whether the process is ready, for containers that have no curl.

Exit codes: 0 ready, 1 not.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from collections.abc import Mapping
from typing import Final, TextIO

from proxy.config.flags import add_setting_flags, flags_of
from proxy.config.settings import SettingsError, load_settings

TIMEOUT_S: Final = 2.0
# An address to listen on everywhere is none to connect to.
_LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``healthcheck`` to ``subparsers``."""
    parser = subparsers.add_parser("healthcheck", help="exit 0 if the running proxy is ready")
    add_setting_flags(parser, only=("admin_host", "admin_port"))
    parser.set_defaults(run=run)


def run(
    args: argparse.Namespace,
    out: TextIO | None = None,
    err: TextIO | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Ask ``/readyz`` of the admin listener that the settings describe."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        settings = load_settings(env, flags_of(args)).settings
    except SettingsError as error:
        print(error, file=err)
        return 1
    host = _LOOPBACK_OF.get(settings.admin_host, settings.admin_host)
    try:
        status, answer = _get(host, settings.admin_port)
    except (OSError, http.client.HTTPException) as error:
        print(f"not ready: {host}:{settings.admin_port}: {error}", file=err)
        return 1
    if status != 200:
        print(f"not ready: {status} {answer}", file=err)
        return 1
    print("ready", file=out)
    return 0


def _get(host: str, port: int) -> tuple[int, str]:
    """Status and the first line of the answer."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz", headers={"Connection": "close"})
        response = connection.getresponse()
        text = response.read(1024).decode("utf-8", "replace")
        return response.status, text.partition("\n")[0]
    finally:
        connection.close()
