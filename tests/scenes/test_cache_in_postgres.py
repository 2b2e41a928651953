"""Two proxies that share answers through PostgreSQL and nothing else."""

from __future__ import annotations

from typing import Any

from tests.fakes.gates import wait_until
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.stage import Stage, chat, completion

SETTINGS = {"key_secret": "a secret of sixteen bytes"}
WISH = [("x-sameflight-cache", "on")]


async def test_what_one_proxy_asked_another_finds_in_the_database(postgres_url: str) -> None:
    """Whole, marked as shared; and the metrics of both say so. What is purged is found by neither."""
    settings = {**SETTINGS, "cache_url": postgres_url, "cache_timeout_ms": 5_000.0}
    async with ScriptedUpstream() as upstream:
        upstream.respond_with(lambda call: call.answer_json(completion()))
        same = {f"{name}_upstream": upstream.url for name in ("openai", "anthropic", "mistral")}
        await share(upstream, {**settings, **same})


async def share(upstream: ScriptedUpstream, settings: dict[str, Any]) -> None:
    async with Stage(**settings) as first, Stage(**settings) as second:
        await wait_until(lambda: first.app.shared.up and second.app.shared.up, "both listen")
        one = await (await first.ask(chat(), headers=WISH)).read_end()
        await first.settled()
        other = await (await second.ask(chat(), headers=WISH)).read_end()

        assert upstream.calls == 1
        assert other.body == one.body
        assert first.series('cache_stores_total{cache="shared"}') == 1
        assert second.series('cache_hits_total{cache="shared"}') == 1

        hot = second.app.hot
        before = hot.generation
        first.app.shared.purge()
        await wait_until(lambda: hot.generation > before, "the other was told")
        await (await second.ask(chat(), headers=WISH)).read_end()
        await first.at_rest()
        await second.at_rest()
        assert upstream.calls == 2
