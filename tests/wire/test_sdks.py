"""The vendors' own SDKs, each with the models of every other vendor, against the built-in upstream: in one process
and without a socket, so that what is tried is what the dialects say to each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import openai
import orjson
import pytest
from mistralai.client import Mistral

from proxy.errors import ProxyError
from proxy.mock.options import MockOptions
from proxy.mock.routes import Routes, make_call
from proxy.protocol.call import parse_call
from proxy.protocol.message import ResponseHead, make_request_head
from proxy.protocol.routes import locate
from proxy.providers.base import Form
from proxy.providers.kinds import make_providers
from proxy.providers.translation import Translation, translate
from tests.wire.transcripts import HERE, Case

PROVIDERS = make_providers()
MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-4-6",
    "mistral": "mistral-large-latest",
    "compatible": "llama",
    "responses": "gpt-6",
    "gemini": "gemini-2.5-pro",
}
BY_ROUTE = {"chat.completions": "openai", "messages": "anthropic", "responses": "responses"}
WEATHER: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Gateway:
    """An SDK's transport that translates each request for ``target`` and the answer back."""

    def __init__(self, target: str, *, caller: str = "", canned: tuple[int, bytes] | None = None) -> None:
        self.target = PROVIDERS[target]
        self.form = Form(MODELS[target])
        self.caller = caller
        self.canned = canned
        """Status and body that the upstream answers whatever it is asked."""
        self.sent: list[dict[str, Any]] = []
        """Bodies that went to the upstream."""
        self._routes = Routes()

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self))

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        located = locate(make_request_head("POST", request.url.path, []))
        call = parse_call(located.route, request.read())
        caller = PROVIDERS[self.caller or BY_ROUTE[located.route.name]]
        try:
            translation = translate(
                caller, self.target, call.fields, self.form, model=call.model, streams=call.streams
            )
        except ProxyError as error:
            return httpx2.Response(error.kind.status, json={"error": {"message": error.public}})
        self.sent.append(orjson.loads(translation.encoding.body))
        status, pieces = self._ask(translation)
        if status != 200:
            fault = self.target.classify(ResponseHead(status, []), b"".join(pieces))
            status, body = caller.fault_body(fault, "req_1")
            return httpx2.Response(status, content=body, headers={"content-type": "application/json"})
        if call.streams:
            return httpx2.Response(200, stream=_Stream(translation, pieces), headers=_SSE)
        whole = translation.decode_whole(b"".join(pieces), 7)
        assert whole.fault is None
        return httpx2.Response(200, content=whole.body, headers={"content-type": "application/json"})

    def _ask(self, translation: Translation) -> tuple[int, list[bytes]]:
        """What the upstream answers to the translated request."""
        encoding = translation.encoding
        if self.canned is not None:
            return self.canned[0], [self.canned[1]]
        if self.target.name == "gemini":
            case = Case("gemini", "tools" if b"functionDeclarations" in encoding.body else "text")
            return 200, [case.stream if encoding.streams else case.whole]
        headers = dict([*encoding.headers, *self.target.credential("k")])
        # The built-in upstream draws its words from the digest: the same ones for a stream and a whole answer.
        words = {name: value for name, value in self.sent[-1].items() if not name.startswith("stream")}
        digest = hashlib.sha256(orjson.dumps(words)).digest()
        call, problem = make_call(
            "POST", encoding.path, headers, encoding.body, digest, serial=1, options=MockOptions()
        )
        answer = self._routes.answer(call, None, problem)
        return answer.status, list(answer.pieces) if answer.pieces is not None else [answer.body]


_SSE = {"content-type": "text/event-stream"}


class _Stream(httpx2.SyncByteStream):
    """The translated stream, with the upstream's pieces cut in two."""

    def __init__(self, translation: Translation, pieces: list[bytes]) -> None:
        self._decoder = translation.decoder(7)
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            half = len(piece) // 2
            yield self._decoder.feed(piece[:half])
            yield self._decoder.feed(piece[half:])
        yield self._decoder.close()


def openai_sdk(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url="http://g/v1", http_client=gateway.client(), max_retries=0)


def anthropic_sdk(gateway: Gateway) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="k", base_url="http://g", http_client=gateway.client(), max_retries=0)


ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": WEATHER}}
OTHERS = ["anthropic", "mistral", "compatible", "responses", "gemini"]


