"""``sameflight flags`` on the database that the settings name."""

from __future__ import annotations

import argparse
import io
import json
import os
import pwd
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxy.cli import flags, keys


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Done]


def make_run(env: dict[str, str], command: Any = flags) -> Run:
    """Runs one command as a process of its own would."""

    def run(*arguments: str) -> Done:
        parser = argparse.ArgumentParser()
        command.add_parser(parser.add_subparsers())
        args = parser.parse_args([command.__name__.rpartition(".")[2], *arguments])
        out, err = io.StringIO(), io.StringIO()
        return Done(args.run(args, out, err, env), out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"SAMEFLIGHT_STATE_DIR": str(tmp_path)}


@pytest.fixture
def run(env: dict[str, str]) -> Run:
    return make_run(env)


def test_a_flag_is_set_for_everybody_and_for_one_tenant_and_listed(run: Run) -> None:
    """With where each rule comes from."""
    assert run("set", "pruning", "off").out.splitlines() == ["change 1", "  pruning: not set → off"]
    assert run("set", "pruning", "25%", "--tenant", "acme").code == 0

    listed = run("list", "pruning")
    assert [line.split() for line in listed.out.splitlines()[1:]] == [
        ["pruning", "everybody", "off", "store", "not", "configured"],
        ["pruning", "tenant", "acme", "25%", "store", "not", "configured"],
    ]
    assert run("list", "--json").json()["version"] == 2


def test_who_changed_it_is_the_user_of_the_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not who the environment says; with when, what and why."""
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")
    run("set", "tiers", "off", "--why", "too dear")

    (change,) = run("audit", "--json").json()

    assert change["who"].startswith(f"cli:{pwd.getpwuid(os.getuid()).pw_name}@")
    assert (change["why"], change["rules"][0]["after"], change["restores"]) == ("too dear", "off", None)
    assert change["at"].startswith("20")
    assert "too dear" in run("audit", "tiers").out


def test_one_word_rolls_back_and_says_what_became_of_it(run: Run) -> None:
    """Once more goes back by another change; in the end there is nothing left."""
    run("set", "tiers", "off")
    run("set", "tiers", "50%")

    assert run("rollback").out.splitlines() == ["change 3", "  tiers: 50% → off"]
    assert run("rollback").out.splitlines() == ["change 4", "  tiers: off → not set"]
    last = run("rollback")
    assert (last.code, last.err) == (1, "sameflight flags: there is no change to roll back\n")
    assert run("rollback", "--to", "2").out.splitlines()[1] == "  tiers: not set → 50%"
    assert "(back to change 2)" in run("audit").out


def test_clearing_takes_back_one_rule_one_flag_or_all(run: Run) -> None:
    """What is cleared was set here; the file's rules stay."""
    run("set", "tiers", "off")
    run("set", "tiers", "on", "--route", "messages")
    run("set", "pruning", "off")

    assert run("clear", "tiers", "--global").out.splitlines()[1:] == ["  tiers: off → not set"]
    assert run("clear", "tiers").out.splitlines()[1:] == ["  tiers route messages: on → not set"]
    assert run("clear", "--all", "--json").json()["rules"][0]["name"] == "pruning"
    assert run("clear", "--all").out == "nothing changed\n"


def test_a_key_goes_by_its_id_or_its_name(run: Run, env: dict[str, str]) -> None:
    """A name that several keys have is no name."""
    make_keys = make_run(env, keys)
    make_keys("create", "ci")
    (key,) = make_keys("list", "--json").json()

    assert run("set", "pruning", "off", "--key", "ci", "--json").json()["rules"][0]["subject"] == key["id"]
    assert run("set", "pruning", "on", "--key", key["id"]).code == 0
    make_keys("create", "ci", "--tenant", "acme")
    assert "several keys have that name" in run("set", "pruning", "off", "--key", "ci").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "tirs", "on"), "there is no flag 'tirs' (did you mean 'tiers'?)"),
        (("set", "tiers", "25"), "expected on, off or a percentage such as 25%"),
        (("set", "tiers", "on", "--route", "chat.completion"), "(did you mean 'chat.completions'?)"),
        (("set", "tiers", "on", "--tenant", "a/b"), "a tenant has 1 to 200 printable characters"),
        (("set", "tiers", "on", "--key", "nobody"), "there is no key 'nobody'"),
        (("set", "tiers", "on", "--why", "\x1b[31m"), "why: at most 1000 printable"),
        (("list", "tirs"), "there is no flag"),
        (("audit", "--limit", "0"), "--limit is from 1"),
        (("rollback", "--to", "-1"), "--to: the number"),
        (("rollback", "--to", "9"), "there is no change 9"),
        (("clear",), "name a flag, or say --all"),
        (("clear", "tiers", "--all"), "--all stands alone"),
        (("clear", "tiers", "--global", "--tenant", "a"), "--global, or one of"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    """And leaves no trace."""
    done = run(*arguments)

    assert (done.code, done.out) == (1, "")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert run("audit", "--json").json() == []


def test_the_catalog_says_what_there_is_to_switch(run: Run, tmp_path: Path) -> None:
    """A rule of the file is shown as the file's, and a flag with nothing to switch is set with a warning."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("flags: {tiers: off}")

    done = run("set", "tiers", "on", "--config", str(catalog))
    assert (done.code, done.err) == (
        0,
        "sameflight flags: the catalog configures nothing that 'tiers' could switch\n",
    )
    assert "the file says off" in run("list", "--config", str(catalog)).out


def test_a_catalog_that_cannot_be_read_here_keeps_nobody_from_turning_off(run: Run, tmp_path: Path) -> None:
    """It may name secrets that only the proxy has."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("providers: {openai: {api_key: '${ONLY_THERE}'}}")

    done = run("set", "tiers", "off", "--config", str(catalog))

    assert (done.code, done.out.splitlines()[0]) == (0, "change 1")
    assert "only the database counts" in done.err


def test_a_database_that_cannot_be_used_is_one_line(run: Run, tmp_path: Path) -> None:
    """No traceback."""
    run("list")
    with sqlite3.connect(tmp_path / "sameflight.db") as connection:
        connection.execute("INSERT INTO sameflight_schema VALUES (999, 'later', 0)")
    connection.close()

    done = run("rollback")

    assert done.code == 1
    assert "schema 999" in done.err
