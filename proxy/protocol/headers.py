"""Which headers cross the proxy, in both directions, and which ones steer it.

A shared upstream call may depend on nothing that is not in its key, so its headers are an allow-list that is also
keyed (``semantic_headers``). A private call has one caller and gets that caller's headers, less what belongs to the
connection, to the proxy or to the credential. Our own headers are added after the removal, so that no ``Connection``
header can name them for deletion (RFC 9110, 7.6.1).

Names are lower-case; a value with a control character is dropped in either direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from proxy.errors import Kind, ProxyError
from proxy.protocol.message import HeaderList, RequestHead, ResponseHead
from proxy.protocol.routes import Dialect

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_CREDENTIALS: Final = frozenset((b"authorization", b"x-api-key", b"api-key"))

# What a ``Connection`` header may not remove: who asks, what the body is, and how it may be kept.
_NOT_NOMINABLE: Final = _CREDENTIALS | frozenset(
    (
        b"accept",
        b"cache-control",
        b"content-encoding",
        b"content-type",
        b"content-length",
        b"host",
        b"anthropic-version",
        b"anthropic-beta",
        b"openai-beta",
    )
)

# Tab is the one control character that a value may hold (RFC 9110, 5.5).
_CONTROLS: Final = bytes(code for code in range(32) if code != 9) + b"\x7f"

_SEMANTIC: Final[dict[Dialect, tuple[bytes, ...]]] = {
    Dialect.OPENAI: (b"openai-beta", b"openai-organization", b"openai-project"),
    Dialect.ANTHROPIC: (
        b"anthropic-beta",
        b"anthropic-user-profile-id",
        b"anthropic-version",
        b"anthropic-workspace-id",
    ),
    Dialect.MISTRAL: (),
}

_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"


# --- requests ---


def semantic_headers(head: RequestHead, dialect: Dialect, extra: tuple[bytes, ...] = ()) -> HeaderList:
    """The headers that may change an answer, sorted: input of the key and of the upstream request alike.

    ``content-type`` and ``content-encoding`` are not here because the key holds them as fields of their own.
    ``extra`` names further ones that an operator's provider heeds.
    """
    headers = head.headers
    chosen: HeaderList = []
    accept = headers.get(b"accept")
    if accept is not None:
        accept = _reduce_accept(accept)
        if accept:
            chosen.append((b"accept", accept))
    for name in _SEMANTIC[dialect] + extra if extra else _SEMANTIC[dialect]:
        value = headers.get(name)
        if value is not None and _is_clean(value):
            chosen.append((name, value))
    if extra:
        chosen.sort()
    return chosen


def shared_request_headers(
    head: RequestHead, dialect: Dialect, credential_headers: HeaderList, extra: tuple[bytes, ...] = ()
) -> HeaderList:
    """Everything that a shared upstream call sends: the semantic headers and what describes the body, sorted, and
    then the credential that the key stands for. Nothing else of the client gets through."""
    sent = semantic_headers(head, dialect, extra)
    for name in (b"content-encoding", b"content-type"):
        value = head.headers.get(name)
        if value is not None and _is_clean(value):
            sent.append((name, value))
    sent.sort()
    sent += credential_headers
    return sent


def private_request_headers(head: RequestHead, credential_headers: HeaderList) -> HeaderList:
    """Everything that a call for one client alone sends: that client's headers in their order, less what belongs to
    the connection, to the proxy or to a credential, and then ``credential_headers``."""
    nominated = _nominated(head.headers.get(b"connection", b""))
    verdicts = _REQUEST_VERDICTS
    sent = [header for header in head.raw if not verdicts[header[0]]]
    if nominated or not _is_clean(b"".join([value for _, value in sent])):
        sent = [header for header in sent if header[0] not in nominated and _is_clean(header[1])]
    sent += credential_headers
    return sent


def _reduce_accept(value: bytes) -> bytes:
    """``application/json`` or ``text/event-stream`` when exactly one of them is asked for, else nothing."""
    if value == _JSON:
        return _JSON
    lowered = value.lower()
    json, events = _JSON in lowered, _EVENTS in lowered
    if json == events:
        return b""
    return _JSON if json else _EVENTS


def _is_clean(value: bytes) -> bool:
    return len(value.translate(None, _CONTROLS)) == len(value)


def _nominated(connection: bytes) -> frozenset[bytes] | set[bytes]:
    """Names that the joined ``connection`` headers declare to be hop-by-hop."""
    if connection in _USUAL_CONNECTION:
        return _NOBODY
    return {word.strip() for word in connection.lower().split(b",")} - _NOT_NOMINABLE


_NOBODY: Final[frozenset[bytes]] = frozenset()
_USUAL_CONNECTION: Final = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b""))


MAX_REMEMBERED_NAMES: Final = 1024


class _Verdicts(dict[bytes, int]):
    """Name to verdict, asked once for each name. Bounded: names come from the outside."""

    __slots__ = ("_drop", "_drop_prefixes", "_lead", "_lead_prefixes", "_underscores")

    def __init__(
        self,
        drop: frozenset[bytes],
        drop_prefixes: tuple[bytes, ...],
        lead: frozenset[bytes] = frozenset(),
        lead_prefixes: tuple[bytes, ...] = (),
        underscores: bool = True,
    ) -> None:
        super().__init__()
        self._underscores = underscores
        self._drop, self._drop_prefixes = drop, drop_prefixes
        self._lead, self._lead_prefixes = lead, lead_prefixes

    def __missing__(self, name: bytes) -> int:
        if name in self._drop or name.startswith(self._drop_prefixes):
            verdict = _DROP
        elif b"_" in name and not self._underscores:
            # Some servers read ``x_api_key`` as ``x-api-key``: a second spelling of what was just removed.
            verdict = _DROP
        elif name in self._lead or (self._lead_prefixes and name.startswith(self._lead_prefixes)):
            verdict = _LEADER
        else:
            verdict = _SHARED
        if len(name) <= 64:
            if len(self) >= MAX_REMEMBERED_NAMES:
                self.clear()
            self[name] = verdict
        return verdict


_SHARED: Final = 0
_LEADER: Final = 1
_DROP: Final = 2

_REQUEST_VERDICTS: Final = _Verdicts(
    _HOP_BY_HOP
    | _CREDENTIALS
    | frozenset((b"host", b"content-length", b"expect", b"forwarded", b"x-real-ip")),
    (b"x-sameflight-", b"x-forwarded-"),
    underscores=False,
)


# --- controls ---

MAX_VARIANT_BYTES: Final = 128
MAX_IDEMPOTENCY_KEY_BYTES: Final = 255
MAX_TIER_BYTES: Final = 64


@dataclass(slots=True)
class Controls:
    """What the client asks of the proxy itself. Written by ``parse_controls`` only. Times in seconds."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    max_stale_s: float | None = None
    """Infinite for a bare ``max-stale``."""
    share: str | None = None
    """``off``, ``on`` or ``retry``."""
    variant: bytes = b""
    """Keeps samples apart: hashed into the key."""
    cache: str | None = None
    """``on``, ``off``, ``refresh`` or ``only``."""
    cache_ttl_s: float | None = None
    idempotency_key: bytes | None = None
    tier: str = ""
    """The tier of a virtual model that is to answer."""
    retry_count: int = 0
    """How often the SDK says it tried before."""
    patience_s: float | None = None
    """How long the SDK will wait for the next byte."""
    prune: bool = True
    """Messages may fall out of a long conversation; ``off`` forbids it."""


