"""What policies made of one request, beside the plan: for its account, its log line and its answer's header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.config.guards import GuardSet
from proxy.protocol.answer import AnswerHead

if TYPE_CHECKING:
    from proxy.config.cache_classes import CacheClass


class Shaped:
    """Attributes only. Written by `shaping` while the request is planned (``flagged`` also by production), read by
    everybody else."""

    __slots__ = (
        "answer",
        "answer_tokens",
        "baseline",
        "cache_class",
        "flagged",
        "guards",
        "own",
        "pattern",
        "pruned_messages",
        "pruned_tokens",
        "shadow",
        "slimmed_tokens",
        "spared",
        "summarised",
        "tier",
        "tier_why",
        "user",
    )

    def __init__(self) -> None:
        self.pattern = ""
        """Name of the rule that answers."""
        self.answer: tuple[AnswerHead, bytes] | None = None
        """That answer."""
        self.answer_tokens = 0
        """Of that answer's text; estimated."""
        self.tier = ""
        """Chosen by complexity; in shadow mode: that would have been."""
        self.tier_why: tuple[str, ...] = ()
        """Low-cardinality reasons."""
        self.shadow = False
        """The choice was only noted."""
        self.baseline = ""
        """The model that would have answered without tiers, or in shadow mode the one that would have with them."""
        self.pruned_messages = 0
        self.pruned_tokens = 0
        """Estimated tokens that the model need not read."""
        self.summarised = False
        """What fell out stands there as a summary."""
        self.slimmed_tokens = 0
        self.cache_class: CacheClass | None = None
        self.user = ""
        """Whom the caller says it asks for."""
        self.guards: GuardSet | None = None
        self.flagged: tuple[str, ...] = ()
        """Guards that found something and were told to say so only."""
        self.own = False
        """A request of the proxy's own, such as for a summary: without policies there would be none."""
        self.spared: Any = None
        """What all this saved (`accounting.spared.Spared`); written by `policy_books` when the answer is known."""
