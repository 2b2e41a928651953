"""The shape of one entry of the catalog file's section ``flags``. What it may say is checked by `flag_form`, for the
admin API takes the same words."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import Meta

_VALUE: Final = {
    "anyOf": [{"type": "boolean"}, {"type": "string", "pattern": r"^(on|off|[0-9]{1,3}(\.[0-9]{1,6})?\s*%)$"}],
    "description": "on, off, or for how many of the users, such as 25%.",
}
_SUBJECTS: Final = {"type": "object", "additionalProperties": _VALUE}

FlagFile = Annotated[
    Any,
    Meta(
        extra_json_schema={
            "anyOf": [
                *_VALUE["anyOf"],
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"global": _VALUE, "tenants": _SUBJECTS, "routes": _SUBJECTS, "keys": _SUBJECTS},
                },
            ],
            "description": "For everybody, or by tenant, route and key.",
        }
    ),
]
FlagName = Annotated[str, Meta(description="patterns, cache_classes, tiers, pruning, slimming, or guard:NAME.")]
