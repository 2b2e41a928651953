"""What a process that serves imports before it is asked anything: it waits for that, and holds it until its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a proxy without a file, a guard and a rule has no use for: a fifth of the time to ready, 4 MB.
UNUSED = (
    *("yaml", "difflib", "re2", "aiohttp.web", "aiohttp.web_urldispatcher", "redis", "asyncpg", "aiocache"),
    *("proxy.config.yaml_text", "proxy.guard.kinds", "proxy.guard.personal", "proxy.guard.phrases"),
    *("proxy.providers.gemini", "proxy.providers.anthropic", "proxy.mock.server"),
)


def run(code: str) -> str:
    """In an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules of a process that is about to start its app."""
    code = (
        "import proxy.cli.serve; from proxy.workers.preparing import prepare; prepare(); "
        "import proxy.workers.starting, sys; print(*sys.modules)"
    )
    return set(run(code).split())


@pytest.mark.parametrize("name", UNUSED)
def test_what_nobody_configured_is_not_imported(name: str, imported: set[str]) -> None:
    """It is imported by whoever needs it first: the catalog's reader, the first guard, a store, a dialect."""
    assert "proxy.app" in imported
    assert name not in imported


def test_aiohttp_is_imported_without_certificates_and_then_trusts_nobody() -> None:
    """Its own TLS context is for clients that bring none; ours bring theirs. The standard library is left as it
    was."""
    code = """
import ssl
make = ssl.create_default_context
from proxy.workers.preparing import import_aiohttp
import_aiohttp()
from aiohttp import connector
theirs = connector._SSL_CONTEXT_VERIFIED
print(ssl.create_default_context is make, theirs.verify_mode.name, theirs.check_hostname, len(theirs.get_ca_certs()))
"""
    assert run(code).split() == ["True", "CERT_REQUIRED", "True", "0"]


def test_the_collector_rests_until_the_app_is_there() -> None:
    """And is tuned then."""
    code = """
import gc
from proxy.workers.preparing import prepare
prepare()
before = gc.isenabled()
from proxy.workers.starting import _tune_collector
_tune_collector()
print(before, gc.isenabled(), gc.get_threshold()[0] > 10_000, gc.get_freeze_count() > 50_000)
"""
    assert run(code).split() == ["False", "True", "True", "True"]
