"""Answers that depend on the request's body alone."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from proxy.cli import mock as command
from proxy.mock import MockOptions, MockUpstream
from proxy.mock.options import split_model
from tests.fakes.client import RawClient
from tests.unit.mock.asking import KEY, make_chat

_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
_RESPONSE = {"model": "gpt-4o", "input": "hello"}
_MESSAGE = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}


async def ask_twice(options: MockOptions, path: str, body: dict[str, Any]) -> list[bytes]:
    """The same body sent to two upstreams, to the second after another call."""
    bodies = []
    for others in (0, 1):
        async with MockUpstream(options) as mock, await RawClient.connect_url(mock.url) as client:
            for _ in range(others):
                await client.request("POST", "/v1/chat/completions", KEY, make_chat(text="another"))
            response = await client.request("POST", path, KEY, body)
            assert response.status == 200
            bodies.append(response.body)
    return bodies


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", make_chat()),
        ("/v1/chat/completions", make_chat(stream=True, n=2)),
        ("/v1/chat/completions", make_chat(tools=[_TOOL], tool_choice="required")),
        ("/v1/chat/completions", make_chat("mistral-small-latest", tools=[_TOOL], tool_choice="any", stream=True)),
        ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "hello"}),
        ("/v1/responses", _RESPONSE),
        ("/v1/responses", {**_RESPONSE, "stream": True}),
        ("/v1/messages", _MESSAGE),
        ("/v1/messages", {**_MESSAGE, "stream": True}),
        ("/v1/images/generations", {"model": "gpt-image-1", "prompt": "hello"}),
        ("/v1/moderations", {"input": "hello"}),
    ],
)
async def test_two_calls_of_one_body_get_the_same_bytes(path: str, body: dict[str, Any]) -> None:
    """Neither the process, nor the moment, nor the calls before it show in the answer."""
    first, second = await ask_twice(MockOptions(repeatable=True), path, body)

    assert first == second


async def test_ids_tell_calls_apart_unless_they_are_to_be_repeated() -> None:
    """A mock that always repeated itself could not show that two callers got one answer."""
    first, second = await ask_twice(MockOptions(), "/v1/chat/completions", make_chat())

    assert first != second


async def test_two_bodies_have_ids_and_times_of_their_own() -> None:
    """Repeatable is not constant."""
    async with (
        MockUpstream(MockOptions(repeatable=True)) as mock,
        await RawClient.connect_url(mock.url) as client,
    ):
        one, other = [
            (await client.request("POST", "/v1/chat/completions", KEY, make_chat(text=text))).json()
            for text in ("one", "other")
        ]

    assert one["id"] != other["id"]
    assert one["created"] != other["created"]
    assert len(one["id"]) == len("chatcmpl-") + 24


async def test_uploads_of_the_same_bytes_stay_two_files() -> None:
    """A file has a life of its own: deleting one must not delete the other."""
    form = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--x--\r\n'
    headers = [*KEY, ("content-type", "multipart/form-data; boundary=x")]
    async with (
        MockUpstream(MockOptions(repeatable=True)) as mock,
        await RawClient.connect_url(mock.url) as client,
    ):
        ids = {(await client.request("POST", "/v1/files", headers, form)).json()["id"] for _ in range(2)}

    assert len(ids) == 2


def test_one_request_may_ask_to_be_repeatable() -> None:
    """Like every property of an answer it can stand in the model's name."""
    assert split_model(MockOptions(), "gpt-4o?repeatable=1") == ("gpt-4o", MockOptions(repeatable=True))


def test_the_command_has_a_flag_for_it() -> None:
    """``sameflight mock --repeatable``."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))

    assert command.read_options(parser.parse_args(["mock", "--repeatable"])).repeatable is True
    assert command.read_options(parser.parse_args(["mock"])).repeatable is False
