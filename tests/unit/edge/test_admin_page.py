"""The admin page over real HTTP: its files, who may see figures, and how often the store is asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from proxy.accounting.figures import Targets
from proxy.edge.admin import AdminServer, Health, Views
from proxy.edge.admin_api import AdminApi
from proxy.edge.admin_figures import DAYS_FRESH_S, FRESH_S, PAUSE_FACTOR, RETRY_S, ROWS, Figures
from proxy.edge.admin_page import FILES, AdminPage, names_loopback
from proxy.errors import StoreError
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate

TOKEN = "an-admin-token-for-tests"
PAGE, FIGURES, LIVE = "/dashboard", "/dashboard/figures", "/dashboard/live"


class Reports:
    """A store that has no rows, counts the questions and can be away or slow."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = ""
        self.gate: Gate | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.takes_s = 0.0
        self.clock: FrozenClock

    async def report(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        assert name == "figures"
        self.asked.append(parameters["by"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.clock.advance(self.takes_s)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.away:
                raise StoreError(self.away)
        finally:
            self.at_once -= 1
        return []

    async def get_key(self, key_id: str) -> Any:
        raise AssertionError(f"there is no row for {key_id}")


def health() -> Health:
    return Health(True, {})


class Rig:
    """An admin listener with its page."""

    def __init__(self, token: str = "", *, local: bool = True, wait_s: float = 10.0) -> None:
        self.clock = FrozenClock()
        self.store = Reports()
        self.store.clock = self.clock
        api = AdminApi(token, ())
        self.figures = Figures(self.store, self.clock, Targets(), wait_s=wait_s)
        self.page = AdminPage(api, self.figures, lambda: {"phase": "serving"}, listens_locally=local)
        views = Views(health, health, health, lambda _: (b"", "text/plain"), dict, dict)
        self.server = AdminServer(views, api, self.page)
        self.port = 0

    async def __aenter__(self) -> Rig:
        self._listener = await asyncio.get_running_loop().create_server(self.server, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self.server.shutdown(0.1)

    async def ask(self, path: str, method: str = "GET", **headers: str) -> RawResponse:
        async with await RawClient.connect("127.0.0.1", self.port) as client:
            return await client.request(method, path, [*headers.items()], b"")


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Rig() as rig:
        yield rig


# -- files -----------------------------------------------------------------------------------------------------


async def test_the_root_leads_to_the_page(rig: Rig) -> None:
    """By a relative address, so that it leads there behind a prefix as well; other pages are not found as before."""
    response = await rig.ask("/")
    nowhere = await rig.ask("/nowhere")

    assert (response.status, response.header("location")) == (302, "dashboard")
    assert nowhere.status == 404
    assert "/dashboard" in nowhere.json()["pages"]


async def test_every_file_has_its_type_and_may_load_nothing_from_elsewhere(rig: Rig) -> None:
    """The policy allows our own files alone, and no other page may show or embed them."""
    types = {"": "text/html; charset=utf-8", "/dashboard.css": "text/css; charset=utf-8",
             "/dashboard.js": "text/javascript; charset=utf-8", "/icon.svg": "image/svg+xml"}  # fmt: skip
    for path, kind in types.items():
        response = await rig.ask(PAGE + path)
        assert (response.status, response.header("content-type")) == (200, kind)
        policy = response.header("content-security-policy") or ""
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.header("x-content-type-options") == "nosniff"
        assert response.header("cache-control") == "no-cache"


def test_no_file_of_ours_names_another_host_or_writes_markup() -> None:
    """What is put into the page is text; and nothing in it points away from the machine."""
    for path in FILES.rglob("*"):
        if path.suffix in (".js", ".css", ".html") and "vendor" not in path.parts:
            text = path.read_text("utf-8")
            assert "http:" not in text, path
            assert "https:" not in text, path
            assert "innerHTML" not in text, path
            assert "style=" not in text, path
            assert len(text.splitlines()) <= 450, path


async def test_a_file_that_is_known_is_not_sent_again(rig: Rig) -> None:
    """By its tag, which changes with the file."""
    first = await rig.ask(PAGE)
    again = await rig.ask(PAGE, **{"if-none-match": first.header("etag") or ""})
    other = await rig.ask(PAGE, **{"if-none-match": '"another"'})
    head = await rig.ask(PAGE, "HEAD")

    assert (again.status, again.body, again.header("etag")) == (304, b"", first.header("etag"))
    assert other.status == 200
    assert (head.status, head.body) == (200, b"")
    assert head.header("content-length") == str(len(first.body))


@pytest.mark.parametrize(
    "path", ["/../admin_page.py", "/%2e%2e/admin_page.py", "//etc/passwd", "/vendor", "/vendor/uplot/LICENSE", "/x"]
)
async def test_what_is_no_file_of_the_page_is_not_found(rig: Rig, path: str) -> None:
    """Nothing outside of the folder, no folder, and nothing whose type is not known."""
    assert (await rig.ask(PAGE + path)).status == 404


async def test_the_page_is_read_and_nothing_else(rig: Rig) -> None:
    """Any other method is refused and says which there are."""
    response = await rig.ask(PAGE, "POST")

    assert (response.status, response.header("allow")) == (405, "GET, HEAD")


# -- who may see figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [FIGURES, LIVE])
async def test_where_there_is_a_token_figures_are_for_its_holder(path: str) -> None:
    """The page itself is for everybody: it holds nothing."""
    async with Rig(TOKEN) as rig:
        without, wrong = await rig.ask(path), await rig.ask(path, authorization="Bearer another-token-of-tests")
        right = await rig.ask(path, authorization=f"Bearer {TOKEN}")

        assert [each.status for each in (without, wrong, right)] == [401, 401, 200]
        assert wrong.json()["error"]["code"] == "admin_token_required"
        assert right.header("cache-control") == "no-store"
        assert (await rig.ask(PAGE)).status == 200
        assert rig.store.asked.count("hour") == (1 if path == FIGURES else 0)


@pytest.mark.parametrize("path", [FIGURES, LIVE])
async def test_without_a_token_a_listener_that_others_reach_shows_no_figures(path: str) -> None:
    """It says which setting opens them."""
    async with Rig(local=False) as rig:
        response = await rig.ask(path)

        assert response.status == 403
        assert "SAMEFLIGHT_ADMIN_TOKEN" in response.json()["error"]["message"]
        assert rig.page.refused == 1


@pytest.mark.parametrize("host", ["figures.example", "127.0.0.1.figures.example:8081", "10.1.2.3", ""])
async def test_without_a_token_a_foreign_name_for_this_machine_opens_nothing(rig: Rig, host: str) -> None:
    """A page of the web may have its own name point here, and a browser would let it read what comes back."""
    assert (await rig.ask(FIGURES, host=host)).status in (400, 403)
    assert rig.store.asked == []


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8081", "127.0.0.1:8081", "127.1.2.3", "[::1]:8081"])
def test_names_of_this_machine_are_known(host: str) -> None:
    """With a port or without."""
    assert names_loopback(host)


# -- how often the store is asked --------------------------------------------------------------------------------


async def test_many_pages_at_once_are_one_reading_with_one_question_at_a_time(rig: Rig) -> None:
    """However many ask, and none of them waits for a second reading."""
    rig.store.gate = gate = Gate("the store is asked")
    pages = [asyncio.ensure_future(rig.ask(FIGURES)) for _ in range(20)]
    await gate.reached()
    gate.open()
    answers = await asyncio.gather(*pages)

    assert {answer.status for answer in answers} == {200}
    assert rig.store.most_at_once == 1
    assert rig.figures.readings == 1


async def test_figures_are_read_again_when_they_are_old_and_past_days_seldom(rig: Rig) -> None:
    """Five seconds for today, a quarter of an hour for days that are over."""
    await rig.ask(FIGURES)
    await rig.ask(FIGURES)
    assert rig.figures.readings == 1
    rig.clock.advance(FRESH_S)
    await rig.ask(FIGURES)
    assert rig.figures.readings == 2
    assert rig.store.asked.count("day") == 1
    rig.clock.advance(DAYS_FRESH_S)
    await rig.ask(FIGURES)
    assert rig.store.asked.count("day") == 2


async def test_a_slow_store_is_asked_the_less_often(rig: Rig) -> None:
    """What took eleven seconds is good for twenty times as long."""
    rig.store.takes_s = 1.0
    await rig.ask(FIGURES)
    questions = len(rig.store.asked)
    rig.clock.advance(questions * PAUSE_FACTOR - 1.0)
    await rig.ask(FIGURES)
    assert len(rig.store.asked) == questions
    rig.clock.advance(1.0)
    await rig.ask(FIGURES)
    assert len(rig.store.asked) > questions


async def test_with_the_store_away_the_last_figures_are_there_and_called_stale(rig: Rig) -> None:
    """503 with the reason; the store is not asked again at once, and is believed when it is back."""
    good = (await rig.ask(FIGURES)).json()
    rig.clock.advance(FRESH_S)
    rig.store.away = "unavailable"
    away = await rig.ask(FIGURES)
    questions = len(rig.store.asked)
    again = await rig.ask(FIGURES)

    assert (away.status, again.status) == (503, 503)
    assert away.json()["figures"] == good["figures"]
    assert away.json()["stale"] is True
    assert "cannot be read" in away.json()["error"]["message"]
    assert len(rig.store.asked) == questions
    rig.store.away = ""
    rig.clock.advance(RETRY_S)
    back = await rig.ask(FIGURES)
    assert (back.status, back.json()["stale"]) == (200, False)


async def test_a_store_that_never_answered_leaves_nothing_to_show(rig: Rig) -> None:
    """No figures rather than zeros, which somebody could believe."""
    rig.store.away = "timeout"
    answer = await rig.ask(FIGURES)

    assert answer.status == 503
    assert answer.json() == {
        "error": {"code": "figures_unavailable", "message": "The database does not answer in time."},
        "figures": None,
        "stale": False,
    }


async def test_a_page_does_not_wait_for_a_store_that_hangs() -> None:
    """It hears so in time; the reading goes on, is the only one, and ends with the listener."""
    async with Rig(wait_s=0.0) as rig:
        rig.store.gate = Gate("for ever")
        answers = [await rig.ask(FIGURES) for _ in range(3)]

        assert {answer.status for answer in answers} == {503}
        assert "takes long" in answers[0].json()["error"]["message"]
        assert rig.figures.readings == 1


async def test_rows_of_tables_are_bounded(rig: Rig) -> None:
    """A thousand models are no reason for a thousand lines."""
    limits = []
    report = rig.store.report

    async def note(name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        limits.append((parameters["by"], parameters["limit"]))
        return await report(name, parameters)

    rig.store.report = note  # type: ignore[method-assign]
    await rig.ask(FIGURES)

    assert {by for by, limit in limits if limit == ROWS} == {"key", "model", "provider", "outcome"}
