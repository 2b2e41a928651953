"""Embedding requests joined and their answer parted, as text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.protocol.embeddings import Portion, apportion, merge_portions, read_portion, split_answer

ITEM = b'{"object":"embedding","index":%d,"embedding":%b}'


def ask(given: Any) -> bytes:
    return json.dumps({"model": "m", "input": given, "encoding_format": "float"}).encode()


def portion(given: Any) -> Portion:
    read = read_portion(ask(given))
    assert read is not None
    return read


def reply(*vectors: bytes, usage: bytes = b'{"prompt_tokens":8,"total_tokens":8}') -> bytes:
    items = b",".join([ITEM % (index, vector) for index, vector in enumerate(vectors)])
    return b'{"object":"list","data":[%b],"model":"m-1","usage":%b}' % (items, usage)


def split(body: bytes, portions: list[Portion]) -> list[bytes] | None:
    parts = split_answer(body, portions)
    return None if parts is None else list(parts)


TWO = [portion("ab"), portion("cdefgh")]


# -- requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "inputs", "weight", "tokens"),
    [
        ("hällo", 1, 6, False),
        (["a", "bc"], 2, 3, False),
        ([1, 0, 3], 1, 3, True),
        ([[1, 0], [3]], 2, 3, True),
        ('say "hi]"\\', 1, 10, False),
    ],
)
def test_an_input_is_counted_and_weighed_by_its_sort(given: Any, inputs: int, weight: int, tokens: bool) -> None:
    """A bare list of numbers is one input of tokens; texts weigh what they have in bytes of UTF-8."""
    read = portion(given)

    assert (read.inputs, read.weight, read.tokens) == (inputs, weight, tokens)


@pytest.mark.parametrize(
    "given",
    ["", [], ["a", ""], [[]], [[1], []], ["a", [1]], [[1], 1], None, 5, {"a": 1}, [1.5], [True], [None], [["a"]]],
)
def test_an_empty_or_odd_input_is_left_alone(given: Any) -> None:
    """The upstream would refuse it, and everybody's request with it."""
    assert read_portion(ask(given)) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"input"',
        b"{",
        b'{"model":"m"}',
        b'{"input":"a","input":"b"}',
        b'{"input":"a","inp\\u0075t":"b"}',
        b'{"model":"m","model":"n","input":"a"}',
        b'{"input":"a"} x',
        b'{"input":"\xff"}',
        b"\x1f\x8b\x08",
        b'{"input":"a","x":' + b"[" * 40 + b'"y"' + b"]" * 40 + b"}",
    ],
)
def test_a_body_with_no_one_meaning_is_left_alone(body: bytes) -> None:
    """Not JSON, no input, a name twice, nested beyond reason."""
    assert read_portion(body) is None


def test_merged_requests_ask_for_all_inputs_in_order() -> None:
    """One text, a list of texts and an escaped one, whatever the spaces around them."""
    bodies = [ask("one"), ask(["two", "three"]), ask('fo"ur]')]
    portions = [read_portion(body) for body in bodies]

    merged = json.loads(merge_portions([each for each in portions if each is not None]))

    assert merged == {"model": "m", "input": ["one", "two", "three", 'fo"ur]'], "encoding_format": "float"}


def test_merged_token_lists_stay_lists_of_their_own() -> None:
    """``[1,2]`` is one input, and ``[[3],[4,5]]`` two."""
    merged = json.loads(merge_portions([portion([1, 2]), portion([[3], [4, 5]])]))

    assert merged["input"] == [[1, 2], [3], [4, 5]]


def test_requests_that_differ_beside_their_input_differ_in_their_rest() -> None:
    """What is around the input tells groups apart: model, format, dimensions, user."""
    one, other = read_portion(b'{"input":"a","dimensions":8}'), read_portion(b'{"input":"b","dimensions":9}')
    assert one is not None
    assert other is not None

    assert (one.before, one.after) == (b'{"input":', b',"dimensions":8}')
    assert other.after != one.after


# -- answers -------------------------------------------------------------------------------------------------------


def test_each_gets_its_own_numbers_as_they_were_written() -> None:
    """No number is read: exponents, signs of zero and digits beyond a double's survive."""
    first, second = b"[1e-7,-0.0,1E5]", b"[ 0.1234567890123456789012345 , 2]"

    parts = split(reply(first, second), TWO)

    assert parts == [
        reply(first, usage=b'{"prompt_tokens":2,"total_tokens":2}'),
        reply(second, usage=b'{"prompt_tokens":6,"total_tokens":6}'),
    ]


def test_items_that_came_in_another_order_find_their_callers() -> None:
    """The index says whose an item is, not its place."""
    swapped = b'{"data":[%b,%b],"usage":null}' % (ITEM % (1, b"[2]"), ITEM % (0, b'"AAA="'))

    assert split(swapped, TWO) == [
        b'{"data":[%b],"usage":null}' % (ITEM % (0, b'"AAA="')),
        b'{"data":[%b],"usage":null}' % (ITEM % (0, b"[2]")),
    ]


def test_several_inputs_of_one_caller_count_from_zero() -> None:
    """As if nobody else had asked."""
    parts = split(reply(b"[1]", b"[2]", b"[3]"), [portion("a"), portion(["b", "c"])])

    assert parts is not None
    assert [[item["index"] for item in json.loads(part)["data"]] for part in parts] == [[0], [0, 1]]
    assert json.loads(parts[1])["data"][1]["embedding"] == [3]


