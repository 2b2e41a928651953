"""When to stop asking a cache that fails, and when to try it again."""

from __future__ import annotations


class Breaker:
    """Stops asking a cache that fails: ``allow_failures`` in a row open it for ``open_s``, then one call may try."""

    # Mutable: failures counts those in a row; _open_until is when asking is next allowed; _trying is set while the
    # one call after an opening is under way. Written by admit, succeed, fail, withdraw.
    __slots__ = ("_allow_failures", "_open_s", "_open_until", "_trying", "failures", "opened")

    def __init__(self, allow_failures: int = 3, open_s: float = 5.0) -> None:
        self._allow_failures = allow_failures
        self._open_s = open_s
        self._open_until = 0.0
        self._trying = False
        self.failures = 0
        self.opened = 0

    @property
    def open(self) -> bool:
        """Whether it fails so often that it is asked at most now and then."""
        return self.failures >= self._allow_failures

    def admit(self, now: float) -> bool:
        """Whether a call may be made; every admitted call must be followed by succeed, fail or withdraw."""
        if not self.open:
            return True
        if self._trying or now < self._open_until:
            return False
        self._trying = True
        return True

    def succeed(self) -> None:
        self.failures = 0
        self._trying = False

    def fail(self, now: float) -> None:
        self.failures += 1
        self._trying = False
        if self.failures >= self._allow_failures:
            self.opened += now >= self._open_until  # not once more for each call that was under way
            self._open_until = now + self._open_s

    def withdraw(self) -> None:
        """The call ended without telling anything (its caller was cancelled)."""
        self._trying = False
