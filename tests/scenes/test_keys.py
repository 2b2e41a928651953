"""Scenes of virtual keys: the whole proxy, both databases, and everybody who might try to get in."""

from __future__ import annotations

from collections import Counter
from typing import Any

import openai
import pytest

from proxy.access.issuing import Issued
from proxy.access.token import Digester, checksum, mint
from proxy.config.schema import ROUTE_NAMES
from proxy.errors import StoreError
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import locate
from proxy.store.base import Store
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.databases import StoreMaker
from tests.fakes.gates import wait_until
from tests.fakes.upstream import Call
from tests.scenes.stage import Stage, chat, completion, stream_events

PEPPER = "a-pepper-for-the-scenes"
ADMIN = "an-admin-token-for-the-scenes"
OURS = {"OPENAI_API_KEY": "sk-ours-o", "ANTHROPIC_API_KEY": "sk-ours-a", "MISTRAL_API_KEY": "sk-ours-m"}


def make_stage(database_url: str = "", **settings: Any) -> Stage:
    """A proxy that lets in nobody without a key of ours."""
    env = {**OURS, "SAMEFLIGHT_KEY_PEPPER": PEPPER, "SAMEFLIGHT_ADMIN_TOKEN": ADMIN}
    if database_url:
        env["SAMEFLIGHT_DATABASE_URL"] = database_url
    return Stage(env=env, **{"auth": "required", **settings})


async def make_key(stage: Stage, **form: Any) -> Issued:
    """A key that was made in this process."""
    return await stage.app.vault.issuer.create({"name": f"k{len(stage.app.vault.ring)}", **form})


