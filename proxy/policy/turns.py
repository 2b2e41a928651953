"""What was said so far, read from a request in whichever dialect it is: enough for policies to judge it by.

Nothing is refused here and nothing is changed: what cannot be read is left out, and the upstream will say what is
wrong with it. `policy.pruning` cuts by the places that the turns name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from proxy.protocol.call import Call

CHAT: Final = "chat.completions"
MESSAGES: Final = "messages"
RESPONSES: Final = "responses"
CONVERSATIONS: Final = frozenset((CHAT, MESSAGES, RESPONSES))
"""Routes whose requests are conversations."""
MOST_MESSAGES: Final = 10_000
"""Longer ones are no vendor's and nobody's; to judge them would hold up everybody else."""

# Tuples, as a stranger may say a list where a word is meant, which has no hash.
_TEXTS: Final = ("text", "input_text", "output_text")
_MEDIA: Final = (
    *("image_url", "input_image", "image", "input_audio", "audio", "file", "input_file", "document"),
    *("image_file", "document_url"),
)
_SYSTEM: Final = ("system", "developer")
_CALLS: Final = ("function_call", "custom_tool_call", "computer_call", "local_shell_call", "mcp_call")
_ASKS: Final = "mcp_approval_request"
_ANSWERS: Final = "mcp_approval_response"


class Turn(NamedTuple):
    """One member of the list of messages."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool`` (the result of a call)."""
    text: str
    """All text in it, pieces joined by line ends."""
    calls: tuple[str, ...] = ()
    """Ids of the tool calls it makes."""
    results: tuple[str, ...] = ()
    """Ids of the tool calls it answers."""
    media: int = 0
    """Images, documents and recordings in it."""
    at: int = -1
    """Its index in the body's list; -1 for what stands outside it (Anthropic's ``system``, ``instructions``)."""
    bound: bool = False
    """It must stay with the turn behind it: a model's thought before what it thought of."""


class Turns:
    """All of them. Read once for a request, by whoever is first to ask."""

    # Mutable state: none after it was made.
    __slots__ = ("items", "member", "route", "structured", "tools", "user")

    def __init__(  # noqa: PLR0917 - what it is made of
        self, route: str, member: str, items: list[Turn], tools: int, structured: bool, user: str
    ) -> None:
        self.route = route
        self.member = member
        """The body's member that holds the list: ``messages`` or ``input``."""
        self.items = items
        """In order, instructions first."""
        self.tools = tools
        """Functions that the model may call."""
        self.structured = structured
        """The answer is to follow a schema, or to be JSON."""
        self.user = user
        """Whom the caller says it asks for; empty where it does not say."""

    @property
    def spoken(self) -> list[Turn]:
        """Without instructions."""
        return [turn for turn in self.items if turn.role != "system"]

    @property
    def last_user(self) -> str:
        """What is asked now; empty unless the last turn is a user's."""
        last = self.items[-1] if self.items else None
        return last.text if last is not None and last.role == "user" else ""

    @property
    def first_user(self) -> str:
        """What the conversation began with."""
        return next((turn.text for turn in self.items if turn.role == "user"), "")


def read_turns(call: Call, route: str) -> Turns | None:
    """The turns of a request for ``route``; ``None`` if that is no conversation, has no list of messages or one
    of more than ``MOST_MESSAGES``."""
    if route not in CONVERSATIONS:
        return None
    fields = call.fields
    member = "input" if route == RESPONSES else "messages"
    listed = fields.get(member)
    items: list[Turn] = []
    outside = fields.get("instructions" if route == RESPONSES else "system") if route != CHAT else None
    if outside:
        items.append(Turn("system", read_text(outside)))
    if type(listed) is str and route == RESPONSES:
        items.append(Turn("user", listed))
    elif type(listed) is list and len(listed) <= MOST_MESSAGES:
        read = _read_item if route == RESPONSES else _read_message
        items += [read(each, at) for at, each in enumerate(listed) if type(each) is dict]
    else:
        return None
    tools = fields.get("tools") or fields.get("functions")
    many = len(tools) if type(tools) is list else 0
    return Turns(route, member, items, many, _is_structured(fields), _user(fields))


