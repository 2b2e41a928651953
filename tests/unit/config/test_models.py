"""Models of the catalog file: targets, aliases, patterns, and how what is wrong is reported."""

import random
import typing
from types import MappingProxyType

import pytest

from proxy.config.catalog import CatalogError, Price, load_catalog, make_catalog
from proxy.config.models import STRATEGIES, Batching, Hedging, Model, Models, ModelTarget
from proxy.config.schema import CatalogFile, ModelFile, ProviderFile, Strategy
from proxy.config.settings import Settings
from tests.unit.config.rich import ENV, RICH, write_rich


def load(text, **env):
    return load_catalog(text, env, Settings(openai_api_key="k", anthropic_api_key="k", mistral_api_key="k"))


def model(text, name="m"):
    found = load(f"models: {{{name}: {{{text}}}}}").models.find(name.strip("'"))
    assert found is not None
    return found


def problems(text):
    with pytest.raises(CatalogError) as caught:
        load(text)
    return [str(problem).removeprefix("<text>:") for problem in caught.value.problems]


def warnings(text):
    return [str(problem).removeprefix("<text>:") for problem in load(text).warnings]


@pytest.fixture
def rich(tmp_path):
    return load_catalog(write_rich(tmp_path), ENV, Settings())


def test_the_strategies_of_the_file_are_those_that_exist():
    """The file's words are the contract's."""
    assert typing.get_args(Strategy) == STRATEGIES


def test_everything_that_is_said_about_a_model_reaches_the_snapshot(rich):
    """Nothing is dropped on the way."""
    found = rich.models.find("gpt-4o")
    assert (found.name, found.strategy, found.attempts, found.retry_unsafe) == ("gpt-4o", "weighted", 4, False)
    assert (found.hedging, found.batching) == (Hedging(1.5, 0.05), None)
    assert found.description == "The usual one."
    assert [(each.id, each.weight) for each in found.targets] == [
        ("openai/gpt-4o", 3.0),
        ("azure-eu/gpt4o-deployment", 1.0),
        ("house/llama-3.3-70b", 0.0),
    ]
    assert found.targets[1].price == Price(2.75, 11.0, 1.375)
    house = found.targets[2]
    assert house.provider is rich.providers["house"]
    assert (house.most_tokens, house.cache_markers, house.thinking) == (8192, "cache_control", "off")
    assert house.parameters == (
        ("temperature", 0.2),
        ("chat_template_kwargs", {"enable_thinking": False, "depth": [1, 2.5, None, "3"]}),
        ("stop", ["</s>"]),
    )
    assert rich.models.find("embed").batching == Batching(64, 0.004)
    claude = rich.models.find("claude-sonnet").targets[0]
    assert (claude.json_output, claude.thinking, claude.max_tokens) == ("tool", "adaptive", 4096)
    assert rich.warnings == ()


def test_what_a_model_leaves_out_has_its_default():
    """The short form is a whole model."""
    found = model("targets: [openai/gpt-4o]")
    target = ModelTarget("openai/gpt-4o", found.targets[0].provider, "gpt-4o")
    assert found == Model("m", (target,))


def test_the_time_closest_to_the_target_counts(rich):
    """Target, model, provider, and 0 for the route."""
    by_id = {target.id: target for target in rich.models.find("gpt-4o").targets}
    assert [by_id[name].first_byte_s for name in by_id] == [20.0, 10.0, 20.0]
    assert [by_id[name].idle_s for name in by_id] == [0.0, 0.0, 40.0]
    assert rich.models.find("small").targets[0].first_byte_s == 30.0
    assert rich.models.find("embed").targets[0].total_s == 15.0


def test_the_version_closest_to_the_target_counts(rich):
    """A deployment may need a newer one than its provider's others."""
    assert rich.models.find("gpt-4o").targets[1].version == "2025-01-01"
    assert rich.models.find("claude-sonnet").targets[0].version == "2023-06-01"


def test_a_target_without_a_model_has_the_public_name():
    """As a mapping, and as the provider's name alone."""
    assert model("targets: [{provider: openai}, mistral]", "gpt-4o").targets[0].id == "openai/gpt-4o"
    assert model("targets: [openai, mistral]", "gpt-4o").targets[1].model == "gpt-4o"


