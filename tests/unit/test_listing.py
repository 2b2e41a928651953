"""What a caller is told about the models it may use, from the operator's names and the providers' lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from anthropic.pagination import SyncPage as AnthropicPage
from anthropic.types import ModelInfo
from mistralai.client.models import BaseModelCard, ModelList
from openai.pagination import SyncPage as OpenAIPage
from openai.types import Model

from proxy import model_lists
from proxy.config.catalog import Catalog, Provider, load_catalog
from proxy.config.keys import KeyRecord
from proxy.config.principal import Principal
from proxy.config.settings import Settings
from proxy.errors import Kind, ProxyError
from proxy.listing import LEFT_OUT, MAX_KEPT, Listed, Listing, answers_locally
from proxy.mock.models import list_models
from proxy.model_lists import ProviderLists
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import Located, locate
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, run_ticks, wait_until, within

FILE = """
providers:
  openai: {api_key: sk-openai}
  anthropic: {api_key: sk-anthropic}
  mistral: {api_key: sk-mistral}
  local: {kind: compatible, base_url: "http://127.0.0.1:1"}
models:
  fast: {targets: [mistral/mistral-small-latest], description: "the quick one"}
  clever: {targets: [anthropic/claude-opus-4-6, openai/gpt-5]}
  gpt-4o: {targets: [local/qwen]}
aliases:
  gpt-4: fast
  cheap: gpt-4o-mini
"""
STARRED = """
  "local/*": {targets: [local]}
  "claude-*": {targets: [anthropic]}
  "house-*": {targets: [local/qwen]}
"""
CONFIGURED = ["fast", "clever", "gpt-4o", "gpt-4", "cheap"]
OPENAI_NAMES = ["gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "o4-mini", "text-embedding-3-small", "tts-1"]
OPENAI_REST = [name for name in OPENAI_NAMES if name != "gpt-4o"]
CLAUDES = ["claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5"]
MISTRALS = ["mistral-large-latest", "mistral-small-latest", "codestral-latest", "mistral-embed"]


def catalog_of(text: str = FILE, **settings: Any) -> Catalog:
    return load_catalog(text, {}, Settings(**settings))


CATALOG = catalog_of()
STARS = catalog_of(FILE.replace("aliases:", STARRED.strip("\n") + "\naliases:"))
BARE = catalog_of("providers: {openai: {api_key: k}, anthropic: {api_key: k}}")


def key(*models: str) -> KeyRecord:
    return KeyRecord(id="key_1", digest=b"1", name="n", models=models)


def principal(record: KeyRecord | None = None, *, brought: bool = False) -> Principal:
    return Principal(b"s" * 16, "k", [], b"c" * 16, own=brought, brought=brought, key=record)


def at(path: str = "/v1/models", **headers: str) -> Located:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return locate(make_request_head("GET", path, lines))


OPENAI = at()
ANTHROPIC = at(anthropic_version="2023-06-01")
MISTRAL = at("/mistral/v1/models")


class Vendors:
    """The providers' lists, and who asked for them when. ``gate`` holds the answers back."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.gate = Gate("answers", opened=True)
        self.answers: dict[str, Any] = {name: list_models(name).body for name in ("openai", "anthropic", "mistral")}
        names = "local/qwen", "claude-lookalike", "x"
        self.answers["local"] = orjson.dumps({"data": [{"id": name} for name in names]})

    async def fetch(self, provider: Provider, target: str) -> bytes:
        self.asked.append((provider.name, target))
        await self.gate.wait()
        answer = self.answers[provider.name]
        if isinstance(answer, Exception):
            raise answer
        body: bytes = answer(target) if callable(answer) else answer
        return body

    def fail(self, *names: str) -> None:
        for name in names:
            self.answers[name] = ProxyError(Kind.UPSTREAM_UNREACHABLE, "Nobody there.", why="refused")


