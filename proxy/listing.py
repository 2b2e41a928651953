"""``GET /v1/models`` and ``GET /v1/models/{id}`` as this proxy answers them: what the caller may name here, in the
dialect of the caller's SDK.

A name may be used if the catalog knows it (by itself, as an alias, as a virtual model, or under a name that ends in
``*``), or if the provider of the caller's path lists it and the catalog has nothing to say about it: then the request
passes through to that provider. A virtual key that is limited to some models sees those alone. The operator's names
come first, each name comes once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from proxy.access.permission import may_use_model
from proxy.clock import Clock
from proxy.config.catalog import Catalog, Provider
from proxy.config.keys import KeyRecord
from proxy.config.models import Model, Models
from proxy.config.principal import Principal
from proxy.config.tiers import Tiered
from proxy.errors import Kind, ProxyError
from proxy.model_lists import Lifetimes, ProviderList, ProviderLists
from proxy.protocol.answer import AnswerHead
from proxy.protocol.message import HeaderList
from proxy.protocol.model_list import ModelEntry, write_list, write_one
from proxy.protocol.routes import Dialect, Located

LEFT_OUT: Final = b"x-sameflight-left-out"
"""Names the providers whose lists are missing in the answer."""
MAX_MERGED: Final = 16
"""Of merged lists, which the pages of an answer are cut from."""
MAX_KEPT: Final = 256
MAX_KEPT_BYTES: Final = 16 * 1024 * 1024
"""Of answers that were written once and are sent again."""

_MODEL: Final = "/models/"
_NOT_VIRTUAL: Final[Mapping[str, Tiered]] = MappingProxyType({})
_MOST_NAMED_CHARS: Final = 200


class Listed(NamedTuple):
    """A whole answer."""

    head: AnswerHead
    body: bytes


class _Asked(NamedTuple):
    """Everything that an answer depends on, besides the providers' lists."""

    catalog: Catalog
    record: KeyRecord | None
    provider: Provider
    """Of the caller's path: where names that the catalog does not know go."""
    dialect: Dialect
    name: str
    """The one model that is asked for; empty for the list."""
    query: str


class _Source(NamedTuple):
    """One provider's part in an answer."""

    held: ProviderList
    entries: dict[str, ModelEntry] | None
    """``None``: not to be had."""


def answers_locally(catalog: Catalog, principal: Principal) -> bool:
    """Whether the proxy has something to say about what this caller may use: it brought no credential of a provider,
    and there are models of the operator's or the key is limited to some. Else the provider's answer is the answer."""
    if principal.brought:
        return False
    limited = principal.key is not None and bool(principal.key.models)
    return limited or bool(catalog.models) or bool(_virtual(catalog))


