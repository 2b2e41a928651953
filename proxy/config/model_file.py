"""What the catalog file says about models → `Models`. Whatever is wrong is reported to the document, with its place.

Times fold from the particular to the general: a target's, else its model's, else its provider's, else 0 for the
route's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import orjson

from proxy.config.aliases import resolve_aliases
from proxy.config.convert import resembling
from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.models import NO_MODELS, Batching, Hedging, Model, Models, ModelTarget
from proxy.config.prices import Price
from proxy.config.provider import Provider
from proxy.config.schema import MAX_MODELS, MAX_TARGETS, CatalogFile, ModelFile, PriceFile, TargetFile

MAX_NAME_CHARS: Final = 256

EMBEDDING_KINDS: Final = frozenset(("openai", "azure", "compatible", "mistral"))
"""Kinds whose requests for embeddings are OpenAI's, which are the ones that can be merged and split."""

_NAME: Final = re.compile(r"[!-~]{1,256}")
_NAME_HINT: Final = f"1 to {MAX_NAME_CHARS} printable ASCII characters without spaces"
_VERSION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What a request is about is the caller's to say, and an upstream would answer something else.
_CALLERS_OWN: Final = frozenset(("model", "messages", "input", "prompt", "contents", "stream"))


class _Known(NamedTuple):
    """What the targets of all models are made with."""

    document: Document
    providers: Mapping[str, Provider]
    names: list[str]
    """Of all providers, also of those that are wrong."""


def make_models(file: CatalogFile, providers: Mapping[str, Provider], document: Document) -> Models:
    """The models and aliases of the file, without the ones that cannot be made; those are reported."""
    if not file.models and not file.aliases:
        return NO_MODELS
    if len(file.models) > MAX_MODELS:
        document.report(("models",), f"there are {len(file.models)} models", f"at most {MAX_MODELS} are possible")
        return NO_MODELS
    known = _Known(document, providers, list(dict.fromkeys((*providers, *_said_providers(document)))))
    made = {
        name: model
        for name, said in file.models.items()
        if ("models", name) not in document.broken and (model := _make_model(name, said, known)) is not None
    }
    patterns = sorted((name for name in made if name.endswith("*")), key=lambda name: (-len(name), name))
    return Models(
        by_name=MappingProxyType({name: model for name, model in made.items() if not name.endswith("*")}),
        aliases=MappingProxyType(resolve_aliases(file.aliases, file.models.keys(), document)),
        patterns=tuple((name[:-1], made[name]) for name in patterns),
    )


def _said_providers(document: Document) -> list[str]:
    said = document.data.get("providers") if isinstance(document.data, dict) else None
    return list(said) if isinstance(said, dict) else []


def make_price(price: PriceFile) -> Price:
    return Price(price.input, price.output, price.cached_input, price.cache_write)


def _make_model(name: str, said: ModelFile, known: _Known) -> Model | None:
    place = ("models", name)
    _check_name(name, place, known.document)
    targets = list(_make_targets(name, said, known))
    if place in known.document.broken or len(targets) < len(said.targets):
        return None
    _check_model(said, targets, known.document, place)
    hedging, batching = said.hedging, said.batching
    return Model(
        name=name,
        targets=tuple(targets),
        strategy=said.strategy,
        attempts=said.attempts,
        retry_unsafe=said.retry_unsafe,
        hedging=None if hedging is None else Hedging(hedging.after_s, hedging.most_share),
        batching=None if batching is None else Batching(batching.most_inputs, batching.window_ms / 1000),
        description=said.description,
    )


def _check_name(name: str, place: Place, document: Document) -> None:
    if not _NAME.fullmatch(name):
        document.report(place, "this cannot be the name of a model", _NAME_HINT)
    elif "*" in name[:-1]:
        document.report(place, "only the last character may be a '*'", f"such as '{name.partition('*')[0]}*'")


def _check_model(said: ModelFile, targets: list[ModelTarget], document: Document, place: Place) -> None:
    """What is right for each target alone and wrong together."""
    if not any(target.weight for target in targets):
        document.report((*place, "targets"), "every weight is 0", "give at least one target a weight above 0")
    if said.hedging is not None and len(targets) < 2:
        hint = "name another one, or leave hedging out"
        document.report((*place, "hedging"), "there is no second target to hedge with", hint)
    if said.batching is not None:
        for target in targets:
            if target.provider.kind not in EMBEDDING_KINDS:
                message = f"{target.id} is of kind {target.provider.kind}, which has no embeddings to merge"
                document.report((*place, "batching"), message, f"only {', '.join(sorted(EMBEDDING_KINDS))} have")
                break
    if not said.description.isprintable():
        document.report((*place, "description"), "expected text without control characters", "write it in one line")


