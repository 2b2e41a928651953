"""Which requests may share a flight: the class of a request, and what a profile allows that class.

Pure. The classes and profiles are those of README's sharing table. The default is to deny: a field or a tool type
that is not known to be harmless moves a request to a class that shares less, never to one that shares more.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from proxy.policy.plan import ShareClass, Sharing
from proxy.protocol.call import Call
from proxy.protocol.headers import Controls
from proxy.protocol.routes import Route, Shape

PROFILES: Final = ("off", "pure", "retries", "auto", "all")

_PURE: Final = frozenset(
    (
        "models",
        "model",
        "embeddings",
        "moderations",
        "chat.moderations",
        "rerank",
        "classifications",
        "chat.classifications",
        "decisions",
        "messages.count_tokens",
        "responses.input_tokens",
    )
)
_COSTLY: Final = frozenset(("images.generations", "audio.speech"))
_STATEFUL: Final = frozenset(("agents.completions",))

# Tools that the caller runs; everything else is run by the provider.
_CLIENT_TOOLS: Final = ("function", "custom", "bash_", "text_editor_", "memory_")
# Provider tools whose answer depends on when they are asked.
_TIME_TOOLS: Final = ("web_search", "web_fetch", "file_search")


# Members that make an answer change, or depend on, what the provider keeps. A thread's state is kept under the
# answer's id, so that two callers of one answer would talk into one thread; a credit token is spent once.
_EFFECTS: Final = ("conversation", "mcp_servers", "container", "thread", "fallback_credit_token")
# Tools can also be defined inside the conversation, out of `tools`.
_INLINE_TOOLS: Final = (b'"additional_tools"', b'"tool_addition"')


# Every name that decides something below, but for a temperature of the kind most requests carry.
_TELLING: Final = frozenset(
    ("store", "background", "prompt", "web_search_options", "functions", "tools", "audio", "seed", "random_seed", "n")
) | frozenset(_EFFECTS)
_PLAIN: Final = frozenset(("chat.completions", "messages"))
"""Routes whose requests are of class C unless one of those names is there."""


class Classified(NamedTuple):
    share_class: ShareClass
    deterministic: bool
    """The caller asked for the same answer each time, so that sharing cannot surprise it."""


_SAMPLED: Final = Classified(ShareClass.SAMPLED, deterministic=False)


def classify(route: Route, call: Call | None) -> Classified:
    """Say which class a request belongs to. ``call`` is ``None`` for a request without a JSON body."""
    if route.name in _PURE:
        return Classified(ShareClass.PURE, deterministic=True)
    if not route.understood or call is None or route.name in _STATEFUL:
        return Classified(ShareClass.EFFECTS, deterministic=False)
    fields = call.fields
    plain = route.name in _PLAIN and fields.get("temperature", 1) and _TELLING.isdisjoint(fields)
    if plain and call.body.find(b"tool") < 0:
        return _SAMPLED  # nothing below would find anything
    if _has_effects(route, fields) or any(call.body.find(word) >= 0 for word in _INLINE_TOOLS):
        return Classified(ShareClass.EFFECTS, deterministic=False)
    deterministic = _is_deterministic(fields)
    tools = _classify_tools(fields)
    if tools is not None and tools is not ShareClass.TOOLS:
        return Classified(tools, deterministic=False)
    if route.name in _COSTLY or route.shape is Shape.BINARY or fields.get("audio"):
        return Classified(ShareClass.COSTLY, deterministic)
    if tools is ShareClass.TOOLS:
        return Classified(ShareClass.TOOLS, deterministic)
    return Classified(ShareClass.DETERMINISTIC if deterministic else ShareClass.SAMPLED, deterministic)


def _has_effects(route: Route, fields: dict[str, Any]) -> bool:
    """Whether answering changes something at the provider."""
    if fields.get("store") not in (None, False):
        return True
    if route.name == "responses" and fields.get("store") is not False:
        return True  # the provider stores a response unless told otherwise
    if route.name == "responses" and (fields.get("background") or fields.get("prompt")):
        return True  # a stored prompt brings tools along that are not to be seen here
    return any(fields.get(name) for name in _EFFECTS)


def _is_deterministic(fields: dict[str, Any]) -> bool:
    # Left out, the temperature is the provider's default, which samples.
    if fields.get("seed") is not None or fields.get("random_seed") is not None:
        return True
    temperature = fields.get("temperature")
    return type(temperature) in (int, float) and temperature == 0 and fields.get("n") in (None, 1)


def _classify_tools(fields: dict[str, Any]) -> ShareClass | None:
    if fields.get("web_search_options") is not None:
        return ShareClass.TIME_DEPENDENT
    found = ShareClass.TOOLS if fields.get("functions") else None
    tools = fields.get("tools")
    if not tools:
        return found
    if not isinstance(tools, list):
        return ShareClass.EFFECTS
    for tool in tools:
        kind = tool.get("type", "function") if isinstance(tool, dict) else None
        if not isinstance(kind, str):
            return ShareClass.EFFECTS
        if kind.startswith(_TIME_TOOLS):
            found = ShareClass.TIME_DEPENDENT
        elif not kind.startswith(_CLIENT_TOOLS):
            return ShareClass.EFFECTS
        elif found is None:
            found = ShareClass.TOOLS
    return found


_ALONE: Final = {
    why: Sharing(why=why)
    for why in ("effects", "profile", "asked", "no_store", "body_size", "encoding", "no_fingerprint")
}


_NOBODY: Final = {why: Sharing(leads=False, why=why) for why in _ALONE}


def alone(why: str, controls: Controls) -> Sharing:
    """A request that meets nobody, and the reason; it still makes no call if it asks for what is there already."""
    return (_NOBODY if controls.only_if_cached or controls.cache == "only" else _ALONE)[why]


def decide_sharing(classified: Classified, profile: str, controls: Controls) -> Sharing:
    """Apply a profile to a class; the caller can make the outcome stricter but not wider than the profile allows."""
    share_class = classified.share_class
    if share_class is ShareClass.EFFECTS:
        return alone("effects", controls)
    if controls.share == "off":
        return alone("asked", controls)
    if controls.no_store:
        return alone("no_store", controls)
    full, retried = _allowed(classified, profile, opted_in=controls.share == "on")
    if not (full or retried):
        return alone("profile", controls)
    # A key names one operation, however fresh its answer is to be; another retry asks for an answer.
    marked = controls.idempotency_key is not None or (controls.retry_count > 0 and not controls.no_cache)
    joins = full and controls.share != "retry" and not controls.no_cache
    return Sharing(
        registers=True,
        joins=joins,
        retry=marked,
        leads=not (controls.only_if_cached or controls.cache == "only"),
    )


def _allowed(classified: Classified, profile: str, *, opted_in: bool) -> tuple[bool, bool]:
    """Whether the class is shared by every identical request, and whether at least by marked retries."""
    share_class = classified.share_class
    if profile == "off":
        return False, False
    if share_class is ShareClass.PURE:
        return True, True
    if profile == "pure":
        return False, False
    if share_class is ShareClass.TIME_DEPENDENT:
        return False, True
    if profile == "all":
        return True, True
    if share_class is ShareClass.COSTLY:
        return False, True
    if classified.deterministic:
        return True, True
    return profile == "auto" and opted_in, True


def is_shareable_head(
    status: int, content_type: bytes, vary: bytes, *, expects: tuple[bytes, ...], length: int | None, max_bytes: int
) -> bool:
    """Whether an upstream's head may go to everybody who waits for it.

    A failure is shared as it is. A success must be of the kind the route promises (``expects`` holds prefixes of
    content types, empty for any), of a bounded size, and must not vary by what the key does not hold.
    """
    if b"*" in vary:
        return False
    if length is not None and length > max_bytes:
        return False
    if status >= 400:
        return True
    if status != 200:
        return False
    return not expects or content_type.startswith(expects)
