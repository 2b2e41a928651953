"""What can be used and was hardly meant: warnings of the catalog file, with places.

A warning refuses nothing. ``config check`` shows them and still succeeds; the catalog carries them for the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.models import Model, Models, ModelTarget
from proxy.config.prices import Prices
from proxy.config.provider import PROVIDERS, Provider
from proxy.config.schema import CatalogFile, TargetFile

# Options of a target → the kinds that heed them.
_CHAT: Final = frozenset(("openai", "azure", "compatible"))
_HEED: Final[Mapping[str, frozenset[str]]] = {
    "cache_markers": _CHAT | {"responses"},
    "json_output": frozenset(("anthropic",)),
    "max_tokens": frozenset(("anthropic",)),
    "version": frozenset(("anthropic", "azure")),
}
_SHARES: Final = frozenset(("weighted", "round_robin"))
# The dialects put /v1 behind the base URL.
_OTHER_VERSION: Final = re.compile(r".*/(v[02-9][0-9]*|v1[0-9]+|v[0-9]+(alpha|beta)[0-9]*(/openai)?)")


def advise(
    file: CatalogFile, providers: Mapping[str, Provider], models: Models, prices: Prices, document: Document
) -> None:
    """Warn of everything in the file."""
    used: set[str] = set()
    all_models = [*models.by_name.values(), *(model for _, model in models.patterns)]
    for model in all_models:
        used.update(target.provider.name for target in model.targets)
        _advise_on_model(model, prices, document)
        for index, (said, target) in enumerate(zip(file.models[model.name].targets, model.targets, strict=True)):
            if isinstance(said, TargetFile):
                _advise_on_target(said, target, ("models", model.name, "targets", index), document)
    for name, provider in providers.items():
        _advise_on_provider(provider, name in used, document)
        said_version = file.providers[name].version if name in file.providers else None
        if said_version and provider.kind not in _HEED["version"]:
            document.warn(("providers", name, "version"), f"kind {provider.kind} has no version", "leave it out")


def _advise_on_provider(provider: Provider, used: bool, document: Document) -> None:
    place: Place = ("providers", provider.name)
    # Servers of one's own often ask for no key.
    if used and not provider.keys and provider.kind != "compatible":
        hint = "give api_key, api_key_file or api_keys; only callers with a key of their own are served"
        document.warn(place, "models use this provider, and there is no key for it", hint)
    if not used and provider.name not in PROVIDERS:
        document.warn(place, "no model uses this provider", "name it in a target, or leave it out")
    if _OTHER_VERSION.fullmatch(provider.base_path):
        message = f"requests will go to {provider.origin}{provider.base_path}/v1/…"
        document.warn((*place, "base_url"), message, "is that a path the server has?")
    if provider.max_in_flight and provider.keep_warm > provider.max_in_flight:
        message = f"{provider.keep_warm} connections for at most {provider.max_in_flight} calls"
        document.warn((*place, "keep_warm"), message, "more than max_in_flight are never used")


def _advise_on_model(model: Model, prices: Prices, document: Document) -> None:
    place: Place = ("models", model.name)
    if model.strategy not in _SHARES and any(target.weight not in (0.0, 1.0) for target in model.targets):
        hint = f"only {' and '.join(sorted(_SHARES))} know shares; others heed whether a weight is 0"
        document.warn((*place, "strategy"), f"{model.strategy} does not heed the targets' weights", hint)
    if model.strategy == "cheapest":
        for index, target in _without_price(model, prices):
            hint = "give it a price, or strategy cheapest tries it last"
            document.warn((*place, "targets", index), f"there is no price for {target.id}", hint)


def _without_price(model: Model, prices: Prices) -> Iterator[tuple[int, ModelTarget]]:
    for index, target in enumerate(model.targets):
        if target.model and target.price is None and prices.find(target.model) is None:
            yield index, target


def _advise_on_target(said: TargetFile, target: ModelTarget, place: Place, document: Document) -> None:
    for option, kinds in _HEED.items():
        if getattr(said, option) and target.provider.kind not in kinds:
            message = f"kind {target.provider.kind} does not heed it"
            document.warn((*place, option), message, f"only {', '.join(sorted(kinds))} do")
