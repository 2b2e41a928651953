"""``/v1/models`` in the dialect of the caller's SDK: what the catalog names, and what the providers list."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest
from mistralai.client import Mistral

from proxy.mock import MockUpstream
from tests.scenes.many import PLACEHOLDER, Many
from tests.scenes.test_keys import make_key

MODELS = {"fast": {"targets": ["mistral/mistral-small-latest"]}, "clever": {"targets": ["anthropic/claude-opus-4-6"]}}


def house(mock: MockUpstream, **said: Any) -> Many:
    """All three vendors are one mock."""
    providers = {
        "openai": {"base_url": mock.url},
        "anthropic": {"base_url": mock.url},
        "mistral": {"base_url": mock.url + "/mistral"},
    }
    return Many(providers, MODELS, extra={"aliases": {"gpt-4": "fast"}}, **said)


async def test_each_sdk_lists_what_may_be_named_in_its_own_words() -> None:
    """The operator's names first, then those of the provider that the SDK talks to."""
    async with MockUpstream() as mock, house(mock) as stage:
        theirs = openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=PLACEHOLDER, max_retries=0)
        names = [model.id async for model in await theirs.models.list()]
        one = await theirs.models.retrieve("gpt-4")
        with pytest.raises(openai.NotFoundError):
            await theirs.models.retrieve("missing-model")
        await theirs.close()
        other = anthropic.AsyncAnthropic(base_url=stage.app.url, api_key=PLACEHOLDER, max_retries=0)
        pages = [model.id async for model in await other.models.list(limit=2)]
        clever = await other.models.retrieve("clever")
        await other.close()
        async with Mistral(api_key=PLACEHOLDER, server_url=f"{stage.app.url}/mistral") as third:
            listed = await third.models.list_async()
        await stage.at_rest()

    assert set(names[:3]) == {"fast", "clever", "gpt-4"}
    assert "gpt-4o-mini" in names
    assert (one.id, one.object) == ("gpt-4", "model")
    assert set(pages[:3]) == {"fast", "clever", "gpt-4"}
    assert any(name.startswith("claude-") for name in pages[3:])
    assert (clever.id, clever.type) == ("clever", "model")
    assert listed.data is not None
    assert {"fast", "clever", "gpt-4"} <= {model.id for model in listed.data}


async def test_a_key_that_is_limited_to_models_sees_those_alone() -> None:
    """Whatever the provider has besides; and another model of it does not exist for the key."""
    async with MockUpstream() as mock, house(mock, admin_token="a-token-of-forty-characters-and-some-more") as stage:
        key = (await make_key(stage, name="limited", models=["fast", "gpt-4o*"])).token
        theirs = openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=key, max_retries=0)
        names = [model.id async for model in await theirs.models.list()]
        with pytest.raises(openai.NotFoundError):
            await theirs.models.retrieve("clever")
        await theirs.close()
        await stage.at_rest()

    assert "fast" in names
    assert all(name in {"fast", "gpt-4"} or name.startswith("gpt-4o") for name in names)


async def test_who_brings_a_credential_reads_the_providers_own_list() -> None:
    """The operator's names are no good for it."""
    async with MockUpstream() as mock, house(mock) as stage:
        theirs = openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key="sk-my-own-credential", max_retries=0)
        names = [model.id async for model in await theirs.models.list()]
        await theirs.close()
        await stage.at_rest()

    assert "fast" not in names
    assert "gpt-4o-mini" in names
