"""Providers of the catalog file: where they are, their keys, and how what is wrong is reported."""

import os

import pytest

from proxy.config.catalog import PROVIDERS, CatalogError, Provider, ProviderKey, load_catalog
from proxy.config.provider import REGIONS
from proxy.config.schema import KINDS
from proxy.config.settings import Settings
from proxy.config.watch import CatalogHolder
from proxy.providers import kinds
from tests.unit.config.rich import ENV, write_rich


def load(text, settings=None, **env):
    return load_catalog(text, env, settings or Settings())


def provider(text, name="p", **env):
    return load(f"providers: {{{name}: {{{text}}}}}", **env).providers[name]


def problems(text, **env):
    with pytest.raises(CatalogError) as caught:
        load(text, **env)
    return [str(problem) for problem in caught.value.problems]


def problems_of(text, name="p", **env):
    return problems(f"providers: {{{name}: {{{text}}}}}", **env)


def test_the_kinds_of_the_file_are_the_dialects_that_exist():
    """The catalog lies below the dialects and cannot ask them."""
    assert set(KINDS) == set(kinds.KINDS)


def test_the_built_in_providers_exist_beside_any_others():
    """A request's path names one of them."""
    catalog = load("providers: {p: {kind: gemini}}")
    assert [*PROVIDERS, "p"] == list(catalog.providers)
    assert [catalog.providers[name].kind for name in PROVIDERS] == list(PROVIDERS)
    assert catalog.provider_key("p") == catalog.provider_key("nobody") == ""


def test_a_provider_made_by_hand_has_the_kind_and_the_key_list_of_its_few_fields():
    """Whoever needs no more says no more."""
    made = Provider("anthropic", "https", "h", 443, "", "sk")
    assert (made.kind, made.keys) == ("anthropic", (ProviderKey("key1", "sk"),))
    assert Provider("x", "https", "h", 443, "").kind == "compatible"
    assert Provider("x", "https", "h", 443, "", keys=(ProviderKey("a", "1"), ProviderKey("b", "2"))).api_key == "1"


@pytest.mark.parametrize(
    ("kind", "url", "base_path"),
    [
        ("compatible", "http://h:8000/v1", ""),
        ("compatible", "http://h/openai/v1/", "/openai"),
        ("gemini", "https://h/v1beta", ""),
        ("gemini", "https://h/x/v1beta/", "/x"),
        ("azure", "https://h/openai/v1/", ""),
        ("azure", "https://h/openai", ""),
        ("azure", "https://h", ""),
        ("responses", "https://h/v1", ""),
    ],
)
def test_what_the_dialect_adds_is_taken_off_the_base_url(kind, url, base_path):
    """People paste the URL that an SDK wants."""
    assert provider(f"kind: {kind}, base_url: '{url}'").base_path == base_path


def test_a_public_kind_needs_no_base_url_and_follows_the_settings():
    """A second account of a vendor is reached where the first is."""
    text = "providers: {a: {kind: openai}, b: {kind: gemini}, c: {kind: responses}, d: {kind: anthropic}}"
    made = load(text, Settings(openai_upstream="http://gateway.example/o")).providers
    assert [made[name].host for name in "abcd"] == [
        "gateway.example",
        "generativelanguage.googleapis.com",
        "gateway.example",
        "api.anthropic.com",
    ]
    assert made["a"].base_path == "/o"
    assert made["a"].api_key == ""


@pytest.mark.parametrize("kind", ["azure", "compatible"])
def test_a_kind_without_a_public_url_needs_one(kind):
    """There is nothing to guess."""
    (problem,) = problems_of(f"kind: {kind}")
    assert problem == (
        f"<text>:1:13: providers.p: 'base_url' is missing; a provider of kind {kind} has no public one"
    )