def count_questions(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the store is asked for what a request might need."""
    asked: Counter[str] = Counter()
    store = stage.app.vault.store
    for name in ("find_key", "get_key", "list_keys", "lease"):
        method = getattr(store, name)

        def counted(*args: Any, _name: str = name, _method: Any = method, **options: Any) -> Any:
            asked[_name] += 1
            return _method(*args, **options)

        monkeypatch.setattr(store, name, counted)
    return asked


async def say_hello(call: Call) -> None:
    if call.body and call.json().get("stream"):
        await call.answer_sse(stream_events("hel", "lo"))
    elif call.method == "GET" and call.path == "/v1/models":
        await call.answer_json({"object": "list", "data": [{"id": "gpt-4o", "object": "model"}]})
    else:
        await call.answer_json(completion("hello"))


def client_of(stage: Stage, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{stage.app.url}/v1", api_key=key, max_retries=0)


async def ask_admin(stage: Stage, method: str, path: str, key: str | None = ADMIN, form: Any = b"") -> RawResponse:
    """One request to the admin API."""
    lines = [("authorization", f"Bearer {key}")] if key is not None else []
    async with await RawClient.connect_url(stage.app.admin_url) as client:
        return await client.request(method, path, lines, form)


# -- the way it is meant -------------------------------------------------------------------------------------


async def test_the_openai_sdk_works_with_a_key_of_ours_where_one_is_required(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each database: made once, used for whole answers and streams; the store is asked for nothing any more, the
    upstream sees the proxy's key alone, and no log line has either."""
    async with make_stage(database_url) as stage:
        stage.upstream.respond_with(say_hello)
        issued = await make_key(stage, name="sdk", models=["gpt-4o*"])
        asked = count_questions(stage, monkeypatch)
        headers: list[str | None] = []
        stage.upstream.respond_with(lambda call: headers.append(call.header("authorization")) or say_hello(call))  # type: ignore[func-returns-value]
        async with client_of(stage, issued.token) as client:
            for number in range(3):
                messages: Any = [{"role": "user", "content": f"say {number}"}]
                answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
                assert answer.choices[0].message.content == "hello"
            stream = await client.chat.completions.create(model="gpt-4o-mini", messages=messages, stream=True)
            parts = [chunk.choices[0].delta.content async for chunk in stream]
            with pytest.raises(openai.PermissionDeniedError, match="may not use the model 'o3'"):
                await client.chat.completions.create(model="o3", messages=messages)
        await stage.at_rest()
        lines = await stage.access_lines(5)

        assert parts == ["hel", "lo"]
        assert set(headers) == {"Bearer sk-ours-o"}
        assert asked == {}
        assert {line["key_id"] for line in lines} == {issued.record.id}
        logged = stage.log_output.getvalue()
        assert issued.token.encode() not in logged
        assert b"sk-ours" not in logged


async def test_a_key_made_elsewhere_is_known_without_a_restart(make_store: StoreMaker, database_url: str) -> None:
    """On each database: another process makes it and revokes it; this one hears of both."""
    other: Store = await make_store()
    async with make_stage(database_url, **_same_file(other)) as stage:
        stage.upstream.respond_with(say_hello)
        token = mint()
        digest = Digester(PEPPER.encode()).digest(token)
        refused = await (await stage.ask(chat(), key=token.decode())).read_end()
        assert refused.status == 401
        record = await other.add_key(_record(digest))
        await wait_until(lambda: digest in stage.app.vault.ring._held, "the new key is known")
        answered = await (await stage.ask(chat(), key=token.decode())).read_end()
        assert answered.status == 200
        await other.change_key(record.id, {"revoked_at": 1.0})
        ring = stage.app.vault.ring
        await wait_until(lambda: ring._held[digest].record.revoked_at == 1.0, "the revocation is known")
        ended = await (await stage.ask(chat(), key=token.decode())).read_end()

        assert ended.status == 401
        assert "revoked" in ended.json()["error"]["message"]
        await stage.at_rest()


def _record(digest: bytes) -> Any:
    from proxy.config.keys import KeyRecord

    return KeyRecord(id="key_00000000000000aa", digest=digest, name="made elsewhere")


def _same_file(store: Store) -> dict[str, str]:
    """SQLite's file is in the state directory; two processes share it."""
    path = getattr(store, "_path", None)
    return {} if path is None else {"state_dir": str(path.parent)}


async def test_a_stream_ends_when_its_key_is_revoked() -> None:
    """Not with the next request: now, where the operator wants that."""
    async with make_stage(revoke_ends_streams=True) as stage:
        issued = await make_key(stage)
        response = await stage.ask(chat(stream=True), key=issued.token)
        call = await stage.upstream.next_call()
        await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
        await call.send(b'data: {"choices": []}\n\n')
        await response.read_until(b"\n\n")
        await stage.app.vault.issuer.revoke(issued.record.id)
        await response.read_end()

        assert response.truncated or b"revoked" in response.body  # nobody takes it for the whole answer
        await stage.at_rest()


async def test_a_key_of_ours_works_beside_keys_of_providers_where_none_is_required() -> None:
    """Passthrough: who brings a provider's key keeps it, who brings ours gets the proxy's."""
    async with make_stage(auth="passthrough") as stage:
        seen: list[str | None] = []
        stage.upstream.respond_with(lambda call: seen.append(call.header("authorization")) or say_hello(call))  # type: ignore[func-returns-value]
        issued = await make_key(stage)
        for key in (issued.token, "sk-theirs"):
            assert (await (await stage.ask(chat(key), key=key)).read_end()).status == 200

        assert seen == ["Bearer sk-ours-o", "Bearer sk-theirs"]
        await stage.at_rest()


async def test_without_a_provider_key_nothing_of_the_callers_goes_upstream() -> None:
    """The refusal says what is missing."""
    async with Stage(auth="required") as stage:
        issued = await make_key(stage)
        refused = await (await stage.ask(chat(), key=issued.token)).read_end()

        assert refused.status == 403
        assert "No key for openai is configured" in refused.json()["error"]["message"]
        assert stage.upstream.waiting == 0


# -- who shares with whom ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "calls"),
    [
        ({}, {}, 2),
        ({"tenant": "a", "team": "red"}, {"tenant": "a", "team": "red"}, 2),
        ({"tenant": "a", "team": "red", "scope": "team"}, {"tenant": "a", "team": "red", "scope": "team"}, 1),
        ({"tenant": "a", "team": "red", "scope": "team"}, {"tenant": "a", "team": "red"}, 2),
        ({"tenant": "a", "team": "red", "scope": "team"}, {"tenant": "b", "team": "red", "scope": "team"}, 2),
        ({"tenant": "a", "scope": "tenant"}, {"tenant": "a", "team": "x", "scope": "tenant"}, 1),
        ({"tenant": "a", "scope": "tenant"}, {"tenant": "b", "scope": "tenant"}, 2),
    ],
)
async def test_keys_share_calls_as_far_as_the_operator_said(
    one: dict[str, Any], other: dict[str, Any], calls: int
) -> None:
    """Equal requests of two keys at the same time; never across tenants."""
    async with make_stage() as stage:
        keys = [await make_key(stage, **one), await make_key(stage, **other)]
        responses = [await stage.ask(chat(), key=key.token) for key in keys]
        await stage.attached(2)
        for _ in range(calls):
            await (await stage.upstream.next_call()).answer_json(completion())
        for response in responses:
            assert (await response.read_end()).status == 200

        assert stage.upstream.waiting == 0
        await stage.at_rest()


