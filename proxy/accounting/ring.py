"""Closed records that only memory has, as the disk would not take them: bounded in bytes, the oldest fall out."""

from __future__ import annotations

from collections import deque


class Ring:
    """Payloads, oldest first. Belongs to one spool."""

    # Mutable, all of it; written by the spool and its reader, on the loop.
    __slots__ = ("_limit_bytes", "_payloads", "dropped", "size_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._payloads: deque[bytes] = deque()
        self.size_bytes = 0
        self.dropped = 0
        """Records that fell out: lost."""

    def __len__(self) -> int:
        return len(self._payloads)

    def put(self, payload: bytes) -> None:
        self._payloads.append(payload)
        self.size_bytes += len(payload)
        while self.size_bytes > self._limit_bytes:
            self.pop()
            self.dropped += 1

    def first(self) -> bytes:
        """The oldest. Raises ``IndexError``."""
        return self._payloads[0]

    def pop(self) -> bytes:
        """Take the oldest out. Raises ``IndexError``."""
        payload = self._payloads.popleft()
        self.size_bytes -= len(payload)
        return payload

    def take(self, most: int) -> list[bytes]:
        """Take out up to ``most``; they are the caller's from here on."""
        return [self.pop() for _ in range(min(most, len(self._payloads)))]

    def give_back(self, payloads: list[bytes]) -> None:
        """What `take` gave and what could not be stored, to the front."""
        self._payloads.extendleft(reversed(payloads))
        self.size_bytes += sum(map(len, payloads))
