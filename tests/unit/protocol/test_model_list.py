"""Lists of models: four vendors' forms in, three out, each as the vendor's own SDK reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from anthropic.pagination import SyncPage as AnthropicPage
from anthropic.types import ModelInfo
from mistralai.client.models import BaseModelCard, FTModelCard, ModelList
from openai.pagination import SyncPage as OpenAIPage
from openai.types import Model

from proxy.errors import Kind, ProxyError
from proxy.mock.models import list_models
from proxy.protocol.model_list import (
    MAX_ENTRIES,
    MAX_ID_CHARS,
    ModelEntry,
    read_models,
    read_page,
    write_list,
    write_one,
)
from proxy.protocol.routes import Dialect

OPENAI = {"object": "list", "data": [{"id": "gpt-5", "object": "model", "created": 17, "owned_by": "system"}]}
VLLM = {
    "object": "list",
    "data": [
        {"id": "q/Q3", "object": "model", "created": 1.5, "owned_by": "vllm", "max_model_len": 4096, "root": "/m"}
    ],
}
ANTHROPIC = {
    "data": [
        {
            "type": "model",
            "id": "claude-opus-4-6",
            "display_name": "Claude Opus 4.6",
            "created_at": "2026-02-04T00:00:00Z",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
            "lifecycle": "active",
            "line": "opus",
        }
    ],
    "has_more": True,
    "first_id": "claude-opus-4-6",
    "last_id": "claude-opus-4-6",
}
MISTRAL = {
    "object": "list",
    "data": [
        {
            "id": "codestral-2501",
            "object": "model",
            "created": 18,
            "owned_by": "mistralai",
            "capabilities": {"completion_chat": True, "completion_fim": True, "vision": False},
            "aliases": ["codestral-latest"],
            "max_context_length": 262_144,
            "type": "base",
            "temperature_hint": [0.1],
        },
        {
            "id": "ft:open-mistral-7b:x",
            "created": 19,
            "owned_by": "me",
            "capabilities": {"completion_chat": True},
            "type": "fine-tuned",
            "job": "3b6b7b8c",
            "root": "open-mistral-7b",
            "archived": False,
        },
    ],
}
GEMINI = {
    "models": [
        {
            "name": "models/gemini-2.5-flash",
            "version": "001",
            "displayName": "Gemini 2.5 Flash",
            "description": "Fast.",
            "inputTokenLimit": 1_048_576,
            "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["generateContent"],
        }
    ],
    "nextPageToken": "a/b=",
}
LLAMA = {"models": [{"name": "wrong", "model": "wrong"}], **OPENAI}


def read(answer: Any) -> list[ModelEntry]:
    return read_models(orjson.dumps(answer))


def written(answer: Any, dialect: Dialect, query: str = "") -> Any:
    return orjson.loads(write_list(read(answer), dialect, query))


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "form", "expected"),
    [
        (OPENAI, "openai", [("gpt-5", 17, "system", 0, 0)]),
        (VLLM, "openai", [("q/Q3", 1, "vllm", 4096, 0)]),
        (VLLM["data"], "openai", [("q/Q3", 1, "vllm", 4096, 0)]),
        (LLAMA, "openai", [("gpt-5", 17, "system", 0, 0)]),
        (ANTHROPIC, "anthropic", [("claude-opus-4-6", 1_770_163_200, "anthropic", 200_000, 64_000)]),
        (
            MISTRAL,
            "mistral",
            [("codestral-2501", 18, "mistralai", 262_144, 0), ("ft:open-mistral-7b:x", 19, "me", 0, 0)],
        ),
        (GEMINI, "gemini", [("gemini-2.5-flash", 0, "google", 1_048_576, 65_536)]),
        ({}, "", []),
        ({"data": []}, "", []),
    ],
)
def test_each_vendors_list_is_read(answer: Any, form: str, expected: list[Any]) -> None:
    """Names, ages, owners and sizes; a bare list and a list in two forms are read as well."""
    entries = read(answer)
    assert [(each.id, each.created_s, each.owned_by, each.input_tokens, each.output_tokens) for each in entries] == (
        expected
    )
    assert {each.form for each in entries} <= {form}


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b'"data"', b'{"data": {}}', b'{"error": {"message": "no"}}', b"\xff", b"[" * 2000],
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    """An error's body, a page of HTML, or nothing: never a list without models."""
    with pytest.raises(ValueError, match=r".+"):
        read_models(body)


def test_entries_without_a_usable_name_are_left_out_and_each_name_comes_once() -> None:
    """The first of a name is the one; whatever is in the list, the rest of it is read."""
    first, second = ({"id": "m", "owned_by": owner} for owner in ("first", "second"))
    items = [1, None, {}, {"id": 7}, {"id": ""}, {"id": "x" * (MAX_ID_CHARS + 1)}, first, second]
    assert [(each.id, each.owned_by) for each in read({"data": items})] == [("m", "first")]


