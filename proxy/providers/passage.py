"""How a routed request gets to one target: which dialects meet, and what is sent.

Generations (chat completions, messages, responses) reach every kind of target, as they are or translated. Every other
operation exists in one dialect only and is relayed to targets that speak it, with the target's model put in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple
from urllib.parse import quote

from proxy.config.models import ModelTarget
from proxy.errors import Kind, ProxyError
from proxy.policy.plan import Plan
from proxy.protocol.conversation import Conversation
from proxy.protocol.message import HeaderList
from proxy.protocol.routes import Dialect
from proxy.providers.base import Encoding, Fields, Form, Provider
from proxy.providers.relay import relay_body
from proxy.providers.translation import Translation, encode

GENERATIONS: Final = frozenset(("chat.completions", "messages", "responses"))
"""Operations with a translation."""

# Kinds that serve an operation which is not translated; what is not here is served by all that speak OpenAI's API.
_OPENAI_LIKE: Final = frozenset(("openai", "azure", "compatible", "mistral", "responses"))
_OPENAI_ITSELF: Final = frozenset(("openai", "azure", "responses"))
_MISTRAL: Final = frozenset(("mistral", "compatible"))
_SERVED: Final = {
    "messages.count_tokens": frozenset(("anthropic",)),
    "responses.input_tokens": _OPENAI_ITSELF,
    "responses.compact": _OPENAI_ITSELF,
    "fim.completions": _MISTRAL,
    "agents.completions": _MISTRAL,
    "chat.moderations": _MISTRAL,
    "classifications": _MISTRAL,
    "chat.classifications": _MISTRAL,
    "ocr": _MISTRAL,
}


class Passage(NamedTuple):
    """One target's form of a request, without a credential. Serves every attempt there."""

    caller: Provider
    target: Provider
    path: str
    """Path and query behind the provider's base path."""
    headers: HeaderList
    body: bytes
    encoding: Encoding
    translation: Translation | None
    """``None``: bytes go through as they are, both ways."""
    reported: tuple[str, ...]
    """Fields of the caller's request that had no place there."""


@cache
def _azure_responses() -> Provider:
    """Imported when it is asked for, as all dialects are (`kinds`)."""
    from proxy.providers.responses import AzureResponses

    return AzureResponses()


class Passages:
    """Makes passages for one flight: the caller's body is read once for all targets."""

    # Mutable state: _made and _conversation remember what was worked out for this flight.
    __slots__ = ("_body", "_conversation", "_fields", "_made", "_plan", "_providers", "caller")

    def __init__(self, providers: Mapping[str, Provider], plan: Plan, body: bytes, fields: Fields) -> None:
        self._providers = providers
        self._plan = plan
        self._body = body
        self._fields = fields
        self._conversation: Conversation | None = None
        self._made: dict[str, Passage] = {}
        self.caller = providers[_caller_kind(plan)]

    def to(self, target: ModelTarget) -> Passage:
        """The way to ``target``. Raises ``ProxyError(BAD_REQUEST)`` for what it cannot be asked."""
        passage = self._made.get(target.id)
        if passage is None:
            passage = self._made[target.id] = self._make(target)
        return passage

    def _make(self, target: ModelTarget) -> Passage:
        plan, kind = self._plan, target.provider.kind
        assert plan.routed is not None
        form = _form_of(target, plan.routed.name)
        if plan.route.name not in GENERATIONS:
            return self._relay_other(kind, form)
        serves_itself = plan.route.name == "responses" and kind in _OPENAI_ITSELF
        provider = self._providers[kind]
        if serves_itself:
            provider = _azure_responses() if kind == "azure" else self._providers["responses"]
        if provider.wire == self.caller.wire:
            return self._relay(provider, provider.relay_request(self._body, self._fields, form))
        if self._conversation is None:
            self._conversation = self.caller.read_request(self._fields, plan.model, plan.streams)
        translation = encode(self.caller, provider, self._conversation, self._fields, form)
        encoding = translation.encoding
        return Passage(
            self.caller,
            provider,
            encoding.path,
            [*encoding.headers, *_minted(plan.headers)],
            encoding.body,
            encoding,
            translation,
            encoding.reported,
        )

    def _relay(self, target: Provider, encoding: Encoding) -> Passage:
        _, _, query = self._plan.upstream_path.partition("?")
        path = encoding.path
        if query:
            path = f"{path}{'&' if '?' in path else '?'}{query}"
        said = {name for name, _ in self._plan.headers}
        headers = [header for header in encoding.headers if header[0] not in said] + self._plan.headers
        return Passage(self.caller, target, path, headers, encoding.body, encoding, None, encoding.reported)

    def _relay_other(self, kind: str, form: Form) -> Passage:
        """An operation that is the same wherever it is served."""
        plan = self._plan
        if kind not in _SERVED.get(plan.route.name, _OPENAI_LIKE):
            text = f"The model '{plan.model}' is not served by a provider with the operation '{plan.route.name}'."
            raise ProxyError(Kind.BAD_REQUEST, text, why="no_such_operation")
        path = plan.upstream_path.partition("?")[0]
        if kind == "azure":
            path = _azure_path(path.removeprefix("/v1"), form)
        body = relay_body(self._body, self._fields, form)
        return self._relay(self._providers[kind], Encoding(path, [], body, streams=plan.streams))


def _caller_kind(plan: Plan) -> str:
    if plan.route.name == "responses":
        return "responses"
    if plan.target.dialect is Dialect.ANTHROPIC:
        return "anthropic"
    return "mistral" if plan.target.dialect is Dialect.MISTRAL else "openai"


def _form_of(target: ModelTarget, name: str) -> Form:
    return Form(
        model=target.model or name,
        max_tokens=target.max_tokens,
        most_tokens=target.most_tokens,
        cache_markers=target.cache_markers,
        json_output=target.json_output,
        thinking=target.thinking,
        version=target.version or target.provider.version,
        extra=target.parameters,
    )


def _azure_path(tail: str, form: Form) -> str:
    if not form.version:
        return f"/openai/v1{tail}"
    return f"/openai/deployments/{quote(form.model, safe='')}{tail}?api-version={quote(form.version, safe='')}"


def _minted(headers: HeaderList) -> HeaderList:
    """Of the headers of a request, those that say nothing about its dialect: a translated one has its own."""
    return [header for header in headers if header[0] in (b"accept-encoding", b"user-agent", b"via")]