@pytest.mark.parametrize("target", OTHERS)
def test_the_openai_sdk_reads_the_same_words_streamed_and_whole(target: str) -> None:
    """Text, end and cost of every vendor's model."""
    gateway = Gateway(target)
    sdk = openai_sdk(gateway)
    whole = sdk.chat.completions.create(model="m", messages=ASK, max_completion_tokens=50)
    chunks = list(
        sdk.chat.completions.create(model="m", messages=ASK, max_completion_tokens=50, stream=True,
                                    stream_options={"include_usage": True})
    )
    text = "".join([choice.delta.content or "" for chunk in chunks for choice in chunk.choices])

    assert text
    assert text == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    assert whole.usage.completion_tokens > 0
    assert chunks[-1].usage == whole.usage
    assert all(chunk.created and chunk.model and chunk.id for chunk in chunks)


@pytest.mark.parametrize("target", OTHERS)
def test_the_openai_sdk_calls_tools_of_every_vendors_models(target: str) -> None:
    """A whole round: the call, streamed and whole, and the conversation that goes on with its result."""
    gateway = Gateway(target)
    sdk = openai_sdk(gateway)
    asked: dict[str, Any] = {"model": "m", "messages": ASK, "tools": [TOOL], "tool_choice": "required"}
    whole = sdk.chat.completions.create(**asked)
    with sdk.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls
    assert calls

    assert whole.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls
    call, streamed = calls[0], final.choices[0].message.tool_calls[0]
    assert call.type == streamed.type == "function"
    assert call.function.name == streamed.function.name == "weather"
    assert orjson.loads(call.function.arguments) == orjson.loads(streamed.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*ASK, whole.choices[0].message.model_dump(exclude_none=True), *([result] if len(calls) == 1 else [
        {**result, "tool_call_id": one.id} for one in calls
    ])]
    again = sdk.chat.completions.create(model="m", messages=messages, tools=[TOOL], tool_choice="none")
    assert again.choices[0].message is not None
    assert "sunny" in orjson.dumps(gateway.sent[-1]).decode()


@pytest.mark.parametrize("target", ["openai", "mistral", "compatible", "responses", "gemini"])
def test_the_anthropic_sdk_reads_the_same_words_streamed_and_whole(target: str) -> None:
    """Its helpers put a stream together to what the whole answer is."""
    gateway = Gateway(target)
    sdk = anthropic_sdk(gateway)
    whole = sdk.messages.create(model="m", max_tokens=50, messages=ASK)
    with sdk.messages.stream(model="m", max_tokens=50, messages=ASK) as stream:
        final = stream.get_final_message()
    block, streamed = whole.content[0], final.content[0]

    assert block.type == streamed.type == "text"
    assert block.text == streamed.text
    assert whole.stop_reason == final.stop_reason == "end_turn"
    assert whole.usage.output_tokens == final.usage.output_tokens > 0
    assert whole.usage.input_tokens == final.usage.input_tokens > 0


@pytest.mark.parametrize("target", ["openai", "mistral", "compatible", "responses", "gemini"])
def test_the_anthropic_sdk_calls_tools_of_every_vendors_models(target: str) -> None:
    """The call, streamed and whole, and the conversation that goes on with its result."""
    gateway = Gateway(target)
    sdk = anthropic_sdk(gateway)
    tools: Any = [{"name": "weather", "description": "d", "input_schema": WEATHER}]
    asked: dict[str, Any] = {"model": "m", "max_tokens": 90, "messages": ASK, "tools": tools}
    whole = sdk.messages.create(**asked, tool_choice={"type": "any"})
    with sdk.messages.stream(**asked, tool_choice={"type": "any"}) as stream:
        final = stream.get_final_message()
    uses = [block for block in whole.content if block.type == "tool_use"]
    streamed = [block for block in final.content if block.type == "tool_use"]

    assert whole.stop_reason == final.stop_reason == "tool_use"
    assert uses[0].name == streamed[0].name == "weather"
    assert uses[0].input == streamed[0].input
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
    messages = [*ASK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
    sdk.messages.create(**{**asked, "messages": messages})
    assert "sunny" in orjson.dumps(gateway.sent[-1]).decode()


@pytest.mark.parametrize("target", ["anthropic", "mistral", "compatible", "gemini", "openai"])
def test_the_openai_sdk_gets_responses_from_models_without_them(target: str) -> None:
    """Text and calls; the SDK's stream helper is content with every event."""
    sdk = openai_sdk(Gateway(target))
    whole = sdk.responses.create(model="m", input="hello")
    with sdk.responses.stream(model="m", input="hello") as stream:
        final = stream.get_final_response()
    tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}
    called = sdk.responses.create(model="m", input="weather", tools=[tool], tool_choice="required")

    assert whole.output_text == final.output_text != ""
    assert whole.status == final.status == "completed"
    assert whole.usage is not None
    assert final.usage == whole.usage
    assert "weather" in [item.name for item in called.output if item.type == "function_call"]


