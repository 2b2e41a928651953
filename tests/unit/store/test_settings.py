"""Which database a process uses is a matter of one setting, which is a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.settings import SETTINGS, Settings, SettingsError, load_settings, shown
from proxy.store.open import open_store
from proxy.store.postgres import PostgresStore
from proxy.store.sqlite import SqliteStore


async def test_the_url_alone_chooses_the_database(tmp_path: Path) -> None:
    """Nothing else has to be changed to move from the file to a server."""
    assert isinstance(open_store(Settings().database_url, tmp_path), SqliteStore)
    for scheme in ("postgresql", "postgres"):
        settings = load_settings({"SAMEFLIGHT_DATABASE_URL": f" {scheme}://me:pass-word@db/x "}).settings
        assert isinstance(open_store(settings.database_url, tmp_path), PostgresStore)


def test_a_url_of_another_kind_is_refused_and_never_repeated() -> None:
    """It may hold a password: so it is no flag, and it is shown as set."""
    with pytest.raises(SettingsError) as caught:
        load_settings({"SAMEFLIGHT_DATABASE_URL": "mysql://me:pass-word@db/x"})
    [row] = [each for each in SETTINGS if each.name == "database_url"]

    assert "pass-word" not in str(caught.value)
    assert row.secret
    assert shown(row, "postgresql://me:pass-word@db/x") == "set"
