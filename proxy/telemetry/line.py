"""The fields of an access line as JSON text, put together without a serialiser.

All but three values are our own words and numbers and need no escaping. What comes from outside (the model, the
upstream's request id, the trace) is escaped and masked once and remembered where it repeats.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import orjson

from proxy.telemetry.redact import redact_text

NULL: Final = "null"


@lru_cache(maxsize=1024)
def quoted(text: str) -> str:
    """A text from outside as a JSON string, without what looks like a credential; for texts that repeat."""
    return orjson.dumps(redact_text(text)).decode()


def quoted_id(value: bytes) -> str:
    """An upstream's request id as a JSON string; each is new, so nothing is remembered."""
    if value[:4] == b"req_" and value[4:].isalnum():
        return f'"{value.decode()}"'
    return orjson.dumps(redact_text(value.decode("latin-1"))).decode()


def word(value: str | None) -> str:
    """One of our own words; nothing in it needs escaping."""
    return f'"{value}"' if value else NULL
