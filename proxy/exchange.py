"""One client request from acceptance to account: everything that belongs to it and to nothing else."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from itertools import count
from typing import Any, Final

from proxy.access.limits_reservation import UNLIMITED, Reservation
from proxy.accounting.report import Report
from proxy.config.principal import Principal
from proxy.errors import ProxyError
from proxy.flight.subscription import Subscription
from proxy.policy.plan import Plan
from proxy.policy.planner import Terms
from proxy.policy.shaped import Shaped
from proxy.protocol.call import Call
from proxy.protocol.message import RequestHead
from proxy.protocol.routes import Located
from proxy.upstream.base import BodySource

_NUMBER = count(1)
PROCESS_TOKEN: Final = os.urandom(6).hex()
"""Names this process in request ids, and with that in everything that belongs to them."""
_PREFIX: Final = "req_" + PROCESS_TOKEN


def make_request_id() -> str:
    """Unique over processes and restarts: a random prefix for the process and a number."""
    return f"{_PREFIX}{next(_NUMBER):08x}"


class Exchange:
    """Attributes only. The lane that accepted the request creates it, the pipeline fills it in, and it ends in
    `Pipeline.account`, exactly once."""

    __slots__ = (
        "accounted",
        "admitted_at",
        "asked",
        "body",
        "bytes_in",
        "bytes_out",
        "call",
        "detail",
        "ended_at",
        "error",
        "first_byte_at",
        "head",
        "head_out_at",
        "hit_age_s",
        "hit_ttl_s",
        "joined_at",
        "located",
        "outcome",
        "plan",
        "principal",
        "received_at",
        "released",
        "report",
        "request_id",
        "reservation",
        "role",
        "served_at",
        "shaped",
        "status",
        "subscription",
        "terms",
        "wait",
    )

    def __init__(self, head: RequestHead, received_at: float) -> None:
        self.head = head
        self.received_at = received_at
        """Monotonic seconds at which the head was complete."""
        self.request_id = make_request_id()
        self.asked = ""
        """The model as the caller named it, where the catalog may know it by another name."""
        # Filled in by admit.
        self.located: Located | None = None
        self.terms: Terms | None = None
        self.principal: Principal | None = None
        self.wait: Awaitable[None] | None = None
        """What the lane has to await before the body is let in: who the caller is has to be looked up."""
        # Filled in by the lane: the whole body, or where to read it from.
        self.body: bytes | BodySource = b""
        self.bytes_in = 0
        # Filled in by serve.
        self.served_at = 0.0
        """The whole request is there."""
        self.call: Call | None = None
        """Until it has joined."""
        self.shaped: Shaped | None = None
        """What policies made of it; ``None`` where there are none."""
        self.plan: Plan | None = None
        self.reservation: Reservation = UNLIMITED
        self.admitted_at = 0.0
        """Unix seconds at which it passed its limits; 0.0 for one that did not, which has no usage record."""
        self.subscription: Subscription | None = None
        self.report: Report | None = None
        """Of a hit; an exchange on a flight reads the flight's."""
        self.role = "none"
        """``leader``, ``follower``, ``alone``, ``hit``, ``pattern``, ``local`` or ``none``: for the log and
        ``Cache-Status``."""
        self.joined_at = 0.0
        self.hit_age_s = 0.0
        self.hit_ttl_s = 0.0
        self.detail = ""
        """``detail`` of ``Cache-Status``."""
        self.released = False
        """It waited for a flight that turned out not to be shareable."""
        # Filled in by the relay.
        self.status = 0
        self.bytes_out = 0
        self.head_out_at = 0.0
        self.first_byte_at = 0.0
        self.outcome = ""
        self.error: ProxyError | None = None
        self.accounted = False
        self.ended_at = 0.0
        """Set where the account comes later than the end."""

    def count_in(self, size: int) -> None:
        self.bytes_in += size

    @property
    def facts(self) -> Report | None:
        """What is known of the answer: the hit's report or the flight's."""
        if self.report is not None:
            return self.report
        report: Any = self.subscription.flight.report if self.subscription is not None else None
        return report if isinstance(report, Report) else None
