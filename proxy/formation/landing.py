"""How following another process's flight ends."""

from __future__ import annotations

from enum import Enum


class Landing(Enum):
    DONE = "done"
    """The answer is complete."""
    AGAIN = "again"
    """The lead is no more; nothing came of it, and another may be found or one may lead oneself."""
    ALONE = "alone"
    """Nothing came of it: the call has to be made here."""
