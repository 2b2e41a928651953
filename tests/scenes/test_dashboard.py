"""The admin page in a real browser, on what a real run of the proxy left in the store."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, Concatenate, NamedTuple, ParamSpec

import pytest

from loadtests.chat_day import TOKEN, ChatDay
from proxy.accounting.figures import make_periods
from proxy.errors import StoreError
from tests.fakes.browser import Tab, needs_browser, open_browser, open_tab
from tests.fakes.gates import wait_until

pytestmark = [needs_browser, pytest.mark.long]


class Visit(NamedTuple):
    """A proxy after a day's work, and a browser."""

    runner: asyncio.Runner
    day: ChatDay
    browser: Any

    @property
    def url(self) -> str:
        return self.day.app.admin_url

    async def enter(self, tab: Tab, token: str = TOKEN) -> None:
        """Open the page and give it a token."""
        page = tab.page
        await page.goto(self.url)
        await page.fill("#token", token)
        await page.press("#token", "Enter")

    async def look(self, tab: Tab) -> None:
        """Open the page with the right token, and wait for figures, charts, the live state and the flags."""
        await self.enter(tab)
        page = tab.page
        await page.locator("#as-of", has_text="As of").wait_for()
        await page.locator("#calls-chart canvas").wait_for()
        await page.locator("#health tbody th").first.wait_for()
        await page.locator("#flags input").first.wait_for()


@pytest.fixture(scope="module")
def visit() -> Iterator[Visit]:
    """Some hundred and fifty requests over a week, all of them in the store. One for all tests, each of which leaves
    it as it was: hence a loop that outlives them."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def begin() -> tuple[ChatDay, Any]:
            day = await stack.enter_async_context(ChatDay(scale=0.05))
            await day.live()
            return day, await stack.enter_async_context(open_browser())

        try:
            yield Visit(runner, *runner.run(begin()))
        finally:
            runner.run(stack.aclose())


P = ParamSpec("P")


def in_the_browser(test: Callable[Concatenate[Visit, P], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is run by the loop of the visit."""

    @functools.wraps(test)
    def run(visit: Visit, *args: P.args, **kwargs: P.kwargs) -> None:
        visit.runner.run(test(visit, *args, **kwargs))

    return run


