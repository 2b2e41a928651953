"""Providers: where they are, which dialect they speak, their keys, and what they can bear.

``openai``, ``anthropic`` and ``mistral`` always exist, from the settings; the catalog file changes them and adds
others of any name. Whatever is wrong is reported to the document, with its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from msgspec import UNSET

from proxy.config.convert import resembling
from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.schema import KINDS, MAX_KEYS, MAX_PROVIDERS, KeyFile, ProviderFile
from proxy.config.secret_file import look_at, read_key_file
from proxy.config.settings import Settings
from proxy.config.values import BaseUrl, parse_base_url, parse_key

T = TypeVar("T")

PROVIDERS: Final = ("openai", "anthropic", "mistral")
"""Those that always exist; the only ones that a path or a mount can name."""

REGIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "mistral": {
        "global": "https://api.mistral.ai",
        "eu": "https://api.eu.mistral.ai",
        "us": "https://api.us.mistral.ai",
    },
    "openai": {
        "global": "https://api.openai.com",
        **{region: f"https://{region}.api.openai.com" for region in ("us", "eu", "ae", "au", "in", "jp")},
    },
}
"""Base URLs of the vendors' regional servers, by kind and region."""

DEFAULT_QUEUE: Final = 1_000
DEFAULT_QUEUE_S: Final = 10.0
DEFAULT_PING_PATH: Final = "/v1/models"

_GEMINI: Final = "https://generativelanguage.googleapis.com"
# Kinds that are served from a public URL without further ado → the setting that says where.
_UPSTREAM_OF_KIND: Final = {"openai": "openai", "responses": "openai", "anthropic": "anthropic", "mistral": "mistral"}
# What a kind's dialect puts in front of its paths, apart from the /v1 that every base URL loses.
_TAKEN_OFF: Final = {"gemini": "/v1beta", "azure": "/openai"}
# A caller's own request goes to a built-in provider as it is, so only a kind that reads it the same way will do.
_KINDS_OF_BUILT_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "openai": ("openai", "compatible"),
    "anthropic": ("anthropic",),
    "mistral": ("mistral",),
}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAME_HINT: Final = "a letter or digit, then up to 63 letters, digits and _.-"
_VERSION: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PING_PATH: Final = re.compile(r"/[!-\"$-~]{0,511}")


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """One of the keys that the proxy has for a provider."""

    name: str
    """For people and metrics; no secret. Unique within the provider; without one, ``key1``, ``key2`` …"""
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Provider:
    """Where a provider is, its keys, and what it can bear. Times in seconds; 0: what the route says."""

    name: str
    scheme: str
    host: str
    port: int
    base_path: str
    """Prefix of every path, without a trailing slash and without what the dialect adds; usually empty."""
    api_key: str = field(default="", repr=False)
    """The first of ``keys``; empty for none."""
    kind: str = ""
    """The dialect, a key of ``providers.kinds.KINDS``; left empty: that of its name."""
    keys: tuple[ProviderKey, ...] = ()
    version: str = ""
    """``anthropic-version`` or Azure's ``api-version``; empty: the dialect's default."""
    first_byte_s: float = 0.0
    idle_s: float = 0.0
    total_s: float = 0.0
    max_in_flight: int = 0
    """Calls of this process to each of its models at a time; 0: no bound but the adaptive one."""
    max_queue: int = DEFAULT_QUEUE
    """Calls that may wait for one of those places; 0: none."""
    queue_s: float = DEFAULT_QUEUE_S
    """Longest wait for a place."""
    keep_warm: int = 0
    """Idle connections that are kept open."""
    ping_s: float = 0.0
    """A request to ``ping_path`` is made this often, for hosts that sleep; 0: none."""
    ping_path: str = DEFAULT_PING_PATH
    """Behind ``base_path``."""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.name if self.name in KINDS else "compatible")
        if self.keys:
            object.__setattr__(self, "api_key", self.keys[0].value)
        elif self.api_key:
            object.__setattr__(self, "keys", (ProviderKey("key1", self.api_key),))

    @property
    def origin(self) -> str:
        """Scheme, host and port, the port only where it is not the usual one."""
        return str(BaseUrl(self.scheme, self.host, self.port, ""))


