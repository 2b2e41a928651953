"""``sameflight demo``: what it asks, what it counts, what it prints, and that it can fail."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.cli.demo import command
from proxy.cli.demo.caller import Answer, Caller
from proxy.cli.demo.findings import Findings, Row, Savings, Times, compare, evaluate, find_quantile
from proxy.cli.demo.play import Outcome, Scene
from proxy.cli.demo.screen import Screen, Style
from proxy.cli.demo.script import OPENAI_KEY, OTHER_KEY, Question, make_script
from proxy.cli.demo.table import render
from proxy.cli.main import make_parser
from proxy.cli.main import run as run_cli
from proxy.config.prices import BUILT_IN
from proxy.mock import MockOptions
from proxy.mock.reply import count_tokens
from proxy.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[3]
QUICK = MockOptions(latency_ms=30.0, pace_ms=1.0, tokens=30, repeatable=True)
NOT_REPEATABLE = replace(QUICK, repeatable=False)


def parse(*words: str) -> argparse.Namespace:
    return make_parser().parse_args(["demo", *words])


def demonstrate(options: MockOptions = QUICK, **settings: object) -> int:
    return command.run(parse("--once", "--callers", "4"), options, **settings)


def rows_of(output: str) -> dict[str, tuple[int, int, int]]:
    """The table of calls: name → requests, calls, expected calls."""
    found = re.findall(r"^ (\S.*?) {2,}([\d,]+) +([\d,]+) +([\d,]+)$", output, re.MULTILINE)
    return {name: (int(a), int(b), int(c)) for name, a, b, c in found}


# -- the whole command -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output() -> str:
    """What a demonstration that passed has printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(out):
        assert demonstrate() == 0
    out.seek(0)
    return out.read()


def test_a_demonstration_tells_what_it_cost(output: str) -> None:
    """Every kind of caller appears, every call is counted, every body is compared."""
    assert rows_of(output) == {
        "whole answers, all at once": (16, 4, 4),
        "streams, joined at random moments": (16, 4, 4),
        "hung up after 150 ms, then retried": (2, 1, 1),
        "all different": (6, 6, 6),
        "one question under two API keys": (10, 2, 2),
        "opted out (x-sameflight-share: off)": (5, 5, 5),
        "total": (55, 22, 22),
    }
    assert " 55 requests cost 22 upstream calls; without Sameflight they would cost 55.\n" in output
    assert " ✓ 22 upstream calls expected, 22 counted by the mock\n" in output
    assert " ✓ 54 of 54 bodies equal\n" in output


def test_the_output_fits_a_terminal_and_has_no_escapes_outside_one(output: str) -> None:
    """Eighty columns, one line a step, nothing that a file would show as rubbish."""
    lines = output.splitlines()

    assert [line for line in lines if len(line) > 80] == []
    assert [line for line in lines if not line.isprintable()] == []
    assert sum(line.startswith(" ✓ ") for line in lines) == 7 + 2


def test_tokens_and_dollars_are_those_of_the_calls_that_were_not_made(output: str) -> None:
    """Whoever joined saved a whole call: paid and saved together are what all answers would have cost alone."""
    answered = [ask.question for part in make_script(1, 4).parts for ask in part.asks]
    # Who shares pays once for each question and key; who does not is alone with its position in the part.
    paid = [
        question
        for part in make_script(1, 4).parts
        for question, _, _ in {
            (ask.question, ask.key, number if ask.headers else -1) for number, ask in enumerate(part.asks)
        }
    ]
    tokens, tokens_paid = sum(map(tokens_of, answered)), sum(map(tokens_of, paid))
    dollars, dollars_paid = sum(map(dollars_of, answered)), sum(map(dollars_of, paid))

    assert re.search(rf"tokens saved +{tokens - tokens_paid:,} of {tokens:,} ", output)
    assert re.search(rf"dollars saved +\${dollars - dollars_paid:.4f} of \${dollars:.4f} ", output)


def tokens_of(question: Question) -> int:
    return count_tokens(question.text) + QUICK.tokens