def test_a_model_name_of_a_provider_may_have_slashes():
    """The first one ends the provider's name."""
    target = model("targets: [openai/meta-llama/Llama-3]").targets[0]
    assert (target.provider.name, target.model) == ("openai", "meta-llama/Llama-3")


@pytest.mark.parametrize("target", ["mistral", "mistral/*", "{provider: mistral}", "{provider: mistral, model: '*'}"])
def test_a_pattern_hands_on_the_name_that_the_caller_gave(target):
    """One line serves a whole family."""
    found = load(f"models: {{'mistral-*': {{targets: [{target}]}}}}").models.find("mistral-small-2603")
    assert found is not None
    assert [(each.id, each.model) for each in found.targets] == [("mistral/*", "")]


def test_the_exact_name_wins_and_then_the_longest_pattern():
    """From the most particular to the most general."""
    names = ["'*'", "gpt-*", "gpt-4*", "gpt-4o-*", "gpt-4o-mini", "gpu-*"]
    found = load("models: {" + ", ".join(f"{name}: {{targets: [openai/x]}}" for name in names) + "}").models
    asked = ["gpt-4o-mini", "gpt-4o-mini-x", "gpt-4", "gpt-5", "gp", "gpu-1", "zeta", "gpt-4o"]
    answers = ["gpt-4o-mini", "gpt-4o-*", "gpt-4*", "gpt-*", "*", "gpu-*", "*", "gpt-4*"]
    assert [found.find(name).name for name in asked] == answers
    assert found.find("") is None


def test_any_set_of_patterns_is_searched_as_if_one_by_one():
    """The short way finds what the long way finds."""
    dice = random.Random(4)
    for _ in range(300):
        prefixes = {"".join(dice.choices("ab", k=dice.randrange(6))) for _ in range(dice.randrange(12))}
        by_length = sorted(prefixes, key=lambda prefix: (-len(prefix), prefix))
        models = Models(patterns=tuple((prefix, Model(prefix + "*", ())) for prefix in by_length))
        for _ in range(20):
            name = "".join(dice.choices("abc", k=dice.randrange(1, 8)))
            expected = next((prefix + "*" for prefix in by_length if name.startswith(prefix)), None)
            found = models.find(name)
            assert (None if found is None else found.name) == expected


def test_an_alias_is_followed_to_its_end(rich):
    """Whether the end is in the catalog or not."""
    resolved = {name: rich.models.resolve(name) for name in ("gpt-4", "gpt-4-turbo", "default", "old-name", "other")}
    assert resolved == {
        "gpt-4": "gpt-4o",
        "gpt-4-turbo": "gpt-4o",
        "default": "small",
        "old-name": "a-model-of-no-catalog",
        "other": "other",
    }


def test_a_long_chain_of_aliases_is_followed():
    """Its length is not the depth of our stack."""
    aliases = {f"a{number}": f"a{number + 1}" for number in range(9_999)}
    assert make_catalog(CatalogFile(aliases=aliases), Settings()).models.resolve("a0") == "a9999"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: a", "1:11: aliases.a: an alias of itself; let one of them name a model"),
        (
            "a: b, b: c, c: a",
            "1:11: aliases.a: these aliases go round in a circle: a → b → c → a; let one of them name a model",
        ),
        (
            "z: a, a: b, b: a",
            "1:17: aliases.a: these aliases go round in a circle: a → b → a; let one of them name a model",
        ),
        (
            "'a*': b",
            "1:11: aliases.'a*': '*' cannot be in an alias; a model whose name ends in '*' answers for all "
            "names that begin so",
        ),
        (
            "a: 'b*'",
            "1:11: aliases.a: '*' cannot be in what an alias stands for; a model whose name ends in '*' "
            "answers for all names that begin so",
        ),
        (
            "a: 'b c'",
            "1:11: aliases.a: this cannot be what an alias stands for; 1 to 256 printable ASCII characters "
            "without spaces",
        ),
        ("a: [b]", "1:11: aliases.a: expected text, got a list"),
    ],
)
def test_an_alias_that_cannot_be_followed_is_reported(text, expected):
    """A circle once, at its first alias."""
    assert problems(f"aliases: {{{text}}}") == [expected]


