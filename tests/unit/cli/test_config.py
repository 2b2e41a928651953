"""``config check``, ``config show``, ``config schema``: exit codes, messages, and where values come from."""

import argparse
import io
import json

import pytest

from proxy.cli import config
from tests.unit.config.rich import ENV, write_rich


def run(*arguments, **env):
    """Exit code, output and errors of one command."""
    parser = argparse.ArgumentParser()
    config.add_parser(parser.add_subparsers())
    args = parser.parse_args(["config", *arguments])
    out, err = io.StringIO(), io.StringIO()
    streams = (out,) if arguments[0] == "schema" else (out, err, env)
    return args.run(args, *streams), out.getvalue(), err.getvalue()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "catalog.yaml"
    path.write_text(
        "providers:\n  openai:\n    base_url: http://gateway.example:81/x/v1\n    api_key: ${TEAM_KEY}\n"
        "routes:\n  embeddings: {share: off, cache: {ttl_s: 30}}\n"
        "prices: {house: {input: 0.5, output: 2, cached_input: 0.05}}\nplaceholder_keys: [none]\n"
    )
    return str(path)


def source_of(out, section, name):
    entry = json.loads(out)[section][name]
    return entry["value"], entry["source"]


def test_a_good_configuration_passes(file):
    """The file may be named as argument, flag or variable."""
    for arguments, env in (
        (("check", file), {}),
        (("check", "--config", file), {}),
        (("check",), {"SAMEFLIGHT_CONFIG": file}),
    ):
        code, out, err = run(*arguments, TEAM_KEY="k", **env)
        assert (code, err) == (0, "")
        assert file in out


def test_no_configuration_passes():
    """It is one that works."""
    code, out, err = run("check")
    assert (code, err) == (0, "")
    assert "no catalog file" in out


def test_a_bad_file_fails_with_its_lines(tmp_path):
    """Every problem, where it is."""
    path = tmp_path / "bad.yaml"
    path.write_text("routes:\n  embedings: {}\ncolour: blue\n")
    code, out, err = run("check", str(path))
    assert (code, out) == (1, "")
    assert f"{path}:2:3: routes.embedings: there is no such route; did you mean 'embeddings'?\n" in err
    assert f"{path}:3:1: colour: there is no such key" in err


def test_a_bad_setting_fails_with_its_name():
    """Flags and variables alike."""
    code, _, err = run("check", "--port", "x", SAMEFLIGHT_SHARE="many")
    assert code == 1
    assert "--port: 'x' is not an integer" in err
    assert "SAMEFLIGHT_SHARE: 'many' is not one of" in err


def test_an_unknown_variable_is_a_warning():
    """It does not fail the check: other programs may own it."""
    code, _, err = run("check", SAMEFLIGHT_PROT="1")
    assert code == 0
    assert "warning: SAMEFLIGHT_PROT: there is no such setting (did you mean 'SAMEFLIGHT_PORT'?)" in err


def test_show_tells_where_each_value_comes_from(file):
    """Default, environment, flag or file."""
    code, out, _ = run("show", "--json", "--config", file, "--port", "9", SAMEFLIGHT_LINGER_S="4", TEAM_KEY="k")
    assert code == 0
    assert source_of(out, "settings", "SAMEFLIGHT_HOST") == ("127.0.0.1", "default")
    assert source_of(out, "settings", "SAMEFLIGHT_PORT") == ("9", "flag")
    assert source_of(out, "settings", "SAMEFLIGHT_LINGER_S") == ("4", "env")
    assert source_of(out, "catalog", "providers.openai.base_url") == ("http://gateway.example:81/x", "file")
    assert source_of(out, "catalog", "providers.mistral.base_url") == ("https://api.mistral.ai", "default")
    assert source_of(out, "catalog", "routes.embeddings.share") == ("off", "file")
    assert source_of(out, "catalog", "routes.embeddings.linger_s") == ("4", "env")
    assert source_of(out, "catalog", "routes.embeddings.ttl_s") == ("30", "file")
    assert source_of(out, "catalog", "routes.embeddings.stale_if_error_s") == ("0", "default")
    assert source_of(out, "catalog", "routes.models.ttl_s") == ("60", "default")
    assert source_of(out, "catalog", "prices.house") == ("input 0.5, cached input 0.05, output 2", "file")
    assert source_of(out, "catalog", "placeholder_keys") == ("none", "file")


