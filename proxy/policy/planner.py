"""Fold every policy into one plan. Pure: the same request, principal and catalog give the same plan.

A plan has two parts. What follows from the head, the principal and the catalog is worked out once, as `Terms`, and
serves every request that comes with the same head; what follows from the body is worked out for each.
"""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from proxy import __version__
from proxy.config.cache_classes import USER, CacheClass
from proxy.config.catalog import Catalog, Provider, RouteRules
from proxy.config.guards import GuardSet
from proxy.config.models import Models
from proxy.config.principal import Principal
from proxy.policy.caching import Lifetimes, decide_caching
from proxy.policy.plan import Caching, Plan, Routed, Target
from proxy.policy.policies import make_policies
from proxy.policy.routed import ATTEMPT, make_routed
from proxy.policy.shaped import Shaped
from proxy.policy.sharing import Classified, alone, classify, decide_sharing
from proxy.policy.unguarded import refuse_unguarded
from proxy.protocol.ask_usage import ASKABLE, TRANSFORM, is_askable
from proxy.protocol.call import Call
from proxy.protocol.encoding import decode_body
from proxy.protocol.fingerprint import finish_key, flight_hasher, idempotency_index
from proxy.protocol.headers import Controls, private_request_headers, semantic_headers, shared_request_headers
from proxy.protocol.message import HeaderList, RequestHead, SentHeaders
from proxy.protocol.routes import Dialect, Located, Shape

MAX_KEY_BODY_BYTES: Final = 8 << 20
"""A longer body is not fingerprinted: its request goes alone."""

# Anthropic's OpenAI-compatible routes heed some of its own headers as well.
_ANTHROPIC_HEADERS: Final = (b"anthropic-beta", b"anthropic-version", b"anthropic-workspace-id")

# Say more about the account behind the caller's own credential; beside the operator's they would be wrong.
_OF_A_CREDENTIAL: Final = frozenset((b"openai-organization", b"openai-project", b"anthropic-workspace-id"))
_AGENT: Final = f"sameflight/{__version__}".encode()
_NO_CACHING: Final = Caching()
_OPERATORS: Final = bytes(16)
"""The credential of a request that any of the operator's keys may carry: answers do not depend on which."""
_MOST_NAMES: Final = 64
"""Names of models kept with one head, where the caller's own credential decides about them."""
_MOST_ROUTED: Final = 16_384
"""Names of models kept for all others."""


class Outline(NamedTuple):
    """A plan without what only the body says."""

    keyed: bool
    """The request is to be fingerprinted."""
    rest: tuple[Any, ...]
    """The fields of `Plan` from ``streams`` on."""


class Terms:
    """What one head means to one principal under one catalog. Made by the pipeline and kept on the head, to which it
    must not point back: a client whose head is new each time would leave a cycle behind with each request."""

    # Mutable state: the dictionaries and lists that remember what was worked out; written by the planner only.
    __slots__ = (
        "catalog",
        "controls",
        "hashers",
        "line",
        "lists",
        "located",
        "method",
        "models",
        "outlines",
        "policies",
        "principal",
        "private_headers",
        "routed",
        "routed_headers",
        "rules",
        "shared_headers",
        "target",
        "upstream_path",
    )

    def __init__(
        self, head: RequestHead, located: Located, controls: Controls, principal: Principal, catalog: Catalog
    ) -> None:
        """Raises ``ProxyError(FORBIDDEN)`` for requests that would go past a guard."""
        self.located = located
        self.method = head.method
        self.controls = controls
        self.principal = principal
        self.catalog = catalog
        self.rules: RouteRules = catalog.rules(located.route.name)
        self.models: Models | None = catalog.models or None if located.route.has_json_body else None
        """Those that the body may name; ``None`` if there are none."""
        self.policies = make_policies(catalog, principal, located.route)
        """Savings and guards for these requests; ``None`` if there are none."""
        refuse_unguarded(catalog, principal, located, head.method)
        self.routed: dict[str, Routed | None] = {}
        self.target = _target(catalog.providers[located.provider], located.dialect)
        path = self.target.base_path + located.path
        self.upstream_path = f"{path}?{head.query}" if head.query else path
        self.outlines: dict[tuple[Any, ...], Outline] = {}
        self.hashers: dict[tuple[Any, ...], blake2b] = {}
        self.shared_headers: SentHeaders | None = None
        self.routed_headers: SentHeaders | None = None
        self.private_headers: SentHeaders | None = None
        self.lists = False
        """They ask for a list of models that is answered here; written by the pipeline."""
        self.line = ""
        """What the access lines of these requests have in common; written by whoever writes them."""


