"""List prices of well-known models, and how a model's name finds its price.

The snapshot holds standard rates (no batch, priority or long-context rates) as of ``AS_OF``; a catalog file
overrides any of them. A price is found by the model's exact name, else by its name without a date or ``-latest`` at
its end, so ``gpt-4o-2024-08-06`` costs what ``gpt-4o`` costs and ``gpt-4o-audio-preview`` costs nothing we know of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

AS_OF: Final = "2026-11"

_DATED: Final = re.compile(r"(?:[-@]20[0-9]{2}-?[01][0-9]-?[0-3][0-9]|-[0-9]{4}|-latest)$")
_LONGEST_NAME: Final = 128


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens."""

    input: float
    output: float = 0.0
    cached_input: float | None = None
    """Input tokens that the upstream took from its prompt cache; ``None`` charges them as ``input``."""
    cache_write: float | None = None
    """Input tokens that the upstream wrote to its prompt cache; ``None`` charges them as ``input``. Where rates
    differ by how long they stay there (Anthropic's five minutes and one hour), that of the usual, shorter one."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by model name; immutable."""

    by_name: Mapping[str, Price]

    def find(self, model: str) -> Price | None:
        """The price of a model as a caller named it, or ``None`` where nobody said."""
        price = self.by_name.get(model)
        if price is None and len(model) <= _LONGEST_NAME:
            name = _DATED.sub("", model)
            if name is not model:
                return self.by_name.get(name)
        return price


def make_prices(own: Mapping[str, Price] = MappingProxyType({})) -> Prices:
    """The built-in prices with ``own`` in front of them."""
    return Prices(MappingProxyType({**BUILT_IN, **own}))


def _table(rows: str, cache_write: float | None = None) -> dict[str, Price]:
    """Lines of ``model input cached-input output``, where ``-`` means there is no such rate. ``cache_write`` is the
    rate of cache writes as a multiple of ``input``."""
    prices = {}
    for line in filter(None, rows.splitlines()):
        name, fresh, cached, output = line.split()
        written = None if cache_write is None else round(float(fresh) * cache_write, 6)
        prices[name] = Price(float(fresh), 0.0 if output == "-" else float(output), _rate(cached), written)
    return prices


def _rate(text: str) -> float | None:
    return None if text == "-" else float(text)


_OPENAI: Final = """
gpt-6.1-sol              2      0.1    10
gpt-6.1-terra            1      0.05   5
gpt-6-sol                2      0.2    10
gpt-6-luna               0.1    0.01   0.5
gpt-6-astra              10     1      50
gpt-5.6-sol              4      0.4    20
gpt-5.6-terra            2      0.2    12
gpt-5.6-luna             0.2    0.02   1.2
gpt-5.5                  5      0.5    30
gpt-5.5-pro              30     -      180
gpt-5.4                  2.5    0.25   15
gpt-5.4-mini             0.75   0.075  4.5
gpt-5.4-nano             0.2    0.02   1.25
gpt-5.4-pro              30     -      180
gpt-5.3                  1.75   0.175  14
gpt-5.2                  1.75   0.175  14
gpt-5.2-pro              21     -      168
gpt-5.1                  1.25   0.125  10
gpt-5                    1.25   0.125  10
gpt-5-mini               0.25   0.025  2
gpt-5-nano               0.05   0.005  0.4
gpt-5-pro                15     -      120
gpt-4.1                  2      0.5    8
gpt-4.1-mini             0.4    0.1    1.6
gpt-4.1-nano             0.1    0.025  0.4
gpt-4o                   2.5    1.25   10
gpt-4o-2024-05-13        5      -      15
chatgpt-4o-latest        5      -      15
gpt-4o-mini              0.15   0.075  0.6
gpt-4-turbo              10     -      30
gpt-4-turbo-preview      10     -      30
gpt-4-1106-preview       10     -      30
gpt-4-0125-preview       10     -      30
gpt-4                    30     -      60
gpt-4-32k                60     -      120
gpt-3.5-turbo            0.5    -      1.5
gpt-3.5-turbo-0613       1.5    -      2
gpt-3.5-turbo-1106       1      -      2
gpt-3.5-turbo-16k        3      -      4
gpt-3.5-turbo-instruct   1.5    -      2
o4-mini                  1.1    0.275  4.4
o3                       2      0.5    8
o3-mini                  1.1    0.55   4.4
o3-pro                   20     -      80
o1                       15     7.5    60
o1-mini                  1.1    0.55   4.4
o1-pro                   150    -      600
text-embedding-3-small   0.02   -      -
text-embedding-3-large   0.13   -      -
text-embedding-ada-002   0.1    -      -
babbage-002              0.4    -      0.4
davinci-002              2      -      2
"""

_ANTHROPIC: Final = """
claude-opus-5-5          4      0.2    20
claude-opus-5            5      0.5    25
claude-opus-4-8          5      0.5    25
claude-opus-4-7          5      0.5    25
claude-opus-4-6          5      0.5    25
claude-opus-4-5          5      0.5    25
claude-opus-4-1          15     1.5    75
claude-opus-4-0          15     1.5    75
claude-opus-4            15     1.5    75
claude-sonnet-5-5        2      0.1    10
claude-sonnet-5          2      0.2    10
claude-sonnet-4-6        3      0.3    15
claude-sonnet-4-5        3      0.3    15
claude-sonnet-4-0        3      0.3    15
claude-sonnet-4          3      0.3    15
claude-haiku-5-5         0.1    0.01   0.5
claude-haiku-4-5         1      0.1    5
claude-3-7-sonnet        3      0.3    15
claude-3-5-sonnet        3      0.3    15
claude-3-5-haiku         0.8    0.08   4
claude-3-opus            15     1.5    75
claude-3-sonnet          3      0.3    15
claude-3-haiku           0.25   0.03   1.25
"""

# Mistral's undated names move between generations of different price, so dates are priced, and "-latest" where sure.
_MISTRAL: Final = """
mistral-large-2512       0.5    0.05   1.5
mistral-large-2411       2      -      6
mistral-large-2407       2      -      6
mistral-medium-3-5       1.5    0.15   7.5
mistral-medium-latest    1.5    0.15   7.5
mistral-medium-2508      0.4    0.04   2
mistral-medium-2505      0.4    0.04   2
mistral-small-latest     0.15   0.015  0.6
mistral-small-2603       0.15   0.015  0.6
mistral-small-2506       0.1    -      0.3
codestral-latest         0.3    -      0.9
codestral-2508           0.3    0.03   0.9
codestral-2501           0.3    -      0.9
ministral-14b-2512       0.2    0.02   0.2
ministral-8b-2512        0.15   0.015  0.15
ministral-8b-latest      0.15   0.015  0.15
ministral-3b-2512        0.1    0.01   0.1
devstral-2512            0.4    0.04   2
pixtral-large-2411       2      -      6
pixtral-large-latest     2      -      6
open-mistral-nemo        0.15   -      0.15
open-mistral-7b          0.25   -      0.25
open-mixtral-8x7b        0.7    -      0.7
open-mixtral-8x22b       2      -      6
mistral-embed            0.1    -      -
codestral-embed          0.15   0.015  -
"""

BUILT_IN: Final[Mapping[str, Price]] = MappingProxyType(
    {**_table(_OPENAI), **_table(_ANTHROPIC, cache_write=1.25), **_table(_MISTRAL)}
)
