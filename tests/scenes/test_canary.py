"""Marked secrets in every place that has one, every kind of failure, and a look at everything that anybody can read.

Beside this scene every stage of every scene is held against its own secrets when it ends (`Stage.keeps_secrets`).
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy.access.token import mint
from proxy.errors import StoreError
from tests.fakes.client import RawClient, RawResponse
from tests.fakes.gates import wait_until
from tests.fakes.upstream import ScriptedUpstream
from tests.scenes.stage import Stage, as_bytes, chat, completion, delta
from tests.scenes.test_process import Serve, run

MARKS = {
    "pepper": "canary-pepper-0123456789abcdef",
    "openai": "sk-proj-canary-openai-0123456789abcdef0123",
    "anthropic": "sk-ant-canary-anthropic-0123456789abcdef",
    "mistral": "canarymistral0123456789abcdef01",
    "admin": "canary-admin-token-0123456789abcdef",
    "database": "canary-database-password",
    "cache": "canary-cache-password",
    "secret": "canary-key-secret-0123456789abcdef",
    "header": "canary-header-value-0123456789",
    "query": "canary-query-value-0123456789",
    "body": "canary body text that is nobody's business",
    "wrong_key": "sk-canary-of-the-caller-0123456789abcdef",
    "spoken": "canary text of an upstream's error",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Every secret that can be set, marked."""
    return {
        "SAMEFLIGHT_KEY_PEPPER": MARKS["pepper"],
        "SAMEFLIGHT_ADMIN_TOKEN": MARKS["admin"],
        "SAMEFLIGHT_KEY_SECRET": MARKS["secret"],
        "SAMEFLIGHT_CACHE_URL": f"redis://user:{MARKS['cache']}@127.0.0.1:{free_port()}/0",
        "OPENAI_API_KEY": MARKS["openai"],
        "ANTHROPIC_API_KEY": MARKS["anthropic"],
        "MISTRAL_API_KEY": MARKS["mistral"],
        **more,
    }


