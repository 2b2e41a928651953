"""Lists of models as the vendors' APIs give them, read and written: ``GET /v1/models`` and ``GET /v1/models/{id}``.

An entry that came from a vendor keeps all its members, known here or not, and is written as it came to callers of the
same dialect; the few that an official SDK insists on and a server left out are filled in. To other callers it is
written from what is common to all, as is an entry of the operator's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote

import orjson

from proxy.errors import Kind, ProxyError
from proxy.protocol.routes import Dialect

MAX_ENTRIES: Final = 10_000
MAX_ID_CHARS: Final = 512
PAGE_ENTRIES: Final = 20
"""Of Anthropic's list where the caller does not say."""
MOST_PAGE_ENTRIES: Final = 1000

_LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, beyond which no date can be written."""
_LIFECYCLES: Final = frozenset(("active", "deprecated"))
"""What Anthropic lists where the caller does not say."""

_Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of a list."""

    id: str
    """The name to ask for it by."""
    form: str = ""
    """Whose members ``raw`` has: ``openai``, ``anthropic``, ``mistral`` or ``gemini``; empty for one of our own."""
    created_s: int = 0
    """Unix time; 0: unknown."""
    display_name: str = ""
    owned_by: str = ""
    description: str = ""
    input_tokens: int = 0
    """Longest prompt; 0: unknown."""
    output_tokens: int = 0
    """Longest answer; 0: unknown."""
    lifecycle: str = "active"
    """``active``, ``deprecated`` or ``retired``."""
    raw: bytes = b""
    """Its JSON text with every member; empty if it is not to be had."""

    def renamed(self, name: str, description: str = "") -> ModelEntry:
        """The same model under a name of the operator's."""
        fields: _Fields = orjson.loads(self.raw) if self.raw else {}
        if fields and self.form != "gemini":
            fields["id"] = name
            if self.form == "mistral":
                fields.update(name=name, aliases=[])
            if description and self.form != "anthropic":
                fields["description"] = description
        raw = orjson.dumps(fields) if fields else b""
        return replace(self, id=name, description=description or self.description, raw=raw)


class ModelPage(NamedTuple):
    """One answer of a vendor."""

    entries: list[ModelEntry]
    next_query: str
    """What asks for the page behind it, without ``?``; empty where this was the last one."""


# -- reading ------------------------------------------------------------------------------------------------------


def read_models(body: bytes) -> list[ModelEntry]:
    """The models of one answer, each name once, in the vendor's order. See `read_page`."""
    return read_page(body).entries


def read_page(body: bytes) -> ModelPage:
    """The models of one answer and how to ask for the next page. What has no name is left out. At most
    ``MAX_ENTRIES`` are read, and then no further page is named.

    Raises ``ValueError`` for what is no list of models.
    """
    answer = orjson.loads(body)  # its error is a ValueError
    items = answer if type(answer) is list else _items_of(answer)
    read = _reader_for(items)
    entries: dict[str, ModelEntry] = {}
    for item in items[:MAX_ENTRIES]:
        entry = read(item) if type(item) is dict else None
        if entry is not None and 0 < len(entry.id) <= MAX_ID_CHARS:
            entries.setdefault(entry.id, entry)
    more = type(answer) is dict and len(entries) < MAX_ENTRIES
    return ModelPage(list(entries.values()), _next_query(answer) if more else "")


def _items_of(answer: object) -> list[Any]:
    """OpenAI's form comes before Gemini's: llama.cpp gives both at once."""
    if type(answer) is dict:
        for name in ("data", "models"):
            items = answer.get(name)
            if type(items) is list:
                return items
        if not answer:
            return []  # Gemini's empty list
    raise ValueError("not a list of models")


def _next_query(answer: _Fields) -> str:
    token, last_id = answer.get("nextPageToken"), answer.get("last_id")
    if type(token) is str and token:
        return f"pageSize={MOST_PAGE_ENTRIES}&pageToken={quote(token, safe='')}"
    if answer.get("has_more") is True and type(last_id) is str and last_id:
        return f"limit={MOST_PAGE_ENTRIES}&after_id={quote(last_id, safe='')}"
    return ""