class Listing:
    """Answers both routes. One for the process."""

    # Mutable state: _kept, answers used last at the end, at most MAX_KEPT and MAX_KEPT_BYTES, and _merged, what they
    # were written from, at most MAX_MERGED; a key names all that went in, so an outdated one is never found again.
    # _stars belongs to the catalog it names. Counters only grow.
    __slots__ = (
        *("_clock", "_kept", "_kept_bytes", "_merged", "_stars"),
        *("answered", "left_out", "lists", "passed", "stale_used", "waited"),
    )

    def __init__(self, clock: Clock, lists: ProviderLists) -> None:
        self._clock = clock
        self.lists = lists
        self._kept: OrderedDict[tuple[Any, ...], Listed] = OrderedDict()
        self._kept_bytes = 0
        self._merged: OrderedDict[tuple[Any, ...], list[ModelEntry]] = OrderedDict()
        self._stars: tuple[Catalog | None, dict[str, Provider]] = None, {}
        self.answered = 0
        self.waited = 0
        """Answers for which a list had to be fetched first."""
        self.stale_used = 0
        """Lists that were used although they were no longer fresh."""
        self.left_out = 0
        """Lists that an answer had to do without."""
        self.passed = 0
        """Requests handed back, for the provider to answer."""

    # -- the two ways in ----------------------------------------------------------------------------------------

    def look(
        self, catalog: Catalog, principal: Principal, located: Located, query: str = "", *, renew: bool = False
    ) -> Listed | None:
        """The answer, if all it takes is in memory; ``None``: `wait` for it. ``located`` is of the route ``models``
        or ``model``; ``renew``: the caller does not want what is kept.

        Raises ``ProxyError``: ``NOT_FOUND`` for a model that does not exist for the caller, ``BAD_REQUEST`` for a
        page that cannot be.
        """
        asked = _read(catalog, principal, located, query)
        now, lifetimes = self._clock.now(), _lifetimes(catalog)
        helds = self._helds(asked)
        if not all(self.lists.is_settled(held, lifetimes, now) for held in helds):
            return None
        if renew and not all(now < held.not_before for held in helds):
            return None
        for held in helds:
            self.lists.renew_if_stale(held, lifetimes, now)
        return self._answer(asked, helds, lifetimes, now)

    async def wait(
        self, catalog: Catalog, principal: Principal, located: Located, query: str = "", *, renew: bool = False
    ) -> Listed | None:
        """The answer, once the missing lists were asked for. ``None``: let the provider of the caller's path answer,
        as if there were no listing.

        Raises ``ProxyError`` as `look` does, and what a provider's list failed with where there is nothing else to
        tell. Whoever is cancelled here ends no fetch: others may wait for it.
        """
        asked = _read(catalog, principal, located, query)
        since, lifetimes = self._clock.now(), _lifetimes(catalog)
        helds = self._helds(asked)
        tasks = [
            self.lists.begin(held)
            for held in helds
            if since >= held.not_before and (renew or not self.lists.is_settled(held, lifetimes, since))
        ]
        if tasks:
            self.waited += 1
            await asyncio.wait(tasks)
        listed = self._answer(asked, helds, lifetimes, since)
        self.passed += listed is None
        return listed

    def _helds(self, asked: _Asked) -> list[ProviderList]:
        """The lists that hold names which may be used: of the provider of the caller's path, if there is a key for
        it, and of those that answer under the name they are asked by (``*``)."""
        catalog, stars = self._stars
        if catalog is not asked.catalog:
            stars = _starred(asked.catalog)
            self._stars = asked.catalog, stars
        own = asked.provider
        needed = {own.name: own} | stars if own.api_key else stars
        return [self.lists.of(provider) for provider in needed.values()]

    # -- the answer ---------------------------------------------------------------------------------------------

    def _answer(
        self, asked: _Asked, helds: list[ProviderList], lifetimes: Lifetimes, since: float
    ) -> Listed | None:
        now = self._clock.now()
        sources = [_Source(held, self.lists.entries_of(held, lifetimes, now, since)) for held in helds]
        listed = self._write_one(asked, sources) if asked.name else self._write_list(asked, sources)
        if listed is not None:
            self.answered += 1
            self.left_out += sum(source.entries is None for source in sources)
            self.stale_used += sum(
                source.entries is not None and now - source.held.fetched_at > lifetimes.fresh_s > 0
                for source in sources
            )
        return listed

    def _write_list(self, asked: _Asked, sources: list[_Source]) -> Listed | None:
        made_of = _made_of(asked, sources)
        key = asked.dialect, asked.query, made_of
        listed = self._kept.get(key)
        if listed is not None:
            self._kept.move_to_end(key)
            return listed
        entries = self._merge(asked, sources, made_of)
        missing = [source.held for source in sources if source.entries is None]
        if missing and not entries:
            _check_passable(asked, missing)
            return None
        body = write_list(entries, asked.dialect, asked.query)
        listed = Listed(_head(body, missing), body)
        self._keep(key, listed)
        return listed

    def _merge(self, asked: _Asked, sources: list[_Source], made_of: tuple[Any, ...]) -> list[ModelEntry]:
        entries = self._merged.get(made_of)
        if entries is None:
            entries = self._merged[made_of] = list(_merge(asked, sources))
            if len(self._merged) > MAX_MERGED:
                self._merged.popitem(last=False)
        else:
            self._merged.move_to_end(made_of)
        return entries

    def _keep(self, key: tuple[Any, ...], listed: Listed) -> None:
        self._kept[key] = listed
        self._kept_bytes += len(listed.body)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= len(gone.body)

    def _write_one(self, asked: _Asked, sources: list[_Source]) -> Listed | None:
        entry = _find(asked, sources)
        if entry is not None:
            body = write_one(entry, asked.dialect)
            return Listed(_head(body, []), body)
        missing = [source.held for source in sources if source.entries is None]
        if _may_use(asked, asked.name):
            if missing:
                _check_passable(asked, missing)
                return None
            if asked.catalog.models.find(asked.catalog.models.resolve(asked.name)) is None and asked.provider.api_key:
                return None  # vendors know more names than they list
        named = asked.name[:_MOST_NAMED_CHARS]
        raise ProxyError(Kind.NOT_FOUND, f"The model '{named}' does not exist, or this key may not use it.")

    def describe(self) -> dict[str, Any]:
        """What is kept, and the counts."""
        names = ("answered", "waited", "stale_used", "left_out", "passed")
        return {
            "lists": self.lists.describe(),
            "kept": len(self._kept),
            "kept_bytes": self._kept_bytes,
            "counts": {name: getattr(self, name) for name in names},
        }


