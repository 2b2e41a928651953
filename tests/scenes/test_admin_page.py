"""What the admin page is told: of a flight in the air, of the store's figures, and of several workers as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import RawClient, RawResponse
from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.scenes.kubelet import pause
from tests.scenes.stage import Stage, chat, completion
from tests.scenes.test_workers import ADMIN_TOKEN, Workers, rows_of

FIGURES, LIVE = "/dashboard/figures", "/dashboard/live"


async def look(stage: Stage, path: str, **headers: str) -> RawResponse:
    async with await RawClient.connect_url(stage.app.admin_url) as client:
        return await client.request("GET", path, [*headers.items()], b"")


async def answer(call: Call) -> None:
    await call.answer_json(completion("hello"))


async def test_figures_are_what_the_callers_asked() -> None:
    """Three callers on one flight and one alone: four requests, two calls, half of the money."""
    async with Stage() as stage:
        together = await stage.ask_many(3, chat("one for all"))
        call = await stage.upstream.next_call()
        live = (await look(stage, LIVE)).json()
        await call.answer_json(completion("hello"))
        for response in together:
            await response.read_end()
        stage.upstream.respond_with(answer)
        await (await stage.ask(chat("and one alone"))).read_end()
        await stage.settled()
        vault = stage.app.vault
        await wait_until(lambda: vault.ledger.is_empty and not vault.spool.running, "all rows are in the store")
        figures = (await look(stage, FIGURES)).json()["figures"]

        assert (live["flights"]["in_air"], live["flights"]["subscribers"]) == (1, 3)
        assert live["flights"]["oldest"][0]["subscribers"] == 3
        today = figures["today"]
        assert (today["requests"], today["calls"], today["saved_calls"], today["errors"]) == (4, 2, 2, 0)
        assert today["saved_usd"] == pytest.approx(today["cost_usd"])
        assert {each["kind"]: each["requests"] for each in figures["kinds"] if each["requests"]} == {
            "joined": 2, "call": 2,
        }  # fmt: skip
        assert figures["month"]["so_far_usd"] == pytest.approx(today["cost_usd"])
        assert figures["hours"]["requests"][-1] + figures["hours"]["requests"][-2] == 4
        assert stage.series('figures_readings_total{result="good"}') == 1


async def test_targets_are_settings() -> None:
    """What somebody does not want to be judged by is left out."""
    async with Stage(target_error_percent=2.5, target_p95_ms=0, target_usd_per_1000=0.25) as stage:
        figures = (await look(stage, FIGURES)).json()["figures"]

        assert {each["name"]: each["target"] for each in figures["targets"]} == {
            "error_rate": 0.025, "hit_rate": 0.3, "usd_per_1000": 0.25,
        }  # fmt: skip


async def test_a_proxy_that_others_reach_shows_figures_by_token_alone() -> None:
    """Bound to every address: closed without a token, open with it."""
    async with Stage(admin_host="0.0.0.0") as stage:
        assert (await look_by_port(stage, FIGURES)).status == 403
        assert (await look_by_port(stage, "/dashboard")).status == 200
    async with Stage(admin_host="0.0.0.0", admin_token=ADMIN_TOKEN) as stage:
        assert (await look_by_port(stage, FIGURES)).status == 401
        right = await look_by_port(stage, FIGURES, authorization=f"Bearer {ADMIN_TOKEN}")
        assert right.status == 200


async def look_by_port(stage: Stage, path: str, **headers: str) -> RawResponse:
    async with await RawClient.connect("127.0.0.1", stage.app.admin_port) as client:
        return await client.request("GET", path, [*headers.items()], b"")


@pytest.mark.long
async def test_the_parent_of_many_workers_shows_one_page_and_what_all_of_them_do(tmp_path: Path) -> None:
    """Each worker has a flight in the air: the page shows two, and figures of both afterwards. Without the token it
    shows neither."""
    gate = Gate("both are asked")

    async def wait(call: Call) -> None:
        await gate.wait()
        await answer(call)

    async with ScriptedUpstream() as upstream:
        upstream.respond_with(wait)
        async with Workers(tmp_path, upstream) as serve:

            async def admin(path: str, token: str = ADMIN_TOKEN) -> RawResponse:
                async with await RawClient.connect_url(serve.admin_url) as client:
                    return await client.request("GET", path, [("authorization", f"Bearer {token}")], b"")

            asked = [await serve.ask_of(worker, chat(f"to {worker}")) for worker in range(2)]
            await gate.reached(2)
            live: dict[str, Any] = (await admin(LIVE)).json()
            refused = [(await admin(path, "not-the-admin-token")).status for path in (LIVE, FIGURES)]
            page = await admin("/dashboard", "")
            gate.open()
            for response in asked:
                await response.read_end()
            while len(rows_of(tmp_path)) < 2:
                await pause(0.05)
            figures = (await admin(FIGURES)).json()["figures"]

            assert figures["today"]["requests"] == 2
            assert live["flights"]["in_air"] == 2
            assert {flight["worker"] for flight in live["flights"]["oldest"]} == {"0", "1"}
            assert live["workers"] == {"0": "", "1": ""}
            assert refused == [401, 401]
            assert (page.status, page.header("content-type")) == (200, "text/html; charset=utf-8")
