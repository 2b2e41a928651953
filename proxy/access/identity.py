"""From the headers of a request to its principal, without waiting for anything.

Three kinds of callers: those who bring a provider's credential, which is passed through; those who bring a
placeholder or nothing, for whom the provider key of this proxy is used; and those who bring a virtual key, which
never leaves the proxy. Two callers with different credentials get different scopes, always over the whole
credential: a prefix would put strangers together.
"""

from __future__ import annotations

from typing import Final, Protocol

from proxy.config.principal import Principal
from proxy.errors import Kind, ProxyError
from proxy.protocol.fingerprint import digest16
from proxy.protocol.message import HeaderList, RequestHead

_KEY_PROTOCOL: Final = b"openai-insecure-api-key."
_BEARER: Final = b"bearer "
VIRTUAL_PREFIX: Final = b"sf-"


class ProviderKeys(Protocol):
    """Where the proxy's own provider keys come from: the current catalog."""

    @property
    def placeholder_keys(self) -> frozenset[bytes]:
        """Credentials that stand for "use the provider key"."""

    def provider_key(self, provider: str) -> str:
        """The key, or an empty string."""


class Identity:
    """Authenticates one request at a time; synchronous, and stateless but for its settings."""

    __slots__ = ("_required", "_secret")

    def __init__(self, secret: bytes, *, required: bool) -> None:
        self._secret = secret
        self._required = required

    def authenticate(self, head: RequestHead, provider: str, keys: ProviderKeys) -> Principal:
        """The principal of a request to ``provider``. Raises ``ProxyError(INVALID_KEY)``."""
        name, value = _presented(head)
        # A client without a key sends "Bearer ", of which the parser leaves "Bearer".
        token = value[7:].strip() if value[:7].lower() in (_BEARER, b"bearer") else value
        if VIRTUAL_PREFIX in value and any(word.startswith(VIRTUAL_PREFIX) for word in value.split()):
            raise ProxyError(Kind.INVALID_KEY, "This Sameflight key is not known here.")
        if self._required:
            raise ProxyError(Kind.INVALID_KEY, "A Sameflight key is required here.")
        own = bool(token) and token not in keys.placeholder_keys
        credential: HeaderList = [(name, value)] if name else []
        if not own and (configured := keys.provider_key(provider)):
            credential = [_provider_header(provider, name, configured)]
        else:
            own = True  # there is nothing but what the caller brought, and be it a placeholder
        presented = digest16(self._secret, b"scope", b"%b\0%b\0%b" % (provider.encode(), name, value))
        used = digest16(self._secret, b"credential", credential[0][1] if credential else b"")
        return Principal(
            scope=presented,
            key_id=presented.hex()[:12],
            credential=credential,
            credential_id=used,
            own=own,
        )


def _presented(head: RequestHead) -> tuple[bytes, bytes]:
    headers = head.headers
    for name in (b"authorization", b"x-api-key", b"api-key"):
        value = headers.get(name)
        if value is not None:
            return name, value
    for word in headers.get(b"sec-websocket-protocol", b"").split(b","):
        if word.strip().startswith(_KEY_PROTOCOL):  # from a browser; it goes upstream where it came
            return b"sec-websocket-protocol", word.strip()
    return b"", b""


def _provider_header(provider: str, presented: bytes, key: str) -> tuple[bytes, bytes]:
    """The proxy's key, in the header the caller's SDK uses, else in the one every version of the API knows."""
    if presented == b"x-api-key" or (not presented and provider == "anthropic"):
        return b"x-api-key", key.encode()
    if presented == b"api-key":
        return presented, key.encode()
    return b"authorization", b"Bearer " + key.encode()