@pytest.mark.parametrize("value", ["soon", True, -1, 1e300, 10**18, None, [], {}])
def test_members_of_the_wrong_kind_read_as_unknown(value: Any) -> None:
    """And what is written of them is what an SDK expects there."""
    (entry,) = read({"data": [{"id": "m", "created": value, "owned_by": value if value != "soon" else 3}]})
    assert (entry.created_s, entry.owned_by) == (0, "")
    Model.model_validate(orjson.loads(write_one(entry, Dialect.OPENAI)))
    (entry,) = read({"data": [{"type": "model", "id": "m", "created_at": value, "display_name": 1}]})
    assert ModelInfo.model_validate(orjson.loads(write_one(entry, Dialect.ANTHROPIC))).created_at.year == 1970


def test_list_without_end_is_cut() -> None:
    """Ten thousand models are enough, and no further page is asked for."""
    page = read_page(
        orjson.dumps({"data": [{"type": "model", "id": f"m{n}"} for n in range(MAX_ENTRIES + 5)], "has_more": True})
    )
    assert (len(page.entries), page.next_query) == (MAX_ENTRIES, "")


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        (OPENAI, ""),
        (ANTHROPIC, "limit=1000&after_id=claude-opus-4-6"),
        (ANTHROPIC | {"has_more": False}, ""),
        (ANTHROPIC | {"last_id": "a&b c"}, "limit=1000&after_id=a%26b%20c"),
        (GEMINI, "pageSize=1000&pageToken=a%2Fb%3D"),
        (GEMINI | {"nextPageToken": ""}, ""),
    ],
)
def test_next_page_is_asked_for_as_the_vendor_wants(answer: Any, query: str) -> None:
    """What a vendor's list says about its next page goes into a query, escaped."""
    assert read_page(orjson.dumps(answer)).next_query == query


def test_entry_too_deep_to_be_written_is_told_in_common_words() -> None:
    """Its raw text is lost, the list is not."""
    text = b'{"data": [{"id": "deep", "x": ' + b'{"x": ' * 300 + b"1" + b"}" * 300 + b"}]}"
    (entry,) = read_models(text)
    assert (entry.id, entry.raw) == ("deep", b"")
    assert orjson.loads(write_one(entry, Dialect.OPENAI))["id"] == "deep"


# -- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "dialect"),
    [(OPENAI, Dialect.OPENAI), (ANTHROPIC, Dialect.ANTHROPIC), (MISTRAL, Dialect.MISTRAL)],
)
def test_models_of_the_callers_dialect_keep_every_member(answer: dict[str, Any], dialect: Dialect) -> None:
    """Known or not, in their order; nothing of theirs is changed."""
    data = written(answer, dialect)["data"]
    for before, after in zip(answer["data"], data, strict=True):
        assert before.items() <= after.items()
        assert [name for name in after if name in before] == list(before)


@pytest.mark.parametrize("answer", [OPENAI, VLLM, ANTHROPIC, MISTRAL, GEMINI])
def test_every_vendors_models_are_read_by_every_sdk(answer: dict[str, Any]) -> None:
    """By its typed models, strictly, in a list and alone."""
    entries = read(answer)
    names = [entry.id for entry in entries]
    listed = OpenAIPage[Model].model_validate(written(answer, Dialect.OPENAI))
    assert [model.id for model in listed.data] == names
    assert {type(model) for model in listed.data} == {Model}
    page = AnthropicPage[ModelInfo].model_validate(written(answer, Dialect.ANTHROPIC))
    assert [info.id for info in page.data] == names
    assert {type(info) for info in page.data} == {ModelInfo}
    cards = ModelList.model_validate(written(answer, Dialect.MISTRAL)).data
    assert cards is not None
    kinds = [FTModelCard if name.startswith("ft:") else BaseModelCard for name in names]
    assert [type(card) for card in cards] == kinds
    for entry in entries:
        assert Model.model_validate_json(write_one(entry, Dialect.OPENAI)).id == entry.id
        assert ModelInfo.model_validate_json(write_one(entry, Dialect.ANTHROPIC)).type == "model"


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "mistral"])
def test_lists_of_the_mock_are_read(dialect: str) -> None:
    """The built-in upstream and the proxy agree on the vendors' forms."""
    body = list_models(dialect).body
    assert {each.form for each in read_models(body)} == {dialect}


