"""What a request may cost, said before it is made: tokens for the limits, money for the budgets.

The two are estimated differently, for they are used differently. Tokens a minute are a matter of fairness: the likely
number of input tokens (four bytes each) and all output that the caller allows. Money is a promise: no tokenizer makes
more tokens than there are bytes, so text is counted at one token a byte, and what is not spent goes back when the
answer ends. Media inside the body are far more bytes than tokens and are counted apart.

It is an upper bound where the caller bounds the output (``max_tokens`` and its kin) and sends its input with the
request. It is not where the input lies elsewhere (``previous_response_id``, files by id, images by URL, tools that
the upstream runs), nor where the output has no bound: then ``assumed_output_tokens`` stand for it, and a budget may
be overspent by the difference of the requests in the air.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from proxy.config.prices import Price
from proxy.protocol.call import Call
from proxy.protocol.routes import Route

ASSUMED_OUTPUT_TOKENS: Final = 4_096
MAX_OUTPUT_TOKENS: Final = 1_000_000
"""A greater bound is the caller's way of giving none that matters; no model produces as much."""
MAX_CHOICES: Final = 128

_BYTES_PER_TOKEN: Final = 4
_PER_TOKEN: Final = 10**6  # picodollars for each dollar of a price, which is for a million tokens
_MEDIA_TOKENS: Final = 1_000
_MEDIA_BYTES_PER_TOKEN: Final = 64
_LONG_BODY_BYTES: Final = 16 * 1024
_LONG_STRING: Final = 4 * 1024
_MAX_NODES: Final = 100_000

# The first of them that is there bounds the output of one choice.
_BOUNDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")

# Their answers have no tokens of their own.
_NO_OUTPUT: Final = frozenset(
    ("embeddings", "moderations", "rerank", "chat.moderations", "classifications", "chat.classifications")
)


class Estimate(NamedTuple):
    """What one request may cost."""

    tokens: int
    picodollars: int
    """0 where the price is not known."""
    priced: bool = True
    """``False``: it would cost something, but nobody said how much."""


NOTHING: Final = Estimate(0, 0)


def estimate(
    route: Route,
    call: Call | None,
    body_bytes: int,
    price: Price | None,
    assumed_output_tokens: int = ASSUMED_OUTPUT_TOKENS,
) -> Estimate:
    """The estimate for a request to ``route`` with a body of ``body_bytes``; ``call`` is the body if it was read."""
    if not route.reports_usage:
        return NOTHING
    text_bytes, media_tokens, caches = body_bytes, 0, False
    if call is None:
        output = 0 if route.name in _NO_OUTPUT else assumed_output_tokens
    else:
        fields, body = call.fields, call.body
        output = 0 if route.name in _NO_OUTPUT else _output_tokens(fields, assumed_output_tokens)
        text_bytes = len(body)
        if text_bytes > _LONG_BODY_BYTES:
            media_bytes, media_tokens = _media(fields)
            text_bytes -= media_bytes
        media_tokens += body.count(b'"image') * _MEDIA_TOKENS
        caches = price is not None and price.cache_write is not None and b'"cache_control"' in body
    tokens = text_bytes // _BYTES_PER_TOKEN + media_tokens + output
    if price is None:
        return Estimate(tokens, 0, priced=False)
    rate = price.input
    if caches and price.cache_write is not None and price.cache_write > rate:
        rate = price.cache_write
    # Rates have six decimals at most and the sum stays below 2^53, so that this is exact.
    money = ((text_bytes + media_tokens) * rate + output * price.output) * _PER_TOKEN
    return Estimate(tokens, round(money))


def estimate_part(part: Any, text: bytes) -> int:
    """Tokens of a part of a request (a message, its tools) with the JSON ``text``, counted as `estimate` counts the
    whole; rounded up, with what separates it from the next."""
    text_bytes, media_tokens = len(text) + 1, 0
    if text_bytes > _LONG_STRING:
        media_bytes, media_tokens = _media({"": part})
        text_bytes -= media_bytes
    return -(-text_bytes // _BYTES_PER_TOKEN) + media_tokens + text.count(b'"image') * _MEDIA_TOKENS


def _output_tokens(fields: dict[str, Any], assumed: int) -> int:
    """Most tokens of all choices together."""
    bound = assumed
    for name in _BOUNDS:
        said = fields.get(name)
        if said is not None:
            if type(said) is int and said >= 0:
                bound = min(said, MAX_OUTPUT_TOKENS)
            break
    choices = fields.get("n")
    drafts = fields.get("best_of")
    if choices is None and drafts is None:
        return bound
    return bound * max(_choices(choices), _choices(drafts))


def _choices(said: object) -> int:
    return min(max(said, 1), MAX_CHOICES) if type(said) is int else 1


def _media(fields: dict[str, Any]) -> tuple[int, int]:
    """Bytes of media in a long body, and the tokens they stand for. A body with more than a hundred thousand values
    is text as far as it was not looked at."""
    media_bytes = media_tokens = 0
    nodes: list[Any] = [fields]
    for _ in range(_MAX_NODES):
        if not nodes:
            break
        node = nodes.pop()
        if type(node) is dict:
            nodes.extend(node.values())
        elif type(node) is list:
            nodes.extend(node)
        elif type(node) is str and len(node) > _LONG_STRING and _is_encoded(node):
            media_bytes += len(node)
            media_tokens += max(_MEDIA_TOKENS, len(node) // _MEDIA_BYTES_PER_TOKEN)
    return media_bytes, media_tokens


def _is_encoded(text: str) -> bool:
    """Whether a long string is a data URL or Base64 and nothing that anybody would write: it has no space, and only
    letters of that alphabet at three places."""
    if text.startswith("data:") and ";base64," in text[:256]:
        return True
    middle = len(text) // 2
    return " " not in text and all(
        part.isascii() and part.replace("+", "").replace("/", "").replace("=", "").isalnum()
        for part in (text[:512], text[middle : middle + 512], text[-512:])
    )
