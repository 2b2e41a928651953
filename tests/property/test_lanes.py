"""The law of the two lanes: whatever comes over a connection, nobody can tell which of them it went through.

The same bytes, cut in the same places, go to a server with the fast lane and to one without. What their pipelines
heard, what their clients were sent and what became of the connections has to be equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.edge.lanes import observe

BODY = b'{"model":"m","messages":[]}'

USUAL_LINES = [
    b"POST /v1/chat/completions HTTP/1.1",
    b"POST /v1/messages HTTP/1.1",
    b"POST /openai/v1/responses?a=b&c=%20d HTTP/1.1",
    b"POST /embeddings HTTP/1.1",
]
ODD_LINES = [
    b"POST /v1/files HTTP/1.1",
    b"POST /v1/nowhere HTTP/1.1",
    b"GET /v1/models HTTP/1.1",
    b"GET /health HTTP/1.1",
    b"HEAD /health HTTP/1.1",
    b"PUT /v1/chat/completions HTTP/1.1",
    b"post /v1/chat/completions HTTP/1.1",
    b"POST /v1/chat/completions HTTP/1.0",
    b"POST /v1/chat/completions HTTP/2.0",
    b"POST /v1/chat/completions HTTP/1.1 ",
    b"POST /v1/chat/completions  HTTP/1.1",
    b" POST /v1/chat/completions HTTP/1.1",
    b"POST\t/v1/chat/completions\tHTTP/1.1",
    b"POST http://h/v1/chat/completions HTTP/1.1",
    b"POST /v1/chat/completions#f HTTP/1.1",
    b"POST /v1/chat/completions?q=\xc3\xa9 HTTP/1.1",
    b"POST /v1/chat/completions?q=%zz&;'\"<>| HTTP/1.1",
    b"POST /v1/../chat/completions HTTP/1.1",
    b"POST /v1/chat/completions?" + b"q" * 9000 + b" HTTP/1.1",
    b"CONNECT h:443 HTTP/1.1",
    b"\r\nPOST /v1/chat/completions HTTP/1.1",
]
USUAL_HEADERS = [
    b"Content-Type: application/json",
    b"Authorization: Bearer sk-test",
    b"User-Agent: OpenAI/Python 3.52.0",
    b"Accept: application/json",
    b"accept-encoding: gzip, deflate",
    b"Connection: keep-alive",
    b"X-Stainless-Retry-Count: 0",
    b"x-request-id:1",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b'x-odd: a,b;c="d"',
]
ODD_HEADERS = [
    b"host: h2",
    b"HOST: h",
    b"content-length: 5",
    b"Content-Length: 27",
    b"content-length : 27",
    b"content-length: +27",
    b"content-length: 27, 27",
    b"content-length: 0x1b",
    b"content-length: ",
    b"content-length: 99999999999999999999",
    b"content-length: 5000",
    b"Content-Length:\t27",
    b"transfer-encoding: chunked",
    b"Transfer-Encoding: identity",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding : chunked",
    b"\ttransfer-encoding: chunked",
    b"connection: close",
    b"Connection: Keep-Alive",
    b"connection: keep-alive, close",
    b"connection: upgrade",
    b"proxy-connection: close",
    b"keep-alive: timeout=5",
    b"upgrade: websocket",
    b"upgrade: h2c",
    b"expect: 100-continue",
    b"Expect: nonsense",
    b"te: trailers",
    b"trailer: x-one",
    b"content-type: multipart/form-data; boundary=b",
    b"content-type: Multipart/mixed; boundary=b",
    b"content-encoding: gzip",
    b"x-api-key: k",
    b"x-api-key: ",
    b"x-empty:",
    b"x-blank:   ",
    b"x-spaced:  a ",
    b"x-tabbed: a\tb",
    b"x_under: a",
    b"x!mark: a",
    b": nameless",
    b"no colon",
    b" folded",
    b"x-bare: a\rb",
    b"x-line: a\nb",
    b"x-nul: a\0b",
    b"x-high: \xc3\xa9",
    b"x\xc3\xa9: a",
    b"x-long: " + b"a" * 4000,
    b"x-longer: " + b"a" * 9000,
    b"x-longest: " + b"a" * 17000,
    b"sec-websocket-key1: a",
    b"http2-settings: AAMAAABkAAQAAP__",
    b"via: 1.1 nginx",
]
ODD_LENGTHS = [
    b"", b" 27", b"27 ", b"+27", b"-27", b"0x1b", b"27,27", b"2 7", b"27\t", b"027", b"0000000027", b"1e1", b"27.0",
    b"0", b"26", b"28", b"4096", b"4097", b"4297", b"5097", b"999999999", b"9999999999", b"27\0", b"27\r",
]  # fmt: skip
TOKENS = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b" ", b"\t", b":", b",", b"\0", b"\xff", b"\x80", b"0", b"1", b"-",
    b"POST / HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n", b"0\r\n\r\n", b"\x7f", b"\x0b",
]  # fmt: skip
SMALL = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKS = b"5\r\n" + BODY[:5] + b"\r\n16\r\n" + BODY[5:] + b"\r\n0\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request: plain in two cases of three, else with something odd about it."""
    lines = draw(st.lists(st.sampled_from(USUAL_HEADERS), max_size=5, unique=True))
    body = BODY * draw(st.integers(0, 3))
    name = draw(st.sampled_from([b"content-length: ", b"Content-Length: ", b"Content-Length:"]))
    length = name + str(len(body)).encode()
    first = draw(st.sampled_from(USUAL_LINES))
    host = [b"Host: h"]
    if draw(st.integers(0, 2)) == 0:
        oddity = draw(st.integers(0, 6))
        if oddity == 0:
            first = draw(st.sampled_from(ODD_LINES))
        elif oddity <= 2:
            lines += draw(st.lists(st.sampled_from(ODD_HEADERS), min_size=1, max_size=2))
        elif oddity == 3:
            length, body = b"transfer-encoding: chunked", CHUNKS
        elif oddity == 4:
            length = name + str(draw(st.integers(0, 90))).encode().rjust(draw(st.integers(1, 6)), b"0")
        elif oddity == 5:
            body = body[: draw(st.integers(0, len(body)))]
        else:
            host = []
    return b"\r\n".join([first, *draw(st.permutations([*lines, *host, length])), b"", b""]) + body


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What one client says: one request after the other, now and then mutilated, cut anywhere."""
    said, starts = b"", [0]
    simple = st.sampled_from([SMALL % b"/health", SMALL % b"/v1/models"])
    for request in draw(st.lists(st.one_of(requests(), requests(), requests(), simple), min_size=1, max_size=4)):
        said += request * draw(st.sampled_from([1, 1, 2]))
        starts.append(len(said))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(said)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            said = said[:at] + said[at + draw(st.integers(1, 4)) :]
        elif kind == 1:
            said = said[:at] + draw(st.sampled_from(TOKENS)) + said[at:]
        elif kind == 2:
            said = said[:at] + said[max(0, at - draw(st.integers(1, 40))) :]
        else:
            said = said[:at] + said[at : at + 20].swapcase() + said[at + 20 :]
    cuts = set(starts) if draw(st.integers(0, 3)) else {0}
    if draw(st.booleans()):
        cuts.update(draw(st.lists(st.integers(0, len(said)), max_size=4)))
    if draw(st.booleans()):
        cuts.add(said.find(b"\r\n\r\n") + 4)
    edges = [*sorted(cut for cut in cuts if cut < len(said)), len(said)]
    return [said[start:end] for start, end in pairwise(edges)]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all the cases."""
    with asyncio.Runner() as runner:
        yield runner


