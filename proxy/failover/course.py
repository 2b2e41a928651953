"""One routed flight's way through its targets."""

from __future__ import annotations

from proxy.config.models import ModelTarget
from proxy.failover.upshot import Upshot
from proxy.flight.flight import Flight
from proxy.intake import Intake
from proxy.policy.plan import Plan, Routed
from proxy.providers.passage import Passages
from proxy.upstream.retries import Why


class Course:
    """One flight's way through its targets."""

    # Mutable, written by `Failover` only: what was tried, and the last failure worth telling.
    __slots__ = (
        "deadline_at",
        "flight",
        "intake",
        "made",
        "not_before",
        "order",
        "passages",
        "plan",
        "position",
        "retrying",
        "routed",
        "tried_keys",
        "upshot",
    )

    def __init__(  # noqa: PLR0917 - what it is made of
        self,
        flight: Flight,
        intake: Intake,
        routed: Routed,
        order: tuple[ModelTarget, ...],
        passages: Passages,
        deadline_at: float,
    ) -> None:
        self.flight = flight
        self.intake = intake
        self.plan: Plan = flight.work.plan
        self.routed = routed
        self.order = order
        self.position = 0
        self.passages = passages
        self.tried_keys: dict[str, tuple[str, ...]] = {}
        self.made = 0
        """Calls so far."""
        self.not_before: dict[str, float] = {}
        """By target, when it said that it wants to be asked again."""
        self.retrying: tuple[str, Why, bool] | None = None
        """The target that failed, for what, and whether it was ejected, while another attempt is made for it."""
        self.upshot: Upshot | None = None
        self.deadline_at = deadline_at

    @property
    def target(self) -> ModelTarget:
        """Whose turn it is."""
        return self.order[self.position]

    @property
    def is_last(self) -> bool:
        return self.position >= len(self.order) - 1

    def note(self, upshot: Upshot) -> None:
        """Remember what to tell if nothing better comes: what an upstream said before what kept us from asking."""
        if self.upshot is None or not upshot.free or self.upshot.free:
            self.upshot = upshot
