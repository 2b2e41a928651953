"""The cheapest answer there is: a whole refusal, rendered once, for when refusing is most of what the process does.

It names no request: an id would have to be made, rendered and logged, and what was refused at its head left no trace
that one could look for. It has no date either, which a 503 may leave out (RFC 9110, 6.6.1).
"""

from __future__ import annotations

from typing import Final

from proxy.edge.respond import STATUS_LINES
from proxy.errors import ProxyError
from proxy.protocol.answer import render_headers
from proxy.protocol.faults import error_body, error_headers
from proxy.protocol.routes import Dialect

_IDS: Final = (b"x-request-id", b"request-id")
_MOST: Final = 1024


class Refusals:
    """Rendered refusals by error, dialect and what becomes of the connection."""

    # Mutable state: `_made` grows by `get` up to a bound that the gate's few errors never reach.
    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[tuple[ProxyError, Dialect, bool], bytes] = {}

    def get(self, error: ProxyError, dialect: Dialect, *, closes: bool) -> bytes:
        """Status line, headers and body, the same bytes for the same error instance."""
        found = self._made.get((error, dialect, closes))
        if found is None:
            found = _render(error, dialect, closes=closes)
            if len(self._made) < _MOST:
                self._made[(error, dialect, closes)] = found
        return found


def _render(error: ProxyError, dialect: Dialect, *, closes: bool) -> bytes:
    body = error_body(error, dialect, "")
    fields = [field for field in error_headers(error, "", dialect) if field[0] not in _IDS]
    return b"%b%bcontent-length: %d\r\nconnection: %b\r\n\r\n%b" % (
        STATUS_LINES[error.kind.status],
        render_headers(fields),
        len(body),
        b"close" if closes else b"keep-alive",
        body,
    )