# -- targets ------------------------------------------------------------------------------------------------------


def _make_targets(name: str, said: ModelFile, known: _Known) -> Iterator[ModelTarget]:
    place: Place = ("models", name, "targets")
    if not said.targets:
        known.document.report(place, "there is no target", "name at least one, as provider/model")
    elif len(said.targets) > MAX_TARGETS:
        known.document.report(place, f"there are {len(said.targets)} targets", f"at most {MAX_TARGETS} are possible")
        return
    seen: dict[str, int] = {}
    for index, each in enumerate(said.targets):
        target = _make_target(name, said, each, known, (*place, index))
        if target is None:
            continue
        first = seen.setdefault(target.id, index)
        if first != index:
            hint = "give one of them more weight instead, or another provider"
            known.document.report((*place, index), f"{target.id} is target {first + 1} already", hint)
        yield target


def _make_target(
    name: str, model: ModelFile, said: str | TargetFile, known: _Known, place: Place
) -> ModelTarget | None:
    if isinstance(said, str):
        provider_name, slash, model_name = said.partition("/")
        said = TargetFile(provider_name, model=model_name if slash else None)
    provider = _find_provider(said.provider, known, place)
    upstream_name = _upstream_name(name, said.model, known.document, place)
    _check_target(said, known.document, place)
    if provider is None or upstream_name is None:
        return None
    return ModelTarget(
        id=f"{provider.name}/{upstream_name or '*'}",
        provider=provider,
        model=upstream_name,
        weight=said.weight,
        price=None if said.price is None else make_price(said.price),
        first_byte_s=said.first_byte_s or model.first_byte_s or provider.first_byte_s,
        idle_s=said.idle_s or model.idle_s or provider.idle_s,
        total_s=said.total_s or model.total_s or provider.total_s,
        max_tokens=said.max_tokens,
        most_tokens=said.most_tokens,
        cache_markers=said.cache_markers or "",
        json_output=said.json_output or "format",
        thinking=said.thinking or "",
        version=said.version or provider.version,
        parameters=tuple(said.parameters.items()),
    )


def _find_provider(name: str, known: _Known, place: Place) -> Provider | None:
    provider = known.providers.get(name)
    if provider is None and name not in known.names:  # else its own problem has been told
        choices = ", ".join(known.names[:10])
        hint = resembling(known.document, name, known.names) or f"known here: {choices}; or write provider/model"
        known.document.report(place, f"there is no provider {name[:100]!r}", hint)
    return provider


def _upstream_name(name: str, said: str | None, document: Document, place: Place) -> str | None:
    """What the provider calls the model; empty for what the caller calls it. ``None`` if it is wrong."""
    if said is None or said == "*":
        if said and not name.endswith("*"):
            document.report(place, "'*' stands for the caller's name", "only for a model whose name ends in '*'")
            return None
        return "" if name.endswith("*") else name
    if "*" in said:
        document.report(place, "a target is one model", "'*' alone stands for the name that the caller gave")
    elif _NAME.fullmatch(said):
        return said
    else:
        document.report(place, "this cannot be the name of a model", _NAME_HINT)
    return None


def _check_target(said: TargetFile, document: Document, place: Place) -> None:
    if said.version and not _VERSION.fullmatch(said.version):
        document.report((*place, "version"), "expected 1 to 64 letters, digits and ._-", "such as 2024-10-21")
    if said.most_tokens and said.max_tokens > said.most_tokens:
        message = f"{said.max_tokens} is more than most_tokens, {said.most_tokens}"
        document.report((*place, "max_tokens"), message, "most_tokens is the longest answer that the model gives")
    for name, value in said.parameters.items():
        if name in _CALLERS_OWN or not name:
            document.report((*place, "parameters", name), "this is the caller's to say", "leave it out")
        elif not _is_json(name, value):
            document.report((*place, "parameters", name), "this cannot be sent as JSON", "text must be Unicode")


def _is_json(name: str, value: Any) -> bool:
    try:
        orjson.dumps({name: value})
    except TypeError:
        return False
    return not (isinstance(value, float) and not math.isfinite(value))
