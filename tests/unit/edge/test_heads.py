"""Which heads are plain, and that each is read once."""

from __future__ import annotations

import gc

import pytest

from proxy.edge.heads import MAX_PLAIN_HEAD_BYTES, PlainHeads

BODY = b'{"model":"m"}'


CHAT = b"POST /v1/chat/completions HTTP/1.1"


def post(*lines: bytes, first: bytes = CHAT, length: bytes | None = b"13", host: bool = True) -> bytes:
    sized = [b"content-length: " + length] if length is not None else []
    return b"\r\n".join([first, *([b"host: h"] if host else []), *lines, *sized, b"", b""]) + BODY


PLAIN = {
    "as_short_as_can_be": post(),
    "an_sdk": post(b"Content-Type: application/json", b"User-Agent: OpenAI/Python 3.52.0"),
    "kept_alive": post(b"Connection: Keep-Alive"),
    "no_blank_behind_the_colon": post(b"x-one:1"),
    "punctuation_in_values": post(b'x-one: a, "b"; c=(d) \\ %'),
    "a_credential": post(b"x-api-key: k", first=b"POST /v1/messages HTTP/1.1"),
    "a_mount": post(first=b"POST /mistral/v1/fim/completions HTTP/1.1"),
    "a_query": post(first=b"POST /v1/embeddings?a=b&c=%20 HTTP/1.1"),
    "another_content_type": post(b"content-type: text/plain"),
    "an_encoded_body": post(b"content-encoding: gzip"),
    "no_bytes": post(length=b"0"),
}

ODD = {
    "another_method": post(first=b"PUT /v1/chat/completions HTTP/1.1"),
    "a_get": post(first=b"GET /v1/models HTTP/1.1"),
    "another_route": post(first=b"POST /v1/files HTTP/1.1"),
    "an_unknown_route": post(first=b"POST /v1/nowhere HTTP/1.1"),
    "a_form": post(b"content-type: multipart/form-data; boundary=b"),
    "http_1_0": post(first=b"POST /v1/chat/completions HTTP/1.0"),
    "two_blanks": post(first=b"POST  /v1/chat/completions HTTP/1.1"),
    "an_absolute_target": post(first=b"POST http://h/v1/chat/completions HTTP/1.1"),
    "a_fragment": post(first=b"POST /v1/chat/completions#f HTTP/1.1"),
    "bytes_beyond_ascii_in_the_target": post(first=b"POST /v1/chat/completions?q=\xc3\xa9 HTTP/1.1"),
    "a_line_break_in_front": b"\r\n" + post(),
    "no_host": post(host=False),
    "two_hosts": post(b"host: h"),
    "no_length": post(length=None),
    "two_lengths": post(b"content-length: 13"),
    "a_list_of_lengths": post(length=b"13, 13"),
    "a_signed_length": post(length=b"+13"),
    "a_length_in_other_digits": post(length="\u0663".encode()),
    "an_empty_length": post(length=b""),
    "a_long_length": post(length=b"0000000013"),
    "a_blank_before_the_colon": post(b"content-length : 13", length=None),
    "chunks": post(b"transfer-encoding: chunked"),
    "chunks_alone": post(b"Transfer-Encoding: chunked", length=None),
    "an_expectation": post(b"Expect: 100-continue"),
    "an_upgrade": post(b"connection: upgrade", b"upgrade: h2c"),
    "an_upgrade_without_connection": post(b"Upgrade: websocket"),
    "the_end_of_the_connection": post(b"connection: close"),
    "two_wishes_for_the_connection": post(b"connection: keep-alive, close"),
    "the_end_of_a_proxys_connection": post(b"proxy-connection: close"),
    "a_trailer": post(b"trailer: x-one"),
    "a_name_twice": post(b"x-one: 1", b"X-One: 2"),
    "two_credentials": post(b"authorization: Bearer a", b"x-api-key: b"),
    "an_empty_value": post(b"x-one:"),
    "a_blank_value": post(b"x-one:  "),
    "blanks_around_a_value": post(b"x-one:  1 "),
    "a_tab": post(b"x-one: a\tb"),
    "a_folded_line": post(b"x-one: a", b" b"),
    "a_bare_carriage_return": post(b"x-one: a\rb"),
    "a_bare_line_feed": post(b"x-one: a\nb"),
    "a_swapped_line_end": post(b"x-one: a\n\rb"),
    "a_nul": post(b"x-one: a\0b"),
    "bytes_beyond_ascii": post(b"x-one: \xc3\xa9"),
    "an_underscore": post(b"x_one: a"),
    "an_empty_name": post(b": a"),
    "no_colon": post(b"x-one"),
    "sixty_five_lines": post(*(b"x-%d: a" % number for number in range(65))),
    "a_long_head": post(b"x-one: " + b"a" * MAX_PLAIN_HEAD_BYTES),
    "half_a_head": post()[:40],
    "a_head_less_its_last_byte": post().partition(b"\r\n\r\n")[0] + b"\r\n\r",
    "nothing": b"",
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN.keys())
def test_a_plain_head_is_read(data: bytes) -> None:
    """With its length measured, and everything else as it was sent."""
    known = PlainHeads(65_536).read(data)
    assert known is not None
    head = known.head
    names = [line.partition(b":")[0].lower() for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]

    assert (head.method, head.path.startswith("/")) == ("POST", True)
    assert [name for name, _ in head.raw] == [name for name in names if name != b"content-length"]
    measured = known.measure(data)
    assert measured is not None
    length, at = measured
    assert length == (0 if b"content-length: 0\r" in data else len(BODY))
    assert data[at:] == BODY


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
def test_an_odd_head_is_left_to_others(data: bytes) -> None:
    """Whatever is not plain beyond doubt; nothing of it is remembered."""
    heads = PlainHeads(65_536)

    assert heads.read(data) is None
    assert len(heads) == 0