async def cells(tab: Tab, table: str) -> list[list[str]]:
    """The text of a table's body."""
    rows: list[list[str]] = await tab.page.eval_on_selector_all(
        f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows


async def cards(tab: Tab, name: str = "cards") -> dict[str, tuple[str, str]]:
    found = await tab.page.eval_on_selector_all(
        f"#{name} > div", "cards => cards.map(card => [...card.children].map(part => part.textContent))"
    )
    return {title: (value, note) for title, value, note in found}


def number(text: str) -> float:
    return float(text.replace(",", "").replace("$", "").replace("−", "-").split()[0])


@in_the_browser
async def test_the_figures_on_the_page_are_the_stores(visit: Visit) -> None:
    """Requests, calls, money, shares, kinds and every table, against the store's own report of the same day; and what
    the clients asked is what there is."""
    store, app = visit.day.app.vault.store, visit.day.app
    async with open_tab(visit.browser) as tab:
        await visit.look(tab)
        at = make_periods(app.clock.wall())
        period = {"since": at.today, "until": at.now}
        [whole] = await store.report("usage", {"by": "all", **period})
        shown = await cards(tab)
        assert number(shown["Requests"][0]) == whole["requests"] > 0
        assert number(shown["Requests"][1]) == whole["calls"]
        assert number(shown["Answered without a call"][1]) == whole["saved_calls"] > 0
        assert number(shown["Cost"][0]) == pytest.approx(whole["upstream_picodollars"] / 1e12, abs=0.0006)
        saved = whole["saved_picodollars"] + whole["policy_saved_picodollars"]
        assert number(shown["Saved"][0]) == pytest.approx(saved / 1e12, abs=0.0006)
        assert number(shown["Errors"][1]) == whole["errors"]

        kinds = {row[0]: number(row[1]) for row in await cells(tab, "kinds")}
        assert sum(kinds.values()) == whole["requests"]
        assert kinds["Cache hit"] == whole["hits"]
        assert kinds["Pattern"] == whole["patterns"]
        assert kinds["Tier simple"] > 0
        for by in ("model", "provider", "key"):
            rows = {row["label"]: row for row in await store.report("usage", {"by": by, **period})}
            for name, requests, calls, *_ in await cells(tab, f"by-{by}"):
                label = name.rpartition("(")[2].rstrip(")") if "(" in name else name.replace("–", "")
                assert (number(requests), number(calls)) == (rows[label]["requests"], rows[label]["calls"])
            assert len(await cells(tab, f"by-{by}")) == len(rows)

        # The charts' tables: one row for each hour, and in them every request of the last day.
        await tab.page.click("#calls-chart summary")
        hours = await cells(tab, "calls-chart .scroll")
        [day] = await store.report("usage", {"by": "all", "since": at.first_hour, "until": at.now})
        assert len(hours) == 24
        assert sum(number(cell) for row in hours for cell in row[1:]) == day["requests"]


@in_the_browser
async def test_a_wrong_token_is_refused_and_said(visit: Visit) -> None:
    """No figure is shown, the field is marked, nothing is asked again by itself; the right one opens it. The token is
    kept for the tab alone."""
    async with open_tab(visit.browser) as tab:
        page = tab.page
        await visit.enter(tab, "not-the-token-at-all")
        await page.locator("#notice", has_text="The token was refused.").wait_for()
        assert await page.get_attribute("#token", "aria-invalid") == "true"
        assert (await cards(tab))["Requests"][0] == "–"
        assert visit.day.app.admin.api is not None
        assert visit.day.app.admin.api.refused >= 1

        await page.fill("#token", TOKEN)
        await page.press("#token", "Enter")
        await page.locator("#as-of", has_text="As of").wait_for()
        assert await page.inner_text("#notice") == ""
        assert await page.get_attribute("#token", "aria-invalid") == "false"
        kept = await page.evaluate("[document.cookie, JSON.stringify(localStorage), location.href]")
        assert TOKEN not in "".join(kept)
        await page.click("#forget")
        assert await page.evaluate("sessionStorage.length") == 0


@in_the_browser
async def test_no_request_leaves_the_machine_and_nothing_is_complained_of(visit: Visit) -> None:
    """The page asks the listener that served it and nobody else, breaks none of its own security policy, and has no
    error in its scripts."""
    async with open_tab(visit.browser) as tab:
        await visit.look(tab)
        for summary in await tab.page.query_selector_all("summary"):
            await summary.click()
        await tab.page.select_option("#theme", "dark")
        await tab.page.reload()
        await tab.page.locator("#as-of", has_text="As of").wait_for()

        assert tab.origins() == {visit.url}
        assert len(tab.requests) > 20
        assert tab.complaints == []


@in_the_browser
async def test_switches_flip_flags_and_the_last_change_is_taken_back(visit: Visit) -> None:
    """What the proxy goes by changes with the switch, and who did it is kept; one press brings back what was."""
    app = visit.day.app
    said = {"name": "patterns", "tenant": "", "route": "", "key_id": ""}
    name = said.pop("name")

    def percent() -> float:
        return app.catalogs.current.flags.percent(name, **said)

    async with open_tab(visit.browser) as tab:
        await visit.look(tab)
        switch = tab.page.get_by_role("switch", name=name, exact=True)
        assert await switch.is_checked()
        await switch.press("Space")
        await wait_until(lambda: percent() == 0.0, "the flag is off")
        await tab.page.locator("#flags-note", has_text="admin:dashboard").wait_for()
        assert not await switch.is_checked()
        assert await switch.evaluate("each => each === document.activeElement")

        await tab.page.click("#undo-flags")
        await wait_until(lambda: percent() == 100.0, "the flag is on again")
        await tab.page.locator("#flags input[aria-label=patterns]:checked").wait_for()
        assert await tab.page.get_by_role("switch", name="pruning", exact=True).is_disabled()


async def begin(tab: Tab) -> None:
    """The page anew, with nothing chosen, and everything there."""
    await tab.page.reload()
    await tab.page.locator("#calls-chart canvas").wait_for()
    await tab.page.locator("#flags input").first.wait_for()


@in_the_browser
async def test_the_page_is_used_by_keyboard_alone(visit: Visit) -> None:
    """Tab goes through it in the order in which it is read, shows where it is, and skips to the figures at once."""
    async with open_tab(visit.browser) as tab:
        await visit.look(tab)
        page = tab.page
        await begin(tab)
        stops = []
        tops = []
        for _ in range(60):
            await page.keyboard.press("Tab")
            stop = await page.evaluate(
                """() => { const at = document.activeElement, box = at.getBoundingClientRect();
                const style = getComputedStyle(at);
                return [at.id || at.getAttribute("aria-labelledby") || at.getAttribute("aria-label") || at.tagName,
                        box.top + scrollY, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2]; }"""
            )
            if stop[0] == "BODY":
                break
            assert stop[2], f"{stop[0]} does not show that it is chosen"
            stops.append(stop[0])
            tops.append(stop[1])

        assert stops[:4] == ["A", "token", "BUTTON", "forget"]
        assert stops[4] == "theme"
        assert "patterns" in stops
        assert "health-title" in stops
        assert all(later >= earlier - 60 for earlier, later in pairwise(tops[5:]))

        await begin(tab)
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "today"


_CONTRAST = """() => {
  const parse = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), alpha: parts[3] ?? 1 };
  };
  const light = (rgb) => rgb.map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (at) => {
    for (; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.alpha > 0.99) return found.rgb;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode, at = node.parentElement;
    if (!node.textContent.trim() || !at.checkVisibility() || at.closest("script, noscript")) continue;
    seen += 1;
    const pair = [light(parse(getComputedStyle(at).color).rgb), light(ground(at))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) poor.push([node.textContent.trim(), ratio]);
  }
  return [seen, poor];
}"""


@in_the_browser
async def test_text_stands_out_in_both_schemes_of_colours(visit: Visit) -> None:
    """As the system has it, and as the switch says against the system; the contrast of every text is 4.5 at least."""
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 20, 24)"}
    for system, chosen in (("light", ""), ("dark", ""), ("light", "dark"), ("dark", "light")):
        async with open_tab(visit.browser, color_scheme=system) as tab:
            await visit.look(tab)
            await tab.page.select_option("#theme", chosen)
            seen, poor = await tab.page.evaluate(_CONTRAST)
            assert seen > 100
            assert poor == []
            ground = await tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            assert ground == grounds[chosen or system]
            assert len(await tab.page.screenshot()) > 10_000


