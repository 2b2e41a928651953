"""The strict reading of a JSON request body."""

from __future__ import annotations

import json

import pytest

from proxy.errors import Kind, ProxyError
from proxy.protocol.call import MAX_DEPTH, MAX_MODEL_CHARS, Call, parse_call
from proxy.protocol.routes import Route, Shape

CHAT = Route("chat.completions", Shape.WHOLE_OR_STREAM)
SPEECH = Route("audio.speech", Shape.BINARY)


def refused(body: bytes) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        parse_call(CHAT, body)
    return caught.value


def test_ordinary_chat_body_is_read_once_and_kept_as_it_is() -> None:
    """Bytes stay the same object, unknown members stay, and what the proxy needs is at hand."""
    body = b'{"model": "gpt-4o", "stream": true, "stream_options": {"include_usage": true}, "x_new": [1]}'
    call = parse_call(CHAT, body)
    assert call.body is body
    assert (call.model, call.streams, call.wants_usage) == ("gpt-4o", True, True)
    assert call.fields["x_new"] == [1]
    assert repr(call) == f"<Call gpt-4o {len(body)} bytes streams>"


@pytest.mark.parametrize("body", [b"{}", b'{"model":null,"stream":null,"stream_options":null}', b' {"n":1}\r\n'])
def test_absent_or_null_members_have_plain_defaults(body: bytes) -> None:
    """Null is what several SDKs send for a member that was not set."""
    call = parse_call(CHAT, body)
    assert (call.model, call.streams, call.wants_usage) == ("", False, False)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ('{"include_usage":true}', True),
        ('{"include_usage":false}', False),
        ('{"include_usage":1}', False),
        ("[]", False),
    ],
)
def test_usage_is_wanted_only_when_it_is_asked_for_in_so_many_words(options: str, wanted: bool) -> None:
    """Anything but true is left to the upstream to judge."""
    assert parse_call(CHAT, f'{{"stream_options":{options}}}'.encode()).wants_usage is wanted


@pytest.mark.parametrize(
    ("body", "streams"),
    [(b'{"stream_format":"sse"}', True), (b'{"stream_format":"audio"}', False), (b'{"stream":true}', True)],
)
def test_speech_has_a_word_of_its_own_for_streaming(body: bytes, streams: bool) -> None:
    """And only speech has it."""
    assert parse_call(SPEECH, body).streams is streams
    assert parse_call(CHAT, b'{"stream_format":"sse"}').streams is False


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"{",
        b'{"a":1}}',
        b'{"a":1} x',
        b"{}{}",
        b"{}\0",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xc0\xaf"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":01}',
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b'{"a":1}//',
        b'{"a":"\\ud800"}',
        b'{"a":"\\ud800\\u0041"}',
        b'{"a":"\\udc00"}',
        b'{"\\ud800":1}',
        b'{"a":"\x00"}',
        b'{"a":"\n"}',
    ],
)
def test_text_that_is_not_one_strict_json_object_is_refused(body: bytes) -> None:
    """Another parser might read it as something else, so it never reaches an upstream."""
    assert refused(body).kind is Kind.BAD_JSON


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"cheap","model":"dear"}',
        b'{"model":"same","model":"same"}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":[{"b":1},{"b":1,"b":1}]}',
        b'{"a" :1,\n"a"\t:2}',
        b'{"a":1,"\\u0061":2}',
        b'{"":1,"":2}',
        b'{"a:b":1,"a:b":2}',
        b'{"a":"x:y","a":2}',
        # An escaped colon in a string must not make up for the lost name's.
        b'{"a":1,"a":"\\u003a"}',
        b'{"a":1,"a":"\\u003A"}',
        b'{"a":":","a":"\\u003a\\u003a"}',
        b'{"a\\u003a":1,"a\\u003a":2}',
        b'{"a\\u003a":1,"a:":2}',
        b'{"x":"\\u003a\\"","a":1,"a":2}',
        b'{"x":"\\u003a\\\\","a":1,"a":2}',
        b'{"x":"\\\\\\"\\u003a:\\\\\\\\","a":1,"a":2}',
    ],
)
def test_duplicate_member_name_is_refused_at_any_depth_and_in_any_spelling(body: bytes) -> None:
    """The model that is billed must be the model that is asked."""
    error = refused(body)
    assert error.kind is Kind.BAD_JSON
    assert "twice" in error.public


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":":","b":"::","c:d":":{"}',
        b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}',
        b'{"a":"\\u003a","b":":"}',
        b'{"a":"\\\\u003a"}',
        b'{"a":"\\"\\u003A\\"","b":1}',
        b'{"a":"\\\\\\"\\u003a:\\\\","b":{"c":1}}',
        b'{"x":"say \\":\\" twice","y":"C:\\\\","z":1}',
        b'{"a":"\\u2028 \\u0000","b":"\xe2\x80\xa8"}',
    ],
)
def test_colons_and_equal_names_apart_are_no_duplicates(body: bytes) -> None:
    """Strings full of colons and quotes, and the same name in different objects, are everyday bodies."""
    assert parse_call(CHAT, body).fields == json.loads(body)


@pytest.mark.parametrize(("depth", "fits"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (500, False)])
@pytest.mark.parametrize("kind", ["objects", "lists", "mixed", "empty"])
def test_nesting_is_bounded(kind: str, depth: int, fits: bool) -> None:
    """At the limit it passes, one more is refused, however the levels are made."""
    pairs, odd = divmod(depth, 2)
    body = {
        "objects": '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1),
        "lists": '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}",
        "mixed": '{"a":[' * pairs + ("{}" if odd else "") + "]}" * pairs,
        "empty": '{"a":' + "[" * (depth - 2) + "{}" + "]" * (depth - 2) + "}",
    }[kind].encode()
    if fits:
        assert type(parse_call(CHAT, body)) is Call
    else:
        assert "deeper" in refused(body).public


def test_nesting_beyond_the_reader_s_own_limit_is_refused_too() -> None:
    """No depth becomes a recursion error."""
    assert refused(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}").kind is Kind.BAD_JSON


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":1}',
        b'{"model":["a"]}',
        b'{"model":true}',
        b'{"stream":1}',
        b'{"stream":"true"}',
        b'{"stream":{}}',
        json.dumps({"model": "m" * (MAX_MODEL_CHARS + 1)}).encode(),
    ],
)
def test_member_that_the_proxy_needs_with_a_wrong_type_is_refused(body: bytes) -> None:
    """Model and stream decide price and form of the answer; they are not guessed."""
    assert refused(body).kind is Kind.BAD_REQUEST


def test_refusal_says_where_and_never_what() -> None:
    """A position helps; the content may be secret."""
    error = refused(b'{"key": sk-secret-token}')
    assert "character" in error.public
    assert "secret" not in error.public


def test_one_duplicate_among_thirty_thousand_members_is_found() -> None:
    """The check is exact however large the body is."""
    members = ",".join(f'"k{number}":{{"v":":"}}' for number in range(30_000))
    assert len(parse_call(CHAT, f"{{{members}}}".encode()).fields) == 30_000
    assert refused(f'{{{members},"k17":0}}'.encode()).kind is Kind.BAD_JSON
