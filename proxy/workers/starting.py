"""Making an app and letting it listen, with what goes wrong told in words: for a process alone and for a worker."""

from __future__ import annotations

import gc

from proxy.access.pepper import PepperError
from proxy.app import App
from proxy.config.catalog import CatalogError
from proxy.config.settings import Settings
from proxy.errors import StoreError
from proxy.telemetry.log import Logging
from proxy.workers import StartError
from proxy.workers.listening import Place


async def start_app(settings: Settings, logging: Logging, place: Place | None = None) -> App:
    """An app that serves. Raises ``StartError``; then nothing is left of it."""
    try:
        app = App(settings, logging=logging, place=place)
    except CatalogError as error:
        raise StartError(f"the configuration file cannot be used:\n{error}") from None
    except PepperError as error:
        raise StartError(f"virtual keys cannot be checked: {error}") from None
    try:
        await app.start()
    except StoreError as error:
        await app.close()
        raise StartError(f"the database cannot be used: {error}") from None
    except OSError as error:
        await app.close()
        raise StartError(f"cannot listen: {error}") from None
    _tune_collector()
    return app


def _tune_collector() -> None:
    """What is there at the start stays and is not looked at again; requests leave hardly any cycles behind, so that
    looking for them every few dozen costs more (a twentieth of the CPU) than it finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
