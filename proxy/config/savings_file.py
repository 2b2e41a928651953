"""From the catalog file's sections about savings, guards and flags to their records, with everything that is wrong
reported at its place."""

from __future__ import annotations

from proxy.config.cache_class_file import make_cache_classes
from proxy.config.cache_classes import CacheClasses
from proxy.config.document import Document, Path, spell
from proxy.config.feature_flags import NO_FLAGS, Flag, Flags
from proxy.config.flag_changes import MAX_RULES
from proxy.config.flag_form import configured_names, doubt_of, read_section
from proxy.config.guard_file import make_guards
from proxy.config.models import Models
from proxy.config.pattern_file import make_patterns
from proxy.config.pruning_file import make_pruning, make_slimming
from proxy.config.savings import Savings
from proxy.config.schema import ROUTE_NAMES, CatalogFile
from proxy.config.tier_file import make_tiers


def make_savings(file: CatalogFile, models: Models, document: Document) -> Savings | None:
    """``None`` if the file says nothing of any of it."""
    savings = Savings(
        patterns=make_patterns(file.patterns, document) if file.patterns is not None else None,
        classes=_make_classes(file, document),
        tiers=make_tiers(file.tiers, file.aliases, models, document),
        pruning=make_pruning(file, models, document),
        slimming=make_slimming(file, document),
        guards=make_guards(file.guards, ROUTE_NAMES, document),
    )
    return None if savings.says_nothing else savings


def _make_classes(file: CatalogFile, document: Document) -> CacheClasses | None:
    said = file.cache_classes
    return None if said is None else make_cache_classes(said, ROUTE_NAMES, document)


def make_flags(file: CatalogFile, savings: Savings | None, document: Document) -> Flags:
    """The file's rules; a warning for what has nothing to switch."""

    def report(path: Path, message: str, hint: str) -> None:
        place = ("flags", *path)
        if spell(place) not in told:
            document.report(place, message, hint)

    told = {problem.path for problem in document.problems}
    edits = read_section(file.flags, report)
    if len(edits) > MAX_RULES:
        document.report(("flags",), f"{len(edits)} rules are too many", f"at most {MAX_RULES}")
    configured = configured_names(savings)
    for name in dict.fromkeys(edit.name for edit in edits):
        doubt = doubt_of(name, configured)
        if doubt:
            document.warn(("flags", name), doubt)
    rules = [Flag(edit.name, edit.scope, edit.subject, edit.percent) for edit in edits if edit.percent is not None]
    return Flags(rules) if rules else NO_FLAGS
