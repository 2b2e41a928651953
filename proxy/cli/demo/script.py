"""Who asks what, when, in a demonstration, and how many upstream calls that must cost. Pure: a seed gives one script.

Moments that matter are no points in time: a stream's late joiner comes when the first caller has read its share of
the answer. So the number of calls is known exactly, however busy the machine is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import NamedTuple

OPENAI_KEY = "sk-demo-1"
OTHER_KEY = "sk-demo-2"

_CHAT = "/v1/chat/completions"
_MESSAGES = "/v1/messages"
_LATEST_JOIN = 0.9
"""Share of a stream after which nobody joins; the rest is several events, each of which lets all of the loop run."""
_SPREAD_S = 0.01
"""Mean time between two requests that do not come at once."""
_PATIENCE_S = 0.15
_SLOW_MS = 1000.0
"""Upstream latency where callers lose patience: their retry comes long before the answer does."""


class Question(NamedTuple):
    """One request body and where it goes."""

    path: str
    model: str
    text: str
    """What the user says in it."""
    body: bytes
    streams: bool

    def compose(self, authority: str, key: str = OPENAI_KEY, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """The request as it goes on the wire (RFC 9112)."""
        credential = f"authorization: Bearer {key}"
        if self.path == _MESSAGES:
            credential = f"x-api-key: {key}\r\nanthropic-version: 2023-06-01"
        extra = "".join([f"{name}: {value}\r\n" for name, value in headers])
        head = (
            f"POST {self.path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: sameflight-demo\r\n{credential}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(self.body)}\r\n{extra}\r\n"
        )
        return head.encode() + self.body


class Ask(NamedTuple):
    """One caller with a question."""

    question: Question
    key: str = OPENAI_KEY
    headers: tuple[tuple[str, str], ...] = ()
    wait_s: float = 0.0
    """After the part began."""
    join_at: float = 0.0
    """Share of the answer that the first caller with this question has read when this one asks."""
    patience_s: float = 0.0
    """After so long without an answer the caller hangs up and asks again; 0 means never."""
    backoff_s: float = 0.0
    """Between hanging up and asking again."""


class Part(NamedTuple):
    """Callers who ask at about the same time."""

    name: str
    """For the table."""
    story: str
    """For the progress display: what they do."""
    asks: tuple[Ask, ...]
    calls: int
    """Upstream calls that this must cost."""
    latency_ms: float = 0.0
    """The upstream's time to its first byte in this part; 0 leaves it as it is."""

    @property
    def requests(self) -> int:
        """What the callers send if all goes as written; who loses patience sends twice."""
        return sum(2 if ask.patience_s else 1 for ask in self.asks)


class Script(NamedTuple):
    parts: tuple[Part, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        """Each question once, in order of appearance."""
        return tuple(dict.fromkeys(ask.question for part in self.parts for ask in part.asks))


def make_script(seed: int, crowd: int) -> Script:
    """The whole demonstration; ``crowd`` is the number of callers of each burst."""
    chance = random.Random(seed)  # noqa: S311 - moments of arrival, which must be repeatable
    return Script(
        (
            _burst(chance, crowd),
            _streams(chance, crowd),
            _retries(chance, max(1, crowd // 4)),
            _distinct(chance, crowd + crowd // 2),
            _two_keys(),
            _opted_out(),
        )
    )


def _chat(text: str, model: str = "gpt-4o-mini", *, stream: bool = False) -> Question:
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}]}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Question(_CHAT, model, text, json.dumps(body).encode(), stream)


def _message(text: str, model: str = "claude-haiku-4-5", *, stream: bool = False) -> Question:
    body: dict[str, object] = {"model": model, "max_tokens": 300, "messages": [{"role": "user", "content": text}]}
    if stream:
        body["stream"] = True
    return Question(_MESSAGES, model, text, json.dumps(body).encode(), stream)


def _burst(chance: random.Random, crowd: int) -> Part:
    questions = (
        _chat("Summarise today's incident report in three sentences."),
        _chat("Classify this ticket: 'My card was charged twice.'", "gpt-4o"),
        _message("Translate 'Please fasten your seat belts' into French."),
        _message("Which of these two contracts is the newer one?", "claude-sonnet-4-5"),
    )
    asks = [Ask(question) for question in questions for _ in range(crowd)]
    chance.shuffle(asks)
    story = f"{len(asks)} callers ask {len(questions)} questions, all at once"
    return Part("whole answers, all at once", story, tuple(asks), len(questions))


def _streams(chance: random.Random, crowd: int) -> Part:
    questions = (
        _chat("Tell me about the first flight over the Atlantic.", stream=True),
        _chat("Write a limerick about a load balancer.", "gpt-4o", stream=True),
        _message("Explain photosynthesis to a ten-year-old.", stream=True),
        _message("Draft a friendly reminder about the open invoice.", "claude-sonnet-4-5", stream=True),
    )
    asks = [Ask(question) for question in questions]
    for question in questions:
        asks += [Ask(question, join_at=chance.uniform(0.0, _LATEST_JOIN)) for _ in range(crowd - 1)]
    story = f"{len(asks)} callers stream {len(questions)} answers, joining at random moments"
    return Part("streams, joined at random moments", story, tuple(asks), len(questions))


def _retries(chance: random.Random, callers: int) -> Part:
    asks = [
        Ask(_chat(f"Plan trip number {number}."), patience_s=_PATIENCE_S, backoff_s=chance.uniform(0.05, 0.15))
        for number in range(callers)
    ]
    story = f"{callers} callers hang up on a slow upstream after {_PATIENCE_S * 1e3:.0f} ms, retry"
    return Part("hung up after 150 ms, then retried", story, tuple(asks), callers, latency_ms=_SLOW_MS)


def _distinct(chance: random.Random, callers: int) -> Part:
    asks = []
    for number in range(callers):
        make = _chat if number % 2 else _message
        asks.append(Ask(make(f"What is {number} times 7?"), wait_s=chance.uniform(0.0, callers * _SPREAD_S)))
    return Part("all different", f"{callers} callers ask {callers} different questions", tuple(asks), callers)


def _two_keys() -> Part:
    question = _chat("What did our team decide yesterday?")
    asks = [Ask(question, key) for _ in range(5) for key in (OPENAI_KEY, OTHER_KEY)]
    return Part("one question under two API keys", f"{len(asks)} callers, one question, two API keys", tuple(asks), 2)


def _opted_out() -> Part:
    question = _chat("Invent a name for a boat.")
    asks = (Ask(question, headers=(("x-sameflight-share", "off"),)),) * 5
    return Part(
        "opted out (x-sameflight-share: off)", f"{len(asks)} callers want an answer of their own", asks, len(asks)
    )


def spread(questions: Iterable[Question]) -> tuple[Ask, ...]:
    """The same questions one after another, at the pace of callers who know nothing of each other."""
    return tuple(Ask(question, wait_s=number * _SPREAD_S) for number, question in enumerate(questions))
