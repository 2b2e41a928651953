"""Who a request acts for: the record that access makes, policy reads and accounting charges."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config.keys import KeyRecord
from proxy.protocol.message import HeaderList


@dataclass(frozen=True, slots=True)
class Principal:
    """One caller at one provider. Holds no secret beyond the header that is sent on."""

    scope: bytes
    """Whose flights and cache entries its requests may meet; 16 bytes."""
    key_id: str
    """Names the credential in logs: the id of a virtual key, else the start of a digest; never the credential."""
    credential: HeaderList
    """What authenticates the upstream request; empty when there is nothing to present."""
    credential_id: bytes
    """Digest of the upstream credential, for the fingerprint; 16 bytes."""
    own: bool
    """The credential is the caller's; ``False`` when the provider key of this proxy is used."""
    brought: bool = False
    """The caller brought a credential of a provider; a placeholder or nothing is none, nor is a virtual key."""
    lacks: bool = False
    """There is no provider key for the provider that was asked; another may do, if the model is routed."""
    key: KeyRecord | None = None
    """What the operator said about the virtual key that was presented; ``None`` for any other credential."""