_SHARE_WORDS: Final = (b"off", b"retry", b"on")
_CACHE_WORDS: Final = (b"off", b"only", b"refresh", b"on")
_PRUNE_WORDS: Final = (b"off",)


def parse_controls(head: RequestHead) -> Controls:
    """Read the headers that steer the proxy (COALESCING 2.10).

    An unknown or malformed value counts as absent. Raises ``ProxyError`` ``BAD_REQUEST`` for a variant or an
    idempotency key that is too long: to leave it out would share what the client wants kept apart; and for such a
    tier, because there is none.
    """
    headers = head.headers
    controls = Controls()
    retries = headers.get(b"x-stainless-retry-count")
    if retries is not None and retries != b"0" and len(retries) <= 3 and retries.isdigit():
        controls.retry_count = int(retries)
    for name in (b"x-stainless-read-timeout", b"x-stainless-timeout"):
        patience_s = _seconds(headers.get(name))
        if patience_s and (controls.patience_s is None or patience_s < controls.patience_s):
            controls.patience_s = patience_s
    if b"cache-control" in headers:
        _read_cache_control(controls, headers[b"cache-control"])
    if b"idempotency-key" in headers:
        controls.idempotency_key = _bounded(headers, b"idempotency-key", MAX_IDEMPOTENCY_KEY_BYTES) or None
    if b"x-sameflight-share" in headers:
        controls.share = _strictest(headers[b"x-sameflight-share"], _SHARE_WORDS)
    if b"x-sameflight-variant" in headers:
        controls.variant = _bounded(headers, b"x-sameflight-variant", MAX_VARIANT_BYTES)
    if b"x-sameflight-cache" in headers:
        controls.cache = _strictest(headers[b"x-sameflight-cache"], _CACHE_WORDS)
    if b"x-sameflight-tier" in headers:
        controls.tier = _bounded(headers, b"x-sameflight-tier", MAX_TIER_BYTES).strip().lower().decode("latin-1")
    if b"x-sameflight-cache-ttl" in headers:
        controls.cache_ttl_s = _seconds(headers[b"x-sameflight-cache-ttl"])
    if b"x-sameflight-prune" in headers:
        controls.prune = _strictest(headers[b"x-sameflight-prune"], _PRUNE_WORDS) is None
    return controls


