"""Virtual models, which stand for others by the complexity of what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from proxy.linear import ExpressionSet

STEP_POINTS: Final = 40
"""How far tiers lie apart where the file does not say."""


@dataclass(frozen=True, slots=True)
class Points:
    """What each reason for complexity counts, at most; 0: it does not count."""

    length: int = 30
    """The question's length: all of them from ``Rules.long_chars`` on, in proportion below."""
    reasoning: int = 20
    """Each kind of word that asks for thought, up to three kinds."""
    code: int = 25
    media: int = 40
    """Images, documents, recordings."""
    tools: int = 10
    """There are functions that may be called."""
    calls: int = 20
    """Functions have been called already."""
    schema: int = 10
    """The answer is to follow a schema, or to be JSON."""
    depth: int = 20
    """The number of questions so far: all from the eleventh on, in proportion before."""
    context: int = 20
    """The length of everything that was said: all from ``Rules.long_context_chars`` on, in proportion below."""


REASONS: Final = (*(each.name for each in fields(Points)), "words", "new_user", "held", "header", "share")
"""Everything that may be given as a reason. ``words``: the operator's own; ``held``: the conversation had this tier
before; ``header``: the caller asked for it; ``share``: a share goes to another model."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How requests are scored."""

    points: Points = field(default_factory=Points)
    long_chars: int = 4_000
    long_context_chars: int = 40_000
    words: tuple[str, ...] = ()
    """The operator's words that ask for thought, as regular expressions; each that occurs counts as one kind."""
    built_in: bool = True
    """The words that come with this proxy count as well."""
    newcomer_messages: int = 0
    """So many first messages of a user count ``newcomer_points`` more."""
    newcomer_points: int = STEP_POINTS
    expressions: ExpressionSet | None = field(default=None, compare=False, repr=False)
    """Of ``words``."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One step of complexity."""

    name: str
    model: str
    """Aliases have been followed."""
    from_points: int
    """It begins there and ends where the next one begins."""
    shares: tuple[tuple[str, float], ...] = ()
    """(model, share of the users or conversations in this tier) that go elsewhere, such as to a fine-tuned model;
    together at most 1."""
    drops_tools: bool = False
    """Its requests lose their function definitions."""

    @property
    def models(self) -> tuple[str, ...]:
        return self.model, *(model for model, _ in self.shares)


@dataclass(frozen=True, slots=True)
class Tiered:
    """One virtual model."""

    name: str
    tiers: tuple[Tier, ...]
    """At least one, from the simplest to the most complex; the first begins at 0 points."""
    baseline: str
    """The model that would answer without tiers: gets everything in shadow mode, and what cannot be judged."""
    shadow: bool = False
    """Choices are noted and not acted upon."""
    heeds_header: bool = True
    """Callers may name the tier."""
    virtual: bool = True
    """There is no other model of this name."""
    rules: Rules = field(default_factory=Rules)
    version: int = field(init=False, compare=False, repr=False)
    """Another number for another description; this process's own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", hash(self))

    @property
    def models(self) -> frozenset[str]:
        """All that may answer."""
        return frozenset((self.baseline, *(model for tier in self.tiers for model in tier.models)))

    def find(self, name: str) -> int:
        """The place of a tier among ``tiers``; -1 for none."""
        return next((at for at, tier in enumerate(self.tiers) if tier.name == name), -1)


def has_virtual(tiers: Mapping[str, Tiered]) -> bool:
    """Whether callers may use a name that nothing else stands behind."""
    return any(tiered.virtual for tiered in tiers.values())
