"""Embedding requests that become one, and the answer that becomes many again: OpenAI's form, which Mistral, Azure and
the compatible servers share.

What callers sent and what the upstream answered is cut and joined as text: no number is read and written again, so
that a vector reaches its caller bit for bit, whatever the number's spelling. The cuts are found by a scan of the
structure that passes over a whole vector at the speed of memory; texts of numbers and strings are not judged.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

_MOST_DEPTH: Final = 16
_SPACE: Final = b" \t\r\n"
_MARKS: Final = (b'"', b"{", b"[", b"}")
"""A list without these, up to its first closing bracket, consists of numbers."""
_ENDS: Final = b",]}" + _SPACE
_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = b"[]{}"


Pieces = list[bytes | memoryview]


class Portion(NamedTuple):
    """One caller's part of a merged request."""

    before: bytes
    """The body up to the value of ``input``."""
    after: bytes
    """The body from the end of that value on."""
    tokens: bool
    """Inputs are lists of token numbers, and not texts; a request holds one sort only."""
    piece: bytes
    """The inputs as they were sent, separated by commas, without brackets around them."""
    inputs: int
    """How many vectors it gets."""
    weight: int
    """Its size, as a share of which the usage is its own: bytes of UTF-8, or tokens."""


def read_portion(body: bytes) -> Portion | None:
    """What a request's body asks for. ``None`` if it cannot be merged: it is not JSON, repeats a name, has no input,
    an empty one, or one of an unknown form."""
    try:
        fields = orjson.loads(body)
        span = _read(body, _skip_space(body, 0))
    except (ValueError, IndexError):
        return None
    given = span.members.get(b"input") if span.members is not None else None
    size = _size_up(fields["input"]) if given is not None else None
    if given is None or size is None:
        return None
    inputs, weight, tokens, nested = size
    piece = body[given.start + 1 : given.end - 1] if nested else body[given.start : given.end]
    return Portion(body[: given.start], body[given.end :], tokens, piece, inputs, weight)


def _size_up(given: Any) -> tuple[int, int, bool, bool] | None:
    """(inputs, weight, whether of tokens, whether in a list) of the value of ``input``; ``None`` where that is odd
    or empty."""
    if type(given) is str:
        return (1, len(given.encode()), False, False) if given else None
    if _is_tokens(given):
        return 1, len(given), True, False
    if type(given) is not list or not given:
        return None
    if all(type(text) is str and text for text in given):
        return len(given), sum([len(text.encode()) for text in given]), False, True
    if all(_is_tokens(one) for one in given):
        return len(given), sum(map(len, given)), True, True
    return None


def _is_tokens(given: Any) -> bool:
    return type(given) is list and bool(given) and all(type(token) is int for token in given)


def merge_portions(portions: Sequence[Portion]) -> bytes:
    """The body that asks for everything; all portions have the same ``before``, ``after`` and ``tokens``."""
    first = portions[0]
    return b"%b[%b]%b" % (first.before, b",".join([portion.piece for portion in portions]), first.after)


def split_answer(body: bytes, portions: Sequence[Portion]) -> Iterator[bytes] | None:
    """One body for each portion, as if it had been asked for alone: its items with indices from 0 and its part of the
    usage; all else is everybody's. Each is made when its turn comes, as all together may take long; none of them
    fails. ``None`` if this is not an answer to exactly these inputs."""
    try:
        return _split(body, portions)
    except (ValueError, IndexError):
        return None


def _split(body: bytes, portions: Sequence[Portion]) -> Iterator[bytes]:
    answer = _read(body, _skip_space(body, 0))
    members = answer.members
    if members is None or body[answer.end :].strip(_SPACE) or b"data" not in members:
        raise ValueError("no embeddings")
    data, usage = members[b"data"], members.get(b"usage")
    items = _in_order(body, data.elements or [])
    if len(items) != sum([portion.inputs for portion in portions]):
        raise ValueError("another number of items")
    view = memoryview(body)  # so that each vector is copied once, into its caller's body
    cuts: list[Cut] = [(data, _share_items(view, items, portions))]
    if usage is not None and usage.members:
        cuts.append((usage, _share_usage(body[usage.start : usage.end], [each.weight for each in portions])))
    cuts.sort(key=lambda cut: cut[0].start)
    return (_compose(view, cuts, number) for number in range(len(portions)))


def _compose(view: memoryview, cuts: list[Cut], number: int) -> bytes:
    """The answer with the values of the cuts replaced by those of portion ``number``."""
    pieces: Pieces = []
    at = 0
    for span, values in cuts:
        pieces.append(view[at : span.start])
        pieces += values[number]
        at = span.end
    pieces.append(view[at:])
    return b"".join(pieces)


def _in_order(body: bytes, items: list[_Span]) -> list[_Span]:
    """The items in the order of their inputs: by index, as sent where no item has one."""
    found = [item.members.get(b"index") for item in items if item.members is not None]
    if len(found) != len(items):
        raise ValueError("an item is no object")
    if not any(found):
        return items
    placed: dict[int, _Span] = {}
    for item, index in zip(items, found, strict=True):
        text = body[index.start : index.end] if index is not None else b""
        if not text.isdigit():
            raise ValueError("an item without a place")
        placed[int(text)] = item
    try:
        return [placed[number] for number in range(len(items))]
    except KeyError:
        raise ValueError("a place without an item") from None


