"""``sameflight keys`` on the database that the settings name, for both kinds of databases."""

from __future__ import annotations

import argparse
import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxy.access.token import is_key
from proxy.cli import keys

PEPPER = "a-pepper-for-tests-only"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Done]


def make_run(env: dict[str, str]) -> Run:
    """Runs one command as a process of its own would."""

    def run(*arguments: str) -> Done:
        parser = argparse.ArgumentParser()
        keys.add_parser(parser.add_subparsers())
        args = parser.parse_args(["keys", *arguments])
        out, err = io.StringIO(), io.StringIO()
        return Done(args.run(args, out, err, env), out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def run(database_url: str, tmp_path: Path) -> Run:
    """On a fresh database of either kind."""
    env = {"SAMEFLIGHT_STATE_DIR": str(tmp_path)}
    if database_url:
        env |= {"SAMEFLIGHT_DATABASE_URL": database_url, "SAMEFLIGHT_KEY_PEPPER": PEPPER}
    return make_run(env)


@pytest.fixture
def run_here(tmp_path: Path) -> Run:
    """On a file, for what has nothing to do with the database."""
    return make_run({"SAMEFLIGHT_STATE_DIR": str(tmp_path)})


ALL_FLAGS = shlex.split(
    "--tenant acme --team red --model 'gpt-4o*' --model o3 --route chat.completions --route models --tag a --tag b"
    " --requests-per-minute 60 --tokens-per-minute 1000 --concurrent 4 --budget 0.000001/day --scope team"
    " --cache off --charge split --expires 30d"
)


def test_a_key_is_made_shown_once_and_listed_without_its_text(run: Run) -> None:
    """The output of create is the key alone, ready for a variable of a shell."""
    made = run("create", "ci")
    key = made.out.strip()

    assert made.code == 0
    assert is_key(key.encode())
    listed = run("list")
    assert listed.out.count("\n") == 2
    assert " ci " in listed.out
    assert key not in listed.out + run("list", "--json").out + run("show", "ci").out
    assert run("list", "--json").json()[0]["id"] in listed.out


def test_every_field_can_be_said_and_is_shown(run: Run) -> None:
    """What goes in comes out."""
    made = run("create", "ci", *ALL_FLAGS, "--json").json()

    assert {name: made[name] for name in made.keys() - {"id", "key", "expires", "created", "version"}} == {
        "name": "ci",
        "state": "valid",
        "tenant": "acme",
        "team": "red",
        "models": ["gpt-4o*", "o3"],
        "routes": ["chat.completions", "models"],
        "limits": {"requests_per_minute": 60, "tokens_per_minute": 1000, "concurrent": 4},
        "budget": {"usd": "0.000001", "period": "day"},
        "scope": "team",
        "cache": "off",
        "charge": "split",
        "tags": ["a", "b"],
        "revoked": None,
    }
    assert made["expires"] > made["created"]
    shown = run("show", made["id"], "--json").json()
    assert shown == {name: value for name, value in made.items() if name != "key"}


def test_what_is_set_changes_and_the_rest_stays(run_here: Run) -> None:
    """Lists are replaced, 'any' and 'none' and 'never' take a bound away."""
    run_here("create", "ci", *ALL_FLAGS)
    flags = shlex.split("--budget none --model any --concurrent 9 --expires never --json")
    key = run_here("set", "ci", *flags).json()

    assert (key["budget"], key["models"], key["expires"]) == (None, [], None)
    assert key["limits"] == {"requests_per_minute": 60, "tokens_per_minute": 1000, "concurrent": 9}
    assert (key["team"], key["tags"], key["scope"]) == ("red", ["a", "b"], "team")


def test_a_revoked_key_is_listed_only_when_asked_for(run_here: Run) -> None:
    """Revoking again changes nothing."""
    made = run_here("create", "ci", "--json").json()
    assert "revoked" in run_here("revoke", "ci").out
    first = run_here("show", made["id"], "--json").json()
    run_here("revoke", made["id"])

    assert run_here("show", made["id"], "--json").json() == first
    assert first["state"] == "revoked"
    assert run_here("list", "--json").json() == []
    assert len(run_here("list", "--revoked", "--json").json()) == 1


def test_a_rotated_key_has_its_name_and_rights_and_the_old_one_ends(run: Run) -> None:
    """With a grace the old one works on under another name, without one it is revoked."""
    old = run("create", "ci", *ALL_FLAGS, "--json").json()
    new = run("rotate", "ci", "--grace", "24h", "--json").json()
    copied = old.keys() - {"id", "key", "created", "version"}
    assert {name: new[name] for name in copied} == {name: old[name] for name in copied}
    assert new["key"] != old["key"]
    ending = run("show", old["id"], "--json").json()
    assert (ending["state"], ending["name"] != "ci") == ("valid", True)
    assert ending["expires"] < old["expires"]

    newest = run("rotate", "ci", "--json").json()
    assert run("show", new["id"], "--json").json()["state"] == "revoked"
    assert newest["name"] == "ci"
    assert "cannot be rotated" in run("rotate", new["id"]).err


def test_a_name_is_given_once_in_a_tenant_and_to_others_again(run_here: Run) -> None:
    """A name that is not unique needs the tenant."""
    assert run_here("create", "ci").code == 0
    again = run_here("create", "ci")
    assert (again.code, again.out) == (1, "")
    assert "exists in this tenant already" in again.err
    assert run_here("create", "ci", "--tenant", "acme").code == 0
    assert "several keys are called 'ci'" in run_here("revoke", "ci").err
    assert run_here("revoke", "ci", "--tenant", "acme").code == 0
    assert [key["tenant"] for key in run_here("list", "--json").json()] == [""]


def test_keys_are_listed_by_tenant_and_team(run_here: Run) -> None:
    """Only theirs."""
    for name, tenant, team in (("a", "acme", "red"), ("b", "acme", "blue"), ("c", "other", "red")):
        run_here("create", name, "--tenant", tenant, "--team", team)

    def names(*arguments: str) -> list[str]:
        return sorted(key["name"] for key in run_here("list", "--json", *arguments).json())

    assert names("--tenant", "acme") == ["a", "b"]
    assert names("--team", "red") == ["a", "c"]
    assert names("--tenant", "acme", "--team", "red") == ["a"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "a*b"], "a star stands at the end"),
        (["--route", "chat.completion"], "did you mean 'chat.completions'"),
        (["--budget", "25/week"], "one of day, month, total"),
        (["--budget=-1/day"], "an amount of dollars"),
        (["--budget", "1e99/day"], "an amount of dollars"),
        (["--budget", "nan"], "an amount of dollars"),
        (["--concurrent=-1"], "from 0 (no limit)"),
        (["--expires", "yesterday"], "a time to come"),
        (["--expires", "2001-01-01"], "a time to come"),
        (["--scope", "team"], "must be of a team"),
        (["--tenant", "a/b"], "without a slash"),
        (["--team", "x" * 300], "printable characters"),
        (["--tag", "a\x1b[2J"], "printable characters"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_no_key_is_made(
    run_here: Run, arguments: list[str], problem: str
) -> None:
    """The text says what was expected."""
    refused = run_here("create", "ci", *arguments)

    assert (refused.code, refused.out) == (1, "")
    assert problem in refused.err
    assert run_here("list", "--json").json() == []


def test_a_key_that_does_not_exist_is_told(run_here: Run) -> None:
    """By id and by name."""
    for command in ("show", "revoke", "rotate", "set"):
        for name in ("nobody", "key_0000000000000000", "key_' OR 1=1 --"):
            refused = run_here(command, name)
            assert (refused.code, refused.out) == (1, "")
            assert "there is no key" in refused.err


def test_allowances_of_teams_and_tenants_are_kept(run: Run) -> None:
    """What is not given stays."""
    run("allowance", "set", "tenant", "acme", "--budget", "100/month", "--requests-per-minute", "600")
    run("allowance", "set", "team", "acme/red", "--concurrent", "3")
    changed = run("allowance", "set", "tenant", "acme", "--concurrent", "7", "--json").json()

    assert changed["budget"] == {"usd": "100", "period": "month"}
    assert changed["limits"] == {"requests_per_minute": 600, "tokens_per_minute": 0, "concurrent": 7}
    assert [(each["kind"], each["name"]) for each in run("allowance", "list", "--json").json()] == [
        ("team", "acme/red"),
        ("tenant", "acme"),
    ]
    assert "acme/red" in run("allowance", "list").out
    assert "tenant/team" in run("allowance", "set", "team", "red").err
    assert "tenant/team" in run("allowance", "set", "tenant", "acme/red").err


def test_a_database_that_cannot_be_reached_is_told_without_its_password(tmp_path: Path) -> None:
    """Exit code 1, one line."""
    url = "postgresql://me:hunter2@127.0.0.1:1/nowhere"
    failed = make_run({"SAMEFLIGHT_STATE_DIR": str(tmp_path), "SAMEFLIGHT_DATABASE_URL": url})("list")

    assert (failed.code, failed.out) == (1, "")
    assert "does not answer" in failed.err
    assert "hunter2" not in failed.err


def test_a_pepper_that_is_too_short_makes_no_keys(tmp_path: Path) -> None:
    """Nor does an empty file of one."""
    empty = tmp_path / "pepper"
    empty.write_text("")
    for env in ({"SAMEFLIGHT_KEY_PEPPER": "short"}, {"SAMEFLIGHT_KEY_PEPPER_FILE": str(empty)}):
        failed = make_run({**env, "SAMEFLIGHT_STATE_DIR": str(tmp_path)})("create", "ci")
        assert (failed.code, failed.out) == (1, "")
        assert "at least 16" in failed.err


def test_a_pepper_of_this_machine_for_a_database_of_many_is_warned_of(tmp_path: Path, postgres_url: str) -> None:
    """Other proxies would not know the key."""
    env = {"SAMEFLIGHT_STATE_DIR": str(tmp_path), "SAMEFLIGHT_DATABASE_URL": postgres_url}
    made = make_run(env)("create", "ci")

    assert is_key(made.out.strip().encode())
    assert "SAMEFLIGHT_KEY_PEPPER" in made.err