class Rig:
    def __init__(self, clock: FrozenClock) -> None:
        self.clock = clock
        self.vendors = Vendors()
        self.bugs: list[BaseException] = []
        self.lists = ProviderLists(
            clock, self.vendors.fetch, bug=lambda _, error: self.bugs.append(error), spread=lambda: 0.5
        )
        self.listing = Listing(clock, self.lists)

    async def ask(
        self,
        located: Located = OPENAI,
        record: KeyRecord | None = None,
        catalog: Catalog = CATALOG,
        query: str = "",
        **options: Any,
    ) -> Listed | None:
        """As the pipeline does: at once if it can be."""
        asked = catalog, principal(record), located, query
        listed = self.listing.look(*asked, **options)
        if listed is not None:
            return listed
        return await within(self.listing.wait(*asked, **options), "the lists came")

    async def told(self, *args: Any, **options: Any) -> Any:
        listed = await self.ask(*args, **options)
        assert listed is not None
        assert listed.head.length == len(listed.body)
        assert (b"content-type", b"application/json") in listed.head.shared
        return orjson.loads(listed.body)

    async def names(self, *args: Any, **options: Any) -> list[str]:
        return [model["id"] for model in (await self.told(*args, **options))["data"]]

    async def refused(self, *args: Any, **options: Any) -> ProxyError:
        with pytest.raises(ProxyError) as caught:
            await self.ask(*args, **options)
        return caught.value

    async def settled(self) -> None:
        await wait_until(lambda: not any(each["fetching"] for each in self.lists.describe()), "no list is on its way")


@pytest.fixture
async def rig(frozen_clock: FrozenClock) -> AsyncIterator[Rig]:
    made = Rig(frozen_clock)
    yield made
    await made.lists.close()
    assert made.bugs == []


# -- who is answered here ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catalog", "who", "locally"),
    [
        (CATALOG, principal(), True),
        (CATALOG, principal(key()), True),
        (CATALOG, principal(brought=True), False),
        (BARE, principal(), False),
        (BARE, principal(key()), False),
        (BARE, principal(key("gpt-5")), True),
    ],
)
def test_callers_without_a_credential_are_told_what_the_operator_allows(
    catalog: Catalog, who: Principal, locally: bool
) -> None:
    """Whoever brings a credential is told by the provider, and so is everybody where the operator said nothing."""
    assert answers_locally(catalog, who) is locally


# -- what is listed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("located", "own"), [(OPENAI, OPENAI_REST), (ANTHROPIC, CLAUDES), (MISTRAL, MISTRALS)]
)
async def test_operators_names_come_first_and_then_those_of_the_paths_provider(
    rig: Rig, located: Located, own: list[str]
) -> None:
    """Models in the file's order, aliases, and what passes through to that provider; each name once. Other providers'
    names are not among them: a request with one would go to this provider."""
    assert await rig.names(located) == CONFIGURED + own
    assert [name for name, _ in rig.vendors.asked] == [located.provider]


async def test_names_that_end_in_a_star_bring_what_their_providers_list(rig: Rig) -> None:
    """Those that the star leads to whoever lists them: a request for ``claude-lookalike`` would go elsewhere. A star
    whose target has a name of its own covers whatever anybody lists."""
    rig.vendors.answers["openai"] = orjson.dumps({"data": [{"id": "gpt-5"}, {"id": "house-red"}, {"id": "local/no"}]})
    assert await rig.names(catalog=STARS) == [*CONFIGURED, "gpt-5", "house-red", *CLAUDES, "local/qwen"]
    assert [name for name, _ in rig.vendors.asked] == ["openai", "anthropic", "local"]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (("fast",), ["fast", "gpt-4"]),
        (("gpt-4",), ["gpt-4"]),
        (("gpt-*",), ["gpt-4o", "gpt-4", "cheap", "gpt-4o-mini", "gpt-5", "gpt-5-mini"]),
        (("claude-*",), []),
        (("*",), CONFIGURED + OPENAI_REST),
        ((), CONFIGURED + OPENAI_REST),
    ],
)
async def test_key_sees_the_models_it_may_use_and_no_others(
    rig: Rig, allowed: tuple[str, ...], expected: list[str]
) -> None:
    """An alias may be used by whoever may use what it stands for."""
    assert await rig.names(OPENAI, key(*allowed)) == expected


async def test_limited_key_sees_its_models_without_any_of_the_operators(rig: Rig) -> None:
    """Zero configuration but for the key."""
    assert await rig.names(ANTHROPIC, key("claude-haiku-4-5", "gpt-5"), BARE) == ["claude-haiku-4-5"]


async def test_provider_without_a_key_is_not_asked(rig: Rig) -> None:
    """Nobody could use what it lists."""
    catalog = catalog_of("models: {mine: {targets: [local/m]}}\nproviders: {local: {kind: compatible, base_url: "
                         "'http://127.0.0.1:1'}}")
    assert await rig.names(catalog=catalog) == ["mine"]
    assert rig.vendors.asked == []