def read_text(content: Any) -> str:
    """The text of a message's content: a string, or pieces of which some are text."""
    if type(content) is str:
        return content
    return "\n".join(_texts(content))


def _texts(content: Any) -> Iterator[str]:
    if type(content) is not list:
        return
    for piece in content:
        if type(piece) is str:
            yield piece
        elif type(piece) is dict:
            if piece.get("type") in _TEXTS and type(piece.get("text")) is str:
                yield piece["text"]
            elif piece.get("type") == "tool_result":
                yield read_text(piece.get("content"))


def _read_message(message: dict[str, Any], at: int) -> Turn:
    """Of Chat Completions or Messages."""
    role = message.get("role")
    content = message.get("content")
    pieces = [piece for piece in content if type(piece) is dict] if type(content) is list else ()
    calls = [_id(piece, "id") for piece in pieces if piece.get("type") in ("tool_use", "server_tool_use")]
    results = [_id(piece, "tool_use_id") for piece in pieces if str(piece.get("type")).endswith("tool_result")]
    said = message.get("tool_calls")
    if type(said) is list:
        calls += [_id(each, "id") for each in said if type(each) is dict]
    if type(message.get("function_call")) is dict:
        calls.append(_id(message["function_call"], "name"))
    if role in ("tool", "function"):
        results.append(_id(message, "tool_call_id") or _id(message, "name"))
    media = sum(piece.get("type") in _MEDIA for piece in pieces)
    return Turn(_role(role, results), read_text(content), tuple(calls), tuple(results), media, at)


def _read_item(item: dict[str, Any], at: int) -> Turn:
    """Of Responses."""
    kind = item.get("type", "message")
    if kind in _CALLS or kind == _ASKS or (type(kind) is str and kind.endswith("_call") and "call_id" in item):
        named = dict.fromkeys(filter(None, (_id(item, "call_id"), _id(item, "id"))))  # results say either
        return Turn("assistant", "", tuple(named) or ("",), (), 0, at)
    if kind == _ANSWERS:
        return Turn("tool", "", (), (_id(item, "approval_request_id"),), 0, at)
    if type(kind) is str and kind.endswith("_output"):
        output = item.get("output")
        return Turn("tool", read_text(output), (), (_id(item, "call_id") or _id(item, "id"),), 0, at)
    if kind != "message":
        return Turn("assistant", "", (), (), 0, at, bound=kind == "reasoning")
    content = item.get("content")
    pieces = [piece for piece in content if type(piece) is dict] if type(content) is list else ()
    media = sum(piece.get("type") in _MEDIA for piece in pieces)
    return Turn(_role(item.get("role"), ()), read_text(content), (), (), media, at)


def _role(role: Any, results: list[str] | tuple[()]) -> str:
    if role in _SYSTEM:
        return "system"
    if role in ("tool", "function") or results:
        return "tool"
    return "assistant" if role in ("assistant", "model") else "user"


def _id(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if type(value) is str else ""


def _is_structured(fields: dict[str, Any]) -> bool:
    wanted = fields.get("response_format")
    if type(wanted) is dict and wanted.get("type") != "text":
        return True
    text = fields.get("text")
    wanted = text.get("format") if type(text) is dict else None
    return (type(wanted) is dict and wanted.get("type") != "text") or type(fields.get("output_config")) is dict


def _user(fields: dict[str, Any]) -> str:
    said = fields.get("safety_identifier") or fields.get("user")
    if type(said) is not str:
        metadata = fields.get("metadata")
        said = metadata.get("user_id") if type(metadata) is dict else ""
    return said if type(said) is str else ""
