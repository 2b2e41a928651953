"""The seam between dialects: every dialect turns its own wire into neutral words and neutral words into its own wire.

    caller's body --read_request--> Conversation --write_request--> Encoding (path, headers, body of the target)
    target's bytes --Reader.feed--> events --Writer.write--> caller's bytes
    target's refusal --classify--> Fault --fault_body--> caller's refusal

With n dialects that is n readers and n writers instead of n² translators. The neutral words are ``proxy.protocol.
conversation`` and ``proxy.protocol.events``. A request of the target's own dialect is not translated at all:
``proxy.providers.translation`` edits its model name and hands the answer's bytes on.

Rules for every implementation: sans-IO; nothing is dropped silently (``Draft`` sees to that); what cannot be said in
the target's dialect is refused by ``ProxyError`` ``BAD_REQUEST`` that names the caller's field; a reader accepts
its bytes in any portions and its events do not depend on them; a writer's bytes depend on the events alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import orjson

from proxy.errors import Kind, ProxyError
from proxy.protocol.conversation import BINDING, Conversation, Option
from proxy.protocol.events import MAX_MESSAGE_CHARS, Event, Fault
from proxy.protocol.message import HeaderList, ResponseHead

Fields = dict[str, Any]

ANTHROPIC_VERSION: Final = "2023-06-01"
"""Of the Messages API, where the catalog says no other."""

JSON_HEADERS: Final[HeaderList] = [(b"content-type", b"application/json")]
MAX_REPORTED: Final = 64
"""Distinct names of left-out fields that are told; a request cannot make the list longer."""
MAX_NAME_CHARS: Final = 100
MAX_ERROR_BYTES: Final = 65_536
MAX_DEPTH: Final = 128
"""Levels of JSON in an answer or in the arguments of a call; its writer gives up beyond 254."""


@dataclass(frozen=True, slots=True)
class Form:
    """What the catalog says about one target, as far as its requests look different for it."""

    model: str
    """The name the upstream knows; goes into the body or the path."""
    max_tokens: int = 0
    """Limit of the answer where the dialect demands one and the caller gave none; 0: by the model's name."""
    most_tokens: int = 0
    """Longest answer the model gives: a caller's larger limit is lowered to it, and reported; 0: unknown."""
    cache_markers: str = ""
    """How chat completions say where a prompt is worth caching: ``breakpoint`` (OpenAI's
    ``prompt_cache_breakpoint``), ``cache_control`` (gateways), or empty for a server that stumbles over both."""
    json_output: str = "format"
    """How Anthropic is made to answer in a schema: ``format`` (``output_config``) or ``tool`` (older models)."""
    thinking: str = ""
    """How Anthropic is made to think: ``adaptive``, ``budget``, ``off``; empty: by the model's name."""
    version: str = ""
    """``anthropic-version`` or Azure's ``api-version``; empty: the dialect's default."""
    extra: tuple[tuple[str, Any], ...] = ()
    """Members that the operator adds to every body sent to this target, unless the caller set them."""


class Encoding(NamedTuple):
    """A request in the target's dialect."""

    path: str
    """Path and query behind the provider's base path."""
    headers: HeaderList
    """All but the credential, ``host`` and framing."""
    body: bytes
    reported: tuple[str, ...] = ()
    """Fields of the caller's request that had no place, indexes left out: ``messages[].name``. For a response header
    and the log."""
    json_tool: str = ""
    """Name of a tool that stands for the JSON output which the caller asked for: its calls are text to the reader."""
    streams: bool = False


class Asked(NamedTuple):
    """What an answer has to know of the caller's request."""

    fields: Fields
    """The caller's body."""
    streams: bool
    wants_usage: bool = True
    """Chat completions: a stream tells its usage."""
    created_s: int = 0
    """Unix time that the answer bears where the upstream gives none."""


class Reader(Protocol):
    """The bytes of one streamed answer in, events out."""

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes."""

    def close(self) -> list[Event]:
        """The upstream closed the body. An answer that has not ended ends in a ``Fault``."""


class Writer(Protocol):
    """Events in, the bytes of the caller's stream out."""

    def write(self, event: Event) -> bytes: ...


