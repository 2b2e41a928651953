"""Laws of merged embedding calls: nothing is lost, nothing is altered, and everybody's part adds up."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.protocol.embeddings import Portion, apportion, merge_portions, read_portion, split_answer

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
token_lists = st.lists(st.integers(0, 200_000), min_size=1, max_size=8)
callers_of_texts = st.lists(texts | st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=12)
callers_of_tokens = st.lists(token_lists | st.lists(token_lists, min_size=1, max_size=4), min_size=1, max_size=12)
requests = callers_of_texts | callers_of_tokens

numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
vectors = st.lists(st.sampled_from(["1e-7", "-0.0", "1E5", "0.1"]) | numbers, max_size=6).map(
    lambda spelled: "[" + ", ".join(spelled) + "]"
)
packed = st.text(max_size=20).map(json.dumps)
SPACES = st.sampled_from(["", " ", "\n  "])
INDEX = re.compile(rb'("index"\s*:\s*)\d+')


def list_inputs(given_input: Any) -> list[Any]:
    """The inputs of one request, as the API's documentation counts them."""
    if isinstance(given_input, str) or isinstance(given_input[0], int):
        return [given_input]
    return list(given_input)


def split(body: bytes, portions: list[Portion]) -> list[bytes] | None:
    parts = split_answer(body, portions)
    return None if parts is None else list(parts)


@pytest.mark.long
@given(data=st.data(), asked=requests, ascii_only=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_merged_call_asks_for_all_and_its_answer_comes_apart_without_loss(
    data: st.DataObject, asked: list[Any], ascii_only: bool
) -> None:
    """The callers' items, put together, are the upstream's, byte for byte but for their indices; and so is the
    usage, to the token."""
    bodies = [json.dumps({"input": each, "model": "m"}, ensure_ascii=ascii_only).encode() for each in asked]
    portions = [portion for body in bodies if (portion := read_portion(body)) is not None]
    assert len(portions) == len(asked)

    inputs = [one for each in asked for one in list_inputs(each)]
    assert json.loads(merge_portions(portions)) == {"input": inputs, "model": "m"}

    space, tokens = data.draw(SPACES), data.draw(st.integers(0, 10**9))
    items = [
        f'{{"embedding":{space}{data.draw(vectors | packed)},{space}"index"{space}:{space}{place}{space}}}'.encode()
        for place in range(len(inputs))
    ]
    sent = data.draw(st.permutations(items))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "details": {"texts": len(inputs)}}
    answer = b'{"data":%b[%b],"usage":%b}' % (space.encode(), b",".join(sent), json.dumps(usage).encode())
    parts = split(answer, portions)

    assert parts is not None
    own, at = [], 0
    for portion, part in zip(portions, parts, strict=True):
        expected = items[at : at + portion.inputs]
        at += portion.inputs
        raw = part[part.index(b"[") + 1 : part.rindex(b'],"usage"')]
        renumbered = [INDEX.sub(rb"\g<1>%d" % place, item) for place, item in enumerate(expected)]
        own.append(raw == b",".join(renumbered))
    assert own == [True] * len(asked)
    shares = [json.loads(part)["usage"] for part in parts]
    assert sum(share["prompt_tokens"] for share in shares) == tokens
    assert all(share["prompt_tokens"] == share["total_tokens"] for share in shares)
    assert sum(share["details"]["texts"] for share in shares) == len(inputs)


@given(total=st.integers(0, 10**15), weights=st.lists(st.integers(1, 10**9), min_size=1, max_size=50))
@settings(max_examples=100, deadline=None)
def test_a_share_is_less_than_one_from_its_exact_value(total: int, weights: list[int]) -> None:
    """And the sum is the total."""
    parts, whole = apportion(total, weights), sum(weights)

    assert sum(parts) == total
    assert all(abs(part * whole - total * weight) < whole for part, weight in zip(parts, weights, strict=True))


@given(body=st.binary(max_size=60) | st.text('{}[]",:\\ 01aedinx', max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_the_readers_raise(body: bytes) -> None:
    """What cannot be read is answered with ``None``."""
    portion = read_portion(b'{"input":"a"}')
    assert portion is not None

    read_portion(body)
    for text in (body, b'{"data":[{%b}]}' % body, b'{"data":[{"index":0}],"usage":{%b}}' % body):
        parts = split(text, [portion])
        assert parts is None or len(parts) == 1