# -- what is asked ------------------------------------------------------------------------------------------------


def _read(catalog: Catalog, principal: Principal, located: Located, query: str) -> _Asked:
    _, _, name = located.path.partition(_MODEL)
    dialect = located.dialect
    paged = query if dialect is Dialect.ANTHROPIC and not name else ""
    return _Asked(catalog, principal.key, catalog.providers[located.provider], dialect, unquote(name), paged)


def _lifetimes(catalog: Catalog) -> Lifetimes:
    rules = catalog.rules("models")
    return Lifetimes(rules.ttl_s, rules.stale_while_revalidate_s, rules.stale_if_error_s)


def _starred(catalog: Catalog) -> dict[str, Provider]:
    found: dict[str, Provider] = {}
    for _, model in catalog.models.patterns:
        for target in model.targets:
            if not target.model:
                found[target.provider.name] = target.provider
    return found


def _made_of(asked: _Asked, sources: list[_Source]) -> tuple[Any, ...]:
    """Everything that the merged entries depend on."""
    versions = tuple((source.held.version, source.entries is None) for source in sources)
    names = tuple(source.held.provider.name for source in sources)
    limited = asked.record.models if asked.record is not None else ()
    return asked.catalog.generation, asked.catalog.digest, asked.provider.name, limited, names, versions


def _may_use(asked: _Asked, name: str) -> bool:
    """As ``permission.allow``: an alias may be used by whoever may use what it stands for, a virtual model by whoever
    may use all that may answer for it."""
    record = asked.record
    if record is None or may_use_model(record, name):
        return True
    tiered = _virtual(asked.catalog).get(name)
    if tiered is not None and (
        may_use_model(record, tiered.name) or all(may_use_model(record, model) for model in tiered.models)
    ):
        return True
    return may_use_model(record, asked.catalog.models.resolve(name))


def _virtual(catalog: Catalog) -> Mapping[str, Tiered]:
    """Models that stand for others by what is asked, by all their names."""
    return catalog.savings.tiers if catalog.savings is not None else _NOT_VIRTUAL


# -- what there is ------------------------------------------------------------------------------------------------


