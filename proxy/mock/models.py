"""The models that the mock lists, in each vendor's shape. Any name but ``missing-model`` is served."""

from __future__ import annotations

from typing import Any

from proxy.mock.answer import ANTHROPIC, MISTRAL, Answer, answer_json
from proxy.mock.refusal import RefusedError

MISSING = "missing-model"

_NAMES = {
    "openai": ("gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "o4-mini", "text-embedding-3-small", "tts-1"),
    ANTHROPIC: ("claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5"),
    MISTRAL: ("mistral-large-latest", "mistral-small-latest", "codestral-latest", "mistral-embed"),
}
_CREATED = 1_767_225_600
_MISTRAL_STEMS = ("mistral", "codestral", "ministral", "pixtral", "devstral", "magistral", "voxtral", "open-mi")


def is_mistral(model: str) -> bool:
    return model.startswith(_MISTRAL_STEMS)


def list_models(dialect: str) -> Answer:
    """``GET /v1/models``."""
    data = [_make_card(dialect, name) for name in _NAMES[dialect]]
    if dialect == ANTHROPIC:
        ends = {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return answer_json({"data": data, **ends})
    return answer_json({"object": "list", "data": data})


def read_model(dialect: str, name: str) -> Answer:
    """``GET /v1/models/{id}``."""
    check_model(dialect, name)
    return answer_json(_make_card(dialect, name))


def check_model(dialect: str, name: str) -> None:
    """Raise the vendor's 404 for the model that does not exist."""
    if name != MISSING:
        return
    if dialect == ANTHROPIC:
        raise RefusedError(404, f"model: {name}")
    text = f"The model `{name}` does not exist or you do not have access to it."
    raise RefusedError(404, text, code="model_not_found", param="model")


def _make_card(dialect: str, name: str) -> dict[str, Any]:
    if dialect == ANTHROPIC:
        return {
            "type": "model",
            "id": name,
            "display_name": name.replace("-", " ").title(),
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
        }
    card: dict[str, Any] = {"id": name, "object": "model", "created": _CREATED, "owned_by": "system"}
    if dialect == MISTRAL:
        card.update(
            owned_by="mistralai",
            name=name,
            type="base",
            max_context_length=131_072,
            aliases=[],
            capabilities={"completion_chat": True, "function_calling": True, "completion_fim": "code" in name},
        )
    return card
