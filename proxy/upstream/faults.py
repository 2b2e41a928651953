"""The failures of the upstream side, worded once for both transports.

``public`` never names a host; ``detail`` does. The ``why`` of a time-out is the phase that ran out: ``connect``,
``first_byte``, ``idle`` or ``total``.
"""

from __future__ import annotations

from proxy.errors import Kind, ProxyError, Retry

_PHASES = {
    "connect": "The connection to the upstream could not be made in time.",
    "first_byte": "The upstream did not begin to answer in time.",
    "idle": "The upstream fell silent.",
    "total": "The upstream did not finish its answer in time.",
}


def timed_out(why: str, detail: str = "") -> ProxyError:
    """Only a time-out while connecting may be tried again: nothing had been sent."""
    retry = Retry.SAME if why == "connect" else Retry.NO
    return ProxyError(Kind.UPSTREAM_TIMEOUT, _PHASES[why], why=why, detail=detail, retry=retry)


def unreachable(why: str, detail: str, retry: Retry = Retry.SAME) -> ProxyError:
    """No connection came about, so nothing was sent. ``why``: ``refused``, ``reset``, ``unreachable``, ``proxy``."""
    return ProxyError(
        Kind.UPSTREAM_UNREACHABLE, "The upstream cannot be reached.", why=why, detail=detail, retry=retry
    )


def unresolved(detail: str) -> ProxyError:
    """The name has no address. Negative answers are remembered, so only another target helps."""
    return unreachable("dns", detail, Retry.OTHER)


def untrusted(detail: str) -> ProxyError:
    """The TLS handshake failed for good: certificate, name or protocol."""
    return ProxyError(
        Kind.UPSTREAM_TLS, "No trusted connection to the upstream could be made.", why="tls", detail=detail
    )


def reset(why: str, detail: str = "") -> ProxyError:
    """The connection ended while a message was owed. ``why``: ``reset`` before the head, ``truncated`` after it."""
    return ProxyError(Kind.UPSTREAM_RESET, "The upstream broke the connection.", why=why, detail=detail)


def bad_response(why: str, detail: str = "") -> ProxyError:
    """What came back is not a response HTTP/1.1 allows, or not one this proxy accepts."""
    return ProxyError(
        Kind.UPSTREAM_BAD_RESPONSE, "The upstream sent an invalid response.", why=why, detail=detail
    )


def too_large(limit_bytes: int) -> ProxyError:
    return ProxyError(
        Kind.UPSTREAM_TOO_LARGE, "The upstream's response is too large.", detail=f"limit {limit_bytes} bytes"
    )


def overloaded(why: str, detail: str = "") -> ProxyError:
    """No connection became free in time; the bound is ours, so another target may still have room."""
    public = "Too many requests are under way."
    return ProxyError(Kind.OVERLOADED, public, why=why, detail=detail, retry=Retry.OTHER, retry_after_s=1.0)


def draining() -> ProxyError:
    return ProxyError(Kind.DRAINING, "The proxy is shutting down.", why="transport_closed")


def malformed_request(detail: str) -> ProxyError:
    """Our own side handed over a head that would not be one request on the wire."""
    return ProxyError(Kind.BUG, "The request could not be sent.", why="malformed_request", detail=detail)


def wrong_length(detail: str) -> ProxyError:
    """A streamed body is shorter or longer than announced."""
    return ProxyError(
        Kind.BAD_REQUEST, "The request body does not have its announced length.", why="body_length", detail=detail
    )
