"""Text to values: what is accepted, what is refused, and what a refusal says."""

import pytest

from proxy.config.values import (
    did_you_mean,
    integer_between,
    mask_url,
    number_from,
    one_of,
    parse_base_url,
    parse_cache_url,
    parse_flag,
    parse_key,
    parse_names,
    parse_prefix,
    parse_text,
    size_from,
)


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_a_word_for_yes_is_true(text):
    """Every usual word for yes counts, in any case and with white space."""
    assert parse_flag(text) is True


@pytest.mark.parametrize("text", ["0", "False", "no", "OFF"])
def test_a_word_for_no_is_false(text):
    """Every usual word for no counts."""
    assert parse_flag(text) is False


def test_another_word_is_no_flag():
    """A word that is neither is refused rather than guessed."""
    with pytest.raises(ValueError, match="true or false"):
        parse_flag("maybe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("65536", 65_536), ("64KiB", 65_536), ("32 MiB", 33_554_432), ("1gib", 1 << 30), ("1kB", 1_000), ("2B", 2)],
)
def test_a_size_with_a_unit_is_bytes(text, expected):
    """Binary and decimal units are understood."""
    assert expected == size_from(0)(text)


@pytest.mark.parametrize("text", ["", "1.5MiB", "-1", "1 TiB", "MiB", "1e6", "9" * 20])
def test_a_size_that_is_none_is_refused(text):
    """Fractions, signs, unknown units and endless digits are not sizes."""
    with pytest.raises(ValueError, match="a size of at least 1 bytes"):
        size_from(1)(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-0.1", "ten", ""])
def test_a_number_that_cannot_be_waited_for_is_refused(text):
    """Times must be finite and not negative."""
    with pytest.raises(ValueError, match="a number of at least 0"):
        number_from(0.0)(text)


@pytest.mark.parametrize("text", ["65536", "-1", "8080.0", "0x50", "", "9" * 5000])
def test_an_integer_outside_its_range_is_refused(text):
    """A port has a range, and no amount of digits gets around it."""
    with pytest.raises(ValueError, match="an integer from 0 to 65535"):
        integer_between(0, 65_535)(text)


def test_a_misspelt_choice_is_refused_with_a_suggestion():
    """The error names the choices and the nearest of them."""
    with pytest.raises(ValueError, match=r"one of off, pure, retries \(did you mean 'retries'\?\)"):
        one_of("off", "pure", "retries")("retry")


def test_names_are_split_stripped_and_unique():
    """Empty names and repeats disappear, the order stays."""
    assert parse_names(" b, a ,,b") == ("b", "a")


def test_text_with_a_control_character_is_refused():
    """A line break in a setting is a mistake, not a value."""
    with pytest.raises(ValueError, match="control characters"):
        parse_text("a\nb")


def test_a_key_with_a_trailing_line_break_is_accepted_without_it():
    """Files of secrets usually end with a line break."""
    assert parse_key("sk-1\n") == "sk-1"


@pytest.mark.parametrize("text", ["a b", "ключ", "a\x00b"])
def test_a_key_that_fits_no_header_is_refused(text):
    """What cannot be sent as a header value is not a key."""
    with pytest.raises(ValueError, match="a key of printable ASCII"):
        parse_key(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://api.openai.com", ("https", "api.openai.com", 443, "")),
        ("https://api.openai.com/v1", ("https", "api.openai.com", 443, "")),
        ("https://api.openai.com/v1/", ("https", "api.openai.com", 443, "")),
        ("http://LOCALHOST:9000/openai/v1", ("http", "localhost", 9000, "/openai")),
        ("http://[::1]:9000/", ("http", "::1", 9000, "")),
        ("http://10.0.0.1", ("http", "10.0.0.1", 80, "")),
    ],
)
def test_a_base_url_is_split_and_loses_its_v1(text, expected):
    """Paths carry ``/v1`` themselves, so that the base may be given either way."""
    assert expected == parse_base_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "api.openai.com",
        "ftp://x.example",
        "https://",
        "https://user:pw@x.example",
        "https://x.example?a=1",
        "https://x.example/#f",
        "https://x.example:0",
        "https://x.example:99999",
        "https://exa mple",
        "https://x.example/a\nb",
        "https://пример.example",
        "https://-x.example",
        "https://x.example\\@y.example",
        "https://[::1",
    ],
)
def test_a_base_url_that_is_none_is_refused(text):
    """Anything two readers could understand differently is refused, user names and queries included."""
    with pytest.raises(ValueError, match="a URL such as"):
        parse_base_url(text)


@pytest.mark.parametrize("url", ["https://api.openai.com", "http://[::1]:9000/x", "https://h.example:8443"])
def test_a_base_url_survives_being_written(url):
    """Its text leads back to it; default ports are left out."""
    assert url == str(parse_base_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory://",
        "redis://x",
        "redis://127.0.0.1:6379/0",
        "redis://[::1]:6379/15?db=3",
        "valkey://user:p%40ss%2Fword@cache.example:6380",
        "rediss://:secret@cache.example/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=true",
        "valkeys://cache.example",
        "unix:///run/valkey/valkey.sock",
        "unix://user:secret@/run/valkey.sock?db=2",
        "postgresql://user:p%40ss@db.example:5432/name?sslmode=require",
        "postgres:///name?host=/run/postgresql",
    ],
)
def test_a_cache_url_names_a_server_or_memory(url):
    """It is kept as it was written."""
    assert parse_cache_url(f" {url} ") == url


@pytest.mark.parametrize(
    "url",
    [
        "memory://x",
        "memcached://hunter2@host",
        "hunter2@host:6379",
        "redis://",
        "redis:///0",
        "redis://hunter2@:6379",
        "redis://:hunter2/@host:6379",
        "redis://host:0",
        "redis://host:hunter2",
        "redis://host:6379/name",
        "redis://host/0#hunter2",
        "redis://host?max_connections=100000",
        "redis://host?password=hunter2",
        "redis://host?ssl_ca_certs=/x",
        "rediss://host?ssl_cert_reqs=none",
        "redis://host?db=",
        "redis://a b",
        "unix://",
        "unix:///",
        "unix://relative/path",
        "unix:///run/x?timeout=60",
        "postgresql://",
        "postgresql:hunter2",
    ],
)
def test_a_cache_url_that_is_none_is_refused_without_repeating_it(url):
    """Neither another kind, nor a place that is none, nor an option that would lift a bound or a check."""
    with pytest.raises(ValueError, match="memory://") as raised:
        parse_cache_url(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "a b", "a:", "ä", "*", "x" * 65, "a\tb"])
def test_a_prefix_is_plain_text(text):
    """It is part of names, of patterns in access lists, and of channels."""
    assert parse_prefix(" team-1:sf ") == "team-1:sf"
    with pytest.raises(ValueError, match="letters"):
        parse_prefix(text)


def test_a_url_in_an_error_shows_no_password():
    """A refused value may still hold a secret."""
    assert mask_url("https://user:secret@x.example") == "https://…@x.example"


def test_nothing_similar_gives_no_suggestion():
    """A far-fetched suggestion is worse than none."""
    assert did_you_mean("zzz", ["host", "port"]) == ""