class Planner:
    """Makes plans. Holds settings and what was derived from them at start."""

    # Mutable state: _routed remembers what was worked out for the models of _catalog.
    __slots__ = ("_catalog", "_idempotency_ttl_s", "_minted", "_routed", "_secret", "_shared_minted")

    def __init__(self, secret: bytes, via: bytes, idempotency_ttl_s: float) -> None:
        self._catalog: Catalog | None = None
        self._routed: dict[str, Routed | None] = {}
        self._secret = secret
        self._idempotency_ttl_s = idempotency_ttl_s
        self._minted: HeaderList = [(b"via", via)]
        self._shared_minted: HeaderList = [(b"accept-encoding", b"identity"), (b"user-agent", _AGENT), (b"via", via)]

    def plan(
        self, head: RequestHead, terms: Terms, call: Call | None, body: bytes | None, shaped: Shaped | None = None
    ) -> Plan:
        """The plan of one request. What cannot be shared goes alone. Raises ``ProxyError(FORBIDDEN)`` for a model of
        the catalog that the caller's credential is no good for.

        ``call`` is ``None`` where the body is not JSON that was parsed; ``body`` is what is to be sent, ``None`` for
        a streamed upload; ``shaped`` what policies made of it, where there are any.
        """
        if call is not None and (shaped is not None or (terms.models is not None and call.model)):
            return self._plan_formed(head, terms, call, body, shaped)
        classified = classify(terms.located.route, call)
        streams = call is not None and call.streams
        model = call.model if call is not None else ""
        outline = terms.outlines.get((classified, streams))
        if outline is None:
            outline = terms.outlines[classified, streams] = self._outline(head, terms, classified, streams)
        if not outline.keyed:
            return Plan(None, model, None, None, False, None, *outline.rest)
        text, why = _key_body(head, terms, call, body)
        if text is None:
            rest = self._outline(head, terms, classified, streams, why).rest
            return Plan(None, model, None, None, False, None, *rest)
        asks = streams and terms.rules.ask_usage and _asks_usage(terms, call, body)
        idempotency_key = terms.controls.idempotency_key
        hasher = terms.hashers.get((streams, asks))
        if hasher is None:
            hasher = self._hasher(head, terms, streams, asks, idempotency_key or b"")
            terms.hashers[streams, asks] = hasher
        if idempotency_key is None:
            return Plan(finish_key(hasher, text), model, None, None, asks, None, *outline.rest)
        index = idempotency_index(self._secret, terms.principal.scope, idempotency_key)
        unmarked = finish_key(self._hasher(head, terms, streams, asks, b""), text)
        return Plan(finish_key(hasher, text), model, index, unmarked, asks, None, *outline.rest)

    def _plan_formed(
        self, head: RequestHead, terms: Terms, call: Call, body: bytes | None, shaped: Shaped | None
    ) -> Plan:
        """The plan of a request where the catalog knows models or has policies; the same steps as in `plan`, with
        these among what is remembered."""
        routed = self._route(head, terms, terms.models, call.model) if terms.models is not None else None
        plain = call.body is body and _is_encoded(head)
        form = _Form(routed, plain) if shaped is None else _Form(routed, plain, shaped.cache_class, shaped.guards)
        user = _user_of(shaped) if shaped is not None else b""
        classified = classify(terms.located.route, call)
        streams = call.streams
        outline = terms.outlines.get((classified, streams, form.tag))
        if outline is None:
            outline = self._outline(head, terms, classified, streams, form=form)
            terms.outlines[classified, streams, form.tag] = outline
        rest = outline.rest if not user else (*outline.rest, user)
        if not outline.keyed:
            return Plan(None, call.model, None, None, False, routed, *rest)
        text, why = _key_body(head, terms, call, body)
        if text is None:
            rest = self._outline(head, terms, classified, streams, why, form).rest
            return Plan(None, call.model, None, None, False, routed, *rest)
        asks = streams and terms.rules.ask_usage and _asks_usage(terms, call, body)
        hasher = terms.hashers.get((streams, asks, form.tag))
        idempotency_key = terms.controls.idempotency_key
        if hasher is None:
            hasher = self._hasher(head, terms, streams, asks, idempotency_key or b"", form)
            terms.hashers[streams, asks, form.tag] = hasher
        index = unmarked = None
        if idempotency_key is not None:
            index = idempotency_index(self._secret, terms.principal.scope, idempotency_key)
            unmarked = finish_key(self._hasher(head, terms, streams, asks, b"", form), text)
        return Plan(finish_key(hasher, text), call.model, index, unmarked, asks, routed, *rest)

    def _route(self, head: RequestHead, terms: Terms, models: Models, name: str) -> Routed | None:
        """Where requests for this model may go. Raises ``ProxyError(FORBIDDEN)``, anew each time."""
        known = terms.routed
        if not terms.principal.brought and ATTEMPT not in head.headers:
            if self._catalog is not terms.catalog:
                self._catalog = terms.catalog
                self._routed = {}
            known = self._routed  # the same for all who use the operator's keys
        try:
            return known[name]
        except KeyError:
            pass
        model = models.find(name) if name else None
        routed = None
        if model is not None:
            routed = make_routed(
                model, name, head, terms.principal, terms.located.provider, terms.catalog.prices
            )
        if len(known) >= (_MOST_NAMES if known is terms.routed else _MOST_ROUTED):
            known.clear()
        known[name] = routed
        return routed

    def _outline(  # noqa: PLR0917 - by position, as `plan` has them
        self,
        head: RequestHead,
        terms: Terms,
        classified: Classified,
        streams: bool,
        unkeyed: str = "",
        form: _Form | None = None,
    ) -> Outline:
        """Everything about a request of this class; ``unkeyed`` says why it has no fingerprint in spite of it."""
        rules, controls, located = terms.rules, terms.controls, terms.located
        sharing = decide_sharing(classified, rules.share, controls)
        caching = decide_caching(
            classified.share_class,
            _lifetimes(rules, form),
            controls,
            idempotency_ttl_s=self._idempotency_ttl_s,
        )
        if terms.principal.key is not None and terms.principal.key.cache == "off":
            caching = _NO_CACHING
        keyed = sharing.registers or caching.writes
        if keyed and unkeyed:
            keyed, sharing, caching = False, alone(unkeyed, controls), _NO_CACHING
        rest = (
            streams,
            located.route,
            terms.target,
            terms.method,
            terms.upstream_path if form is None or form.routed is None else _path_of(head, located),
            self._headers(head, terms, form, keyed=keyed),
            classified.share_class,
            sharing,
            caching,
            _leave_s(rules, streams=streams),
            rules.first_byte_s,
            rules.idle_s,
            rules.total_s,
            terms.principal.scope,
            form.guards if form is not None else None,
        )
        return Outline(keyed, rest)

    def _headers(self, head: RequestHead, terms: Terms, form: _Form | None, *, keyed: bool) -> SentHeaders:
        if form is not None and form.routed is not None:
            return self._routed_headers(head, terms)
        headers = self._shared_headers(head, terms) if keyed else self._private_headers(head, terms)
        if form is None or not form.plain:
            return headers
        return SentHeaders([header for header in headers if header[0] != b"content-encoding"])

    def _routed_headers(self, head: RequestHead, terms: Terms) -> SentHeaders:
        """What any target of the caller's dialect may see: no credential, which is the target's."""
        if terms.routed_headers is None:
            located = terms.located
            headers = shared_request_headers(head, located.dialect, self._shared_minted, _extra(located))
            headers = [header for header in headers if header[0] != b"content-encoding"]
            if not terms.principal.brought:
                headers = [header for header in headers if header[0] not in _OF_A_CREDENTIAL]
            terms.routed_headers = SentHeaders(headers + _marks(head))
        return terms.routed_headers

    def _shared_headers(self, head: RequestHead, terms: Terms) -> SentHeaders:
        if terms.shared_headers is None:
            located = terms.located
            credential = terms.principal.credential + self._shared_minted
            headers = shared_request_headers(head, located.dialect, credential, _extra(located))
            terms.shared_headers = SentHeaders(headers + _marks(head))
        return terms.shared_headers

    def _private_headers(self, head: RequestHead, terms: Terms) -> SentHeaders:
        if terms.private_headers is None:
            headers = private_request_headers(head, terms.principal.credential + self._minted)
            if terms.located.route.understood:  # an answer that is to be read comes as it is
                headers = [header for header in headers if header[0] != b"accept-encoding"]
                headers.append((b"accept-encoding", b"identity"))
            terms.private_headers = SentHeaders(headers)
        return terms.private_headers

    def _hasher(  # noqa: PLR0917 - by position, for each request
        self,
        head: RequestHead,
        terms: Terms,
        streams: bool,
        asks: bool,
        idempotency_key: bytes,
        form: _Form | None = None,
    ) -> blake2b:
        located, target, principal = terms.located, terms.target, terms.principal
        provider, origin, credential = target.provider, target.origin, principal.credential_id
        if form is not None and form.routed is not None:
            # Which target answers is no input: that follows from the fingerprint and from the targets' health.
            provider, origin = f"{located.provider}>", ""  # the body says the model
            credential = credential if form.routed.own else _OPERATORS
        encoding = b"" if form is not None and form.plain else head.get(b"content-encoding")
        return flight_hasher(
            self._secret,
            config_version=int.from_bytes(terms.catalog.digest, "big"),
            scope=principal.scope,
            provider=provider,
            origin=origin,
            credential=credential,
            method=head.method,
            path=located.path,
            query=head.query,
            headers=semantic_headers(head, located.dialect, _extra(located)),
            content_type=head.get(b"content-type"),
            encoding=encoding,
            streams=streams,
            variant=terms.controls.variant,
            idempotency_key=idempotency_key,
            transform=(TRANSFORM if asks else b"") + (form.guards.digest if form and form.guards else b""),
        )


