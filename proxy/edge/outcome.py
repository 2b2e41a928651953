"""What the end of an exchange is called in the books, and in whose words its client is told."""

from __future__ import annotations

from proxy.errors import Kind, ProxyError, Side
from proxy.exchange import Exchange
from proxy.protocol.routes import Dialect


def dialect_of(exchange: Exchange) -> Dialect:
    return exchange.located.dialect if exchange.located is not None else Dialect.OPENAI


def failed_outcome(error: ProxyError) -> str:
    """Of an answer that did not begin."""
    return "upstream_failed" if error.kind.side is Side.UPSTREAM else error.kind.code


def broken_outcome(error: ProxyError) -> str:
    """Of an answer that did not end as it should."""
    return "slow_reader" if error.kind is Kind.SLOW_READER else "stream_broken"
