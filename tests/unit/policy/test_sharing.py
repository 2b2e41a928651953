"""The classes of README's sharing table, what each profile allows them, and which answers and heads are for many."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.policy.caching import Lifetimes, decide_caching
from proxy.policy.plan import Caching, ShareClass, Sharing
from proxy.policy.sharing import PROFILES, Classified, alone, classify, decide_sharing, is_shareable_head
from proxy.protocol.call import parse_call
from proxy.protocol.headers import Controls
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import Shape, locate

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
A, B, C, D, E, F, G = ShareClass

Fields = dict[str, Any]


def classify_request(path: str, fields: Fields | None, method: str = "POST") -> Classified:
    """What the planner would be told of a request with this body; ``None`` for one without a body."""
    lines = [(b"content-type", b"application/json")] if fields is not None else []
    route = locate(make_request_head(method, path, lines)).route
    parsed = fields is not None and route.shape is not Shape.PASS
    return classify(route, parse_call(route, json.dumps(fields).encode()) if parsed else None)


def tool(kind: str, **members: Any) -> Fields:
    """A body with one tool of this type."""
    return {"model": "m", "messages": [], "tools": [{"type": kind, **members}]}


# -- the class of a request ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "/v1/moderations",
        "/v1/rerank",
        "/v1/decisions",
        "/v1/messages/count_tokens",
        "/v1/responses/input_tokens",
        "/mistral/v1/chat/moderations",
        "/mistral/v1/classifications",
        "/mistral/v1/chat/classifications",
    ],
)
def test_what_only_measures_is_pure(path: str) -> None:
    """Class A, and deterministic as far as anybody cares."""
    assert classify_request(path, {"model": "m", "input": "x"}) == Classified(A, deterministic=True)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o", "/anthropic/v1/models"])
def test_lists_of_models_are_pure(path: str) -> None:
    """Class A without a body."""
    assert classify_request(path, None, "GET") == Classified(A, deterministic=True)


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [
        ({}, False),
        ({"temperature": 1}, False),
        ({"temperature": None}, False),
        ({"temperature": "0"}, False),
        ({"temperature": False}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"seed": None}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "n": 1}, True),
        ({"temperature": 0, "n": None}, True),
        ({"seed": 7}, True),
        ({"seed": 0, "temperature": 1}, True),
        ({"random_seed": 7}, True),
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/completions", "/mistral/v1/fim/completions"])
def test_generation_is_deterministic_where_the_caller_said_so(
    path: str, fields: Fields, deterministic: bool
) -> None:
    """Class B for an explicit zero of one choice or a seed, else C."""
    found = classify_request(path, {"model": "m", "messages": [], **fields})

    assert found == Classified(B if deterministic else C, deterministic)


@pytest.mark.parametrize("kind", ["function", "custom", "bash_20250124", "text_editor_20250728", "memory_20250818"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_tools_that_the_caller_runs_are_a_class_of_their_own(kind: str, temperature: int) -> None:
    """Class D, which shares as B or C would."""
    found = classify_request(CHAT, {**tool(kind), "temperature": temperature})

    assert found == Classified(D, deterministic=temperature == 0)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/images/generations", {"model": "m", "prompt": "x"}),
        ("/v1/images/generations", {"model": "m", "prompt": "x", "stream": True}),
        ("/v1/images/generations", {"model": "m", "prompt": "x", "background": "transparent"}),
        ("/v1/audio/speech", {"model": "m", "input": "x", "voice": "a"}),
        (CHAT, {"model": "m", "messages": [], "audio": {"voice": "a", "format": "wav"}}),
    ],
)
def test_what_takes_long_to_make_is_costly(path: str, fields: Fields) -> None:
    """Class E: images and speech, from whichever route, and a background colour is no background job."""
    assert classify_request(path, fields).share_class is E


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (RESPONSES, {"input": "x"}),
        (RESPONSES, {"input": "x", "store": None}),
        (RESPONSES, {"input": "x", "store": True}),
        (RESPONSES, {"input": "x", "store": False, "background": True}),
        (RESPONSES, {"input": "x", "store": False, "conversation": "conv_1"}),
        (RESPONSES, {"input": "x", "store": False, "prompt": {"id": "pmpt_1"}}),
        (RESPONSES, {"input": "x", "store": False, "tools": [{"type": "mcp", "server_url": "https://x"}]}),
        (RESPONSES, {"input": [{"type": "additional_tools", "tools": [{"type": "mcp"}]}], "store": False}),
        (CHAT, {"messages": [], "store": True}),
        (CHAT, {"messages": [], "store": "no"}),
        (CHAT, {"messages": [], "tools": {"type": "function"}}),
        (CHAT, {"messages": [], "tools": ["function"]}),
        (CHAT, {"messages": [], "tools": [{"type": 1}]}),
        (MESSAGES, {"messages": [], "mcp_servers": [{"type": "url", "url": "https://x"}]}),
        (MESSAGES, {"messages": [], "container": "c_1"}),
        (MESSAGES, {"messages": [], "thread": {"type": "create"}}),
        (MESSAGES, {"messages": [], "thread": {"type": "continue", "previous_message_id": "x"}}),
        (MESSAGES, {"messages": [], "fallback_credit_token": "t"}),
        (MESSAGES, {"messages": [], "tools": [{"type": "code_execution_20260521", "name": "code_execution"}]}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_addition", "tool": {}}]}]}),
        (MESSAGES, {"messages": [], "tools": [{"type": "web_search_1"}, {"type": "code_execution_1"}]}),
        ("/mistral/v1/agents/completions", {"agent_id": "a", "messages": []}),
        ("/v1/batches", {"input_file_id": "f"}),
        ("/v1/a/path/nobody/knows", {"model": "m"}),
    ],
)
def test_what_changes_or_meets_something_at_the_provider_has_effects(path: str, fields: Fields) -> None:
    """Class F, whatever else is asked for, and for any tool that nobody here knows."""
    found = classify_request(path, {"model": "m", "temperature": 0, **fields})

    assert found == Classified(F, deterministic=False)


@pytest.mark.parametrize(
    "fields",
    [
        tool("web_search"),
        tool("web_search_20250305"),
        tool("web_fetch_20250910"),
        tool("file_search"),
        {"model": "m", "messages": [], "web_search_options": {}},
        {"model": "m", "messages": [], "tools": [{"type": "function"}, {"type": "web_search"}]},
        {"model": "m", "messages": [], "tools": [{"type": "web_search"}, {"type": "function"}]},
    ],
)
def test_a_search_that_the_provider_runs_depends_on_the_time(fields: Fields) -> None:
    """Class G, even at a temperature of zero and beside tools of the caller."""
    found = classify_request(CHAT, {**fields, "temperature": 0})

    assert found == Classified(G, deterministic=False)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses/compact", {"input": "x"}),
        ("/mistral/v1/ocr", {"document": {"type": "document_url", "document_url": "https://x"}}),
        (RESPONSES, {"input": "x", "store": False}),
    ],
)
def test_what_a_model_writes_or_reads_elsewhere_is_not_pure(path: str, fields: Fields) -> None:
    """A summary is sampled, and a document behind an address may change."""
    assert classify_request(path, {"model": "m", **fields}) == Classified(C, deterministic=False)


# -- what a profile allows -------------------------------------------------------------------------------------------

PURE, SURE, LOOSE = Classified(A, True), Classified(B, True), Classified(C, False)
TABLE = {  # README's table: class → what `all`, `auto`, `retries`, `pure` and `off` allow it
    "A": (PURE, "yes yes yes yes no"),
    "B": (SURE, "yes yes yes no no"),
    "C": (LOOSE, "yes retry retry no no"),
    "D as B": (Classified(D, True), "yes yes yes no no"),
    "D as C": (Classified(D, False), "yes retry retry no no"),
    "E": (Classified(E, False), "yes retry retry no no"),
    "F": (Classified(F, False), "no no no no no"),
    "G": (Classified(G, False), "retry retry retry no no"),
}
ROWS = [
    (classified, profile, word)
    for classified, words in TABLE.values()
    for profile, word in zip(("all", "auto", "retries", "pure", "off"), words.split(), strict=True)
]
SHARES = {
    "yes": Sharing(registers=True, joins=True),
    "retry": Sharing(registers=True),
}


def test_the_table_holds_every_class_and_every_profile() -> None:
    """A new one needs a row, here and in README."""
    assert {classified.share_class for classified, _, _ in ROWS} == set(ShareClass)
    assert {profile for _, profile, _ in ROWS} == set(PROFILES)


@pytest.mark.parametrize(("classified", "profile", "word"), ROWS)
def test_a_profile_says_what_a_class_shares(classified: Classified, profile: str, word: str) -> None:
    """First attempts of ``retry`` rows are found by retries only, and what shares nothing says why."""
    why = "effects" if classified.share_class is F else "profile"

    assert decide_sharing(classified, profile, Controls()) == SHARES.get(word, Sharing(why=why))


@pytest.mark.parametrize(("classified", "profile", "word"), ROWS)
def test_a_marked_retry_joins_where_the_class_shares_at_all(
    classified: Classified, profile: str, word: str
) -> None:
    """By the SDK's count or by a key."""
    by_count = decide_sharing(classified, profile, Controls(retry_count=1))
    by_key = decide_sharing(classified, profile, Controls(idempotency_key=b"k"))

    assert [by_count.retry, by_key.retry] == [word != "no"] * 2


