"""Rules of flags in the words of people: what the catalog file and the admin API take, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.config.catalog import Catalog, CatalogError, load_catalog
from proxy.config.document import Document
from proxy.config.feature_flags import NO_FLAGS, Flag, Flags, is_on
from proxy.config.flag_changes import FlagEdit
from proxy.config.flag_form import (
    check_words,
    describe_flags,
    doubt_of,
    parse_percent,
    read_form,
    spell_percent,
)
from proxy.config.guards import Guard
from proxy.config.keyform import FormError
from proxy.config.patterns import Patterns
from proxy.config.savings import Savings
from proxy.config.savings_file import make_flags
from proxy.config.schema import CatalogFile
from proxy.config.settings import load_settings
from proxy.config.watch import CatalogHolder

KEY = "key_0123456789abcdef"
SETTINGS = load_settings({}).settings


def catalog_of(text: str) -> Catalog:
    return load_catalog(text, {}, SETTINGS)


def problems_of(text: str) -> list[str]:
    with pytest.raises(CatalogError) as caught:
        catalog_of(text)
    return [str(problem) for problem in caught.value.problems]


def test_the_files_section_becomes_rules() -> None:
    """A word alone is for everybody; a mapping says for whom."""
    catalog = catalog_of(
        "flags:\n"
        "  pruning: off\n"
        "  tiers: 25%\n"
        "  'guard:pii':\n"
        "    global: on\n"
        "    tenants: {acme: off}\n"
        f"    keys: {{{KEY}: 12.5%}}\n"
        "    routes: {chat.completions: true}\n"
    )

    assert catalog.flags.rules() == [
        Flag("guard:pii", "global", "", 100.0),
        Flag("guard:pii", "tenant", "acme", 0.0),
        Flag("guard:pii", "route", "chat.completions", 100.0),
        Flag("guard:pii", "key", KEY, 12.5),
        Flag("pruning", "global", "", 0.0),
        Flag("tiers", "global", "", 25.0),
    ]
    assert catalog_of("providers: {}").flags is NO_FLAGS


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("prunning: off", "1:9: flags.prunning: there is no flag 'prunning' (did you mean 'pruning'?)"),
        ("pruning: 25", "1:9: flags.pruning: expected on, off or a percentage such as 25%; a number alone could"),
        ("pruning: 101%", "flags.pruning: expected on, off or a percentage such as 25%"),
        ("pruning: maybe", "flags.pruning: expected on, off or a percentage such as 25%"),
        ("pruning: ", "flags.pruning: expected on, off or a percentage such as 25%"),
        ("pruning: [off]", "flags.pruning: expected on, off or a percentage such as 25%"),
        ("pruning: {globl: off}", "1:19: flags.pruning.globl: there is no such key; did you mean 'global'?"),
        ("pruning: {tenants: off}", "flags.pruning.tenants: expected a mapping; such as tenants: {NAME: off}"),
        ("pruning: {tenants: {a/b: off}}", "flags.pruning.tenants.'a/b': a tenant has 1 to 200 printable characters"),
        ("pruning: {keys: {ci: off}}", "flags.pruning.keys.ci: keys go by their id here"),
        ("pruning: {routes: {chat.completion: off}}", "there is no route 'chat.completion' (did you mean"),
        ("'guard:': off", "guard: is followed by the guard's name"),
        ("'guard:a b': off", "guard: is followed by the guard's name"),
        ("pruning: '${NOT_SET}'", "the environment variable NOT_SET is not set"),
    ],
)
def test_a_bad_rule_is_refused_with_its_place_and_reason(line: str, problem: str) -> None:
    """One problem each, so that nobody has to guess which of two is meant."""
    first, *others = problems_of(f"flags: {{{line}}}")

    assert problem in first
    assert others == []


def test_a_flood_of_bad_rules_is_refused_in_a_moment() -> None:
    """Nobody reads more than a hundred problems, and suggestions take time."""
    names = ", ".join(f"chat.completionz{n}: off" for n in range(3_000))

    assert len(problems_of(f"flags: {{pruning: {{routes: {{{names}}}}}}}")) == 100


def test_a_flag_with_nothing_to_switch_is_warned_of() -> None:
    """It can be used, for what it switches may come later, and was hardly meant."""
    document = Document("f.yaml")
    file = CatalogFile(flags={"patterns": "off", "pruning": "off", "guard:pi": "off", "guard:pii": "off"})
    savings = Savings(patterns=Patterns(), guards=(Guard("pii", "pii", "before"),))

    make_flags(file, savings, document)

    assert [warning.message for warning in document.warnings] == [
        "the catalog configures nothing that 'pruning' could switch",
        "the catalog configures nothing that 'guard:pi' could switch (did you mean 'guard:pii'?)",
    ]
    assert document.problems == []
    assert doubt_of("pruning", ("pruning",)) == ""


@pytest.mark.parametrize(
    ("value", "percent"),
    [("on", 100.0), (" OFF ", 0.0), (True, 100.0), (False, 0.0), ("0%", 0.0), ("0.5 %", 0.5), ("100%", 100.0)],
)
def test_words_and_percentages_are_understood(value: object, percent: float) -> None:
    """And spelled in the way in which they can be read again."""
    assert parse_percent(value) == percent
    assert parse_percent(spell_percent(percent)) == percent


@pytest.mark.parametrize("value", [25, 0.25, None, "", "25", "-1%", "100.1%", "1e1%", "٣%", "on off", [], {}])
def test_anything_else_is_no_value(value: object) -> None:
    """A bare number most of all: it could be a part of one or of a hundred."""
    with pytest.raises(FormError, match="expected on, off or a percentage"):
        parse_percent(value)


def test_a_form_takes_the_words_of_the_file_and_nothing_for_no_rule() -> None:
    """One grammar for both; in a form nothing means that there is to be no such rule."""
    edits = read_form({"pruning": None, "tiers": {"global": "off", "tenants": {"acme": None}}})

    assert edits == [
        FlagEdit("pruning", "global", "", None),
        FlagEdit("tiers", "global", "", 0.0),
        FlagEdit("tiers", "tenant", "acme", None),
    ]
    with pytest.raises(FormError, match=r"flags\.tirs: there is no flag"):
        read_form({"tirs": "off"})
    for empty in (None, {}, [], "pruning"):
        with pytest.raises(FormError, match="flags: a mapping"):
            read_form(empty)
    with pytest.raises(FormError, match="at most 1000 rules"):
        read_form({"tiers": {"tenants": {f"t{n}": "off" for n in range(1_001)}}})


def test_who_and_why_are_bounded_printable_text() -> None:
    """They end in a table that people read."""
    assert check_words(" ann ", "first\nsecond ") == ("ann", "first\nsecond")
    for who, why in (("", ""), ("a" * 201, ""), ("a\x1b", ""), ("a\nb", ""), ("a", "b" * 1_001), ("a", "\x00")):
        with pytest.raises(FormError):
            check_words(who, why)


def test_the_description_says_where_a_rule_comes_from_and_what_it_hides() -> None:
    """Of everything configured, and of everything that somebody made a rule for."""
    savings = Savings(patterns=Patterns(), guards=(Guard("pii", "pii", "before"),))
    filed = Flags([Flag("patterns", percent=0.0), Flag("tiers", percent=0.0)])
    stored = Flags([Flag("patterns", percent=25.0), Flag("guard:old", "tenant", "acme", 0.0)], 7)

    described = {each.pop("name"): each for each in describe_flags(savings, filed, stored)}

    assert described["patterns"] == {
        "configured": True,
        "value": "25%",
        "rules": [{"scope": "global", "subject": "", "value": "25%", "origin": "store", "file": "off"}],
    }
    assert described["tiers"]["rules"][0] | {"origin": "file", "file": None} == described["tiers"]["rules"][0]
    assert described["guard:pii"] == {"configured": True, "value": "on", "rules": []}
    assert described["guard:old"]["configured"] is False
    assert described["guard:old"]["rules"][0]["subject"] == "acme"
    assert list(described) == [
        *("patterns", "cache_classes", "tiers", "pruning", "slimming"),
        *("guard:pii", "guard:old"),
    ]


def test_the_stores_rules_stand_over_the_files_and_outlast_a_reload(tmp_path: Any) -> None:
    """A reload brings other rules of the file, under the same rules of the store."""
    file = tmp_path / "catalog.yaml"
    file.write_text("flags: {pruning: off, tiers: off}")
    holder = CatalogHolder(replace(SETTINGS, config=str(file)), {})

    assert holder.use_flags(Flags([Flag("pruning", percent=100.0)], 3)) is True
    file.write_text("flags: {pruning: off, tiers: 50%}")
    holder.reload()

    assert {rule.name: rule.percent for rule in holder.current.flags.rules()} == {"pruning": 100.0, "tiers": 50.0}
    assert {rule.name: rule.percent for rule in holder.filed.flags.rules()} == {"pruning": 0.0, "tiers": 50.0}
    assert holder.use_flags(NO_FLAGS) is True
    assert holder.current.flags == holder.filed.flags


def test_a_share_is_stable_grows_and_differs_from_flag_to_flag() -> None:
    """Who is in at ten per cent is in at thirty, and two flags do not choose the same people."""
    units = [number.to_bytes(16, "big") for number in range(4_000)]
    at_10 = {unit for unit in units if is_on("pruning", 10.0, unit)}
    at_30 = {unit for unit in units if is_on("pruning", 30.0, unit)}
    others = {unit for unit in units if is_on("tiers", 30.0, unit)}

    assert at_10 < at_30
    assert 300 < len(at_10) < 500
    assert 1_080 < len(at_30) < 1_320
    assert 280 < len(at_30 & others) < 440
