"""The catalog file's sections ``pruning`` and ``slimming`` → their records. Whatever is wrong is reported to the
document, with its place."""

from __future__ import annotations

import re
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.config.convert import resembling
from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.models import Models
from proxy.config.pruning import DEFAULT_INSTRUCTIONS, Measure, Pruning, Slimming, Summary

if TYPE_CHECKING:
    from proxy.config.schema import CatalogFile

MAX_RULES: Final = 1_000
_LEAST_TOKENS: Final = 100
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")

Messages = Annotated[int, Meta(ge=0, le=100_000, description="Messages; 0: no bound.")]
PromptTokens = Annotated[int, Meta(ge=0, le=10_000_000, description="Tokens of the whole prompt; 0: no bound.")]
Block = Annotated[int, Meta(ge=1, le=1_000, description="Messages by which the cut moves.")]
Text = Annotated[str, Meta(max_length=1_000_000)]


class MeasureFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What is different for a model."""

    messages: Messages | None = None
    tokens: PromptTokens | None = None
    block: Block | None = None


class SummaryFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Who condenses what falls out, and how."""

    model: str
    max_tokens: Annotated[int, Meta(ge=16, le=100_000)] = 400
    most_input_tokens: Annotated[int, Meta(ge=500, le=10_000_000)] = 12_000
    timeout_s: Annotated[float, Meta(gt=0, le=600, description="Seconds.")] = 10.0
    on_failure: Literal["drop", "keep"] = "drop"
    ttl_s: Annotated[float, Meta(gt=0, le=31_536_000, description="Seconds.")] = 86_400.0
    instructions: Annotated[str, Meta(min_length=1, max_length=20_000)] | None = None


class PruningFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What long conversations lose."""

    messages: Messages = 20
    tokens: PromptTokens = 0
    block: Block = 10
    models: dict[str, MeasureFile] = msgspec.field(default_factory=dict)
    routes: list[Literal["chat.completions", "messages", "responses"]] = msgspec.field(default_factory=list)
    summary: Annotated[str | SummaryFile | None, Meta(description="A model, or more about it.")] = None


class PromptFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Instructions that are replaced: the whole text of them, or its SHA-256 in hexadecimal digits."""

    replace: Text = ""
    sha256: str = ""
    by: Text = ""


class MarkersFile(Struct, forbid_unknown_fields=True, frozen=True):
    """Text between these two, and they themselves, is left out."""

    begin: Annotated[str, Meta(max_length=1_000)]
    end: Annotated[str, Meta(max_length=1_000)]


class SlimmingFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What prompts lose by rule."""

    prompts: list[PromptFile] = msgspec.field(default_factory=list)
    drop: list[MarkersFile] = msgspec.field(default_factory=list)
    squeeze: bool = False
    texts: Literal["instructions", "all"] = "instructions"


# -- pruning --------------------------------------------------------------------------------------------------------


def make_pruning(file: CatalogFile, models: Models, document: Document) -> Pruning | None:
    """``None`` if the file says nothing of it, or nothing that can be used."""
    said = file.pruning
    if said is None:
        return None
    place: Place = ("pruning",)
    usual = Measure(said.messages, said.tokens, said.block)
    by_model = {name: _merge(usual, own) for name, own in said.models.items()}
    if not usual.bounds and not any(measure.bounds for measure in by_model.values()):
        document.report(place, "neither messages nor tokens have a bound", "give one of them, or leave pruning out")
    for name in said.models:
        _check_name(name, (*place, "models", name), models, document)
    summary = _make_summary(said.summary, models, document, (*place, "summary"))
    _check_room(usual, summary, document, (*place, "tokens"))
    for name, measure in by_model.items():
        _check_room(measure, summary, document, (*place, "models", name, "tokens"))
    return Pruning(usual, MappingProxyType(by_model), frozenset(said.routes), summary)


def _merge(usual: Measure, own: MeasureFile) -> Measure:
    return Measure(
        usual.messages if own.messages is None else own.messages,
        usual.tokens if own.tokens is None else own.tokens,
        usual.block if own.block is None else own.block,
    )


def _check_name(name: str, place: Place, models: Models, document: Document) -> None:
    if not name or "*" in name[:-1] or not name.isprintable():
        document.report(place, "this cannot be the name of a model", "a name, or its beginning and a '*'")
    elif models and not name.endswith("*") and models.find(models.resolve(name)) is None:
        document.warn(place, "the catalog knows no such model", resembling(document, name, _names(models)))


def _make_summary(said: str | SummaryFile | None, models: Models, document: Document, place: Place) -> Summary | None:
    if said is None:
        return None
    if isinstance(said, str):
        said = SummaryFile(said)
    else:
        if said.instructions is not None and not said.instructions.strip():
            document.report((*place, "instructions"), "they say nothing", "leave them out for those of this proxy")
        place = (*place, "model")
    model = models.resolve(said.model) if said.model else ""
    if models.find(model) is None:
        hint = resembling(document, said.model, _names(models)) or "name one of the catalog's models"
        document.report(place, f"there is no model {said.model[:100]!r}", hint)
        return None
    return Summary(
        model,
        said.max_tokens,
        said.most_input_tokens,
        said.timeout_s,
        said.on_failure,
        said.ttl_s,
        said.instructions or DEFAULT_INSTRUCTIONS,
    )


def _names(models: Models) -> list[str]:
    return [*models.by_name, *models.aliases]


def _check_room(measure: Measure, summary: Summary | None, document: Document, place: Place) -> None:
    """Something of the conversation must be left beside the summary."""
    least = _LEAST_TOKENS if summary is None else max(_LEAST_TOKENS, 2 * summary.max_tokens)
    if 0 < measure.tokens < least:
        beside = "" if summary is None else f" beside a summary of {summary.max_tokens}"
        document.report(place, f"{measure.tokens} tokens leave no room{beside}", f"at least {least}")


# -- slimming -------------------------------------------------------------------------------------------------------


def make_slimming(file: CatalogFile, document: Document) -> Slimming | None:
    """``None`` if the file says nothing of it."""
    said = file.slimming
    if said is None:
        return None
    for name, rules in (("prompts", said.prompts), ("drop", said.drop)):
        if len(rules) > MAX_RULES:
            document.report(("slimming", name), f"there are {len(rules)} rules", f"at most {MAX_RULES} are possible")
            return None
    if not (said.prompts or said.drop or said.squeeze):
        document.report(("slimming",), "there is no rule", "give prompts, drop or squeeze, or leave slimming out")
    prompts: dict[bytes, str] = {}
    for index, prompt in enumerate(said.prompts):
        place: Place = ("slimming", "prompts", index)
        digest = _read_prompt(prompt, document, place)
        if digest in prompts:
            document.report(place, "these instructions are replaced by another rule already")
        elif digest:
            prompts[digest] = prompt.by
    for index, markers in enumerate(said.drop):
        if not markers.begin.strip() or not markers.end:
            document.report(("slimming", "drop", index), "a marker must not be empty", "it would stand everywhere")
    return Slimming(
        MappingProxyType(prompts),
        tuple((markers.begin, markers.end) for markers in said.drop),
        said.squeeze,
        said.texts == "all",
    )


def _read_prompt(said: PromptFile, document: Document, place: Place) -> bytes:
    """The SHA-256 of what is replaced; empty where the rule is wrong."""
    if bool(said.replace) == bool(said.sha256):
        document.report(place, "expected either 'replace' or 'sha256'", "the instructions' whole text, or its hash")
        return b""
    if not said.by.strip():
        hint = "say what stands there instead; some vendors refuse instructions that say nothing"
        document.warn(place, "nothing is to stand in the place of these instructions, so they stay", hint)
    if said.sha256:
        if not _SHA256.fullmatch(said.sha256):
            document.report((*place, "sha256"), "expected 64 hexadecimal digits", "such as sha256sum writes")
            return b""
        return bytes.fromhex(said.sha256)
    return sha256(said.replace.encode("utf-8", "surrogatepass")).digest()
