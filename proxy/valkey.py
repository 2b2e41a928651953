"""How a Valkey or Redis server is reached, for all who keep something there: the only module that imports redis.

Import it where a server is really used: redis takes a tenth of a second to load.
"""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

__all__ = ["FAILURES", "NoScriptError", "make_client", "make_pool"]

FAILURES: Final[tuple[type[Exception], ...]] = (RedisError, OSError, TimeoutError)
"""What a call may raise when the server is away, refuses, or sends nonsense."""


def make_pool(url: str, *, max_connections: int, connect_s: float = 1.0) -> Any:
    """Connections to the server at a checked URL (`config.values.parse_cache_url`); the first is made when needed.

    Nothing is repeated and no command has a time-out of its own (that would be a task for each): the caller bounds
    the wait, and a command that is cancelled takes its connection with it, so that nobody reads another's reply.
    """
    if url.startswith("valkey"):
        url = "redis" + url.removeprefix("valkey")
    pool = ConnectionPool.from_url(
        url,
        max_connections=max_connections,
        socket_connect_timeout=connect_s,
        socket_timeout=None,
        retry=Retry(NoBackoff(), 0),
        client_name="sameflight",
        protocol=2,
    )
    if issubclass(pool.connection_class, SSLConnection):
        pool.connection_kwargs.setdefault("ssl_check_hostname", True)  # older releases do not look at the name
    return pool


def make_client(url: str, *, max_connections: int, connect_s: float = 1.0) -> Any:
    """A client with connections of its own, which its ``aclose`` closes."""
    client = Redis(connection_pool=make_pool(url, max_connections=max_connections, connect_s=connect_s))
    client.auto_close_connection_pool = True
    return client
