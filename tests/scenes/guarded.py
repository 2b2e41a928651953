"""The stage of scenes with guards: a proxy whose catalog has guards, and a server that the remote ones are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from tests.fakes.gates import Gate
from tests.fakes.upstream import Call, ScriptedUpstream
from tests.scenes.many import Many

CARD = "4111 1111 1111 1111"
OTHER_CARD = "5500 0000 0000 0004"
CARDS: dict[str, Any] = {"kind": "personal_data", "which": ["card"]}
"""A guard that looks for numbers of cards."""


class GuardServer(ScriptedUpstream):
    """Remote guards, told apart by their paths. Each allows what it is asked, unless the scene says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.says: dict[str, object] = {}
        """What a guard answers instead of allowing: an object, bytes as they are, or a status."""
        self.gates: dict[str, Gate] = {}
        """Where a guard waits before it answers."""
        self.respond_with(self._answer)

    async def _answer(self, call: Call) -> None:
        name = call.path.strip("/")
        gate = self.gates.get(name)
        if gate is not None:
            await gate.wait()
        if call.gone:
            return
        said = self.says.get(name, {"action": "allow"})
        if isinstance(said, int):
            await call.answer_json({}, said)
        elif isinstance(said, bytes):
            await call.answer(200, [("content-type", "application/json")], said)
        else:
            await call.answer_json(said)

    def asked(self, name: str) -> list[Any]:
        """What a guard was asked, in order."""
        return [call.json() for call in self.history if call.path.strip("/") == name]


class Guarded(Many):
    """A proxy with guards. Remote ones need no ``url``: they are ``stage.guards``."""

    guards: GuardServer


@asynccontextmanager
async def guarded(
    guards: Mapping[str, Mapping[str, Any]],
    *,
    providers: Mapping[str, Mapping[str, Any]] | None = None,
    models: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Guarded]:
    """Open the stage; what is still held of answers at its end is a fault."""
    server = GuardServer()
    await server.start()
    try:
        said = {
            name: {**({"url": f"{server.url}/{name}"} if guard["kind"] in ("webhook", "moderation") else {}), **guard}
            for name, guard in guards.items()
        }
        stage = Guarded(providers or {}, models or {}, extra={"guards": said, **(extra or {})}, **options)
        stage.guards = server
        async with stage:
            yield stage
            assert stage.app.guarding.screening.held.bytes == 0
    finally:
        for gate in server.gates.values():
            gate.open()
        await server.close()
