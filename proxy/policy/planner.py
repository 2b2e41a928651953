"""Fold every policy into one plan. Pure: the same request, principal and catalog give the same plan."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, NamedTuple

from proxy import __version__
from proxy.config.catalog import Catalog, Provider, RouteRules
from proxy.config.principal import Principal
from proxy.policy.caching import Lifetimes, decide_caching
from proxy.policy.plan import Caching, Plan, Target
from proxy.policy.sharing import alone, classify, decide_sharing
from proxy.protocol.call import Call
from proxy.protocol.encoding import decode_body
from proxy.protocol.fingerprint import flight_key, idempotency_index
from proxy.protocol.headers import Controls, private_request_headers, semantic_headers, shared_request_headers
from proxy.protocol.message import HeaderList, RequestHead
from proxy.protocol.routes import Dialect, Located, Shape

MAX_KEY_BODY_BYTES: Final = 8 << 20
"""A longer body is not fingerprinted: its request goes alone."""

# Anthropic's OpenAI-compatible routes heed some of its own headers as well.
_ANTHROPIC_HEADERS: Final = (b"anthropic-beta", b"anthropic-version", b"anthropic-workspace-id")

_AGENT: Final = f"sameflight/{__version__}".encode()
_NO_CACHING: Final = Caching()


class Asked(NamedTuple):
    """Everything a plan is made from."""

    head: RequestHead
    located: Located
    call: Call | None
    """``None`` where the body is not JSON that was parsed."""
    body: bytes | None
    """As sent; ``None`` for a streamed upload."""
    principal: Principal
    controls: Controls
    catalog: Catalog


class Planner:
    """Makes plans. Holds settings and what was derived from them at start; no state."""

    __slots__ = ("_idempotency_ttl_s", "_minted", "_secret", "_shared_minted")

    def __init__(self, secret: bytes, via: bytes, idempotency_ttl_s: float) -> None:
        self._secret = secret
        self._idempotency_ttl_s = idempotency_ttl_s
        self._minted: HeaderList = [(b"via", via)]
        self._shared_minted: HeaderList = [(b"accept-encoding", b"identity"), (b"user-agent", _AGENT), (b"via", via)]

    def plan(self, asked: Asked) -> Plan:
        """The plan of one request. What cannot be shared goes alone; nothing is refused here."""
        head, located, call, _, principal, controls, catalog = asked
        route = located.route
        rules = catalog.rules(route.name)
        target = _target(catalog.providers[located.provider], located.dialect)
        classified = classify(route, call)
        sharing = decide_sharing(classified, rules.share, controls)
        caching = decide_caching(
            classified.share_class,
            Lifetimes(rules.ttl_s, rules.stale_while_revalidate_s, rules.stale_if_error_s),
            controls,
            idempotency_ttl_s=self._idempotency_ttl_s,
        )
        streams = call is not None and call.streams
        key = idempotency = idempotency_print = None
        headers: HeaderList | None = None
        if sharing.registers or caching.writes:
            body, why = _key_body(asked)
            if body is None:
                sharing, caching = alone(why, controls), _NO_CACHING
            else:
                key = self._key(asked, target, body, streams, controls.idempotency_key or b"")
                if controls.idempotency_key is not None:
                    idempotency = idempotency_index(self._secret, principal.scope, controls.idempotency_key)
                    idempotency_print = self._key(asked, target, body, streams, b"")
                credential = principal.credential + self._shared_minted
                headers = shared_request_headers(head, located.dialect, credential, _extra(located))
                headers += _marks(head)
        if headers is None:
            headers = private_request_headers(head, principal.credential + self._minted)
            if route.understood:  # an answer that is to be read comes as it is
                headers = [header for header in headers if header[0] != b"accept-encoding"]
                headers.append((b"accept-encoding", b"identity"))
        path = target.base_path + located.path
        return Plan(
            route=route,
            target=target,
            method=head.method,
            upstream_path=f"{path}?{head.query}" if head.query else path,
            headers=headers,
            model=call.model if call is not None else "",
            streams=streams,
            share_class=classified.share_class,
            sharing=sharing,
            caching=caching,
            leave_s=_leave_s(rules, streams=streams),
            first_byte_s=rules.first_byte_s,
            idle_s=rules.idle_s,
            total_s=rules.total_s,
            scope=principal.scope,
            key=key,
            idempotency=idempotency,
            idempotency_print=idempotency_print,
        )

    def _key(self, asked: Asked, target: Target, body: bytes, streams: bool, idempotency_key: bytes) -> bytes:
        head, located = asked.head, asked.located
        return flight_key(
            self._secret,
            config_version=asked.catalog.generation,
            scope=asked.principal.scope,
            provider=target.provider,
            origin=target.origin,
            credential=asked.principal.credential_id,
            method=head.method,
            path=located.path,
            query=head.query,
            headers=semantic_headers(head, located.dialect, _extra(located)),
            content_type=head.get(b"content-type"),
            encoding=head.get(b"content-encoding"),
            streams=streams,
            variant=asked.controls.variant,
            idempotency_key=idempotency_key,
            transform=b"",
            body=body,
        )


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


def _key_body(asked: Asked) -> tuple[bytes | None, str]:
    """The body to hash (decoded, if it came encoded), or ``None`` and why there is none. The bytes that are sent
    stay as they came; the encoding is a field of the key, because an upstream may not know it."""
    body = asked.body
    if asked.located.route.shape is Shape.READ and not body:
        return b"", ""
    if body is None:
        return None, "no_fingerprint"
    if asked.call is not None:
        body = asked.call.body
    elif asked.head.get(b"content-encoding"):
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
