"""`sameflight migrate` on each database."""

from __future__ import annotations

import io
import json
from pathlib import Path

from proxy.cli.main import make_parser
from proxy.store.schema import migrations


def migrate(env: dict[str, str], *words: str) -> tuple[int, str, str]:
    arguments = make_parser("migrate").parse_args(["migrate", *words])
    out, err = io.StringIO(), io.StringIO()
    code = arguments.run(arguments, out, err, env)
    return code, out.getvalue(), err.getvalue()


def test_a_database_is_brought_up_to_date_and_checked(database_url: str, tmp_path: Path) -> None:
    """Before it is, `--check` says what is to be done and does nothing; no password is printed."""
    env = {"SAMEFLIGHT_DATABASE_URL": database_url, "SAMEFLIGHT_STATE_DIR": str(tmp_path)}
    kind = "postgres" if database_url else "sqlite"

    code, out, err = migrate(env, "--check")
    assert (code, out) == (1, "")
    assert "run `sameflight migrate`" in err
    assert migrate(env, "--check")[0] == 1

    for words in ((), (), ("--check",)):
        code, out, err = migrate(env, *words)
        assert (code, err) == (0, "")
        assert f"schema {len(migrations(kind))}, up to date" in out
        assert "not-a-secret" not in out
    assert json.loads(migrate(env, "--json")[1]) == {"kind": kind, "schema_version": len(migrations(kind))}


def test_a_database_that_is_not_there_and_a_url_of_another_kind_are_failures() -> None:
    """Told in one line, without the password."""
    code, _, err = migrate({"SAMEFLIGHT_DATABASE_URL": "postgresql://me:pass-word@127.0.0.1:1/x"})
    assert code == 1
    assert "unavailable" in err
    assert "pass-word" not in err

    code, _, err = migrate({"SAMEFLIGHT_DATABASE_URL": "mysql://me:pass-word@127.0.0.1/x"})
    assert code == 1
    assert "postgresql://" in err
    assert "pass-word" not in err
