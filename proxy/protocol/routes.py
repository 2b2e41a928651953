"""Which operation a request is, who answers it and which dialect is spoken.

The path says what is asked for, the mount (``/openai``, ``/anthropic``, ``/mistral``) says who answers; without a
mount the path's owner answers, else the headers decide. Understood operations are one dictionary look-up; anything
else passes through under a low-cardinality name. The path sent upstream always carries ``/v1`` for a known API root
and is otherwise the caller's, byte for byte.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from proxy.errors import Kind, ProxyError
from proxy.protocol.message import RequestHead

MAX_TARGET_BYTES: Final = 8192


class Dialect(Enum):
    """Whose error bodies, event streams and usage fields are spoken to the client."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    MISTRAL = "mistral"


class Shape(Enum):
    """What goes in and what comes out."""

    WHOLE_OR_STREAM = "whole_or_stream"
    """JSON in; JSON out, or an event stream when the body says ``"stream": true``."""
    WHOLE = "whole"
    """JSON in, JSON out."""
    BINARY = "binary"
    """JSON in, bytes out (or an event stream, when asked for)."""
    READ = "read"
    """GET without a body, JSON out."""
    PASS = "pass"  # noqa: S105 - not a secret
    """Anything: relayed without being understood."""


class Grammar(Enum):
    """How an event stream of a route ends; what ``proxy.protocol.sse`` looks for."""

    DONE = "done"
    """``data: [DONE]``."""
    RESPONSES = "responses"
    """``response.completed``, ``response.failed`` or ``response.incomplete``."""
    MESSAGES = "messages"
    """``message_stop``."""
    LOOSE = "loose"
    """No terminal event can be relied on; the end of the body is the end."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation, the same for all providers that offer it."""

    name: str
    """Low-cardinality word for metrics, logs and policy: ``chat.completions``, ``files``, ``other`` …"""
    shape: Shape
    grammar: Grammar = Grammar.LOOSE
    upload: bool = False
    """The request body is streamed to the upstream and never held in memory."""
    websocket: bool = False
    """An ``Upgrade: websocket`` is allowed here, and nowhere else."""
    reports_usage: bool = False
    """Answers of this route state the tokens they cost."""

    @property
    def understood(self) -> bool:
        """The body is parsed and the answer is known in kind; ``False`` for what merely passes through."""
        return self.shape is not Shape.PASS

    @property
    def has_json_body(self) -> bool:
        return self.shape in _JSON_IN


_JSON_IN: Final = frozenset((Shape.WHOLE_OR_STREAM, Shape.WHOLE, Shape.BINARY))


class Located(NamedTuple):
    """Where a request goes."""

    provider: str
    """Name in the catalog: ``openai``, ``anthropic`` or ``mistral``."""
    dialect: Dialect
    route: Route
    path: str
    """Path for the upstream, mount removed, ``/v1`` in front; no query."""


def _generation(name: str, grammar: Grammar = Grammar.DONE) -> Route:
    return Route(name, Shape.WHOLE_OR_STREAM, grammar, reports_usage=True)


def _counted(name: str) -> Route:
    return Route(name, Shape.WHOLE, reports_usage=True)


_MODEL: Final = Route("model", Shape.READ)

# (method, path behind /v1, route, owner): an owner answers whatever the headers say.
_UNDERSTOOD: Final[tuple[tuple[str, str, Route, str], ...]] = (
    ("POST", "/chat/completions", _generation("chat.completions"), ""),
    ("POST", "/completions", _generation("completions"), ""),
    ("POST", "/responses", _generation("responses", Grammar.RESPONSES), ""),
    ("POST", "/responses/input_tokens", Route("responses.input_tokens", Shape.WHOLE), ""),
    ("POST", "/responses/compact", _counted("responses.compact"), ""),
    ("POST", "/decisions", _counted("decisions"), ""),
    ("POST", "/embeddings", _counted("embeddings"), ""),
    ("POST", "/moderations", _counted("moderations"), ""),
    ("POST", "/rerank", _counted("rerank"), ""),
    ("POST", "/audio/speech", Route("audio.speech", Shape.BINARY), ""),
    (
        "POST",
        "/images/generations",
        Route("images.generations", Shape.WHOLE_OR_STREAM, reports_usage=True),
        "",
    ),
    ("GET", "/models", Route("models", Shape.READ), ""),
    ("POST", "/messages", _generation("messages", Grammar.MESSAGES), "anthropic"),
    ("POST", "/messages/count_tokens", Route("messages.count_tokens", Shape.WHOLE), "anthropic"),
    ("POST", "/fim/completions", _generation("fim.completions"), "mistral"),
    ("POST", "/agents/completions", _generation("agents.completions"), "mistral"),
    ("POST", "/chat/moderations", _counted("chat.moderations"), "mistral"),
    ("POST", "/classifications", _counted("classifications"), "mistral"),
    ("POST", "/chat/classifications", _counted("chat.classifications"), "mistral"),
    ("POST", "/ocr", _counted("ocr"), "mistral"),
)