def agree(runner: asyncio.Runner, pieces: list[bytes], *, later: bool) -> None:
    fast = runner.run(observe(pieces, fast=True, later=later))
    slow = runner.run(observe(pieces, fast=False, later=later))

    assert fast == slow
    assert (fast.bugs, fast.left) == ([], 0)


PLAIN = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 27\r\n\r\n" + BODY
ODDITIES = [
    *(PLAIN.replace(b"POST /v1/chat/completions HTTP/1.1", line) for line in ODD_LINES),
    *(PLAIN.replace(b"host: h", b"host: h\r\n" + line) for line in ODD_HEADERS),
    *(PLAIN.replace(b"27\r\n", b"27\r\n" + line + b"\r\n") for line in ODD_HEADERS),
    *(PLAIN.replace(b"content-length: 27", line) for line in ODD_HEADERS),
    *(PLAIN.replace(b"host: h", line) for line in ODD_HEADERS),
    *(PLAIN.replace(b"content-length: 27", b"content-length: " + length) for length in ODD_LENGTHS),
]


@pytest.mark.parametrize("later", [False, True])
def test_no_oddity_is_read_differently(runner: asyncio.Runner, later: bool) -> None:
    """Each by itself, first and behind a plain request, and always with a plain one behind it: there it shows where
    the odd one was believed to end."""
    for odd in ODDITIES:
        agree(runner, [odd, PLAIN], later=later)
        agree(runner, [PLAIN, odd, PLAIN], later=later)


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(pieces=conversations(), later=st.booleans())
def test_nobody_can_tell_the_lanes_apart(runner: asyncio.Runner, pieces: list[bytes], later: bool) -> None:
    """No input is accepted by one lane and refused, read or answered differently by the other."""
    agree(runner, pieces, later=later)


@pytest.mark.long
@pytest.mark.timeout(300)
@settings(max_examples=5_000, deadline=None, suppress_health_check=QUIET)
@given(pieces=conversations(), later=st.booleans())
def test_nobody_can_tell_the_lanes_apart_however_long_they_try(
    runner: asyncio.Runner, pieces: list[bytes], later: bool
) -> None:
    """The same with other conversations each time, and many more of them."""
    agree(runner, pieces, later=later)
