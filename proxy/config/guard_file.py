"""The catalog file's section ``guards`` → `Guard`. Whatever is wrong is reported with its place.

Each entry has a kind and, beside what all guards have, what its kind takes:

=================  =================================================================================================
``personal_data``  ``which``: kinds of data (`PERSONAL_DATA`); without it the usual ones
``secrets``        ``which``: kinds of secrets (`SECRETS`); without it all
``words``          ``words``: whole words or phrases, whatever their case
``expressions``    ``patterns``: a list, or a mapping from names; ``ignore_case``; ``span_bytes``: the longest match
                   that is looked for in a stream
``injection``      ``marks``: also the marks by which software parts the turns of a chat
``topics``         ``topics``: words or phrases by topic; ``threshold``: so many of one topic
``size``           ``most_characters`` or ``most_tokens`` (estimated) of all texts together
``schema``         ``schema``: JSON Schema of the answer (`config.json_schema`)
``webhook``        ``url``, ``headers``, ``most_concurrent``
``moderation``     ``url``, ``api_key``, ``headers``, ``model``, ``categories``, ``thresholds``, ``most_concurrent``
=================  =================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import orjson
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.config.convert import resembling
from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.guards import BUILT_IN_KINDS, PERSONAL_DATA, REMOTE_KINDS, SECRETS, Guard
from proxy.config.json_schema import JsonSchema, SchemaError
from proxy.linear import Expression, PatternError

MAX_GUARDS: Final = 200
MAX_WORDS: Final = 20_000
MAX_WORD_CHARS: Final = 500
MAX_PATTERNS: Final = 500
MAX_SUBJECTS: Final = 1_000
MAX_HEADERS: Final = 50

MODERATION_URL: Final = "https://api.openai.com/v1/moderations"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NAME_HINT: Final = "1 to 64 lower-case letters, digits, _ and -"
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OURS: Final = frozenset(("content-type", "content-length", "host", "connection", "transfer-encoding"))
_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
_LETTER: Final = re.compile(r"\w")

Kind = Literal[
    "personal_data", "secrets", "words", "expressions", "injection", "topics", "size", "schema", "webhook",
    "moderation",
]  # fmt: skip


class _For(Struct, forbid_unknown_fields=True, frozen=True):
    """Whom a guard is for. Keys and tenants are alternatives; routes narrow both."""

    tenants: list[str] = msgspec.field(default_factory=list)
    keys: list[str] = msgspec.field(default_factory=list)
    routes: list[str] = msgspec.field(default_factory=list)


_Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
_Span = Annotated[int, Meta(ge=1, le=8_192, description="Bytes.")]
_Concurrent = Annotated[int, Meta(ge=1, le=10_000)]
_Score = Annotated[float, Meta(ge=0, le=1)]

# ``for`` is a word of the language, so that the struct cannot be written as a class.
_FIELDS: Final[list[tuple[str, Any, Any]]] = [
    ("mode", Literal["before", "during", "after"] | None, None),
    ("action", Literal["block", "redact", "flag"], "block"),
    ("fail", Literal["open", "closed"], "closed"),
    ("timeout_ms", Annotated[float, Meta(gt=0, le=60_000, description="Milliseconds.")], 1_000.0),
    ("for", _For, _For()),
    ("which", list[str] | UnsetType, UNSET),
    ("words", list[str] | UnsetType, UNSET),
    ("patterns", Any, UNSET),  # a list of texts, or a mapping of them
    ("ignore_case", bool | UnsetType, UNSET),
    ("span_bytes", _Span | UnsetType, UNSET),
    ("marks", bool | UnsetType, UNSET),
    ("topics", dict[str, list[str]] | UnsetType, UNSET),
    ("threshold", _Positive | UnsetType, UNSET),
    ("most_characters", _Positive | UnsetType, UNSET),
    ("most_tokens", _Positive | UnsetType, UNSET),
    ("schema", dict[str, Any] | UnsetType, UNSET),
    ("url", str | UnsetType, UNSET),
    ("headers", dict[str, str] | UnsetType, UNSET),
    ("api_key", str | UnsetType, UNSET),
    ("model", str | UnsetType, UNSET),
    ("categories", list[str] | UnsetType, UNSET),
    ("thresholds", dict[str, _Score] | UnsetType, UNSET),
    ("most_concurrent", _Concurrent | UnsetType, UNSET),
]
GuardFile: Final[Any] = msgspec.defstruct(
    "GuardFile",
    [("kind", Kind), *_FIELDS],
    namespace={"__doc__": "One guard."},
    forbid_unknown_fields=True,
    frozen=True,
)
if TYPE_CHECKING:
    GuardsFile = dict[str, Any]
else:
    GuardsFile = dict[str, GuardFile]
_COMMON: Final = frozenset(("kind", "mode", "action", "fail", "timeout_ms", "for"))
_TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "personal_data": ("which",),
    "secrets": ("which",),
    "words": ("words",),
    "expressions": ("patterns", "ignore_case", "span_bytes"),
    "injection": ("marks",),
    "topics": ("topics", "threshold"),
    "size": ("most_characters", "most_tokens"),
    "schema": ("schema",),
    "webhook": ("url", "headers", "most_concurrent"),
    "moderation": ("url", "api_key", "headers", "model", "categories", "thresholds", "most_concurrent"),
}
"""What each kind takes beside what all take."""
_NO_PLACES: Final = frozenset(("size", "schema", "topics"))
"""Kinds that judge a text as a whole, so that there is nothing to redact."""


def make_guards(said: Mapping[str, Any], routes: Collection[str], document: Document) -> tuple[Guard, ...]:
    """``said``: the section, in its order; ``routes``: names of all routes. Without the guards that cannot be made;
    those are reported."""
    if len(said) > MAX_GUARDS:
        document.report(("guards",), f"there are {len(said)} guards", f"at most {MAX_GUARDS} are possible")
        return ()
    made = (_Making(name, each, document, routes).make() for name, each in said.items())
    return tuple(guard for guard in made if guard is not None)


class _Making:
    """One guard being made; ``wrong`` once something was reported."""

    __slots__ = ("_document", "_name", "_place", "_routes", "_said", "_wrong")

    def __init__(self, name: str, said: Any, document: Document, routes: Collection[str]) -> None:
        self._name = name
        self._said = said
        self._document = document
        self._routes = routes
        self._place: Place = ("guards", name)
        self._wrong = False

    def make(self) -> Guard | None:
        said, kind = self._said, self._said.kind
        if not _NAME.fullmatch(self._name):
            self.report((), "this cannot be the name of a guard", _NAME_HINT)
        mode = said.mode or ("after" if kind == "schema" else "before")
        self._check_mode(kind, mode, said.action)
        options = self._options(kind)
        whom = getattr(said, "for")
        self._check_whom(whom)
        if self._wrong:
            return None
        return Guard(
            name=self._name,
            kind=kind,
            mode=mode,
            action=said.action,
            fail_open=said.fail == "open",
            timeout_s=said.timeout_ms / 1_000,
            tenants=frozenset(whom.tenants),
            keys=frozenset(whom.keys),
            routes=frozenset(whom.routes),
            options=tuple(sorted(options.items())),
        )

    def report(self, path: Place, message: str, hint: str = "") -> None:
        self._wrong = True
        self._document.report((*self._place, *path), message, hint)

    def _check_mode(self, kind: str, mode: str, action: str) -> None:
        if kind == "schema" and mode != "after":
            self.report(("mode",), "a schema is for answers", "say mode: after")
        if action != "redact":
            return
        if kind in REMOTE_KINDS:
            self.report(("action",), f"a {kind} says what it thinks of a text, not where", "block or flag")
        elif kind in _NO_PLACES:
            self.report(("action",), f"{kind} judges texts as a whole", "block or flag")
        elif mode == "during":
            hint = "say mode: before, or block or flag"
            self.report(("action",), "during the call it is too late to redact the request", hint)

    def _check_whom(self, whom: _For) -> None:
        for name in ("tenants", "keys", "routes"):
            subjects = getattr(whom, name)
            if len(subjects) > MAX_SUBJECTS:
                self.report(("for", name), f"there are {len(subjects)}", f"at most {MAX_SUBJECTS} are possible")
            for index, subject in enumerate(subjects):
                if not subject.strip():
                    self.report(("for", name, index), "expected a name", "leave the list out for everybody")
        for index, route in enumerate(whom.routes):
            if route.strip() and route not in self._routes:
                hint = resembling(self._document, route, sorted(self._routes))
                self.report(("for", "routes", index), f"there is no route {route[:100]!r}", hint)

    # -- options ------------------------------------------------------------------------------------------------

    def _options(self, kind: str) -> dict[str, Any]:
        takes = _TAKES[kind]
        given = {
            field.name: value
            for field in msgspec.structs.fields(GuardFile)
            if field.name not in _COMMON and (value := getattr(self._said, field.name)) is not UNSET
        }
        for name in given:
            if name not in takes:
                self.report((name,), f"not for a guard of kind {kind}", f"that takes {', '.join(takes)}")
        maker = _OPTIONS[kind]
        return maker(self, {name: value for name, value in given.items() if name in takes})

    def _need(self, given: Mapping[str, Any], name: str) -> bool:
        if name in given:
            return True
        self.report((), f"'{name}' is missing", f"a guard of kind {self._said.kind} needs it")
        return False

    def _which(self, given: dict[str, Any]) -> dict[str, Any]:
        known = PERSONAL_DATA if self._said.kind == "personal_data" else SECRETS
        which = given.get("which")
        if which is None:
            return {}
        if not which:
            self.report(("which",), "there is nothing to look for", "leave it out for the usual ones")
        for index, each in enumerate(which):
            if each not in known:
                hint = resembling(self._document, each, known) or f"known: {', '.join(known)}"
                self.report(("which", index), f"unknown: {each[:100]!r}", hint)
        return {"which": tuple(dict.fromkeys(which))}

    def _words(self, given: dict[str, Any]) -> dict[str, Any]:
        if not self._need(given, "words"):
            return {}
        return {"words": self._check_words(given["words"], ("words",))}

    def _check_words(self, words: list[str], place: Place) -> tuple[str, ...]:
        if not words:
            self.report(place, "there is no word")
        if len(words) > MAX_WORDS:
            self.report(place, f"there are {len(words)} words", f"at most {MAX_WORDS} are possible")
            return ()
        for index, word in enumerate(words):
            if not _LETTER.search(word):
                self.report((*place, index), "there is no letter or digit in it")
            elif len(word) > MAX_WORD_CHARS:
                self.report((*place, index), f"longer than {MAX_WORD_CHARS} characters")
        return tuple(dict.fromkeys(words))

    def _topics(self, given: dict[str, Any]) -> dict[str, Any]:
        if not self._need(given, "topics"):
            return {}
        topics = given["topics"]
        if not topics:
            self.report(("topics",), "there is no topic")
        for name in topics:
            self._check_label(name, ("topics", name))
        words = tuple((name, self._check_words(each, ("topics", name))) for name, each in topics.items())
        seen: dict[str, str] = {}
        for name, each in words:
            for index, word in enumerate(each):
                first = seen.setdefault(word.casefold(), name)
                if first != name:
                    self.report(("topics", name, index), f"{word[:100]!r} is of the topic {first!r} already")
        return {"topics": words, "threshold": given.get("threshold", 1)}

    def _check_label(self, name: str, place: Place) -> None:
        if not _LABEL.fullmatch(name):
            self.report(place, "this cannot be a name here", "1 to 32 lower-case letters, digits and _")

    def _expressions(self, given: dict[str, Any]) -> dict[str, Any]:
        if not self._need(given, "patterns"):
            return {}
        said = given.pop("patterns")
        named = list(said.items()) if isinstance(said, dict) else [("", each) for each in _listed(said)]
        if not all(isinstance(pattern, str) for _, pattern in named):
            self.report(("patterns",), "expected a list of texts, or a mapping of names to texts", "quote them")
            return {}
        if not named:
            self.report(("patterns",), "there is no pattern")
        if len(named) > MAX_PATTERNS:
            self.report(("patterns",), f"there are {len(named)} patterns", f"at most {MAX_PATTERNS} are possible")
            return {}
        for index, (name, pattern) in enumerate(named):
            place: Place = ("patterns", name or index)
            if name:
                self._check_label(name, place)
            try:
                empty = Expression(pattern).matches_whole(b"")
            except PatternError as error:
                self.report(place, f"no regular expression of RE2's: {error}")
                continue
            if empty:
                self.report(place, "it also matches nothing at all", "say what has to be there")
        return given | {"patterns": tuple((name or "expression", pattern) for name, pattern in named)}

    def _injection(self, given: dict[str, Any]) -> dict[str, Any]:
        return given

    def _size(self, given: dict[str, Any]) -> dict[str, Any]:
        if len(given) != 1:
            self.report((), "expected one of 'most_characters' and 'most_tokens'")
        return given

    def _schema(self, given: dict[str, Any]) -> dict[str, Any]:
        if not self._need(given, "schema"):
            return {}
        try:
            JsonSchema(given["schema"])
        except SchemaError as error:
            self.report(("schema", *error.place), error.why)
        return {"schema": orjson.dumps(given["schema"]).decode()}

    def _webhook(self, given: dict[str, Any]) -> dict[str, Any]:
        if self._need(given, "url"):
            self._check_url(given["url"])
        return given | {"headers": self._headers(given.get("headers", {}))}

    def _moderation(self, given: dict[str, Any]) -> dict[str, Any]:
        given.setdefault("url", MODERATION_URL)
        self._check_url(given["url"])
        headers = self._headers(given.get("headers", {}))
        key = given.pop("api_key", "")
        if key:
            self._check_value(key, ("api_key",))
            headers = (*headers, ("authorization", f"Bearer {key}"))
        elif not any(name == "authorization" for name, _ in headers) and given["url"] == MODERATION_URL:
            self.report((), "'api_key' is missing", "such as ${OPENAI_API_KEY}")
        if "categories" in given and not given["categories"]:
            self.report(("categories",), "there is no category", "leave it out for all")
        for name in ("categories", "thresholds"):
            for each in given.get(name, ()):
                if not each.strip():
                    self.report((name,), "expected names of categories", "such as violence or self-harm/intent")
        given["categories"] = tuple(given.get("categories", ()))
        given["thresholds"] = tuple(sorted(given.get("thresholds", {}).items()))
        return given | {"headers": headers}

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            right = False
        if not right or not url.isascii() or not url.isprintable() or " " in url:
            self.report(("url",), "expected an address", "such as https://guard.example.org/check")
        elif parts.username is not None or parts.fragment:
            self.report(("url",), "an address without a password and without '#'", "credentials belong in headers")

    def _headers(self, said: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        if len(said) > MAX_HEADERS:
            self.report(("headers",), f"there are {len(said)} headers", f"at most {MAX_HEADERS} are possible")
        for name, value in said.items():
            if not _HEADER.fullmatch(name):
                self.report(("headers", name), "this cannot be the name of a header")
            elif name.lower() in _OURS:
                self.report(("headers", name), "this header is not for you to set")
            self._check_value(value, ("headers", name))
        return tuple((name.lower(), value) for name, value in said.items())

    def _check_value(self, value: str, place: Place) -> None:
        if not value.strip() or not value.isascii() or not value.isprintable():
            self.report(place, "expected printable ASCII characters")


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [said] if said else []


_OPTIONS: Final[Mapping[str, Callable[[_Making, dict[str, Any]], dict[str, Any]]]] = {
    "personal_data": _Making._which,
    "secrets": _Making._which,
    "words": _Making._words,
    "expressions": _Making._expressions,
    "injection": _Making._injection,
    "topics": _Making._topics,
    "size": _Making._size,
    "schema": _Making._schema,
    "webhook": _Making._webhook,
    "moderation": _Making._moderation,
}
assert set(_OPTIONS) == {*BUILT_IN_KINDS, *REMOTE_KINDS} == set(_TAKES)
