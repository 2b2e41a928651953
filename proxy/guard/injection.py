"""Phrases by which a text tries to give a model other orders than it has, in the languages that most texts are in.

This finds what is said plainly. It is a net with wide meshes: a text that is meant to pass it can, and a text about
prompt injection is caught; so most people flag rather than block.
"""

from __future__ import annotations

from typing import Final

from proxy.guard.base import Scanner
from proxy.guard.phrases import Pattern

_SPAN_BYTES: Final = 320

# Between words: a few characters of white space or of punctuation.
_GAP: Final = r"[\s\"'*_,:>-]{1,4}"
_FEW: Final = rf"(?:[^\s.!?]{{1,24}}{_GAP}){{0,4}}"


def _say(text: str) -> str:
    """``a b ~ c``: words with gaps between them, and up to four words more where ``~`` stands."""
    pattern = ""
    for word in text.split():
        if word == "~":
            pattern += _FEW
        else:
            pattern += word + _GAP
    return pattern.removesuffix(_GAP)


_PHRASES: Final = (
    # English
    "(?:ignore|disregard|forget|override|bypass|neglect) ~ (?:previous|prior|above|preceding|earlier|foregoing|"
    "system|original|initial|given) ~ (?:instructions?|prompts?|rules|directions|directives|guidelines|commands|"
    "messages?)",
    "(?:ignore|disregard|forget) (?:everything|anything|all) ~ (?:above|before|said|told|previously)",
    "do not (?:follow|obey) ~ (?:previous|prior|above|system|original) ~ (?:instructions?|prompts?|rules)",
    "(?:reveal|show|print|repeat|output|display|tell|give|leak) ~ (?:system|hidden|initial|original|secret) "
    "(?:prompts?|instructions?|messages?)",
    "(?:what|which) (?:is|are|was|were) your ~ (?:system|initial|original|hidden) (?:prompt|instructions?)",
    "you are (?:now|no longer) ~ (?:dan|jailbroken|unrestricted|unfiltered|uncensored|bound)",
    "(?:enter|enable|activate|switch to) ~ (?:developer|jailbreak|god|dan|unrestricted|debug) mode",
    "(?:pretend|act|behave) ~ (?:no|without|free of) ~ (?:restrictions|rules|filters|guidelines|limitations)",
    "(?:new|updated|real) (?:system )?(?:instructions|prompt) (?:follow|below|override)",
    "do anything now",
    # German
    "(?:ignoriere?|vergiss|missachte|übergehe) ~ (?:vorherigen?|bisherigen?|obigen?|früheren?|vorigen?|"
    "vorangegangenen?) ~ (?:anweisung(?:en)?|instruktionen|regeln|vorgaben|befehle|eingaben)",
    "(?:zeige?|nenne?|verrate?|wiederhole?) ~ (?:system-?prompt|systemanweisung(?:en)?)",
    # French
    "(?:ignore[zr]?|oublie[zr]?|néglige[zr]?) ~ (?:instructions?|consignes?|règles|directives) ~ "
    "(?:précédente?s?|antérieure?s?|ci-dessus|initiale?s?)",
    "(?:montre|révèle|affiche|donne|répète)[zr]? ~ (?:prompt|invite|instructions?) "
    "(?:système|initiale?s?|secrète?s?)",
    # Spanish
    "(?:ignora|ignore|olvida|olvide|omite)[rd]? ~ (?:instrucciones|órdenes|indicaciones|reglas) ~ "
    "(?:anteriores|previas|iniciales)",
    "(?:muestra|revela|repite|dime)[rm]?e? ~ (?:prompt|instrucciones|mensaje) (?:del|de) sistema",
    # Italian
    "(?:ignora|dimentica|trascura)(?:re|te)? ~ (?:istruzioni|regole|indicazioni) ~ (?:precedenti|iniziali|sopra)",
    # Portuguese
    "(?:ignore|ignora|esqueça|esquece|desconsidere) ~ (?:instruções|regras|ordens) ~ (?:anteriores|prévias|iniciais)",
    # Dutch
    "(?:negeer|vergeet) ~ (?:vorige|eerdere|voorgaande|bovenstaande) ~ (?:instructies|opdrachten|regels)",
    # Polish
    "(?:zignoruj|ignoruj|zapomnij) ~ (?:poprzednie|wcześniejsze|powyższe|poprzednich) ~ "
    "(?:instrukcje|polecenia|zasady|instrukcjach)",
    # Russian
    "(?:игнорируй|игнорируйте|проигнорируй|забудь|забудьте) ~ (?:предыдущие|прежние|вышеуказанные|прошлые) ~ "
    "(?:инструкции|указания|правила|команды)",
    # Turkish
    "(?:önceki|yukarıdaki) ~ (?:talimatları|kuralları|komutları) ~ (?:yok say|unut|görmezden gel|dikkate alma)",
)

_UNSPACED: Final = (
    # Chinese, Japanese, Korean
    "(?:忽略|无视|忘记|忽視|無視)[^。！？\\n]{0,8}(?:之前|以上|先前|上面|前面|此前)[^。！？\\n]{0,8}(?:指令|指示|提示|规则|規則|要求|内容)",
    "(?:以前|これまで|上記|前)の[^。！？\\n]{0,8}(?:指示|命令|プロンプト|ルール)[^。！？\\n]{0,6}(?:無視|忘れ)",
    "(?:이전|위의|앞의|기존)[^.!?\\n]{0,8}(?:지시|명령|지침|프롬프트|규칙)[^.!?\\n]{0,8}(?:무시|잊어)",
)

_MARKS: Final = (
    # The marks by which chats are written for models: nobody but a chat's own software has a use for them.
    r"<\|(?:im_start|im_end|system|start_header_id|eot_id|endoftext)\|>",
    r"\[/?INST\]|<</?SYS>>",
    r"(?:^|\n)#{2,4} ?(?:system|instruction)s?(?: ?(?:prompt|override|message))? ?:",
)


def make_scanners(*, marks: bool = True) -> list[Scanner]:
    """With ``marks`` unset, only what is said in words."""
    spoken = [_say(each) for each in _PHRASES]
    patterns = ["|".join(group) for group in _bundle(spoken)] + ["|".join(_UNSPACED)]
    if marks:
        patterns.append("|".join(_MARKS))
    return [Pattern("injection", pattern, _SPAN_BYTES, ignore_case=True) for pattern in patterns]


def _bundle(patterns: list[str], most_chars: int = 1_900) -> list[list[str]]:
    """Few expressions are looked for faster than many, and one may only be so long."""
    groups: list[list[str]] = [[]]
    for each in patterns:
        if sum(len(one) + 1 for one in groups[-1]) + len(each) > most_chars:
            groups.append([])
        groups[-1].append(each)
    return groups
