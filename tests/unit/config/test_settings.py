"""The table of settings: where values come from, who wins, and what a bad value is told."""

import pytest

from proxy.config.settings import (
    SETTINGS,
    Settings,
    SettingsError,
    as_text,
    describe_settings,
    load_settings,
    shown,
)


def test_an_empty_environment_gives_the_defaults():
    """Nothing needs to be configured."""
    loaded = load_settings({})
    assert Settings() == loaded.settings
    assert {"default"} == set(loaded.sources.values())
    assert loaded.warnings == ()


def test_every_default_can_be_written_and_read_back():
    """A default that its own parser refuses, or reads differently, would be a trap for those who copy it."""
    env = {row.env: as_text(row.default) for row in SETTINGS}
    assert Settings() == load_settings(env).settings


def test_the_environment_wins_over_defaults_and_flags_win_over_the_environment():
    """Command line, then environment, then default; each value knows where it came from."""
    loaded = load_settings({"SAMEFLIGHT_PORT": "9000", "SAMEFLIGHT_HOST": "0.0.0.0"}, {"port": 9001, "share": None})
    assert (loaded.settings.port, loaded.settings.host, loaded.settings.share) == (9001, "0.0.0.0", "all")
    assert tuple(loaded.sources[name] for name in ("port", "host", "share")) == ("flag", "env", "default")


def test_an_empty_variable_counts_as_unset():
    """Compose files write empty variables for what is not given."""
    assert load_settings({"SAMEFLIGHT_PORT": " "}).settings.port == 8080


def test_a_double_underscore_counts_as_a_single_one():
    """Tools that nest names reach every setting."""
    assert load_settings({"SAMEFLIGHT_MAX__BODY__BYTES": "7"}).settings.max_body_bytes == 7


def test_two_spellings_with_different_values_are_a_contradiction():
    """Neither spelling wins silently."""
    with pytest.raises(SettingsError, match="contradicts SAMEFLIGHT_ADMIN_PORT"):
        load_settings({"SAMEFLIGHT_ADMIN_PORT": "1", "SAMEFLIGHT_ADMIN__PORT": "2"})


def test_every_bad_value_is_reported_at_once_with_name_value_and_expectation():
    """One run shows all that has to be mended."""
    env = {"SAMEFLIGHT_PORT": "http", "SAMEFLIGHT_SHARE": "alll", "SAMEFLIGHT_OPENAI_UPSTREAM": "https://u:pw@x"}
    with pytest.raises(SettingsError) as caught:
        load_settings(env, {"linger_s": "-1"})
    problems = caught.value.problems
    assert len(problems) == 4
    assert "SAMEFLIGHT_PORT: 'http' is not an integer from 0 to 65535" in problems
    assert any("'alll' is not one of off, pure" in problem for problem in problems)
    assert "did you mean 'all'?" in str(caught.value)
    assert "--linger-s: '-1' is not a number of at least 0" in problems
    assert "pw" not in str(caught.value)


def test_the_base_url_of_the_clients_is_never_read():
    """In a sidecar it points at this proxy."""
    loaded = load_settings({"OPENAI_BASE_URL": "http://127.0.0.1:8080/v1"})
    assert (loaded.settings.openai_upstream, loaded.warnings) == ("https://api.openai.com", ())


def test_an_upstream_that_is_this_proxy_is_refused():
    """A proxy that calls itself would do so for ever."""
    with pytest.raises(SettingsError, match="is this proxy itself"):
        load_settings({"SAMEFLIGHT_MISTRAL_UPSTREAM": "http://localhost:8080/v1"})


def test_an_upstream_on_another_port_of_this_machine_is_accepted():
    """Local upstreams are usual."""
    loaded = load_settings({"SAMEFLIGHT_OPENAI_UPSTREAM": "http://localhost:9000/v1"})
    assert loaded.settings.openai_upstream == "http://localhost:9000"