def _read_cache_control(controls: Controls, value: bytes) -> None:
    for directive in value.lower().split(b","):
        word, equals, argument = directive.strip().partition(b"=")
        if word == b"no-store":
            controls.no_store = True
        elif word == b"no-cache":
            controls.no_cache = True
        elif word == b"only-if-cached":
            controls.only_if_cached = True
        elif word == b"max-age":
            controls.max_age_s = _smaller(controls.max_age_s, _seconds(argument.strip(b'"')))
        elif word == b"max-stale":
            stale_s = _seconds(argument.strip(b'"')) if equals else inf
            controls.max_stale_s = _smaller(controls.max_stale_s, stale_s)


def _strictest(value: bytes, words: tuple[bytes, ...]) -> str | None:
    """The first of ``words`` that ``value`` says; a header sent twice is as strict as its strictest line."""
    said = [word.strip() for word in value.lower().split(b",")]
    for word in words:
        if word in said:
            return word.decode()
    return None


def _seconds(value: bytes | None) -> float | None:
    """A plain decimal number; anything else, ``inf`` and ``nan`` included, is nothing."""
    if value is None or len(value) > 16 or not value.replace(b".", b"", 1).isdigit():
        return None
    return float(value)


def _smaller(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _bounded(headers: dict[bytes, bytes], name: bytes, limit_bytes: int) -> bytes:
    value = headers.get(name, b"")
    if len(value) > limit_bytes or not _is_clean(value):
        raise ProxyError(
            Kind.BAD_REQUEST,
            f"The header {name.decode()} may have at most {limit_bytes} bytes and no control characters.",
            why="control_header",
        )
    return value


# --- responses ---

# What an origin says about its own connection, host or moment; framing is recomputed.
_OF_THE_ORIGIN: Final = _HOP_BY_HOP | frozenset(
    (
        b"alt-svc",
        b"content-length",
        b"date",
        b"nel",
        b"report-to",
        b"reporting-endpoints",
        b"server",
        b"strict-transport-security",
        b"via",
    )
)

LIMIT_PREFIXES: Final = (b"x-ratelimit", b"ratelimit", b"anthropic-ratelimit-")
"""How the names begin under which vendors tell of the limits of an account."""

_RESPONSE_VERDICTS: Final = _Verdicts(
    _OF_THE_ORIGIN | {b"set-cookie"},
    (b"x-sameflight-",),
    frozenset((b"age", b"openai-processing-ms", b"x-envoy-upstream-service-time")),
    (*LIMIT_PREFIXES, b"x-kong-"),
)
_PRIVATE_RESPONSE_VERDICTS: Final = _Verdicts(_OF_THE_ORIGIN, (b"x-sameflight-",))


def split_response_headers(head: ResponseHead) -> tuple[HeaderList, HeaderList]:
    """Part the headers of a shared answer: (for every subscriber, for the leader alone).

    The leader's describe the one call that was made: rate limits, processing time, the answer's age. ``retry-after``
    is for all.
    """
    return _sort_out(head.headers, _RESPONSE_VERDICTS)


def private_response_headers(head: ResponseHead) -> HeaderList:
    """The headers of an answer that one client alone gets: all but hop-by-hop, framing and the origin's own;
    cookies stay."""
    return _sort_out(head.headers, _PRIVATE_RESPONSE_VERDICTS)[0]


def without_framing(headers: HeaderList) -> HeaderList:
    """The headers of a response that stay true when its body becomes another one."""
    return [header for header in headers if header[0] not in _OF_THE_BODY]


_OF_THE_BODY: Final = frozenset(
    (
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"content-md5",
        b"digest",
        b"etag",
        b"transfer-encoding",
    )
)


def _sort_out(headers: HeaderList, verdicts: _Verdicts) -> tuple[HeaderList, HeaderList]:
    """(shared, for the leader), without nominated headers and without values that hold control characters."""
    shared = [header for header in headers if verdicts[header[0]] == _SHARED]
    leader = [header for header in headers if verdicts[header[0]] == _LEADER]
    connection = [value for name, value in headers if name == b"connection"]
    nominated = _nominated(b",".join(connection)) if connection else _NOBODY
    # One pass over all values together; the look at each is for the rare answer that needs it.
    if nominated or not _is_clean(b"".join([value for _, value in headers])):
        shared = [header for header in shared if header[0] not in nominated and _is_clean(header[1])]
        leader = [header for header in leader if header[0] not in nominated and _is_clean(header[1])]
    return shared, leader
