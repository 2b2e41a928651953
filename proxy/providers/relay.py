"""A request whose caller and target speak the same form: its bytes go through, but for what must change."""

from __future__ import annotations

from proxy.protocol.edit import edit_members, rename_model
from proxy.providers.base import Fields, Form


def relay_body(body: bytes, fields: Fields, form: Form, *, renamed: dict[str, str] | None = None) -> bytes:
    """``body`` for a target of the same form: the model it knows, and what the operator adds."""
    members = {name: value for name, value in form.extra if name not in fields}
    if renamed or members:
        return edit_members(body, {"model": form.model, **members}, renamed=renamed)
    return rename_model(body, fields, form.model)
