"""The catalog file's section ``tiers`` → `Tiered`. Whatever is wrong is reported with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from proxy.config.document import Document
from proxy.config.document import Path as Place
from proxy.config.models import Models
from proxy.config.tier_words import known_words
from proxy.config.tiers import STEP_POINTS, Points, Rules, Tier, Tiered
from proxy.linear import ExpressionSet, PatternError

MAX_TIERED: Final = 100
MAX_TIERS: Final = 16
MAX_SHARES: Final = 16
MAX_WORDS: Final = 500

Weight = Annotated[int, Meta(ge=0, le=1_000_000, description="Points.")]
Chars = Annotated[int, Meta(ge=1, le=10_000_000, description="Characters.")]
Share = Annotated[float, Meta(ge=0, le=1)]

_MODEL: Final = re.compile(r"[!-~]{1,256}")
_MODEL_HINT: Final = "1 to 256 printable ASCII characters without spaces"
_TIER: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_LETTERS: Final = re.compile(r"\w")


class TierFile(Struct, forbid_unknown_fields=True, frozen=True):
    """One step of complexity."""

    model: str
    from_points: Weight | None = None
    shares: dict[str, Share] = msgspec.field(default_factory=dict)
    drop_tools: bool = False


class PointsFile(Struct, forbid_unknown_fields=True, frozen=True):
    """What reasons count."""

    length: Weight = Points().length
    reasoning: Weight = Points().reasoning
    code: Weight = Points().code
    media: Weight = Points().media
    tools: Weight = Points().tools
    calls: Weight = Points().calls
    schema: Weight = Points().schema
    depth: Weight = Points().depth
    context: Weight = Points().context


class NewcomersFile(Struct, forbid_unknown_fields=True, frozen=True):
    """The first messages of a user."""

    messages: Annotated[int, Meta(ge=1, le=1_000)] = 3
    points: Weight = STEP_POINTS


class ScoreFile(Struct, forbid_unknown_fields=True, frozen=True):
    """How requests are scored."""

    points: PointsFile = msgspec.field(default_factory=PointsFile)
    long_chars: Chars = Rules().long_chars
    long_context_chars: Chars = Rules().long_context_chars
    words: list[str] = msgspec.field(default_factory=list)
    patterns: list[str] = msgspec.field(default_factory=list)
    built_in: bool = True


class TieredFile(Struct, forbid_unknown_fields=True, frozen=True):
    """A name that stands for other models by the complexity of what is asked."""

    tiers: Annotated[
        dict[str, str | TierFile],
        Meta(description="From the simplest to the most complex, each as a mapping or as the name of its model."),
    ]
    baseline: str | None = None
    shadow: bool = False
    header: bool = True
    newcomers: NewcomersFile | None = None
    score: ScoreFile = msgspec.field(default_factory=ScoreFile)


TieredName = Annotated[str, Meta(description="What callers ask for: a new name, an alias, or a model's name.")]
TiersFile = dict[TieredName, TieredFile]


def make_tiers(
    said: Mapping[str, TieredFile], aliases: Mapping[str, str], models: Models, document: Document
) -> Mapping[str, Tiered]:
    """The virtual models by the names that callers ask for, which are also the aliases of their names."""
    if len(said) > MAX_TIERED:
        document.report(("tiers",), f"there are {len(said)} virtual models", f"at most {MAX_TIERED} are possible")
        return MappingProxyType({})
    made = {
        name: tiered
        for name, each in said.items()
        if ("tiers", name) not in document.broken
        and (tiered := _Making(name, each, models, frozenset(said), document).make()) is not None
    }
    _add_aliases(made, aliases)
    return MappingProxyType(made)


def _add_aliases(made: dict[str, Tiered], aliases: Mapping[str, str]) -> None:
    """Aliases that lead to a virtual model are names of it as well. Each step of a chain is taken once; a circle has
    been reported and leads nowhere."""
    done: set[str] = set()
    for alias in aliases if made else ():
        way, name = [alias], alias
        while name not in made and name not in done and name in aliases:
            done.add(name)
            name = aliases[name]
            way.append(name)
        if name in made:
            made.update(dict.fromkeys(way, made[name]))


class _Making:
    """One virtual model."""

    __slots__ = ("document", "models", "name", "names", "place", "said")

    def __init__(
        self, name: str, said: TieredFile, models: Models, names: frozenset[str], document: Document
    ) -> None:
        self.name = name
        self.said = said
        self.models = models
        self.names = names
        self.document = document
        self.place: Place = ("tiers", name)

    def make(self) -> Tiered | None:
        """``None`` if anything is wrong with it, which is reported."""
        if "*" in self.name or not _MODEL.fullmatch(self.name):
            self.document.report(self.place, "this cannot be the name of a virtual model", f"{_MODEL_HINT} and '*'")
        tiers = self._make_tiers()
        baseline = self._make_baseline(tiers)
        rules = self._make_rules()
        if self.place in self.document.broken or not tiers:
            return None
        return Tiered(
            name=self.name,
            tiers=tiers,
            baseline=baseline,
            shadow=self.said.shadow,
            heeds_header=self.said.header,
            virtual=not self._is_known(self.name) and not any(self.name in tier.models for tier in tiers),
            rules=rules,
        )

    def _is_known(self, name: str) -> bool:
        return name in self.models.aliases or self.models.find(name) is not None

    def _make_tiers(self) -> tuple[Tier, ...]:
        said, place = self.said.tiers, (*self.place, "tiers")
        if not said:
            self.document.report(place, "there is no tier", "name at least one, such as 'simple: gpt-5-nano'")
        if len(said) > MAX_TIERS:
            self.document.report(place, f"there are {len(said)} tiers", f"at most {MAX_TIERS} are possible")
            return ()
        tiers: list[Tier] = []
        for name, each in said.items():
            tier = self._make_tier(name, each, tiers[-1] if tiers else None, (*place, name))
            tiers.append(tier)
        return tuple(tiers)

    def _make_tier(self, name: str, said: str | TierFile, before: Tier | None, place: Place) -> Tier:
        if isinstance(said, str):
            said = TierFile(said)
        if not _TIER.fullmatch(name):
            hint = "1 to 32 lower-case letters, digits, '_' and '-'"
            self.document.report(place, "this cannot be the name of a tier", hint)
        from_points = said.from_points
        if from_points is None:
            from_points = 0 if before is None else before.from_points + STEP_POINTS
        if before is None and from_points != 0:
            message = f"the first tier begins at 0 points, not at {from_points}"
            self.document.report((*place, "from_points"), message, "leave it out")
        elif before is not None and from_points <= before.from_points:
            message = f"{from_points} is not more than the {before.from_points} points where '{before.name}' begins"
            hint = "write tiers from the simplest to the most complex"
            self.document.report((*place, "from_points"), message, hint)
        return Tier(
            name=name,
            model=self._resolve(said.model, (*place, "model")),
            from_points=from_points,
            shares=self._make_shares(said.shares, (*place, "shares")),
            drops_tools=said.drop_tools,
        )

    def _make_shares(self, said: Mapping[str, float], place: Place) -> tuple[tuple[str, float], ...]:
        if len(said) > MAX_SHARES:
            self.document.report(place, f"there are {len(said)} shares", f"at most {MAX_SHARES} are possible")
            return ()
        total = sum(said.values())
        if total > 1.0 + 1e-9:
            hint = "what is left of 1 goes to the tier's own model"
            self.document.report(place, f"together they are {total:g}, more than 1", hint)
        return tuple((self._resolve(model, (*place, model)), share) for model, share in said.items())

    def _make_baseline(self, tiers: tuple[Tier, ...]) -> str:
        """What the name means without tiers, else the model of the strongest."""
        if self.said.baseline is not None:
            return self._resolve(self.said.baseline, (*self.place, "baseline"))
        if self._is_known(self.name) or any(self.name in tier.models for tier in tiers):
            return self.models.resolve(self.name)
        return tiers[-1].model if tiers else ""

    def _resolve(self, model: str, place: Place) -> str:
        """The name that goes out: a name that is virtual stands for itself, as no request is judged twice."""
        if "*" in model or not _MODEL.fullmatch(model):
            self.document.report(place, "this cannot be the name of a model", f"{_MODEL_HINT} and '*'")
        elif not self._is_known(model):
            if model in self.names and model != self.name:
                hint = "a tier names a model of the catalog or of a provider"
                self.document.report(place, f"'{model}' is virtual itself, and no other model has that name", hint)
            else:
                hint = "it will go to the provider of the caller's path, under this name"
                self.document.warn(place, f"the catalog has no model '{model}'", hint)
        return self.models.resolve(model)

    # -- scoring ----------------------------------------------------------------------------------------------

    def _make_rules(self) -> Rules:
        score, newcomers = self.said.score, self.said.newcomers
        words = tuple(self._make_words())
        known_words(score.built_in)  # compiled now, as no request shall wait for it
        return Rules(
            points=Points(**msgspec.structs.asdict(score.points)),
            long_chars=score.long_chars,
            long_context_chars=score.long_context_chars,
            words=words,
            built_in=score.built_in,
            newcomer_messages=newcomers.messages if newcomers is not None else 0,
            newcomer_points=newcomers.points if newcomers is not None else STEP_POINTS,
            expressions=self._compile(words) if words else None,
        )

    def _make_words(self) -> Iterator[str]:
        score, place = self.said.score, (*self.place, "score")
        if len(score.words) + len(score.patterns) > MAX_WORDS:
            hint = f"at most {MAX_WORDS} are possible, patterns included"
            self.document.report((*place, "words"), "there are too many words", hint)
            return
        for index, word in enumerate(score.words):
            if not _LETTERS.search(word):
                message, hint = "expected a word or a phrase", "a '*' at its end stands for any ending"
                self.document.report((*place, "words", index), message, hint)
                continue
            yield self._check((*place, "words", index), as_pattern(word))
        for index, pattern in enumerate(score.patterns):
            yield self._check((*place, "patterns", index), pattern)

    def _check(self, place: Place, pattern: str) -> str:
        try:
            one = ExpressionSet([pattern], ignore_case=True)
        except PatternError as error:
            self.document.report(place, f"this is no regular expression: {error}", "RE2's syntax, no look-around")
            return ""
        if one.which(b""):
            hint = "every request would have it"
            self.document.report(place, "this matches a text without any words", hint)
        return pattern

    def _compile(self, words: tuple[str, ...]) -> ExpressionSet | None:
        if "" in words:
            return None
        try:
            return ExpressionSet(words, ignore_case=True)
        except PatternError as error:
            self.document.report((*self.place, "score"), str(error), "use fewer or shorter words and patterns")
            return None


def as_pattern(word: str) -> str:
    """A word or phrase as a regular expression: whole words, in any case, any white space between them. A ``*`` at
    its end stands for any ending."""
    stem = word.strip()
    open_end = stem.endswith("*")
    parts = stem.rstrip("*").split()
    before = "" if _runs_on(parts[0][0]) else r"(?:^|[^\pL\pN_])"
    behind = "" if open_end or _runs_on(parts[-1][-1]) else r"(?:$|[^\pL\pN_])"
    return before + r"\s+".join(map(re.escape, parts)) + behind


def _runs_on(letter: str) -> bool:
    """Whether it is of a script that sets no spaces between words, or hangs endings on them (Thai, Chinese, Japanese,
    Korean)."""
    return "\u0e00" <= letter <= "\u11ff" or "\u2e80" <= letter <= "\ud7ff" or letter >= "\uf900"