async def test_every_sdk_reads_its_list(rig: Rig) -> None:
    """By its typed models, the operator's names included."""
    listed = OpenAIPage[Model].model_validate(await rig.told())
    assert [type(model) for model in listed.data] == [Model] * len(CONFIGURED + OPENAI_REST)
    page = AnthropicPage[ModelInfo].model_validate(await rig.told(ANTHROPIC))
    assert (page.has_more, page.first_id, page.last_id) == (False, "fast", "claude-haiku-4-5")
    cards = ModelList.model_validate(await rig.told(MISTRAL)).data or []
    assert {type(card) for card in cards} == {BaseModelCard}


async def test_operators_name_tells_what_the_model_behind_it_tells(rig: Rig) -> None:
    """As far as the provider that is asked anyway lists it: capabilities for Mistral's SDK, sizes for Anthropic's."""
    fast = (await rig.told(MISTRAL))["data"][0]
    assert (fast["id"], fast["max_context_length"], fast["description"]) == ("fast", 131_072, "the quick one")
    clever = (await rig.told(ANTHROPIC))["data"][1]
    assert (clever["id"], clever["display_name"], clever["max_tokens"]) == ("clever", "Claude Opus 4 6", 64_000)
    fast, _, local = (await rig.told())["data"][:3]
    assert (fast["owned_by"], fast["description"], local["owned_by"]) == ("mistral", "the quick one", "local")


async def test_anthropic_callers_page_through_the_merged_list(rig: Rig) -> None:
    """The cursor is a name of the list, whoever gave it."""
    first = await rig.told(ANTHROPIC, query="limit=4")
    second = await rig.told(ANTHROPIC, query=f"limit=4&after_id={first['last_id']}")
    assert [info["id"] for info in first["data"] + second["data"]] == CONFIGURED + CLAUDES
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert (await rig.refused(ANTHROPIC, query="limit=0")).kind is Kind.BAD_REQUEST
    assert len(rig.vendors.asked) == 1


# -- one model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "owner"),
    [("fast", "mistral"), ("gpt-4", "mistral"), ("gpt-5", "system"), ("house-wine", "local"), ("local%2Fqwen", "")],
)
async def test_one_model_is_found_under_each_of_its_names(rig: Rig, path: str, owner: str) -> None:
    """Configured, aliased, listed by the provider, covered by a star, or with a slash in its name."""
    told = await rig.told(at(f"/v1/models/{path}"), catalog=STARS)
    assert (told["id"], told["owned_by"]) == (path.replace("%2F", "/"), owner)


async def test_model_that_the_key_may_not_use_does_not_exist_for_it(rig: Rig) -> None:
    """The same answer as for a name that nobody knows."""
    located = at("/v1/models/gpt-5")
    assert (await rig.refused(located, key("fast"))).kind is Kind.NOT_FOUND
    assert (await rig.told(located, key("gpt-*")))["id"] == "gpt-5"


async def test_name_that_its_provider_does_not_list_is_the_providers_to_judge(rig: Rig) -> None:
    """Vendors know more names than they list; where the operator's star leads elsewhere, the list decides."""
    assert await rig.ask(at("/v1/models/gpt-5-2025-08-07")) is None
    assert rig.listing.passed == 1
    assert (await rig.refused(at("/v1/models/claude-2"), catalog=STARS)).kind is Kind.NOT_FOUND


async def test_model_of_a_list_that_cannot_be_had_is_not_denied(rig: Rig) -> None:
    """It may exist: a limited key gets the list's error, others the provider's own answer."""
    rig.vendors.fail("openai")
    located = at("/v1/models/gpt-5")
    assert (await rig.refused(located, key("gpt-5"))).kind is Kind.UPSTREAM_UNREACHABLE
    assert await rig.ask(located) is None


# -- time ----------------------------------------------------------------------------------------------------------


async def test_second_answer_waits_for_nothing(rig: Rig) -> None:
    """One fetch in the time that a list is fresh, and the same bytes for the same question."""
    first = await rig.ask()
    second = rig.listing.look(CATALOG, principal(), OPENAI)
    assert second is not None
    assert first is second
    assert (len(rig.vendors.asked), rig.listing.waited, rig.listing.answered) == (1, 1, 2)