def test_a_name_is_an_alias_or_a_model():
    """Which of them would count?"""
    text = "models: {m: {targets: [openai]}}\naliases: {m: x}"
    assert problems(text) == ["2:11: aliases.m: there is a model of this name; leave out the one or the other"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("targets: [opnai/x]", "targets[0]: there is no provider 'opnai'; did you mean 'openai'?"),
        (
            "targets: [gpt-9]",
            "targets[0]: there is no provider 'gpt-9'; known here: openai, anthropic, mistral, azure; "
            "or write provider/model",
        ),
        (
            "targets: [{provider: openai, modell: x}]",
            "targets[0].modell: there is no such key; did you mean 'model'?",
        ),
        ("targets: [{model: x}]", "targets[0]: 'provider' is missing"),
        ("targets: []", "targets: there is no target; name at least one, as provider/model"),
        ("targets: openai/x", "targets: expected a list, got text"),
        ("strategy: weighted", ": 'targets' is missing"),
        (
            "targets: [openai/a, mistral/a, openai/a]",
            "targets[2]: openai/a is target 1 already; give one of them more weight instead, or another provider",
        ),
        (
            "targets: [{provider: openai, weight: 0}]",
            "targets: every weight is 0; give at least one target a weight above 0",
        ),
        (
            "targets: [openai/a], hedging: {}",
            "hedging: there is no second target to hedge with; name another one, or leave hedging out",
        ),
        (
            "targets: [openai/a, anthropic/a], batching: {}",
            "batching: anthropic/a is of kind anthropic, which has no "
            "embeddings to merge; only azure, compatible, mistral, openai have",
        ),
        (
            "targets: [openai/a], strategy: wieghted",
            "strategy: expected one of ordered, round_robin, weighted, "
            "least_in_flight, lowest_latency, cheapest, sticky; did you mean 'weighted'?",
        ),
        ("targets: [openai/a], attempts: 11", "attempts: expected an integer <= 10"),
        ("targets: [openai/a], batching: {most_inputs: 1}", "batching.most_inputs: expected an integer >= 2"),
        ("targets: [openai/a, mistral/a], hedging: {most_share: 0}", "hedging.most_share: expected a number > 0.0"),
        (
            "targets: ['openai/*']",
            "targets[0]: '*' stands for the caller's name; only for a model whose name ends in '*'",
        ),
        (
            "targets: ['openai/a*']",
            "targets[0]: a target is one model; '*' alone stands for the name that the caller gave",
        ),
        (
            "targets: ['openai/']",
            "targets[0]: this cannot be the name of a model; 1 to 256 printable ASCII characters without spaces",
        ),
        (
            "targets: [{provider: openai, max_tokens: 9, most_tokens: 8}]",
            "targets[0].max_tokens: 9 is more than "
            "most_tokens, 8; most_tokens is the longest answer that the model gives",
        ),
        (
            "targets: [{provider: openai, parameters: {stream: true}}]",
            "targets[0].parameters.stream: this is the caller's to say; leave it out",
        ),
        (
            'targets: [{provider: openai, parameters: {a: "${BAD}"}}]',
            "targets[0].parameters.a: this cannot be sent as JSON; text must be Unicode",
        ),
        (
            "targets: [{provider: azure, version: 'a b'}]",
            "targets[0].version: expected 1 to 64 letters, digits and ._-; such as 2024-10-21",
        ),
        (
            'targets: [openai/a], description: "a\\nb"',
            "description: expected text without control characters; write it in one line",
        ),
        ("targets: [openai/a], idle_s: 0", "idle_s: expected a number > 0.0"),
        ("targets: [{provider: openai, price: {output: 1}}]", "targets[0].price: 'input' is missing"),
    ],
)
def test_a_model_that_is_wrong_is_reported_with_place_and_hint(text, expected):
    """What to write instead is part of the message."""
    file = f"providers: {{azure: {{kind: azure, base_url: 'http://h', api_key: k}}}}\nmodels:\n  m: {{{text}}}\n"
    with pytest.raises(CatalogError) as caught:
        load_catalog(file, {"BAD": "\udc80"}, Settings())
    (problem,) = caught.value.problems
    assert problem.line == 3
    assert problem.column > 2 or "." not in problem.path[len("models.m") :]
    told = str(problem).partition("models.m")[2]
    assert told == (expected if expected.startswith(":") else f".{expected}")


