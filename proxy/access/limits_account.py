"""The state of one account: what of a key, a team or a tenant is taken in this process."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from proxy.access.budgets import Purse
from proxy.access.limits_answers import crowd_refused, rate_refused
from proxy.access.limits_bucket import Bucket
from proxy.config.keys import Limits
from proxy.errors import ProxyError

KEPT_S = 60.0
"""How long an account is remembered after its last request at least."""


class LimitOptions(NamedTuple):
    """How limits are meant."""

    burst_s: float = 60.0
    """How many seconds' worth of a limit per minute may be used at once."""
    parts: int = 1
    """Into how many processes limits are divided while these do not share them."""
    refuse_unpriced: bool = False
    """Refuse requests under a budget whose price nobody knows."""


class Level(Protocol):
    """Where processes share limits."""

    def join(self, account: Account) -> None:
        """Share this account's limits from now on."""

    def leave(self, account: Account) -> None: ...

    def make_bucket(self, account: Account, what: str, per_minute: int, options: LimitOptions) -> Bucket: ...

    def may_ask(self, account: Account, now: float) -> bool:
        """Whether asking for more slots is of any use."""


class Account:
    """One account. Its buckets and its purse change when its limits and its budget do."""

    # Mutable: running and used_at are written by the limiter and the reservations; slots by configure and by the
    # shared level; the rest by configure.
    __slots__ = (
        "_limits",
        "_options",
        "asked_slots",
        "barred_until",
        "concurrent",
        "kind",
        "level",
        "name",
        "purse",
        "renewed_at",
        "requests",
        "running",
        "slots",
        "tokens",
        "used_at",
    )

    def __init__(self, name: str, options: LimitOptions, level: Level | None, now: float = -math.inf) -> None:
        self.name = name
        self.kind = name.partition(":")[0]
        self._options = options
        self.level = level
        self._limits = Limits()
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.concurrent = 0
        self.running = 0
        self.slots = 0
        """How many may run in this process; meaningless without ``concurrent``."""
        self.asked_slots = 0
        """How many requests wait for a slot."""
        self.barred_until = -math.inf
        """Monotonic seconds before which the shared level has no more slots."""
        self.renewed_at = -math.inf
        self.purse: Purse | None = None
        self.used_at = now

    def configure(self, limits: Limits, now: float) -> None:
        """Take on limits; what was taken under the former ones stays taken."""
        if limits == self._limits:
            return
        self._limits = limits
        self.requests = self._bucket(self.requests, "requests", limits.requests_per_minute, now)
        self.tokens = self._bucket(self.tokens, "tokens", limits.tokens_per_minute, now)
        self.concurrent = limits.concurrent
        self.slots = self.own_slots
        if self.level is not None:
            self.level.join(self)

    def _bucket(self, bucket: Bucket | None, what: str, per_minute: int, now: float) -> Bucket | None:
        if per_minute <= 0:
            return None
        if bucket is not None:
            bucket.change(now, per_minute, self._options.burst_s, self._options.parts)
            return bucket
        if self.level is not None:
            return self.level.make_bucket(self, what, per_minute, self._options)
        return Bucket(per_minute, self._options.burst_s, self._options.parts)

    @property
    def own_slots(self) -> int:
        """This process's part of the concurrent requests when nobody else is asked."""
        return max(1, self.concurrent // self._options.parts) if self.concurrent else 0

    def may_ask(self, now: float) -> bool:
        return self.level is not None and self.level.may_ask(self, now)

    def cannot_share(self, now: float) -> ProxyError:
        """The refusal when others were quicker to take what the shared level had."""
        for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None and bucket.wait_s(now, 1) < 0.0:
                return rate_refused(self.kind, what, bucket.per_minute, 60.0 / bucket.per_minute)
        return crowd_refused(self.kind, self.concurrent)

    def is_idle(self, now: float) -> bool:
        """Whether forgetting it would change anything."""
        if self.running or now - self.used_at < KEPT_S or (self.purse is not None and not self.purse.is_idle):
            return False
        return all(bucket is None or bucket.is_idle(now) for bucket in (self.requests, self.tokens))

    def close(self) -> None:
        """It is forgotten."""
        if self.level is not None:
            self.level.leave(self)
