"""The catalog: providers, rules of routes and prices, as one immutable snapshot with a generation number.

It is made from the settings and, where there is one, from a YAML file, which wins over the settings in what both can
say. An exchange keeps the snapshot it began with; a reload makes a new one (see `watch`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from proxy.config.convert import convert
from proxy.config.document import MAX_BYTES, CatalogError, Document, Problem, read_document
from proxy.config.price_file import read_price_file
from proxy.config.prices import Price, Prices, make_prices
from proxy.config.schema import ROUTE_NAMES, CacheFile, CatalogFile, PriceFile, ProviderFile, RouteFile
from proxy.config.settings import Settings
from proxy.config.values import did_you_mean, parse_base_url, parse_key

T = TypeVar("T")

PROVIDERS: Final = ("openai", "anthropic", "mistral")

__all__ = [
    "PROVIDERS",
    "Catalog",
    "CatalogError",
    "Price",
    "Problem",
    "Provider",
    "RouteRules",
    "default_catalog",
    "load_catalog",
    "make_catalog",
    "read_catalog_file",
]


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a provider is, and the key that is used for callers without one of their own."""

    name: str
    scheme: str
    host: str
    port: int
    base_path: str
    """Prefix of every path, without a trailing slash and without ``/v1``; usually empty."""
    api_key: str = field(default="", repr=False)
    """Empty for none."""


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

    def rules(self, route: str) -> RouteRules:
        return self.routes.get(route, self.other)

    def provider_key(self, provider: str) -> str:
        """The proxy's own key for a provider, or an empty string."""
        return self.providers[provider].api_key


def default_catalog(settings: Settings) -> Catalog:
    """The catalog without a file. Raises ``CatalogError`` for the file of prices."""
    return make_catalog(CatalogFile(), settings)


def load_catalog(source: str | Path, env: Mapping[str, str], settings: Settings, *, generation: int = 1) -> Catalog:
    """The catalog of a file (a ``Path``) or of YAML text (a ``str``). ``env`` answers ``${NAME}`` references.

    Raises ``CatalogError`` with every problem.
    """
    return make_catalog(read_catalog_file(source, env), settings, generation=generation)


def read_catalog_file(source: str | Path, env: Mapping[str, str]) -> CatalogFile:
    """What the file says, checked. Raises ``CatalogError`` with every problem."""
    name = str(source) if isinstance(source, Path) else "<text>"
    text = _read(source) if isinstance(source, Path) else source
    document = read_document(text, name, env)
    _check_route_names(document)
    _check_providers(document)
    return convert(document, CatalogFile)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise CatalogError([Problem(os.fspath(path), 1, 1, "", message)]) from None


def _check_route_names(document: Document) -> None:
    for name in _mapping_at(document, "routes"):
        if name not in ROUTE_NAMES:
            hint = did_you_mean(name, sorted(ROUTE_NAMES)).strip(" ()")
            document.report(("routes", name), "there is no such route", hint)


def _check_providers(document: Document) -> None:
    """What the shape alone does not tell: whether a URL is one, and whether a key can be sent."""
    parsers: dict[str, Callable[[str], object]] = {"base_url": parse_base_url, "api_key": parse_key}
    for name in _mapping_at(document, "providers"):
        for key, value in _mapping_at(document, "providers", name).items():
            if key in parsers and isinstance(value, str) and value:
                try:
                    parsers[key](value)
                except ValueError as error:
                    document.report(("providers", name, key), f"expected {error}")


def _mapping_at(document: Document, *path: str) -> dict[str, object]:
    """The mapping at a path, empty where there is none."""
    data = document.data
    for step in path:
        data = data.get(step) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def make_catalog(file: CatalogFile, settings: Settings, *, generation: int = 1) -> Catalog:
    """Fold what a checked file says over what the settings say. Raises ``CatalogError`` for the file of prices."""
    other = _rules_of_settings(settings)
    cached = _rules_of_settings(settings, models=True)
    bases = {name: cached if name in ("models", "model") else other for name in ROUTE_NAMES}
    listed = read_price_file(Path(settings.prices_file)) if settings.prices_file else {}
    placeholders = settings.placeholder_keys if file.placeholder_keys is None else file.placeholder_keys
    providers = {name: _make_provider(name, file, settings) for name in PROVIDERS}
    routes = {name: _fold(base, file.routes.get(name)) for name, base in bases.items()}
    # Prices change no answer, and a provider shows no key.
    said = repr((sorted(providers.items()), sorted(routes.items()), other, sorted(placeholders)))
    return Catalog(
        generation=generation,
        providers=MappingProxyType(providers),
        routes=MappingProxyType(routes),
        other=other,
        prices=make_prices({**listed, **{name: _make_price(price) for name, price in file.prices.items()}}),
        placeholder_keys=frozenset(key.encode() for key in placeholders),
        digest=blake2b(said.encode(), digest_size=8).digest(),
    )


def _provider_file(file: CatalogFile, name: str) -> ProviderFile:
    provider = getattr(file.providers, name)
    assert isinstance(provider, ProviderFile)
    return provider


def _make_provider(name: str, file: CatalogFile, settings: Settings) -> Provider:
    said = _provider_file(file, name)
    url = parse_base_url(said.base_url or getattr(settings, f"{name}_upstream"))
    key = getattr(settings, f"{name}_api_key") if said.api_key is None else parse_key(said.api_key)
    return Provider(name, url.scheme, url.host, url.port, url.base_path, key)


def _make_price(price: PriceFile) -> Price:
    return Price(price.input, price.output, price.cached_input, price.cache_write)


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