def dollars_of(question: Question) -> float:
    price = BUILT_IN[question.model]
    return (count_tokens(question.text) * price.input + QUICK.tokens * price.output) / 1e6


def test_bodies_that_differ_from_a_direct_call_fail_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison is a real one: an upstream that never says the same twice is noticed, request by request."""
    code = demonstrate(NOT_REPEATABLE)
    output = capsys.readouterr().out

    assert code == 1
    assert " ✗ 0 of 54 bodies equal\n" in output
    assert " ✓ 22 upstream calls expected, 22 counted by the mock\n" in output
    assert re.search(r"request 1 \(whole answers, all at once; [^)]+\):\s+from\s+byte", output)
    assert "   and 49 more\n" in output


@pytest.mark.long
def test_more_upstream_calls_than_the_script_allows_fail_it(capsys: pytest.CaptureFixture[str]) -> None:
    """With sharing switched off every request makes a call, and the verdict says so."""
    code = demonstrate(share="off")
    output = capsys.readouterr().out

    assert code == 1
    assert rows_of(output)["whole answers, all at once"] == (16, 16, 4)
    assert " ✗ 16 callers ask 4 questions, all at once" in output
    assert " ✗ 22 upstream calls expected, 55 counted by the mock\n" in output
    assert " ✓ 54 of 54 bodies equal\n" in output


def test_the_environment_changes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A newcomer's variables point at real upstreams and real keys; none is touched, and no file is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMEFLIGHT_OPENAI_UPSTREAM", "http://127.0.0.1:1")
    monkeypatch.setenv("SAMEFLIGHT_SHARE", "off")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    assert demonstrate() == 0
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


# -- ports and signals -----------------------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_that_was_asked_for_and_is_taken_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Code 1 and one line, no traceback."""
    with listening() as port:
        code = command.run(parse("--once", "--port", str(port)), QUICK)
    errors = capsys.readouterr().err

    assert code == 1
    assert errors.startswith("sameflight demo: cannot listen: ")
    assert errors.count("\n") == 1


def test_the_usual_ports_give_way_when_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staying up, the proxy is where its documentation says; taken ports are replaced by free ones."""
    monkeypatch.setattr(command, "_is_free", lambda port: True)
    assert command.choose_ports(None, once=False) == (8080, 8081, 0)
    assert command.choose_ports(8081, once=False) == (8081, 0, 0)
    assert command.choose_ports(9999, once=False) == (9999, 8081, 0)
    assert command.choose_ports(None, once=True) == (0, 0, 0)
    assert command.choose_ports(9999, once=True) == (9999, 0, 0)

    monkeypatch.setattr(command, "_is_free", lambda port: False)
    assert command.choose_ports(None, once=False) == (0, 0, 8080)


def test_a_taken_usual_port_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever expects port 8080 must see at once that it is another."""
    monkeypatch.setattr(command, "choose_ports", lambda port, once: command.Ports(0, 0, taken=8080))
    demonstrate()

    assert re.match(r"Port 8080 is taken; the proxy listens on port \d+ instead\.\n", capsys.readouterr().out)


