"""Concurrent embedding requests of one model become few upstream calls, and nobody can tell."""

from __future__ import annotations

import asyncio

import openai
import orjson
import pytest

from proxy.mock import MockUpstream
from tests.scenes.many import PLACEHOLDER, Many

CALLERS = 64


def stage_of(mock: MockUpstream) -> Many:
    return Many(
        {"openai": {"base_url": mock.url}},
        {
            "merged": {
                "targets": ["openai/text-embedding-3-small"],
                "batching": {"most_inputs": 16, "window_ms": 50},
            },
            "alone": {"targets": ["openai/text-embedding-3-small"]},
        },
    )


@pytest.mark.long
@pytest.mark.parametrize("form", ["float", "base64"])
async def test_sixty_four_callers_make_at_most_eight_calls_and_each_gets_its_own(form: str) -> None:
    """Vectors bit for bit as without merging, and usage that adds up to what the upstream charged."""
    texts = [f"text number {number} " + "word " * (number % 7) for number in range(CALLERS)]
    async with MockUpstream() as mock, stage_of(mock) as stage:
        client = openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=PLACEHOLDER, max_retries=0)

        async def embed(model: str, text: str) -> bytes:
            asked = client.embeddings.with_raw_response.create(model=model, input=text, encoding_format=form)  # type: ignore[arg-type]
            return (await asked).content

        merged = await asyncio.gather(*(embed("merged", text) for text in texts))
        calls = mock.calls
        alone = [await embed("alone", text) for text in texts]
        await client.close()
        await stage.at_rest()

    assert calls <= 8
    for one, other in zip(merged, alone, strict=True):
        assert _items(one) == _items(other)
        assert orjson.loads(one)["usage"] == orjson.loads(other)["usage"]


def _items(body: bytes) -> bytes:
    """The text of the member ``data``."""
    start = body.index(b'"data":')
    return body[start : body.index(b"]", body.rindex(b'"embedding"')) + 1]
