"""Guards as the catalog describes them: what is looked for, where, when, and what happens then.

Immutable. `guard.compile` makes the checks of them; a caller's guards are chosen when its head is first seen
(`policy.policies`), never on the way of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

MODES: Final = ("before", "during", "after")
ACTIONS: Final = ("block", "redact", "flag")
BUILT_IN_KINDS: Final = (
    *("personal_data", "secrets", "words", "expressions", "injection", "topics"),
    *("size", "schema"),
)  # fmt: skip
REMOTE_KINDS: Final = ("webhook", "moderation")
"""Asked over the network."""
PERSONAL_DATA: Final = (
    *("mail", "phone", "card", "iban", "us_ssn", "uk_nino", "uk_nhs", "fr_nir", "de_tax_id", "es_dni"),
    *("it_codice_fiscale", "nl_bsn", "be_rrn", "pl_pesel", "ch_ahv", "se_personnummer", "br_cpf", "ca_sin"),
    *("in_aadhaar",),
)  # fmt: skip
"""What the kind ``personal_data`` may look for."""
SECRETS: Final = (
    *("anthropic_key", "openai_key", "aws_key", "aws_secret", "github_token", "gitlab_token", "slack_token"),
    *("slack_webhook", "google_key", "google_token", "google_secret", "stripe_key", "stripe_secret"),
    *("huggingface_token", "npm_token", "pypi_token", "sendgrid_key", "twilio_key", "digitalocean_token"),
    *("shopify_token", "telegram_token", "azure_key", "groq_key", "xai_key", "vault_token", "jwt"),
    *("url_password", "private_key"),
)  # fmt: skip
"""What the kind ``secrets`` may look for."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One guard. Times in seconds."""

    name: str
    kind: str
    """What is looked for: see `config.guard_file`."""
    mode: str
    """``before``: the request, before the upstream is asked. ``during``: the request, beside the upstream's call,
    whose bytes are held until the verdict. ``after``: the answer."""
    action: str = "block"
    """``block``, ``redact`` (not by remote guards, nor ``during``) or ``flag``."""
    fail_open: bool = False
    """What becomes of a request or an answer that could not be checked: let through, or blocked."""
    timeout_s: float = 1.0
    tenants: frozenset[str] = frozenset()
    """Whom it guards; all of these empty: everybody."""
    keys: frozenset[str] = frozenset()
    routes: frozenset[str] = frozenset()
    options: tuple[tuple[str, Any], ...] = ()
    """By the kind; hashable."""

    @property
    def is_remote(self) -> bool:
        return self.kind in REMOTE_KINDS

    def option(self, name: str, default: Any = None) -> Any:
        return next((value for each, value in self.options if each == name), default)

    def spell(self) -> str:
        """All of it as text, the same in every process: sets have no order of their own."""
        subjects = [sorted(each) for each in (self.tenants, self.keys, self.routes)]
        said = (self.name, self.kind, self.mode, self.action, self.fail_open, self.timeout_s)
        return repr((said, subjects, self.options))


@dataclass(frozen=True, slots=True)
class GuardSet:
    """The guards of one caller on one route, none of them twice. Equal sets have equal digests."""

    before: tuple[Guard, ...] = ()
    during: tuple[Guard, ...] = ()
    after: tuple[Guard, ...] = ()
    digest: bytes = field(init=False, default=b"")
    """8 bytes, part of the fingerprint: what one set let pass is no answer under another."""

    def __post_init__(self) -> None:
        stages = (self.before, self.during, self.after)
        said = repr([[guard.spell() for guard in guards] for guards in stages]).encode()
        object.__setattr__(self, "digest", blake2b(said, digest_size=8, person=b"sf/guards").digest())


def make_guard_set(guards: Sequence[Guard]) -> GuardSet | None:
    """``None`` for none."""
    if not guards:
        return None
    before, during, after = (tuple(guard for guard in guards if guard.mode == mode) for mode in MODES)
    return GuardSet(before, during, after)
