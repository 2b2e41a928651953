"""Who may share with whom: what makes two requests the same, what keeps them apart, and what nobody shares."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import Kind, ProxyError
from tests.fakes.client import RawResponse
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import wait_until
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.stage import (
    CHAT,
    KEY,
    MESSAGES,
    OTHER_KEY,
    Header,
    Stage,
    as_bytes,
    chat,
    completion,
    stream_events,
)

SSE = [("content-type", "text/event-stream")]
EVENTS = stream_events("one", "two")
WHOLE = as_bytes(EVENTS)
CLAUDE = {"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
ANTHROPIC: list[Header] = [("x-api-key", KEY), ("anthropic-version", "2023-06-01")]
NO_STORE = [("cache-control", "no-store")]
RETRY = [("x-stainless-retry-count", "1")]

Ask = dict[str, Any]


async def ask_each(stage: Stage, asks: Iterable[Ask]) -> list[RawResponse]:
    """Send every request while none is answered, then answer all of them."""
    asks = list(asks)
    responses = [await stage.ask(**ask) for ask in asks]
    await stage.attached(len(asks))
    await stage.upstream.seen(stage.app.table.started)
    for call in stage.upstream.history:
        if not call.ended:
            await call.answer_json({"asked": call.body.decode("latin-1")})
    for response in responses:
        await response.read_end()
    return responses


async def assert_apart(stage: Stage, *asks: Ask) -> None:
    """Each makes a call of its own and gets the answer to what it asked."""
    responses = await ask_each(stage, asks)
    assert stage.upstream.calls == len(asks)
    for ask, response in zip(asks, responses, strict=True):
        body = ask.get("body", chat())
        if not isinstance(body, bytes):
            body = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        assert response.json() == {"asked": body.decode("latin-1")}


async def assert_together(stage: Stage, *asks: Ask) -> None:
    """All of them are one call."""
    responses = await ask_each(stage, asks)
    assert stage.upstream.calls == 1
    assert len({response.body for response in responses}) == 1


# -- the body --------------------------------------------------------------------------------------------------------

FIELDS: dict[str, tuple[object, object]] = {
    "audio": ({"voice": "a", "format": "mp3"}, {"voice": "b", "format": "mp3"}),
    "best_of": (1, 2),
    "cache_control": ({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}),
    "context_management": ({"edits": []}, {"edits": [{"type": "clear_tool_uses_20250919"}]}),
    "dimensions": (256, 512),
    "document_image_limit": (1, 2),
    "echo": (False, True),
    "encoding_format": ("float", "base64"),
    "frequency_penalty": (0, 0.5),
    "function_call": ("auto", "none"),
    "functions": ([{"name": "f", "parameters": {}}], [{"name": "g", "parameters": {}}]),
    "guided_json": ({"type": "object"}, {"type": "array"}),
    "guided_regex": ("a+", "b+"),
    "include": ([], ["reasoning.encrypted_content"]),
    "inference_geo": ("eu", "us"),
    "input": ("a", "b"),
    "instructions": ("be brief", "be long"),
    "length_penalty": (1.0, 1.1),
    "logit_bias": ({"50256": -100}, {"50256": -99}),
    "logprobs": (False, True),
    "max_completion_tokens": (10, 11),
    "max_tokens": (10, 11),
    "max_tool_calls": (1, 2),
    "messages": ([{"role": "user", "content": "hi"}], [{"role": "system", "content": "hi"}]),
    "metadata": ({"user_id": "a"}, {"user_id": "b"}),
    "min_p": (0.1, 0.2),
    "min_tokens": (1, 2),
    "modalities": (["text"], ["text", "audio"]),
    "model": ("gpt-4o-mini", "gpt-4o"),
    "moderation": ({"model": "a"}, {"model": "b"}),
    "n": (1, 2),
    "output_config": ({"effort": "low"}, {"effort": "high"}),
    "parallel_tool_calls": (True, False),
    "prediction": ({"type": "content", "content": "a"}, {"type": "content", "content": "b"}),
    "presence_penalty": (0, 0.5),
    "previous_response_id": ("resp_1", "resp_2"),
    "prompt": ("a", "b"),
    "prompt_cache_key": ("a", "b"),
    "prompt_cache_retention": ("in_memory", "24h"),
    "prompt_mode": ("reasoning", None),
    "provider": ({"order": ["a"]}, {"order": ["b"]}),
    "random_seed": (1, 2),
    "reasoning": ({"effort": "low"}, {"effort": "high"}),
    "reasoning_effort": ("low", "high"),
    "repetition_penalty": (1.0, 1.1),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "safe_prompt": (False, True),
    "safety_identifier": ("a", "b"),
    "safety_settings": ([{"category": "A"}], [{"category": "B"}]),
    "seed": (1, 2),
    "service_tier": ("auto", "flex"),
    "stop": ("a", ["a"]),
    "stop_sequences": (["a"], ["b"]),
    "stream": (True, False),
    "stream_options": ({"include_usage": True}, {"include_usage": False}),
    "suffix": ("a", "b"),
    "system": ("be brief", "be long"),
    "temperature": (0, 0.1),
    "text": ({"verbosity": "low"}, {"verbosity": "high"}),
    "thinking": ({"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}),
    "tool_choice": ("auto", "required"),
    "tools": (
        [{"type": "function", "function": {"name": "f"}}],
        [{"type": "function", "function": {"name": "g"}}],
    ),
    "top_k": (1, 2),
    "top_logprobs": (1, 2),
    "top_p": (0.5, 0.6),
    "transforms": ([], ["middle-out"]),
    "truncation": ("auto", "disabled"),
    "user": ("a", "b"),
    "verbosity": ("low", "high"),
    "zzz": (1, 2),
}


def test_the_table_of_fields_is_long_enough() -> None:
    """TC017 asks for more than sixty."""
    assert len(FIELDS) > 60


@pytest.mark.parametrize("field", FIELDS)
async def test_one_changed_field_keeps_two_requests_apart(stage: Stage, field: str) -> None:
    """TC016-TC019: whatever the field means, and whether this proxy knows it or not (``zzz``); left out is a third
    value."""
    one, other = FIELDS[field]
    body = chat()
    without = {name: value for name, value in body.items() if name != field}
    await assert_apart(stage, {"body": {**body, field: one}}, {"body": {**body, field: other}}, {"body": without})


async def test_one_changed_byte_of_the_prompt_keeps_two_requests_apart(stage: Stage) -> None:
    """TC015: the body counts by its bytes."""
    await assert_apart(stage, {"body": chat("What is 2+2?")}, {"body": chat("What is 2+3?")})


async def test_two_bodies_of_equal_length_are_apart(stage: Stage) -> None:
    """TC031: a length is no fingerprint."""
    await assert_apart(stage, *({"body": chat(letter * 64)} for letter in "abcde"))


async def test_streamed_and_whole_answers_are_apart(stage: Stage) -> None:
    """TC020: whoever asked for JSON never gets events, and the reverse."""
    whole = await stage.ask(chat(stream=False))
    stream = await stage.ask(chat(stream=True))
    for _ in range(2):
        call = await stage.upstream.next_call()
        if call.json()["stream"]:
            await call.answer_sse(EVENTS)
        else:
            await call.answer_json(completion())

    assert (await whole.read_end()).json() == completion()
    assert (await stream.read_end()).body == WHOLE
    assert stage.upstream.calls == 2


async def test_the_order_of_members_and_white_space_keep_bodies_apart(stage: Stage) -> None:
    """In exact mode equal meaning is not enough, and nothing is ever rewritten."""
    bodies = (b'{"model":"m","messages":[]}', b'{"messages":[],"model":"m"}', b'{"model": "m","messages":[]}')
    await assert_apart(stage, *({"body": body, "headers": [("content-type", "application/json")]} for body in bodies))


async def test_the_same_body_with_and_without_compression_is_apart_and_sent_as_it_came(stage: Stage) -> None:
    """An upstream may not know the coding, so it is part of what was asked."""
    plain = json.dumps(chat()).encode()
    packed = gzip.compress(plain, mtime=0)
    kind = ("content-type", "application/json")
    one = await stage.ask(plain, headers=[kind])
    two = await stage.ask_many(2, packed, headers=[kind, ("content-encoding", "gzip")])
    bodies = {}
    for _ in range(2):
        call = await stage.upstream.next_call()
        bodies[call.header("content-encoding")] = call.body
        await call.answer_json(completion())
    for response in (one, *two):
        await response.read_end()

    assert bodies == {None: plain, "gzip": packed}
    assert stage.upstream.calls == 2


async def test_a_body_beyond_the_fingerprints_bound_goes_alone(stage: Stage) -> None:
    """TC042: eight mebibytes are hashed, more are not."""
    body = chat("x" * (8 << 20))
    responses = [await stage.ask(body), await stage.ask(body)]
    for _ in range(2):
        await (await stage.upstream.next_call()).answer_json(completion())
    for response in responses:
        await response.read_end()
    await stage.settled()

    assert stage.upstream.calls == 2
    assert [response.header("cache-status") for response in responses] == ["sameflight; fwd=bypass"] * 2
    assert stage.series('coalesce_bypass_total{reason="body_size"}') == 2


# -- where to and for whom -------------------------------------------------------------------------------------------


async def test_the_same_body_for_two_providers_is_apart(stage: Stage) -> None:
    """TC021: two providers behind one address."""
    await assert_apart(stage, {"path": "/openai" + CHAT}, {"path": "/mistral" + CHAT})


async def test_the_same_body_for_two_base_urls_is_apart() -> None:
    """TC021: each goes where its provider lives."""
    async with ScriptedUpstream() as elsewhere, Stage(mistral_upstream=elsewhere.url) as stage:
        one = await stage.ask(path="/openai" + CHAT)
        other = await stage.ask(path="/mistral" + CHAT)
        await (await stage.upstream.next_call()).answer_json(completion("here"))
        await (await elsewhere.next_call()).answer_json(completion("elsewhere"))
        await one.read_end()
        await other.read_end()
        await stage.at_rest()

        assert one.json() == completion("here")
        assert other.json() == completion("elsewhere")


async def test_one_path_spelled_with_and_without_its_version_is_one_request(stage: Stage) -> None:
    """What counts is what is sent upstream."""
    await assert_together(stage, {"path": CHAT}, {"path": "/openai" + CHAT}, {"path": "/openai/chat/completions"})


@pytest.mark.parametrize(
    "one_and_other",
    [
        (("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {OTHER_KEY}")),
        (("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}x")),
        (("authorization", f"Bearer {KEY}"), ("api-key", KEY)),
        (("authorization", "Bearer dummy"), ("authorization", "Bearer not-needed")),
    ],
    ids=["strangers", "same prefix", "other header", "placeholders"],
)
async def test_two_credentials_never_share(stage: Stage, one_and_other: tuple[Header, Header]) -> None:
    """TC022, TC131: over the whole credential and the way it is presented."""
    one, other = one_and_other
    await assert_apart(stage, {"key": None, "headers": [one]}, {"key": None, "headers": [other]})
    sent = [call.header("authorization") or call.header("api-key") for call in stage.upstream.history]

    assert sent == [one[1], other[1]]


async def test_callers_without_a_credential_share_the_proxys_own(stage: Stage) -> None:
    """Two requests that present nothing are one and the same caller."""
    await assert_together(stage, {"key": None}, {"key": None})


async def test_the_order_and_the_spelling_of_a_query_keep_requests_apart(stage: Stage) -> None:
    """TC026: exact mode knows no equal spellings."""
    paths = (CHAT, CHAT + "?", *(f"{CHAT}?{query}" for query in ("a=1&b=2", "b=2&a=1", "a=%31&b=2", "a=1&b=2&")))
    await assert_apart(stage, *({"path": path} for path in paths[:1] + paths[2:]))


async def test_two_api_versions_in_the_query_are_apart(stage: Stage) -> None:
    """Azure's way to say which API is meant."""
    await assert_apart(stage, *({"path": f"{CHAT}?api-version={year}"} for year in (2024, 2025)))


