"""A data server in memory: what its pipeline was asked, and what its clients saw, comparable between the lanes."""

from __future__ import annotations

import asyncio
import re
from typing import Any, NamedTuple, cast

import orjson

from proxy.admission import Intent
from proxy.clock import Deadlines
from proxy.edge.body import BodyLimits, Upload
from proxy.edge.lane import Lane
from proxy.edge.relay import EdgeTools, Relay
from proxy.edge.server import DataServer
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.pipeline import Pipeline
from proxy.protocol.answer import AnswerHead
from proxy.protocol.routes import locate
from tests.fakes.clock import FrozenClock
from tests.fakes.wire_end import WireEnd

LIMITS = BodyLimits(max_bytes=4096, min_rate=500, timeout_s=60.0)
JSON = AnswerHead(200, [(b"content-type", b"application/json")])
_ANSWERS_OWN = re.compile(rb"req_[0-9a-f]{20}|x-response-time: [^\r]*|server-timing: [^\r]*")


class Heard(NamedTuple):
    """One request as the pipeline saw it, the length aside, which only one of the lanes passes on."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class NotingPipeline:
    """Admits what has a route, answers everything at once, and notes all of it. Implements `relay.Desk`, too."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.accounted: list[tuple[int, str]] = []
        self.rejected: list[str] = []
        self.bugs: list[str] = []
        self.refusal: ProxyError | None = None
        self.books = self
        self.gate = None
        self.waits: asyncio.Future[None] | None = None
        self.silent = False
        """Answers nothing by itself."""
        self.waiting: list[tuple[Exchange, Relay]] = []
        """What is to be answered by `answer`."""

    def admit(self, exchange: Exchange) -> Intent:
        located = exchange.located = locate(exchange.head)
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        return Intent.HOLD if located.route.understood and not located.route.upload else Intent.STREAM

    def serve(self, exchange: Exchange, client: Relay) -> None:
        head = exchange.head
        headers = [header for header in head.raw if header[0] != b"content-length"]
        body = exchange.body
        if isinstance(body, Upload):
            body = b"<a stream>"
        assert isinstance(body, bytes)
        self.heard.append(Heard(head.method, head.path, head.query, headers, body))
        if self.silent:
            self.waiting.append((exchange, client))
        else:
            self.answer(exchange, client)

    def answer(self, exchange: Exchange, client: Relay) -> None:
        """What came, in JSON; nothing for a client that has gone."""
        if not client.done:
            told = {"path": exchange.head.path, "bytes": exchange.bytes_in, "number": len(self.accounted)}
            client.answer(JSON, orjson.dumps(told))

    def account(self, exchange: Exchange) -> None:
        if not exchange.accounted:
            exchange.accounted = True
            self.accounted.append((exchange.status, exchange.outcome))

    def count_rejection(self, error: ProxyError) -> None:
        self.rejected.append(error.why)

    def bug(self, where: str, error: BaseException) -> None:
        self.bugs.append(f"{where}: {error!r}")


class LaneRig:
    """One server with its clock in hand. Needs a running loop."""

    def __init__(self, *, fast: bool, limits: BodyLimits = LIMITS, **options: Any) -> None:
        self.clock = FrozenClock()
        self.deadlines = Deadlines(self.clock)
        self.pipeline = NotingPipeline()
        tools = EdgeTools(self.clock, self.deadlines, heartbeat_after_s=0.0, heartbeat_every_s=15.0)
        settings: dict[str, Any] = {
            "max_header_bytes": 16_384,
            "head_timeout_s": 10.0,
            "write_stall_s": 60.0,
            "keepalive_s": 75.0,
            "abort_on_half_close": True,
        }
        self.server = DataServer(
            cast("Pipeline", self.pipeline),
            tools,
            limits,
            sockets=cast("Any", None),
            fast_lane=fast,
            **(settings | options),
        )

    def connect(self) -> WireEnd:
        return WireEnd(self.server())

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.deadlines.sweep()

    async def settle(self, ticks: int = 12) -> None:
        """Let tasks take their steps."""
        for _ in range(ticks):
            await asyncio.sleep(0)

    async def close(self) -> None:
        await self.server.shutdown(0.001)
        await self.settle()


def is_fast(end: WireEnd) -> bool:
    """Whether the connection is still the fast lane's."""
    return isinstance(end.get_protocol(), Lane)


class Seen(NamedTuple):
    """Everything about one connection that anybody can tell from outside."""

    heard: list[Heard]
    sent: bytes
    """With what differs between two equal answers left out."""
    closed: bool
    aborted: bool
    finished: bool
    running: int
    accounted: list[tuple[int, str]]
    """After the client hung up."""
    rejected: list[str]
    bugs: list[str]
    left: int
    """Deadlines that are still armed when the connection is gone."""


async def observe(pieces: list[bytes], *, fast: bool, later: bool = False) -> Seen:
    """Say ``pieces`` on one connection and hang up. ``later``: nothing is answered before everything was said."""
    rig = LaneRig(fast=fast)
    pipeline, server = rig.pipeline, rig.server
    pipeline.silent = later
    end = rig.connect()
    await rig.settle(2)
    for piece in pieces:
        end.say(piece)
        await rig.settle()
    await rig.settle(20)
    while pipeline.waiting:
        pipeline.answer(*pipeline.waiting.pop(0))
        await rig.settle()
    heard, closed, running = list(pipeline.heard), end.closed, server.running
    end.hang_up()
    await rig.settle()
    seen = Seen(
        heard,
        _ANSWERS_OWN.sub(b"*", end.sent),
        closed,
        end.aborted,
        end.finished,
        running,
        pipeline.accounted,
        pipeline.rejected,
        pipeline.bugs,
        rig.deadlines.armed,
    )
    await rig.close()
    return seen
