"""From the headers of a request to its principal, without waiting for anything that is in memory.

Three kinds of callers: those who bring a provider's credential, which is passed through; those who bring a
placeholder or nothing, for whom the provider key of this proxy is used; and those who bring a virtual key, which
never leaves the proxy: the provider key goes upstream for them. Two callers with different credentials get different
scopes, always over the whole credential: a prefix would put strangers together. Virtual keys may be told to share
with their team or tenant, and never beyond it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, Protocol

from proxy.access.keyring import Held, Keyring
from proxy.access.levels import unknown_key
from proxy.access.token import PREFIX
from proxy.clock import Clock
from proxy.config.keys import KeyRecord
from proxy.config.principal import Principal
from proxy.errors import Kind, ProxyError
from proxy.protocol.fingerprint import digest16
from proxy.protocol.message import HeaderList, RequestHead

_KEY_PROTOCOL: Final = b"openai-insecure-api-key."
_BEARER: Final = b"bearer "
VIRTUAL_PREFIX: Final = PREFIX
_LENGTHS: Final = Struct(">4I")


class ProviderKeys(Protocol):
    """Where the proxy's own provider keys come from: the current catalog."""

    @property
    def placeholder_keys(self) -> frozenset[bytes]:
        """Credentials that stand for "use the provider key"."""

    def provider_key(self, provider: str) -> str:
        """The key, or an empty string."""


class PendingKeyError(Exception):
    """The key is not in memory: who it stands for is known after `resolve`. Its text says nothing about the key."""

    def __init__(self, identity: Identity, token: bytes, provider: str, header: bytes, keys: ProviderKeys) -> None:
        super().__init__("the key has to be fetched")
        self._identity = identity
        self._token = token
        self._provider = provider
        self._header = header
        self._keys = keys

    async def resolve(self) -> Principal:
        """Wait for the key, once. Raises ``ProxyError``."""
        held = await self._identity.fetch(self._token)
        return self._identity.principal_of(held, self._provider, self._header, self._keys)