@pytest.mark.parametrize("target", ["anthropic", "openai", "gemini"])
def test_the_mistral_sdk_reads_other_vendors_models(target: str) -> None:
    """It is the strictest of the readers: every field has its type."""
    sdk = Mistral(api_key="k", server_url="http://g", client=Gateway(target, caller="mistral").client())
    whole = sdk.chat.complete(model="m", messages=ASK)
    events = list(sdk.chat.stream(model="m", messages=ASK))
    text = "".join([str(choice.delta.content or "") for event in events for choice in event.data.choices])

    assert whole.choices[0].message is not None
    assert whole.choices[0].message.content == text != ""
    assert whole.usage.prompt_tokens == events[-1].data.usage.prompt_tokens > 0


@pytest.mark.parametrize("target", ["anthropic", "mistral"])
def test_the_openai_sdk_parses_json_of_other_vendors_models(target: str) -> None:
    """A schema and a mere wish for JSON."""
    sdk = openai_sdk(Gateway(target))
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": WEATHER}}
    for wanted in (form, {"type": "json_object"}):
        answer = sdk.chat.completions.create(model="m", messages=ASK, response_format=wanted)
        assert type(orjson.loads(answer.choices[0].message.content or "")) is dict
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.tool_calls is None


REFUSALS = [
    ("anthropic", 429, {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}, "RateLimitError"),
    ("anthropic", 529, {"type": "error", "error": {"type": "overloaded_error", "message": "full"}},
     "InternalServerError"),
    ("anthropic", 400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}},
     "BadRequestError"),
    ("gemini", 404, {"error": {"code": 404, "message": "models/x is not found", "status": "NOT_FOUND"}},
     "NotFoundError"),
    ("mistral", 422, {"detail": [{"loc": ["body", "n"], "msg": "too big"}]}, "BadRequestError"),
    ("compatible", 404, {"error": "model not found"}, "NotFoundError"),
]


@pytest.mark.parametrize(("target", "status", "body", "kind"), REFUSALS)
def test_an_upstreams_refusal_is_raised_as_the_sdks_own_kind(
    target: str, status: int, body: dict[str, Any], kind: str
) -> None:
    """Whole or in place of a stream, with the upstream's words."""
    gateway = Gateway(target, canned=(status, orjson.dumps(body)))
    for streams in (False, True):
        with pytest.raises(getattr(openai, kind)):
            openai_sdk(gateway).chat.completions.create(model="m", messages=ASK, stream=streams)
        if target != "anthropic":
            with pytest.raises(getattr(anthropic, kind)):
                anthropic_sdk(gateway).messages.create(model="m", max_tokens=9, messages=ASK, stream=streams)


def read_chat(body: bytes, read: list[str]) -> None:
    sdk = openai_sdk(Gateway("anthropic", canned=(200, body)))
    for chunk in sdk.chat.completions.create(model="m", messages=ASK, stream=True):
        read += [choice.delta.content or "" for choice in chunk.choices]


def read_messages(body: bytes, read: list[str]) -> None:
    sdk = anthropic_sdk(Gateway("openai", canned=(200, body)))
    for event in sdk.messages.create(model="m", max_tokens=9, messages=ASK, stream=True):
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            read.append(event.delta.text)


def test_a_fault_in_a_stream_is_raised_behind_what_was_said() -> None:
    """Both SDKs, each with the other's model; a stream that only stops short is raised as well."""
    for vendor, read_all, kind in (
        ("anthropic", read_chat, openai.APIError),
        ("openai", read_messages, anthropic.APIError),
    ):
        short, _, _ = Case(vendor, "text").stream.rpartition("🌍".encode())
        for body in ((HERE / vendor / "error.sse").read_bytes(), short):
            read: list[str] = []
            with pytest.raises(kind):
                read_all(body, read)
            assert any(read)


def test_a_field_without_translation_is_a_bad_request_to_the_sdk() -> None:
    """Nothing is sent, and the field is named."""
    gateway = Gateway("anthropic")
    with pytest.raises(openai.BadRequestError, match="'n' cannot be translated"):
        openai_sdk(gateway).chat.completions.create(model="m", messages=ASK, n=2)

    assert gateway.sent == []
