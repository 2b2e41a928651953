"""Every fault, as a raw client meets it."""

from __future__ import annotations

import zlib

import pytest

from proxy.mock import MockOptions, MockUpstream, key_of
from tests.fakes.client import BadResponseError, RawClient
from tests.fakes.gates import wait_until
from tests.unit.mock.asking import KEY, make_chat

_PATH = "/v1/chat/completions"


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_status_fault_takes_the_answers_place(client: RawClient, status: int) -> None:
    """The status comes with the vendor's error, and 429 with a time to wait."""
    response = await client.request("POST", _PATH, KEY, make_chat(f"gpt-4o?fault={status}&retry_after_s=1.5"))
    assert (response.status, response.ended) == (status, True)
    assert response.json()["error"]["message"]
    waits = (response.header("retry-after"), response.header("retry-after-ms"))
    assert waits == (("2", "1500") if status == 429 else (None, None))


async def test_reset_comes_before_the_head(client: RawClient) -> None:
    """RST and not one byte."""
    response = await client.start("POST", _PATH, KEY, make_chat("gpt-4o?fault=reset"))
    await response.read_end()
    assert (response.status, client.was_reset, client.bytes_received) == (0, True, 0)


async def test_garbage_is_no_http(client: RawClient) -> None:
    """What comes back cannot be read as a response."""
    response = await client.start("POST", _PATH, KEY, make_chat("gpt-4o?fault=garbage"))
    with pytest.raises(BadResponseError):
        await response.read_end()


