"""What production learns while it fills a flight, for everybody who accounts for a request on it."""

from __future__ import annotations

from typing import NamedTuple

from proxy.accounting.usage import Account
from proxy.config.models import ModelTarget
from proxy.config.prices import Price
from proxy.protocol.answer import AnswerHead
from proxy.protocol.usage import Usage


class Try(NamedTuple):
    """One call at one target."""

    target: str
    why: str
    """Why it was not the answer: a low-cardinality word; empty where it was."""
    sent: bool
    """The request was put on a connection there."""


class Report:
    """Facts of one upstream answer. Written by production (and by the cache for a hit), read at the end.

    Times are monotonic seconds, 0.0 while unknown.
    """

    __slots__ = (
        "answered_by",
        "attempts",
        "booked",
        "ended_at",
        "flagged",
        "head",
        "head_at",
        "left_out",
        "paid",
        "parts",
        "price",
        "relayed",
        "remark",
        "request_sent_at",
        "started_at",
        "stored",
        "tries",
        "usage",
    )

    def __init__(self, started_at: float = 0.0) -> None:
        self.started_at = started_at
        self.request_sent_at = 0.0
        self.head_at = 0.0
        self.ended_at = 0.0
        self.head: AnswerHead | None = None
        self.usage: Usage | None = None
        self.paid: Account | None = None
        """What the call cost, once it was worked out."""
        self.booked = False
        """The flight is over and its call on the books."""
        self.parts = 0
        """Among how many the call is divided, where it is (`split`)."""
        self.attempts = 0
        """Times the request was put on a connection."""
        self.tries: list[Try] = []
        """Calls that were made for it at targets of the catalog, in order; empty where it had only one place to
        go."""
        self.answered_by: ModelTarget | None = None
        """Whose answer this is; the last that was tried where there is none."""
        self.flagged: tuple[str, ...] = ()
        """Guards of the flight that found something and only say so."""
        self.left_out = ""
        """Fields of the request that had no place in the dialect of whoever answered."""
        self.price: Price | None = None
        """Of ``answered_by``."""
        self.stored = False
        """The answer was written to the hot cache."""
        self.relayed = False
        """Another process made the call, and pays for it."""
        self.remark = ""
        """Low-cardinality word for an unusual answer: ``no_terminal``, ``inband_error``, ``cut_after_end``."""

    @property
    def is_gift(self) -> bool:
        """The answer came from a cache or another process although it went through a flight: nobody pays for it."""
        return self.relayed or self.remark in _GIFTS


_GIFTS = ("shared", "stale-if-error")
