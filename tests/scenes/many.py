"""The stage of scenes with many providers: one proxy whose catalog names any number of scripted upstreams, or others.

    providers = {"one": {"kind": "compatible"}, "two": {"kind": "anthropic"}}
    async with Many(providers, {"smart": {"targets": ["one/llama", "two/claude"]}}) as stage: ...

A provider without a ``base_url`` gets a scripted upstream of its own, ``stage.upstreams[name]``, which says its name
in every word it answers; one without keys gets one that says its name too. Callers come with a placeholder.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from proxy.clock import Clock
from tests.fakes.client import RawResponse
from tests.fakes.gates import wait_until
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.scenes.stage import Stage, chat, completion, stream_events

PLACEHOLDER = "placeholder"
SSE = "text/event-stream"

Script = Callable[[Call], Awaitable[None] | None]


def key_of(provider: str, number: int = 0) -> str:
    """A key of the operator's; long enough to be looked for in the log."""
    return f"the-operators-{provider}-key-{number}"


def words_of(name: str, *, count: int = 5) -> list[str]:
    """An answer in pieces, none of which could come from anybody else."""
    return [f"<{name}:{number}>" for number in range(count)]


def text_of(name: str) -> str:
    return "".join(words_of(name))


def answers(name: str) -> Script:
    """Chat completions, whole or streamed, in which every word is marked."""

    async def script(call: Call) -> None:
        if call.json().get("stream"):
            await call.answer_sse(stream_events(*words_of(name)))
        else:
            await call.answer_json(completion(text_of(name)))

    return script


def text_in(response: RawResponse) -> str:
    """What a caller of chat completions has read, whole or streamed."""
    if not (response.header("content-type") or "").startswith(SSE):
        return str(response.json()["choices"][0]["message"]["content"])
    said = [event.removeprefix(b"data: ") for event in response.events() if event.startswith(b"data: {")]
    chunks = [json.loads(event) for event in said]
    return "".join([
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ())
    ])


def unused_url() -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class Many(Stage):
    """A proxy with a catalog file, and an upstream for each of its providers."""

    def __init__(
        self,
        providers: Mapping[str, Mapping[str, Any]],
        models: Mapping[str, Any],
        *,
        clock: Clock | None = None,
        env: dict[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        **settings: object,
    ) -> None:
        """``extra`` are further members of the catalog file: ``aliases``, ``routes`` and so on."""
        super().__init__(clock=clock, env=env, **settings)
        self._providers = {name: dict(said) for name, said in providers.items()}
        self.models: dict[str, Any] = dict(models)
        """What the file says about them; a scene that changes it asks for `reload` then."""
        self.extra: dict[str, Any] = dict(extra or {})
        self.upstreams: dict[str, ScriptedUpstream] = {}
        self.file: Path

    async def __aenter__(self) -> Self:
        self._folder = TemporaryDirectory(prefix="sameflight-many-")
        self.file = Path(self._folder.name) / "catalog.yaml"
        for name, said in self._providers.items():
            if "base_url" not in said:
                upstream = self.upstreams[name] = ScriptedUpstream()
                await upstream.start()
                upstream.respond_with(answers(name))
                said["base_url"] = upstream.url
            if "api_keys" not in said:
                said.setdefault("api_key", key_of(name))
            self.secrets.update(said.get("api_keys", ()) or [said["api_key"]])
        self._write()
        self._settings = {"config": str(self.file), **self._settings}
        try:
            return await super().__aenter__()
        except BaseException:
            await self._close_upstreams()
            raise

    async def __aexit__(self, *raised: object) -> None:
        try:
            await super().__aexit__(*raised)
        finally:
            await self._close_upstreams()

    async def _close_upstreams(self) -> None:
        for upstream in self.upstreams.values():
            await upstream.close()
        self._folder.cleanup()

    def _write(self) -> None:
        # JSON is YAML; by another file of the same name, as editors and Kubernetes do it.
        fresh = self.file.with_suffix(".next")
        said = {"providers": self._providers, "models": self.models, **self.extra}
        fresh.write_text(json.dumps(said, indent=1), "utf-8")
        fresh.replace(self.file)

    async def reload(self) -> None:
        """Write down what the scene says by now, and let it come into force."""
        before = self.app.catalogs.current.generation
        self._write()
        self.app.reload()
        await wait_until(lambda: self.app.catalogs.current.generation > before, "the catalog was reloaded")

    # -- callers ----------------------------------------------------------------------------------------------

    async def crowd(self, count: int, body: object, **options: Any) -> list[RawResponse]:
        """``count`` callers who ask the same at once, read to the end of their answers."""
        responses = [await self.ask(body, key=PLACEHOLDER, **options) for _ in range(count)]
        return [await response.read_end() for response in responses]

    async def say(self, model: str, text: str = "hi", **fields: Any) -> RawResponse:
        """One caller of chat completions, read to the end."""
        return (await self.crowd(1, chat(text, model=model, **fields)))[0]

    # -- what has happened ------------------------------------------------------------------------------------

    async def at_rest(self) -> None:
        """Nothing is left of what was: no place at any target is taken, nobody waits for one, no retry is counted as
        under way."""
        await super().at_rest()
        fleet = self.app.fleet
        busy = {name: known.in_flight for name, known in fleet.health.targets.items() if known.in_flight}
        assert busy == {}, "places that nobody left"
        assert [name for name, known in fleet.health.targets.items() if known.line.size] == []
        assert fleet.gates.under_way == 0

    def calls(self) -> dict[str, int]:
        """Whole requests by upstream, those without any left out."""
        return {name: upstream.calls for name, upstream in self.upstreams.items() if upstream.calls}

    def keys_used(self, name: str) -> list[str]:
        """The credentials that came to an upstream, in order."""
        return [_credential(call) for call in self.upstreams[name].history]

    def refuse(self, names: Collection[str] | None = None, status: int = 500, **fields: Any) -> None:
        """Let these upstreams (all, unless named) answer with an error in OpenAI's words."""
        for name in self.upstreams if names is None else names:
            self.upstreams[name].respond_with(refusal(status, **fields))


def refusal(
    status: int, message: str = "no", kind: str = "", code: str = "", headers: Iterable[tuple[str, str]] = ()
) -> Script:
    """An error in OpenAI's words."""
    body = {"error": {"message": message, "type": kind or "error", "param": None, "code": code or None}}

    async def script(call: Call) -> None:
        await call.answer_json(body, status, headers)

    return script


def _credential(call: Call) -> str:
    for name in ("authorization", "x-api-key", "api-key", "x-goog-api-key"):
        value = call.header(name)
        if value is not None:
            return value.removeprefix("Bearer ")
    return ""
