"""Classes of answers by how long they stay true, and the rules that tell them apart.

Immutable. `config.cache_class_file` makes them of the catalog file, `policy.cache_classes` chooses one for a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from proxy.linear import ExpressionSet

CALLER: Final = "caller"
USER: Final = "user"
SCOPES: Final = (CALLER, USER)


@dataclass(frozen=True, slots=True)
class CacheClass:
    """How answers of one class are kept. Times in seconds."""

    name: str
    ttl_s: float
    """0: never kept, whatever the route says, unless the request itself asks for it."""
    scope: str = CALLER
    """``caller`` (whatever the credential is shared with) or ``user`` (only the user whom the request names; one
    that names nobody is not kept)."""
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0

    @property
    def oldest_s(self) -> float:
        """An entry older than this is none of the class, whoever kept it: lifetimes are spread by ±10 %."""
        return 1.1 * self.ttl_s + max(self.stale_while_revalidate_s, self.stale_if_error_s)


@dataclass(frozen=True, slots=True)
class Timely:
    """Words by which a question depends on the moment it is asked."""

    words: tuple[str, ...] = ()
    """The operator's own."""
    built_in: bool = True
    """Those that come with this proxy count as well."""
    expressions: ExpressionSet | None = field(default=None, compare=False, repr=False)
    """Of all of them; ``None`` for no words."""


@dataclass(frozen=True, slots=True)
class CacheRule:
    """Which requests are of a class: those that meet every condition. ``None`` and empty: it does not matter.

    What is said of turns, tools and text is only met by conversations (`policy.turns`).
    """

    of: CacheClass
    routes: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    """One of them."""
    least_turns: int = 0
    """Messages without instructions."""
    most_turns: int | None = None
    least_chars: int = 0
    """Of the question."""
    most_chars: int | None = None
    tools: bool | None = None
    """The model may call functions, or has called some."""
    media: bool | None = None
    structured: bool | None = None
    """The answer is to follow a schema."""
    user: bool | None = None
    """It says for whom it asks."""
    timely: bool | None = None
    """The question has one of `Timely`'s words."""
    words: tuple[str, ...] = ()
    """Words or phrases of which one occurs in the question."""
    expressions: ExpressionSet | None = field(default=None, compare=False, repr=False)
    """Of ``words``."""

    @property
    def reads_conversation(self) -> bool:
        """Whether only a conversation can meet it."""
        said = (self.most_turns, self.most_chars, self.tools, self.media, self.structured, self.user, self.timely)
        return bool(self.least_turns or self.least_chars or self.words) or any(each is not None for each in said)


@dataclass(frozen=True, slots=True)
class CacheClasses:
    """All of them with their rules."""

    classes: tuple[CacheClass, ...] = ()
    rules: tuple[CacheRule, ...] = ()
    """The first that is met decides; where none is, the route does."""
    timely: Timely = field(default_factory=Timely)
