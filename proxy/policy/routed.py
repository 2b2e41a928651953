"""Which targets of a model a caller may use, and what they cost.

Whoever brings a provider's credential may use that provider's targets, with that credential: it is shown to nobody
else, and none of the operator's keys is spent on a stranger. Callers with a virtual key, a placeholder or nothing use
the operator's keys, and with them every target.
"""

from __future__ import annotations

from typing import Final

from proxy.config.models import Model, ModelTarget
from proxy.config.prices import Price, Prices
from proxy.config.principal import Principal
from proxy.errors import Kind, ProxyError
from proxy.policy.plan import Routed
from proxy.protocol.message import RequestHead

ATTEMPT: Final = b"x-sameflight-attempt"
"""Tells the next proxy like this one, if there is one, that it is asked again: it then does not try again itself."""


def make_routed(  # noqa: PLR0917 - what it is made of
    model: Model, name: str, head: RequestHead, principal: Principal, provider: str, prices: Prices
) -> Routed:
    """Where requests for ``name`` may go. ``provider`` is the one that path and headers name, whose credential the
    caller may have brought. Raises ``ProxyError(FORBIDDEN)`` if there is no target left."""
    own = principal.brought
    targets = model.targets
    usable = tuple(target for target in targets if _may_use(target, provider, own=own))
    if not usable:
        raise _no_target(name, provider, own=own)
    if len(usable) == len(targets):
        usable = targets
    return Routed(
        model,
        name,
        usable,
        {target.id: _price_of(target, name, prices) for target in usable},
        principal.credential if own else [],
        own,
        1 if ATTEMPT in head.headers else model.attempts,
    )


def _may_use(target: ModelTarget, provider: str, *, own: bool) -> bool:
    if own:
        return target.provider.name == provider
    # Servers of one's own often want no key.
    return bool(target.provider.api_key) or target.provider.kind == "compatible"


def _price_of(target: ModelTarget, name: str, prices: Prices) -> Price | None:
    return target.price or prices.find(target.model or name) or prices.find(name)


def _no_target(name: str, provider: str, *, own: bool) -> ProxyError:
    if own:
        text = (
            f"The model '{name}' is answered by other providers here, where a credential of {provider} is no good:"
            " use a Sameflight key or a placeholder."
        )
        return ProxyError(Kind.FORBIDDEN, text, why="foreign_credential")
    return ProxyError(
        Kind.FORBIDDEN, f"No key is configured here for any provider of the model '{name}'.", why="no_provider_key"
    )