@pytest.mark.parametrize("region", ["eu", "EU", "us", "global"])
def test_a_region_stands_for_the_vendors_regional_server(region):
    """Its host need not be looked up."""
    assert provider(f"region: {region}", "mistral").origin == REGIONS["mistral"][region.lower()]
    assert provider(f"kind: openai, region: {region}").origin == REGIONS["openai"][region.lower()]
    assert provider(f"kind: responses, region: {region}").origin == REGIONS["openai"][region.lower()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "kind: mistral, region: eu1",
            "1:32: providers.p.region: expected one of global, eu, us; did you mean 'eu'?",
        ),
        (
            "kind: mistral, region: mars",
            "1:32: providers.p.region: expected one of global, eu, us; or give the base_url",
        ),
        (
            "kind: gemini, region: eu",
            "1:31: providers.p.region: kind gemini has no regions; only mistral and openai have; use base_url",
        ),
        (
            "kind: mistral, region: eu, base_url: 'http://h'",
            "1:32: providers.p.region: a region and a base URL say the same; leave one of them out",
        ),
        (
            "kind: opnai",
            "1:17: providers.p.kind: expected one of openai, anthropic, mistral, azure, compatible, "
            "gemini, responses; did you mean 'openai'?",
        ),
        (
            "base_url: 'http://h'",
            "1:13: providers.p: 'kind' is missing; one of openai, anthropic, mistral, azure, "
            "compatible, gemini, responses",
        ),
        (
            "kind: gemini, version: 'a b'",
            "1:31: providers.p.version: expected 1 to 64 letters, digits and ._-; such as 2024-10-21",
        ),
        (
            "kind: gemini, ping_path: health",
            "1:31: providers.p.ping_path: expected a path of printable ASCII characters; such as /health",
        ),
        (
            "kind: gemini, ping_s: 0.5",
            "1:31: providers.p.ping_s: expected 0 or at least 1 second; 0 makes no such requests",
        ),
        ("kind: gemini, max_in_flight: -1", "1:31: providers.p.max_in_flight: expected an integer >= 0"),
        (
            "kind: gemini, api_key: a, api_keys: [b]",
            "1:43: providers.p.api_keys: the key is given by api_key already; several keys go into api_keys",
        ),
    ],
)
def test_a_field_of_a_provider_that_is_wrong_is_reported_with_place_and_hint(text, expected):
    """What to write instead is part of the message."""
    assert [f"<text>:{expected}"] == problems_of(text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("kind: gemini", "/v1beta/models"),
        ("kind: azure, base_url: 'http://h'", "/openai/v1/models"),
        ("kind: azure, base_url: 'http://h', version: 2024-10-21", "/openai/models?api-version=2024-10-21"),
        ("kind: anthropic", "/v1/models"),
        ("kind: compatible, base_url: 'http://h', ping_path: '/health?deep=1'", "/health?deep=1"),
    ],
)
def test_a_sleeping_host_is_asked_for_its_models_unless_told_otherwise(text, path):
    """Every kind has the list, and nobody is charged for it."""
    assert provider(text).ping_path == path


def test_a_name_that_no_target_could_mention_is_refused():
    """A slash ends a provider's name."""
    (problem,) = problems("providers: {'a/b': {kind: gemini}}")
    assert "this cannot be the name of a provider; a letter or digit, then up to 63" in problem


def test_a_built_in_provider_keeps_its_dialect():
    """Callers send it their own requests as they are."""
    assert provider("kind: compatible, base_url: 'http://h'", "openai").kind == "compatible"
    (problem,) = problems_of("kind: azure, base_url: 'http://h'", "openai")
    assert "providers.openai.kind: 'openai' is of kind openai or compatible; callers send it requests" in problem


def test_more_providers_than_possible_are_refused_at_once():
    """A file that was generated by mistake."""
    text = "providers:\n" + "".join(f"  p{number}: {{kind: gemini}}\n" for number in range(1001))
    assert problems(text) == ["<text>:1:1: providers: there are 1001 providers; at most 1000 are possible"]


# -- keys -----------------------------------------------------------------------------------------------------


def test_several_keys_come_from_text_variables_and_files_in_their_order(tmp_path):
    """Entries that stand for nothing are left out; the others have names for people."""
    keys = load_catalog(write_rich(tmp_path), ENV, Settings()).providers["openai"].keys
    assert keys == (ProviderKey("key1", "sk-one"), ProviderKey("batch", "sk-two"), ProviderKey("mounted", "sk-three"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a, b, a]", "api_keys[2]: the key is entry 1 as well; leave one of them out"),
        (
            "[{name: x, key: a}, {name: x, key: b}]",
            "api_keys[1]: entry 1 has this name as well; give it another name",
        ),
        ("[{name: x}]", "api_keys[0]: 'key' is missing; give either key or file"),
        ("[{key: a, file: b}]", "api_keys[0]: two keys; give either key or file"),
        (
            "[{name: 'a b', key: a}]",
            "api_keys[0].name: this cannot be the name of a key; a letter or digit, then up to "
            "63 letters, digits and _.-",
        ),
        ("['se cret']", "api_keys[0]: expected a key of printable ASCII characters without spaces"),
        ("[{key: 'se cret'}]", "api_keys[0].key: expected a key of printable ASCII characters without spaces"),
        ("[[secret]]", "api_keys[0]: expected text or a mapping"),
        ("secret", "api_keys: expected a list, got text"),
        ("{secret: 1}", "api_keys: expected a list, got a mapping"),
    ],
)
def test_a_key_that_is_wrong_is_reported_and_not_shown(text, expected):
    """Errors go to logs."""
    (problem,) = problems_of(f"kind: gemini, api_keys: {text}")
    assert problem.endswith(f"providers.p.{expected}")
    assert "cret" not in problem


