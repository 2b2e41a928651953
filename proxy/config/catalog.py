"""The catalog: providers, models, rules of routes and prices, as one immutable snapshot with a generation number.

It is made from the settings and, where there is one, from a YAML file, which wins over the settings in what both can
say. An exchange keeps the snapshot it began with; a reload makes a new one (see `watch`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import orjson

from proxy.config.advice import advise
from proxy.config.convert import convert, resembling
from proxy.config.document import CatalogError, Document, Problem, Stamp
from proxy.config.feature_flags import NO_FLAGS, Flags
from proxy.config.model_file import make_models, make_price
from proxy.config.models import NO_MODELS, Model, Models, ModelTarget
from proxy.config.price_file import read_price_file
from proxy.config.prices import Price, Prices, make_prices
from proxy.config.provider import PROVIDERS, Provider, ProviderKey, make_providers
from proxy.config.savings import Savings
from proxy.config.savings_file import make_flags, make_savings
from proxy.config.schema import ROUTE_NAMES, CacheFile, CatalogFile, RouteFile
from proxy.config.settings import Settings

T = TypeVar("T")

__all__ = [
    "PROVIDERS",
    "Catalog",
    "CatalogError",
    "Price",
    "Problem",
    "Provider",
    "ProviderKey",
    "RouteRules",
    "default_catalog",
    "load_catalog",
    "make_catalog",
    "read_catalog",
]


@dataclass(frozen=True, slots=True)
class RouteRules:
    """How requests of one route are treated. Times in seconds."""

    share: str
    """Sharing profile: ``off``, ``pure``, ``retries``, ``auto`` or ``all``."""
    leave: str | None
    """``cancel``, ``linger`` or ``finish``; ``None``: streams are cancelled, whole answers linger."""
    linger_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    ttl_s: float = 0.0
    """How long answers are cached; 0: not unless the request asks for it."""
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    ask_usage: bool = False
    """Ask for the token counts of streams whose callers did not, and take them out of the answers again."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """One snapshot; nothing in it ever changes."""

    generation: int = field(compare=False)
    """Grows with every reload that changed something; what was cached under an older one is not stored any more."""
    providers: Mapping[str, Provider]
    routes: Mapping[str, RouteRules]
    """Rules of every known route name; see ``rules``."""
    other: RouteRules
    """Rules of routes without a name of their own."""
    prices: Prices
    placeholder_keys: frozenset[bytes]
    """Credentials that mean "use the configured provider key"."""
    digest: bytes = b""
    """8 bytes: of everything here that can change an answer, so that processes with equal files have equal keys."""
    models: Models = NO_MODELS
    savings: Savings | None = None
    """Savings and guards; ``None`` for none."""
    flags: Flags = NO_FLAGS
    """Whether and for whom they are on."""
    warnings: tuple[Problem, ...] = field(default=(), compare=False)
    """What can be used and was hardly meant."""
    stamps: Mapping[str, Stamp | None] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """The files of keys that were read, by path, as they looked before."""

    def rules(self, route: str) -> RouteRules:
        return self.routes.get(route, self.other)

    def provider_key(self, provider: str) -> str:
        """The proxy's own key for a provider, or an empty string."""
        known = self.providers.get(provider)
        return "" if known is None else known.api_key


def default_catalog(settings: Settings) -> Catalog:
    """The catalog without a file. Raises ``CatalogError`` for the file of prices."""
    return make_catalog(CatalogFile(), settings)


def load_catalog(source: str | Path, env: Mapping[str, str], settings: Settings, *, generation: int = 1) -> Catalog:
    """The catalog of a file (a ``Path``) or of YAML text (a ``str``). ``env`` answers ``${NAME}`` references.

    Raises ``CatalogError`` with every problem.
    """
    file, document = read_catalog(source, env)
    return make_catalog(file, settings, document, generation=generation)


def read_catalog(source: str | Path, env: Mapping[str, str]) -> tuple[CatalogFile, Document]:
    """What the file says, for ``make_catalog``; what is wrong with its shape is left out and in the document.

    Raises ``CatalogError`` where nothing can be made of it.
    """
    from proxy.config.yaml_text import MAX_BYTES, read_document  # most sidecars have no file: 14 ms, 1 MB

    name = str(source) if isinstance(source, Path) else "<text>"
    text = _read(source, MAX_BYTES + 1) if isinstance(source, Path) else source
    document = read_document(text, name, env)
    return convert(document, CatalogFile), document


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most_bytes)
    except (OSError, ValueError) as error:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise CatalogError([Problem(os.fspath(path), 1, 1, "", message)]) from None


