"""What is remembered of choices between tiers: so that equal requests have equal choices, a conversation does not
fall back to a simpler tier, and a user is new only once.

All of it is this process's own. Another process may choose otherwise for a user that is new to it, and only then.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

from proxy.policy.tiers import Choice

K = TypeVar("K")
V = TypeVar("V")

HELD_S: Final = 300.0
"""How long a choice and a conversation's tier are kept after they were last asked for: requests that may meet on one
flight must not see a choice end between them."""
MAX_CHOICES: Final = 10_000
MAX_CONVERSATIONS: Final = 50_000
MAX_USERS: Final = 50_000
MAX_COUNTED: Final = 1_000
"""Pairs of virtual model and tier that are counted by name; operators choose names, and may do so anew each day."""


class Asked(NamedTuple):
    """What makes two requests equal before a choice."""

    name: str
    version: int
    """Of the virtual model, as the catalog describes it."""
    unit: bytes
    tier: str
    """That the caller asked for."""
    body: int
    """Hash of the body's bytes, keyed anew in each process."""


class Conversation(NamedTuple):
    """Which one it is."""

    name: str
    unit: bytes
    asked: int
    """Hash of all that its user has said: many begin with the same words."""


class TierMemory:
    """Bounded, the least lately used go first. Times are monotonic seconds."""

    # Mutable state: the three maps, used last at the end, written here only. Counters only grow.
    __slots__ = (
        *("_choices", "_conversations", "_users"),
        *("chosen", "evicted", "most_choices", "most_conversations", "most_users", "reused"),
    )

    def __init__(
        self,
        most_choices: int = MAX_CHOICES,
        most_conversations: int = MAX_CONVERSATIONS,
        most_users: int = MAX_USERS,
    ) -> None:
        self._choices: OrderedDict[Asked, tuple[Choice, float]] = OrderedDict()
        self._conversations: OrderedDict[Conversation, tuple[int, float]] = OrderedDict()
        self._users: OrderedDict[bytes, int] = OrderedDict()
        self.most_choices = most_choices
        self.most_conversations = most_conversations
        self.most_users = most_users
        self.chosen: dict[tuple[str, str, str], int] = {}
        """Requests by virtual model, tier and mode (``acted`` or ``shadow``)."""
        self.reused = 0
        """Requests whose choice was remembered."""
        self.evicted = 0
        """What was forgotten before its time, for lack of room."""

    def find(self, asked: Asked, now: float) -> Choice | None:
        """The choice that an equal request had."""
        found = self._choices.get(asked)
        if found is None or now >= found[1]:
            return None
        self._choices[asked] = found[0], now + HELD_S
        self._choices.move_to_end(asked)
        self.reused += 1
        return found[0]

    def keep(self, asked: Asked, choice: Choice, now: float) -> None:
        self._put(self._choices, asked, (choice, now + HELD_S), self.most_choices)

    def least(self, conversation: Conversation, now: float) -> int:
        """The place of the tier that a conversation has had; 0 where it is not known."""
        found = self._conversations.get(conversation)
        return 0 if found is None or now >= found[1] else found[0]

    def rise(self, conversation: Conversation, at: int, now: float) -> None:
        """The conversation has this tier now, unless it had a higher one."""
        at = max(at, self.least(conversation, now))
        self._put(self._conversations, conversation, (at, now + HELD_S), self.most_conversations)

    def count_message(self, user: bytes) -> int:
        """One more message of a user: how many there were before."""
        seen = self._users.get(user, 0)
        self._put(self._users, user, seen + 1, self.most_users)
        return seen

    def count(self, name: str, tier: str, *, shadow: bool) -> None:
        """One more request, for the metrics."""
        labels = name, tier, "shadow" if shadow else "acted"
        if labels not in self.chosen and len(self.chosen) >= MAX_COUNTED:
            labels = "other", "other", labels[2]
        self.chosen[labels] = self.chosen.get(labels, 0) + 1

    def _put(self, held: OrderedDict[K, V], key: K, value: V, most: int) -> None:
        held[key] = value
        held.move_to_end(key)
        if len(held) > most:
            held.popitem(last=False)
            self.evicted += 1

    def sizes(self) -> dict[str, int]:
        """How much is remembered."""
        return {
            "choices": len(self._choices),
            "conversations": len(self._conversations),
            "users": len(self._users),
        }
