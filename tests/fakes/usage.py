"""Usage records and keys for tests of stores."""

from __future__ import annotations

import hashlib
from typing import Any

from proxy.accounting.record import UsageRecord
from proxy.config.keys import KeyRecord

HOLDER = "req_0123456789ab"
NOON = 1_763_726_400.0
"""21 November 2025, 12:00 UTC."""


def make_usage(number: int, **changes: Any) -> UsageRecord:
    """Request ``number`` of the process ``HOLDER``: a leader's, one second after the one before."""
    fields = {
        "request_id": f"{HOLDER}{number:08x}",
        "at": NOON + number,
        "key_id": "key_0000000000000001",
        "tenant": "acme",
        "team": "red",
        "provider": "openai",
        "route": "chat",
        "model": "small",
        "role": "leader",
        "outcome": "ok",
        "status": 200,
        "streams": False,
        "estimated": False,
        "input_tokens": 10,
        "output_tokens": 5,
        "cached_input_tokens": 2,
        "upstream_tokens": 15,
        "saved_tokens": 0,
        "cost_picodollars": 700,
        "upstream_picodollars": 700,
        "saved_picodollars": 0,
        "first_byte_ms": 3.5,
        "total_ms": float(number),
        "overhead_ms": 0.25,
        "flight_id": number,
        "tags": "",
    }
    return UsageRecord(**{**fields, **changes})


def make_key(number: int, **changes: Any) -> KeyRecord:
    """Key ``number``, without limits."""
    fields = {
        "id": f"key_{number:016x}",
        "digest": hashlib.sha256(str(number).encode()).digest(),
        "name": f"key {number}",
        "created_at": NOON,
    }
    return KeyRecord(**{**fields, **changes})
