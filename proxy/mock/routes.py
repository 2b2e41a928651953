"""Finds whose dialect a call speaks and which route answers it. Synchronous and without I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from proxy.mock.answer import ANTHROPIC, MISTRAL, OPENAI, Answer, Call
from proxy.mock.chat import answer_chat, answer_completion, answer_fim
from proxy.mock.files import Files
from proxy.mock.media import answer_embeddings, answer_images, answer_moderations, answer_ocr, answer_speech
from proxy.mock.messages import answer_message, count_message
from proxy.mock.models import check_model, is_mistral, list_models, read_model
from proxy.mock.multipart import MultipartCounter
from proxy.mock.options import MockOptions, override, split_model
from proxy.mock.refusal import RefusedError, refuse
from proxy.mock.responses import Responses, count_input

_MOUNTS = {"/openai": OPENAI, "/anthropic": ANTHROPIC, "/mistral": MISTRAL}
_OVERRIDE = b"x-mock-"
_MISTRAL_AGENTS = (b"mistral-client", b"speakeasy-sdk")

_POSTS: dict[str, Callable[[Call], Answer]] = {
    "/v1/chat/completions": answer_chat,
    "/v1/completions": answer_completion,
    "/v1/fim/completions": answer_fim,
    "/v1/embeddings": answer_embeddings,
    "/v1/moderations": answer_moderations,
    "/v1/audio/speech": answer_speech,
    "/v1/images/generations": answer_images,
    "/v1/ocr": answer_ocr,
    "/v1/messages": answer_message,
    "/v1/messages/count_tokens": count_message,
    "/v1/responses/input_tokens": count_input,
}
_OTHERS = {
    "/v1/responses": ("POST",),
    "/v1/models": ("GET",),
    "/v1/files": ("GET", "POST"),
}
_ITEMS = {
    "/v1/responses/": ("GET", "DELETE"),
    "/v1/models/": ("GET",),
    "/v1/files/": ("GET", "DELETE"),
}


class Routes:
    """Answers calls. Keeps what the vendors keep for their callers: files and stored responses."""

    __slots__ = ("_files", "_responses")

    def __init__(self) -> None:
        self._files = Files()
        self._responses = Responses()

    def answer(self, call: Call, upload: MultipartCounter | None, problem: str) -> Answer:
        """The answer to a call. ``problem`` is what ``make_call`` found wrong with it."""
        try:
            return self._route(call, upload, problem)
        except RefusedError as error:
            return refuse(call.dialect, error, call.make_id("req_"))
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            # A field of an unexpected type; the vendors check every field before they start, the mock does not.
            text = f"Invalid request: {type(error).__name__}: {error}"
            return refuse(call.dialect, RefusedError(400, text), call.make_id("req_"))

    def _route(self, call: Call, upload: MultipartCounter | None, problem: str) -> Answer:
        if call.options.require_key and not has_credential(call.headers):
            text = "You didn't provide an API key."
            raise RefusedError(401, text, code="invalid_api_key")
        post = _POSTS.get(call.path)
        if post is not None or call.path == "/v1/responses":
            if call.method != "POST":
                raise _not_allowed(call)
            if problem:
                raise RefusedError(400, problem)
            if not call.model and call.path != "/v1/moderations":
                raise RefusedError(400, "you must provide a model parameter", param="model")
            check_model(call.dialect, call.model)
            return post(call) if post is not None else self._responses.create(call)
        return self._route_item(call, upload, problem)

    def _route_item(self, call: Call, upload: MultipartCounter | None, problem: str) -> Answer:
        allowed = _OTHERS.get(call.path)
        family, _, rest = call.path.removeprefix("/v1/").partition("/")
        if allowed is None and rest:
            allowed = _ITEMS.get(f"/v1/{family}/") if call.path.startswith("/v1/") else None
        if allowed is None:
            raise RefusedError(404, f"Invalid URL ({call.method} {call.path})", code="unknown_url")
        if call.method not in allowed:
            raise _not_allowed(call)
        if problem:
            raise RefusedError(400, problem)
        if family == "models":
            return read_model(call.dialect, rest) if rest else list_models(call.dialect)
        if family == "responses":
            return self._responses.read(rest) if call.method == "GET" else self._responses.delete(rest)
        return self._route_file(call, upload, rest)

    def _route_file(self, call: Call, upload: MultipartCounter | None, rest: str) -> Answer:
        if not rest:
            return self._files.create(call, upload) if call.method == "POST" else self._files.list_all(call)
        file_id, _, part = rest.partition("/")
        if part not in ("", "content"):
            raise RefusedError(404, f"Invalid URL ({call.method} {call.path})", code="unknown_url")
        if call.method == "DELETE":
            return self._files.delete(call, file_id)
        return self._files.download(file_id) if part else self._files.read(call, file_id)


def _not_allowed(call: Call) -> RefusedError:
    return RefusedError(405, f"Not allowed to {call.method} on {call.path}.")


def has_credential(headers: dict[bytes, bytes]) -> bool:
    """Whether there is a bearer token or a vendor's key, whatever its value."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    return bool((scheme.lower() == b"bearer" and token.strip()) or headers.get(b"x-api-key", b"").strip())


def make_call(
    method: str,
    target: str,
    headers: dict[bytes, bytes],
    body: bytes,
    digest: bytes,
    *,
    serial: int,
    options: MockOptions,
) -> tuple[Call, str]:
    """The call behind a request, and what is wrong with its body or its overrides (``""`` if nothing is)."""
    path, _, query = target.partition("?")
    mount = _MOUNTS.get(path[: path.find("/", 1)])
    if mount is not None:
        path = path[path.find("/", 1) :]
    data: dict[str, Any] = {}
    problem = ""
    if method == "POST" and body:
        data, problem = _read_object(body)
    name = str(data.get("model") or "")
    if options.allow_overrides:
        try:
            if "?" in name:
                name, options = split_model(options, name)
            if _OVERRIDE in b" ".join(headers):
                options = _read_headers(options, headers)
        except ValueError as error:
            problem = str(error)
    dialect = mount or _guess_dialect(path, headers, name)
    return Call(method, path, query, headers, body, digest, serial, dialect, data, name, options), problem


def _read_object(body: bytes) -> tuple[dict[str, Any], str]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return {}, f"We could not parse the JSON body of your request: {error}"
    return (data, "") if isinstance(data, dict) else ({}, "The JSON body must be an object.")


def _read_headers(options: MockOptions, headers: dict[bytes, bytes]) -> MockOptions:
    pairs = [
        (name[len(_OVERRIDE) :].decode("latin-1"), value.decode("latin-1"))
        for name, value in headers.items()
        if name.startswith(_OVERRIDE)
    ]
    return override(options, pairs) if pairs else options


def _guess_dialect(path: str, headers: dict[bytes, bytes], model: str) -> str:
    if path.startswith("/v1/messages") or b"anthropic-version" in headers:
        return ANTHROPIC
    if path in ("/v1/fim/completions", "/v1/ocr") or is_mistral(model):
        return MISTRAL
    # Without a model in the request only the client's name is left.
    return MISTRAL if not model and headers.get(b"user-agent", b"").startswith(_MISTRAL_AGENTS) else OPENAI