@pytest.mark.parametrize("name", ["a*b", "**x", "a b", "ä", "", "x" * 257])
def test_a_name_that_could_not_be_asked_for_is_refused(name):
    """It goes into bodies, headers and labels."""
    (problem,) = problems(f"models: {{'{name}': {{targets: [openai/x]}}}}")
    assert "this cannot be the name of a model" in problem or "only the last character may be a '*'" in problem


def test_what_follows_from_another_problem_is_not_told_as_well():
    """A provider that is wrong exists all the same."""
    text = "providers: {house: {kind: compatible}}\nmodels: {m: {targets: [house/x]}}\naliases: {a: m}"
    (problem,) = problems(text)
    assert "'base_url' is missing" in problem


def test_every_part_of_the_file_is_examined_in_one_run():
    """Shape, meaning and references, in the order of the file."""
    text = """providers:
  house: {kind: compatible}
  x: {kind: gemini, region: eu}
models:
  a: {targets: [nobody/x]}
  b: {targets: [openai/x], strategie: sticky}
aliases: {a: b}
routes: {nowhere: {}}
"""
    assert [problem.partition(": ")[0] + problem.partition(": ")[2][:20] for problem in problems(text)] == [
        "2:3providers.house: 'ba",
        "3:21providers.x.region: ",
        "5:17models.a.targets[0]:",
        "6:28models.b.strategie: ",
        "7:11aliases.a: there is ",
        "8:10routes.nowhere: ther",
    ]


def test_more_models_than_possible_are_refused_at_once():
    """A file that was generated by mistake."""
    said = ModelFile(["openai"])
    with pytest.raises(CatalogError, match="models: there are 10001 models; at most 10000 are possible"):
        make_catalog(CatalogFile(models={f"m{number}": said for number in range(10_001)}), Settings())
    with pytest.raises(CatalogError, match="aliases: there are 10001 aliases; at most 10000 are possible"):
        make_catalog(CatalogFile(aliases={f"m{number}": "x" for number in range(10_001)}), Settings())


def test_more_targets_than_possible_are_refused():
    """Sixty-four ways to fail will do."""
    (problem,) = problems("models: {m: {targets: [" + ", ".join(f"openai/{number}" for number in range(65)) + "]}}")
    assert problem == "1:14: models.m.targets: there are 65 targets; at most 64 are possible"


def test_thousands_of_wrong_references_are_told_without_a_long_search():
    """Looking for what was meant is bounded; a hundred problems are enough to begin with."""
    providers = {f"provider-{number}": ProviderFile("gemini") for number in range(300)}
    models = {f"m{number}": ModelFile([f"proviber-{number}/x"]) for number in range(3_000)}
    with pytest.raises(CatalogError) as caught:
        make_catalog(CatalogFile(providers=providers, models=models), Settings())
    told = [problem.hint for problem in caught.value.problems]
    assert len(told) == 100
    assert 10 < sum("did you mean" in hint for hint in told) < 30


# -- warnings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "providers: {g: {kind: gemini}}\nmodels: {m: {targets: [g]}}",
            "1:13: providers.g: models use this provider, and there is no key for it; give api_key, api_key_file or "
            "api_keys; only callers with a key of their own are served",
        ),
        (
            "providers: {g: {kind: gemini, api_key: k}}",
            "1:13: providers.g: no model uses this provider; name it in a target, or leave it out",
        ),
        (
            "providers: {g: {kind: compatible, base_url: 'http://h/api/v4'}}\nmodels: {m: {targets: [g]}}",
            "1:35: providers.g.base_url: requests will go to http://h/api/v4/v1/…; is that a path the server has?",
        ),
        (
            "providers: {openai: {max_in_flight: 2, keep_warm: 3}}",
            "1:40: providers.openai.keep_warm: 3 connections for at most 2 calls; more than "
            "max_in_flight are never used",
        ),
        (
            "providers: {mistral: {version: v}}",
            "1:23: providers.mistral.version: kind mistral has no version; leave it out",
        ),
        (
            "models: {m: {strategy: ordered, targets: [{provider: openai, weight: 3}]}}",
            "1:14: models.m.strategy: ordered does not heed the targets' weights; only round_robin and weighted know "
            "shares; others heed whether a weight is 0",
        ),
        (
            "models: {m: {strategy: cheapest, targets: [openai/gpt-4o, mistral/house]}}",
            "1:59: models.m.targets[1]: there is no price for mistral/house; give it a price, or strategy cheapest "
            "tries it last",
        ),
        (
            "models: {m: {targets: [{provider: openai, json_output: tool}]}}",
            "1:43: models.m.targets[0].json_output: kind openai does not heed it; only anthropic do",
        ),
    ],
)
def test_what_was_hardly_meant_is_a_warning_and_refuses_nothing(text, expected):
    """With place and hint, like a problem."""
    assert warnings(text) == [expected]