def test_servers_without_indices_are_taken_in_order() -> None:
    """Some compatible servers send none."""
    assert split(b' {"data":[{"embedding":[1]},{"embedding":[2]}] } \n', TWO) == [
        b' {"data":[{"embedding":[1]}] } \n',
        b' {"data":[{"embedding":[2]}] } \n',
    ]


def test_vectors_of_vectors_and_odd_members_pass_unread() -> None:
    """Strings with brackets and quotes in them, nested lists, members nobody knows."""
    odd = b'{"index": %d, "note":"\\"]}\\\\", "embedding":[[1.0,2],[3]], "x":{"y":["]",{}],"z":[]}, "n":null}'
    body = b'{"data":[%b ,\n%b],"id":"e-1"}' % (odd % 0, odd % 1)

    assert split(body, TWO) == [b'{"data":[%b],"id":"e-1"}' % (odd % 0)] * 2


def test_usage_before_the_data_is_parted_as_well() -> None:
    """Members keep their places."""
    body = b'{"usage":{"total_tokens":4},"data":[{"index":0},{"index":1}]}'

    assert split(body, TWO) == [
        b'{"usage":{"total_tokens":1},"data":[{"index":0}]}',
        b'{"usage":{"total_tokens":3},"data":[{"index":0}]}',
    ]


def test_counts_are_parted_exactly_and_prices_in_proportion() -> None:
    """What is no number is everybody's."""
    usage = b'{"prompt_tokens":9,"cost":0.5,"seconds":null,"free":true}'

    parts = split(reply(b"[1]", b"[2]", b"[3]", usage=usage), [portion("a"), portion("b"), portion("cc")])

    assert parts is not None
    rest = {"seconds": None, "free": True}
    assert [json.loads(part)["usage"] for part in parts] == [
        {"prompt_tokens": 2, "cost": 0.125, **rest},
        {"prompt_tokens": 2, "cost": 0.125, **rest},
        {"prompt_tokens": 5, "cost": 0.25, **rest},
    ]


@pytest.mark.parametrize(("tokens", "cached"), [(4, 3), (4, 0), (0, 0), (0, 2)])
def test_details_of_a_count_are_parted_like_the_count(tokens: int, cached: int) -> None:
    """By weights of their own, three cached tokens of four would fall to a caller that has none of the four."""
    usage = b'{"prompt_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}' % (tokens, cached)

    parts = split(reply(b"[1]", b"[2]", b"[3]", usage=usage), [portion("a"), portion("bbb"), portion("ccc")])

    assert parts is not None
    shares = [json.loads(part)["usage"] for part in parts]
    given = [share["prompt_tokens"] for share in shares]
    inside = [share["prompt_tokens_details"]["cached_tokens"] for share in shares]
    assert (sum(given), sum(inside)) == (tokens, cached)
    assert cached > tokens or all(part <= whole for part, whole in zip(inside, given, strict=True))


@pytest.mark.parametrize(
    "usage", [b"null", b"{}", b'{"prompt_tokens":null,"prompt_tokens_details":{"cached_tokens":null}}']
)
def test_usage_without_counts_is_everybodys(usage: bytes) -> None:
    """There is nothing to share out."""
    parts = split(reply(b"[1]", b"[2]", usage=usage), TWO)

    assert parts == [reply(b"[1]", usage=usage), reply(b"[2]", usage=usage)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"not json",
        b'{"data":{}}',
        b'{"data":[]}',
        b'{"data":[1,2]}',
        b'{"data":["a","b"]}',
        reply(b"[1]"),
        reply(b"[1]", b"[2]", b"[3]"),
        reply(b"[1]", b"[2]")[:-1],
        reply(b"[1]", b"[2]") + b"{}",
        reply(b"[1]", b"[2]", usage=b'{"prompt_tokens":01}'),
        b'{"data":[{"index":0},{"index":0}]}',
        b'{"data":[{"index":0},{"index":2}]}',
        b'{"data":[{"index":0},{}]}',
        b'{"data":[{"index":-1},{"index":0}]}',
        b'{"data":[{"index":0},{"index":1.0}]}',
        b'{"data":[{"index":0},{"index":%b1}]}' % (b"0" * 5000),
        b'{"data":[{"index":0,"index":1},{"index":1}]}',
        b'{"data":[{"index":0},{"index":1}],"data":[]}',
        b'{"data":[{"index":0} {"index":1}]}',
        b'{"data":[{"index":0},{"index":1}',
        b'{"data":[{"index":0},{"index":}]}',
        b'{"data":[{"index":0},{"embedding":"a\\"}]}',
        b'{"data":[{"embedding":[1,}]},{"index":1}]}',
        b'{"data":' + b"[" * 5000,
    ],
)
def test_an_answer_to_something_else_is_not_parted(body: bytes) -> None:
    """Another number of items, doubtful places, no JSON."""
    assert split(body, TWO) is None


# -- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (0, [5, 1], [0, 0]),
        (2, [1, 1, 1], [1, 1, 0]),
        (7, [3], [7]),
        (10, [1, 2, 7], [1, 2, 7]),
        (1, [1, 9], [0, 1]),
    ],
)
def test_a_total_is_shared_out_to_the_last_token(total: int, weights: list[int], parts: list[int]) -> None:
    """By largest remainder, the first of equals first."""
    assert apportion(total, weights) == parts