async def test_many_callers_wait_for_one_fetch(rig: Rig) -> None:
    """And one who leaves takes nothing from the others."""
    rig.vendors.gate.close()
    waiting = [asyncio.ensure_future(rig.ask()) for _ in range(20)]
    await rig.vendors.gate.reached()
    waiting[0].cancel()
    await run_ticks()
    rig.vendors.gate.open()
    answers = await asyncio.gather(*waiting[1:])
    assert {answer.body for answer in answers if answer is not None} == {answers[0].body}  # type: ignore[union-attr]
    assert len(rig.vendors.asked) == 1


async def test_stale_list_is_used_while_it_is_renewed(rig: Rig) -> None:
    """A minute later the answer still comes at once, and the next one knows the new model."""
    await rig.ask()
    rig.vendors.answers["openai"] = orjson.dumps({"data": [{"id": "gpt-9"}]})
    rig.clock.advance(61.0)
    listed = rig.listing.look(CATALOG, principal(), OPENAI)
    assert listed is not None
    assert b"gpt-9" not in listed.body
    await rig.settled()
    assert await rig.names() == [*CONFIGURED, "gpt-9"]
    assert (len(rig.vendors.asked), rig.listing.stale_used) == (2, 1)


async def test_list_that_is_too_old_is_waited_for(rig: Rig) -> None:
    """Beyond the stale time nobody is told of models that may be gone."""
    await rig.ask()
    rig.clock.advance(60.0 + 600.0)
    assert rig.listing.look(CATALOG, principal(), OPENAI) is None
    await rig.ask()
    assert len(rig.vendors.asked) == 2


async def test_old_list_stands_in_for_a_provider_that_fails(rig: Rig) -> None:
    """For a day; then the provider is left out and named."""
    await rig.ask()
    rig.vendors.fail("openai")
    rig.clock.advance(60.0 + 86_400.0 - 1.0)
    assert await rig.names() == CONFIGURED + OPENAI_REST
    rig.clock.advance(1.0)
    listed = await rig.ask()
    assert listed is not None
    assert (LEFT_OUT, b"openai") in listed.head.shared
    assert [model["id"] for model in orjson.loads(listed.body)["data"]] == CONFIGURED
    assert (rig.listing.left_out, rig.listing.stale_used) == (1, 1)


async def test_provider_that_fails_is_left_alone_for_a_while(rig: Rig) -> None:
    """A thousand answers in a second are one attempt, and the attempts grow rarer."""
    rig.vendors.fail("openai")
    for _ in range(50):
        assert await rig.names() == CONFIGURED
    assert len(rig.vendors.asked) == 1
    for _ in range(600):
        rig.clock.advance(1.0)
        await rig.ask()
    assert 10 <= len(rig.vendors.asked) <= 20
    rig.vendors.answers["openai"] = list_models("openai").body
    rig.clock.advance(model_lists.MOST_HOLD_S)
    assert await rig.names() == CONFIGURED + OPENAI_REST


async def test_nothing_to_tell_is_left_to_the_provider_but_not_for_a_limited_key(rig: Rig) -> None:
    """Its own answer would show the key what it must not see."""
    rig.vendors.fail("openai")
    assert await rig.ask(catalog=BARE) is None
    assert (await rig.refused(OPENAI, key("gpt-5"), BARE)).why == "refused"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"<html>", "model_list"),
        (b'{"error": "no"}', "model_list"),
        (ValueError("odd"), "model_list"),
        (b" " * (model_lists.MAX_LIST_BYTES + 1), "upstream_response_too_large"),
    ],
)
async def test_list_that_is_none_counts_as_failed(rig: Rig, answer: Any, why: str) -> None:
    """A page of HTML with status 200 is no reason to tell of no models."""
    rig.vendors.answers["openai"] = answer
    assert (await rig.refused(OPENAI, key("gpt-5"), BARE)).why == why
    assert rig.lists.failed == 1


async def test_fetch_that_hangs_is_given_up(frozen_clock: FrozenClock) -> None:
    """Its time is bounded whatever the transport does."""
    rig = Rig(frozen_clock)
    rig.lists = ProviderLists(frozen_clock, rig.vendors.fetch, bug=lambda *_: None, fetch_s=0.0)
    rig.listing = Listing(frozen_clock, rig.lists)
    rig.vendors.gate.close()
    assert (await rig.refused(OPENAI, key("gpt-5"), BARE)).kind is Kind.UPSTREAM_TIMEOUT


