"""Files that hold one credential, as Kubernetes and Docker mount them, and how a new version of a file is noticed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from proxy.config.document import Stamp
from proxy.config.values import parse_key

MAX_BYTES: Final = 65_536


def read_key_file(path: Path) -> str:
    """The credential in the file, without white space around it.

    Raises ``ValueError`` with what is wrong with the file; the text never repeats what is in it.
    """
    try:
        # What is not a plain file may never end, or never begin: a pipe waits for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("is not a plain file")
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if len(text) > MAX_BYTES:
        raise ValueError(f"is longer than {MAX_BYTES} bytes")
    if not text.strip():
        raise ValueError("is empty")
    try:
        return parse_key(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("is not a text file") from None
    except ValueError as error:
        raise ValueError(f"does not hold {error}") from None


def look_at(path: str | os.PathLike[str]) -> Stamp | None:
    """What tells one version of the file from another; ``None`` for one that is not there.

    Kubernetes swaps the symlink ``..data`` beside a mounted file; a new version may then have the size and, on a
    file system with coarse times, the time of the old one.
    """
    try:
        about = Path(path).stat()
        swapped = Path(path).parent / "..data"
        target = str(swapped.readlink()) if swapped.is_symlink() else ""
    except (OSError, ValueError):
        return None
    return str(path), target, about.st_ino, about.st_mtime_ns, about.st_size
