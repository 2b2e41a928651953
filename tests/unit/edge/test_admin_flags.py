"""The admin API's pages for flags over real HTTP, on a database file: reading, changing, going back, the audit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from proxy.clock import Clock
from proxy.config.settings import load_settings
from proxy.config.watch import CatalogHolder
from proxy.edge.admin_api import MAX_BODY_BYTES, AdminApi
from proxy.edge.admin_flags import FlagPages
from proxy.errors import StoreError
from proxy.flag_feed import FlagFeed
from proxy.store.sqlite import SqliteStore
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.keys import QuietLog
from tests.fakes.usage import make_key

TOKEN = "an-admin-token-for-tests"
FLAGS = "/admin/flags"


class Rig:
    """An admin API with its store and its feed, and nothing else of a proxy."""

    def __init__(self, path: Path) -> None:
        (path / "catalog.yaml").write_text("flags: {tiers: off, pruning: {tenants: {acme: off}}}")
        self.catalogs = CatalogHolder(replace(load_settings({}).settings, config=str(path / "catalog.yaml")), {})
        self.log = QuietLog()
        self.store = SqliteStore(path / "sameflight.db")
        self.feed = FlagFeed(self.store, self.catalogs.use_flags, Clock(), self.log, hears=lambda: True)
        pages = FlagPages(self.store, self.feed, self.catalogs, self.log)
        self.api = AdminApi(TOKEN, (pages,))
        self.server = web.Server(self.api.handle, access_log=None)

    async def __aenter__(self) -> Rig:
        await self.store.open()
        await self.feed.start(wait=True)
        self._listener = await asyncio.get_running_loop().create_server(self.server, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self.server.shutdown(0.1)
        await self.feed.close()
        await self.store.close()

    async def ask(
        self, method: str, path: str = FLAGS, body: Any = b"", token: str | None = TOKEN, **headers: str
    ) -> RawResponse:
        lines = [("authorization", f"Bearer {token}")] if token is not None else []
        if body != b"":
            lines.append(("content-type", "application/json"))
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        async with await RawClient.connect("127.0.0.1", self.port) as client:
            return await client.request(method, path, [*lines, *named], body)

    async def change(self, **flags: Any) -> dict[str, Any]:
        response = await self.ask("PATCH", body={"flags": flags})
        assert response.status == 200, response.body
        made: dict[str, Any] = response.json()
        return made

    def in_force(self) -> dict[tuple[str, str, str], float]:
        return {(r.name, r.scope, r.subject): r.percent for r in self.catalogs.current.flags.rules()}

    @contextmanager
    def away(self) -> Iterator[None]:
        async def fail(*_: object) -> Any:
            raise StoreError("unavailable", "nobody there")

        drive, self.store._drive = self.store._drive, fail  # type: ignore[method-assign]
        yield
        self.store._drive = drive  # type: ignore[method-assign]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as rig:
        yield rig


def refused(response: RawResponse, status: int, code: str) -> str:
    error = response.json()["error"]
    assert (response.status, error["code"]) == (status, code), response.body
    return str(error["message"])


async def test_without_the_token_nothing_is_told_or_changed(rig: Rig) -> None:
    """The check is the one of all admin pages."""
    for method, path in (("GET", FLAGS), ("PATCH", FLAGS), ("POST", f"{FLAGS}/rollback"), ("GET", f"{FLAGS}/audit")):
        refused(await rig.ask(method, path, token="wrong"), 401, "admin_token_required")

    assert rig.api.refused == 4


async def test_a_change_is_in_force_here_when_its_answer_comes(rig: Rig) -> None:
    """With the change's number, a warning for what has nothing to switch, and who made it."""
    response = await rig.ask(
        "PATCH",
        body={"flags": {"tiers": "25%", "pruning": {"tenants": {"acme": True}}}, "why": "a trial"},
        x_sameflight_actor="ann",
    )

    made = response.json()
    assert response.status == 200
    assert rig.in_force() == {("tiers", "global", ""): 25.0, ("pruning", "tenant", "acme"): 100.0}
    assert made["version"] == made["change"]["change"] == rig.feed.flags.version
    assert (made["change"]["who"], made["change"]["why"]) == ("admin:ann", "a trial")
    assert made["change"]["rules"][1] == {
        "name": "tiers", "scope": "global", "subject": "", "before": None, "after": "25%",
    }  # fmt: skip
    assert len(made["warnings"]) == 2
    assert [name for name, _ in rig.log.events] == ["flags_changed", "flags_set"]


