"""Settings as flags of the command line."""

import argparse

import pytest

from proxy.config.flags import add_setting_flags, flags_of
from proxy.config.settings import SETTINGS, load_settings


def parse(*arguments, only=None):
    parser = argparse.ArgumentParser()
    add_setting_flags(parser, only)
    return parser, parser.parse_args(arguments)


def test_flags_that_are_given_become_settings():
    """Only what was given is passed on."""
    _, args = parse("--port", "9000", "--abort-on-half-close", "false")
    assert flags_of(args) == {"port": "9000", "abort_on_half_close": "false"}
    assert load_settings({}, flags_of(args)).settings.abort_on_half_close is False


def test_every_setting_but_the_secrets_has_a_flag():
    """A command line can be read by everybody on the machine."""
    parser, _ = parse()
    help_text = parser.format_help()
    for row in SETTINGS:
        assert (f"{row.flag} " in help_text) is not row.secret


def test_a_command_may_take_some_settings_only():
    """A health check needs an address, not a cache size."""
    with pytest.raises(SystemExit):
        parse("--port", "1", only=("admin_port",))


def test_other_arguments_are_no_settings():
    """What else a command takes does not become a setting."""
    assert flags_of(argparse.Namespace(command="serve", run=print, openai_api_key="x")) == {}
