"""Requests that guards cannot look into: WebSockets, uploads, whatever passes through without being understood, and
the fetching of answers that were kept by the upstream.

Where a guard that fails closed is meant for them they are refused, because a way around a guard makes it worthless.
A guard that is told its routes, or that fails open, lets them be; but another spelling of a guarded route, or the
same path asked for by other means, is that route.
"""

from __future__ import annotations

from typing import Final

from proxy.config.catalog import Catalog
from proxy.config.feature_flags import GUARD
from proxy.config.guards import Guard
from proxy.config.principal import Principal
from proxy.errors import Kind, ProxyError
from proxy.policy.policies import is_for
from proxy.protocol.routes import Located, Shape, resembles

_SAYS_NOTHING: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))
"""Methods whose requests have no text in them, but for those that become WebSockets."""
_KEPT: Final = {
    "responses.other": "responses",
    "chat.other": "chat.completions",
    "completions.other": "completions",
    "conversations": "responses",
    "threads": "",
    "batches": "",
    "messages.batches": "messages",
    "files": "",
    "containers": "",
    "batch": "",
}
"""Routes under which upstreams give back what their models said, and the route on which that was asked for; empty for
any."""


def refuse_unguarded(catalog: Catalog, principal: Principal, located: Located, method: str) -> None:
    """Raise ``ProxyError(FORBIDDEN)`` if these requests would go past a guard."""
    savings, route = catalog.savings, located.route
    if savings is None or not savings.guards or route.has_json_body:
        return
    fetches = method in _SAYS_NOTHING and not route.websocket
    if fetches and (method != "GET" or route.shape is Shape.READ or route.name not in _KEPT):
        return
    meant = _KEPT[route.name] if fetches else resembles(located.path)
    tenant = principal.key.tenant if principal.key is not None else ""
    for guard in savings.guards:
        if guard.fail_open or (fetches and guard.mode != "after"):
            continue
        if _stands_before(catalog, guard, principal, tenant, route.name, meant):
            what = "WebSockets" if route.websocket else "uploads" if route.upload else "such requests"
            public = f"The guard '{guard.name}' cannot look into {what}, so they are not allowed with this key."
            raise ProxyError(Kind.FORBIDDEN, public, why="unguarded", detail=route.name)


def _stands_before(  # noqa: PLR0917 - what it is judged by
    catalog: Catalog, guard: Guard, principal: Principal, tenant: str, route: str, meant: str
) -> bool:
    """Whether the guard is on for the route, or for the one that is meant by it."""
    key_id = principal.key_id
    return any(
        is_for(guard, key_id, tenant, name)
        and catalog.flags.percent(GUARD + guard.name, tenant=tenant, route=name, key_id=key_id) > 0.0
        for name in (route, meant)
        if name
    )
