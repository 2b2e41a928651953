"""Other names of models. A chain of aliases is followed once, when the catalog is made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Final

from proxy.config.document import Document
from proxy.config.schema import MAX_ALIASES

_NAME: Final = re.compile(r"[!-~]{1,256}")
_MOST_SHOWN: Final = 8


def resolve_aliases(aliases: Mapping[str, str], models: Set[str], document: Document) -> dict[str, str]:
    """Alias → the name that is meant, which need not be in the catalog. What is wrong is reported."""
    if len(aliases) > MAX_ALIASES:
        document.report(("aliases",), f"there are {len(aliases)} aliases", f"at most {MAX_ALIASES} are possible")
        return {}
    for alias, name in aliases.items():
        _check(alias, name, models, document)
    resolved: dict[str, str] = {}
    for alias in aliases:
        _follow(alias, aliases, resolved, document)
    return resolved


def _check(alias: str, name: str, models: Set[str], document: Document) -> None:
    place = ("aliases", alias)
    for each, what in ((alias, "an alias"), (name, "what an alias stands for")):
        if "*" in each:
            hint = "a model whose name ends in '*' answers for all names that begin so"
            document.report(place, f"'*' cannot be in {what}", hint)
            return
        if not _NAME.fullmatch(each):
            document.report(place, f"this cannot be {what}", "1 to 256 printable ASCII characters without spaces")
            return
    if alias in models:
        document.report(place, "there is a model of this name", "leave out the one or the other")


def _follow(alias: str, aliases: Mapping[str, str], resolved: dict[str, str], document: Document) -> None:
    """Write the ends of ``alias`` and of everything on the way to it. A cycle is reported once, at the first of its
    aliases in the file; each alias is walked over once."""
    way: dict[str, None] = {}
    name = alias
    while name in aliases and name not in resolved and name not in way:
        way[name] = None
        name = aliases[name]
    if name in way:
        circle = list(way)[list(way).index(name) :]
        shown = " → ".join([*circle[:_MOST_SHOWN], *(["…"] if len(circle) > _MOST_SHOWN else []), name])
        message = "an alias of itself" if len(circle) == 1 else f"these aliases go round in a circle: {shown}"
        document.report(("aliases", name), message, "let one of them name a model")
    end = resolved.get(name, name)
    for each in way:
        resolved[each] = end