def test_a_server_of_ones_own_needs_no_key():
    """Many ask for none."""
    assert warnings("providers: {v: {kind: compatible, base_url: 'http://h'}}\nmodels: {m: {targets: [v]}}") == []


def test_a_rich_file_that_is_all_right_has_no_warnings(rich):
    """A warning that is always there is never read."""
    assert rich.warnings == ()


# -- the snapshot ---------------------------------------------------------------------------------------------


def test_models_cannot_be_changed(rich):
    """Exchanges hold on to the snapshot they began with."""
    with pytest.raises(TypeError):
        rich.models.by_name["x"] = None
    with pytest.raises(TypeError):
        rich.models.aliases["x"] = "y"
    with pytest.raises(AttributeError):
        rich.models.find("gpt-4o").targets[0].weight = 2
    assert isinstance(rich.providers, MappingProxyType)


def changed(folder, old, new):
    assert old in RICH
    return load_catalog(write_rich(folder, RICH.replace(old, new)), ENV, Settings())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model: gpt4o-deployment", "model: other-deployment"),
        ("temperature: 0.2", "temperature: 0.3"),
        ("depth: [1, 2.5, ~", "depth: [1, 2, ~"),
        ("version: 2025-01-01", "version: 2025-02-01"),
        ("most_tokens: 8192", "most_tokens: 8193"),
        ("thinking: adaptive", "thinking: budget"),
        ("json_output: tool", "json_output: format"),
        ("cache_markers: cache_control", "cache_markers: breakpoint"),
        ("region: eu", "region: us"),
        ("kind: responses", "kind: openai"),
        ("http://vllm.house:8000", "http://vllm.house:8001"),
        ("      - second/gpt-5.5\n", ""),
        ("gpt-4: gpt-4o", "gpt-4: small"),
        ("description: The usual one.", "description: Another."),
        ("models:\n", "  lonely: {kind: gemini}\nmodels:\n"),
        ("mistral-*:", "mistra-*:"),
        ("ttl_s: 60", "ttl_s: 61"),
        ("linger_s: 7", "linger_s: 8"),
        ("[none, 007]", "[none]"),
    ],
)
def test_what_can_change_an_answer_changes_the_digest(tmp_path, rich, old, new):
    """No answer made under one catalog is given under another."""
    other = changed(tmp_path, old, new)
    assert other.digest != rich.digest
    assert other != rich


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{provider: openai, weight: 3}", "{provider: openai, weight: 4}"),
        ("strategy: weighted", "strategy: round_robin"),
        ("[openai/gpt-4o-mini, mistral/mistral-small-latest]", "[mistral/mistral-small-latest, openai/gpt-4o-mini]"),
        ("attempts: 4", "attempts: 5"),
        ("input: 2.75", "input: 2.8"),
        ("input: 0.5", "input: 0.6"),
        ("first_byte_s: 20", "first_byte_s: 21"),
        ("max_in_flight: 200", "max_in_flight: 201"),
        ("api_key: sk-azure", "api_key: sk-other"),
        ("hedging: {after_s: 1.5", "hedging: {after_s: 1.6"),
    ],
)
def test_what_decides_who_answers_and_when_leaves_the_digest_and_is_a_change_all_the_same(tmp_path, rich, old, new):
    """Answers that are stored stay good, and the new rules hold from now on."""
    other = changed(tmp_path, old, new)
    assert other.digest == rich.digest
    assert other != rich


def test_the_same_file_read_twice_is_the_same_catalog(tmp_path, rich):
    """Key files, patterns, aliases and all."""
    other = load_catalog(write_rich(tmp_path), ENV, Settings())
    assert (other, other.digest) == (rich, rich.digest)
