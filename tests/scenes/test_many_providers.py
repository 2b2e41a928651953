"""Every vendor's SDK talks to every vendor's models through the proxy: what was recorded of them, replayed."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest
from mistralai.client import errors as mistral

from tests.fakes.upstream import Call
from tests.scenes.many import PLACEHOLDER, Many, Script, key_of
from tests.scenes.many_callers import CALLERS, Caller, Cost, Heard, Question, open_caller
from tests.scenes.sdk.conftest import _few_authorities  # noqa: F401 - pytest finds it here
from tests.wire.transcripts import HERE, Case, usage_of

MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-4-6",
    "mistral": "mistral-large-latest",
    "gemini": "gemini-2.5-pro",
    "responses": "gpt-6",
    "compatible": "llama",
    "azure": "our-deployment",
}
TARGETS = tuple(MODELS)
LONG = pytest.mark.long
# Each scene with two of them at any time, and with the others where tests may take their time.
TURNS = ["openai", "anthropic", *[pytest.param(name, marks=LONG) for name in ("responses", "mistral")]]
GREETING = 'Grüße, "Welt" \n🌍.'
CALLS = [("weather", {"city": "Köln"}), ("clock", {})]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(40))
SSE = [("content-type", "text/event-stream")]

PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "mistral": "/v1/chat/completions",
    "gemini": "/v1beta/models/gemini-2.5-pro:generateContent",
    "responses": "/v1/responses",
    "compatible": "/v1/chat/completions",
    "azure": "/openai/deployments/our-deployment/chat/completions",
}
KEY_HEADERS = {"anthropic": "x-api-key", "gemini": "x-goog-api-key", "azure": "api-key"}


def replay(target: str, name: str, *, size: int = 37) -> Script:
    """An upstream that gives a recorded answer, its stream cut in pieces of ``size`` bytes; one of OpenAI's that is
    asked for a response gives a response."""

    async def script(call: Call) -> None:
        case = Case("responses", name) if call.path.endswith("/responses") else Case(target, name)
        if not asks_for_a_stream(call):
            await call.answer(200, [("content-type", "application/json")], case.whole)
            return
        await call.send_head(200, SSE, chunked=True)
        stream = case.stream
        for at in range(0, len(stream), size):
            await call.send(stream[at : at + size])
        await call.end()

    return script


def asks_for_a_stream(call: Call) -> bool:
    return "streamGenerateContent" in call.path or bool(call.json().get("stream"))


@asynccontextmanager
async def everybody(caller: str) -> AsyncIterator[tuple[Many, Caller]]:
    """A proxy with a provider of each kind, which has one model ``smart-kind``, and an SDK pointed at it. At rest in
    the end."""
    providers: dict[str, dict[str, Any]] = {target: {"kind": target} for target in TARGETS}
    providers["azure"]["version"] = "2024-10-21"
    models = {f"smart-{target}": {"targets": [f"{target}/{MODELS[target]}"]} for target in TARGETS}
    async with Many(providers, models) as stage:
        async with open_caller(caller, stage.app.url) as sdk:
            yield stage, sdk
        await stage.at_rest()


async def both_ways(sdk: Caller, question: Question) -> tuple[Heard, Heard]:
    """The whole answer and the streamed one."""
    return await sdk.ask(question, streams=False), await sdk.ask(question, streams=True)


def dialect_of(caller: str, target: str) -> str:
    """Whose recording is replayed: OpenAI's own servers give responses to those who ask for them."""
    return "responses" if caller == "responses" and target in ("openai", "azure") else target


def cost_of(dialect: str) -> Cost:
    usage = usage_of(Case(dialect, plain_case(dialect)))
    return Cost(usage.input_tokens, usage.output_tokens, usage.cached_input_tokens)


# -- what is said ---------------------------------------------------------------------------------------------

TEXTS = {"mistral": "Bonjour", "azure": "Hello", "compatible": "Hello"}