# -- the database is away ------------------------------------------------------------------------------------


async def test_while_the_database_is_away_known_keys_work_and_unknown_ones_come_back_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """503 with a time, never 401 and never a pass."""
    async with make_stage() as stage:
        stage.upstream.respond_with(say_hello)
        issued = await make_key(stage)

        async def away(*_: object, **__: object) -> Any:
            raise StoreError("unavailable")

        for name in ("find_key", "changes_since"):
            monkeypatch.setattr(stage.app.vault.store, name, away)
        known = await (await stage.ask(chat(), key=issued.token)).read_end()
        unknown = await (await stage.ask(chat(), key=mint().decode())).read_end()

        assert known.status == 200
        assert (unknown.status, unknown.json()["error"]["code"]) == (503, "auth_unavailable")
        assert unknown.header("retry-after") == "1"
        assert unknown.header("x-should-retry") == "true"
        await stage.at_rest()


# -- everybody else ------------------------------------------------------------------------------------------

# Every route by the request that leads there. A new route needs an entry.
ROUTES = {
    "agents.completions": "POST /v1/agents/completions",
    "agents.other": "POST /v1/agents/x/y",
    "assistants": "POST /v1/assistants/x/y",
    "audio.other": "POST /v1/audio/x/y",
    "audio.speech": "POST /v1/audio/speech",
    "audio.transcriptions": "POST /v1/audio/transcriptions",
    "audio.translations": "POST /v1/audio/translations",
    "batch": "POST /v1/batch/x/y",
    "batches": "POST /v1/batches/x/y",
    "chat.classifications": "POST /v1/chat/classifications",
    "chat.completions": "POST /v1/chat/completions",
    "chat.moderations": "POST /v1/chat/moderations",
    "chat.other": "POST /v1/chat/x/y",
    "chatkit": "POST /v1/chatkit/x/y",
    "classifications": "POST /v1/classifications",
    "classifications.other": "POST /v1/classifications/x/y",
    "completions": "POST /v1/completions",
    "completions.other": "POST /v1/completions/x/y",
    "connectors": "POST /v1/connectors/x/y",
    "containers": "POST /v1/containers/x/y",
    "content_provenance_checks": "POST /v1/content_provenance_checks/x/y",
    "conversations": "POST /v1/conversations/x/y",
    "decisions": "POST /v1/decisions",
    "decisions.other": "POST /v1/decisions/x/y",
    "deployment_runs": "POST /v1/deployment_runs/x/y",
    "deployments": "POST /v1/deployments/x/y",
    "dreams": "POST /v1/dreams/x/y",
    "embeddings": "POST /v1/embeddings",
    "embeddings.other": "POST /v1/embeddings/x/y",
    "environments": "POST /v1/environments/x/y",
    "evals": "POST /v1/evals/x/y",
    "files": "POST /v1/files",
    "fim.completions": "POST /v1/fim/completions",
    "fim.other": "POST /v1/fim/x/y",
    "fine_tuning": "POST /v1/fine_tuning/x/y",
    "images.edits": "POST /v1/images/edits",
    "images.generations": "POST /v1/images/generations",
    "images.other": "POST /v1/images/x/y",
    "images.variations": "POST /v1/images/variations",
    "libraries": "POST /v1/libraries/x/y",
    "live": "POST /v1/live/x/y",
    "memory_stores": "POST /v1/memory_stores/x/y",
    "messages": "POST /v1/messages",
    "messages.batches": "POST /v1/messages/batches",
    "messages.count_tokens": "POST /v1/messages/count_tokens",
    "messages.other": "POST /v1/messages/x/y",
    "model": "GET /v1/models/gpt-4o",
    "models": "GET /v1/models",
    "models.other": "POST /v1/models/x/y",
    "moderations": "POST /v1/moderations",
    "moderations.other": "POST /v1/moderations/x/y",
    "ocr": "POST /v1/ocr",
    "ocr.other": "POST /v1/ocr/x/y",
    "organization": "POST /v1/organization/x/y",
    "organizations": "POST /v1/organizations/x/y",
    "other": "POST /v1/nowhere",
    "projects": "POST /v1/projects/x/y",
    "realtime": "GET /v1/realtime",
    "rerank": "POST /v1/rerank",
    "rerank.other": "POST /v1/rerank/x/y",
    "responses": "POST /v1/responses",
    "responses.compact": "POST /v1/responses/compact",
    "responses.input_tokens": "POST /v1/responses/input_tokens",
    "responses.other": "POST /v1/responses/x/y",
    "responses.socket": "GET /v1/responses",
    "safety": "POST /v1/safety/x/y",
    "sessions": "POST /v1/sessions/x/y",
    "skills": "POST /v1/skills/x/y",
    "threads": "POST /v1/threads/x/y",
    "tunnels": "POST /v1/tunnels/x/y",
    "uploads": "POST /v1/uploads/x/y",
    "user_profiles": "POST /v1/user_profiles/x/y",
    "vaults": "POST /v1/vaults/x/y",
    "vector_stores": "POST /v1/vector_stores/x/y",
    "videos": "POST /v1/videos/x/y",
    "webhook_endpoints": "POST /v1/webhook_endpoints/x/y",
    "webhook_event_types": "POST /v1/webhook_event_types/x/y",
    "workflows": "POST /v1/workflows/x/y",
}

