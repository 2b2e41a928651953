"""The parts of the hot path, each with what feeds it. One that cannot be put together is left out with the reason."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import orjson

from loadtests.micro.material import (
    ANSWER,
    BODY,
    EVENT,
    HEADERS,
    SECRET,
    join,
    make_cache,
    make_head,
    make_keys,
    make_table,
)

Call = Callable[[], object]


class Part(NamedTuple):
    """One part: its name, and what makes a call of it."""

    name: str
    make: Callable[[ExitStack], Call]
    """What it leaves open is closed by the stack."""


def reference() -> Call:
    """What all parts are compared with: the JSON parse of an 832-byte request, 0.7 µs where PERFORMANCE measured."""
    return lambda: orjson.loads(BODY)


def _read_head(stack: ExitStack) -> Call:
    from proxy.protocol.message import make_request_head

    return lambda: make_request_head("POST", "/v1/chat/completions", HEADERS)


def _parse_call(stack: ExitStack) -> Call:
    from proxy.protocol.call import parse_call
    from proxy.protocol.routes import locate

    route = locate(make_head()).route
    return lambda: parse_call(route, BODY)


def _fingerprint(stack: ExitStack) -> Call:
    from proxy.protocol.fingerprint import finish_key, flight_hasher

    hasher = flight_hasher(
        SECRET, config_version=1, scope=b"s" * 16, provider="openai", origin="https://api.openai.com", method="POST",
        path="/v1/chat/completions", query="", headers=[], content_type=b"application/json", encoding=b"",
        streams=False, variant=b"", idempotency_key=b"", transform=b"", credential=b"c" * 16,
    )  # fmt: skip
    return lambda: finish_key(hasher, BODY)


def _planner(stack: ExitStack) -> Call:
    from proxy.access.identity import Identity
    from proxy.config.settings import Settings
    from proxy.config.watch import CatalogHolder
    from proxy.policy.planner import Planner, Terms
    from proxy.protocol.call import parse_call
    from proxy.protocol.headers import parse_controls
    from proxy.protocol.routes import locate

    head = make_head()
    located = locate(head)
    catalog = CatalogHolder(Settings(), {}).current
    principal = Identity(SECRET, required=False).authenticate(head, located.provider, catalog)
    terms = Terms(head, located, parse_controls(head), principal, catalog)
    planner, call = Planner(SECRET, b"1.1 sameflight-micro", 0.0), parse_call(located.route, BODY)
    return lambda: planner.plan(head, terms, call, BODY)


def _keyring(stack: ExitStack) -> Call:
    from loadtests.micro.flat import make_finder

    return make_finder(1000)


def _look_up(stack: ExitStack) -> Call:
    cache = make_cache(1000, 0.0)
    keys = itertools.cycle(make_keys(1000))
    return lambda: cache.lookup(next(keys), 1.0)


def _join_and_leave(stack: ExitStack) -> Call:
    table = make_table(100)
    fresh = itertools.cycle([b"%032d" % number for number in range(1000)])
    return lambda: join(table, next(fresh)).leave()


def _board_and_leave(stack: ExitStack) -> Call:
    table = make_table(100)
    known = next(make_keys(1))
    return lambda: join(table, known).leave()


def _deadline(stack: ExitStack) -> Call:
    from proxy.clock import Clock, Deadlines

    deadlines = Deadlines(Clock())
    return lambda: deadlines.arm(600.0, lambda: None).cancel()


def _scan_event(stack: ExitStack) -> Call:
    from proxy.protocol.routes import Grammar
    from proxy.protocol.sse import SseScanner

    scanner = SseScanner(Grammar.OPENAI_CHAT if hasattr(Grammar, "OPENAI_CHAT") else next(iter(Grammar)))
    return lambda: scanner.feed(EVENT)


def _usage(stack: ExitStack) -> Call:
    from proxy.protocol.routes import Dialect
    from proxy.protocol.usage import usage_from_body

    return lambda: usage_from_body(Dialect.OPENAI, "chat_completions", ANSWER)


def _metrics(stack: ExitStack) -> Call:
    from proxy.telemetry.metrics import Metrics

    metrics = Metrics()

    def count() -> None:
        metrics.requests_total.at("openai", "chat_completions", "other", "200", "ok").value += 1
        metrics.request_duration_seconds.at("openai", "chat_completions").observe(0.02)

    return count


def _answer_head(stack: ExitStack) -> Call:
    from proxy.edge.respond import answer_head
    from proxy.exchange import Exchange
    from proxy.protocol.answer import AnswerHead

    exchange = Exchange(make_head(), 0.0)
    exchange.role = "leader"
    head = AnswerHead(200, [(b"content-type", b"application/json"), (b"x-request-id", b"req_1")])
    framing, date = b"content-length: 1042\r\n", b"date: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
    return lambda: answer_head(exchange, head, framing, date=date, leads=True, now=0.02)


def _access_line(stack: ExitStack) -> Call:
    from proxy.telemetry.log import AccessLog, AccessRecord
    from proxy.telemetry.sink import BufferedSink

    sink = BufferedSink(BytesIO())
    sink.close()  # lines are made and dropped: the writing is another thread's
    log = AccessLog(sink, 20, None)
    fields: AccessRecord = {
        "request_id": "req_00", "provider": "openai", "route": "chat_completions", "model": "gpt-4o-mini",
        "status": 200, "outcome": "ok", "role": "leader", "total_ms": 20.1, "overhead_ms": 0.1, "bytes_in": 832,
        "bytes_out": 1042, "tokens_in": 160, "tokens_out": 120, "cost_usd": 0.0, "key_id": "0123456789ab",
    }  # fmt: skip
    return lambda: log.write(fields.copy())


def _spool(stack: ExitStack) -> Call:
    from proxy.accounting.record import UsageRecord
    from proxy.accounting.spool import Spool

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="micro-spool-")))
    spool = Spool(folder, fsync="never", bound_bytes=1 << 26)
    spool.start()
    stack.callback(spool.close)
    opened = ("req_micro00000001", 1.7e9, "key_1", "t", "", "openai", "chat_completions", "gpt-4o-mini")
    times = (0.4, 20.5, 0.1)
    record = UsageRecord(
        *opened[:5], "openai", "chat_completions", "gpt-4o-mini", "leader", "ok", 200, False, False,
        160, 120, 0, 280, 0, 96_000_000, 96_000_000, 0, *times, 7,
    )  # fmt: skip

    def keep() -> None:
        spool.open_record(*opened)
        spool.close_record(record)

    return keep


def _gate(stack: ExitStack) -> Call:
    from proxy.pressure.gate import Gate

    gate = Gate(lambda: 10, lambda: 0)
    return lambda: gate.admit(1.0)


PARTS = (
    Part("head of a request, from the parser's fields", _read_head),
    Part("admission, nobody is refused", _gate),
    Part("virtual key, held in memory", _keyring),
    Part("parse_call", _parse_call),
    Part("fingerprint", _fingerprint),
    Part("plan, terms known", _planner),
    Part("hot cache, look-up", _look_up),
    Part("table, new flight and its end", _join_and_leave),
    Part("table, follower and its end", _board_and_leave),
    Part("deadline, armed and cancelled", _deadline),
    Part("event of a stream, scanned", _scan_event),
    Part("usage of a whole answer", _usage),
    Part("head of an answer", _answer_head),
    Part("two series of metrics", _metrics),
    Part("access line", _access_line),
    Part("spool, a request opened and closed", _spool),
)