# -- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["anthropic-beta", "anthropic-version", "anthropic-workspace-id", "anthropic-user-profile-id", "accept"]
)
async def test_a_semantic_header_of_claude_keeps_requests_apart_and_is_forwarded(stage: Stage, name: str) -> None:
    """TC023: what may change the answer is in the key, and exactly that is sent."""
    values = ("application/json", "text/event-stream") if name == "accept" else ("one", "two")
    base = [header for header in ANTHROPIC if header[0] != name]
    asks = [
        {"body": CLAUDE, "path": MESSAGES, "key": None, "headers": [*base, (name, value)]} for value in values
    ]
    await assert_apart(stage, *asks)

    assert [call.header(name) for call in stage.upstream.history] == list(values)


@pytest.mark.parametrize("name", ["openai-beta", "openai-organization", "openai-project"])
async def test_a_semantic_header_of_openai_keeps_requests_apart_and_is_forwarded(stage: Stage, name: str) -> None:
    """TC023 for the other dialect."""
    await assert_apart(stage, {"headers": [(name, "one")]}, {"headers": [(name, "two")]}, {})

    assert [call.header(name) for call in stage.upstream.history] == ["one", "two", None]


async def test_headers_that_only_say_who_asks_do_not_keep_requests_apart(stage: Stage) -> None:
    """TC024: two SDKs, two traces, two codings, one call, and none of it reaches the upstream."""
    first = {
        "user-agent": "OpenAI/Python 1.0",
        "traceparent": "00-1-1-01",
        "tracestate": "a=1",
        "baggage": "b=1",
        "x-stainless-lang": "python",
        "x-stainless-arch": "x64",
        "accept-encoding": "gzip, br",
        "accept-language": "de",
        "cookie": "session=1",
        "referer": "https://a.example",
        "x-request-id": "mine",
        "x-forwarded-for": "10.0.0.1",
        "forwarded": "for=10.0.0.1",
        "dnt": "1",
    }
    second = {name: value + "2" for name, value in first.items()}
    await assert_together(stage, {"headers": first.items()}, {"headers": second.items()}, {})
    [call] = stage.upstream.history
    sent = {name.decode().lower(): value.decode() for name, value in call.headers}
    kept = {name: value for name, value in sent.items() if name in first}

    assert set(kept) == {"user-agent", "accept-encoding"}
    assert kept["accept-encoding"] == "identity"
    assert kept["user-agent"].startswith("sameflight/")