# Operations that pass through under a name of their own, because later rooms treat them apart.
_PASSED: Final[tuple[tuple[str, str, Route], ...]] = (
    ("POST", "/files", Route("files", Shape.PASS, upload=True)),
    ("POST", "/audio/transcriptions", Route("audio.transcriptions", Shape.PASS, upload=True)),
    ("POST", "/audio/translations", Route("audio.translations", Shape.PASS, upload=True)),
    ("POST", "/images/edits", Route("images.edits", Shape.PASS, upload=True)),
    ("POST", "/images/variations", Route("images.variations", Shape.PASS, upload=True)),
    ("GET", "/realtime", Route("realtime", Shape.PASS, websocket=True)),
    ("GET", "/responses", Route("responses.socket", Shape.PASS, websocket=True)),
)

# First segments of every path in the SDKs (PROTOCOL, appendix A), with those of Mistral and of common servers.
_SHARED_ROOTS: Final = frozenset(
    (
        "agents", "assistants", "audio", "batches", "chat", "chatkit", "completions", "containers",
        "content_provenance_checks", "conversations", "decisions", "embeddings", "evals", "files", "fine_tuning",
        "images", "live", "models", "moderations", "organization", "projects", "realtime", "rerank", "responses",
        "safety", "skills", "threads", "uploads", "vaults", "vector_stores", "videos", "webhook_endpoints",
        "webhook_event_types",
    )
)
_ANTHROPIC_ROOTS: Final = frozenset(
    (
        "deployment_runs", "deployments", "dreams", "environments", "memory_stores", "messages", "organizations",
        "sessions", "tunnels", "user_profiles",
    )
)
_MISTRAL_ROOTS: Final = frozenset(("batch", "classifications", "connectors", "fim", "libraries", "ocr", "workflows"))
_ROOTS: Final = _SHARED_ROOTS | _ANTHROPIC_ROOTS | _MISTRAL_ROOTS

_DIALECTS: Final = {dialect.value: dialect for dialect in Dialect}
_OTHER: Final = Route("other", Shape.PASS)
_NAMED: Final = {route.name.partition(".")[0] for _, _, route, _ in _UNDERSTOOD}
# A root that is also an understood operation gets a name beside it, so that a metric never mixes the two.
_BY_ROOT: Final = {
    root: Route(f"{root}.other" if root in _NAMED else root, Shape.PASS) for root in sorted(_ROOTS)
}


def _dialect_of(route: Route, provider: str) -> Dialect:
    """Messages are Anthropic's whoever serves them, and Anthropic's OpenAI-compatible routes speak OpenAI."""
    if route.name.startswith("messages"):
        return Dialect.ANTHROPIC
    if provider == "anthropic" and route.has_json_body:
        return Dialect.OPENAI
    return _DIALECTS[provider]


def _locate_known(route: Route, provider: str, path: str) -> Located:
    return Located(provider, _dialect_of(route, provider), route, path)


class _Choice(NamedTuple):
    """A row of the table: where the request goes, and where it goes when the headers are Anthropic's."""

    usual: Located
    anthropic: Located | None


def _table() -> dict[tuple[str, str], _Choice]:
    rows = [*_UNDERSTOOD, *((method, path, route, "") for method, path, route in _PASSED)]
    table: dict[tuple[str, str], _Choice] = {}
    for method, tail, route, owner in rows:
        path = "/v1" + tail
        usual = _locate_known(route, owner or "openai", path)
        foreign = None if owner else _locate_known(route, "anthropic", path)
        for version in ("/v1", ""):
            table[method, version + tail] = _Choice(usual, foreign)
            for mount in _DIALECTS:
                table[method, f"/{mount}{version}{tail}"] = _Choice(_locate_known(route, mount, path), None)
    return table


_TABLE: Final = _table()
_MEANT: Final = {"/v1" + path: route.name for _, path, route, _ in _UNDERSTOOD if route.has_json_body} | {
    path: route.name for _, path, route, _ in _UNDERSTOOD if route.has_json_body
}
_MEANT["/v1/messages/batches"] = "messages"
_GRAMMARS: Final = {route.name: route.grammar for _, _, route, _ in _UNDERSTOOD}

_MODEL_NAME: Final = re.compile(r"(?:/(?:openai|anthropic|mistral))?(?:/v1)?/models/[^/]+")
_DOTS: Final = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)
# Escapes that a careless reader decodes into structure: NUL, controls, slash, backslash, dots, and letters or
# digits, whose only use in an escape is to hide which operation is meant.
_SLY_ESCAPE: Final = re.compile(
    r"%(?![0-9a-f]{2})|%[01][0-9a-f]|%7f|%2f|%5c|%2e%2e|%3[0-9]|%[46][1-9a-f]|%[57][0-9a]", re.IGNORECASE
)