def plain_case(target: str) -> str:
    """The recorded answer that is mere text, or next to it."""
    return "thoughts" if target == "compatible" else "text"


@pytest.mark.parametrize("caller", CALLERS)
async def test_an_sdk_reads_the_words_of_any_vendors_model(caller: str) -> None:
    """The same text, end and cost, whole and streamed; the operator's key goes where that vendor wants it, and the
    caller's placeholder nowhere."""
    async with everybody(caller) as (stage, sdk):
        for target in TARGETS:
            dialect, upstream = dialect_of(caller, target), stage.upstreams[target]
            upstream.respond_with(replay(target, plain_case(dialect)))
            question = Question(f"smart-{target}", "Say hello.", system="Be brief.")
            whole, streamed = await both_ways(sdk, question)

            assert whole.says() == streamed.says() == (TEXTS.get(dialect, GREETING), [], "stop"), target
            expected = cost_of(dialect)
            if caller == "mistral":
                expected = expected._replace(cached_tokens=0)
            assert (whole.cost, streamed.cost) == (expected, expected), target
            assert [call.path for call in upstream.history] == paths_of(dialect, target), target
            for call in upstream.history:
                key = call.header(KEY_HEADERS.get(target, "authorization")) or ""
                assert key.removeprefix("Bearer ") == key_of(target), target
                assert PLACEHOLDER not in str(call.headers), target
                assert "Be brief." in call.body.decode(), target
                if target not in ("gemini", "azure"):
                    assert call.json()["model"] == MODELS[target]


def paths_of(dialect: str, target: str) -> list[str]:
    """Of the whole answer and of the streamed one."""
    if dialect == "responses":
        path = "/openai/v1/responses" if target == "azure" else "/v1/responses"
        return [path, path]
    path = PATHS[target]
    return [path, path.replace(":generate", ":streamGenerate")]


@pytest.mark.parametrize("caller", TURNS)
async def test_an_sdk_calls_several_tools_of_any_vendors_model_and_goes_on(caller: str) -> None:
    """Two calls at once, whole and streamed, and the conversation with what came of them: each result reaches the
    model behind its call, in order."""
    async with everybody(caller) as (stage, sdk):
        for target in TARGETS:
            if target == "azure":
                continue  # what was recorded of it has no tools; its answers are OpenAI's
            dialect, upstream = dialect_of(caller, target), stage.upstreams[target]
            question = Question(f"smart-{target}", "How is the weather, and what time is it?", tools=True)
            for streams in (False, True):
                upstream.respond_with(replay(target, "tools"))
                heard = await sdk.ask(question, streams=streams)
                assert heard.calls == CALLS, target
                if (caller, target) != ("openai", "compatible"):
                    # What this server says goes through as it is, and it says "stop".
                    assert heard.end == "tools", target
                upstream.respond_with(replay(target, plain_case(dialect)))
                again = question._replace(earlier=heard, results=("sunny", "noon"))
                assert (await sdk.ask(again, streams=streams)).text == TEXTS.get(dialect, GREETING), target
                sent = json.dumps(upstream.history[-1].json(), ensure_ascii=False)
                assert 0 < sent.index("weather") < sent.index("sunny") < sent.index("noon"), target
                assert sent.count("Köln") == 1, target


@pytest.mark.parametrize("caller", TURNS)
async def test_an_sdk_learns_that_an_answer_was_cut_short(caller: str) -> None:
    """By its own word for it."""
    async with everybody(caller) as (stage, sdk):
        for target in ("openai", "anthropic", "gemini", "responses"):
            stage.upstreams[target].respond_with(replay(target, "length"))
            whole, streamed = await both_ways(sdk, Question(f"smart-{target}", "Go on."))

            assert whole.says() == streamed.says() == ("cut", [], "length"), target