def make_providers(said: Mapping[str, ProviderFile], settings: Settings, document: Document) -> dict[str, Provider]:
    """The built-in providers and those of the file, without the ones that cannot be made; those are reported."""
    if len(said) > MAX_PROVIDERS:
        document.report(("providers",), f"there are {len(said)} providers", f"at most {MAX_PROVIDERS} are possible")
        return {}
    providers: dict[str, Provider] = {}
    for name in dict.fromkeys((*PROVIDERS, *said)):
        if ("providers", name) in document.broken:
            continue
        provider = _Making(name, said.get(name, ProviderFile()), settings, document).make()
        if ("providers", name) not in document.broken:
            providers[name] = provider
    return providers


class _Making:
    """One provider being made from what is said about it."""

    __slots__ = ("document", "kind", "name", "place", "said", "settings")

    def __init__(self, name: str, said: ProviderFile, settings: Settings, document: Document) -> None:
        self.name = name
        self.said = said
        self.settings = settings
        self.document = document
        self.place: Place = ("providers", name)
        self.kind = said.kind or (name if name in PROVIDERS else "")

    def make(self) -> Provider:
        said = self.said
        self._check()
        url = self._find_url()
        return Provider(
            self.name,
            url.scheme,
            url.host,
            url.port,
            url.base_path.removesuffix(_TAKEN_OFF.get(self.kind, "")).rstrip("/"),
            kind=self.kind,
            keys=tuple(self._keys()),
            version=said.version or "",
            first_byte_s=said.first_byte_s or 0.0,
            idle_s=said.idle_s or 0.0,
            total_s=said.total_s or 0.0,
            max_in_flight=said.max_in_flight or 0,
            max_queue=_or(said.max_queue, DEFAULT_QUEUE),
            queue_s=_or(said.queue_s, DEFAULT_QUEUE_S),
            keep_warm=said.keep_warm or 0,
            ping_s=said.ping_s or 0.0,
            ping_path=said.ping_path or self._ping_path(),
        )

    def _ping_path(self) -> str:
        """The list of models, which every kind has and nobody is charged for."""
        if self.kind == "gemini":
            return "/v1beta/models"
        if self.kind == "azure":
            return f"/openai/models?api-version={self.said.version}" if self.said.version else "/openai/v1/models"
        return DEFAULT_PING_PATH

    def report(self, key: str, message: str, hint: str = "") -> None:
        self.document.report((*self.place, key) if key else self.place, message, hint)

    def _check(self) -> None:
        said = self.said
        if not _NAME.fullmatch(self.name):
            self.report("", "this cannot be the name of a provider", _NAME_HINT)
        elif not self.kind:
            self._report_no_kind()
        elif self.name in PROVIDERS and self.kind not in _KINDS_OF_BUILT_IN[self.name]:
            hint = f"callers send it requests of their own; give a provider of kind {self.kind} another name"
            self.report("kind", f"'{self.name}' is of kind {' or '.join(_KINDS_OF_BUILT_IN[self.name])}", hint)
        if said.version and not _VERSION.fullmatch(said.version):
            self.report("version", "expected 1 to 64 letters, digits and ._-", "such as 2024-10-21")
        if said.ping_path and not _PING_PATH.fullmatch(said.ping_path):
            self.report("ping_path", "expected a path of printable ASCII characters", "such as /health")
        if said.ping_s and said.ping_s < 1:
            self.report("ping_s", "expected 0 or at least 1 second", "0 makes no such requests")

    def _report_no_kind(self) -> None:
        hint = resembling(self.document, self.name, PROVIDERS)
        if hint:
            self.report("", "there is no such key", hint)
        else:
            self.report("", "'kind' is missing", f"one of {', '.join(KINDS)}")

    def _find_url(self) -> BaseUrl:
        said = self.said
        if said.region:
            return self._find_region(said.region)
        if said.base_url:
            try:
                return parse_base_url(said.base_url)
            except ValueError as error:
                self.report("base_url", f"expected {error}")
        elif self.kind == "gemini":
            return parse_base_url(_GEMINI)
        elif self.kind not in _UPSTREAM_OF_KIND and self.kind:
            self.report("", "'base_url' is missing", f"a provider of kind {self.kind} has no public one")
        upstream = _UPSTREAM_OF_KIND.get(self.name if self.name in PROVIDERS else self.kind, "openai")
        return parse_base_url(getattr(self.settings, f"{upstream}_upstream"))

    def _find_region(self, region: str) -> BaseUrl:
        regions = REGIONS.get("openai" if self.kind == "responses" else self.kind, {})
        if self.said.base_url:
            self.report("region", "a region and a base URL say the same", "leave one of them out")
        elif not regions:
            where = " and ".join(REGIONS)
            self.report("region", f"kind {self.kind} has no regions", f"only {where} have; use base_url")
        elif region.lower() not in regions:
            hint = resembling(self.document, region.lower(), tuple(regions))
            self.report("region", f"expected one of {', '.join(regions)}", hint or "or give the base_url")
        return parse_base_url(regions.get(region.lower(), _GEMINI))

    # -- keys -------------------------------------------------------------------------------------------------

    def _keys(self) -> Iterator[ProviderKey]:
        said = self.said
        ways = [way for way in ("api_key", "api_key_file", "api_keys") if getattr(said, way) is not None]
        if len(ways) > 1:
            self.report(ways[1], f"the key is given by {ways[0]} already", "several keys go into api_keys")
        elif said.api_keys is not None:
            yield from self._several(said.api_keys)
        else:
            if said.api_key_file is not None:
                key = self._from_file(said.api_key_file, ("api_key_file",))
            elif said.api_key is not None:
                key = self._from_text(said.api_key, ("api_key",))
            else:
                key = getattr(self.settings, f"{self.name}_api_key") if self.name in PROVIDERS else ""
            if key:
                yield ProviderKey("key1", key)

    def _several(self, entries: list[str | KeyFile | None]) -> Iterator[ProviderKey]:
        if len(entries) > MAX_KEYS:
            self.report("api_keys", f"there are {len(entries)} keys", f"at most {MAX_KEYS} are possible")
            return
        places: dict[str, int] = {}
        names: dict[str, int] = {}
        for index, entry in enumerate(entries):
            key = self._one_of_several(entry, ("api_keys", index))
            name = (entry.name if isinstance(entry, KeyFile) else "") or f"key{index + 1}"
            if not key:
                continue
            place = (*self.place, "api_keys", index)
            if places.setdefault(key, index) != index:
                self.document.report(place, f"the key is entry {places[key] + 1} as well", "leave one of them out")
            elif names.setdefault(name, index) != index:
                self.document.report(place, f"entry {names[name] + 1} has this name as well", "give it another name")
            else:
                yield ProviderKey(name, key)

    def _one_of_several(self, entry: str | KeyFile | None, at: Place) -> str:
        """The key, or an empty text for an entry that counts for nothing or is wrong."""
        if not isinstance(entry, KeyFile):
            return self._from_text(entry or "", at)
        if entry.name and not _NAME.fullmatch(entry.name):
            self.document.report((*self.place, *at, "name"), "this cannot be the name of a key", _NAME_HINT)
        if (entry.key is UNSET) == (entry.file is None):
            hint = "give either key or file"
            self.document.report((*self.place, *at), "'key' is missing" if entry.file is None else "two keys", hint)
        elif entry.file is not None:
            return self._from_file(entry.file, (*at, "file"))
        elif isinstance(entry.key, str):
            return self._from_text(entry.key, (*at, "key"))
        return ""

    def _from_text(self, text: str, at: Place) -> str:
        try:
            return parse_key(text)
        except ValueError as error:
            self.document.report((*self.place, *at), f"expected {error}")
            return ""

    def _from_file(self, name: str, at: Place) -> str:
        """The key in a file. Its stamp is taken before it is read, so that a change in between is noticed later."""
        path = Path(self.document.file).parent / name
        try:
            self.document.stamps[str(path)] = look_at(path)
            return read_key_file(path)
        except ValueError as error:
            hint = "a file that holds the key and nothing else; looked for in the catalog file's folder"
            self.document.report((*self.place, *at), f"the file {error}", hint)
            return ""


def _or(said: T | None, base: T) -> T:
    return base if said is None else said
