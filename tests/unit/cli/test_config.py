"""``config check``, ``config show``, ``config schema``: exit codes, messages, and where values come from."""

import argparse
import io
import json

import pytest

from proxy.cli import config


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