async def test_bug_in_a_fetch_is_told_and_hangs_nobody(rig: Rig) -> None:
    """Whoever waits is answered."""
    rig.vendors.answers["openai"] = KeyError("bug")
    assert await rig.names() == CONFIGURED
    assert [type(bug) for bug in rig.bugs] == [KeyError]
    rig.bugs.clear()


async def test_caller_who_wants_no_kept_list_gets_a_new_one(rig: Rig) -> None:
    """Unless the provider failed a moment ago."""
    await rig.ask()
    await rig.ask(renew=True)
    assert len(rig.vendors.asked) == 2
    rig.vendors.fail("openai")
    for _ in range(3):
        await rig.ask(renew=True)
    assert len(rig.vendors.asked) == 3
    await rig.ask(catalog=STARS, renew=True)
    await rig.ask(catalog=STARS, renew=True)
    assert [name for name, _ in rig.vendors.asked[3:]] == ["anthropic", "local"] * 2


async def test_lists_that_are_never_fresh_are_fetched_for_each_caller(rig: Rig) -> None:
    """What the settings say of lists of models holds here too."""
    catalog = catalog_of(models_fresh_s=0.0, models_stale_s=0.0)
    for _ in range(3):
        assert await rig.names(catalog=catalog) == CONFIGURED + OPENAI_REST
    assert len(rig.vendors.asked) == 3


async def test_reloaded_catalog_is_told_at_once(rig: Rig) -> None:
    """The providers' lists stay: their providers are the same. Another key is another provider."""
    await rig.ask()
    catalog = load_catalog(FILE.replace("clever:", "smart:"), {}, Settings(), generation=2)
    assert (await rig.names(catalog=catalog))[:2] == ["fast", "smart"]
    assert len(rig.vendors.asked) == 1
    await rig.ask(catalog=load_catalog(FILE.replace("sk-openai", "sk-2"), {}, Settings(), generation=3))
    assert len(rig.vendors.asked) == 2


# -- bounds --------------------------------------------------------------------------------------------------------


async def test_pages_are_followed_to_their_end(rig: Rig) -> None:
    """Each vendor is asked for the next page as it wants to be."""
    def page(target: str) -> bytes:
        number = int(target.partition("after_id=m")[2] or -1) + 1
        info = {"type": "model", "id": f"m{number}"}
        return orjson.dumps({"data": [info], "has_more": number < 4, "last_id": f"m{number}"})

    rig.vendors.answers["anthropic"] = page
    assert await rig.names(ANTHROPIC) == CONFIGURED + [f"m{number}" for number in range(5)]
    assert [target for _, target in rig.vendors.asked[:2]] == [
        "/v1/models?limit=1000", "/v1/models?limit=1000&after_id=m0",
    ]


async def test_pages_without_end_are_cut(rig: Rig) -> None:
    """A server that always has one more is believed for so long."""
    numbers = iter(range(10_000))

    def page(_: str) -> bytes:
        name = f"m{next(numbers)}"
        return orjson.dumps({"data": [{"type": "model", "id": name}], "has_more": True, "last_id": name})

    rig.vendors.answers["anthropic"] = page
    assert len(await rig.names(ANTHROPIC, query="limit=1000")) == len(CONFIGURED) + model_lists.MAX_PAGES


async def test_what_is_kept_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers by number and bytes, lists by bytes; what was forgotten is made again."""
    for number in range(MAX_KEPT + 20):
        await rig.ask(OPENAI, key("gpt-5", f"m{number}"))
    view = rig.listing.describe()
    assert (view["kept"], len(rig.vendors.asked)) == (MAX_KEPT, 1)
    monkeypatch.setattr(model_lists, "MAX_HELD_BYTES", len(rig.vendors.answers["openai"]))
    await rig.ask(ANTHROPIC)
    assert [each["provider"] for each in rig.lists.describe()] == ["anthropic"]
    assert rig.lists.held_bytes == len(rig.vendors.answers["anthropic"])
    assert await rig.names() == CONFIGURED + OPENAI_REST


async def test_closing_ends_what_is_under_way(rig: Rig) -> None:
    """Whoever waits is told that the process ends, and no task is left."""
    rig.vendors.gate.close()
    waiting = asyncio.ensure_future(rig.refused(OPENAI, key("gpt-5"), BARE))
    await rig.vendors.gate.reached()
    await rig.lists.close()
    assert (await waiting).kind is Kind.DRAINING
