"""What a key may be used for."""

from __future__ import annotations

import pytest

from proxy.access.permission import allow
from proxy.config.keys import KeyRecord
from proxy.errors import Kind, ProxyError
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import Route, locate


def route(path: str, method: str = "POST", **headers: str) -> Route:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    return locate(make_request_head(method, path, lines)).route


def key(models: tuple[str, ...] = (), routes: tuple[str, ...] = ()) -> KeyRecord:
    return KeyRecord(id="key_1", digest=b"1", name="n", models=models, routes=routes)


CHAT = route("/v1/chat/completions")
FILES = route("/v1/files")
MODELS = route("/v1/models", "GET")
REALTIME = route("/v1/realtime", "GET")
UNKNOWN = route("/v1/nowhere")


@pytest.mark.parametrize(
    ("record", "asked", "model"),
    [
        (key(), CHAT, "anything"),
        (key(), UNKNOWN, ""),
        (key(models=("gpt-4o",)), CHAT, "gpt-4o"),
        (key(models=("gpt-4o*",)), CHAT, "gpt-4o-mini"),
        (key(models=("*",)), CHAT, "x"),
        (key(models=("gpt-4o",)), MODELS, ""),
        (key(routes=("chat.completions",)), CHAT, "x"),
        (key(models=("gpt-4o",), routes=("files",)), FILES, ""),
        (key(models=("gpt-4o",), routes=("realtime",)), REALTIME, ""),
    ],
)
def test_what_the_operator_allowed_is_allowed(record: KeyRecord, asked: Route, model: str) -> None:
    """Nothing said is everything allowed; a star is for what follows."""
    allow(record, asked, model)


@pytest.mark.parametrize(
    ("record", "asked", "model", "why"),
    [
        (key(models=("gpt-4o",)), CHAT, "gpt-4o-mini", "model_not_allowed"),
        (key(models=("gpt-4o",)), CHAT, "GPT-4o", "model_not_allowed"),
        (key(models=("gpt-4o*",)), CHAT, "x-gpt-4o", "model_not_allowed"),
        (key(models=("gpt-4o",)), CHAT, "", "model_not_allowed"),
        (key(models=("*",)), CHAT, "", "model_not_allowed"),
        (key(models=("gpt-4o",), routes=("chat.completions",)), CHAT, "", "model_not_allowed"),
        (key(models=("gpt-4o",)), FILES, "", "model_unknown"),
        (key(models=("gpt-4o",)), REALTIME, "", "model_unknown"),
        (key(models=("gpt-4o",)), UNKNOWN, "", "model_unknown"),
        (key(routes=("files",)), CHAT, "x", "route_not_allowed"),
        (key(routes=("chat.completions",)), MODELS, "", "route_not_allowed"),
        (key(routes=("chat.completions",)), UNKNOWN, "", "route_not_allowed"),
    ],
)
def test_everything_else_is_forbidden_with_the_reason(record: KeyRecord, asked: Route, model: str, why: str) -> None:
    """A limited key may not use what cannot be checked either: a model may be named in a body that is not read."""
    with pytest.raises(ProxyError, check=lambda error: error.kind is Kind.FORBIDDEN) as caught:
        allow(record, asked, model)

    assert caught.value.why == why


def test_a_chat_sent_as_a_form_is_no_way_around_a_limit() -> None:
    """It is relayed without being understood, so its model is not known."""
    form = route("/v1/chat/completions", **{"content-type": "multipart/form-data; boundary=x"})

    with pytest.raises(ProxyError, match="cannot be checked"):
        allow(key(models=("gpt-4o",)), form, "")