async def test_reading_shows_rules_with_their_origin(rig: Rig) -> None:
    """The file's, the store's, and what the store's stand in front of."""
    await rig.change(tiers="on")

    shown = (await rig.ask("GET")).json()
    tiers = (await rig.ask("GET", f"{FLAGS}/tiers")).json()

    assert shown["version"] == 1
    assert shown["age_s"] >= 0.0
    assert [flag["name"] for flag in shown["flags"]] == [
        *("patterns", "cache_classes", "tiers", "pruning", "slimming")
    ]
    assert tiers in shown["flags"]
    assert tiers["rules"] == [{"scope": "global", "subject": "", "value": "on", "origin": "store", "file": "off"}]
    refused(await rig.ask("GET", f"{FLAGS}/guard:none"), 404, "no_such_flag")
    refused(await rig.ask("GET", f"{FLAGS}/tirs"), 400, "invalid")


async def test_patching_leaves_what_it_does_not_name_and_putting_does_not(rig: Rig) -> None:
    """Nothing in the place of a value clears one rule; the file's counts again then."""
    await rig.change(tiers="on", pruning="off")
    await rig.change(tiers=None)
    assert rig.in_force()["tiers", "global", ""] == 0.0
    assert rig.in_force()["pruning", "global", ""] == 0.0

    assert (await rig.ask("PUT", body={"flags": {"patterns": "off"}})).status == 200
    assert [rule.name for rule in rig.feed.flags.rules()] == ["patterns"]

    assert (await rig.ask("PUT", body={"flags": {}})).status == 200
    assert rig.feed.flags.rules() == []


async def test_deleting_clears_one_rule_one_flag_or_all(rig: Rig) -> None:
    """By query; who deletes a key's rule leaves the others."""
    await rig.change(tiers={"global": "on", "tenants": {"acme": "off", "globex": "off"}}, pruning="off")

    await rig.ask("DELETE", f"{FLAGS}/tiers?tenant=acme")
    assert ("tiers", "tenant", "globex") in rig.in_force()
    assert len(rig.feed.flags.rules()) == 3
    await rig.ask("DELETE", f"{FLAGS}/tiers?scope=global")
    assert [(rule.name, rule.subject) for rule in rig.feed.flags.rules()] == [("pruning", ""), ("tiers", "globex")]
    await rig.ask("DELETE", f"{FLAGS}/tiers")
    assert [rule.name for rule in rig.feed.flags.rules()] == ["pruning"]
    made = (await rig.ask("DELETE", f"{FLAGS}?why=over")).json()
    assert rig.feed.flags.rules() == []
    assert made["change"]["why"] == "over"
    assert (await rig.ask("DELETE", FLAGS)).json()["change"] is None


