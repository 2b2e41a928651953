"""JSON Schemas, as far as a dialect puts demands on them."""

from __future__ import annotations

from typing import Any, Final

_NESTED: Final = ("properties", "$defs", "definitions")
_LISTED: Final = ("anyOf", "allOf", "oneOf", "prefixItems")


def is_strict(schema: Any) -> bool:
    """Whether OpenAI takes the schema with ``strict``: every object closed, every property required."""
    level = [schema]
    while level:
        node = level.pop()
        if type(node) is not dict:
            continue
        properties = node.get("properties")
        if node.get("type") == "object" or type(properties) is dict:
            names = set(properties) if type(properties) is dict else set()
            required = node.get("required")
            listed = set(map(str, required)) if type(required) is list else set()
            if node.get("additionalProperties") is not False or names != listed:
                return False
        level += _children(node)
    return True


def _children(node: dict[str, Any]) -> list[Any]:
    children = [node.get("items")]
    for name in _NESTED:
        if type(node.get(name)) is dict:
            children += node[name].values()
    for name in _LISTED:
        if type(node.get(name)) is list:
            children += node[name]
    return children


def from_openapi(schema: Any) -> Any:
    """Gemini's subset of OpenAPI as JSON Schema: types in small letters, ``nullable`` as a type of its own."""
    if type(schema) is list:
        return [from_openapi(node) for node in schema]
    if type(schema) is not dict:
        return schema
    said: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "type" and type(value) is str:
            said["type"] = value.lower()
        elif name == "properties" and type(value) is dict:
            said["properties"] = {key: from_openapi(node) for key, node in value.items()}
        elif name in ("items", "anyOf", "prefixItems", "additionalProperties"):
            said[name] = from_openapi(value)
        elif name not in ("nullable", "propertyOrdering", "property_ordering"):
            said[name] = value
    if schema.get("nullable") is True and type(said.get("type")) is str:
        said["type"] = [said["type"], "null"]
    return said