@pytest.mark.parametrize("caller", TURNS)
async def test_a_picture_reaches_any_vendors_model(caller: str) -> None:
    """Its bytes arrive in that vendor's form, unchanged."""
    async with everybody(caller) as (stage, sdk):
        for target in TARGETS:
            stage.upstreams[target].respond_with(replay(target, plain_case(dialect_of(caller, target))))
            await sdk.ask(Question(f"smart-{target}", "What is it?", image=PNG), streams=True)
            [call] = stage.upstreams[target].history

            assert base64.b64encode(PNG).decode() in call.body.decode(), target
            assert "image/png" in call.body.decode(), target


# -- what goes wrong ------------------------------------------------------------------------------------------

RAISED_IN_STREAMS: dict[str, tuple[type[Exception], ...]] = {
    "openai": (openai.APIError,),
    "anthropic": (anthropic.APIError,),
    # Mistral's SDK knows no errors in streams: it takes the event for a chunk, and finds that it is none.
    "mistral": (mistral.MistralError, ValueError),
}


@pytest.mark.parametrize("caller", ["openai", "anthropic", pytest.param("mistral", marks=LONG)])
async def test_an_error_behind_the_first_words_is_raised_by_the_sdk(caller: str) -> None:
    """Nobody takes what was said so far for the answer; no other call is made."""
    async with everybody(caller) as (stage, sdk):
        for target in ("openai", "anthropic", "gemini", "responses"):
            stage.upstreams[target].respond_with(
                lambda call, target=target: call.answer_sse([(HERE / target / "error.sse").read_bytes()])
            )
            with pytest.raises(RAISED_IN_STREAMS[caller]):
                await sdk.ask(Question(f"smart-{target}", "Go on."), streams=True)
            assert stage.calls()[target] == 1


def openai_error(kind: str, message: str, code: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}