def test_servers_that_cannot_be_reached_are_a_failure_that_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few open files, for instance: one line, no traceback."""

    async def refuse(host: str, port: int) -> Caller:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Caller, "connect", refuse)

    assert demonstrate() == 1
    expected = "sameflight demo: cannot connect to its own servers: [Errno 24] Too many open files\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "words", [("--port", "70000"), ("--port", "x"), ("--callers", "0"), ("--callers", "999"), ("--seed", "x")]
)
def test_wrong_use_is_code_2(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    assert run_cli(["demo", *words]) == 2
    assert "usage: sameflight demo" in capsys.readouterr().err


def start(*words: str) -> subprocess.Popen[str]:
    words = (sys.executable, "-u", "-m", "proxy", "demo", *words)
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.long
def test_without_once_the_servers_stay_up_until_a_signal_and_can_be_used() -> None:
    """The lines that are printed work as they stand; Ctrl-C ends it with code 0."""
    with start("--port", "0", "--callers", "1") as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "/__mock/stats" in line:
                break
        text = "".join(printed)
        base = re.search(r"^OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+)/v1$", text, re.MULTILINE)
        flights = re.search(r"http://\S+/flights$", text, re.MULTILINE)
        assert base is not None
        assert flights is not None
        assert f"\nANTHROPIC_BASE_URL={base[1]}\n" in text
        assert f"\ncurl -N {base[1]}/v1/chat/completions -H 'content-type: application/json' -d '" in text
        body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}]}'
        request = urllib.request.Request(f"{base[1]}/v1/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert b"chat.completion" in response.read()
        with urllib.request.urlopen(flights[0], timeout=20) as response:
            assert b"retained_bytes" in response.read()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (0, "")
    assert rest.endswith("\nStopped. Since the table: 1 request, 1 upstream call.\n")


@pytest.mark.long
def test_a_signal_in_the_middle_ends_it_at_once_as_interrupted() -> None:
    """No table, no traceback, no stuck server."""
    with start("--once") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "direct calls" in line:
                break
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (130, "")
    assert "upstream calls expected" not in rest


# -- the script ------------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_script_and_another_seed_another() -> None:
    """A failure can be seen again."""
    assert make_script(1, 10) == make_script(1, 10)
    assert make_script(1, 10) != make_script(2, 10)


def test_the_usual_script_has_a_few_hundred_requests_in_both_dialects() -> None:
    """Whole and streamed, with late joiners before the stream's last tenth."""
    script = make_script(1, 40)
    asks = [ask for part in script.parts for ask in part.asks]

    assert sum(part.requests for part in script.parts) == 415
    assert {(ask.question.path, ask.question.streams) for ask in asks} == {
        (path, streams) for path in ("/v1/chat/completions", "/v1/messages") for streams in (False, True)
    }
    assert {ask.key for ask in asks} == {OPENAI_KEY, OTHER_KEY}
    assert max(ask.join_at for ask in asks) <= 0.9
    assert len({ask.join_at for ask in asks}) > 100


def test_expected_calls_are_counted_from_what_may_be_shared() -> None:
    """Each part's number is that of its questions, keys and refusals to share."""
    for part in make_script(3, 7).parts:
        own = sum(1 for ask in part.asks if ask.headers)
        shared = {(ask.question, ask.key) for ask in part.asks if not ask.headers}

        assert part.calls == own + len(shared), part.name


# -- comparing and adding up -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        (Answer(status=200, body=b"abcdef"), ""),
        (Answer(status=200, body=b"abXdef"), "from byte 2 of 6 on b'Xdef' instead of b'cdef'"),
        (Answer(status=200, body=b"abc"), "3 bytes instead of 6"),
        (Answer(status=502, body=b"abcdef"), "status 502 instead of 200"),
        (Answer(status=200, body=b"abcdef", error="reset"), "reset"),
    ],
)
def test_an_answer_is_compared_in_every_respect(answer: Answer, difference: str) -> None:
    """Status, length, each byte, and whether it ended at all."""
    assert compare(answer, Answer(status=200, body=b"abcdef")) == difference


def test_a_direct_call_that_failed_is_a_failure_of_the_comparison() -> None:
    """Two equal errors prove nothing."""
    part = make_script(1, 1).parts[0]
    direct = {ask.question: Answer(status=500, body=b"broken") for ask in part.asks}
    outcomes = tuple(Outcome(ask, Answer(status=500, body=b"broken")) for ask in part.asks)
    findings = evaluate(direct, [Scene(part, outcomes, part.calls)], Metrics())

    assert (findings.equal, findings.compared) == (4, 4)
    assert not findings.passed
    assert "direct call for gpt-4o, 'Classify this ...': status 500" in findings.differences


