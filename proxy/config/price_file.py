"""A file of prices that wins over the built-in ones, in either of the two shapes that people have.

LiteLLM's ``model_prices_and_context_window.json`` maps names to dollars for one token; genai-prices' ``data.json``
lists providers with their models and dollars for a million tokens. Of both only standard rates of text tokens are
taken: of tiers the first, of dated prices the one that holds today. Models without such rates (images, audio by the
second) are passed over, and so are other providers' models of the same name. A number that cannot be a price refuses
the whole file, with its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from proxy.config.document import CatalogError, Problem
from proxy.config.prices import Price

MAX_BYTES: Final = 16 << 20
_MAX_USD: Final = 1_000_000.0
_PROVIDERS: Final = ("openai", "anthropic", "mistral")
_LITELLM: Final = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "cache_write": "cache_creation_input_token_cost",
}
_GENAI: Final = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}
# An entry of LiteLLM's file that explains the others.
_SAMPLE: Final = "sample_spec"


def read_price_file(path: Path, *, today: date | None = None) -> dict[str, Price]:
    """Prices by model name. Raises ``CatalogError`` with every problem."""
    reading = _Reading(str(path), _read(path))
    found = reading.prices(today or datetime.now(UTC).date())
    if not found and not reading.problems:
        reading.report("", "there is no price in it", "expected LiteLLM's or genai-prices' shape")
    if reading.problems:
        raise CatalogError(reading.problems)
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CatalogError([Problem(str(path), 1, 1, "", f"cannot be read: {error.strerror or error}")]) from None
    if len(text) > MAX_BYTES:
        raise CatalogError([Problem(str(path), 1, 1, "", f"the file is longer than {MAX_BYTES} bytes")])
    return text


class _Reading:
    """One file being read; ``problems`` grows."""

    __slots__ = ("_file", "_text", "problems")

    def __init__(self, file: str, text: bytes) -> None:
        self._file = file
        self._text = text
        self.problems: list[Problem] = []

    def report(self, path: str, message: str, hint: str = "", *, name: str = "") -> None:
        """``name`` is what to look for in the text to tell the line."""
        at = self._text.find(orjson.dumps(name)) if name else 0
        line = self._text.count(b"\n", 0, max(at, 0)) + 1
        column = at - self._text.rfind(b"\n", 0, at) if at > 0 else 1
        self.problems.append(Problem(self._file, line, column, path, message, hint))

    def prices(self, today: date) -> dict[str, Price]:
        try:
            data = orjson.loads(self._text)
        except orjson.JSONDecodeError as error:
            self.problems.append(Problem(self._file, error.lineno, error.colno, "", f"not JSON: {error.msg}"))
            return {}
        if isinstance(data, dict) and isinstance(data.get("providers"), list):
            data = data["providers"]
        if isinstance(data, list):
            return dict(self._genai(data, today))
        if isinstance(data, dict):
            return self._litellm(data)
        self.report("", "expected an object or a list")
        return {}

    # -- LiteLLM ----------------------------------------------------------------------------------------------

    def _litellm(self, data: Mapping[str, Any]) -> dict[str, Price]:
        prices: dict[str, Price] = {}
        for name, entry in data.items():
            if name == _SAMPLE:
                continue
            if not isinstance(entry, dict):
                self.report(name, "expected an object", name=name)
                continue
            price = self._price(entry, _LITELLM, name, 1e6)
            if price is not None:
                prices[name] = price
        for name in list(prices):  # "anthropic/claude-x" is what callers name "claude-x"
            provider, _, rest = name.partition("/")
            if provider in _PROVIDERS and rest:
                prices.setdefault(rest, prices[name])
        return prices

    # -- genai-prices -----------------------------------------------------------------------------------------

    def _genai(self, providers: list[Any], today: date) -> Iterator[tuple[str, Price]]:
        for number, provider in enumerate(providers):
            if not isinstance(provider, dict) or not isinstance(provider.get("models"), list):
                self.report(f"[{number}]", "expected a provider with a list of models")
                continue
            if provider.get("id") not in _PROVIDERS:
                continue
            for model in provider["models"]:
                yield from self._genai_model(f"{provider['id']}", model, today)

    def _genai_model(self, provider: str, model: Any, today: date) -> Iterator[tuple[str, Price]]:
        name = model.get("id") if isinstance(model, dict) else None
        if not isinstance(name, str):
            self.report(provider, "expected a model with an id")
            return
        rates = _rates_of(model.get("prices"), today)
        if rates is None:
            return
        price = self._price(rates, _GENAI, f"{provider}.{name}", 1.0, name=name)
        if price is not None:
            yield name, price
            for other in _equal_names(model.get("match")):
                yield other, price

    # -- numbers ----------------------------------------------------------------------------------------------

    def _price(
        self, entry: Mapping[str, Any], fields: Mapping[str, str], path: str, scale: float, *, name: str = ""
    ) -> Price | None:
        """``None`` where there is no rate for input, or where a rate cannot be one, which is reported."""
        rates: dict[str, float | None] = {}
        for ours, theirs in fields.items():
            value = entry.get(theirs)
            if isinstance(value, dict):
                value = value.get("base")
            if value is None:
                rates[ours] = None
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_rate(value * scale):
                self.report(f"{path}.{theirs}", f"{value!r} is no price", name=name or path)
                return None
            else:
                rates[ours] = round(value * scale, 6)
        if rates["input"] is None:
            return None
        return Price(rates["input"], rates["output"] or 0.0, rates["cached_input"], rates["cache_write"])


def _is_rate(usd: float) -> bool:
    return math.isfinite(usd) and 0.0 <= usd <= _MAX_USD


def _rates_of(prices: Any, today: date) -> Mapping[str, Any] | None:
    """The rates of a model that hold today at any hour: the last that has begun."""
    if isinstance(prices, dict):
        return prices
    if not isinstance(prices, list):
        return None
    for each in reversed(prices):
        if isinstance(each, dict) and isinstance(each.get("prices"), dict) and _holds(each.get("constraint"), today):
            found: Mapping[str, Any] = each["prices"]
            return found
    return None


def _holds(constraint: Any, today: date) -> bool:
    if constraint is None:
        return True
    begins = constraint.get("start_date") if isinstance(constraint, dict) else None
    try:
        return begins is not None and date.fromisoformat(begins) <= today
    except (TypeError, ValueError):
        return False


def _equal_names(match: Any) -> Iterator[str]:
    """The names that a match clause gives in full; patterns are left to the search by undated names."""
    if not isinstance(match, dict):
        return
    if isinstance(match.get("equals"), str):
        yield match["equals"]
    for each in match["or"] if isinstance(match.get("or"), list) else ():
        yield from _equal_names(each)