async def test_an_unknown_header_is_dropped_from_a_shared_call(stage: Stage) -> None:
    """TC025: what is not keyed may not change the answer of others."""
    await assert_together(stage, {"headers": [("x-foo", "one")]}, {"headers": [("x-foo", "two")]})

    assert stage.upstream.history[0].header("x-foo") is None


async def test_an_unknown_header_of_a_call_that_nobody_shares_is_passed_on(stage: Stage) -> None:
    """TC025: a private call is its caller's own."""
    await assert_apart(stage, {"headers": [("x-foo", "one"), ("x-sameflight-share", "off")]})

    assert stage.upstream.history[0].header("x-foo") == "one"
    assert stage.upstream.history[0].header("x-sameflight-share") is None


CANARIES = [
    "a-im", "accept-charset", "accept-language", "access-control-request-method", "alt-used", "authentication",
    "baggage", "cdn-loop", "cf-connecting-ip", "client-ip", "content-disposition", "content-language",
    "content-location", "content-md5", "cookie", "date", "device-memory", "dnt", "downlink", "early-data", "ect",
    "fastly-client-ip", "forwarded", "from", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "keep-alive", "last-event-id", "link", "max-forwards", "origin", "pragma", "prefer",
    "priority", "proxy-authorization", "proxy-connection", "range", "referer", "save-data", "sec-ch-ua",
    "sec-fetch-mode", "service-worker", "te", "traceparent", "tracestate", "trailer", "true-client-ip",
    "upgrade-insecure-requests", "user-agent", "via", "warning", "x-amzn-trace-id", "x-api-version", "x-b3-traceid",
    "x-client-data", "x-correlation-id", "x-csrf-token", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
    "x-http-method-override", "x-original-url", "x-real-ip", "x-request-id", "x-rewrite-url", "x-stainless-lang",
    "x-stainless-os", "x-stainless-runtime", "x-user-id", "x_api_key",
]  # fmt: skip