def test_both_listeners_on_one_port_are_refused():
    """The second could not listen; say so before the first does."""
    with pytest.raises(SettingsError, match="data listener's port"):
        load_settings({"SAMEFLIGHT_ADMIN_PORT": "8080"})


def test_free_ports_do_not_collide():
    """Port 0 is another one each time."""
    assert load_settings({"SAMEFLIGHT_PORT": "0", "SAMEFLIGHT_ADMIN_PORT": "0"}).settings.port == 0


def test_a_misspelt_variable_is_a_warning_with_a_suggestion():
    """It must be seen, and must not keep the process from starting."""
    loaded = load_settings({"SAMEFLIGHT_MAX_BODY_BYTE": "1"})
    assert len(loaded.warnings) == 1
    assert "did you mean 'SAMEFLIGHT_MAX_BODY_BYTES'?" in loaded.warnings[0]


def test_a_kubernetes_service_of_our_name_does_not_break_the_port():
    """The cluster puts SAMEFLIGHT_PORT=tcp://… into every pod beside a service called sameflight."""
    env = {
        "SAMEFLIGHT_PORT": "tcp://10.0.0.7:8080",
        "SAMEFLIGHT_PORT_8080_TCP_ADDR": "10.0.0.7",
        "SAMEFLIGHT_SERVICE_HOST": "10.0.0.7",
        "SAMEFLIGHT_GATEWAY_SERVICE_PORT_HTTP": "8080",
        "SAMEFLIGHT_GATEWAY_PORT": "tcp://10.0.0.8:80",
    }
    loaded = load_settings(env)
    assert loaded.settings.port == 8080
    assert loaded.warnings == ("SAMEFLIGHT_PORT: ignored, it was put there by a Kubernetes service of that name",)


def test_a_secret_is_never_shown():
    """Neither the representation nor the listing nor an error has it."""
    loaded = load_settings({"OPENAI_API_KEY": "sk-very-secret", "SAMEFLIGHT_KEY_SECRET": "pepper"})
    assert loaded.settings.openai_api_key == "sk-very-secret"
    listing = " ".join(shown(row, getattr(loaded.settings, row.name)) for row in SETTINGS)
    assert "set" in listing
    for text in (repr(loaded.settings), listing):
        assert "sk-very-secret" not in text
        assert "pepper" not in text
    with pytest.raises(SettingsError) as caught:
        load_settings({"OPENAI_API_KEY": "two words"})
    assert "two words" not in str(caught.value)


def test_a_secret_can_come_from_a_file(tmp_path):
    """Mounted secrets need not pass through the environment."""
    path = tmp_path / "key"
    path.write_text("sk-from-file\n")
    assert load_settings({"OPENAI_API_KEY_FILE": str(path)}).settings.openai_api_key == "sk-from-file"


def test_a_secret_file_that_is_missing_is_an_error(tmp_path):
    """A proxy without its key would only fail later, at the first request."""
    with pytest.raises(SettingsError, match=r"OPENAI_API_KEY_FILE: cannot read .*No such file"):
        load_settings({"OPENAI_API_KEY_FILE": str(tmp_path / "none")})


def test_a_setting_that_is_no_secret_has_no_file():
    """The suffix means something for secrets only."""
    loaded = load_settings({"SAMEFLIGHT_PORT_FILE": "/etc/passwd"})
    assert loaded.settings.port == 8080
    assert len(loaded.warnings) == 1


def test_settings_cannot_be_changed():
    """They are fixed at start."""
    with pytest.raises(AttributeError):
        Settings().port = 1


def test_every_setting_has_help_and_appears_in_the_documentation():
    """A setting nobody can read about does not exist."""
    table = describe_settings()
    for row in SETTINGS:
        assert row.help.endswith(".")
        assert f"| `{row.env}` |" in table


def test_documented_defaults_hold_no_secret():
    """The table shows defaults, and secrets have none."""
    assert [row.env for row in SETTINGS if row.secret and row.default] == []