class Provider(Protocol):
    """One dialect, both ways round. Stateless: one object serves all requests."""

    name: str
    family: str
    """Dialects of one family share the form of their requests; ``Conversation.family``."""
    wire: str
    """Providers of one wire need no translation between them, neither there nor back: `relay_request`."""

    def read_request(self, fields: Fields, model: str, streams: bool) -> Conversation:
        """The caller's body in neutral words. Raises ``ProxyError`` (``BAD_REQUEST``) naming a malformed field."""

    def write_request(self, conversation: Conversation, form: Form) -> Encoding:
        """The same for a target. Raises ``ProxyError`` (``BAD_REQUEST``) naming the field that has no translation."""

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        """The request of a caller of the same wire: its bytes, with the target's model."""

    def credential(self, key: str) -> HeaderList:
        """The header that carries a key of this provider."""

    def reader(self, encoding: Encoding) -> Reader: ...

    def events_of(self, body: bytes, encoding: Encoding) -> list[Event]:
        """A whole answer as events; a ``Fault`` alone if it is none."""

    def writer(self, asked: Asked) -> Writer: ...

    def body_of(self, events: list[Event], asked: Asked) -> bytes:
        """Events of an answer without a fault as one JSON body."""

    def classify(self, head: ResponseHead, body: bytes) -> Fault:
        """Why the upstream answered with a status beyond 299."""

    def fault_body(self, fault: Fault, request_id: str) -> tuple[int, bytes]:
        """Status and JSON body that tell a caller of this dialect about ``fault``."""


class Draft:
    """One request on its way into a target's dialect: what is left of the options, and what had no place."""

    # Mutable, written by the writer that owns it: `options` shrinks, `reported` grows.
    __slots__ = ("_names", "_said", "_same", "options")

    def __init__(self, conversation: Conversation, family: str) -> None:
        self.options = dict(conversation.options)
        self._said = conversation.options.keys()
        self._names: dict[str, None] = {}
        for name in conversation.reported:
            self.report(name)
        self._same = conversation.family == family

    def take(self, name: str) -> Any:
        """The option's value; ``None`` if there is none."""
        option = self.options.pop(name, None)
        return None if option is None else option.value

    def take_limit(self, form: Form) -> Any:
        """The longest answer the caller wants, as far as the model goes; ``None`` if it did not say."""
        option = self.options.pop("max_tokens", None)
        if option is None:
            return None
        if form.most_tokens and type(option.value) is int and option.value > form.most_tokens:
            self.report(option.field)
            return form.most_tokens
        return option.value

    def take_thinking(self) -> Fields | None:
        """Anthropic's ``thinking``, for a target that knows no such object; what it says beyond type and budget is
        reported."""
        option = self.options.get("thinking")
        if option is None or type(option.value) is not dict:
            return None
        del self.options["thinking"]
        for name in option.value:
            if name not in ("type", "budget_tokens"):
                self.report(f"{option.field}.{name}")
        return option.value

    def field_of(self, name: str) -> str:
        """The caller's name of an option that is still there."""
        return self.options[name].field

    def report(self, name: str) -> None:
        """Note a field that had no place. The name may be the caller's own invention and goes into a header."""
        if len(self._names) < MAX_REPORTED:
            self._names[_UNSAFE.sub("?", _INDEX.sub("[]", name[:MAX_NAME_CHARS]))] = None

    def keep(self, extra: Fields, at: str, into: Fields) -> None:
        """Hand on the members of a block or turn that nobody knows, or report them."""
        for name, value in extra.items():
            if self._same:
                into.setdefault(name, value)
            else:
                self.report(f"{at}.{name}" if at else name)

    def finish(self, body: Fields, form: Form) -> tuple[str, ...]:
        """Settle what is left; the names of what had no place. ``body`` gains members of the same family and those
        that the operator adds."""
        for name, option in self.options.items():
            if option.foreign and self._same:
                body.setdefault(name, option.value)
            elif name in BINDING:
                raise refuse(option.field, "cannot be translated for this model")
            else:
                self.report(option.field)
        for name, value in form.extra:
            if name not in self._said:  # a caller's own default may have been left out
                body.setdefault(name, value)
        return tuple(self._names)


