"""From the bytes of a request's body to the call they make, under the name by which the catalog knows its model."""

from __future__ import annotations

from proxy.config.models import Models
from proxy.exchange import Exchange
from proxy.policy.planner import Terms, decoded_for_key
from proxy.protocol.call import Call, parse_call
from proxy.protocol.message import RequestHead
from proxy.protocol.routes import Route


def read_call(exchange: Exchange, terms: Terms) -> tuple[Call | None, bytes | None]:
    """The call, ``None`` for a body that is not understood; and the body to be sent, ``None`` for a streamed upload.
    Raises ``ProxyError`` for a body that is to be understood and cannot be."""
    body = exchange.body
    if type(body) is not bytes:
        return None, None
    call = exchange.call = _parse(terms.located.route, exchange.head, body)
    if terms.models is not None and call is not None and call.model:
        body = _name_model(exchange, terms.models, call, body)
    return call, body


def _parse(route: Route, head: RequestHead, body: bytes) -> Call | None:
    if not route.has_json_body:
        return None
    text = decoded_for_key(head, body)
    return None if text is None else parse_call(route, text)


def _name_model(exchange: Exchange, models: Models, call: Call, body: bytes) -> bytes:
    """The body under the name that the catalog means by the caller's. One whose model the catalog knows goes out as
    it was parsed; any other as it came."""
    exchange.asked = call.model
    meant = models.resolve(call.model)
    if meant != call.model:
        call.rename(meant)
    elif models.find(meant) is None:
        return body
    exchange.body = call.body
    return call.body
