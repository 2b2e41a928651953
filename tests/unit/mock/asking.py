"""Requests that the mock's tests send by hand."""

from __future__ import annotations

from typing import Any

KEY = [("authorization", "Bearer sk-test")]


def make_chat(model: str = "gpt-4o-mini", text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat completion's body."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}