_INDEX: Final = re.compile(r"\[\d+\]")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def refuse(at: str, why: str) -> ProxyError:
    """The refusal of a request that has no translation; ``at`` is the caller's field."""
    return ProxyError(Kind.BAD_REQUEST, f"'{at}' {why[:MAX_REASON_CHARS]}.", why="translation")


MAX_REASON_CHARS: Final = 200
"""A reason may repeat a word of the caller's."""


def malformed(at: str, expected: str) -> ProxyError:
    return ProxyError(Kind.BAD_REQUEST, f"'{at}' must be {expected}.", why="field")


def list_at(value: object, at: str) -> list[Any]:
    """The value if it is a list, an empty one for null. Raises ``ProxyError``."""
    if value is None:
        return []
    if type(value) is not list:
        raise malformed(at, "an array")
    return value


def object_at(value: object, at: str) -> Fields:
    """The value if it is an object. Raises ``ProxyError``."""
    if type(value) is not dict:
        raise malformed(at, "an object")
    return value


def text_at(value: object, at: str) -> str:
    """The value if it is a string, an empty one for null. Raises ``ProxyError``."""
    if value is None:
        return ""
    if type(value) is not str:
        raise malformed(at, "a string")
    return value


def rest_of(fields: Fields, known: frozenset[str]) -> Fields:
    """The members that say something and that nobody knows."""
    return {name: value for name, value in fields.items() if name not in known and value is not None}


def note_rest(fields: Fields, known: tuple[str, ...], at: str, conversation: Conversation) -> None:
    """Report the members of an object inside a block or setting that have no place of their own anywhere."""
    for name, value in fields.items():
        if name not in known and value is not None:
            conversation.reported.append(f"{at}.{name}")


def read_options(
    fields: Fields, neutral: dict[str, str], known: frozenset[str], into: dict[str, Option], prefix: str = ""
) -> None:
    """Turn members into options: those in ``neutral`` under its names, all others but the ``known`` as foreign ones.
    Null says nothing."""
    for name, value in fields.items():
        if value is None or name in known:
            continue
        word = neutral.get(name)
        into[word or prefix + name] = Option(value, prefix + name, foreign=word is None and not prefix)


def short_id(tool_id: str) -> str:
    """Nine letters and digits for an id of another vendor; the same id always gets the same ones."""
    number = int.from_bytes(hashlib.blake2b(tool_id.encode(), digest_size=8).digest(), "big")
    letters = []
    for _ in range(9):
        number, rest = divmod(number, 62)
        letters.append(_LETTERS[rest])
    return "".join(letters)


_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def parse_arguments(text: str) -> Fields:
    """The arguments of a tool call as an object. A model may write what is no JSON; Anthropic's documents ask for
    such a text under this name, and `dump_arguments` takes it out again."""
    fields = parse_object(text.encode()) if text.strip() else {}
    return {_INVALID_JSON: text} if fields is None else fields


def dump_arguments(fields: object) -> str:
    if type(fields) is dict and fields.keys() == {_INVALID_JSON} and type(fields[_INVALID_JSON]) is str:
        return fields[_INVALID_JSON]
    return orjson.dumps({} if fields is None else fields).decode()


_INVALID_JSON: Final = "INVALID_JSON"


def words_in(fields: Fields, name: str) -> str:
    """A member of an upstream's answer if it is a string, else nothing: its mistakes are not ours to raise."""
    value = fields.get(name)
    return value if type(value) is str else ""


def items_in(fields: Fields, name: str) -> list[Any]:
    """The same for a list."""
    value = fields.get(name)
    return value if type(value) is list else []


def index_in(fields: Fields, name: str = "index") -> int:
    """The same for a number of a block, item or choice; 0 for none."""
    value = fields.get(name)
    return value if type(value) is int else 0


def dump(fields: Fields) -> bytes:
    return orjson.dumps(fields)


def parse_object(body: bytes) -> Fields | None:
    """The object that a text is; ``None`` if it is none, or one so deep that it could not be written again."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if type(fields) is not dict or (body.count(b"{") + body.count(b"[") > MAX_DEPTH and _is_deep(fields)):
        return None
    return fields


def _is_deep(fields: Fields) -> bool:
    """Whether it nests beyond ``MAX_DEPTH``; level by level, so that depth never becomes recursion."""
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def clip(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "…"