class Identity:
    """Authenticates one request at a time; synchronous, and stateless but for its settings and the ring."""

    __slots__ = ("_clock", "_required", "_ring", "_secret")

    def __init__(
        self, secret: bytes, *, required: bool, ring: Keyring | None = None, clock: Clock | None = None
    ) -> None:
        self._secret = secret
        self._required = required
        self._ring = ring
        self._clock = clock or Clock()

    def authenticate(self, head: RequestHead, provider: str, keys: ProviderKeys) -> Principal:
        """The principal of a request to ``provider``.

        Raises ``ProxyError`` (``INVALID_KEY``; ``AUTH_UNAVAILABLE`` when keys cannot be checked) and
        ``PendingKeyError`` for a key that has to be waited for. Where no provider key is configured for a virtual
        key, the principal ``lacks`` it; see `demand_provider_key`.
        """
        name, value = _presented(head)
        # A client without a key sends "Bearer ", of which the parser leaves "Bearer".
        token = value[7:].strip() if value[:7].lower() in (_BEARER, b"bearer") else value
        if VIRTUAL_PREFIX in value:
            if name == b"sec-websocket-protocol":
                token = value.removeprefix(_KEY_PROTOCOL)
            if token.startswith(VIRTUAL_PREFIX):
                return self._authenticate_key(token, provider, _header_for(provider, name, head), keys)
            if any(word.startswith(VIRTUAL_PREFIX) for word in value.split()):
                raise unknown_key()
        if self._required:
            raise _key_required(named=bool(token))
        own = brought = bool(token) and token not in keys.placeholder_keys
        credential: HeaderList = [(name, value)] if name else []
        if not own and (configured := keys.provider_key(provider)):
            credential = [_credential(_header_for(provider, name, head), configured)]
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
            brought=brought,
        )

    # -- virtual keys ----------------------------------------------------------------------------------------

    def _authenticate_key(self, token: bytes, provider: str, header: bytes, keys: ProviderKeys) -> Principal:
        if self._ring is None:
            raise unknown_key()
        held = self._ring.find(token, self._clock.now())
        if held is None:
            raise PendingKeyError(self, token, provider, header, keys)
        return self.principal_of(held, provider, header, keys)

    async def fetch(self, token: bytes) -> Held:
        """A key that is not in memory. Raises ``ProxyError``."""
        if self._ring is None:
            raise unknown_key()
        return await self._ring.fetch(token)

    def principal_of(self, held: Held, provider: str, header: bytes, keys: ProviderKeys) -> Principal:
        """Who a key stands for, made once for each version of the key, provider and header. ``header`` is the one
        that the provider key goes into. Raises ``ProxyError``."""
        record = held.record
        self._check(record)
        made = held.memo.get((provider, header))
        if made is None or made[0] is not keys:
            made = held.memo[provider, header] = keys, self._make_principal(record, provider, header, keys)
        principal: Principal = made[1]
        return principal

    def confirm(self, key: KeyRecord) -> None:
        """A request with this key begins, whose body may have taken its time: raise ``ProxyError`` if the key was
        revoked or expired meanwhile."""
        held = self._ring.held(key.digest) if self._ring is not None else None
        self._check(key if held is None else held.record)

    def _check(self, record: KeyRecord) -> None:
        if record.revoked_at:
            raise ProxyError(Kind.INVALID_KEY, "This Sameflight key was revoked.", why="key_revoked")
        if record.expires_at and self._clock.wall() >= record.expires_at:
            raise ProxyError(Kind.INVALID_KEY, "This Sameflight key has expired.", why="key_expired")

    def _make_principal(self, record: KeyRecord, provider: str, header: bytes, keys: ProviderKeys) -> Principal:
        configured = keys.provider_key(provider)
        credential = _credential(header, configured) if configured else (b"", b"")
        return Principal(
            scope=digest16(self._secret, b"scope", scope_of(record, provider)),
            key_id=record.id,
            credential=[credential] if configured else [],
            credential_id=digest16(self._secret, b"credential", credential[1]),
            own=False,
            lacks=not configured,
            key=record,
        )


def demand_provider_key(principal: Principal, provider: str) -> None:
    """Raise ``ProxyError(FORBIDDEN)`` if a virtual key came for a provider that has no key here."""
    if principal.lacks:
        text = f"No key for {provider} is configured here, so a Sameflight key cannot be used for it."
        raise ProxyError(Kind.FORBIDDEN, text, why="no_provider_key")


def scope_of(record: KeyRecord, provider: str) -> bytes:
    """Whose flights and cached answers a key's requests may meet, as text to be hashed: equal for two keys only if
    the operator said that they share. No credential of a caller gives the same text: its provider has no NUL."""
    parts = [each.encode() for each in (provider, *record.sharers)]
    return b"\0key" + _LENGTHS.pack(*map(len, parts)) + b"".join(parts)


def _key_required(*, named: bool) -> ProxyError:
    brought = "A credential of a provider is not accepted here: " if named else ""
    text = f"{brought}a Sameflight key (sf-…) is required, as 'Authorization: Bearer …' or 'x-api-key'."
    return ProxyError(Kind.INVALID_KEY, text[:1].upper() + text[1:], why="key_required")


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


def _header_for(provider: str, presented: bytes, head: RequestHead) -> bytes:
    """The header for the proxy's key: the one the caller's SDK uses, else the one every version of the API knows.
    Anthropic's own API takes its keys in ``x-api-key`` alone, and its SDK sends a token as a bearer."""
    if presented in (b"x-api-key", b"api-key"):
        return presented
    if provider == "anthropic" and (not presented or b"anthropic-version" in head.headers):
        return b"x-api-key"
    return b"authorization"


def _credential(header: bytes, key: str) -> tuple[bytes, bytes]:
    return header, (b"Bearer " + key.encode() if header == b"authorization" else key.encode())