@pytest.mark.parametrize("path_and_body", [(CHAT, chat()), (MESSAGES, CLAUDE)], ids=["openai", "anthropic"])
async def test_a_canary_in_any_header_never_leaves_a_shared_request(
    stage: Stage, path_and_body: tuple[str, Any]
) -> None:
    """TC137: neither towards the upstream nor towards another caller."""
    path, body = path_and_body
    leader = await stage.ask(body, path=path, headers=[(name, f"canary-{name}") for name in CANARIES])
    follower = await stage.ask(body, path=path)
    await stage.attached(2)
    call = await stage.upstream.next_call()
    await call.answer_json(completion())
    for response in (leader, follower):
        await response.read_end()
    upstream_saw = b"\n".join(name + b": " + value for name, value in call.headers)
    callers_saw = b"\n".join(
        name + b": " + value for response in (leader, follower) for name, value in response.headers
    )

    assert b"canary" not in upstream_saw
    assert b"canary" not in callers_saw
    assert stage.upstream.calls == 1


# -- classes and profiles --------------------------------------------------------------------------------------------

SAMPLED = chat("x")
DETERMINISTIC = chat("x", temperature=0)
TOOLED = chat("x", tools=[{"type": "function", "function": {"name": "f"}}])
SEARCHING = chat("x", web_search_options={})
EMBEDDING = {"model": "text-embedding-3-small", "input": "x"}
IMAGE = {"model": "gpt-image-1", "prompt": "x"}
ASKS: dict[str, Ask] = {
    "pure": {"body": EMBEDDING, "path": "/v1/embeddings"},
    "deterministic": {"body": DETERMINISTIC},
    "sampled": {"body": SAMPLED},
    "tools": {"body": TOOLED},
    "costly": {"body": IMAGE, "path": "/v1/images/generations"},
    "time": {"body": SEARCHING},
}
JOINS = {  # profile → classes whose identical first attempts share
    "off": set[str](),
    "pure": {"pure"},
    "retries": {"pure", "deterministic"},
    "auto": {"pure", "deterministic"},
    "all": {"pure", "deterministic", "sampled", "tools", "costly"},
}
RETRIES = {  # profile → classes that a marked retry joins
    "off": set[str](),
    "pure": {"pure"},
    "retries": set(ASKS),
    "auto": set(ASKS),
    "all": set(ASKS),
}


@pytest.mark.parametrize("profile", JOINS)
@pytest.mark.parametrize("kind", ASKS)
async def test_a_profile_decides_which_first_attempts_share(profile: str, kind: str) -> None:
    """TC034 among them: two identical requests at the same time."""
    async with Stage(share=profile) as stage:
        await ask_each(stage, [ASKS[kind], ASKS[kind]])
        await stage.at_rest()

        assert stage.upstream.calls == (1 if kind in JOINS[profile] else 2)


@pytest.mark.parametrize("profile", RETRIES)
@pytest.mark.parametrize("kind", ASKS)
async def test_a_profile_decides_which_marked_retries_join(profile: str, kind: str) -> None:
    """A retry of the same request finds the first attempt, where the profile allows that."""
    async with Stage(share=profile) as stage:
        await ask_each(stage, [ASKS[kind], {**ASKS[kind], "headers": RETRY}])
        await stage.at_rest()

        assert stage.upstream.calls == (1 if kind in RETRIES[profile] else 2)


@pytest.mark.parametrize(("temperature", "calls"), [(None, 2), (1, 2), (0.0, 1), (0, 1), ("0", 2), (True, 2)])
async def test_only_an_explicit_temperature_of_zero_is_deterministic(temperature: object, calls: int) -> None:
    """TC034: left out, the provider samples."""
    async with Stage(share="retries") as stage:
        ask = {"body": chat() if temperature is None else chat(temperature=temperature)}
        await ask_each(stage, [ask, ask])
        await stage.at_rest()

        assert stage.upstream.calls == calls


@pytest.mark.parametrize(
    ("headers", "profile", "calls"),
    [
        ([("x-sameflight-share", "on")], "auto", 1),
        ([("x-sameflight-share", "on")], "retries", 2),
        ([("x-sameflight-share", "on")], "off", 2),
        ([("x-sameflight-share", "off")], "all", 2),
        ([("x-sameflight-share", "retry")], "all", 2),
        ([("x-sameflight-share", "on, off")], "all", 2),
        ([("x-sameflight-share", "banana")], "all", 1),
        ([("x-sameflight-share", "banana")], "auto", 2),
    ],
)
async def test_a_caller_can_be_stricter_than_the_profile_and_never_wider(
    headers: list[Header], profile: str, calls: int
) -> None:
    """``on`` opts in where the profile leaves that to the caller; an unknown word is never ``on``."""
    async with Stage(share=profile) as stage:
        await ask_each(stage, [{"headers": headers}] * 2)
        await stage.at_rest()

        assert stage.upstream.calls == calls


