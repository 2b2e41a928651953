"""Every vendor's SDK talks through the proxy to upstreams that others wrote.

The recorded transcripts are our own reading of the vendors' documents; these upstreams are somebody else's. They run
as processes of their own, see `tests.fakes.foreign`; where one is not installed its scenes are skipped.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from mistralai.client import errors as mistral

from tests.fakes.foreign import AFTER_TOOLS, CITIES, GREETING, HALF, PEERS, TOKENS, Peer, open_peer
from tests.scenes.many import Many
from tests.scenes.many_callers import CALLERS, Caller, Cost, Question, open_caller
from tests.scenes.sdk.conftest import _few_authorities  # noqa: F401 - pytest finds it here

pytestmark = [pytest.mark.long]

# Where each of them serves a dialect.
MOUNTS: dict[str, dict[str, str]] = {
    "aimock": {
        "openai": "", "anthropic": "", "mistral": "", "gemini": "", "responses": "", "compatible": "/v1", "azure": "",
    },
    "llmock": {
        "openai": "", "anthropic": "/anthropic", "mistral": "/mistral", "gemini": "/gemini", "responses": "",
        "compatible": "/groq/openai/v1",
    },
    "fakellm": {"openai": "", "anthropic": "", "compatible": "/v1"},
    "mockllm": {"openai": "", "compatible": "/v1"},
}  # fmt: skip
SERVES_RESPONSES = {("aimock", "openai"), ("llmock", "openai")}
MODELS = {
    "openai": "gpt-4o",
    "anthropic": "claude-opus-4-6",
    "mistral": "mistral-large-latest",
    "gemini": "gemini-2.5-pro",
    "responses": "gpt-4o",
    "compatible": "llama-3.3-70b-versatile",
    "azure": "gpt-4o",
}
LLMOCK_NAMES = {"responses": "openai", "compatible": "groq"}
"""What `llmock` calls a provider, where it is not our kind's name."""
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(60))
COST = Cost(*TOKENS)
WEATHER_CALLS = [("weather", {"city": city}) for city in CITIES]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Peer]]:
    """Starts one of them when it is first asked for; all are ended with the module."""
    with _running(tmp_path_factory.mktemp("peers")) as find:
        yield find


@contextmanager
def _running(folder: Path) -> Iterator[Callable[[str], Peer]]:
    found: dict[str, Any] = {}

    def find(name: str) -> Peer:
        if name not in found:
            (folder / name).mkdir()
            opened = open_peer(name, folder / name)
            found[name] = opened.__enter__(), opened
        running: Peer = found[name][0]
        return running

    try:
        yield find
    finally:
        for _, opened in found.values():
            opened.__exit__(None, None, None)


@asynccontextmanager
async def before(*peers: Peer) -> AsyncIterator[Many]:
    """A proxy with a provider ``peer-kind`` for each dialect of each, and a model of the same name."""
    providers: dict[str, dict[str, Any]] = {}
    models: dict[str, Any] = {}
    for peer in peers:
        for kind, mount in MOUNTS[peer.name].items():
            name = f"{peer.name}-{kind}"
            providers[name] = {"kind": kind, "base_url": peer.url + mount}
            if kind == "azure":
                providers[name]["version"] = "2024-10-21"
            models[name] = {"targets": [f"{name}/{MODELS[kind]}"], "attempts": 1}
    async with Many(providers, models) as stage:
        yield stage
        await stage.at_rest()


async def each_target(stage: Many, caller: str, peer: Peer) -> AsyncIterator[tuple[str, str, Caller]]:
    """An SDK, and in turn every dialect of ``peer`` and the model that is asked for it."""
    async with open_caller(caller, stage.app.url) as sdk:
        for kind in MOUNTS[peer.name]:
            if caller == "responses" and kind in ("openai", "azure") and (peer.name, kind) not in SERVES_RESPONSES:
                continue  # OpenAI itself has them, so they are not translated for it
            yield kind, f"{peer.name}-{kind}", sdk


# -- what is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", PEERS)
async def test_text_and_its_cost_are_the_same_whole_and_streamed(
    name: str, caller: str, peer: Callable[[str], Peer]
) -> None:
    """In every dialect of every mock, in the words of every SDK."""
    other = peer(name)
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            question = Question(model, "hello", system="Be brief.")
            whole = await sdk.ask(question, streams=False)
            streamed = await sdk.ask(question, streams=True)

            assert whole.says() == streamed.says(), kind
            assert whole.end == "stop", kind
            if name != "llmock":
                assert whole.text == GREETING, kind
            assert whole.text, kind
            assert whole.cost is not None, kind
            if name == "aimock":
                assert whole.cost == COST, kind
            if name in ("aimock", "llmock") and kind != "mistral":
                # The others tell no cost of a stream, and these two none in place of Mistral, who always does.
                assert whole.cost == streamed.cost, kind


NATIVE = [
    ("aimock", "openai", "openai"), ("aimock", "responses", "responses"), ("aimock", "anthropic", "anthropic"),
    ("llmock", "openai", "openai"), ("llmock", "responses", "responses"), ("llmock", "anthropic", "anthropic"),
    ("fakellm", "openai", "openai"), ("fakellm", "anthropic", "anthropic"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "caller", "kind"), NATIVE)