class Watch:
    """Collects what anybody can read, and looks for secrets in it."""

    def __init__(self) -> None:
        self.secrets = dict(MARKS)
        self.seen: list[tuple[str, bytes]] = []

    def see(self, where: str, data: bytes | str) -> None:
        self.seen.append((where, data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape")))

    def see_answer(self, where: str, response: RawResponse) -> None:
        self.see(where, b"".join(b"%b: %b\n" % line for line in response.headers) + response.body)

    def told(self, *allowed: str) -> list[tuple[str, str]]:
        """(where, which secret): everything that was told."""
        return sorted(
            {
                (where, name)
                for where, data in self.seen
                for name, secret in self.secrets.items()
                if secret.encode() in data and name not in allowed
            }
        )


async def ask(stage: Stage, where: str, key: str, body: Any = None, **options: Any) -> RawResponse:
    headers = [("x-trace-note", MARKS["header"]), ("cookie", f"session={MARKS['header']}")]
    path = options.pop("path", "/v1/chat/completions") + f"?api-version=1&token={MARKS['query']}"
    body = chat(f"{MARKS['body']} {where}") if body is None else body
    return await stage.ask(body, key=key, headers=headers, path=path, **options)


async def every_failure(stage: Stage, watch: Watch, keys: dict[str, str], patch: pytest.MonkeyPatch) -> None:
    """What goes wrong with a request, one after the other."""

    async def end(where: str, response: RawResponse) -> None:
        await response.read_end()
        watch.see_answer(f"answer: {where}", response)

    good = keys["good"]
    for where, key, body in (
        ("unknown key", mint().decode(), None),
        ("foreign key", MARKS["wrong_key"], None),
        ("revoked", keys["revoked"], None),
        ("model", keys["limited"], chat(MARKS["body"], model="o3")),
        ("json", good, b'{"model": "' + MARKS["body"].encode()),
        ("budget", keys["poor"], chat(MARKS["body"], max_tokens=4000)),
    ):
        response = await ask(stage, where, key, body)
        await end(where, response)
        assert 400 <= response.status < 500, where
    for where in ("500", "reset", "garbage", "closed"):
        response = await ask(stage, where, good)
        call = await stage.upstream.next_call()
        if where == "500":
            await call.answer_json({"error": {"message": MARKS["spoken"]}}, status=500)
            await response.read_end()  # what the upstream says to its caller is the caller's
        elif where == "garbage":
            call.raw(MARKS["spoken"].encode() + b"\r\n\r\n")
            call.close()
            await end(where, response)
        else:
            call.reset() if where == "reset" else call.close()
            await wait_until(lambda: response.ended or stage.upstream.waiting, "an answer or another try")  # noqa: B023
            if not response.ended:
                (await stage.upstream.next_call()).close()
            await end(where, response)
    stream = await ask(stage, "broken stream", good, chat(MARKS["body"], stream=True))
    call = await stage.upstream.next_call()
    await call.send_head(200, [("content-type", "text/event-stream")], chunked=True)
    await call.send(as_bytes([delta("x")]))
    await stream.read_until(b'"x"')
    call.reset()
    await end("broken stream", stream)
    left = await ask(stage, "left", good, chat(MARKS["body"] + "left", stream=True))
    call = await stage.upstream.next_call()
    watch.see("flights", str(stage.app._flights()))
    watch.see("flights over http", (await admin(stage, "GET", "/flights")).body)
    await left._client.reset()
    await stage.attached(0)
    call.done()
    text = f"{good} {MARKS['openai']} Authorization: Bearer {MARKS['wrong_key']}"
    with patch.context() as bugs:

        def fail(*_: object) -> Any:
            raise ValueError(text)

        bugs.setattr(type(stage.app.pipeline), "plan", fail)
        response = await ask(stage, "bug", good)
        await end("bug", response)
        assert response.status == 500
    with patch.context() as bugs:

        async def away(*_: object, **__: object) -> Any:
            raise StoreError("unavailable", f"postgresql://user:{MARKS['database']}@host/db is away")

        bugs.setattr(stage.app.vault.store, "find_key", away)
        bugs.setattr(stage.app.vault.store, "write_usage", away)
        response = await ask(stage, "database", mint().decode())
        await end("database", response)
        assert response.status == 503
        ledger = stage.app.vault.ledger
        before = sum(ledger.errors.values())
        served = await ask(stage, "served", good)
        await (await stage.upstream.next_call()).answer_json(completion())
        await served.read_end()
        await wait_until(lambda: sum(ledger.errors.values()) > before, "a batch failed")


async def admin(stage: Stage, method: str, path: str, token: str = MARKS["admin"], form: Any = b"") -> RawResponse:
    async with await RawClient.connect_url(stage.app.admin_url) as client:
        return await client.request(method, path, [("authorization", f"Bearer {token}")], form)


async def make_keys(stage: Stage) -> dict[str, str]:
    issuer = stage.app.vault.issuer
    made = {
        "good": await issuer.create({"name": "good"}),
        "limited": await issuer.create({"name": "limited", "models": ["gpt-4o*"]}),
        "poor": await issuer.create({"name": "poor", "budget": "0.000001/total"}),
        "revoked": await issuer.create({"name": "revoked"}),
    }
    await issuer.revoke(made["revoked"].record.id)
    return {name: issued.token for name, issued in made.items()}


async def test_no_failure_tells_a_secret_to_anybody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Log, metrics, error bodies, admin answers, flights, usage rows, and all files that are left behind."""
    watch = Watch()
    settings: dict[str, Any] = {"auth": "required", "state_dir": str(tmp_path / "state"), "log_level": "debug"}
    async with Stage(env=environment(), **settings, linger_s=0.0) as stage:
        keys = await make_keys(stage)
        watch.secrets |= {f"key {name}": token for name, token in keys.items()}
        await every_failure(stage, watch, keys, monkeypatch)
        for method, path, token in (
            ("GET", "/admin/keys", MARKS["admin"]),
            ("GET", "/admin/keys", keys["good"]),
            ("GET", "/admin/keys/key_0000000000000000", MARKS["admin"]),
            ("GET", "/metrics", ""),
            ("GET", "/readyz", ""),
            ("GET", f"/{MARKS['query']}", ""),
        ):
            response = await admin(stage, method, path, token)
            watch.see(f"admin: {path}", response.body)
        stage.upstream.failures.clear()
        await stage.settled()
        vault = stage.app.vault
        await wait_until(lambda: vault.ledger.is_empty, "the rows are in the store")
        watch.see("store", str(vault.store.describe()))
        stage.app.books.post()
    watch.see("log", stage.log_output.getvalue())
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    for path in files:
        watch.see(f"file: {path.name}", path.read_bytes())

    assert watch.told() == []
    assert [path.name for path in files], "there is something to look at"
    assert len(stage.log_output.getvalue()) > 2_000


@pytest.mark.long
async def test_no_process_tells_a_secret_when_it_cannot_work_or_is_killed(tmp_path: Path) -> None:
    """A real one whose database and cache are away, that is refused its settings, that shows its settings, and that
    ends by a signal: standard output and error."""
    watch = Watch()
    url = f"postgresql://user:{MARKS['database']}@127.0.0.1:{free_port()}/db"
    env = environment(SAMEFLIGHT_DATABASE_URL=url, SAMEFLIGHT_AUTH="required")
    async with ScriptedUpstream() as upstream, Serve(tmp_path, upstream, **env) as serve:
        for key in (MARKS["wrong_key"], mint().decode(), MARKS["admin"]):
            watch.secrets[f"key {key[:6]}"] = key
            client = await serve.client()
            response = await client.request(
                "POST", f"/v1/chat/completions?token={MARKS['query']}", [("authorization", f"Bearer {key}")],
                chat(MARKS["body"]),
            )  # fmt: skip
            assert response.status in (401, 503)
            watch.see_answer("answer", response)
        serve.send(signal.SIGTERM)
        assert await serve.ended() == 0
        watch.see("stderr", serve.errors)
        watch.see("log", str(serve.lines))
        assert any(line["event"] == "store_unavailable" for line in serve.lines)
    wrong = {**env, "OPENAI_API_KEY": MARKS["openai"] + "\x7f", "SAMEFLIGHT_SHARE": "everything"}
    for words, given in (
        (["config", "show"], env), (["config", "check"], env), (["serve", "--port", "0"], wrong),
        (["keys", "list"], env), (["usage"], env), (["migrate"], env),
    ):  # fmt: skip
        ended = await run(*words, cwd=tmp_path, **given)
        watch.see(" ".join(words), ended.out + ended.err)

    assert watch.told() == []