def _merge(asked: _Asked, sources: list[_Source]) -> Iterator[ModelEntry]:
    """The operator's names in the order of the file, then the aliases, then the providers' own."""
    models = asked.catalog.models
    find = _make_finder(models)
    told = set()
    for name in (*models.by_name, *models.aliases, *_virtual(asked.catalog)):
        if name not in told and _may_use(asked, name):
            told.add(name)
            yield _configured(asked, name, sources)
    for source in sources:
        for name, entry in (source.entries or {}).items():
            if name not in told and _is_reachable(asked, find(name), source.held) and _may_use(asked, name):
                told.add(name)
                yield entry


def _make_finder(models: Models) -> Callable[[str], Model | None]:
    """As ``Models.find`` for names that end in ``*``, for many names at once: a provider may list ten thousand, and
    the catalog a thousand of those."""
    by_prefix = dict(models.patterns)
    lengths = sorted({len(prefix) for prefix in by_prefix}, reverse=True)

    def find(name: str) -> Model | None:
        for length in lengths:
            model = by_prefix.get(name[:length])
            if model is not None:
                return model
        return None

    return find


def _is_reachable(asked: _Asked, model: Model | None, held: ProviderList) -> bool:
    """Whether a name that a provider lists gets an answer: from that provider, or from a model of another name.
    ``model`` is what the catalog has for the name."""
    if model is None:
        return _passes(asked, held)
    return any(target.model or target.provider.name == held.provider.name for target in model.targets)


def _passes(asked: _Asked, held: ProviderList) -> bool:
    """Whether a name that the catalog does not know gets to the provider of this list, and with a key."""
    return held.provider.name == asked.provider.name and bool(asked.provider.api_key)


def _find(asked: _Asked, sources: list[_Source]) -> ModelEntry | None:
    """The one model, by the same rules."""
    name, models = asked.name, asked.catalog.models
    if not _may_use(asked, name):
        return None
    if name in models.by_name or name in models.aliases or name in _virtual(asked.catalog):
        return _configured(asked, name, sources)
    model = models.find(name)
    for source in sources:
        entry = (source.entries or {}).get(name)
        if entry is not None and _is_reachable(asked, model, source.held):
            return entry
    if model is not None and any(target.model for target in model.targets):
        return _made_up(name, model)  # answered by a model of another name, whatever it is called
    return None


def _configured(asked: _Asked, name: str, sources: list[_Source]) -> ModelEntry:
    """A name of the operator's, with what is known of the first model that stands behind it."""
    models = asked.catalog.models
    tiered = _virtual(asked.catalog).get(name)
    meant = models.resolve(name) if tiered is None or not tiered.virtual else tiered.baseline
    model = models.find(meant)
    provider, behind = asked.provider, meant
    if model is not None:
        provider, behind = model.targets[0].provider, model.targets[0].model or meant
    for source in sources:
        if source.held.provider == provider and source.entries is not None and behind in source.entries:
            return source.entries[behind].renamed(name, model.description if model is not None else "")
    return _made_up(name, model)


def _made_up(name: str, model: Model | None) -> ModelEntry:
    if model is None:
        return ModelEntry(name, owned_by="sameflight")
    return ModelEntry(name, owned_by=model.targets[0].provider.name, description=model.description)


def _head(body: bytes, missing: list[ProviderList]) -> AnswerHead:
    headers: HeaderList = [(b"content-type", b"application/json")]
    if missing:
        names = ", ".join(held.provider.name for held in missing)
        headers.append((LEFT_OUT, names.encode("ascii", "replace")))
    return AnswerHead(200, headers, length=len(body))


def _check_passable(asked: _Asked, missing: list[ProviderList]) -> None:
    """There is nothing to tell. The provider may answer itself, but not to a key that must not see everything: for
    that one this raises what a list failed with."""
    limited = asked.record is not None and bool(asked.record.models)
    if limited or not any(_passes(asked, held) for held in missing):
        error = missing[-1].error or ProxyError(Kind.DRAINING, "The proxy is shutting down.")
        raise error.with_traceback(None)
