"""Flags in whole proxies: a flip is everywhere within a second and nobody notices but by what they asked for; going
back leaves no trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Self

import pytest

from proxy.config.feature_flags import Flag, Flags
from proxy.config.flag_changes import FlagEdit, FlagMark, StoredFlags
from proxy.config.values import mask_url
from proxy.flag_snapshot import FILE_NAME, FlagSnapshot
from proxy.store.base import Store
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.databases import StoreMaker
from tests.fakes.gates import wait_until
from tests.fakes.keys import QuietLog
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.scenes.many import PLACEHOLDER, Many, answers, unused_url
from tests.scenes.stage import CHAT, KEY, Stage, chat, completion
from tests.scenes.test_process import Serve, run

TOKEN = "an-admin-token-for-tests"
RULE: Final = "Hello from a rule."
SAVINGS: Final[dict[str, Any]] = {
    "slimming": {"squeeze": True, "texts": "all"},
    "patterns": {"rules": {"hello": {"phrases": ["hello there"], "answers": [RULE]}}},
}
ALL_OFF: Final = {"slimming": "off", "patterns": "off"}
GREETING: Final = chat("hello there", temperature=0)
WORDY: Final = chat("one   two \n\n\n\n three", temperature=0.5)
# Different for every request, whatever it is about.
_OWN: Final = ("x-sameflight-request-id", "x-request-id", "x-response-time", "server-timing", "date")


async def admin(stage: Stage, method: str, path: str, body: object = b"", **headers: str) -> RawResponse:
    lines = [("authorization", f"Bearer {TOKEN}"), ("content-type", "application/json"), *headers.items()]
    async with await RawClient.connect_url(stage.app.admin_url) as client:
        return await client.request(method, path, lines, body)


class Watched(Many):
    """One provider whose calls are kept as they came."""

    def __init__(self, **extra: Any) -> None:
        models = {"gpt-4o-mini": {"targets": ["one/gpt-4o-mini"]}}
        super().__init__({"one": {"kind": "compatible"}}, models, extra=extra, admin_token=TOKEN)
        self.seen: list[object] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        upstream, script = self.upstreams["one"], answers("one")

        async def keep(call: Call) -> None:
            # The upstream's port, and the name that this process has in `via`.
            headers = sorted((name, value) for name, value in call.headers if name.lower() not in (b"host", b"via"))
            self.seen.append((call.method, call.target, headers, call.body))
            done = script(call)
            if done is not None:
                await done

        upstream.respond_with(keep)
        return self

    async def tell(self) -> list[object]:
        """What the upstream sees of three requests and what their callers do."""
        told: list[object] = []
        for body in (GREETING, WORDY, {**WORDY, "stream": True}):
            self.seen.clear()
            response = await (await self.ask(body, key=PLACEHOLDER)).read_end()
            headers = [(name, value) for name, value in response.headers if _text(name) not in _OWN]
            told += [*self.seen, response.status, headers, response.body]
            await self.settled()
        return told


def _text(name: str | bytes) -> str:
    return (name.decode("latin-1") if isinstance(name, bytes) else name).lower()


async def test_rolling_back_leaves_nothing_of_what_was_on() -> None:
    """Before, after, and in a proxy that never heard of savings, the upstream and the callers see the same bytes."""
    async with Watched(**SAVINGS, flags=ALL_OFF) as stage:
        before = await stage.tell()
        made = await admin(stage, "PATCH", "/admin/flags", {"flags": {"slimming": "on", "patterns": "on"}})
        during = await stage.tell()
        back = await admin(stage, "POST", "/admin/flags/rollback", {})
        after = await stage.tell()
        audit = (await admin(stage, "GET", "/admin/flags/audit")).json()["changes"]
    async with Watched() as never:
        untouched = await never.tell()

    assert (made.status, made.json()["warnings"]) == (200, [])
    assert back.status == 200
    assert RULE.encode() in repr(during).encode()
    assert b"one two" in repr(during).encode()
    assert before == after == untouched
    assert [(change["who"], len(change["rules"]), change["restores"]) for change in audit] == [
        ("admin", 2, 0),
        ("admin", 2, None),
    ]


async def test_a_flip_for_one_tenant_is_for_nobody_else() -> None:
    """A rule goes by whose key it is."""
    async with Watched(**SAVINGS, flags=ALL_OFF) as stage:
        keys = {}
        for tenant in ("acme", "globex"):
            made = await admin(stage, "POST", "/admin/keys", {"name": "ci", "tenant": tenant})
            keys[tenant] = made.json()
        await admin(stage, "PATCH", "/admin/flags", {"flags": {"patterns": {"tenants": {"acme": "on"}}}})

        async def says(tenant: str) -> str:
            response = await (await stage.ask(GREETING, key=keys[tenant]["key"])).read_end()
            return str(response.json()["choices"][0]["message"]["content"])

        assert await says("acme") == RULE
        assert await says("globex") != RULE

        off = {"flags": {"patterns": {"keys": {keys["acme"]["id"]: "off"}}}}
        await admin(stage, "PATCH", "/admin/flags", off)
        assert await says("acme") != RULE


async def test_a_proxy_that_starts_without_its_database_keeps_what_was_off(tmp_path: Path) -> None:
    """The rules that the last process knew are on disk; a database that is away does not turn savings on again."""
    url = f"postgresql://somebody@{unused_url().removeprefix('http://')}/nothing"
    kept = StoredFlags(Flags([Flag("patterns", percent=0.0)], 7), FlagMark(7, 1.0))
    FlagSnapshot(tmp_path / FILE_NAME, QuietLog(), database=mask_url(url)).write(kept)
    models = {"gpt-4o-mini": {"targets": ["one/gpt-4o-mini"]}}
    options = {"state_dir": str(tmp_path), "database_url": url}
    async with Many({"one": {"kind": "compatible"}}, models, extra=SAVINGS, **options) as stage:
        response = await (await stage.ask(GREETING, key=PLACEHOLDER)).read_end()

        assert response.status == 200
        assert RULE not in response.body.decode()
        assert b"sameflight_flags_version 7" in stage.app.metrics.render(["text/plain"])[0]


# -- four processes under load ---------------------------------------------------------------------------------

WORKERS = 4
FLIPS = 10
EACH = 4
"""Clients of each worker."""
FLIPPED_WITHIN_S = 1.0


class Fleet(Serve):
    """`serve --workers 4`, and clients of each worker that never stop asking."""

    def __init__(self, cwd: Path, upstream: ScriptedUpstream, database_url: str) -> None:
        super().__init__(
            cwd, upstream, "--workers", str(WORKERS), "--unix-socket", "w-{worker}.sock", "--config", "catalog.yaml",
            "--state-dir", ".", SAMEFLIGHT_ADMIN_TOKEN=TOKEN, SAMEFLIGHT_DATABASE_URL=database_url,
        )  # fmt: skip
        self.answered = 0
        self.failed: list[tuple[int, bytes]] = []
        self.last: list[dict[bool, float]] = [{} for _ in range(WORKERS)]
        """Of each worker: when the last request began that a rule answered (true), or the upstream (false)."""
        self.newest: list[bool | None] = [None] * WORKERS
        self._load: list[asyncio.Task[None]] = []
        self._stop = False

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        paths = [str(self._cwd / path) for path in self.url]
        self._load = [
            asyncio.create_task(self._ask_on(worker, paths[worker])) for worker in range(WORKERS) for _ in range(EACH)
        ]
        return self

    async def _ask_on(self, worker: int, path: str) -> None:
        client = await RawClient.connect(unix_path=path)
        self._clients.append(client)
        while not self._stop:
            began = time.monotonic()
            response = await client.request("POST", CHAT, [("authorization", f"Bearer {KEY}")], GREETING)
            self.answered += 1
            said = response.json()["choices"][0]["message"]["content"] if response.status == 200 else ""
            if said not in (RULE, "hello"):
                self.failed.append((response.status, response.body))
            by_rule = said == RULE
            self.last[worker][by_rule] = max(began, self.last[worker].get(by_rule, 0.0))
            self.newest[worker] = by_rule

    async def become(self, by_rule: bool, since: float) -> float:
        """Until every worker goes by it; the longest time after ``since`` at which a request began that one of them
        still treated in the old way."""
        for last in self.last:
            last.pop(by_rule, None)
        await wait_until(
            lambda: all(by_rule in last for last in self.last), f"every worker answers by rule: {by_rule}", 20.0
        )
        return max(last.get(not by_rule, 0.0) - since for last in self.last)

    async def rest(self) -> None:
        self._stop = True
        await asyncio.gather(*self._load)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as made:
        yield made


@pytest.mark.long
async def test_flips_reach_four_processes_under_load_within_a_second(
    tmp_path: Path, upstream: ScriptedUpstream, database_url: str, make_store: StoreMaker
) -> None:
    """Ten flips, each by another process than those that serve; no request is dropped, none is answered by half."""

    async def answer(call: Call) -> None:
        await call.answer_json(completion("hello"))

    upstream.respond_with(answer)
    rule = "{phrases: ['hello there'], answers: ['" + RULE + "']}"
    (tmp_path / "catalog.yaml").write_text(f"patterns: {{rules: {{hello: {rule}}}}}\nflags: {{patterns: off}}\n")
    async with Fleet(tmp_path, upstream, database_url) as fleet:
        await wait_until(lambda: all(each is False for each in fleet.newest), "every worker serves", 20.0)
        store: Store = await make_store()
        took = []
        for flip in range(FLIPS):
            percent = 0.0 if flip % 2 else 100.0
            since = time.monotonic()
            (made,) = await store.change_flags([FlagEdit("patterns", "global", "", percent)], who="a test")
            assert made.after == percent
            took.append(await fleet.become(percent == 100.0, since))
        # And once as people do it.
        words = {"SAMEFLIGHT_DATABASE_URL": database_url, "SAMEFLIGHT_STATE_DIR": str(tmp_path)}
        ended = await run("flags", "rollback", cwd=tmp_path, **words)
        assert ended.out.splitlines()[1] == "  patterns: off → on"
        await fleet.become(by_rule=True, since=time.monotonic())
        await fleet.rest()
        audit = await store.list_flag_changes()

    assert fleet.failed == []
    assert fleet.answered > 100
    assert max(took) < FLIPPED_WITHIN_S, took
    assert len(audit) == FLIPS + 1
    assert audit[0].who.startswith("cli:")
    print(f"{FLIPS} flips were in {WORKERS} processes after {max(took):.3f} s at most; {fleet.answered} requests")
