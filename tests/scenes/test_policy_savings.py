"""What policies save, on the books: with what was paid and what sharing saved it is what it would have cost."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes.gates import Gate, wait_until
from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, text_of
from tests.scenes.stage import chat, completion

HARD = "Analyse the goal, compare both and say why, step by step."
PROVIDERS: dict[str, Any] = {name: {"kind": "compatible"} for name in ("cheap", "strong")}
MODELS: dict[str, Any] = {"small": {"targets": ["cheap/llama"]}, "large": {"targets": ["strong/qwen"]}}
PRICES: dict[str, Any] = {"small": {"input": 1, "output": 4}, "large": {"input": 10, "output": 40}}
TIERS: dict[str, Any] = {"auto": {"tiers": {"simple": "small", "complex": "large"}}}
GIVEN, MADE = 5, 7
"""Tokens that every upstream reports."""
MICRO = 10**6
"""Picodollars for each token and dollar of a price."""
SMALL = (GIVEN * 1 + MADE * 4) * MICRO
LARGE = (GIVEN * 10 + MADE * 40) * MICRO


class Row(NamedTuple):
    role: str
    outcome: str
    model: str
    tier: str
    cache_class: str
    estimated: int
    pruned_tokens: int
    saved_tokens: int
    upstream_picodollars: int
    saved_picodollars: int
    policy_saved_picodollars: int
    shadow_saved_picodollars: int

    @property
    def in_all(self) -> int:
        return self.upstream_picodollars + self.saved_picodollars + self.policy_saved_picodollars


def house(**extra: Any) -> Many:
    return Many(PROVIDERS, MODELS, extra={"prices": PRICES, **extra})


async def rows_of(stage: Many) -> list[Row]:
    """All usage rows, in the order of their requests."""
    await stage.settled()
    vault = stage.app.vault
    await wait_until(lambda: vault.ledger.is_empty and not vault.spool.running, "all rows are in the store")
    return read_rows(Path(stage.app.settings.state_dir))


def read_rows(state_dir: Path) -> list[Row]:
    [path] = state_dir.glob("*.db")
    plain = sqlite3.connect(path)
    rows = [Row(*each) for each in plain.execute(f"SELECT {', '.join(Row._fields)} FROM usage ORDER BY request_id")]
    plain.close()
    return rows


async def test_a_cheaper_tier_saves_the_difference_whoever_pays() -> None:
    """The leader, those who join it and who finds the answer later: each of them would have paid the strong model."""
    gate = Gate("three are there")
    async with house(tiers=TIERS, cache_classes={}) as stage:

        async def wait(call: Call) -> None:
            await gate.wait()
            await call.answer_json(completion(text_of("cheap")))

        stage.upstreams["cheap"].respond_with(wait)
        asked = await stage.ask_many(3, chat("hi", model="auto"), key=PLACEHOLDER)
        gate.open()
        for response in asked:
            await response.read_end()
        await stage.say("auto", "hi")
        await stage.say("auto", HARD)
        rows = await rows_of(stage)

        assert [(row.role, row.model, row.tier, row.cache_class) for row in rows] == [
            ("leader", "small", "simple", "small"),
            ("follower", "small", "simple", "small"),
            ("follower", "small", "simple", "small"),
            ("hit", "small", "simple", "small"),
            ("leader", "large", "complex", "small"),
        ]
        assert [row.upstream_picodollars for row in rows] == [SMALL, 0, 0, 0, LARGE]
        assert [row.saved_picodollars for row in rows] == [0, SMALL, SMALL, SMALL, 0]
        assert [row.policy_saved_picodollars for row in rows] == [LARGE - SMALL] * 4 + [0]
        assert {row.in_all for row in rows} == {LARGE}
        await stage.at_rest()
        told = stage.series('policy_saved_usd_total{policy="tier"}')
        assert told == pytest.approx(4 * (LARGE - SMALL) / 1e12)


@pytest.mark.long
async def test_a_tier_in_shadow_mode_saves_nothing_and_says_what_it_would() -> None:
    """The strong model answers; the sum is what it costs."""
    async with house(tiers={"auto": {**TIERS["auto"], "shadow": True}}) as stage:
        await stage.say("auto", "hi")
        await stage.say("auto", HARD)
        rows = await rows_of(stage)
        await stage.at_rest()

        assert [row.shadow_saved_picodollars for row in rows] == [LARGE - SMALL, 0]
        assert [(row.policy_saved_picodollars, row.in_all) for row in rows] == [(0, LARGE)] * 2


async def test_a_rules_answer_saves_the_call_and_is_marked_as_a_guess() -> None:
    """Nobody was asked, so tokens are estimated from the texts alone."""
    rules = {"morning": {"phrases": ["good morning"], "answers": ["Good morning to you too!"]}}
    async with house(patterns={"rules": rules}) as stage:
        await stage.say("large", "Good morning")
        await stage.say("unheard-of", "Good morning")
        known, unknown = await rows_of(stage)
        await stage.at_rest()

        prompt_tokens = 3 + 4
        answer_tokens = known.saved_tokens - prompt_tokens
        assert 4 <= answer_tokens <= 8
        assert (known.role, known.estimated, known.upstream_picodollars, known.saved_picodollars) == (
            "pattern", 1, 0, 0,
        )  # fmt: skip
        assert known.in_all == (prompt_tokens * 10 + answer_tokens * 40) * MICRO
        assert (unknown.saved_tokens, unknown.in_all) == (known.saved_tokens, 0)
        assert stage.series('policy_saved_usd_total{policy="pattern"}') == pytest.approx(known.in_all / 1e12)
        assert stage.series('policy_saved_tokens_total{policy="pattern"}') == 2 * known.saved_tokens


async def test_what_a_conversation_lost_is_saved_at_the_price_of_who_reads_the_rest() -> None:
    """With a tier on top the parts add up to the whole conversation at the strong model."""
    talk = [{"role": "user" if at % 2 == 0 else "assistant", "content": f"{at} " * 40} for at in range(21)]
    async with house(tiers=TIERS, pruning={"messages": 4, "block": 4}) as stage:
        await stage.crowd(1, {"model": "large", "messages": talk})
        await stage.crowd(1, {"model": "auto", "messages": talk})
        plain, tiered = await rows_of(stage)
        await stage.at_rest()

        cut = plain.pruned_tokens
        assert cut > 100
        assert (plain.model, plain.policy_saved_picodollars) == ("large", cut * 10 * MICRO)
        assert tiered.pruned_tokens == cut
        assert tiered.in_all == plain.in_all == LARGE + cut * 10 * MICRO
        assert stage.series('policy_saved_tokens_total{policy="pruning"}') == 2 * cut


async def test_the_cost_of_a_summary_is_taken_off_what_it_saves() -> None:
    """Without policies nobody would have asked for it."""
    talk = [{"role": "user" if at % 2 == 0 else "assistant", "content": f"{at} " * 40} for at in range(21)]
    pruning = {"messages": 4, "block": 4, "summary": {"model": "small", "max_tokens": 40}}
    async with house(pruning=pruning) as stage:
        await stage.crowd(1, {"model": "large", "messages": talk})
        rows = await rows_of(stage)
        await stage.at_rest()
        summaries = [row for row in rows if row.model == "small"]
        [answer] = [row for row in rows if row.model == "large"]

        assert summaries
        assert [(row.upstream_picodollars, row.in_all) for row in summaries] == [(SMALL, 0)] * len(summaries)
        assert answer.in_all == LARGE + answer.pruned_tokens * 10 * MICRO
        assert stage.series('policy_lost_usd_total{policy="pruning"}') == pytest.approx(
            len(summaries) * SMALL / 1e12
        )


@pytest.mark.long
async def test_an_unknown_price_claims_nothing() -> None:
    """Neither what was paid nor what would have been."""
    async with Many(PROVIDERS, MODELS, extra={"prices": {"large": PRICES["large"]}, "tiers": TIERS}) as stage:
        await stage.say("auto", "hi")
        [row] = await rows_of(stage)
        await stage.at_rest()

        assert (row.model, row.tier, row.in_all) == ("small", "simple", 0)


@pytest.mark.long
async def test_without_policies_a_row_says_nothing_of_them() -> None:
    """As ever."""
    async with house() as stage:
        await stage.say("large")
        [row] = await rows_of(stage)
        await stage.at_rest()

        assert (row.tier, row.cache_class, row.pruned_tokens, row.policy_saved_picodollars) == ("", "", 0, 0)
        assert row.in_all == LARGE