def _reader_for(items: list[Any]) -> Callable[[_Fields], ModelEntry | None]:
    """By the first of them: a list is of one vendor."""
    first = next((item for item in items if type(item) is dict), {})
    if "id" not in first and "name" in first:
        return _read_gemini
    if first.get("type") == "model":
        return _read_anthropic
    if type(first.get("capabilities")) is dict and "completion_chat" in first["capabilities"]:
        return _read_mistral
    return _read_openai


def _read_openai(item: _Fields) -> ModelEntry:
    """``{"id", "object": "model", "created", "owned_by"}``, and what servers add."""
    created_s = _count(item.get("created"))
    owned_by = _text(item.get("owned_by"))
    item |= {"object": "model", "created": created_s, "owned_by": owned_by}
    return ModelEntry(
        _text(item.get("id")),
        "openai",
        created_s,
        _text(item.get("display_name")) or _text(item.get("name")),
        owned_by,
        _text(item.get("description")),
        _count(item.get("max_model_len")) or _count(item.get("context_length")) or _count(item.get("context_window")),
        raw=_dump(item),
    )


def _read_anthropic(item: _Fields) -> ModelEntry:
    """``{"type": "model", "id", "display_name", "created_at", …}``."""
    name = _text(item.get("id"))
    created_s = _parse_time(item.get("created_at"))
    item["display_name"] = _text(item.get("display_name")) or name
    item["lifecycle"] = lifecycle = _text(item.get("lifecycle")) or "active"
    item["created_at"] = item.get("created_at") if created_s else _write_time(0)
    return ModelEntry(
        name,
        "anthropic",
        created_s,
        item["display_name"],
        "anthropic",
        "",
        _count(item.get("max_input_tokens")),
        _count(item.get("max_tokens")),
        lifecycle,
        _dump(item),
    )


def _read_mistral(item: _Fields) -> ModelEntry:
    """OpenAI's members with ``capabilities``, ``aliases``, ``max_context_length`` and more."""
    created_s = _count(item.get("created"))
    owned_by = _text(item.get("owned_by")) or "mistralai"
    item |= {"object": "model", "created": created_s, "owned_by": owned_by}
    item["type"] = _text(item.get("type")) or "base"
    return ModelEntry(
        _text(item.get("id")),
        "mistral",
        created_s,
        _text(item.get("name")),
        owned_by,
        _text(item.get("description")),
        _count(item.get("max_context_length")),
        lifecycle="deprecated" if item.get("deprecation") else "active",
        raw=_dump(item),
    )


def _read_gemini(item: _Fields) -> ModelEntry:
    """``{"name": "models/…", "displayName", "inputTokenLimit", …}``."""
    return ModelEntry(
        _text(item.get("name")).removeprefix("models/"),
        "gemini",
        0,
        _text(item.get("displayName")),
        "google",
        _text(item.get("description")),
        _count(item.get("inputTokenLimit")),
        _count(item.get("outputTokenLimit")),
        raw=_dump(item),
    )


def _text(value: object) -> str:
    return value if type(value) is str else ""