def locate(head: RequestHead) -> Located:
    """Say what ``head`` asks for and where it goes.

    Raises ``ProxyError``: ``URI_TOO_LONG`` beyond 8 KiB of path and query, ``BAD_REQUEST`` for a target that two
    readers could understand differently, ``METHOD_NOT_ALLOWED`` for TRACE and CONNECT.
    """
    choice = _TABLE.get((head.method, head.path))
    if choice is None:
        return _locate_other(head)
    if head.query:
        _check_query(head)
    headers = head.headers
    content_type = headers.get(b"content-type", b"")
    if content_type != b"application/json" and _is_multipart(content_type) and choice.usual.route.understood:
        return _locate_other(head)  # a form where JSON is expected: relayed, not understood
    if choice.anthropic is not None and (b"anthropic-version" in headers or b"x-api-key" in headers):
        return choice.anthropic
    return choice.usual


def grammar_of(route_name: str) -> Grammar:
    """How a stream of the route of this name ends; ``LOOSE`` for what passes through."""
    return _GRAMMARS.get(route_name, Grammar.LOOSE)


def resembles(path: str) -> str:
    """Name of the understood operation that a server might take ``path`` (of a `Located`) for, though it passes
    through here: it differs in its case or by a slash at its end, was asked for by other means, or is many of it in
    one. Empty for none."""
    return _MEANT.get(path.rstrip("/").lower(), "")


def _locate_other(head: RequestHead) -> Located:
    _check_path(head)
    if head.query:
        _check_query(head)
    if head.method in ("TRACE", "CONNECT"):
        raise ProxyError(Kind.METHOD_NOT_ALLOWED, f"The method {head.method} is not supported here.")
    mount, path = _split_mount(head.path)
    first, _, rest = path[1:].partition("/")
    versioned = first == "v1"
    root, _, tail = rest.partition("/") if versioned else (first, "", rest)
    if root not in _ROOTS:
        root = ""
    elif not versioned:
        path = "/v1" + path
    route = _passed_route(head, root, tail)
    provider = mount or _owner(head, root)
    return Located(provider, _dialect_of(route, provider), route, path)


def _is_multipart(content_type: bytes) -> bool:
    return content_type[:10].lower() == b"multipart/"


def _split_mount(path: str) -> tuple[str, str]:
    """Name of the mount (empty for none) and the path behind it, never empty."""
    first, slash, rest = path[1:].partition("/")
    if first in _DIALECTS:
        return first, slash + rest or "/"
    return "", path


def _owner(head: RequestHead, root: str) -> str:
    if root in _ANTHROPIC_ROOTS:
        return "anthropic"
    if root in _MISTRAL_ROOTS:
        return "mistral"
    if b"anthropic-version" in head.headers or b"x-api-key" in head.headers:
        return "anthropic"
    return "openai"


def _passed_route(head: RequestHead, root: str, tail: str) -> Route:
    """The route of an operation that the table does not hold; ``tail`` is what follows the root's slash."""
    if root == "models" and head.method == "GET" and tail and "/" not in tail:
        return _MODEL
    if root == "messages" and tail.partition("/")[0] == "batches":
        return _BATCHES
    upload = root == "uploads" and head.method == "POST" and tail.endswith("/parts")
    if upload or _is_multipart(head.get(b"content-type")):
        return _UPLOADS_BY_ROOT.get(root, _OTHER_UPLOAD)
    return _BY_ROOT.get(root, _OTHER)


_BATCHES: Final = Route("messages.batches", Shape.PASS)
_OTHER_UPLOAD: Final = Route("other", Shape.PASS, upload=True)
_UPLOADS_BY_ROOT: Final = {root: Route(route.name, Shape.PASS, upload=True) for root, route in _BY_ROOT.items()}


def _check_path(head: RequestHead) -> None:
    path = head.path
    if len(path) + len(head.query) > MAX_TARGET_BYTES:
        raise ProxyError(Kind.URI_TOO_LONG, f"The request target is longer than {MAX_TARGET_BYTES} bytes.")
    if "%2" in path and _MODEL_NAME.fullmatch(path):
        # Open models are named "owner/model", and SDKs escape that slash. What it stands for is checked as if it were
        # one, so that it can hide no segment.
        path = path.replace("%2F", "/").replace("%2f", "/")
    if not (path.isascii() and path.isprintable()) or " " in path or "#" in path or "\\" in path:
        raise _refused("The path has characters that need escaping.")
    if "//" in path:
        raise _refused("The path has an empty segment.")
    if "." in path or "%" in path:
        if _DOTS.search(path):
            raise _refused("The path has a dot segment.")
        if "%" in path and _SLY_ESCAPE.search(path):
            raise _refused("The path has an escape that does not belong there.")


def _check_query(head: RequestHead) -> None:
    query = head.query
    if len(head.path) + len(query) > MAX_TARGET_BYTES:
        raise ProxyError(Kind.URI_TOO_LONG, f"The request target is longer than {MAX_TARGET_BYTES} bytes.")
    if not (query.isascii() and query.isprintable()) or " " in query or "#" in query:
        raise _refused("The query has characters that need escaping.")


def _refused(public: str) -> ProxyError:
    return ProxyError(Kind.BAD_REQUEST, public, why="target")