# Who asks, and the status of the answer: the same on every route.
CALLERS = {
    "nobody": 401,
    "wrong_key": 401,
    "revoked": 401,
    "expired": 401,
    "provider_key": 401,
    "admin_token": 401,
    "wrong_model": 403,
    "wrong_route": 403,
    "ours": 200,
    "other_tenant": 200,
}


def test_every_route_has_an_entry_that_leads_there() -> None:
    """A new route must say who may use it."""
    led = {
        name: locate(make_request_head(*request.split(), [])).route.name for name, request in ROUTES.items()
    }

    assert led == {name: name for name in ROUTE_NAMES}


async def _make_callers(stage: Stage) -> dict[str, str | None]:
    clock = stage.app.clock
    shares: dict[str, Any] = {"scope": "tenant"}
    revoked = await make_key(stage, name="revoked")
    await stage.app.vault.issuer.revoke(revoked.record.id)
    expired = await make_key(stage, name="expired", expires=clock.wall() + 3600)
    record = await stage.app.vault.store.change_key(expired.record.id, {"expires_at": clock.wall() - 1})
    assert record is not None
    stage.app.vault.ring.apply(record)
    return {
        "nobody": None,
        "wrong_key": mint().decode(),
        "revoked": revoked.token,
        "expired": expired.token,
        "provider_key": "sk-theirs",
        "admin_token": ADMIN,
        "wrong_model": (await make_key(stage, name="model", models=["only-this"])).token,
        "wrong_route": (await make_key(stage, name="route", routes=["threads", "vaults"])).token,
        "ours": (await make_key(stage, name="ours", tenant="acme", **shares)).token,
        "other_tenant": (await make_key(stage, name="theirs", tenant="other", **shares)).token,
    }


@pytest.mark.parametrize("caller", CALLERS)
async def test_every_route_is_closed_to_everybody_but_those_who_may(caller: str) -> None:
    """Each caller on each route: nothing reaches the upstream that was not let in."""
    wrong = []
    async with make_stage() as stage:
        calls: list[Call] = []
        stage.upstream.respond_with(lambda call: calls.append(call) or say_hello(call))  # type: ignore[func-returns-value]
        key = (await _make_callers(stage))[caller]
        for name, request in ROUTES.items():
            method, path = request.split()
            expected = CALLERS[caller]
            asked = int(expected == 200)
            if (caller, name) in EXCEPTIONS:
                expected, asked = EXCEPTIONS[caller, name]
            before = len(calls)
            response = await stage.ask(chat() if method == "POST" else None, method=method, path=path, key=key)
            status = (await response.read_end()).status
            if (status, len(calls) - before) != (expected, asked):
                wrong.append((name, status, len(calls) - before))
        assert all((call.header("authorization") or "").startswith("Bearer sk-ours") for call in calls)
        await stage.at_rest()

    assert wrong == []