@in_the_browser
async def test_a_small_screen_needs_no_sideways_scrolling(visit: Visit) -> None:
    """Wide tables scroll in frames of their own; everything else is within the screen."""
    for width in (320, 375, 768, 1024):
        async with open_tab(visit.browser, width=width, height=700) as tab:
            await visit.look(tab)
            wide = await tab.page.evaluate(
                """() => [...document.querySelectorAll("body *")].filter((each) => each.checkVisibility()
                    && !each.closest(".scroll") && !each.closest(".unseen") && !each.closest(".u-wrap")
                    && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML)"""
            )
            assert wide == []
            assert await tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            # What matters most is read without scrolling within its frame, too.
            hidden = await tab.page.evaluate(
                """() => ["kinds", "goals", "money"].filter((name) => {
                    const table = document.getElementById(name);
                    return table.scrollWidth > table.parentElement.clientWidth + 1; })"""
            )
            assert width < 375 or hidden == []


@in_the_browser
async def test_nothing_moves_when_the_figures_come(visit: Visit) -> None:
    """Places are kept for what is still to come: the browser's own measure of shifted layout stays far below 0.1."""
    async with open_tab(visit.browser) as tab:
        page = tab.page
        await page.add_init_script(
            "window.shifted = 0; new PerformanceObserver((list) => { for (const each of list.getEntries())"
            " window.shifted += each.value; }).observe({ type: 'layout-shift', buffered: true });"
            f" sessionStorage.setItem('sameflight-admin-token', '{TOKEN}');"
        )
        await page.goto(visit.url)
        await page.locator("#as-of", has_text="As of").wait_for()
        await page.locator("#calls-chart canvas").wait_for()
        await page.locator("#flags input").first.wait_for()

        assert await page.evaluate("window.shifted") < 0.05


@in_the_browser
async def test_with_the_database_away_the_last_figures_stay_and_are_called_old(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page says in words what is the matter; what is live is still shown."""
    app = visit.day.app

    async def fail(*_: object) -> Any:
        raise StoreError("unavailable")

    async with open_tab(visit.browser) as tab:
        await visit.look(tab)
        before = (await cards(tab))["Requests"]
        monkeypatch.setattr(app.vault.store, "report", fail)
        assert app.admin.page is not None
        app.admin.page.figures._good_until = 0.0
        await tab.page.reload()
        await tab.page.locator("#notice", has_text="The database cannot be read").wait_for()
        await tab.page.locator("#live-at", has_text="UTC").wait_for()

        assert (await cards(tab))["Requests"] == before
        assert "not up to date" in await tab.page.inner_text("#as-of")
    app.admin.page.figures._good_until = 0.0


@in_the_browser
async def test_names_that_people_choose_are_text_and_nothing_else(visit: Visit) -> None:
    """A key called like a piece of a page is shown as it is written."""
    name = "<img src=x onerror=alert(1)>"
    issued = await visit.day.app.vault.issuer.create({"name": name, "tenant": "acme"})
    await visit.day.ask(("auto", "Where is my order?"), issued.token)
    await visit.day.written()
    assert visit.day.app.admin.page is not None
    visit.day.app.admin.page.figures._good_until = 0.0
    async with open_tab(visit.browser) as tab:
        await visit.look(tab)

        assert any(row[0].startswith(name) for row in await cells(tab, "by-key"))
        assert tab.complaints == []
        assert tab.origins() == {visit.url}