def _share_items(view: memoryview, items: list[_Span], portions: Sequence[Portion]) -> list[Pieces]:
    """The value of ``data`` for each portion."""
    values, at = [], 0
    for portion in portions:
        value: Pieces = []
        for number, item in enumerate(items[at : at + portion.inputs]):
            value.append(b"," if number else b"[")
            index = item.members.get(b"index") if item.members is not None else None
            if index is None:
                value.append(view[item.start : item.end])
            else:
                value += (view[item.start : index.start], b"%d" % number, view[index.end : item.end])
        value.append(b"]")
        values.append(value)
        at += portion.inputs
    return values


# -- usage ---------------------------------------------------------------------------------------------------------


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of ``total`` in proportion to ``weights`` (their sum positive), by largest remainder, the first of
    equals first. The parts' sum is ``total``, and each is less than 1 from its exact share."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    left = total - sum(parts)
    if left:
        by_remainder = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
        for place in by_remainder[:left]:
            parts[place] += 1
    return parts


def _share_usage(report: bytes, weights: list[int]) -> list[Pieces]:
    """The report of the usage for each portion."""
    return [[orjson.dumps(part)] for part in _share_fields(orjson.loads(report), weights)]


def _share_fields(fields: dict[str, Any], weights: list[int]) -> list[dict[str, Any]]:
    """Whole numbers are shared out exactly, fractions (a price) in proportion; what is no number is everybody's.

    The details of a count are shared out like the count itself: no part of it then exceeds its owner's count.
    """
    shares: dict[str, list[Any]] = {}
    counts: dict[str, list[int]] = {}
    for name, value in fields.items():
        if type(value) is int:
            shares[name] = counts[name] = apportion(value, weights)
        elif type(value) is float:
            whole = sum(weights)
            shares[name] = [value * weight / whole for weight in weights]
        elif type(value) is dict:
            owner = counts.get(name.removesuffix("_details"), weights)
            shares[name] = _share_fields(value, owner if sum(owner) > 0 else weights)
        else:
            shares[name] = [value] * len(weights)
    return [{name: parts[place] for name, parts in shares.items()} for place in range(len(weights))]


# -- structure -----------------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """Where a value stands in its text, and what it consists of; lists of numbers are not looked into."""

    start: int
    end: int
    members: dict[bytes, _Span] | None = None
    """An object's."""
    elements: list[_Span] | None = None
    """Those of a list that holds more than numbers."""


Cut = tuple[_Span, list[Pieces]]
"""A value of the answer, and what stands in its place for each portion."""


def _skip_space(text: bytes, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


def _read(text: bytes, at: int, depth: int = 0) -> _Span:
    """The value that begins at ``at``. Raises ``ValueError`` or ``IndexError`` where there is none."""
    first = text[at]
    if first == _QUOTE:
        return _Span(at, _end_of_string(text, at))
    if depth > _MOST_DEPTH:
        raise ValueError("nested too deeply")
    if first == _OPEN_LIST:
        return _read_list(text, at, depth + 1)
    if first == _OPEN_OBJECT:
        return _read_object(text, at, depth + 1)
    end = at
    while text[end] not in _ENDS:
        end += 1
    if end == at:
        raise ValueError("no value")
    return _Span(at, end)


def _end_of_string(text: bytes, at: int) -> int:
    """Behind the closing quote of the string that begins at ``at``."""
    end = at
    while True:
        end = text.index(b'"', end + 1)
        before = end - 1
        while text[before] == _BACKSLASH:
            before -= 1
        if (end - before) % 2:  # an even number of backslashes in front escapes none but themselves
            return end + 1


def _read_list(text: bytes, start: int, depth: int) -> _Span:
    end = text.index(b"]", start)
    if not any(text.find(mark, start + 1, end) >= 0 for mark in _MARKS):
        return _Span(start, end + 1)
    elements = []
    at = start
    while True:
        element = _read(text, _skip_space(text, at + 1), depth)
        elements.append(element)
        at = _skip_space(text, element.end)
        if text[at] == _CLOSE_LIST:
            return _Span(start, at + 1, None, elements)
        if text[at] != _COMMA:
            raise ValueError("no comma")


def _read_object(text: bytes, start: int, depth: int) -> _Span:
    """Raises ``ValueError`` for a name that comes twice as well: readers differ in which one they believe."""
    members: dict[bytes, _Span] = {}
    at = _skip_space(text, start + 1)
    if text[at] == _CLOSE_OBJECT:
        return _Span(start, at + 1, members)
    while text[at] == _QUOTE:
        end = _end_of_string(text, at)
        name = text[at + 1 : end - 1]
        if b"\\" in name:
            name = orjson.loads(text[at:end]).encode()
        at = _skip_space(text, end)
        if text[at] != _COLON or name in members:
            raise ValueError("no value for a name, or a second one")
        value = members[name] = _read(text, _skip_space(text, at + 1), depth)
        at = _skip_space(text, value.end)
        if text[at] == _CLOSE_OBJECT:
            return _Span(start, at + 1, members)
        if text[at] != _COMMA:
            break
        at = _skip_space(text, at + 1)
    raise ValueError("no name")