async def test_the_vendors_own_sdk_hears_through_the_proxy_what_it_hears_directly(
    name: str, caller: str, kind: str, peer: Callable[[str], Peer]
) -> None:
    """In the dialect of both, nothing is changed but the model's name."""
    other = peer(name)
    url = other.url + MOUNTS[name][kind]
    async with before(other) as stage, AsyncExitStack() as stack:
        direct = await stack.enter_async_context(open_caller(caller, url))
        through = await stack.enter_async_context(open_caller(caller, stage.app.url))
        for streams in (False, True):
            heard = await direct.ask(Question(MODELS[kind], "hello"), streams=streams)
            again = await through.ask(Question(f"{name}-{kind}", "hello"), streams=streams)

            assert again.says() == heard.says()
            assert again.cost == heard.cost


@pytest.mark.parametrize("caller", CALLERS)
async def test_parallel_tools_are_called_and_answered_in_every_dialect(
    caller: str, peer: Callable[[str], Peer]
) -> None:
    """Two calls at once, whole and streamed, and the turn after their results."""
    other = peer("aimock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            if caller == kind == "mistral":
                continue  # it speaks OpenAI's words there, calls in pieces, which Mistral's own SDK refuses
            for streams in (False, True):
                question = Question(model, "weather in two cities", tools=True)
                heard = await sdk.ask(question, streams=streams)
                assert heard.calls == WEATHER_CALLS, kind
                assert heard.end == "tools", kind
                if kind != "mistral":
                    assert heard.cost == COST, kind
                again = question._replace(earlier=heard, results=("sunny in one", "sunny in two"))
                assert (await sdk.ask(again, streams=streams)).text == AFTER_TOOLS, kind


@pytest.mark.parametrize("caller", CALLERS)
async def test_an_agent_loop_ends_at_a_mock_that_answers_tools_by_their_schema(
    caller: str, peer: Callable[[str], Peer]
) -> None:
    """`llmock` makes up a call that fits the schema and is content with its result; a scripted pair of calls comes
    in order."""
    other = peer("llmock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            for streams in (False, True):
                other.post("/_llmock/reset")
                question = Question(model, f"weather, please, {streams}", tools=True)
                heard = await sdk.ask(question, streams=streams)
                assert [each for each, _ in heard.calls] == ["weather"], kind
                assert type(heard.calls[0][1]["city"]) is str, kind
                assert heard.end == "tools", kind
                again = await sdk.ask(question._replace(earlier=heard, results=("sunny",)), streams=streams)
                assert again.calls == [], kind
                assert again.text, kind

                calls = [{"name": "weather", "arguments": {"city": city}} for city in CITIES]
                other.post("/_llmock/scenario", {"behaviors": [{"type": "reply", "tool_calls": calls}]})
                scripted = Question(model, f"two cities {streams}", tools=True)
                assert (await sdk.ask(scripted, streams=streams)).calls == WEATHER_CALLS, kind


@pytest.mark.parametrize("caller", CALLERS)
async def test_an_answer_that_was_cut_short_says_so_in_every_dialect(
    caller: str, peer: Callable[[str], Peer]
) -> None:
    """`aimock` ends its answer by each vendor's word for the limit."""
    other = peer("aimock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            for streams in (False, True):
                heard = await sdk.ask(Question(model, "long"), streams=streams)
                assert (heard.text, heard.end) == (HALF, "length"), kind


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_picture_arrives_in_every_dialect(caller: str, peer: Callable[[str], Peer]) -> None:
    """`llmock` writes down what it was asked, and it is the SDK's picture that it was asked about."""
    other = peer("llmock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            await sdk.ask(Question(model, "hello, what is it?", image=PNG), streams=False)
            [entry] = other.get("/_llmock/requests")["requests"][-1:]
            assert base64.b64encode(PNG).decode() in str(entry["body"]), kind


# -- what goes wrong ------------------------------------------------------------------------------------------

# By caller and status of the upstream. The dead key comes last, as it is not used again.
RAISED: dict[str, dict[int, type[Exception]]] = {
    "openai": {
        400: openai.BadRequestError,
        404: openai.NotFoundError,
        429: openai.RateLimitError,
        500: openai.InternalServerError,
        503: openai.InternalServerError,
        401: openai.InternalServerError,
    },
    "anthropic": {
        400: anthropic.BadRequestError,
        404: anthropic.NotFoundError,
        429: anthropic.RateLimitError,
        500: anthropic.InternalServerError,
        503: anthropic.APIStatusError,
        401: anthropic.InternalServerError,
    },
    "mistral": dict.fromkeys((400, 404, 429, 500, 503, 401), mistral.MistralError),
}
RAISED["responses"] = RAISED["openai"]
STATUSES = {
    400: range(400, 401), 401: range(500, 503), 404: range(404, 405), 429: range(429, 430), 500: range(500, 503),
    503: range(503, 530),
}  # fmt: skip


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_refusal_of_aimock_is_raised_as_the_sdks_own_kind(caller: str, peer: Callable[[str], Peer]) -> None:
    """Context length, dead key, unknown model, haste, failure and overload, in each dialect's own words."""
    other = peer("aimock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            for status, expected in RAISED[caller].items():
                where = f"{kind} {status}"
                await _raises(sdk, Question(model, f"refuse {status}"), expected, STATUSES[status], where)


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_refusal_of_llmock_is_raised_as_the_sdks_own_kind(caller: str, peer: Callable[[str], Peer]) -> None:
    """The same statuses in another author's words."""
    other = peer("llmock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            for status, expected in RAISED[caller].items():
                other.post("/_llmock/reset")
                fail = {"type": "fail", "status": status, "times": None}
                other.post("/_llmock/scenario", {"behaviors": [fail]})
                where = f"{kind} {status}"
                await _raises(sdk, Question(model, f"refuse {where}"), expected, STATUSES[status], where)
    other.post("/_llmock/reset")


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_refusal_of_fakellm_is_raised_as_the_sdks_own_kind(caller: str, peer: Callable[[str], Peer]) -> None:
    """Without a type or a code that would say more than the status does; it refuses no streams."""
    other = peer("fakellm")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            for status, expected in RAISED[caller].items():
                where = f"{kind} {status}"
                question = Question(model, f"refuse {status}")
                await _raises(sdk, question, expected, STATUSES[status], where, both=False)


async def _raises(
    sdk: Caller, question: Question, kind: type[Exception], statuses: range, where: str, *, both: bool = True
) -> None:
    for streams in (False, True) if both else (False,):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is looked at below
            await sdk.ask(question, streams=streams)
        error: Any = caught.value
        assert isinstance(error, kind), f"{where}, streams {streams}: {error!r}"
        assert error.status_code in statuses, f"{where}, streams {streams}: {error!r}"


BROKEN: dict[str, tuple[type[Exception], ...]] = {
    "openai": (openai.APIError,),
    "responses": (openai.APIError, RuntimeError),
    "anthropic": (anthropic.APIError,),
    "mistral": (mistral.MistralError, ValueError),
}


@pytest.mark.parametrize("fault", ["disconnect", "truncate", "malformed"])
@pytest.mark.parametrize("caller", ["openai", "anthropic"])
async def test_a_stream_that_breaks_is_raised_where_the_sdk_alone_would_take_it_for_an_answer(
    caller: str, fault: str, peer: Callable[[str], Peer]
) -> None:
    """`llmock` drops the connection, ends early without a word, or sends what is no JSON, behind three chunks:
    through the proxy each is an exception of the SDK's own."""
    other = peer("llmock")
    async with before(other) as stage:
        async for kind, model, sdk in each_target(stage, caller, other):
            if fault != "disconnect" and kind in (caller, "compatible" if caller == "openai" else ""):
                continue  # in the caller's own dialect bytes go through as they are
            other.post("/_llmock/reset")
            broken = {"type": "stream_fault", "kind": fault, "after_chunks": 3}
            other.post("/_llmock/scenario", {"behaviors": [broken]})
            try:
                heard = await sdk.ask(Question(model, f"go on {kind}"), streams=True)
            except BROKEN[caller]:
                continue
            raise AssertionError(f"{kind}: {heard.says()} was taken for an answer")
    other.post("/_llmock/reset")


async def test_one_mock_answers_where_another_fails(peer: Callable[[str], Peer]) -> None:
    """Two authors' upstreams behind one model: `llmock` throttles, fails and drops; `aimock` answers each time, and
    `llmock`'s own verdict finds no fault with how it was treated."""
    first, second = peer("llmock"), peer("aimock")
    first.post("/_llmock/reset")
    for caller in CALLERS:
        async with before(first, second) as stage:
            for kind in MOUNTS["llmock"]:
                targets = [f"llmock-{kind}/{MODELS[kind]}", "aimock-anthropic/claude-opus-4-6"]
                stage.models[f"either-{kind}"] = {"targets": targets}
            await stage.reload()
            async with open_caller(caller, stage.app.url) as sdk:
                for kind in MOUNTS["llmock"]:
                    for status in (429, 500, 401):
                        fail = {"type": "fail", "status": status}
                        first.post("/_llmock/scenario", {"behaviors": [fail]})
                        question = Question(f"either-{kind}", f"hello {caller} {kind} {status}")
                        heard = await sdk.ask(question, streams=False)
                        assert heard.text == GREETING, f"{caller} over {kind} {status}"
                        assert first.get("/_llmock/scenario")["pending"] == [], "the fault was met"
                        # A key that was refused is passed over for a while; here each fault is to be met.
                        stage.app.fleet.credentials.keep({})
                        stage.app.fleet.adopt(stage.app.catalogs.current)
    verdict = first.get("/_llmock/verdict")

    assert verdict["faults_injected"] == len(CALLERS) * len(MOUNTS["llmock"]) * 3
    assert [finding for finding in verdict["findings"] if finding["severity"] == "error"] == []
