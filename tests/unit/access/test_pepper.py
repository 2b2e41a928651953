"""Where the pepper comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxy.access.pepper import FILE_NAME, PepperError, load_pepper


def test_a_configured_pepper_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    """The setting wins."""
    pepper = load_pepper("a configured pepper", tmp_path)

    assert pepper.secret == b"a configured pepper"
    assert list(tmp_path.iterdir()) == []


def test_without_a_setting_a_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    """The second process reads what the first one wrote."""
    state = tmp_path / "state"
    first, second = load_pepper("", state), load_pepper("", state)

    assert first.secret == second.secret
    assert len(first.secret) == 64
    assert (state / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in state.iterdir()] == [FILE_NAME]


def test_many_that_start_at_once_agree_on_one_pepper(tmp_path: Path) -> None:
    """Whoever comes second takes the file of the first."""
    with ThreadPoolExecutor(16) as pool:
        peppers = set(pool.map(lambda _: load_pepper("", tmp_path).secret, range(64)))

    assert len(peppers) == 1


@pytest.mark.long
def test_processes_that_start_at_once_agree_on_one_pepper(tmp_path: Path) -> None:
    """The same with processes."""
    program = f"from proxy.access.pepper import load_pepper; print(load_pepper('', {str(tmp_path)!r}).secret.hex())"
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ})
        for _ in range(8)
    ]
    peppers = {each.communicate()[0] for each in started}

    assert len(peppers) == 1
    assert peppers != {b""}


def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    """A copy or a restored backup may have lost its mode."""
    load_pepper("", tmp_path)
    path = tmp_path / FILE_NAME
    path.chmod(0o644)
    load_pepper("", tmp_path)

    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "\n", "short", "   \n\n"])
def test_an_empty_or_short_pepper_file_is_refused(tmp_path: Path, text: str) -> None:
    """A truncated file must not make all keys guessable."""
    (tmp_path / FILE_NAME).write_text(text)

    with pytest.raises(PepperError, match="at least 16"):
        load_pepper("", tmp_path)


def test_a_place_that_cannot_be_written_is_told_with_its_path(tmp_path: Path) -> None:
    """The operator sees where, and never what."""
    (tmp_path / "file").write_text("")

    with pytest.raises(PepperError, match=str(tmp_path)):
        load_pepper("", tmp_path / "file")


def test_each_purpose_has_a_secret_of_its_own_and_none_is_shown(tmp_path: Path) -> None:
    """CVE-2026-114612: a secret of one domain is of no use in another."""
    pepper = load_pepper("", tmp_path)
    secrets = {pepper.secret, pepper.derive("key-snapshot"), pepper.derive("shared-keys")}

    assert len(secrets) == 3
    assert pepper.secret.decode() not in repr(pepper)
