"""What prompts lose by rule: instructions that are said in other words, passages between an operator's markers, white
space. Pure; the same text loses the same, so that equal prompts stay equal and growing ones keep their beginning.

Only the text that people wrote is looked at. What models and tools said, arguments of calls, code between fences and
lines that are indented like code stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final

from proxy.config.pruning import Slimming
from proxy.policy.turns import RESPONSES, Turns
from proxy.protocol.call import Call

_TEXTS: Final = frozenset(("text", "input_text"))
_FENCES: Final = ("```", "~~~")
_RUN: Final = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
"""One class of characters and nothing that could be tried in two ways: linear."""

Change = Callable[[str], str]


def plan_slimming(call: Call, turns: Turns, slimming: Slimming) -> dict[str, Any]:
    """The members of the request that are to be said otherwise; empty if none."""
    edits: dict[str, Any] = {}
    outside = "instructions" if turns.route == RESPONSES else "system"

    def of_instructions(text: str) -> str:
        return slim_text(text, slimming, instructions=True)

    def of_users(text: str) -> str:
        return slim_text(text, slimming, instructions=False)

    said = call.fields.get(outside)
    if said and any(turn.at < 0 for turn in turns.items):
        _note(edits, outside, said, _change_content(said, of_instructions))
    items = call.fields.get(turns.member)
    if type(items) is str and slimming.everywhere:
        _note(edits, turns.member, items, of_users(items))
    elif type(items) is list:
        changed = list(items)
        for turn in turns.items:
            if turn.at < 0 or turn.role not in ("system", "user"):
                continue
            if turn.role == "system" or slimming.everywhere:
                change = of_instructions if turn.role == "system" else of_users
                changed[turn.at] = _change_message(items[turn.at], change)
        if any(new is not old for new, old in zip(changed, items, strict=True)):
            edits[turns.member] = changed
    return edits


def slim_text(text: str, slimming: Slimming, *, instructions: bool) -> str:
    """One text without what the rules take out of it."""
    if instructions and slimming.prompts:
        by = slimming.prompts.get(sha256(text.encode("utf-8", "surrogatepass")).digest())
        if by is not None:
            return by
    if instructions or slimming.everywhere:
        for begin, end in slimming.markers:
            if begin in text:
                text = drop_between(text, begin, end)
        if slimming.squeeze:
            text = squeeze(text)
    return text


def drop_between(text: str, begin: str, end: str) -> str:
    """Without what stands between two markers, and without the markers; one that is not closed stays. White space
    around what is gone does not add up."""
    kept: list[str] = []
    at = 0
    while (start := text.find(begin, at)) >= 0:
        stop = text.find(end, start + len(begin))
        if stop < 0:
            break
        before = text[at:start]
        if before.endswith("\n") or not before:
            after = stop + len(end)
            at = after + 1 if text[after : after + 1] == "\n" else after
        else:
            at = stop + len(end)
        kept.append(before)
    return "".join([*kept, text[at:]]) if kept else text


def squeeze(text: str) -> str:
    """Without blanks at the ends of lines, without more than one empty line in a row, and with one blank for several
    inside a line; code is left alone."""
    if "  " not in text and "\t" not in text and "\n\n\n" not in text and " \n" not in text:
        return text
    lines: list[str] = []
    fence = ""
    blank = False
    for line in text.split("\n"):
        bare = line.lstrip(" ")
        if fence:
            lines.append(line)
            if bare.rstrip().startswith(fence) and not bare.strip().strip(fence[0]):
                fence = ""
        elif bare.startswith(_FENCES):
            fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
            lines.append(line)
            blank = False
        else:
            line = line.rstrip(" \t\r")  # noqa: PLW2901 - the same line, shorter
            if line or not blank:
                lines.append(line if _is_code(line) else _RUN.sub(" ", line))
            blank = not line
    return "\n".join(lines).rstrip()


def _is_code(line: str) -> bool:
    """Indented by four, by a tab, or with code in it; and tables, whose columns are in line."""
    return line.startswith(("    ", "\t")) or "`" in line or "|" in line


def _change_message(message: dict[str, Any], change: Change) -> dict[str, Any]:
    """The very message where nothing changes."""
    content = message.get("content")
    changed = _change_content(content, change)
    return message if changed is content else {**message, "content": changed}


def _change_content(content: Any, change: Change) -> Any:
    """The very content where nothing changes. A piece that would be empty stays: some vendors refuse empty ones."""
    if type(content) is str:
        changed = change(content)
        return changed if changed and changed != content else content
    if type(content) is not list:
        return content
    pieces = [_change_piece(piece, change) for piece in content]
    return pieces if any(new is not old for new, old in zip(pieces, content, strict=True)) else content


def _change_piece(piece: Any, change: Change) -> Any:
    if type(piece) is not dict or type(piece.get("text")) is not str:
        return piece
    if type(piece.get("type")) is not str or piece["type"] not in _TEXTS:
        return piece
    changed = change(piece["text"])
    return {**piece, "text": changed} if changed and changed != piece["text"] else piece


def _note(edits: dict[str, Any], name: str, old: Any, new: Any) -> None:
    if new is not old and new != old:
        edits[name] = new
