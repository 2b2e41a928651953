"""Whether an upstream's 404 says that the model itself is unknown, which stays true for a while."""

from __future__ import annotations

from typing import Final

import orjson

MAX_BODY_BYTES: Final = 16 * 1024

_CODES: Final = frozenset(("model_not_found", "not_found_error", "invalid_model"))


def names_missing_model(body: bytes, model: str) -> bool:
    """``body`` is a 404's: OpenAI's ``error.code`` is ``model_not_found``; Anthropic's ``error.type`` is
    ``not_found_error`` and its message names the model; Mistral's ``type`` is ``invalid_model``."""
    if len(body) > MAX_BODY_BYTES:
        return False
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    error = answer.get("error", answer) if type(answer) is dict else None
    if type(error) is not dict:
        return False
    if error.get("code") == "model_not_found" or error.get("type") == "invalid_model":
        return True
    message = error.get("message")
    return error.get("type") in _CODES and bool(model) and type(message) is str and model in message