def make_catalog(
    file: CatalogFile, settings: Settings, document: Document | None = None, *, generation: int = 1
) -> Catalog:
    """Fold what a file says over what the settings say. Raises ``CatalogError`` with every problem of the file, else
    with those of the file of prices.
    """
    document = document or Document("<settings>")
    other = _rules_of_settings(settings)
    routes = _make_routes(file, settings, document)
    providers = make_providers(file.providers, settings, document)
    models = make_models(file, providers, document)
    savings = make_savings(file, models, document)
    flags = make_flags(file, savings, document)
    placeholders = settings.placeholder_keys if file.placeholder_keys is None else file.placeholder_keys
    _check_placeholders(placeholders, document)
    document.check()
    prices = _make_prices(file, settings)
    advise(file, providers, models, prices, document)
    return Catalog(
        generation=generation,
        providers=MappingProxyType(providers),
        routes=MappingProxyType(routes),
        other=other,
        prices=prices,
        placeholder_keys=frozenset(key.encode() for key in placeholders),
        digest=_digest(providers, models, [*sorted(routes.items()), ("", other)], placeholders),
        models=models,
        savings=savings,
        flags=flags,
        warnings=tuple(document.warnings),
        stamps=MappingProxyType(dict(document.stamps)),
    )


def _make_routes(file: CatalogFile, settings: Settings, document: Document) -> dict[str, RouteRules]:
    other = _rules_of_settings(settings)
    cached = _rules_of_settings(settings, models=True)
    bases = {name: cached if name in ("models", "model") else other for name in ROUTE_NAMES}
    said = document.data.get("routes") if isinstance(document.data, dict) else None
    for name in said if isinstance(said, dict) else ():
        if name not in ROUTE_NAMES:
            hint = resembling(document, name, sorted(ROUTE_NAMES))
            document.report(("routes", name), "there is no such route", hint)
    return {name: _fold(base, file.routes.get(name)) for name, base in bases.items()}


def _check_placeholders(placeholders: Sequence[str], document: Document) -> None:
    for index, key in enumerate(placeholders):
        if not key.isprintable():
            hint = "callers send it in a header"
            document.report(("placeholder_keys", index), "expected text without control characters", hint)


def _make_prices(file: CatalogFile, settings: Settings) -> Prices:
    listed = read_price_file(Path(settings.prices_file)) if settings.prices_file else {}
    return make_prices({**listed, **{name: make_price(price) for name, price in file.prices.items()}})


def _digest(
    providers: Mapping[str, Provider],
    models: Models,
    routes: Sequence[tuple[str, RouteRules]],
    placeholders: Iterable[str],
) -> bytes:
    """Of everything that can change an answer's bytes, so that nothing made under one catalog is taken for an answer
    under another.

    Which of a model's targets answers is not part of it: an answer of any of them is an answer of the model. So the
    order, weights and strategy of targets do not count, the set of them and the form of their requests do. Times,
    bounds, attempts and keys decide when and whether there is an answer, prices what it costs. Aliases, descriptions
    and providers without models count for the lists of models. Rules of routes count as a whole: whoever comes under
    new ones does not join a flight that lingers under the old, nor take what they would have kept for less long.
    """
    said = (
        [(name, *_address(providers[name])) for name in sorted(providers)],
        [(model.name, model.description, sorted(map(_form, model.targets))) for model in _in_order(models)],
        sorted(models.aliases.items()),
        routes,
        sorted(placeholders),
    )
    return blake2b(repr(said).encode(), digest_size=8).digest()


def _in_order(models: Models) -> list[Model]:
    return sorted(
        (*models.by_name.values(), *(model for _, model in models.patterns)), key=lambda model: model.name
    )


def _address(provider: Provider) -> tuple[object, ...]:
    return provider.kind, provider.scheme, provider.host, provider.port, provider.base_path, provider.version


def _form(target: ModelTarget) -> str:
    """Where a target's requests go and what makes them look as they do. As text, so that any two can be sorted."""
    parameters = orjson.dumps(dict(target.parameters), option=orjson.OPT_SORT_KEYS)
    options = target.max_tokens, target.most_tokens, target.cache_markers, target.json_output, target.thinking
    return repr((target.id, _address(target.provider), target.model, target.version, options, parameters))


def _rules_of_settings(settings: Settings, *, models: bool = False) -> RouteRules:
    return RouteRules(
        share=settings.share,
        leave=None,
        linger_s=settings.linger_s,
        first_byte_s=settings.first_byte_timeout_s,
        idle_s=settings.idle_timeout_s,
        total_s=settings.total_timeout_s,
        ttl_s=settings.models_fresh_s if models else 0.0,
        stale_while_revalidate_s=settings.models_stale_s if models else 0.0,
        stale_if_error_s=settings.models_stale_if_error_s if models else 0.0,
        ask_usage=settings.ask_usage,
    )


def _fold(base: RouteRules, said: RouteFile | None) -> RouteRules:
    if said is None:
        return base
    cache = said.cache or CacheFile()
    return RouteRules(
        share=_or(said.share, base.share),
        leave=_or(said.leave, base.leave),
        linger_s=_or(said.linger_s, base.linger_s),
        first_byte_s=_or(said.first_byte_s, base.first_byte_s),
        idle_s=_or(said.idle_s, base.idle_s),
        total_s=_or(said.total_s, base.total_s),
        ttl_s=_or(cache.ttl_s, base.ttl_s),
        stale_while_revalidate_s=_or(cache.stale_while_revalidate_s, base.stale_while_revalidate_s),
        stale_if_error_s=_or(cache.stale_if_error_s, base.stale_if_error_s),
        ask_usage=_or(said.ask_usage, base.ask_usage),
    )


def _or(said: T | None, base: T) -> T:
    return base if said is None else said