def test_a_quantile_is_the_nearest_rank() -> None:
    """No interpolation: a value that somebody waited."""
    values = [float(number) for number in range(100, 0, -1)]

    assert [find_quantile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert find_quantile([7.0], 0.5) == 7.0


def test_large_numbers_stay_within_eighty_columns() -> None:
    """The largest crowd, and failures with long names."""
    times = (1.23456,) * 2083
    findings = Findings(
        (Row("opted out (x-sameflight-share: off)", 347, 347, 40),) * 6,
        2083,
        2000,
        99_999_999,
        ("request 2083 (" + "long words " * 20 + ")",) * 83,
        Times(times, times, times, times, times),
        Savings(999_999, 9_999_999, 12.3456, 123.4567),
    )
    lines = list(render(findings, Style(io.StringIO(), {})))

    assert [line for line in lines if len(line) > 80] == []


# -- the caller ------------------------------------------------------------------------------------------------------


async def answer_with(*pieces: bytes) -> tuple[Answer, list[int]]:
    """What a caller makes of a server that sends the pieces and closes."""
    watched: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        caller = await Caller.connect("127.0.0.1", server.sockets[0].getsockname()[1])
        caller.send(b"GET / HTTP/1.1\r\n\r\n")
        answer = await caller.receive(watched.append)
        caller.leave()
    return answer, watched


async def test_a_chunked_answer_is_decoded_and_watched() -> None:
    """Chunks end where their sizes say, wherever the reads do."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Status: sameflight; fwd=miss; collapsed\r\n\r\n"
    answer, watched = await answer_with(head, b"3\r\nabc\r\n2;x=1\r\nd", b"e\r\n0\r\n\r\n")

    assert (answer.status, answer.body, answer.error, answer.joined) == (200, b"abcde", "", True)
    assert watched == [3, 5]


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",),
        (b"HTTP/1.1 200 OK\r\n",),
        (b"nonsense\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc",),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\nabc\r\n",),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nmore\r\n",),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error(pieces: tuple[bytes, ...]) -> None:
    """Cut off, or no HTTP: never taken for a shorter body."""
    answer, _ = await answer_with(*pieces)

    assert answer.error != ""
    assert not answer.joined


async def test_a_greeting_that_fails_is_an_error_of_the_connection() -> None:
    """Nobody asks on a connection that does not work."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        caller = await Caller.connect("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionError, match="GET /health was answered 503"):
            await caller.greet("127.0.0.1", "/health")
        caller.leave()


# -- the display -----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal of one encoding."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class OldTerminal(Terminal):
    encoding = "ascii"


async def show(out: io.StringIO, env: dict[str, str]) -> str:
    screen = Screen(out, env)
    async with screen:
        screen.begin("three callers", 3)
        screen.advance()
        screen.finish("1 call", passed=True)
    return out.getvalue()


async def test_on_a_terminal_the_step_is_written_over_when_it_is_done() -> None:
    """First how far it is, then, in its place, that it is done."""
    shown = await show(Terminal(), {"TERM": "xterm"})

    assert re.search(r"\r\x1b\[K .*three callers .*0/3\r\x1b\[K \x1b\[32m✓\x1b\[0m three callers .*1 call\n$", shown)


async def test_no_color_leaves_the_movement_and_takes_the_colours() -> None:
    """https://no-color.org is about colour."""
    shown = await show(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})

    assert "\x1b[K" in shown
    assert not re.search(r"\x1b\[[\d;]*m", shown)


@pytest.mark.parametrize(("out", "env"), [(io.StringIO(), {"TERM": "xterm"}), (Terminal(), {"TERM": "dumb"})])
async def test_elsewhere_a_step_is_one_plain_line(out: io.StringIO, env: dict[str, str]) -> None:
    """Logs and simple terminals get what stays."""
    shown = await show(out, env)

    assert "\x1b" not in shown
    assert shown.count("\n") == 1


async def test_an_encoding_without_the_marks_gets_plain_ones() -> None:
    """A mark that cannot be written must not end the demonstration."""
    shown = await show(OldTerminal(), {"TERM": "xterm"})

    assert shown.isascii()
    assert "ok" in shown


async def test_a_step_that_is_broken_off_leaves_no_half_line() -> None:
    """The next line, an error perhaps, begins where it should."""
    out = Terminal()
    async with Screen(out, {"TERM": "xterm"}) as screen:
        screen.begin("three callers", 3)

    assert out.getvalue().endswith("\r\x1b[K")
