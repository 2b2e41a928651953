"""A real headless Chromium, driven by Playwright, that notes every request a page makes and whatever it complains of.

Chromium is the system's (`chromium` or `chromium-headless-shell` of Debian, Chrome, or what ``CHROMIUM`` names), or
the one that Playwright has installed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
# No name but this machine's is looked up, and the browser itself asks nobody for anything.
_SWITCHES = (
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip


def find_chromium() -> str | None:
    """The program, or ``None``."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    for program in _PROGRAMS:
        if found := shutil.which(program):
            return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    installed = [path for path in sorted(cache.glob("chromium*/*/*")) if path.name in ("chrome", "headless_shell")]
    return str(installed[-1]) if installed else None


def why_not() -> str:
    """Why there is no browser here; empty if there is one."""
    if find_spec("playwright") is None:
        return "playwright is not installed"
    return "" if find_chromium() else "there is no Chromium (Debian: apt-get install chromium-headless-shell)"


needs_browser = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is one")


class Tab:
    """One page in a browser context of its own."""

    # Mutable state: `requests` and `complaints` grow as the page works.
    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        """Errors of scripts, of the content security policy, and files that are not there."""
        page.context.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._note)

    def _note(self, message: Any) -> None:
        # Chromium writes every refused answer into the console; those are what some tests are about.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def origins(self) -> set[str]:
        """Where the page has asked for anything."""
        return {"{0.scheme}://{0.netloc}".format(urlsplit(url)) for url in self.requests}


@asynccontextmanager
async def open_browser() -> AsyncIterator[Any]:
    """A browser; ``open_tab`` makes pages in it."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=[*_SWITCHES])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def open_tab(browser: Any, *, width: int = 1280, height: int = 900, **options: Any) -> AsyncIterator[Tab]:
    """A page of a visitor who was never here before."""
    context = await browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(10_000)
    try:
        yield Tab(await context.new_page())
    finally:
        await context.close()