class _Form(NamedTuple):
    """In which form a request goes out, where that is not as it came."""

    routed: Routed | None
    plain: bool
    """The body came encoded and goes as plain text, because something in it had to be read or changed."""
    cache_class: CacheClass | None = None
    guards: GuardSet | None = None

    @property
    def tag(self) -> tuple[object, ...]:
        guards = self.guards.digest if self.guards is not None else b""
        return self.routed is not None, self.plain, self.cache_class, guards


def _lifetimes(rules: RouteRules, form: _Form | None) -> Lifetimes:
    kept = form.cache_class if form is not None else None
    if kept is None:
        return Lifetimes(rules.ttl_s, rules.stale_while_revalidate_s, rules.stale_if_error_s)
    return Lifetimes(kept.ttl_s, kept.stale_while_revalidate_s, kept.stale_if_error_s, kept.oldest_s)


def _user_of(shaped: Shaped) -> bytes:
    """Whose share of the cache the answer takes."""
    kept = shaped.cache_class
    if kept is None or kept.scope != USER or not shaped.user:
        return b""
    said = shaped.user.encode("utf-8", "surrogatepass")
    return blake2b(said, digest_size=16, person=b"sf/user").digest()


def _is_encoded(head: RequestHead) -> bool:
    return head.get(b"content-encoding").strip().lower() not in (b"", b"identity")


