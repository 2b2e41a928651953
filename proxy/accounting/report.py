"""What production learns while it fills a flight, for everybody who accounts for a request on it."""

from __future__ import annotations

from proxy.accounting.usage import Account
from proxy.protocol.answer import AnswerHead
from proxy.protocol.usage import Usage


class Report:
    """Facts of one upstream answer. Written by production (and by the cache for a hit), read at the end.

    Times are monotonic seconds, 0.0 while unknown.
    """

    __slots__ = (
        "attempts",
        "booked",
        "ended_at",
        "head",
        "head_at",
        "paid",
        "parts",
        "remark",
        "request_sent_at",
        "started_at",
        "stored",
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
        self.stored = False
        """The answer was written to the hot cache."""
        self.remark = ""
        """Low-cardinality word for an unusual answer: ``no_terminal``, ``inband_error``, ``cut_after_end``."""

    @property
    def is_gift(self) -> bool:
        """The answer came from a cache although it went through a flight, so nobody pays for it."""
        return self.remark in _GIFTS


_GIFTS = ("shared", "stale-if-error")
