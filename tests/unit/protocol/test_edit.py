"""Members of a request's text are found, changed and left out without a look at what is in the others."""

from __future__ import annotations

import orjson
import pytest

from proxy.protocol.edit import drop_members, edit_members, find_members

BODIES = [
    b"{}",
    b" { } ",
    b'{"a":1}',
    b'{"a":"}{][,:\\"","b":[{"a":"]"},[]],"c":{"b":{"c":null}}}',
    b'\r\n{ "a" :\t-1.5e300 ,\n"b" : true , "c":12345678901234567890123456789 }\n',
    '{"é":"漢","a":"😀 \u2028","b":["ü"],"漢字":{"b":"ß"}}'.encode(),
    b'{"\\u0061":"\\ud83d\\ude00","b\\"":2}',
]


@pytest.mark.parametrize("body", BODIES)
def test_every_member_is_found_where_it_stands(body: bytes) -> None:
    """Names and values are what lies between the places that are told, to the byte."""
    found = find_members(body)
    read = {
        orjson.loads(body[key_at:key_stop]): orjson.loads(body[at:stop])
        for key_at, key_stop, at, stop in found.values()
    }
    assert list(found) == list(read)
    assert read == orjson.loads(body)


@pytest.mark.parametrize("body", BODIES)
def test_what_is_changed_or_left_out_is_all_that_is(body: bytes) -> None:
    """The others keep their bytes."""
    fields = orjson.loads(body)
    assert orjson.loads(edit_members(body, {"b": [0], "new": "ñ"})) == {**fields, "b": [0], "new": "ñ"}
    assert orjson.loads(drop_members(body, ["b"])) == {name: each for name, each in fields.items() if name != "b"}
    for at, stop in [places[2:] for name, places in find_members(body).items() if name != "b"]:
        assert body[at:stop] in edit_members(body, {"b": 1})
