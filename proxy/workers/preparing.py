"""What a process that will serve does before it imports the app: it is imported faster and smaller that way."""

from __future__ import annotations

import gc
import importlib
import ssl


def prepare() -> None:
    """Import aiohttp without the certificates of its own, and let the collector rest until `starting` tunes it: it
    would look four times at code that stays (30 ms of some 700)."""
    gc.disable()
    import_aiohttp()


def import_aiohttp() -> None:
    """aiohttp reads all certificate authorities of the system when it is imported, for clients that bring no TLS
    context: 35 ms and 1.6 MB. Ours bring theirs; one that did not would now trust nobody, and fail."""
    make = ssl.create_default_context
    ssl.create_default_context = lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        importlib.import_module("aiohttp")
    finally:
        ssl.create_default_context = make