@pytest.mark.parametrize("stream", [True, False])
async def test_reset_in_the_middle_follows_half_the_body(
    client: RawClient, mock: MockUpstream, stream: bool
) -> None:
    """Head and some of the body, then RST; the mock itself caused it, so nobody is counted as gone."""
    response = await client.start("POST", _PATH, KEY, make_chat("gpt-4o?fault=reset_mid", stream=stream))
    await response.read_end()
    assert (response.status, response.truncated, client.was_reset) == (200, True, True)
    assert response.body
    assert (mock.aborted, mock.in_flight) == (0, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_truncated_body_ends_with_fin(client: RawClient, stream: bool) -> None:
    """FIN where more was promised."""
    response = await client.start("POST", _PATH, KEY, make_chat("gpt-4o?fault=truncate", stream=stream))
    await response.read_end()
    assert (response.status, response.truncated, client.was_reset) == (200, True, False)
    assert response.body
    assert b"[DONE]" not in response.body


@pytest.mark.parametrize(
    ("fault", "after", "events"), [("truncate", 0, 0), ("truncate", 3, 3), ("truncate", 999, 23), ("reset_mid", 2, 2)]
)
async def test_fault_strikes_after_so_many_events(client: RawClient, fault: str, after: int, events: int) -> None:
    """``fault_after`` counts events, and a number beyond the last one leaves out only the end."""
    body = make_chat(f"gpt-4o?fault={fault}&fault_after={after}", stream=True)
    response = await client.start("POST", _PATH, KEY, body)
    await response.read_end()
    assert (len(response.events()), response.truncated) == (events, True)


@pytest.mark.parametrize("fault", ["stall&fault_after=2", "hang"])
async def test_silent_upstream_stays_in_flight_until_its_client_leaves(
    client: RawClient, mock: MockUpstream, fault: str
) -> None:
    """A stalled or hanging call is in flight, and its end counts as aborted."""
    response = await client.start("POST", _PATH, KEY, make_chat(f"gpt-4o?fault={fault}", stream=True))
    if fault.startswith("stall"):
        await response.read_until(b"\n\n")
        await response.read_until(b"\n\n")
    await wait_until(lambda: mock.calls == 1, "the call arrived")
    assert (mock.in_flight, mock.aborted) == (1, 0)
    await client.close()
    await wait_until(lambda: mock.aborted == 1, "the abort was counted")
    assert (mock.in_flight, mock.open_connections, response.ended) == (0, 0, False)


async def test_error_event_ends_the_stream_cleanly_without_its_terminal(client: RawClient) -> None:
    """The connection is fine; the stream is not."""
    body = make_chat("gpt-4o?fault=error_event&fault_after=0", stream=True)
    response = await client.request("POST", _PATH, KEY, body)
    assert (response.ended, len(response.events())) == (True, 1)
    assert response.events()[0].startswith(b'data: {"error":{')
    whole = await client.request("POST", _PATH, KEY, make_chat("gpt-4o?fault=error_event"))
    assert whole.status == 500


@pytest.mark.parametrize(
    ("path", "body", "terminal"),
    [
        (_PATH, make_chat("gpt-4o?fault=no_terminal", stream=True), b"[DONE]"),
        ("/v1/messages", make_chat("claude?fault=no_terminal", stream=True, max_tokens=9), b"message_stop"),
        ("/v1/responses", {"model": "gpt-5?fault=no_terminal", "input": "x", "stream": True}, b"response.completed"),
    ],
)
async def test_stream_without_its_terminal_ends_cleanly(
    client: RawClient, path: str, body: object, terminal: bytes
) -> None:
    """Only what tells the client that the stream is complete is missing."""
    response = await client.request("POST", path, KEY, body)
    assert response.ended
    assert len(response.events()) > 10
    assert terminal not in response.body


async def test_fault_limited_to_first_calls_counts_each_body_by_itself(client: RawClient, mock: MockUpstream) -> None:
    """Two bodies fail twice each, then both succeed."""
    model = "gpt-4o?fault=503&fail_first=2"
    asked = [make_chat(model, text) for text in ("a", "b", "a", "b", "a", "b")]
    statuses = [(await client.request("POST", _PATH, KEY, body)).status for body in asked]
    assert statuses == [503, 503, 503, 503, 200, 200]
    assert sorted(mock.calls_by_key.values()) == [3, 3]


async def test_fault_rate_strikes_a_repeatable_share() -> None:
    """The draw depends on the seed alone."""
    outcomes = []
    for _ in range(2):
        async with MockUpstream(MockOptions(fault_rate=0.5, seed=3)) as mock:
            client = await RawClient.connect_url(mock.url)
            bodies = [make_chat("gpt-4o?fault=500", str(i)) for i in range(40)]
            outcomes.append([(await client.request("POST", _PATH, KEY, body)).status for body in bodies])
            await client.close()
    assert outcomes[0] == outcomes[1]
    assert 8 < outcomes[0].count(500) < 32


async def test_dribbled_stream_is_the_same_stream(client: RawClient) -> None:
    """Pieces of three bytes cut events and characters, and add up to the same events."""
    plain = await client.request("POST", _PATH, KEY, make_chat("gpt-4o?tokens=60", stream=True))
    headers = [*KEY, ("x-mock-chunk-bytes", "3")]
    cut = await client.request("POST", _PATH, headers, make_chat("gpt-4o?tokens=60", stream=True))
    assert {len(chunk) for chunk in cut.chunks[:-1]} == {3}
    assert len(plain.events()) == len(cut.events()) == 63
    assert cut.body.decode() == "".join([event.decode() + "\n\n" for event in cut.events()])


async def test_compressed_answers_decompress_piece_by_piece(client: RawClient) -> None:
    """gzip is used for clients that accept it and for no others."""
    accepting = [*KEY, ("accept-encoding", "gzip")]
    body = make_chat("gpt-4o?gzip=1", stream=True)
    plain = await client.request("POST", _PATH, KEY, body)
    packed = await client.request("POST", _PATH, accepting, body)
    whole = await client.request("POST", _PATH, accepting, make_chat("gpt-4o?gzip=1"))
    assert (plain.header("content-encoding"), packed.header("content-encoding")) == (None, "gzip")
    unpacker = zlib.decompressobj(31)
    assert [unpacker.decompress(chunk).count(b"\n\n") for chunk in packed.chunks[:-1]] == [1] * 23
    assert zlib.decompress(whole.body, 31).startswith(b'{"id"')
    assert whole.header("content-length") == str(len(whole.body))


async def test_usage_switched_off_is_absent_everywhere(client: RawClient) -> None:
    """Whole and streamed answers then report none."""
    whole = await client.request("POST", _PATH, KEY, make_chat("gpt-4o?usage=0"))
    asked = make_chat("gpt-4o?usage=0", stream=True, stream_options={"include_usage": True})
    stream = await client.request("POST", _PATH, KEY, asked)
    assert "usage" not in whole.json()
    assert b"usage" not in stream.body


async def test_answers_to_one_body_are_equal_unless_told_to_vary(client: RawClient, mock: MockUpstream) -> None:
    """The text depends on the body; ids and, on request, a serial number depend on the call."""

    async def ask(text: str) -> tuple[str, str]:
        answer = (await client.request("POST", _PATH, KEY, make_chat(text=text))).json()
        return answer["id"], answer["choices"][0]["message"]["content"]

    first, second, other = await ask("a"), await ask("a"), await ask("b")
    assert (first[1] == second[1], first[1] == other[1], first[0] == second[0]) == (True, False, False)
    mock.options = MockOptions(vary=True)
    assert "of call 4 " in (await ask("a"))[1]
    assert "of call 5 " in (await ask("a"))[1]


def test_key_of_a_body_is_its_digest() -> None:
    """Tests find a body's count by this key."""
    assert key_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
