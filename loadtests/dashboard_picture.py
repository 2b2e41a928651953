"""The picture of the admin page in README: a day of requests through a real proxy, seen in a real browser.

    python -m loadtests.dashboard_picture [FILE] [--dark] [--width 1280] [--height 1280]

Needs Playwright and a Chromium (Debian: ``apt-get install chromium-headless-shell``). Takes a minute at most.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Final

from loadtests.chat_day import TOKEN, ChatDay
from tests.fakes.browser import open_browser, open_tab, why_not

USUAL: Final = Path(__file__).parent / "results/dashboard.png"
MAX_BYTES: Final = 200_000


async def take(file: Path, *, dark: bool, width: int, height: int, seed: int, scale: float) -> int:
    """Take it; how many bytes it has."""
    async with ChatDay(seed=seed, scale=scale) as day, open_browser() as browser:
        await day.live()
        scheme = "dark" if dark else "light"
        async with open_tab(browser, width=width, height=height, color_scheme=scheme) as tab:
            page = tab.page
            await page.goto(day.app.admin_url)
            await page.fill("#token", TOKEN)
            await page.press("#token", "Enter")
            await page.locator("#calls-chart canvas").wait_for()
            await page.locator("#health tbody th").first.wait_for()
            await page.locator("#flags input").first.wait_for()
            await page.mouse.move(0, 0)
            await page.evaluate("document.activeElement.blur()")
            picture: bytes = await page.screenshot()
    await asyncio.to_thread(file.write_bytes, picture)
    return len(picture)


def main() -> int:
    """0 if the picture is there and small enough, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.dashboard_picture", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=USUAL)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    if reason := why_not():
        print(f"no picture: {reason}")
        return 1
    size = asyncio.run(
        take(args.file, dark=args.dark, width=args.width, height=args.height, seed=args.seed, scale=args.scale)
    )
    print(f"{args.file}: {size:,} bytes")
    return 0 if size <= MAX_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
