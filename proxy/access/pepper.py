"""The secret that digests of keys are made with, kept outside the database.

It is a setting, or else a file in the state directory that the first process makes. Whoever reads a stolen database
can do nothing with the digests in it; whoever loses the pepper has lost all keys. One secret serves one purpose:
what else needs a secret gets one that is derived under a label.
"""

from __future__ import annotations

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

FILE_NAME: Final = "key_pepper"
MIN_CHARS: Final = 16
_MODE: Final = 0o600
_MAX_BYTES: Final = 4096


class PepperError(Exception):
    """The pepper cannot be had; the text says why and never what it is."""


class Pepper(NamedTuple):
    """A secret and where it came from. Never printed: ``repr`` leaves it out."""

    secret: bytes
    path: str
    """The file it was read from; empty for a setting."""

    def derive(self, label: str) -> bytes:
        """32 bytes for another purpose. No key begins like a label, so no digest of a key equals one."""
        return hmac.digest(self.secret, b"sameflight/" + label.encode(), "sha256")

    def __repr__(self) -> str:
        return f"<Pepper from {self.path or 'the settings'}>"


def load_pepper(configured: str, state_dir: str | Path) -> Pepper:
    """The configured pepper, or the one of the state directory, which is made if there is none.

    Reads and writes files, so it belongs to the start. Raises ``PepperError``.
    """
    if configured:
        return Pepper(_checked(configured, "SAMEFLIGHT_KEY_PEPPER"), "")
    path = Path(state_dir) / FILE_NAME
    try:
        text = _read(path)
        if text is None:
            _make(path)
            text = _read(path)
    except OSError as error:
        raise PepperError(f"{path}: {error.strerror or error}") from None
    if text is None:
        raise PepperError(f"{path}: it was removed while it was read")
    return Pepper(_checked(text, str(path)), str(path))


def _checked(text: str, where: str) -> bytes:
    text = text.strip()
    if len(text) < MIN_CHARS:
        raise PepperError(f"{where}: a pepper has at least {MIN_CHARS} characters")
    return text.encode()


def _read(path: Path) -> str | None:
    """The file's text, ``None`` if there is no file. Others than the owner lose their access to it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                with suppress(OSError):  # not ours, or on a volume that does not know modes
                    os.fchmod(file.fileno(), _MODE)
            return file.read(_MAX_BYTES).decode("ascii", "replace")
    except FileNotFoundError:
        return None


def _make(path: Path) -> None:
    """Put a new pepper at ``path`` unless another process was faster: it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE_NAME}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_hex(32).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        _sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """A pepper that a power cut takes away would take all keys with it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