def anthropic_error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def gemini_error(status: int, word: str, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": word}}


def mistral_error(kind: str, message: str) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": "1300"}


BAD = "'temperature' must be below 2"
TOO_LONG = "This model's maximum context length is 8192 tokens"
REFUSALS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("bad", "openai", 400, openai_error("invalid_request_error", BAD)),
    ("bad", "anthropic", 400, anthropic_error("invalid_request_error", BAD)),
    ("bad", "gemini", 400, gemini_error(400, "INVALID_ARGUMENT", BAD)),
    ("bad", "mistral", 400, mistral_error("invalid_request_error", BAD)),
    ("bad", "compatible", 422, {"detail": [{"loc": ["body", "temperature"], "msg": BAD}]}),
    ("long", "openai", 400, openai_error("invalid_request_error", TOO_LONG, "context_length_exceeded")),
    ("long", "anthropic", 400, anthropic_error("invalid_request_error", "prompt is too long: 9000 tokens > 8192")),
    ("long", "gemini", 400, gemini_error(400, "INVALID_ARGUMENT", "The input token count exceeds the maximum")),
    ("long", "mistral", 400, mistral_error("invalid_request_error", "Prompt contains 9000 tokens, too many tokens")),
    ("long", "compatible", 400, openai_error("BadRequestError", TOO_LONG)),
    ("fast", "openai", 429, openai_error("requests", "Rate limit reached", "rate_limit_exceeded")),
    ("fast", "anthropic", 429, anthropic_error("rate_limit_error", "slow down")),
    ("fast", "gemini", 429, gemini_error(429, "RESOURCE_EXHAUSTED", "Quota exceeded")),
    ("fast", "mistral", 429, {"message": "Requests rate limit exceeded"}),
    ("down", "openai", 500, openai_error("server_error", "We had an error")),
    ("down", "anthropic", 529, anthropic_error("overloaded_error", "Overloaded")),
    ("down", "gemini", 503, gemini_error(503, "UNAVAILABLE", "The model is overloaded")),
    ("down", "mistral", 500, {"object": "error", "message": "Service unavailable", "type": "internal_error"}),
    # Last, as a dead key is not used again.
    ("key", "openai", 401, openai_error("invalid_request_error", "Incorrect API key", "invalid_api_key")),
    ("key", "anthropic", 401, anthropic_error("authentication_error", "invalid x-api-key")),
    ("key", "gemini", 400, gemini_error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.")),
    ("key", "mistral", 401, {"message": "Unauthorized", "request_id": "1"}),
]
# Of each vendor's SDK what it raises, and for the one that has a single class, which statuses.
RAISED: dict[str, dict[str, tuple[type[Exception], range]]] = {
    "openai": {
        "bad": (openai.APIStatusError, range(400, 423)),
        "long": (openai.BadRequestError, range(400, 401)),
        "key": (openai.InternalServerError, range(502, 503)),
        "fast": (openai.RateLimitError, range(429, 430)),
        "down": (openai.InternalServerError, range(500, 600)),
    },
    "anthropic": {
        "bad": (anthropic.BadRequestError, range(400, 401)),
        "long": (anthropic.BadRequestError, range(400, 401)),
        "key": (anthropic.InternalServerError, range(500, 600)),
        "fast": (anthropic.RateLimitError, range(429, 430)),
        "down": (anthropic.APIStatusError, range(500, 600)),
    },
    "mistral": {
        "bad": (mistral.MistralError, range(400, 423)),
        "long": (mistral.MistralError, range(400, 423)),
        "key": (mistral.MistralError, range(502, 503)),
        "fast": (mistral.MistralError, range(429, 430)),
        "down": (mistral.MistralError, range(500, 600)),
    },
}


TELLING = ("temperature", "tokens", "token count")


@pytest.mark.parametrize("caller", ["openai", *[pytest.param(name, marks=LONG) for name in ("anthropic", "mistral")]])
async def test_an_sdk_raises_its_own_kind_for_any_vendors_refusal(caller: str) -> None:
    """Whole and in place of a stream; what the upstream says about the request is told, what it says about its key is
    not."""
    async with everybody(caller) as (stage, sdk):
        for model in stage.models.values():
            model["attempts"] = 1
        await stage.reload()
        for number, (reason, target, status, body) in enumerate(REFUSALS):
            stage.upstreams[target].respond_with(
                lambda call, status=status, body=body: call.answer_json(body, status)
            )
            kind, statuses = RAISED[caller][reason]
            for streams in (False, True):
                where = f"{reason} of {target}, streams {streams}"
                with pytest.raises(kind) as caught:
                    await sdk.ask(Question(f"smart-{target}", f"{number} {streams}"), streams=streams)
                error: Any = caught.value
                assert error.status_code in statuses, where
                if reason in ("bad", "long") and (caller, target) != ("openai", "compatible"):
                    # Between those two the upstream's words go through as they are, whatever their form.
                    assert any(word in str(error) for word in TELLING), where
                if reason == "key":
                    assert "API key" not in str(error), where
                    assert "x-api-key" not in str(error), where


async def test_a_field_that_no_vendor_but_the_callers_knows_is_a_bad_request_that_names_it() -> None:
    """Three answers at once cannot be had of Anthropic's models: nothing is sent, and the SDK says why."""
    async with everybody("openai") as (stage, sdk):
        messages: Any = [{"role": "user", "content": "hi"}]
        with pytest.raises(openai.BadRequestError, match="'n'"):
            await sdk.sdk.chat.completions.create(model="smart-anthropic", messages=messages, n=3)

        assert stage.calls() == {}


async def test_a_target_that_cannot_be_asked_leaves_it_to_one_that_can() -> None:
    """The second target knows what the first does not, and is no attempt more."""
    providers = {"claude": {"kind": "anthropic"}, "vllm": {"kind": "compatible"}}
    models = {"smart": {"targets": ["claude/claude-opus-4-6", "vllm/llama"], "attempts": 1}}
    async with Many(providers, models) as stage:
        response = await stage.say("smart", n=2)
        await stage.at_rest()

        assert response.status == 200
        assert stage.calls() == {"vllm": 1}
