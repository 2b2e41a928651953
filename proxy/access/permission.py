"""What a key may be used for, once it is known what is asked for."""

from __future__ import annotations

from proxy.config.keys import KeyRecord
from proxy.errors import Kind, ProxyError
from proxy.protocol.routes import Route, Shape


def allow(record: KeyRecord, route: Route, model: str, asked: str = "") -> None:
    """Raise ``ProxyError(FORBIDDEN)`` unless the key may use ``route`` and, there, ``model``.

    ``model`` is what the body names, empty where it names none or was not read; ``asked`` is what the caller wrote
    where that is an alias: either will do, because whoever gives out an alias means what it stands for. A key that is
    limited to models may not use a route whose body is not understood, because a model may be named in there, unless
    the operator named that route for the key.
    """
    if record.routes and route.name not in record.routes:
        raise ProxyError(Kind.FORBIDDEN, f"This key may not use the route '{route.name}'.", why="route_not_allowed")
    if record.models and route.shape is not Shape.READ:
        _allow_model(record, route, model, asked)


def may_use_model(record: KeyRecord, model: str) -> bool:
    """Whether the key's list of models, if it has one, has this name."""
    return not record.models or _matches(record.models, model)


def _allow_model(record: KeyRecord, route: Route, model: str, asked: str) -> None:
    if route.has_json_body:
        if _matches(record.models, model) or (asked and _matches(record.models, asked)):
            return
        model = asked or model
        asked = f"the model '{model}'" if model else "a call that names no model"
        raise ProxyError(Kind.FORBIDDEN, f"This key may not use {asked}.", why="model_not_allowed")
    if route.name not in record.routes:
        text = f"This key is limited to some models, and the model of a call of '{route.name}' cannot be checked."
        raise ProxyError(Kind.FORBIDDEN, text, why="model_unknown")


def _matches(allowed: tuple[str, ...], model: str) -> bool:
    if model in allowed:
        return True
    return any(each.endswith("*") and model.startswith(each[:-1]) for each in allowed) and bool(model)
