"""A body on its way to the upstream while the answer may already be coming.

By itself because it awaits in a ``finally``: where the path of a request is compiled (deploy/docker/compile.py), a
coroutine that does so can forget the exception it was about to raise. This module stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def send_until(sending: asyncio.Task[None], end: Coroutine[Any, Any, None]) -> None:
    """Wait for ``end``, the end of the exchange; it ends the sending of the body as well."""
    try:
        await end
    finally:
        if not sending.done():
            sending.cancel()
            await asyncio.wait((sending,))
