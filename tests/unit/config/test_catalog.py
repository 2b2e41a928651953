"""The catalog: what the file says over what the settings say, and how a wrong file is reported."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.catalog import Catalog, CatalogError, Price, Problem, Provider, default_catalog, load_catalog
from proxy.config.schema import ROUTE_NAMES, json_schema
from proxy.config.settings import Settings
from proxy.protocol.message import make_request_head
from proxy.protocol.routes import locate

WHOLE_FILE = """
providers:
  openai:
    base_url: https://gateway.example/openai/v1
    api_key: ${TEAM_KEY}
  anthropic:
    api_key: "0123"
routes:
  chat.completions: &busy
    share: auto
    leave: finish
    linger_s: 7
    first_byte_s: 30
    idle_s: 20.5
    total_s: 300
    cache: {ttl_s: 60, stale_while_revalidate_s: 5, stale_if_error_s: 600}
  messages:
    <<: *busy
    share: off
  models:
prices:
  house-model: {input: 0.5, output: 2, cached_input: 0.05}
  gpt-4o: {input: 1}
placeholder_keys: [none, 007]
"""


def load(text, **env):
    return load_catalog(text, env, Settings())


def problems_of(text, **env):
    with pytest.raises(CatalogError) as caught:
        load(text, **env)
    return [str(problem) for problem in caught.value.problems]


def test_without_a_file_the_settings_decide():
    """Zero configuration is a working proxy."""
    given_settings = Settings(
        share="pure",
        linger_s=1.0,
        openai_api_key="sk-1",
        mistral_upstream="http://[::1]:9/x",
        placeholder_keys=("x",),
    )
    catalog = default_catalog(given_settings)
    assert Provider("mistral", "http", "::1", 9, "/x") == catalog.providers["mistral"]
    assert (catalog.provider_key("openai"), catalog.provider_key("anthropic")) == ("sk-1", "")
    assert frozenset((b"x",)) == catalog.placeholder_keys
    rules = catalog.rules("chat.completions")
    assert (
        rules.share,
        rules.leave,
        rules.linger_s,
        rules.first_byte_s,
        rules.idle_s,
        rules.total_s,
    ) == ("pure", None, 1.0, 600.0, 120.0, 3600.0)
    assert catalog.generation == 1


def test_only_lists_of_models_are_cached_by_default():
    """Everything else needs somebody to ask for it."""
    catalog = default_catalog(Settings())
    assert {"models", "model"} == {name for name, rules in catalog.routes.items() if rules.ttl_s}
    models = catalog.rules("models")
    assert (models.ttl_s, models.stale_while_revalidate_s, models.stale_if_error_s) == (60.0, 600.0, 86_400.0)


def test_what_the_file_says_wins_over_the_settings():
    """Each part of the file reaches the snapshot."""
    catalog = load(WHOLE_FILE, TEAM_KEY="sk-team")
    assert Provider("openai", "https", "gateway.example", 443, "/openai", "sk-team") == catalog.providers["openai"]
    assert catalog.provider_key("anthropic") == "0123"
    rules = catalog.rules("chat.completions")
    assert (
        rules.share,
        rules.leave,
        rules.linger_s,
        rules.first_byte_s,
        rules.idle_s,
        rules.total_s,
    ) == ("auto", "finish", 7.0, 30.0, 20.5, 300.0)
    assert (rules.ttl_s, rules.stale_while_revalidate_s, rules.stale_if_error_s) == (60.0, 5.0, 600.0)
    assert (catalog.rules("messages").share, catalog.rules("messages").linger_s) == ("off", 7.0)
    assert frozenset((b"none", b"007")) == catalog.placeholder_keys


def test_what_the_file_leaves_out_stays_as_the_settings_have_it():
    """A file with one line changes one thing."""
    catalog = load("routes: {embeddings: {cache: {ttl_s: 5}}}")
    rules = catalog.rules("embeddings")
    assert (rules.ttl_s, rules.share, rules.linger_s) == (5.0, "all", 3.0)
    assert default_catalog(Settings()).rules("completions") == catalog.rules("completions")
    assert catalog.providers["openai"].host == "api.openai.com"


def test_prices_of_the_file_join_the_built_in_ones():
    """A list price can be overridden, a house model can be added."""
    prices = load(WHOLE_FILE, TEAM_KEY="k").prices
    assert Price(0.5, 2.0, 0.05) == prices.find("house-model")
    assert Price(1.0) == prices.find("gpt-4o")
    assert prices.find("gpt-4o-mini") is not None


@pytest.mark.parametrize("text", ["", "# nothing", "providers:\nroutes:\nprices:\n", "placeholder_keys: []"])
def test_a_file_with_little_in_it_is_a_catalog(text):
    """Sections may be empty."""
    assert isinstance(load(text), Catalog)


def test_a_route_without_a_name_of_its_own_follows_the_settings():
    """Unknown operations pass through under rules as well."""
    catalog = default_catalog(Settings())
    assert catalog.other == catalog.rules("never heard of")


def test_every_problem_of_a_file_is_reported_with_its_place():
    """One run shows all, in the order of the file."""
    text = """providers:
  antropic: {}
  mistral: {base_url: ftp://x}
routes:
  chat.completion: {share: all}
  chat.completions:
    share: of
    linger_s: soon
    cache: {ttl_s: -1, ttl: 2}
    first_byte_s: 0
prices:
  a: {output: 1}
  b: 3
placeholder_keys: [x, [y]]
colour: blue
"""
    expected = [
        "<text>:2:3: providers.antropic: there is no such key; did you mean 'anthropic'?",
        "<text>:3:13: providers.mistral.base_url: expected a URL such as https://api.example.com, "
        "without user, query and fragment",
        "<text>:5:3: routes.'chat.completion': there is no such route; did you mean 'chat.completions'?",
        "<text>:7:5: routes.'chat.completions'.share: expected one of off, pure, retries, auto, all; "
        "did you mean 'off'?",
        "<text>:8:5: routes.'chat.completions'.linger_s: expected a number, got text",
        "<text>:9:13: routes.'chat.completions'.cache.ttl_s: expected a number >= 0.0",
        "<text>:9:24: routes.'chat.completions'.cache.ttl: there is no such key; did you mean 'ttl_s'?",
        "<text>:10:5: routes.'chat.completions'.first_byte_s: expected a number > 0.0",
        "<text>:12:3: prices.a: 'input' is missing",
        "<text>:13:3: prices.b: expected a mapping",
        "<text>:14:1: placeholder_keys: expected text, got a list",
        "<text>:15:1: colour: there is no such key; known here: providers, models, aliases, routes, "
        "prices, placeholder_keys, patterns, tiers, cache_classes, pruning, slimming, flags, guards",
    ]
    assert expected == problems_of(text)


def test_a_missing_variable_is_reported_once():
    """It is not a wrong number as well."""
    assert len(problems_of("prices: {m: {input: '${RATE}'}}")) == 1
    assert len(problems_of("prices:\n  m:\n    input: ${RATE}\n")) == 1


def test_a_number_may_come_from_the_environment():
    """A reference without quotes has the type that is wanted."""
    assert load("routes:\n  ocr:\n    idle_s: ${IDLE:-9}\n").rules("ocr").idle_s == 9.0


@pytest.mark.parametrize("text", ["- a", "words", "routes: [a]", "providers: {openai: x}", "routes: {models: 5}"])
def test_a_file_of_another_shape_is_refused(text):
    """A list where a mapping belongs is said to be one."""
    assert "expected a mapping" in problems_of(text)[0]


def test_a_key_with_a_space_is_refused_and_not_shown():
    """It could not be sent, and errors go to logs."""
    (problem,) = problems_of("providers: {openai: {api_key: 'sk secret'}}")
    assert "providers.openai.api_key: expected a key" in problem
    assert "secret" not in problem


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    """The path and the reason."""
    path = tmp_path / "missing.yaml"
    with pytest.raises(CatalogError, match=r"missing\.yaml:1:1: cannot be read: No such file"):
        load_catalog(path, {}, Settings())


def test_a_file_is_named_in_its_errors(tmp_path):
    """So that an editor can jump there."""
    path = tmp_path / "c.yaml"
    path.write_text("routes:\n  x: {}\n")
    with pytest.raises(CatalogError) as caught:
        load_catalog(path, {}, Settings())
    assert str(caught.value).startswith(f"{path}:2:3: routes.x: there is no such route")


def test_a_catalog_cannot_be_changed():
    """Exchanges hold on to the snapshot they began with."""
    catalog = default_catalog(Settings())
    with pytest.raises(AttributeError):
        catalog.generation = 2
    with pytest.raises(TypeError):
        catalog.routes["models"] = catalog.other
    with pytest.raises(TypeError):
        catalog.providers["openai"] = None


def test_no_key_is_shown_by_a_catalog():
    """Representations end up in logs."""
    assert "sk-team" not in repr(load(WHOLE_FILE, TEAM_KEY="sk-team"))


def test_two_catalogs_that_say_the_same_are_equal_whatever_their_generation():
    """That is how a reload knows that nothing changed."""
    one, two = (load_catalog("", {}, Settings(), generation=number) for number in (1, 2))
    assert one == two
    assert load("routes: {ocr: {share: off}}") != one


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/responses/input_tokens"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/moderations"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/gpt-4o"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("GET", "/v1/messages/batches/b"),
        ("POST", "/v1/fim/completions"),
        ("POST", "/v1/ocr"),
        ("POST", "/v1/rerank"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/realtime"),
        ("GET", "/v1/vector_stores/x"),
        ("GET", "/somewhere/else"),
    ],
)
def test_every_route_a_request_can_have_is_a_name_the_file_may_use(method, path):
    """The names are those of the routes, not a list of our own."""
    assert locate(make_request_head(method, path, [])).route.name in ROUTE_NAMES


def test_the_json_schema_knows_every_section_and_route():
    """Editors check the file with it."""
    schema = json.loads(json.dumps(json_schema()))
    file = schema["$defs"]["CatalogFile"]
    assert set(file["properties"]) == {
        *("providers", "models", "aliases", "routes", "prices", "placeholder_keys"),
        *("patterns", "cache_classes", "tiers", "pruning", "slimming", "guards", "flags"),
    }
    assert file["additionalProperties"] is False
    assert sorted(ROUTE_NAMES) == file["properties"]["routes"]["propertyNames"]["enum"]
    assert schema["$defs"]["PriceFile"]["required"] == ["input"]
    assert schema["$defs"]["ModelFile"]["required"] == ["targets"]
    target = schema["$defs"]["ModelFile"]["properties"]["targets"]["items"]
    assert {option.get("type", "mapping") for option in target["anyOf"]} == {"string", "mapping"}
    for name in ("ProviderFile", "TargetFile", "ModelFile", "KeyFile", "HedgingFile", "BatchingFile"):
        assert schema["$defs"][name]["additionalProperties"] is False


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_file_with_random_damage_is_loaded_or_refused(data):
    """Whatever is deleted, doubled or overwritten: a catalog or a ``CatalogError``, nothing else."""
    text = WHOLE_FILE
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        piece = data.draw(st.one_of(st.just(""), st.just(text[at : at + length]), st.text(max_size=6)))
        text = text[:at] + piece + text[at + length :] if data.draw(st.booleans()) else text[:at] + piece + text[at:]
    try:
        outcome = load(text, TEAM_KEY="k")
    except CatalogError as error:
        outcome = error.problems[0]
    assert isinstance(outcome, (Catalog, Problem))