def test_a_caller_opts_in_where_the_profile_leaves_it_to_the_caller() -> None:
    """``on`` counts for sampled answers under ``auto``, and nowhere else."""
    controls = Controls(share="on")
    joins = {
        (profile, classified.share_class)
        for classified, profile, word in ROWS
        if word != "yes" and decide_sharing(classified, profile, controls).joins
    }

    assert joins == {("auto", C), ("auto", D)}


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        (Controls(share="off"), Sharing(why="asked")),
        (Controls(no_store=True), Sharing(why="no_store")),
        (Controls(share="retry"), Sharing(registers=True)),
        (Controls(no_cache=True), Sharing(registers=True)),
        (Controls(no_cache=True, retry_count=1), Sharing(registers=True)),
        (Controls(no_cache=True, idempotency_key=b"k"), Sharing(registers=True, retry=True)),
        (Controls(only_if_cached=True), Sharing(registers=True, joins=True, leads=False)),
        (Controls(cache="only"), Sharing(registers=True, joins=True, leads=False)),
        (Controls(cache="only", share="off"), Sharing(leads=False, why="asked")),
    ],
)
def test_a_caller_can_only_be_stricter_than_the_profile(controls: Controls, expected: Sharing) -> None:
    """Under the widest profile, every wish takes something away."""
    assert decide_sharing(LOOSE, "all", controls) == expected


