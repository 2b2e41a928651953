"""The shape of the catalog file, as msgspec structs; ``json_schema`` is what editors check it with.

Everything is optional: what the file leaves out comes from the settings.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.config.cache_class_file import CacheClassesFile
from proxy.config.flag_file import FlagFile, FlagName
from proxy.config.guard_file import GuardsFile
from proxy.config.pattern_file import PatternsFile
from proxy.config.pruning_file import PruningFile, SlimmingFile
from proxy.config.tier_file import TiersFile
from proxy.protocol import routes

ROUTE_NAMES: Final = frozenset(
    {choice.usual.route.name for choice in routes._TABLE.values()}
    | {route.name for route in routes._BY_ROOT.values()}
    | {routes._MODEL.name, routes._BATCHES.name, routes._OTHER.name}
)

MAX_PROVIDERS: Final = 1_000
MAX_MODELS: Final = 10_000
MAX_ALIASES: Final = 10_000
MAX_TARGETS: Final = 64
MAX_KEYS: Final = 100

Share = Literal["off", "pure", "retries", "auto", "all"]
LeaveName = Literal["cancel", "linger", "finish"]
# The dialects that exist: the keys of `providers.kinds.KINDS`, which lies in a higher layer.
Kind = Literal["openai", "anthropic", "mistral", "azure", "compatible", "gemini", "responses"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
Strategy = Literal["ordered", "round_robin", "weighted", "least_in_flight", "lowest_latency", "cheapest", "sticky"]
Wait = Annotated[float, Meta(ge=0, le=31_536_000, description="Seconds.")]
Patience = Annotated[float, Meta(gt=0, le=86_400, description="Seconds.")]
ShortWait = Annotated[float, Meta(ge=0, le=86_400, description="Seconds.")]
Usd = Annotated[float, Meta(ge=0, le=1_000_000, description="US dollars for a million tokens.")]
Url = Annotated[str, Meta(description="Base URL of the API, without /v1.")]
Key = Annotated[str, Meta(description="Credential, best as a reference: ${OPENAI_API_KEY}.")]
SecretFile = Annotated[str, Meta(description="File that holds the credential; relative to the catalog's folder.")]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Tokens = Annotated[int, Meta(ge=0, le=100_000_000, description="Tokens.")]


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


class KeyFile(Struct, forbid_unknown_fields=True, frozen=True):
    """One of several keys of a provider."""

    name: str = ""
    key: Key | UnsetType | None = UNSET
    """``None``: the reference stands for nothing, and the entry counts for nothing."""
    file: SecretFile | None = None


class ProviderFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Where a provider is, the keys used for callers without one of their own, and what it can bear."""

    kind: Kind | None = None
    base_url: Url | None = None
    region: str | None = None
    api_key: Key | None = None
    api_key_file: SecretFile | None = None
    api_keys: Annotated[list[str | KeyFile | None], Meta(max_length=MAX_KEYS)] | None = None
    version: str | None = None
    first_byte_s: Patience | None = None
    idle_s: Patience | None = None
    total_s: Patience | None = None
    max_in_flight: Count | None = None
    max_queue: Count | None = None
    queue_s: ShortWait | None = None
    keep_warm: Annotated[int, Meta(ge=0, le=1_000, description="Connections.")] | None = None
    ping_s: ShortWait | None = None
    ping_path: str | None = None


class PriceFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What a model costs."""

    input: Usd
    output: Usd = 0.0
    cached_input: Usd | None = None
    cache_write: Usd | None = None


class TargetFile(Struct, forbid_unknown_fields=True, frozen=True):
    """One model at one provider."""

    provider: str
    model: str | None = None
    weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    price: PriceFile | None = None
    first_byte_s: Patience | None = None
    idle_s: Patience | None = None
    total_s: Patience | None = None
    max_tokens: Tokens = 0
    most_tokens: Tokens = 0
    cache_markers: Literal["breakpoint", "cache_control"] | None = None
    json_output: Literal["format", "tool"] | None = None
    thinking: Literal["adaptive", "budget", "off"] | None = None
    version: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class HedgingFile(Struct, forbid_unknown_fields=True, frozen=True):
    """A second call where the first is slow."""

    after_s: ShortWait = 0.0
    most_share: Annotated[float, Meta(gt=0, le=1)] = 0.02


class BatchingFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Concurrent embedding requests become one call."""

    most_inputs: Annotated[int, Meta(ge=2, le=2_048)] = 64
    window_ms: Annotated[float, Meta(gt=0, le=1_000, description="Milliseconds.")] = 5.0


TargetsFile = Annotated[
    list[str | TargetFile],
    Meta(min_length=1, max_length=MAX_TARGETS, description="Each as a mapping or as the text provider/model."),
]


class ModelFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What callers may name, and who answers."""

    targets: TargetsFile
    strategy: Strategy = "ordered"
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    retry_unsafe: bool = True
    hedging: HedgingFile | None = None
    batching: BatchingFile | None = None
    first_byte_s: Patience | None = None
    idle_s: Patience | None = None
    total_s: Patience | None = None
    description: Annotated[str, Meta(max_length=1_000)] = ""


RouteName = Annotated[str, Meta(extra_json_schema={"enum": sorted(ROUTE_NAMES)})]
ProviderName = Annotated[str, Meta(description="Letters, digits, _.-; openai, anthropic, mistral always exist.")]
PublicName = Annotated[str, Meta(description="What callers ask for; may end in * for all names that begin so.")]


class CatalogFile(Struct, forbid_unknown_fields=True, frozen=True):
    """The whole file."""

    providers: dict[ProviderName, ProviderFile] = msgspec.field(default_factory=dict)
    models: dict[PublicName, ModelFile] = msgspec.field(default_factory=dict)
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    routes: dict[RouteName, RouteFile] = msgspec.field(default_factory=dict)
    prices: dict[str, PriceFile] = msgspec.field(default_factory=dict)
    placeholder_keys: list[str] | None = None
    patterns: PatternsFile | None = None
    tiers: TiersFile = msgspec.field(default_factory=dict)
    cache_classes: CacheClassesFile | None = None
    pruning: PruningFile | None = None
    slimming: SlimmingFile | None = None
    flags: dict[FlagName, FlagFile] = msgspec.field(default_factory=dict)
    guards: GuardsFile = msgspec.field(default_factory=dict)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    schema = msgspec.json.schema(CatalogFile)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Sameflight catalog"
    return schema
