"""README holds what the code says: settings, errors, series, dependencies and the two commands."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from proxy.config.catalog import load_catalog
from proxy.config.schema import BatchingFile, HedgingFile, ModelFile, ProviderFile, TargetFile
from proxy.config.settings import Settings, describe_settings
from proxy.errors import Kind
from proxy.providers.carriage import CARRIAGE, render_answers, render_requests
from proxy.telemetry.metrics import describe_series

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text("utf-8")


def section(name: str) -> str:
    """What stands between the section's comments."""
    found = re.search(rf"<!-- {name}: .*? -->\n(.*?)\n<!-- /{name} -->", README, re.DOTALL)
    assert found, f"README has no section {name}"
    return found[1]


def test_every_setting_is_in_readme_with_its_default_and_meaning() -> None:
    """The table is the one the code makes."""
    assert section("settings") == describe_settings().strip()


def test_every_series_is_in_readme() -> None:
    """The table is the one the code makes."""
    assert section("series") == describe_series().strip()


def test_what_translation_carries_is_in_readme() -> None:
    """The tables are those that the dialects are held to."""
    text = section("carriage")

    assert render_answers().strip() in text
    assert [caller for caller in CARRIAGE if render_requests(caller).strip() not in text] == ["gemini"]


@pytest.mark.parametrize(
    ("shape", "prefix"),
    [(ProviderFile, ""), (ModelFile, ""), (TargetFile, ""), (HedgingFile, "hedging."), (BatchingFile, "batching.")],
)
def test_every_key_of_the_catalog_file_is_in_readme(shape: type[msgspec.Struct], prefix: str) -> None:
    """A key that nobody can read about is a key that nobody uses."""
    rows = "".join(re.findall(r"^\| (`.*?`) \| ", README.split("## Configuration")[1], re.MULTILINE))
    names = [f"`{prefix}{field.name}`" for field in msgspec.structs.fields(shape)]

    assert [name for name in names if name not in rows and name not in ("`hedging`", "`batching`")] == []


@pytest.mark.parametrize(
    "module", ["pattern_file", "tier_file", "cache_class_file", "pruning_file", "guard_file"]
)
def test_every_key_of_savings_and_guards_is_in_readme(module: str) -> None:
    """As above; sections are told by their mappings."""
    text = README.split("#### Savings and guards")[1].split("\n\n`aliases")[0]
    shapes = vars(import_module(f"proxy.config.{module}")).values()
    mine = [each for each in shapes if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    names = {field.name for each in mine if each.__name__.endswith("File") for field in msgspec.structs.fields(each)}
    told = set(re.findall(r"\w+", text))

    assert len(names) > 3
    assert names - told - {"rules", "models", "summary", "fail_open"} == set()


def test_the_example_of_all_savings_is_a_good_catalog() -> None:
    """Whoever copies it starts with something that works."""
    example = REPO / "deploy/examples/savings.yaml"
    catalog = load_catalog(example, {}, Settings(openai_api_key="sk-x"))

    assert catalog.savings is not None
    assert catalog.warnings == ()


def test_every_error_that_a_client_can_see_is_in_readme() -> None:
    """Codes are what users match on."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section("errors"), re.MULTILINE)

    assert rows == [(str(kind.status), kind.code) for kind in Kind if kind is not Kind.CLIENT_GONE]


def test_every_dependency_is_named_with_its_reason() -> None:
    """At most fourteen, each with a row."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    required = {re.split(r"[ ;<>=\[]", line)[0].lower() for line in project["dependencies"]}
    rows = re.findall(r"^\| ([\w-]+) \| ", README.split("## Dependencies")[1], re.MULTILINE)
    named = {name.lower() for name in rows}

    assert required <= named
    assert len(required) <= 14


def test_the_two_commands_stand_on_the_first_screen() -> None:
    """A newcomer finds them without scrolling."""
    screen = README.splitlines()[:30]

    assert "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/sameflight demo" in screen
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest" in screen


def test_the_top_level_holds_nothing_but_what_the_design_names() -> None:
    """A stray file at the top is a stray thought."""
    allowed = {"pyproject.toml", "README.md", "LICENSE", "proxy", "deploy", "nginx", "tests", "loadtests"}
    present = {path.name for path in REPO.iterdir() if not path.name.startswith(".")}

    assert {name for name in present - allowed if not name.endswith(".egg-info")} == set()