@pytest.mark.parametrize(
    "why", ["effects", "profile", "asked", "no_store", "body_size", "encoding", "no_fingerprint"]
)
def test_whoever_goes_alone_makes_no_call_if_it_takes_only_what_is_there(why: str) -> None:
    """For whichever reason it is alone."""
    leads = [alone(why, each).leads for each in (Controls(), Controls(only_if_cached=True), Controls(cache="only"))]

    assert leads == [True, False, False]


# -- heads for many --------------------------------------------------------------------------------------------------

KINDS = (b"application/json", b"text/event-stream")


@pytest.mark.parametrize(
    ("status", "content_type", "shareable"),
    [
        (200, b"application/json", True),
        (200, b"application/json; charset=utf-8", True),
        (200, b"text/event-stream", True),
        (200, b"text/html", False),
        (200, b"", False),
        (201, b"application/json", False),
        (204, b"", False),
        (206, b"application/json", False),
        (302, b"application/json", False),
        (304, b"", False),
        (400, b"text/html", True),
        (429, b"application/json", True),
        (503, b"", True),
    ],
)
def test_a_success_is_shared_if_it_is_what_the_route_promises_and_a_failure_as_it_is(
    status: int, content_type: bytes, shareable: bool
) -> None:
    """A page of a captive portal is nobody's answer twice."""
    assert is_shareable_head(status, content_type, b"", expects=KINDS, length=None, max_bytes=10) == shareable


def test_a_route_that_promises_no_kind_shares_any() -> None:
    """Speech comes in every format there is."""
    assert is_shareable_head(200, b"audio/mpeg", b"", expects=(), length=None, max_bytes=10)


@pytest.mark.parametrize(
    ("vary", "shareable"), [(b"", True), (b"accept-encoding, origin", True), (b"*", False), (b"origin, *", False)]
)
@pytest.mark.parametrize("status", [200, 500])
def test_what_varies_by_everything_is_for_one(status: int, vary: bytes, shareable: bool) -> None:
    """No key can hold what the upstream does not name."""
    head = is_shareable_head(status, b"application/json", vary, expects=KINDS, length=None, max_bytes=10)

    assert head == shareable


@pytest.mark.parametrize(("length", "shareable"), [(None, True), (0, True), (10, True), (11, False)])
@pytest.mark.parametrize("status", [200, 500])
def test_what_announces_more_than_a_flight_may_hold_is_for_one(
    status: int, length: int | None, shareable: bool
) -> None:
    """The bound itself still fits; a failure is held to it as well."""
    head = is_shareable_head(status, b"application/json", b"", expects=KINDS, length=length, max_bytes=10)

    assert head == shareable


