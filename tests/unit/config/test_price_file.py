"""Files of prices in the shapes that people have."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import orjson
import pytest

from proxy.config.catalog import CatalogError, default_catalog, load_catalog
from proxy.config.price_file import MAX_BYTES, read_price_file
from proxy.config.prices import BUILT_IN, Price
from proxy.config.settings import Settings
from proxy.config.watch import CatalogHolder

TODAY = date(2026, 11, 21)


def write(path: Path, data: object) -> Path:
    file = path / "prices.json"
    file.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
    return file


def problems(path: Path) -> list[str]:
    with pytest.raises(CatalogError) as refused:
        read_price_file(path, today=TODAY)
    return [str(problem).removeprefix(str(path)) for problem in refused.value.problems]


def test_litellms_file_is_read(tmp_path: Path) -> None:
    """Dollars for one token become dollars for a million, exactly; what has no price for text is passed over."""
    file = write(
        tmp_path,
        {
            "sample_spec": {"input_cost_per_token": "the cost"},
            "gpt-4o": {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05,
                       "cache_read_input_token_cost": 1.25e-06, "mode": "chat"},
            "anthropic/claude-next": {"input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
                                      "cache_creation_input_token_cost": 3.75e-06},
            "azure/gpt-4o": {"input_cost_per_token": 9e-06},
            "dall-e-3": {"input_cost_per_pixel": 1e-08},
        },
    )  # fmt: skip

    prices = read_price_file(file, today=TODAY)

    claude = Price(3.0, 15.0, None, 3.75)
    assert prices == {
        "gpt-4o": Price(2.5, 10.0, 1.25),
        "anthropic/claude-next": claude,
        "claude-next": claude,
        "azure/gpt-4o": Price(9.0),
    }


def test_genai_prices_file_is_read(tmp_path: Path) -> None:
    """Of tiers the first, of dated prices the one that holds; other providers' models of that name are not ours."""
    file = write(
        tmp_path,
        [
            {"id": "openai", "models": [
                {"id": "gpt-4o", "match": {"or": [{"equals": "gpt-4o"}, {"equals": "gpt-4o-2024-08-06"},
                                                  {"starts_with": "gpt-4o-x"}]},
                 "prices": {"input_mtok": 2.5, "cache_read_mtok": 1.25, "output_mtok": 10}},
                {"id": "tiered", "match": {"equals": "tiered"},
                 "prices": {"input_mtok": {"base": 2, "tiers": [{"start": 200_000, "price": 4}]}, "output_mtok": 8}},
                {"id": "dated", "match": {"equals": "dated"}, "prices": [
                    {"prices": {"input_mtok": 9}},
                    {"constraint": {"start_date": "2026-01-01"}, "prices": {"input_mtok": 5}},
                    {"constraint": {"start_date": "2027-01-01"}, "prices": {"input_mtok": 1}},
                    {"constraint": {"start_time": "16:30Z", "end_time": "00:30Z"}, "prices": {"input_mtok": 0.1}},
                ]},
                {"id": "whisper", "match": {"equals": "whisper"}, "prices": {"requests_kcount": 6}},
            ]},
            {"id": "azure", "models": [{"id": "gpt-4o", "prices": {"input_mtok": 99}}]},
        ],
    )  # fmt: skip

    prices = read_price_file(file, today=TODAY)

    assert prices == {
        "gpt-4o": Price(2.5, 10.0, 1.25),
        "gpt-4o-2024-08-06": Price(2.5, 10.0, 1.25),
        "tiered": Price(2.0, 8.0),
        "dated": Price(5.0),
    }


@pytest.mark.parametrize("value", [-1e-6, 2.0, True, "2.5e-06", [1]])
def test_a_number_that_is_no_price_refuses_the_file_and_names_its_place(tmp_path: Path, value: object) -> None:
    """Nobody is billed by a typing error."""
    file = write(tmp_path, {"good": {"input_cost_per_token": 1e-6}, "bad": {"input_cost_per_token": value}})

    assert problems(file) == [f":5:3: bad.input_cost_per_token: {value!r} is no price"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ":1:1: not JSON"),
        ('{"a": \n oops}', ":2:2: not JSON"),
        ('"text"', ":1:1: expected an object or a list"),
        ("{}", ":1:1: there is no price in it"),
        ("[]", ":1:1: there is no price in it"),
        ('{"a": 5}', ":1:2: a: expected an object"),
        ('[{"id": "openai"}]', ":1:1: [0]: expected a provider with a list of models"),
        ('[{"id": "openai", "models": [5]}]', ":1:1: openai: expected a model with an id"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_place_and_reason(tmp_path: Path, text: str, told: str) -> None:
    """Every problem has a line."""
    file = tmp_path / "prices.json"
    file.write_text(text, "utf-8")

    (problem,) = problems(file)
    assert problem.startswith(told)


def test_a_file_that_is_missing_or_too_long_is_refused(tmp_path: Path) -> None:
    """A mount that is not there, or the wrong file."""
    assert problems(tmp_path / "none.json") == [":1:1: cannot be read: No such file or directory"]
    long = tmp_path / "long.json"
    long.write_bytes(b" " * (MAX_BYTES + 1))
    assert problems(long) == [f":1:1: the file is longer than {MAX_BYTES} bytes"]


def test_the_catalogs_prices_win_over_the_files_and_the_files_over_the_built_in_ones(tmp_path: Path) -> None:
    """From the most particular to the most general."""
    file = write(tmp_path, {name: {"input_cost_per_token": 7e-6} for name in ("gpt-4o", "o3")})
    settings = Settings(prices_file=str(file))

    catalog = load_catalog("prices: {o3: {input: 8}}", {}, settings)

    assert catalog.prices.find("o3") == Price(8.0)
    assert catalog.prices.find("gpt-4o") == Price(7.0)
    assert catalog.prices.find("o1") == BUILT_IN["o1"]
    assert default_catalog(settings).prices.find("o3") == Price(7.0)


def test_a_changed_price_file_is_read_again_and_a_bad_one_keeps_the_old_prices(tmp_path: Path) -> None:
    """As with the catalog's file, and without one."""
    file = write(tmp_path, {"o3": {"input_cost_per_token": 7e-6}})
    holder = CatalogHolder(Settings(prices_file=str(file)), {})
    assert not holder.changed()

    write(tmp_path, {"o3": {"input_cost_per_token": 7.5e-6}})
    assert holder.changed()
    assert holder.reload().changed
    assert holder.current.prices.find("o3") == Price(7.5)

    file.write_text("oops", "utf-8")
    assert holder.changed()
    assert not holder.reload().ok
    assert holder.current.prices.find("o3") == Price(7.5)