def test_too_many_keys_are_refused():
    """Each would be watched and rotated."""
    (problem,) = problems_of("kind: gemini, api_keys: [" + ", ".join(f"k{number}" for number in range(101)) + "]")
    assert problem.endswith("providers.p.api_keys: there are 101 keys; at most 100 are possible")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "the file cannot be read: No such file or directory"),
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"two words", "the file does not hold a key of printable ASCII characters without spaces"),
        (b"a\nb", "the file does not hold a key"),
        (b"\xff\xfe", "the file is not a text file"),
        (b"x" * 70_000, "the file is longer than 65536 bytes"),
    ],
)
def test_a_key_file_that_holds_no_key_is_a_problem_with_its_place(tmp_path, content, told):
    """A mount that is not there, or the wrong file."""
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    path = tmp_path / "c.yaml"
    path.write_text("providers:\n  anthropic:\n    api_key_file: key\n")
    with pytest.raises(CatalogError) as caught:
        load_catalog(path, {}, Settings())
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{path}:3:5: providers.anthropic.api_key_file: {told}")
    assert "words" not in str(problem)


def test_a_pipe_in_place_of_a_key_file_is_refused_unopened(tmp_path):
    """Opening it would wait for a writer for good."""
    os.mkfifo(tmp_path / "key")
    with pytest.raises(CatalogError, match="is not a plain file"):
        load_catalog(_with_key_file(tmp_path), {}, Settings())


@pytest.mark.parametrize("name", ["", ".", "a\\0b", "x" * 5000])
def test_an_impossible_file_name_is_a_problem_like_any_other(name):
    """Whatever the file system says to it."""
    (problem,) = problems(f'providers: {{p: {{kind: gemini, api_key_file: "{name}"}}}}')
    assert "providers.p.api_key_file: the file " in problem


def _with_key_file(folder):
    path = folder / "c.yaml"
    path.write_text("providers: {anthropic: {api_key_file: key}}\n")
    return path


def key_of(holder):
    return holder.current.provider_key("anthropic")


def test_a_rotated_key_file_is_noticed_and_its_key_is_used(tmp_path):
    """Though the catalog file itself says what it always said."""
    (tmp_path / "key").write_text("old")
    holder = CatalogHolder(Settings(config=str(_with_key_file(tmp_path))), {})
    assert not holder.changed()
    digest = holder.current.digest

    (tmp_path / "key").write_text("newer")
    assert holder.changed()
    result = holder.reload()
    assert (result.ok, result.changed, key_of(holder)) == (True, True, "newer")
    assert not holder.changed()
    assert digest == holder.current.digest


def test_a_kubernetes_secret_that_is_swapped_is_noticed_though_size_and_time_are_the_same(tmp_path):
    """The kubelet swaps ``..data`` in the mounted folder."""
    for name in ("old", "new"):
        (tmp_path / f"..{name}").mkdir()
        (tmp_path / f"..{name}" / "key").write_text(name)
        os.utime(tmp_path / f"..{name}" / "key", ns=(10**18, 10**18))
    (tmp_path / "..data").symlink_to("..old")
    (tmp_path / "key").symlink_to("..data/key")
    holder = CatalogHolder(Settings(config=str(_with_key_file(tmp_path))), {})

    (tmp_path / "..tmp").symlink_to("..new")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert holder.changed()
    holder.reload()
    assert key_of(holder) == "new"


def test_a_key_file_that_goes_bad_keeps_the_old_key_and_is_tried_once(tmp_path):
    """Until it changes again."""
    (tmp_path / "key").write_text("old")
    holder = CatalogHolder(Settings(config=str(_with_key_file(tmp_path))), {})

    (tmp_path / "key").write_text("")
    assert holder.changed()
    assert not holder.reload().ok
    assert not holder.changed()
    assert key_of(holder) == "old"

    (tmp_path / "key").write_text("mended")
    assert holder.changed()
    assert holder.reload().ok
    assert key_of(holder) == "mended"


def test_a_key_file_that_a_bad_catalog_named_for_the_first_time_is_watched(tmp_path):
    """The secret may be mounted a moment after the catalog that names it."""
    path = tmp_path / "c.yaml"
    path.write_text("")
    holder = CatalogHolder(Settings(config=str(path)), {})
    _with_key_file(tmp_path)
    assert not holder.reload().ok
    assert not holder.changed()

    (tmp_path / "key").write_text("here")
    assert holder.changed()
    assert holder.reload().ok
    assert key_of(holder) == "here"


def test_a_bad_catalog_and_a_changed_key_together_are_tried_once(tmp_path):
    """What was not come to is read when the catalog is mended."""
    (tmp_path / "key").write_text("old")
    path = _with_key_file(tmp_path)
    holder = CatalogHolder(Settings(config=str(path)), {})

    path.write_text("{")
    (tmp_path / "key").write_text("newer")
    assert not holder.reload().ok
    assert not holder.changed()

    _with_key_file(tmp_path)
    assert holder.changed()
    assert holder.reload().ok
    assert key_of(holder) == "newer"


def test_no_key_of_a_rich_catalog_is_shown(tmp_path):
    """Representations end up in logs."""
    assert "sk-" not in repr(load_catalog(write_rich(tmp_path), ENV, Settings()))