# -- what is kept ----------------------------------------------------------------------------------------------------

LISTED = Lifetimes(60.0, 600.0, 86_400.0)
KEPT = Caching(True, True, 60.0, 600.0, 86_400.0)
DAY_S = 86_400.0


def kept(controls: Controls, lifetimes: Lifetimes = LISTED, share_class: ShareClass = A) -> Caching:
    return decide_caching(share_class, lifetimes, controls)


def test_a_route_with_lifetimes_keeps_its_answers() -> None:
    """Without a word of the caller, for all three times."""
    assert kept(Controls()) == KEPT


def test_a_route_without_lifetimes_keeps_nothing_unless_it_is_asked_to() -> None:
    """Five minutes are what ``on`` means where the operator said nothing."""
    asked = [kept(Controls(cache=word), Lifetimes(), C) for word in (None, "on", "refresh", "only")]

    assert [each.ttl_s for each in asked] == [0.0, 300.0, 300.0, 300.0]
    assert [each.reads for each in asked] == [False, True, False, True]
    assert [each.writes for each in asked] == [False, True, True, True]


@pytest.mark.parametrize("share_class", [F, G])
@pytest.mark.parametrize("word", [None, "on", "refresh", "only"])
def test_what_has_effects_or_depends_on_the_time_is_never_kept(share_class: ShareClass, word: str | None) -> None:
    """Neither for the operator nor for the caller nor for a key."""
    controls = Controls(cache=word, idempotency_key=b"k")

    assert decide_caching(share_class, LISTED, controls, idempotency_ttl_s=60.0) == Caching()


@pytest.mark.parametrize("controls", [Controls(no_store=True), Controls(cache="off"), Controls(cache_ttl_s=0.0)])
def test_a_caller_that_forbids_keeping_is_heeded(controls: Controls) -> None:
    """In each of the three ways to say so."""
    assert kept(controls) == Caching()


@pytest.mark.parametrize("controls", [Controls(no_cache=True), Controls(cache="refresh")])
def test_a_caller_that_wants_it_fresh_renews_what_is_kept(controls: Controls) -> None:
    """It reads nothing and writes what it gets."""
    assert kept(controls) == Caching(False, True, 60.0, 600.0, 86_400.0)


@pytest.mark.parametrize(("word", "ttl_s"), [(None, 0.0), ("on", 60.0), ("refresh", 60.0)])
def test_what_calls_tools_is_kept_only_if_the_request_itself_says_so(word: str | None, ttl_s: float) -> None:
    """The route's rule was made without them in mind."""
    assert kept(Controls(cache=word), share_class=D).ttl_s == ttl_s


@pytest.mark.parametrize(
    ("lifetimes", "asked_s", "ttl_s"),
    [
        (LISTED, 10.0, 10.0),
        (LISTED, 1e9, 60.0),
        (Lifetimes(), 10.0, 10.0),
        (Lifetimes(), 1e9, DAY_S),
    ],
)
def test_a_caller_lowers_the_time_of_a_route_and_never_goes_beyond_a_day(
    lifetimes: Lifetimes, asked_s: float, ttl_s: float
) -> None:
    """Where the operator named a time it is the longest, else a day is."""
    assert kept(Controls(cache="on", cache_ttl_s=asked_s), lifetimes).ttl_s == ttl_s


@pytest.mark.parametrize(("setting_s", "ttl_s"), [(0.0, 0.0), (30.0, 30.0), (1e9, DAY_S)])
def test_an_answer_to_a_key_is_kept_as_long_as_the_operator_says(setting_s: float, ttl_s: float) -> None:
    """Also where the route keeps nothing, and for a day at most."""
    caching = decide_caching(C, Lifetimes(), Controls(idempotency_key=b"k"), idempotency_ttl_s=setting_s)

    assert caching.ttl_s == ttl_s


def test_the_ages_a_caller_accepts_are_handed_on() -> None:
    """They bound what is read and say nothing of what is written."""
    caching = kept(Controls(max_age_s=5.0, max_stale_s=7.0))

    assert (caching.max_age_s, caching.max_stale_s, caching.ttl_s) == (5.0, 7.0, 60.0)


def test_an_entry_is_worth_keeping_for_the_longer_of_its_two_afterlives() -> None:
    """They run side by side from the end of its freshness."""
    assert [KEPT.keeps_s, Caching(ttl_s=1.0, stale_while_revalidate_s=5.0).keeps_s] == [86_460.0, 6.0]
