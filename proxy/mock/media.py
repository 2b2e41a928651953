"""The routes beside generation: embeddings, moderations, images, speech and text recognition."""

from __future__ import annotations

import base64
import random
import zlib
from array import array
from functools import cache
from hashlib import sha256
from typing import Any

from proxy.mock.answer import Answer, Call, answer_json
from proxy.mock.chat import read_limit
from proxy.mock.refusal import RefusedError
from proxy.mock.reply import count_tokens

_MAX_DIMENSIONS = 4096
_SPEECH_BYTES_PER_CHARACTER = 960
_SPEECH_TYPES = {"mp3": b"audio/mpeg", "opus": b"audio/opus", "aac": b"audio/aac", "flac": b"audio/flac"}


def answer_embeddings(call: Call) -> Answer:
    """``POST /v1/embeddings``, as floats or base64 of little-endian 32-bit floats."""
    inputs = _read_inputs(call.data.get("input"))
    size = read_limit(call.data, "dimensions", "output_dimension") or 1536
    if size > _MAX_DIMENSIONS:
        raise RefusedError(400, f"dimensions must be at most {_MAX_DIMENSIONS}.", param="dimensions")
    packed = call.data.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(inputs):
        vector = make_vector(text, size)
        value = base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    answer: dict[str, Any] = {"id": call.make_id("embd-"), "object": "list", "data": data, "model": call.model}
    used = sum([count_tokens(text) for text in inputs])
    answer["usage"] = {"prompt_tokens": used, "total_tokens": used} if call.options.usage else {}
    return answer_json(answer)


def _read_inputs(given: object) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise RefusedError(400, "Missing required parameter: 'input'.", param="input")
    if isinstance(given[0], int):
        return [str(given)]
    return [one if isinstance(one, str) else str(one) for one in given]


def make_vector(text: str, size: int) -> array[float]:
    """A vector that depends on the text alone; its components lie within a unit ball's usual range."""
    start = int.from_bytes(sha256(text.encode("utf-8", "surrogatepass")).digest()[:2], "big") % _MAX_DIMENSIONS
    return _ring()[start : start + size]


@cache
def _ring() -> array[float]:
    chance = random.Random(7)  # noqa: S311 - a fixed table, no secret
    return array("f", [chance.gauss(0.0, 0.025) for _ in range(2 * _MAX_DIMENSIONS)])


_TEXT_ONLY = ("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent")
_ANY_INPUT = ("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic")


def answer_moderations(call: Call) -> Answer:
    """``POST /v1/moderations``; a text that says ``violence`` is flagged for it."""
    results = []
    names = (*_TEXT_ONLY, "sexual/minors", *_ANY_INPUT)
    for text in _read_inputs(call.data.get("input")):
        found = "violence" in text.lower()
        categories = {name: found and name == "violence" for name in names}
        results.append(
            {
                "flagged": found,
                "categories": categories,
                "category_scores": {name: 0.97 if hit else 0.0001 for name, hit in categories.items()},
                "category_applied_input_types": {name: ["text"] for name in names},
            }
        )
    return answer_json({"id": call.make_id("modr-"), "model": call.model, "results": results})


@cache
def _png() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\2\0\0\0")
    pixel = chunk(b"IDAT", zlib.compress(b"\0\x33\x66\x99"))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + pixel + chunk(b"IEND", b"")).decode()


def answer_images(call: Call) -> Answer:
    """``POST /v1/images/generations``: ``n`` times the same PNG of one pixel."""
    prompt = call.data.get("prompt")
    if not isinstance(prompt, str):
        raise RefusedError(400, "Missing required parameter: 'prompt'.", param="prompt")
    count = min(read_limit(call.data, "n") or 1, 10)
    used = count_tokens(prompt)
    answer: dict[str, Any] = {
        "created": call.created,
        "data": [{"b64_json": _png(), "revised_prompt": prompt} for _ in range(count)],
        "output_format": "png",
        "size": "1024x1024",
    }
    if call.options.usage:
        answer["usage"] = {
            "input_tokens": used,
            "input_tokens_details": {"text_tokens": used, "image_tokens": 0},
            "output_tokens": 272 * count,
            "total_tokens": used + 272 * count,
        }
    return answer_json(answer)


def answer_speech(call: Call) -> Answer:
    """``POST /v1/audio/speech``: binary, chunked, its size in proportion to the text."""
    text = call.data.get("input")
    if not isinstance(text, str):
        raise RefusedError(400, "Missing required parameter: 'input'.", param="input")
    kind = _SPEECH_TYPES.get(str(call.data.get("response_format", "mp3")), b"audio/wav")
    size = min(len(text), 4096) * _SPEECH_BYTES_PER_CHARACTER
    return Answer(content_type=kind, bulk_bytes=size, chunked=True)


def answer_ocr(call: Call) -> Answer:
    """Mistral's ``POST /v1/ocr``: one page."""
    if not isinstance(call.data.get("document"), dict):
        raise RefusedError(400, "Missing required parameter: 'document'.", param="document")
    page = {
        "index": 0,
        "markdown": f"# Page {call.digest[:4].hex()}",
        "images": [],
        "dimensions": {"dpi": 200, "height": 2200, "width": 1700},
    }
    usage = {"pages_processed": 1, "doc_size_bytes": None}
    return answer_json({"pages": [page], "model": call.model, "usage_info": usage})
