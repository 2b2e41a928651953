"""A pod of the gateway as it comes up: its overlay's settings, real PostgreSQL and Valkey, mounts like kubelet's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.client import RawResponse
from tests.fakes.gates import within
from tests.fakes.upstream import ScriptedUpstream
from tests.fakes.valkey import ValkeyServer
from tests.scenes.stage import CHAT, chat, completion
from tests.scenes.test_process import START_LIMIT_S, Serve, run
from tests.unit.deploy.test_kubernetes import ROOT, environment


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """The vendor, in the process of the test."""
    async with ScriptedUpstream() as made:
        yield made


class Mount:
    """A directory whose files are links into `..data`, which is a link that is swapped as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._versions = 0
        path.mkdir()

    def write(self, files: dict[str, str]) -> None:
        self._versions += 1
        version = self.path / f"..version_{self._versions}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text, "utf-8")
        fresh = self.path / "..data_tmp"
        fresh.symlink_to(version.name)
        fresh.rename(self.path / "..data")
        for name in files:
            link = self.path / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")


@pytest.mark.long
async def test_a_pod_of_the_gateway_serves_virtual_keys_and_takes_a_rotated_secret(
    tmp_path: Path, upstream: ScriptedUpstream, postgres_url: str, valkey: ValkeyServer
) -> None:
    """Nobody without a key gets in; the provider's key that a new Secret brings is used without a restart."""
    keys, catalog = Mount(tmp_path / "keys"), Mount(tmp_path / "catalog")
    secrets = {"openai": "sk-first", "key-secret": "s" * 64, "key-pepper": "p" * 64, "admin-token": "t" * 64}
    secrets |= {"database-url": postgres_url, "cache-url": valkey.url}
    keys.write(secrets)
    text = (ROOT / "base/catalog.yaml").read_text("utf-8")
    catalog.write({"catalog.yaml": text.replace("/etc/sameflight/keys", str(keys.path))})
    env = {
        name: value.replace("/etc/sameflight", str(tmp_path)).replace("/var/lib/sameflight", str(tmp_path / "state"))
        for name, value in environment("gateway").items()
    }
    env |= {"SAMEFLIGHT_HOST": "127.0.0.1", "SAMEFLIGHT_ADMIN_HOST": "127.0.0.1", "SAMEFLIGHT_DRAIN_DELAY_S": "0"}
    async with Serve(tmp_path, upstream, **env) as serve:
        serve.url = serve.url[0]
        assert await serve.is_ready()
        made = await run("keys", "create", "first", "--json", cwd=tmp_path, **env)
        assert made.code == 0, made.err
        key = json.loads(made.out)["key"]

        refused = await ask(serve, "sk-not-ours", "a")
        first = await answer(serve, upstream, key, "b")
        keys.write({**secrets, "openai": "sk-second"})
        await within(serve.event("config_reloaded"), "the catalog was read again", START_LIMIT_S)
        second = await answer(serve, upstream, key, "c")
        code = await serve.stop()

    assert refused.status == 401
    assert (first, second) == ("Bearer sk-first", "Bearer sk-second")
    assert code == 0
    assert serve.errors == ""


async def ask(serve: Serve, key: str, what: str) -> RawResponse:
    client = await serve.client()
    response = await client.start("POST", CHAT, [("authorization", f"Bearer {key}")], chat(what))
    await response.read_head()
    return response


async def answer(serve: Serve, upstream: ScriptedUpstream, key: str, what: str) -> str | None:
    """The credential with which the upstream was asked."""
    client = await serve.client()
    response = await client.start("POST", CHAT, [("authorization", f"Bearer {key}")], chat(what))
    call = await upstream.next_call()
    await call.answer_json(completion())
    await response.read_end()
    assert response.status == 200
    return call.header("authorization")
