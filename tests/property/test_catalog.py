"""Laws of the catalog file: whatever is done to it, it is a catalog or a list of problems, and a running process
keeps what it has."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from proxy.config.catalog import Catalog
from proxy.config.settings import Settings
from proxy.config.watch import CatalogHolder
from tests.unit.config.rich import ENV, RICH, write_rich

PLAIN = 100
"""Mutants of each sort in the plain run."""
LONG = 2_500

_NASTY = [
    *("", "~", "null", "true", "-1", "0", "1e999", ".nan", ".inf", "9" * 40, "1.5", "1e-9", "[]", "{}", "[1, a]"),
    *("{a: b}", "*", "a*", "*busy", "&x y", "!!str x", "!x y", "'", '"', "a/b", "/", "openai/", "/x", "openai/*"),
    *("${OPENAI_KEY}", "${NOBODY}", "${NOBODY:-}", "${", "$$", "../keys/openai", "keys", "/dev/zero", "\\", "#", "|"),
    *("ä", "\u2028", "\x7f", '"\\ud800"', '"\\0"', "x" * 300, "openai", "gpt-4o", "ordered", "<<: *busy"),
    *("? a", "- b"),
    *("http://", "ftp://x", "http://h:99999", "https://u:p@h", "http://[::1]:1/v1", "kind: gemini", "targets: []"),
]
_TOKEN = re.compile(r"[\w.-]+|\s+|.", re.DOTALL)
_VALUE = re.compile(r"(?<=: )[^\n,{}\[\]]+")


def mutate_bytes(dice: random.Random, text: str) -> bytes:
    """Flipped, lost, doubled and foreign bytes."""
    data = bytearray(text.encode())
    for _ in range(dice.randrange(1, 6)):
        at, length = dice.randrange(len(data)), dice.randrange(1, 12)
        match dice.randrange(4):
            case 0:
                data[at] ^= 1 << dice.randrange(7)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case _:
                data[at:at] = dice.choice((dice.randbytes(1), b"\t", b"\r", b":", b" ", b"\xe2\x80\xa8"))
    return bytes(data)


def mutate_tokens(dice: random.Random, text: str) -> bytes:
    """Words and signs in each other's places."""
    tokens = _TOKEN.findall(text)
    for _ in range(dice.randrange(1, 5)):
        at, other = dice.randrange(len(tokens)), dice.randrange(len(tokens))
        match dice.randrange(4):
            case 0:
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 1:
                tokens[at] = tokens[other]
            case 2:
                tokens[at] = ""
            case _:
                tokens[at] = dice.choice(_NASTY)
    return "".join(tokens).encode("utf-8", "surrogatepass")


def mutate_values(dice: random.Random, text: str) -> bytes:
    """Values that nobody thought of, in the places of good ones."""
    spans = [match.span() for match in _VALUE.finditer(text)]
    for start, end in sorted(dice.sample(spans, dice.randrange(1, 4)), reverse=True):
        text = text[:start] + dice.choice(_NASTY) + text[end:]
    return text.encode()


def mutate_structure(dice: random.Random, text: str) -> bytes:
    """Branches lost, renamed, moved, copied and replaced."""
    data = copy.deepcopy(_parsed(text))
    for _ in range(dice.randrange(1, 4)):
        places: list[tuple[Any, Any]] = []
        _places_in(data, places)
        (holder, key), (other, other_key) = dice.choice(places), dice.choice(places)
        match dice.randrange(5):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(other[other_key])
            case 2 if isinstance(holder, dict):
                holder[dice.choice(_NASTY)] = holder.pop(key)
            case 3:
                holder[key] = [holder[key]] if dice.random() < 0.5 else {"x": holder[key]}
            case _:
                holder[key] = dice.choice(_NASTY)
    return _written(data).encode()


@cache
def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=yaml.BaseLoader)


def _written(data: Any) -> str:
    """As YAML with a line for each value, words and numbers without quotes."""
    if isinstance(data, dict):
        return "{" + ",\n".join(f"{_written(key)}: {_written(value)}" for key, value in data.items()) + "}"
    if isinstance(data, list):
        return "[" + ",\n".join(map(_written, data)) + "]"
    return data if re.fullmatch(r"[\w.-]+", data, re.ASCII) else json.dumps(data)


def _places_in(data: Any, places: list[tuple[Any, Any]]) -> None:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        places.append((data, key))
        if isinstance(value, (dict, list)):
            _places_in(value, places)


MUTATIONS = [mutate_bytes, mutate_tokens, mutate_values, mutate_structure]


def swarm(folder: Path, mutate: Callable[[random.Random, str], bytes], count: int) -> tuple[int, int]:
    """Reload that many mutants in one process; how many were good, and how many were not."""
    path = write_rich(folder)
    holder = CatalogHolder(Settings(config=str(path)), ENV)
    good = bad = 0
    for seed in range(count):
        mutant = mutate(random.Random(seed), RICH)
        path.write_bytes(mutant)
        before = holder.current
        result = holder.reload()
        if result.ok:
            good += 1
            assert isinstance(holder.current, Catalog)
            assert (holder.current is not before) == result.changed
            _check_catalog(holder.current, seed)
        else:
            bad += 1
            assert holder.current is before, f"seed {seed}"
            _check_problems(result.problems, path, mutant, seed)
    assert (holder.reloads, holder.reload_failures) == (good, bad)
    return good, bad


def _check_catalog(catalog: Catalog, seed: int) -> None:
    """What the request path relies on without asking."""
    assert {"openai", "anthropic", "mistral"} <= catalog.providers.keys(), f"seed {seed}"
    models = [*catalog.models.by_name.values(), *(model for _, model in catalog.models.patterns)]
    for model in models:
        assert model.targets, f"seed {seed}"
        assert any(target.weight for target in model.targets), f"seed {seed}"
        assert len({target.id for target in model.targets}) == len(model.targets), f"seed {seed}"
        for target in model.targets:
            assert target.provider is catalog.providers[target.provider.name], f"seed {seed}"
            assert target.model or model.name.endswith("*"), f"seed {seed}"
            orjson.dumps(dict(target.parameters))
    for alias in catalog.models.aliases:
        assert catalog.models.resolve(alias) not in catalog.models.aliases, f"seed {seed}"


def _check_problems(problems: tuple[Any, ...], path: Path, mutant: bytes, seed: int) -> None:
    text = mutant.decode("utf-8", "replace")
    lines = len(re.findall(r"\r\n|[\n\r\x85\u2028\u2029]", text)) + 1
    assert problems, f"seed {seed}"
    for problem in problems:
        assert problem.file == str(path), f"seed {seed}: {problem}"
        assert 1 <= problem.line <= lines, f"seed {seed}: {problem}"
        assert 1 <= problem.column <= len(text) + 1, f"seed {seed}: {problem}"
        assert problem.message, f"seed {seed}: {problem}"
        str(problem).encode()


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_mutated_catalog_is_taken_or_refused_with_places_and_never_stops_a_process(
    tmp_path: Path, mutate: Callable[[random.Random, str], bytes]
) -> None:
    """A bad file leaves the catalog in service as it is, whatever is wrong with it."""
    good, bad = swarm(tmp_path, mutate, PLAIN)

    assert good > 0
    assert bad > PLAIN // 4


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mutate", MUTATIONS)
def test_ten_thousand_mutated_catalogs_never_stop_a_process(
    tmp_path: Path, mutate: Callable[[random.Random, str], bytes]
) -> None:
    """The same, at length: four sorts of damage, 2,500 mutants each."""
    good, bad = swarm(tmp_path, mutate, LONG)

    assert good > 0
    assert bad > LONG // 4
