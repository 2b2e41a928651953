"""Plain conversations in the three families of dialects: what the proxy itself has to say in a caller's dialect, and
to read of it. No tools, no options; translations between dialects are the business of `providers`."""

from __future__ import annotations

from typing import Any, Final

import orjson

from proxy.protocol.routes import Dialect

_MESSAGES: Final = "messages"
_RESPONSES: Final = "responses"
_TEXTS: Final = frozenset(("text", "input_text", "output_text"))
_GAP: Final = " […] "


def dump(value: Any) -> bytes:
    """JSON text of what was parsed from JSON."""
    return orjson.dumps(value)


def make_user_message(text: str) -> dict[str, Any]:
    """A member of the list of messages, the same for all three families."""
    return {"role": "user", "content": text}


def make_request(  # noqa: PLR0917 - what a question consists of
    route: str, model: str, instructions: str, text: str, max_tokens: int, dialect: Dialect = Dialect.OPENAI
) -> bytes:
    """A whole request of one question, for the route's family. Mistral refuses a bound in OpenAI's word."""
    said = make_user_message(text)
    fields: dict[str, Any] = {"model": model}
    if route == _MESSAGES:
        fields |= {"max_tokens": max_tokens, "system": instructions, "messages": [said]}
    elif route == _RESPONSES:
        fields |= {"instructions": instructions, "input": [said], "max_output_tokens": max_tokens, "store": False}
    else:
        bound = "max_tokens" if dialect is Dialect.MISTRAL else "max_completion_tokens"
        fields |= {"messages": [{"role": "system", "content": instructions}, said], bound: max_tokens}
    return orjson.dumps(fields)


def read_answer(route: str, body: bytes) -> str:
    """The text of a whole answer; empty where there is none or the body is no such answer."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    if type(fields) is not dict:
        return ""
    if route == _MESSAGES:
        return _text_of(fields.get("content"))
    if route == _RESPONSES:
        items = fields.get("output")
        said = [each for each in items if type(each) is dict] if type(items) is list else []
        return "".join(_text_of(each.get("content")) for each in said if each.get("type") == "message")
    choices = fields.get("choices")
    first = choices[0] if type(choices) is list and choices else None
    message = first.get("message") if type(first) is dict else None
    return _text_of(message.get("content")) if type(message) is dict else ""


def _text_of(content: Any) -> str:
    if type(content) is str:
        return content
    pieces = [each for each in content if type(each) is dict] if type(content) is list else []
    said = [each.get("text") for each in pieces if _kind_of(each) in _TEXTS]
    return "".join(text for text in said if type(text) is str)


# -- for people and models to read ----------------------------------------------------------------------------------


def transcribe(item: dict[str, Any], most_chars: int) -> str:
    """One message or item as lines of plain text: who speaks, what is said, which tools are called and what they
    answer. Media are only named. At most about ``most_chars`` characters, left out of the middle."""
    lines: list[str] = []
    kind = item.get("type", "message")
    if kind in ("message", None) or "role" in item:
        _say(lines, str(item.get("role") or "user").capitalize(), item.get("content"))
        calls = item.get("tool_calls")
        for call in calls if type(calls) is list else ():
            _call(lines, call.get("function") or call.get("custom") if type(call) is dict else None)
        _call(lines, item.get("function_call"))
    elif type(kind) is str and kind.endswith("_output"):
        _say(lines, "Tool", item.get("output"))
    elif type(kind) is str and kind.endswith("_call"):
        _call(lines, item)
    return shorten("\n".join(lines), most_chars)


def shorten(text: str, most_chars: int) -> str:
    """Its beginning and its end where it is too long."""
    if len(text) <= most_chars:
        return text
    half = max(1, (most_chars - len(_GAP)) // 2)
    return text[:half] + _GAP + text[-half:]


def _say(lines: list[str], who: str, content: Any) -> None:
    if type(content) is str:
        content = [{"type": "text", "text": content}]
    for piece in content if type(content) is list else ():
        if type(piece) is not dict:
            continue
        kind = _kind_of(piece)
        if kind in _TEXTS and type(piece.get("text")) is str:
            lines.append(f"{who}: {piece['text']}")
        elif kind in ("tool_use", "server_tool_use"):
            _call(lines, piece)
        elif kind.endswith("tool_result"):
            _say(lines, "Tool", piece.get("content"))
        elif kind and kind not in ("thinking", "redacted_thinking"):
            lines.append(f"{who}: [{kind}]")


def _kind_of(piece: dict[str, Any]) -> str:
    kind = piece.get("type")
    return kind if type(kind) is str else ""


def _call(lines: list[str], call: Any) -> None:
    """A call of a tool: its name and what it was given."""
    if type(call) is not dict:
        return
    given = next((call[name] for name in ("arguments", "input", "action") if name in call), "")
    text = given if type(given) is str else orjson.dumps(given).decode()
    lines.append(f"Assistant calls {call.get('name') or call.get('type')}: {text}")