async def test_a_rollback_restores_what_was_and_says_so_in_the_audit(rig: Rig) -> None:
    """By one change, and to any."""
    first = (await rig.change(tiers="on"))["change"]["change"]
    await rig.change(tiers="50%")
    await rig.change(pruning="off")

    made = (await rig.ask("POST", f"{FLAGS}/rollback", body={"why": "wrong"}, x_sameflight_actor="bob")).json()
    assert made["change"]["rules"][0]["after"] is None
    to_first = (await rig.ask("POST", f"{FLAGS}/rollback", body={"to": first})).json()
    assert rig.in_force()["tiers", "global", ""] == 100.0
    assert to_first["change"]["restores"] == first

    page = (await rig.ask("GET", f"{FLAGS}/audit?limit=2")).json()
    assert [(change["who"], change["why"]) for change in page["changes"]] == [("admin", ""), ("admin:bob", "wrong")]
    rest = (await rig.ask("GET", f"{FLAGS}/audit?before={page['next']}")).json()
    assert (len(rest["changes"]), rest["next"]) == (3, None)
    of_pruning = (await rig.ask("GET", f"{FLAGS}/audit?name=pruning")).json()["changes"]
    assert [change["rules"][0]["after"] for change in of_pruning] == [None, "off"]
    assert refused(await rig.ask("POST", f"{FLAGS}/rollback", body={"to": 77}), 409, "no_such_change")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("PATCH", FLAGS, {"flags": {"tirs": "off"}}, 400, "flags.tirs: there is no flag 'tirs' (did you mean"),
        ("PATCH", FLAGS, {"flags": {"tiers": 25}}, 400, "flags.tiers: expected on, off or a percentage such as 25%"),
        ("PATCH", FLAGS, {"flags": {}}, 400, "flags: a mapping"),
        ("PATCH", FLAGS, {"flag": {"tiers": "off"}}, 400, "no such field: flag; there are flags, why"),
        ("PATCH", FLAGS, {"flags": {"tiers": "off"}, "why": 5}, 400, "why: text"),
        ("PATCH", FLAGS, {"flags": {"tiers": "off"}, "why": "x" * 1_001}, 400, "why: at most 1000"),
        ("PATCH", FLAGS, {"flags": {"tiers": {"keys": {"key_0000000000000009": "off"}}}}, 400, "there is no key"),
        ("PATCH", FLAGS, ["tiers"], 400, "must be a JSON object"),
        ("PATCH", FLAGS, b"{", 400, "not valid JSON"),
        ("PATCH", FLAGS, b" " * (MAX_BODY_BYTES + 1), 413, "larger than"),
        ("PATCH", f"{FLAGS}?x=1", {"flags": {"tiers": "off"}}, 400, "No parameters"),
        ("POST", FLAGS, {}, 405, "Only GET, PATCH, PUT, DELETE"),
        ("POST", f"{FLAGS}/rollback", {"to": -1}, 400, "to: the number"),
        ("POST", f"{FLAGS}/rollback", {"to": True}, 400, "to: the number"),
        ("POST", f"{FLAGS}/rollback", {}, 409, "no change to roll back"),
        ("GET", f"{FLAGS}/audit?limit=0", b"", 400, "limit is from 1"),
        ("GET", f"{FLAGS}/audit?before=x", b"", 400, "before: the number"),
        ("DELETE", f"{FLAGS}/tiers?scope=tenant", b"", 400, "scope: only 'global'"),
        ("DELETE", f"{FLAGS}/tiers?route=nowhere", b"", 400, "there is no route"),
        ("GET", f"{FLAGS}/tiers/more", b"", 404, "There is no such page; there are /admin/flags"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_clear_words(
    rig: Rig, method: str, path: str, body: Any, status: int, words: str
) -> None:
    """And nothing has changed."""
    response = await rig.ask(method, path, body)

    assert response.status == status, response.body
    assert words in response.json()["error"]["message"]
    assert rig.feed.flags.version == 0


async def test_an_actor_is_one_short_printable_name(rig: Rig) -> None:
    """It ends in a table that people read."""
    response = await rig.ask("PATCH", body={"flags": {"tiers": "on"}}, x_sameflight_actor="a" * 200)

    assert "x-sameflight-actor: 1 to 200" in refused(response, 400, "invalid")


async def test_a_keys_rule_is_for_a_key_that_there_is(rig: Rig) -> None:
    """By its id."""
    key = await rig.store.add_key(make_key(1))

    await rig.change(pruning={"keys": {key.id: "off"}})

    assert rig.in_force()["pruning", "key", key.id] == 0.0


async def test_while_the_database_is_away_flags_are_shown_and_not_changed(rig: Rig) -> None:
    """What this process knows is in memory."""
    await rig.change(tiers="50%")
    with rig.away():
        shown = await rig.ask("GET")
        changed = await rig.ask("PATCH", body={"flags": {"tiers": "off"}})

    assert shown.json()["version"] == 1
    refused(changed, 503, "store_unavailable")
    assert rig.in_force()["tiers", "global", ""] == 50.0