def test_what_is_known_of_a_model_crosses_dialects() -> None:
    """Age, sizes and name of a Gemini model for a caller of Anthropic's; its owner and text for one of OpenAI's."""
    (info,) = written(GEMINI, Dialect.ANTHROPIC)["data"]
    assert info | {"id": "gemini-2.5-flash"} == info
    assert (info["max_input_tokens"], info["max_tokens"]) == (1_048_576, 65_536)
    assert (info["display_name"], info["created_at"]) == ("Gemini 2.5 Flash", "1970-01-01T00:00:00Z")
    (model,) = written(GEMINI, Dialect.OPENAI)["data"]
    assert (model["owned_by"], model["description"]) == ("google", "Fast.")
    (card, _) = written(MISTRAL, Dialect.ANTHROPIC)["data"]
    assert ModelInfo.model_validate(card).created_at == datetime.fromtimestamp(18, UTC)


def test_entry_of_the_operators_own_is_a_model_for_every_sdk() -> None:
    """Nothing but a name is known of it."""
    entry = ModelEntry("fast")
    assert Model.model_validate_json(write_one(entry, Dialect.OPENAI)).owned_by == "sameflight"
    assert ModelInfo.model_validate_json(write_one(entry, Dialect.ANTHROPIC)).display_name == "fast"
    card = BaseModelCard.model_validate_json(write_one(entry, Dialect.MISTRAL))
    assert (card.name, card.capabilities.completion_chat) == ("fast", True)


def test_alias_keeps_what_its_model_says_of_itself() -> None:
    """A Mistral caller learns of the alias what it would learn of the model, under the alias' name."""
    renamed = read(MISTRAL)[0].renamed("coder", "for code")
    card = BaseModelCard.model_validate_json(write_one(renamed, Dialect.MISTRAL))
    assert (card.id, card.name, card.aliases, card.description) == ("coder", "coder", [], "for code")
    assert (card.capabilities.completion_fim, card.max_context_length) == (True, 262_144)
    info = orjson.loads(write_one(read(ANTHROPIC)[0].renamed("best"), Dialect.ANTHROPIC))
    assert (info["id"], info["display_name"], info["line"]) == ("best", "Claude Opus 4.6", "opus")
    assert orjson.loads(write_one(read(GEMINI)[0].renamed("g"), Dialect.OPENAI))["id"] == "g"


# -- Anthropic's pages ---------------------------------------------------------------------------------------------

MANY = [ModelEntry(f"m{number:02}") for number in range(45)]


def page(query: str, entries: list[ModelEntry] = MANY) -> tuple[list[str], bool]:
    answer = orjson.loads(write_list(entries, Dialect.ANTHROPIC, query))
    ids = [info["id"] for info in answer["data"]]
    assert (answer["first_id"], answer["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
    return ids, answer["has_more"]


def names(start: int, end: int) -> list[str]:
    return [f"m{number:02}" for number in range(start, end)]


@pytest.mark.parametrize(
    ("query", "expected", "more"),
    [
        ("", names(0, 20), True),
        ("limit=1000", names(0, 45), False),
        ("limit=45", names(0, 45), False),
        ("limit=2&after_id=m19", names(20, 22), True),
        ("after_id=m39", names(40, 45), False),
        ("after_id=m44", [], False),
        ("limit=3&before_id=m10", names(7, 10), True),
        ("before_id=m03", names(0, 3), False),
        ("before_id=m00", [], False),
        ("beta=true", names(0, 20), True),
    ],
)
def test_anthropic_callers_get_the_page_they_ask_for(query: str, expected: list[str], more: bool) -> None:
    """Twenty without a word, up to a thousand, behind or before a name."""
    assert page(query) == (expected, more)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "after_id=none", "before_id=none",
                                   "after_id=m01&before_id=m02", "limit=" + "9" * 5000])
def test_page_that_cannot_be_is_refused(query: str) -> None:
    """As Anthropic does; an empty page would look like the end of the list."""
    with pytest.raises(ProxyError) as caught:
        page(query)
    assert caught.value.kind is Kind.BAD_REQUEST


def test_retired_models_are_listed_for_those_who_ask() -> None:
    """Anthropic's filter, with and without brackets, as its SDK writes it."""
    entries = [ModelEntry("a"), ModelEntry("d", lifecycle="deprecated"), ModelEntry("r", lifecycle="retired")]
    assert page("", entries)[0] == ["a", "d"]
    assert page("lifecycle[]=retired&lifecycle[]=active", entries)[0] == ["a", "r"]
    assert page("lifecycle=deprecated", entries)[0] == ["d"]


def test_pages_together_are_the_list() -> None:
    """Whoever follows the pages as the SDK does sees each model once."""
    seen: list[str] = []
    query = "limit=7"
    while True:
        ids, more = page(query)
        seen += ids
        if not more:
            break
        query = f"limit=7&after_id={ids[-1]}"
    assert seen == names(0, 45)