def test_show_never_shows_a_secret(file):
    """Only whether there is one."""
    env = {"TEAM_KEY": "sk-team-key", "MISTRAL_API_KEY": "plain-key", "SAMEFLIGHT_KEY_SECRET": "pepper"}
    for arguments in (("show", "--config", file), ("show", "--json", "--config", file)):
        _, out, err = run(*arguments, **env)
        assert not any(value in out + err for value in env.values())
    assert source_of(out, "settings", "MISTRAL_API_KEY") == ("set", "env")
    assert source_of(out, "settings", "ANTHROPIC_API_KEY") == ("unset", "default")
    assert source_of(out, "catalog", "providers.openai.api_key") == ("set", "file")
    assert source_of(out, "catalog", "providers.mistral.api_key") == ("set", "env")


def test_show_is_a_table_for_people():
    """Name, value, source, in columns."""
    code, out, _ = run("show", "--port", "9")
    assert code == 0
    assert [line.split() for line in out.splitlines() if line.startswith("SAMEFLIGHT_PORT ")] == [
        ["SAMEFLIGHT_PORT", "9", "flag"]
    ]


def test_show_fails_like_check():
    """There is nothing effective to show."""
    assert run("show", "--port", "x")[:2] == (1, "")


def test_a_catalog_with_models_passes_and_its_parts_are_counted(tmp_path):
    """So that a file that was not the one that was meant is noticed."""
    code, out, err = run("check", str(write_rich(tmp_path)), **ENV)
    assert (code, err) == (0, "")
    assert out.endswith("catalog.yaml, 7 providers, 6 models, 4 aliases\n")


def test_what_was_hardly_meant_is_a_warning_and_the_check_passes(tmp_path):
    """Its place is told like that of an error."""
    path = tmp_path / "c.yaml"
    path.write_text("providers:\n  g: {kind: gemini}\nmodels:\n  m: {targets: [g]}\n")
    code, out, err = run("check", str(path))
    assert code == 0
    assert out.endswith("4 providers, 1 model, 1 warning\n")
    assert err.startswith(f"warning: {path}:2:3: providers.g: models use this provider, and there is no key for it; ")


def test_show_tells_of_providers_models_and_aliases(tmp_path):
    """What a request for a model meets."""
    code, out, _ = run("show", "--json", "--config", str(write_rich(tmp_path)), MISTRAL_API_KEY="k", **ENV)
    assert code == 0
    assert source_of(out, "catalog", "providers.openai.api_keys") == ("3 set: key1, batch, mounted", "file")
    assert source_of(out, "catalog", "providers.anthropic.api_key") == ("set", "file")
    assert source_of(out, "catalog", "providers.mistral.base_url") == ("https://api.eu.mistral.ai", "file")
    assert source_of(out, "catalog", "providers.azure-eu.kind") == ("azure", "file")
    assert source_of(out, "catalog", "providers.house.api_key") == ("unset", "default")
    assert source_of(out, "catalog", "providers.house.ping_path") == ("/health", "file")
    assert source_of(out, "catalog", "models.small.targets[1]") == ("mistral/mistral-small-latest", "file")
    assert source_of(out, "catalog", "models.gpt-4o.targets[0]")[0] == "openai/gpt-4o, weight 3, first_byte_s 20"
    assert source_of(out, "catalog", "models.gpt-4o.strategy") == ("weighted", "file")
    assert source_of(out, "catalog", "models.embed.strategy") == ("ordered", "default")
    assert source_of(out, "catalog", "models.embed.batching") == ("at most 64 inputs within 4 ms", "file")
    assert source_of(out, "catalog", "models.gpt-4o.hedging") == ("after 1.5 s, at most 5 %", "file")
    assert source_of(out, "catalog", "aliases.gpt-4-turbo") == ("gpt-4o", "file")
    assert not any(key in out for key in ("sk-one", "sk-two", "sk-three", "sk-ant", "sk-mistral", "sk-azure"))


def test_schema_is_a_json_schema():
    """For editors."""
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["$defs"]["CatalogFile"]["type"] == "object"


def test_a_missing_or_unknown_command_is_wrong_use():
    """argparse says so with exit code 2."""
    for arguments in ([], ["destroy"]):
        parser = argparse.ArgumentParser()
        config.add_parser(parser.add_subparsers())
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(["config", *arguments])
        assert caught.value.code == 2
