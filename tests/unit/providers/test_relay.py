"""Requests that go through as they are, but for a name."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from proxy.protocol.edit import edit_members, find_members, rename_model
from proxy.providers.base import Form
from proxy.providers.kinds import make_providers

PROVIDERS = make_providers()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","n":1e5}', b'{"model":"b","n":1e5}'),
        (b'{ "messages" : [{"model":"a"}] , "model" : "a" }', b'{ "messages" : [{"model":"a"}] , "model" : "b" }'),
        (b'{"x":"\\"model\\":\\"a\\"","model":"a"}', b'{"x":"\\"model\\":\\"a\\"","model":"b"}'),
        (b'{"x":"a \\\\","model":"a","y":12345678901234567890123}',
         b'{"x":"a \\\\","model":"b","y":12345678901234567890123}'),
        (b'{"mod\\u0065l":"a","metadata":{"model":"a"}}', b'{"mod\\u0065l":"b","metadata":{"model":"a"}}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b"}'),
        (b'{"model":null,"k":[1,{"a":[]}]}', b'{"model":"b","k":[1,{"a":[]}]}'),
        (b'{"k":"v"}', b'{"k":"v","model":"b"}'),
        (b"{}", b'{"model":"b"}'),
        (b'{"model":"b"}', b'{"model":"b"}'),
    ],
)
def test_another_model_changes_nothing_else(body: bytes, expected: bytes) -> None:
    """Numbers, spaces, order and what looks like the name elsewhere stay as they were."""
    assert rename_model(body, orjson.loads(body), "b") == expected


def test_a_name_in_disguise_is_the_name() -> None:
    """The upstream must not run a model that another one was paid for."""
    body = b'{"mod\\u0065l":"dear","metadata":{"model":"dear"}}'

    assert orjson.loads(rename_model(body, orjson.loads(body), "cheap"))["model"] == "cheap"


def test_members_are_set_renamed_and_added_in_one_go() -> None:
    """What is there is replaced where it stands, what is not comes last."""
    body = b'{"max_completion_tokens": 5, "model":"a", "x": [1, 2]}'
    edited = edit_members(body, {"model": "b", "y": 1}, renamed={"max_completion_tokens": "max_tokens"})

    assert edited == b'{"max_tokens": 5, "model":"b", "x": [1, 2],"y":1}'


def test_members_are_found_where_they_stand() -> None:
    """Names and values of the object itself, whatever is nested in it."""
    body = b'{"a":{"b":[",",{}]}, "c" : "}" ,"d":-1.5e3}'
    found = {name: body[spot[2] : spot[3]] for name, spot in find_members(body).items()}

    assert found == {"a": b'{"b":[",",{}]}', "c": b'"}"', "d": b"-1.5e3"}


@pytest.mark.parametrize(
    ("kind", "form", "fields", "path", "expected"),
    [
        ("openai", Form("b"), {"model": "a", "max_completion_tokens": 3}, "/v1/chat/completions",
         {"model": "b", "max_completion_tokens": 3}),
        ("compatible", Form("b"), {"model": "a", "max_completion_tokens": 3}, "/v1/chat/completions",
         {"model": "b", "max_tokens": 3}),
        ("compatible", Form("b"), {"model": "a", "max_completion_tokens": 3, "max_tokens": 4},
         "/v1/chat/completions", {"model": "b", "max_completion_tokens": 3, "max_tokens": 4}),
        ("compatible", Form("b", extra=(("top_k", 5), ("n", 1))), {"model": "a", "n": 2}, "/v1/chat/completions",
         {"model": "b", "n": 2, "top_k": 5}),
        ("azure", Form("dep 1", version="2025-04-01"), {"model": "a"},
         "/openai/deployments/dep%201/chat/completions?api-version=2025-04-01", {"model": "dep 1"}),
        ("azure", Form("b"), {"model": "a"}, "/openai/v1/chat/completions", {"model": "b"}),
        ("mistral", Form("b"), {"model": "a"}, "/v1/chat/completions", {"model": "b"}),
        ("anthropic", Form("b"), {"model": "a"}, "/v1/messages", {"model": "b"}),
        ("responses", Form("b"), {"model": "a"}, "/v1/responses", {"model": "b"}),
        ("gemini", Form("g"), {"contents": [], "stream": True}, "/v1beta/models/g:streamGenerateContent?alt=sse",
         {"contents": [], "stream": True}),
    ],
)
def test_a_target_of_the_same_wire_gets_the_callers_bytes(
    kind: str, form: Form, fields: dict[str, Any], path: str, expected: dict[str, Any]
) -> None:
    """Path and model are the target's, and what the operator adds never overrides the caller."""
    encoding = PROVIDERS[kind].relay_request(orjson.dumps(fields), fields, form)

    assert encoding.path == path
    assert orjson.loads(encoding.body) == expected
    assert encoding.reported == ()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("openai", b"authorization", b"Bearer k"),
        ("compatible", b"authorization", b"Bearer k"),
        ("mistral", b"authorization", b"Bearer k"),
        ("azure", b"api-key", b"k"),
        ("anthropic", b"x-api-key", b"k"),
        ("gemini", b"x-goog-api-key", b"k"),
        ("responses", b"authorization", b"Bearer k"),
    ],
)
def test_each_vendor_is_shown_the_key_where_it_looks(kind: str, name: bytes, value: bytes) -> None:
    """One header, and nothing else."""
    assert PROVIDERS[kind].credential("k") == [(name, value)]