async def test_one_route_may_have_a_profile_of_its_own(tmp_path: Path) -> None:
    """The operator's file wins over the setting."""
    (tmp_path / "catalog.yaml").write_text("routes: {chat.completions: {share: off}}\n")
    async with Stage(config=str(tmp_path / "catalog.yaml")) as stage:
        await ask_each(stage, [{}, {}, ASKS["pure"], ASKS["pure"]])
        await stage.at_rest()

        assert stage.upstream.calls == 3


RESPONSES = {"model": "gpt-4o-mini", "input": "hi"}
EFFECTS: dict[str, Ask] = {
    "responses": {"body": RESPONSES, "path": "/v1/responses"},
    "responses, store null": {"body": {**RESPONSES, "store": None}, "path": "/v1/responses"},
    "responses in the background": {
        "body": {**RESPONSES, "store": False, "background": True},
        "path": "/v1/responses",
    },
    "responses of a conversation": {
        "body": {**RESPONSES, "store": False, "conversation": "conv_1"},
        "path": "/v1/responses",
    },
    "chat, stored": {"body": chat(store=True)},
    "MCP tool": {"body": {**RESPONSES, "store": False, "tools": [{"type": "mcp"}]}, "path": "/v1/responses"},
    "code interpreter": {
        "body": {**RESPONSES, "store": False, "tools": [{"type": "code_interpreter"}]},
        "path": "/v1/responses",
    },
    "unknown tool": {"body": chat(tools=[{"type": "launch_rocket"}])},
    "tools of a wrong kind": {"body": chat(tools={"type": "function"})},
    "MCP servers": {
        "body": {**CLAUDE, "mcp_servers": [{"type": "url"}]},
        "path": MESSAGES,
        "key": None,
        "headers": ANTHROPIC,
    },
    "container": {"body": {**CLAUDE, "container": "c"}, "path": MESSAGES, "key": None, "headers": ANTHROPIC},
    "message batches": {
        "body": {"requests": []},
        "path": "/v1/messages/batches",
        "key": None,
        "headers": ANTHROPIC,
    },
    "batches": {"body": {"input_file_id": "f"}, "path": "/v1/batches"},
    "fine tuning": {"body": {"model": "m"}, "path": "/v1/fine_tuning/jobs"},
    "threads": {"body": {}, "path": "/v1/threads"},
    "agents": {"body": {"agent_id": "a", "messages": []}, "path": "/v1/agents/completions"},
    "vector stores": {"body": {"name": "v"}, "path": "/v1/vector_stores"},
    "deletion": {"method": "DELETE", "path": "/v1/files/file-1", "body": b""},
    "list of files": {"method": "GET", "path": "/v1/files", "body": b""},
    "unknown path": {"body": {"a": 1}, "path": "/v2/whatever"},
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", EFFECTS)
async def test_what_has_effects_is_never_shared(stage: Stage, kind: str, streams: bool) -> None:
    """TC035: three identical requests are three calls, not even a retry joins, and ``on`` changes nothing."""
    ask = EFFECTS[kind]
    if streams and isinstance(ask["body"], dict):
        ask = {**ask, "body": {**ask["body"], "stream": True}}
    headers = list(ask.get("headers", ()))
    marked = {**ask, "headers": [*headers, *RETRY, ("x-sameflight-share", "on")]}
    responses = await ask_each(stage, [ask, ask, marked])

    assert stage.upstream.calls == 3
    assert {response.header("cache-status") for response in responses} == {"sameflight; fwd=bypass"}


async def test_a_response_that_is_explicitly_not_stored_is_shared(stage: Stage) -> None:
    """TC035, the counterpart: with ``store: false`` nothing is left behind at the provider."""
    ask = {"body": {**RESPONSES, "store": False}, "path": "/v1/responses"}
    await assert_together(stage, ask, ask)


def _form(boundary: str, content: bytes) -> tuple[bytes, list[Header]]:
    part = b'content-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + content
    body = b"--%b\r\n%b\r\n--%b--\r\n" % (boundary.encode(), part, boundary.encode())
    return body, [("content-type", f"multipart/form-data; boundary={boundary}")]


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/files", "/v1/images/edits", CHAT])
@pytest.mark.parametrize("forms", [(("b1", b"same"), ("b2", b"same")), (("b1", b"one!"), ("b1", b"two!"))])
async def test_forms_are_never_shared(stage: Stage, path: str, forms: tuple[tuple[str, bytes], ...]) -> None:
    """TC033: equal content behind random boundaries bypasses; equal names with other bytes are never the same."""
    asks = []
    for boundary, content in forms:
        body, headers = _form(boundary, content)
        asks.append({"body": body, "headers": headers, "path": path})
    responses = [await stage.ask(**ask) for ask in asks]
    calls = [await stage.upstream.next_call() for _ in asks]
    for call in calls:
        await call.answer_json({"asked": call.body.decode("latin-1")})
    for ask, response in zip(asks, responses, strict=True):
        assert (await response.read_end()).json() == {"asked": ask["body"].decode("latin-1")}
    assert stage.upstream.calls == 2


# -- lists of models -------------------------------------------------------------------------------------------------


async def test_a_list_of_models_is_shared_in_the_air_and_kept(stage: Stage) -> None:
    """Class A: one call for ten callers, and a hit for the one who comes later."""
    responses = await stage.ask_many(10, method="GET", path="/v1/models")
    await (await stage.upstream.next_call()).answer_json({"data": [{"id": "gpt-4o"}]})
    later = await stage.ask(method="GET", path="/v1/models")
    for response in (*responses, later):
        await response.read_end()

    assert {response.body for response in (*responses, later)} == {b'{"data":[{"id":"gpt-4o"}]}'}
    assert (later.header("cache-status") or "").startswith("sameflight; hit; ttl=")
    assert stage.upstream.calls == 1


async def test_two_credentials_have_two_lists_of_models(stage: Stage) -> None:
    """TC132: what an account may use is its own."""
    for key, name in ((KEY, "one"), (OTHER_KEY, "other")):
        first = await stage.ask(method="GET", path="/v1/models", key=key)
        await (await stage.upstream.next_call()).answer_json({"data": [{"id": name}]})
        await first.read_end()
    again = [await stage.ask(method="GET", path="/v1/models", key=key) for key in (KEY, OTHER_KEY)]

    assert [(await response.read_end()).json()["data"][0]["id"] for response in again] == ["one", "other"]
    assert stage.upstream.calls == 2


async def test_head_and_get_of_the_models_are_two_requests(stage: Stage) -> None:
    """TC043: HEAD is asked upstream for itself, has no body, and never disturbs the framing of what follows."""
    client = await stage.client()
    head = await stage.ask(method="HEAD", path="/v1/models", client=client)
    call = await stage.upstream.next_call()
    call.raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\r\n")
    call.done()
    await head.read_end()
    get = await stage.ask(method="GET", path="/v1/models", client=client)
    await (await stage.upstream.next_call()).answer_json({"data": [{"id": "gpt-4o"}]})
    await get.read_end()

    assert (head.status, head.body, head.header("content-length")) == (200, b"", "27")
    assert get.json() == {"data": [{"id": "gpt-4o"}]}
    assert [call.method for call in stage.upstream.history] == ["HEAD", "GET"]


# -- what a caller says ----------------------------------------------------------------------------------------------


async def test_five_variants_are_five_calls(stage: Stage) -> None:
    """TC041: k samples of one prompt."""
    asks = [{"headers": [("x-sameflight-variant", str(number))]} for number in range(5)]
    await assert_apart(stage, *asks)


async def test_callers_of_the_same_variant_share(stage: Stage) -> None:
    """A variant is a name for a sample, not a way to be alone."""
    await assert_together(stage, *[{"headers": [("x-sameflight-variant", "a")]}] * 3)
    assert stage.upstream.history[0].header("x-sameflight-variant") is None


@pytest.mark.parametrize("order", ["before", "after"])
async def test_a_caller_that_forbids_storing_meets_nobody(stage: Stage, order: str) -> None:
    """TC128: nobody joins it and it joins nobody."""
    shy, plain = {"headers": NO_STORE}, Ask()
    await assert_apart(stage, *((shy, plain) if order == "before" else (plain, shy)), shy)


async def test_a_caller_that_wants_it_fresh_starts_a_flight_that_others_join(stage: Stage) -> None:
    """TC126: it does not join what started earlier; later callers find its flight; its answer replaces the entry."""
    cached = [("x-sameflight-cache", "on")]
    old = await stage.ask(chat(), headers=cached)
    await (await stage.upstream.next_call()).answer_json(completion("stored"))
    await old.read_end()
    running = await stage.ask(chat(), headers=[("x-sameflight-cache", "off")])
    first = await stage.upstream.next_call()
    fresh = await stage.ask(chat(), headers=[*cached, ("cache-control", "no-cache")])
    second = await stage.upstream.next_call()
    joiner = await stage.ask(chat())
    await stage.attached(3)
    await second.answer_json(completion("fresh"))
    await first.answer_json(completion("old flight"))
    texts = [(await response.read_end()).json() for response in (running, fresh, joiner)]
    again = await stage.ask(chat(), headers=cached)

    assert texts == [completion("old flight"), completion("fresh"), completion("fresh")]
    assert (await again.read_end()).json() == completion("fresh")
    assert stage.upstream.calls == 3


async def test_a_caller_that_takes_only_what_is_there_never_makes_a_call(stage: Stage) -> None:
    """TC127: 504 if there is nothing, a join if it is in the air, a hit if it is kept."""
    cached, only = ("x-sameflight-cache", "on"), ("cache-control", "only-if-cached")
    nothing = await stage.ask(chat(), headers=[only])
    await nothing.read_end()
    leader = await stage.ask(chat(), headers=[cached])
    call = await stage.upstream.next_call()
    joined = await stage.ask(chat(), headers=[only])
    await stage.attached(2)
    await call.answer_json(completion())
    hit = await stage.ask(chat(), headers=[only, cached])
    for response in (leader, joined, hit):
        await response.read_end()

    assert (nothing.status, nothing.json()["error"]["code"]) == (504, "not_cached")
    assert (joined.status, joined.header("cache-status")) == (200, "sameflight; fwd=miss; collapsed; stored")
    assert hit.status == 200
    assert (hit.header("cache-status") or "").startswith("sameflight; hit")
    assert stage.upstream.calls == 1


# -- flights that take nobody any more -------------------------------------------------------------------------------


async def test_a_flight_that_is_too_old_to_join_is_superseded_and_ends_well(frozen_clock: FrozenClock) -> None:
    """TC011: later callers join the new one."""
    async with Stage(clock=frozen_clock, max_join_age_s=30) as stage:
        old = await stage.ask_many(2, chat())
        first = await stage.upstream.next_call()
        frozen_clock.advance(31.0)
        new = await stage.ask_many(2, chat())
        second = await stage.upstream.next_call()
        await second.answer_json(completion("new"))
        await first.answer_json(completion("old"))
        for response in (*old, *new):
            await response.read_end()
        await stage.at_rest()

        assert [response.json() for response in old] == [completion("old")] * 2
        assert [response.json() for response in new] == [completion("new")] * 2
        assert stage.app.table.superseded == 1
        assert stage.upstream.calls == 2


async def test_of_many_superseded_flights_the_oldest_are_only_forgotten(frozen_clock: FrozenClock) -> None:
    """TC012: the map is bounded to one and three of a key; callers of the others are served to the end."""
    async with Stage(clock=frozen_clock, max_subscribers=1) as stage:
        responses = await stage.ask_many(7, chat())
        calls = [await stage.upstream.next_call() for _ in range(7)]
        mapped = [flight.mapped for flight in stage.app.table.live]
        keys = len(stage.app.table)
        for number, call in reversed(list(enumerate(calls))):
            await call.answer_json(completion(str(number)))
        texts = [(await response.read_end()).json()["choices"][0]["message"]["content"] for response in responses]
        await stage.at_rest()

        assert mapped == [False] * 3 + [True] * 4
        assert keys == 1
        assert sorted(texts) == [str(number) for number in range(7)]


async def test_a_stream_beyond_its_tape_takes_no_joiner_and_serves_those_it_has() -> None:
    """TC011 by size: without its beginning a flight cannot be joined, so the next caller starts another."""
    async with Stage(max_tape_bytes=20_000) as stage:
        [first] = await stage.ask_many(1, chat(stream=True))
        call = await stage.upstream.next_call()
        await call.send_head(200, SSE, chunked=True)
        filler = b": " + b"x" * 25_000 + b"\n\n"
        await call.send(filler)
        await first.read_until(filler)
        [second] = await stage.ask_many(1, chat(stream=True))
        await (await stage.upstream.next_call()).answer_sse(EVENTS)
        await call.send(WHOLE)
        await call.end()
        await first.read_end()
        await second.read_end()
        await stage.at_rest()

        assert first.body == filler + WHOLE
        assert second.body == WHOLE


# -- heads that cannot be shared -------------------------------------------------------------------------------------


async def test_an_unshareable_head_releases_all_who_wait_at_once(stage: Stage) -> None:
    """TC091: the first keeps it; twenty-nine calls start without any of them waiting for another."""
    responses = await stage.ask_many(30, chat())
    first = await stage.upstream.next_call()
    await first.answer_json(completion("for one"), headers=[("vary", "*")])
    await stage.upstream.seen(30)
    others = [await stage.upstream.next_call() for _ in range(29)]
    assert not any(call.ended for call in others)
    for number, call in enumerate(others):
        await call.answer_json(completion(str(number)), headers=[("vary", "*")])
    texts = [(await response.read_end()).json()["choices"][0]["message"]["content"] for response in responses]

    assert texts[0] == "for one"
    assert sorted(texts[1:], key=int) == [str(number) for number in range(29)]
    assert stage.upstream.calls == 30
    assert stage.series('released_total{reason="unshareable"}') == 29
    assert [r.header("cache-status") for r in responses[1:]] == ["sameflight; fwd=bypass; collapsed=?0"] * 29


@pytest.mark.parametrize(
    "head",
    [
        (200, [("content-type", "application/json"), ("vary", "accept, *")]),
        (200, [("content-type", "text/html")]),
        (206, [("content-type", "application/json")]),
        (302, [("content-type", "application/json"), ("location", "/elsewhere")]),
    ],
    ids=["vary", "html", "partial", "redirect"],
)
async def test_what_is_no_plain_answer_is_not_shared(stage: Stage, head: tuple[int, list[Header]]) -> None:
    """Each caller asks for itself; nobody waits for another in vain for long."""
    status, headers = head
    stage.upstream.respond_with(None)
    responses = await stage.ask_many(3, chat())
    await (await stage.upstream.next_call()).answer(status, headers, b"1")
    for number in (b"2", b"3"):
        await (await stage.upstream.next_call()).answer(status, headers, number)
    bodies = [(await response.read_end()).body for response in responses]

    assert sorted(bodies) == [b"1", b"2", b"3"]
    assert [response.status for response in responses] == [status] * 3


async def test_a_marked_key_is_not_waited_for_until_its_marker_expires(
    frozen_stage: Stage, frozen_clock: FrozenClock
) -> None:
    """TC092: ten requests start at once; ten seconds later sharing is tried again."""
    stage = frozen_stage
    vary = [("vary", "*")]
    first = await stage.ask(chat())
    await (await stage.upstream.next_call()).answer_json(completion(), headers=vary)
    await first.read_end()
    marked = await stage.ask_many(10, chat())
    for _ in range(10):
        await (await stage.upstream.next_call()).answer_json(completion(), headers=vary)
    for response in marked:
        await response.read_end()
    frozen_clock.advance(12.0)
    shared = await stage.ask_many(10, chat())
    await (await stage.upstream.next_call()).answer_json(completion())
    for response in shared:
        await response.read_end()

    assert [response.header("cache-status") for response in marked] == ["sameflight; fwd=bypass"] * 10
    assert stage.upstream.calls == 12
    assert stage.series('join_refused_total{reason="pass_marker"}') == 10


async def test_an_answer_that_can_be_shared_clears_the_marker(stage: Stage) -> None:
    """TC093: the next burst shares without waiting for the marker's end."""
    first = await stage.ask(chat())
    await (await stage.upstream.next_call()).answer_json(completion(), headers=[("vary", "*")])
    await first.read_end()
    alone = await stage.ask(chat())
    await (await stage.upstream.next_call()).answer_json(completion())
    await alone.read_end()
    burst = await stage.ask_many(5, chat())
    await (await stage.upstream.next_call()).answer_json(completion())
    for response in burst:
        await response.read_end()

    assert stage.upstream.calls == 3
    assert stage.app.table.pass_markers == 0


# -- operations ------------------------------------------------------------------------------------------------------


async def test_revoking_a_credential_takes_its_callers_off_and_leaves_the_others(stage: Stage) -> None:
    """TC139: three streams end without a clean ending, the other credential's go on."""
    revoked = await stage.ask_many(3, chat(stream=True))
    first = await stage.upstream.next_call()
    others = await stage.ask_many(2, chat(stream=True), key=OTHER_KEY)
    second = await stage.upstream.next_call()
    for call, callers in ((first, revoked), (second, others)):
        await call.send_head(200, SSE, chunked=True)
        await call.send(as_bytes(EVENTS[:1]))
        for response in callers:
            await response.read_until(as_bytes(EVENTS[:1]))
    scope = next(iter(stage.app.table.live)).scope
    count = stage.app.table.revoke(scope, ProxyError(Kind.INVALID_KEY, "This key was revoked."))
    for response in revoked:
        await response.read_end()
    await first.client_gone()
    await second.send(as_bytes(EVENTS[1:]))
    await second.end()
    for response in others:
        await response.read_end()

    assert count == 3
    assert all(response.truncated and not response.ended for response in revoked)
    assert {response.body for response in others} == {WHOLE}


async def test_revoking_a_credential_answers_those_who_wait_with_a_refusal(stage: Stage) -> None:
    """TC139 before the head."""
    waiting = await stage.ask_many(3, chat())
    call = await stage.upstream.next_call()
    scope = next(iter(stage.app.table.live)).scope
    stage.app.table.revoke(scope, ProxyError(Kind.INVALID_KEY, "This key was revoked."))
    for response in waiting:
        await response.read_end()
    await call.client_gone()

    assert [response.status for response in waiting] == [401] * 3


async def test_no_body_and_no_credential_is_ever_logged() -> None:
    """TC142: at the most talkative level, through answers, failures, refusals and departures."""
    secret, prompt, said = "sk-proj-SECRETsecretSECRETsecret123", "PROMPT-canary", "ANSWER-canary"
    async with Stage(log_level="debug", max_body_bytes=100_000) as stage:
        credential: list[Header] = [("x-api-key", secret), ("anthropic-version", "2023-06-01")]
        claude = {**CLAUDE, "messages": [{"role": "user", "content": prompt}]}
        asks: list[Ask] = [
            {"body": chat(prompt), "key": secret},
            {"body": chat(prompt), "key": secret},
            {"body": chat(prompt, stream=True), "key": secret},
            {"body": claude, "path": MESSAGES, "key": None, "headers": credential},
            {"body": {"x": prompt}, "path": "/v2/unknown", "key": secret},
            {"body": {"x": prompt}, "path": f"/v1/files/{prompt}?token={secret}", "key": secret},
        ]
        responses = [await stage.ask(**ask) for ask in asks]
        await stage.upstream.seen(5)
        for call in stage.upstream.history:
            headers = [("content-type", "application/json"), ("x-request-id", f"req-{secret}")]
            if call.target.startswith("/v2"):
                call.reset()
            elif b'"stream":true' in call.body:
                await call.send_head(200, SSE, chunked=True)
                await call.send(as_bytes([said]))
                call.reset()
            else:
                await call.answer(200, headers, json.dumps(completion(said)).encode())
        for response in responses:
            await response.read_end()
        for body in (b'{"model": "' + prompt.encode(), b'{"a":1,"a":"' + prompt.encode() + b'"}', b"x" * 200_000):
            refused = await stage.ask(body, key=secret, headers=[("content-type", "application/json")])
            await refused.read_end()
            assert refused.status in (400, 413)
        virtual = await stage.ask(chat(prompt), key=f"sf-{secret}")
        await virtual.read_end()
        leaver = await stage.client()
        await stage.ask(chat(prompt, stream=True, n=2), key=secret, client=leaver)
        await stage.attached(1)
        await leaver.reset()
        broken = await stage.client()
        await broken.send(f"GARBAGE {prompt} {secret}\r\n\r\n".encode())
        await broken.peer_closed()
        await stage.at_rest()
        assert len(await stage.access_lines(11)) >= 11
        app = stage.app
    logged = stage.log_output.getvalue()

    assert app.metrics.last_bug == ""
    assert b"SECRET" not in logged
    assert b"canary" not in logged


async def test_the_view_of_flights_shows_no_body_and_no_credential(stage: Stage) -> None:
    """The admin's snapshot of what is in the air names flights by number and eight digits of a hash."""
    await stage.ask(chat("PROMPT-canary"))
    await stage.attached(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.app.admin_port)
    writer.write(b"GET /flights HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    seen = await reader.read()
    writer.close()
    await writer.wait_closed()
    await (await stage.upstream.next_call()).answer_json(completion())
    await wait_until(lambda: not stage.app.table.live, "the flight has landed")

    assert b'"state":"OPENING"' in seen
    assert b"canary" not in seen
    assert KEY.encode() not in seen