def _path_of(head: RequestHead, located: Located) -> str:
    return f"{located.path}?{head.query}" if head.query else located.path


def _asks_usage(terms: Terms, call: Call | None, body: bytes | None) -> bool:
    """Whether counts are asked for on the caller's behalf; not in an encoded body, which is sent as it came."""
    located = terms.located
    ours = located.route.name in ASKABLE and located.dialect is Dialect.OPENAI
    return ours and call is not None and call.body is body and is_askable(call)


def _extra(located: Located) -> tuple[bytes, ...]:
    """Semantic headers beyond those of the dialect."""
    if located.provider == "anthropic" and located.dialect is not Dialect.ANTHROPIC:
        return _ANTHROPIC_HEADERS
    return ()


def _marks(head: RequestHead) -> HeaderList:
    """The marks of proxies like this one that the request came through, so that a ring of them is noticed. Minted by
    us, so they are no input of the key."""
    via = head.get(b"via")
    if b"sameflight-" not in via:
        return []
    return [(b"via", mark.strip()) for mark in via.split(b",") if mark.strip().startswith(b"1.1 sameflight-")]


def _leave_s(rules: RouteRules, *, streams: bool) -> float:
    """A stream is cancelled as soon as nobody reads it; a whole answer waits for the retry of an SDK that timed
    out."""
    rule = rules.leave or ("cancel" if streams else "linger")
    if rule == "cancel":
        return 0.0
    return math.inf if rule == "finish" else rules.linger_s


@lru_cache(maxsize=256)
def _target(provider: Provider, dialect: Dialect) -> Target:
    return Target(
        provider=provider.name,
        dialect=dialect,
        scheme=provider.scheme,
        host=provider.host,
        port=provider.port,
        base_path=provider.base_path,
        origin=f"{provider.scheme}://{provider.host}:{provider.port}{provider.base_path}",
    )


def _key_body(head: RequestHead, terms: Terms, call: Call | None, body: bytes | None) -> tuple[bytes | None, str]:
    """The body to hash (decoded, if it came encoded), or ``None`` and why there is none. The bytes that are sent
    stay as they came; the encoding is a field of the key, because an upstream may not know it."""
    if terms.located.route.shape is Shape.READ and not body:
        return b"", ""
    if body is None:
        return None, "no_fingerprint"
    if call is not None:
        body = call.body
    elif head.get(b"content-encoding"):
        return None, "encoding"
    if len(body) > MAX_KEY_BODY_BYTES:
        return None, "body_size"
    return body, ""


def decoded_for_key(head: RequestHead, body: bytes) -> bytes | None:
    """The body as JSON text: as sent, or decoded within bounds; ``None`` if it cannot be decoded safely."""
    encoding = head.get(b"content-encoding").strip().lower()
    if not encoding or encoding == b"identity":
        return body
    return decode_body(encoding, body, MAX_KEY_BODY_BYTES)
