"""The admin API over real HTTP: who may use it, what it takes, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.access.issuing import Issuer
from proxy.access.token import is_key
from proxy.clock import Clock
from proxy.edge.admin import AdminServer, Health, Views
from proxy.edge.admin_api import MAX_BODY_BYTES, AdminApi
from proxy.edge.admin_keys import KeyPages
from proxy.errors import StoreError
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.databases import StoreMaker
from tests.fakes.keys import DIGESTER, FakeKeys, QuietLog

TOKEN = "an-admin-token-for-tests"
KEYS = "/admin/keys"


def health() -> Health:
    return Health(True, {})


class Rig:
    """An admin listener with its API."""

    def __init__(self, store: Any, token: str = TOKEN) -> None:
        self.store = store
        self.log = QuietLog()
        self.api = AdminApi(token, (KeyPages(Issuer(store, DIGESTER, Clock()), Clock(), self.log),))
        views = Views(health, health, health, lambda _: (b"", "text/plain"), dict, dict)
        self.server = AdminServer(views, self.api)
        self.port = 0

    async def __aenter__(self) -> Rig:
        self._listener = await asyncio.get_running_loop().create_server(self.server, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self.server.shutdown(0.1)

    async def ask(
        self, method: str, path: str, body: Any = b"", token: str | None = TOKEN, **headers: str
    ) -> RawResponse:
        lines = [("authorization", f"Bearer {token}")] if token is not None else []
        if body != b"":
            lines.append(("content-type", "application/json"))
        async with await RawClient.connect("127.0.0.1", self.port) as client:
            return await client.request(method, path, [*lines, *headers.items()], body)

    async def create(self, **form: Any) -> dict[str, Any]:
        response = await self.ask("POST", KEYS, form)
        assert response.status == 201, response.body
        made: dict[str, Any] = response.json()
        return made


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Rig(FakeKeys()) as rig:
        yield rig


def refused(response: RawResponse, status: int, code: str) -> str:
    error = response.json()["error"]
    assert (response.status, error["code"]) == (status, code)
    assert response.header("cache-control") == "no-store"
    return str(error["message"])


# -- who may -------------------------------------------------------------------------------------------------

PAGES = [
    ("GET", KEYS),
    ("POST", KEYS),
    ("GET", f"{KEYS}/key_1"),
    ("PATCH", f"{KEYS}/key_1"),
    ("DELETE", f"{KEYS}/key_1"),
    ("POST", f"{KEYS}/key_1/rotate"),
    ("GET", "/admin/allowances"),
    ("PUT", "/admin/allowances"),
    ("GET", "/admin/"),
    ("GET", "/admin/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), PAGES)
async def test_every_page_is_closed_to_whoever_has_not_the_token(rig: Rig, method: str, path: str) -> None:
    """No token, wrong ones, twins of it, and keys of ours: the answer is the same, and nothing happens."""
    made = rig.store.put(b"x" * 52)
    own = "sf-" + "0" * 49
    for token in (None, "", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper(), own, "' OR 1=1 --", "x" * 7000):
        refused(await rig.ask(method, path, {"name": "x"}, token), 401, "admin_token_required")
    for value in (TOKEN, f"Basic {TOKEN}", f"Bearer{TOKEN}"):
        refused(await rig.ask(method, path, b"", None, authorization=value), 401, "admin_token_required")

    assert list(rig.store.by_id) == [made.id]
    assert rig.store.version == 1
    assert rig.log.events == []
    assert rig.api.refused == 12


@pytest.mark.parametrize(("method", "path"), PAGES)
async def test_without_a_configured_token_the_api_is_off(method: str, path: str) -> None:
    """An empty token opens nothing, not even to an empty one."""
    async with Rig(FakeKeys(), token="") as rig:
        for token in (None, "", "x"):
            message = refused(await rig.ask(method, path, {"name": "x"}, token), 404, "admin_api_off")
            assert "SAMEFLIGHT_ADMIN_TOKEN" in message
        assert rig.store.by_id == {}


async def test_probes_and_metrics_need_no_token(rig: Rig) -> None:
    """They are as open as before."""
    for path in ("/livez", "/readyz", "/startupz", "/metrics"):
        assert (await rig.ask("GET", path, token=None)).status == 200
    assert (await rig.ask("POST", "/livez", token=None)).status == 405


# -- what it does --------------------------------------------------------------------------------------------


async def test_a_key_lives_from_its_making_to_its_end(make_store: StoreMaker) -> None:
    """On both databases: made, shown, changed, rotated, revoked; its text is in one answer."""
    async with Rig(await make_store()) as rig:
        made = await rig.create(name="ci", tenant="acme", models=["gpt-4o*"], budget={"usd": 25}, expires="30d")
        key = made.pop("key")
        assert is_key(key.encode())
        found = await rig.store.find_key(DIGESTER.digest(key.encode()))
        assert found.id == made["id"]
        path = f"{KEYS}/{made['id']}"
        assert (await rig.ask("GET", path)).json() == made
        assert (await rig.ask("GET", f"{KEYS}?tenant=acme")).json() == {"keys": [made], "next": None}
        assert (await rig.ask("GET", f"{KEYS}?tenant=other")).json()["keys"] == []

        changed = (await rig.ask("PATCH", path, {"limits": {"concurrent": 2}, "budget": None})).json()
        assert (changed["limits"]["concurrent"], changed["budget"], changed["models"]) == (2, None, ["gpt-4o*"])
        rotated = (await rig.ask("POST", f"{path}/rotate", {"grace": "1h"})).json()
        assert rotated["key"] != key
        assert rotated["name"] == "ci"
        ended = (await rig.ask("DELETE", f"{KEYS}/{rotated['id']}")).json()
        assert ended["state"] == "revoked"
        listed = (await rig.ask("GET", f"{KEYS}?revoked=true")).json()["keys"]
        assert {each["id"]: each["state"] for each in listed} == {made["id"]: "valid", rotated["id"]: "revoked"}

        assert rig.log.names == ["key_created", "key_changed", "key_rotated", "key_revoked"]
        assert all(fields["key_id"].startswith("key_") for _, fields in rig.log.events)
        assert key not in repr(rig.log.events)
        assert rotated["key"] not in repr(rig.log.events)


async def test_keys_are_listed_page_by_page(rig: Rig) -> None:
    """Each once, in the order of their ids."""
    made = sorted([(await rig.create(name=f"k{number}"))["id"] for number in range(5)])
    seen: list[str] = []
    after = ""
    while True:
        page = (await rig.ask("GET", f"{KEYS}?limit=2&after={after}")).json()
        seen += [key["id"] for key in page["keys"]]
        after = page["next"]
        if after is None:
            break

    assert seen == made


async def test_allowances_are_set_and_listed(rig: Rig) -> None:
    """What is left out stays."""
    await rig.ask("PUT", "/admin/allowances", {"kind": "team", "name": "acme/red", "budget": "5/day"})
    form = {"kind": "team", "name": "acme/red", "limits": {"concurrent": 3}}
    allowance = (await rig.ask("PUT", "/admin/allowances", form)).json()

    assert (allowance["budget"], allowance["limits"]["concurrent"]) == ({"usd": "5", "period": "day"}, 3)
    assert (await rig.ask("GET", "/admin/allowances")).json() == {"allowances": [allowance]}


# -- what it refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({}, "a key has a name"),
        ({"name": ""}, "printable"),
        ({"name": "x", "admin": True}, "unknown field"),
        ({"name": "x", "id": "key_1"}, "unknown field"),
        ({"name": "x", "digest": "00"}, "unknown field"),
        ({"name": "x", "revoked_at": 0}, "unknown field"),
        ({"name": "x", "limits": {"requests": 1}}, "unknown field"),
        ({"name": "x", "limits": {"concurrent": 1.5}}, "Expected `int`"),
        ({"name": "x", "limits": {"concurrent": "1"}}, "Expected `int`"),
        ({"name": "x", "models": "gpt-4o"}, "Expected `array`"),
        ({"name": "x", "models": ["m"] * 101}, "at most 100"),
        ({"name": "x", "scope": "all"}, "Invalid enum value"),
        ({"name": "x", "budget": {"usd": -1}}, "an amount of dollars"),
        ({"name": "x", "budget": {"usd": 1, "period": "hour"}}, "one of day"),
        ({"name": "x", "expires": 1}, "a time to come"),
        ({"name": "x", "expires": 1e300}, "a time to come"),
        ({"name": 7}, "Expected `str`"),
    ],
)
async def test_a_form_that_cannot_be_meant_makes_no_key(rig: Rig, form: dict[str, Any], problem: str) -> None:
    """Unknown fields are refused: a misspelt limit would be none."""
    assert problem in refused(await rig.ask("POST", KEYS, form), 400, "invalid")
    assert rig.store.by_id == {}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "not_json"),
        (b"[]", 400, "not_json"),
        (b'"x"', 400, "not_json"),
        (b"\xff", 400, "not_json"),
        (json.dumps({"name": "x" * MAX_BODY_BYTES}).encode(), 413, "too_large"),
    ],
)
async def test_a_body_that_is_no_form_is_refused(rig: Rig, body: bytes, status: int, code: str) -> None:
    """Bounded, and JSON."""
    refused(await rig.ask("POST", KEYS, body), status, code)


async def test_a_body_of_another_type_is_refused(rig: Rig) -> None:
    """What a form on a web page can send is not JSON."""
    async with await RawClient.connect("127.0.0.1", rig.port) as client:
        lines = [("authorization", f"Bearer {TOKEN}"), ("content-type", "text/plain")]
        refused(await client.request("POST", KEYS, lines, b'{"name": "x"}'), 415, "not_json")


async def test_a_body_that_does_not_come_is_not_waited_for_long(rig: Rig) -> None:
    """Bounded in time."""
    rig.api._body_timeout_s = 0.0
    async with await RawClient.connect("127.0.0.1", rig.port) as client:
        response = client.expect("POST")
        await client.send(
            f"POST {KEYS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
            "content-type: application/json\r\ncontent-length: 10\r\n\r\n{".encode()
        )
        refused(await response.read_end(), 408, "too_slow")
        await client.send(b" " * 9)
        await client.peer_closed()


async def test_pages_take_their_methods_and_parameters_only(rig: Rig) -> None:
    """A misspelt filter must not list what it was meant to leave out."""
    key_id = (await rig.create(name="ci"))["id"]
    for method, path in (("PUT", KEYS), ("POST", f"{KEYS}/{key_id}"), ("GET", f"{KEYS}/{key_id}/rotate")):
        refused(await rig.ask(method, path), 405, "method_not_allowed")
    for query in ("tenants=acme", "tenant=a&tenant=b", "limit=0", "limit=1001", "limit=x", "limit=-1"):
        refused(await rig.ask("GET", f"{KEYS}?{query}"), 400, "invalid")
    refused(await rig.ask("DELETE", f"{KEYS}/{key_id}?force=1"), 400, "invalid")
    refused(await rig.ask("POST", f"{KEYS}/{key_id}/rotate", {"grace": "soon"}), 400, "invalid")
    refused(await rig.ask("POST", f"{KEYS}/{key_id}/rotate", {"for": "1h"}), 400, "invalid")
    for path in (f"{KEYS}/", f"{KEYS}/x/y", "/admin/"):
        refused(await rig.ask("GET", path), 404, "no_such_page")


@pytest.mark.parametrize("key_id", ["key_0000000000000000", "ci", "key_'%20OR%201=1--", "key_%00", "*"])
async def test_a_key_that_does_not_exist_is_not_found(rig: Rig, key_id: str) -> None:
    """Keys go by their ids here; names are for people."""
    await rig.create(name="ci")
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        refused(await rig.ask(method, f"{KEYS}/{key_id}{path}"), 404, "no_such_key")


async def test_a_name_that_is_taken_is_a_conflict(rig: Rig) -> None:
    """As on the command line."""
    await rig.create(name="ci")

    refused(await rig.ask("POST", KEYS, {"name": "ci"}), 409, "conflict")


@pytest.mark.parametrize("why", ["unavailable", "timeout", "read_only", "full"])
async def test_a_database_that_fails_is_told_apart_from_a_refusal(rig: Rig, why: str) -> None:
    """And its words stay inside."""
    rig.store.error = StoreError(why, "password hunter2 at 10.0.0.1")
    response = await rig.ask("GET", KEYS)

    refused(response, 503, f"store_{why}")
    assert b"hunter2" not in response.body
