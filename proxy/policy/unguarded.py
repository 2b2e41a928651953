"""Requests that guards cannot look into: WebSockets, uploads, and whatever passes through without being understood.

Where a guard that fails closed is meant for them they are refused, because a way around a guard makes it worthless.
A guard that is told its routes, or that fails open, lets them be.
"""

from __future__ import annotations

from typing import Final

from proxy.config.catalog import Catalog
from proxy.config.feature_flags import GUARD
from proxy.config.principal import Principal
from proxy.errors import Kind, ProxyError
from proxy.policy.policies import is_for
from proxy.protocol.routes import Route

_SAYS_NOTHING: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))
"""Methods whose requests have no text in them, but for those that become WebSockets."""


def refuse_unguarded(catalog: Catalog, principal: Principal, route: Route, method: str) -> None:
    """Raise ``ProxyError(FORBIDDEN)`` if these requests would go past a guard."""
    savings = catalog.savings
    if savings is None or not savings.guards or route.has_json_body:
        return
    if method in _SAYS_NOTHING and not route.websocket:
        return
    key_id, tenant = principal.key_id, principal.key.tenant if principal.key is not None else ""
    for guard in savings.guards:
        if guard.fail_open or not is_for(guard, key_id, tenant, route.name):
            continue
        if catalog.flags.percent(GUARD + guard.name, tenant=tenant, route=route.name, key_id=key_id) > 0.0:
            what = "WebSockets" if route.websocket else "uploads" if route.upload else "such requests"
            public = f"The guard '{guard.name}' cannot look into {what}, so they are not allowed with this key."
            raise ProxyError(Kind.FORBIDDEN, public, why="unguarded", detail=route.name)