# Status and calls of the upstream. Who is limited to models sees those alone, from the provider's list, which is
# asked for once; what a key is limited to is open to it.
EXCEPTIONS = {
    ("wrong_model", "model"): (404, 1),
    ("wrong_model", "models"): (200, 0),
    ("wrong_route", "threads"): (200, 1),
    ("wrong_route", "vaults"): (200, 1),
}


@pytest.mark.long
async def test_two_tenants_with_the_same_request_never_meet_on_any_route() -> None:
    """At the same time, each with the widest scope there is: two calls, two answers."""
    async with make_stage() as stage:
        keys = await _make_callers(stage)
        for request in ROUTES.values():
            method, path = request.split()
            body = chat() if method == "POST" else None
            responses = [
                await stage.ask(body, method=method, path=path, key=keys[who]) for who in ("ours", "other_tenant")
            ]
            for number in range(2):
                await (await stage.upstream.next_call()).answer_json({**completion(), "answer": number})
            answers = [(await response.read_end()).json()["answer"] for response in responses]
            assert sorted(answers) == [0, 1], path
        await stage.at_rest()


def _twin(token: str) -> str:
    """The same but for the last digit of its 43, with a checksum that is right."""
    text = token[:45] + ("0" if token[45] != "0" else "1")
    return text + checksum(text.encode()).decode()


async def test_what_resembles_a_key_gets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Malformed keys, twins, SQL: refused, and the database is asked for well-formed ones alone."""
    async with make_stage() as stage:
        issued = await make_key(stage)
        asked = count_questions(stage, monkeypatch)
        token = issued.token
        for key in (
            "sf-",
            token[:-1],
            token + "0",
            token.swapcase(),
            token[:20],
            f"{token} x",
            f"{token},{token}",
            "sf-' OR '1'='1",
            "sf-'; DROP TABLE api_keys; --",
            "sf-\") OR pg_sleep(10) --",
            "sf-" + "0" * 49,
            "sf-" + "A" * 30_000,
        ):
            response = await (await stage.ask(chat(), key=key)).read_end()
            assert response.status == 401, key
            assert token[3:20].encode() not in response.body
        assert asked == {}
        assert (await (await stage.ask(chat(), key=_twin(token))).read_end()).status == 401
        assert asked == {"find_key": 1}
        assert stage.upstream.waiting == 0
        await stage.at_rest()


async def test_a_key_of_a_mebibyte_is_a_head_that_is_too_large(stage: Stage) -> None:
    """It is not even read."""
    response = await (await stage.ask(chat(), key="sf-" + "A" * (1 << 20))).read_head()

    assert response.status == 431


async def test_a_key_of_ours_opens_nothing_on_the_admin_port() -> None:
    """And the admin token nothing on the data port (see the table)."""
    async with make_stage() as stage:
        issued = await make_key(stage)
        for key, status in ((issued.token, 401), (None, 401), (ADMIN, 200)):
            assert (await ask_admin(stage, "GET", "/admin/keys", key)).status == status
        await stage.at_rest()


async def test_a_key_made_over_the_admin_api_works_at_once() -> None:
    """And its revocation as well."""
    async with make_stage() as stage:
        stage.upstream.respond_with(say_hello)
        made = (await ask_admin(stage, "POST", "/admin/keys", form={"name": "ci"})).json()
        assert (await (await stage.ask(chat(), key=made["key"])).read_end()).status == 200
        await ask_admin(stage, "DELETE", f"/admin/keys/{made['id']}")
        assert (await (await stage.ask(chat(), key=made["key"])).read_end()).status == 401
        assert made["key"].encode() not in stage.log_output.getvalue()
        await stage.at_rest()