def test_a_head_near_the_limit_is_left_to_others() -> None:
    """Where the limit is low, it is not for the fast lane to say what is beyond it."""
    data = post(b"x-one: " + b"a" * 600)

    assert PlainHeads(1024).read(data) is None
    assert PlainHeads(2048).read(data) is not None


def test_the_same_bytes_with_another_length_are_the_same_head() -> None:
    """So that what was worked out for it once serves the next request."""
    heads = PlainHeads(65_536)
    one, other = heads.read(post(length=b"13")), heads.read(post(length=b"4096"))

    assert one is other is not None
    assert one.measure(post(length=b"0")) == (0, len(post(length=b"0")) - len(BODY))
    assert b"content-length" not in one.head.headers


def test_a_head_that_differs_in_one_byte_is_another() -> None:
    """Two credentials never meet."""
    heads = PlainHeads(65_536)
    one, other = heads.read(post(b"authorization: Bearer a")), heads.read(post(b"authorization: Bearer b"))

    assert one is not None
    assert other is not None
    assert one is not other
    assert one.measure(post(b"authorization: Bearer b")) is None
    assert (one.head.get(b"authorization"), other.head.get(b"authorization")) == (b"Bearer a", b"Bearer b")


DOUBTFUL = {
    "no_digits": post(length=b""),
    "a_sign": post(length=b"+3"),
    "a_blank": post(length=b" 3"),
    "a_blank_behind": post(length=b"3 "),
    "too_many_digits": post(length=b"1234567890"),
    "another_length_behind_it": post(length=b"3\r\ncontent-length: 4"),
    "a_line_more": post(length=b"3\r\nx-one: 1"),
    "half_of_it": post()[:-len(BODY) - 1],
}


@pytest.mark.parametrize("data", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_a_known_head_is_recognised_by_all_its_bytes(data: bytes) -> None:
    """What stands where its length was has to be a length."""
    known = PlainHeads(65_536).read(post())
    assert known is not None

    assert known.measure(data) is None


def test_a_head_goes_with_the_last_who_uses_it() -> None:
    """And with it the credential inside."""
    heads = PlainHeads(65_536)
    kept = heads.read(post(b"authorization: Bearer a"))
    dropped = heads.read(post(b"authorization: Bearer b"))
    assert (len(heads), kept is not None, dropped is not None) == (2, True, True)
    del dropped
    gc.collect()

    assert len(heads) == 1
