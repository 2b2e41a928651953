"""What single users of a scope hold in the hot cache: each a bounded part, so that nobody's answers push out the
others'. Bookkeeping only; the cache itself removes what this names."""

from __future__ import annotations

from typing import Generic, TypeVar

from proxy.cache.ring import Node, Ring

E = TypeVar("E")
Name = tuple[bytes, bytes]
"""Of the scope and of the user."""


class User(Generic[E]):
    """One user's entries, oldest first, and their weight. Written by Users only."""

    __slots__ = ("name", "order", "size_bytes")

    def __init__(self, name: Name) -> None:
        self.name = name
        self.order: Ring[Owned[E]] = Ring()
        self.size_bytes = 0


class Owned(Node, Generic[E]):
    """An entry's place among those of its user."""

    __slots__ = ("entry", "size_bytes", "user")

    def __init__(self, entry: E, user: User[E], size_bytes: int) -> None:
        self.entry = entry
        self.user = user
        self.size_bytes = size_bytes


class Users(Generic[E]):
    """All users that have an entry."""

    # Mutable state: a user is in _users while it has an entry.
    __slots__ = ("_users", "share_bytes")

    def __init__(self, share_bytes: int) -> None:
        self.share_bytes = share_bytes
        """What one may hold."""
        self._users: dict[Name, User[E]] = {}

    def __len__(self) -> int:
        return len(self._users)

    def add(self, name: Name, entry: E, size_bytes: int) -> Owned[E]:
        user = self._users.get(name)
        if user is None:
            user = self._users[name] = User(name)
        owned = Owned(entry, user, size_bytes)
        user.order.append(owned)
        user.size_bytes += size_bytes
        return owned

    def drop(self, owned: Owned[E]) -> None:
        """The entry is gone."""
        user = owned.user
        user.order.drop(owned)
        user.size_bytes -= owned.size_bytes
        if user.order.oldest is None:
            del self._users[user.name]

    def surplus(self, owned: Owned[E]) -> E | None:
        """The oldest entry of the same user, if it has too much."""
        user = owned.user
        oldest = user.order.oldest if user.size_bytes > self.share_bytes else None
        return None if oldest is None else oldest.entry