def _count(value: object) -> int:
    """A number of tokens or seconds; 0 for anything else. Some servers write them with a fraction."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value) if 0 <= value <= _LAST_SECOND else 0
    return int(value) if type(value) is float and 0 <= value <= _LAST_SECOND else 0


def _dump(item: _Fields) -> bytes:
    try:
        return orjson.dumps(item)
    except orjson.JSONEncodeError:  # deeper than its writer goes; the reader goes further
        return b""


def _parse_time(value: object) -> int:
    """Unix time of an RFC 3339 text; 0 for anything else, and for what lies before 1970."""
    try:
        moment = datetime.fromisoformat(_text(value))
        return _count(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _write_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


# -- writing ------------------------------------------------------------------------------------------------------


def write_list(entries: Sequence[ModelEntry], dialect: Dialect, query: str = "") -> bytes:
    """The body of ``GET /v1/models``. ``query`` is the caller's, raw; Anthropic's has pages and a filter in it.

    Raises ``ProxyError`` (``BAD_REQUEST``) for a page that cannot be.
    """
    if dialect is Dialect.ANTHROPIC:
        return _write_page(entries, query)
    return orjson.dumps({"object": "list", "data": [_fields_of(entry, dialect) for entry in entries]})


def write_one(entry: ModelEntry, dialect: Dialect) -> bytes:
    """The body of ``GET /v1/models/{id}``."""
    return orjson.dumps(_fields_of(entry, dialect))


def _fields_of(entry: ModelEntry, dialect: Dialect) -> object:
    if entry.raw and entry.form == dialect.value:
        return orjson.Fragment(entry.raw)
    if dialect is Dialect.ANTHROPIC:
        return _anthropic_fields(entry)
    fields: _Fields = {
        "id": entry.id,
        "object": "model",
        "created": entry.created_s,
        "owned_by": entry.owned_by or "sameflight",
    }
    if entry.description:
        fields["description"] = entry.description
    return fields if dialect is Dialect.OPENAI else fields | _mistral_fields(entry)


def _anthropic_fields(entry: ModelEntry) -> _Fields:
    """Capabilities that are not known are null, which the SDK takes for just that."""
    return {
        "type": "model",
        "id": entry.id,
        "display_name": entry.display_name or entry.id,
        "created_at": _write_time(entry.created_s),
        "lifecycle": entry.lifecycle,
        "max_input_tokens": entry.input_tokens or None,
        "max_tokens": entry.output_tokens or None,
        "capabilities": None,
    }


def _mistral_fields(entry: ModelEntry) -> _Fields:
    """What another vendor's model can do is said in no common words: chat and tools, as every model that answers here
    in Mistral's dialect is asked for through chat."""
    fields: _Fields = {
        "name": entry.display_name or entry.id,
        "type": "base",
        "aliases": [],
        "capabilities": {"completion_chat": True, "function_calling": True},
    }
    if entry.input_tokens:
        fields["max_context_length"] = entry.input_tokens
    return fields


def _write_page(entries: Sequence[ModelEntry], query: str) -> bytes:
    """Anthropic's list: a page behind or before an id, and where it begins and ends."""
    asked = parse_qsl(query, max_num_fields=64) if query.count("&") < 64 else []
    words = dict(asked)
    stages = {value for name, value in asked if name in ("lifecycle", "lifecycle[]")} or _LIFECYCLES
    listed = [entry for entry in entries if entry.lifecycle in stages]
    limit = _read_limit(words.get("limit", ""))
    after, before = words.get("after_id", ""), words.get("before_id", "")
    if after and before:
        raise _bad_page("Only one of after_id and before_id may be given.")
    if before:
        end = _index_of(listed, before, "before_id")
        start = max(0, end - limit)
        more = start > 0
    else:
        start = _index_of(listed, after, "after_id") + 1 if after else 0
        end = start + limit
        more = end < len(listed)
    page = listed[start:end]
    return orjson.dumps(
        {
            "data": [_fields_of(entry, Dialect.ANTHROPIC) for entry in page],
            "has_more": more,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


def _read_limit(text: str) -> int:
    if not text:
        return PAGE_ENTRIES
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0
    if not 1 <= limit <= MOST_PAGE_ENTRIES:
        raise _bad_page(f"limit must be a number from 1 to {MOST_PAGE_ENTRIES}.")
    return limit


def _index_of(listed: list[ModelEntry], name: str, member: str) -> int:
    for index, entry in enumerate(listed):
        if entry.id == name:
            return index
    raise _bad_page(f"{member} names no model of this list.")


def _bad_page(public: str) -> ProxyError:
    return ProxyError(Kind.BAD_REQUEST, public, why="page")
