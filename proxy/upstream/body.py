"""Request bodies that are read while they are sent."""

from __future__ import annotations

from proxy.upstream import faults
from proxy.upstream.base import BodySource


class MeasuredBody:
    """A ``BodySource`` that is held to its announced length: a byte more would be read as another request."""

    # _left is written by read.
    __slots__ = ("_left", "_source", "length")

    def __init__(self, source: BodySource) -> None:
        self._source = source
        self.length = source.length
        self._left = source.length or 0

    async def read(self) -> bytes:
        """The next piece, ``b""`` at the end. Raises what the source raises, and ``ProxyError`` (``BAD_REQUEST``)."""
        piece = await self._source.read()
        if self.length is not None:
            self._left -= len(piece)
            if self._left < 0 or (self._left and not piece):
                raise faults.wrong_length(f"announced {self.length} bytes, off by {-self._left}")
        return piece
