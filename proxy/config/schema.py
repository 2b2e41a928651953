"""The shape of the catalog file, as msgspec structs; ``json_schema`` is what editors check it with.

Everything is optional: what the file leaves out comes from the settings.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.protocol import routes

ROUTE_NAMES: Final = frozenset(
    {choice.usual.route.name for choice in routes._TABLE.values()}
    | {route.name for route in routes._BY_ROOT.values()}
    | {routes._MODEL.name, routes._BATCHES.name, routes._OTHER.name}
)

Share = Literal["off", "pure", "retries", "auto", "all"]
LeaveName = Literal["cancel", "linger", "finish"]
Wait = Annotated[float, Meta(ge=0, le=31_536_000, description="Seconds.")]
Patience = Annotated[float, Meta(gt=0, le=86_400, description="Seconds.")]
Usd = Annotated[float, Meta(ge=0, le=1_000_000, description="US dollars for a million tokens.")]
Url = Annotated[str, Meta(description="Base URL of the API, without /v1.")]
Key = Annotated[str, Meta(description="Credential, best as a reference: ${OPENAI_API_KEY}.")]


class CacheFile(Struct, forbid_unknown_fields=True, frozen=True):
    """How long answers of a route are kept for later callers."""

    ttl_s: Wait | None = None
    stale_while_revalidate_s: Wait | None = None
    stale_if_error_s: Wait | None = None


class RouteFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What is different on one route."""

    share: Share | None = None
    leave: LeaveName | None = None
    linger_s: Wait | None = None
    cache: CacheFile | None = None
    first_byte_s: Patience | None = None
    idle_s: Patience | None = None
    total_s: Patience | None = None
    ask_usage: bool | None = None


class ProviderFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Where a provider is and the key used for callers without one of their own."""

    base_url: Url | None = None
    api_key: Key | None = None


class ProvidersFile(Struct, forbid_unknown_fields=True, frozen=True):
    openai: ProviderFile = ProviderFile()
    anthropic: ProviderFile = ProviderFile()
    mistral: ProviderFile = ProviderFile()


class PriceFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What a model costs."""

    input: Usd
    output: Usd = 0.0
    cached_input: Usd | None = None
    cache_write: Usd | None = None


RouteName = Annotated[str, Meta(extra_json_schema={"enum": sorted(ROUTE_NAMES)})]


class CatalogFile(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    providers: ProvidersFile = ProvidersFile()
    routes: dict[RouteName, RouteFile] = msgspec.field(default_factory=dict)
    prices: dict[str, PriceFile] = msgspec.field(default_factory=dict)
    placeholder_keys: list[str] | None = None


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    schema = msgspec.json.schema(CatalogFile)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Sameflight catalog"
    return schema
