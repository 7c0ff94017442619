"""The part of JSON Schema that a job's schema uses."""

from __future__ import annotations

from typing import Any


def conforms(value: Any, schema: dict[str, Any], defs: dict[str, Any]) -> bool:
    """The part of JSON Schema 2020-12 that a job's schema uses; a keyword it does not know fails the test."""
    schema = {**schema}
    for note in ("title", "description", "default", "$defs", "discriminator"):
        schema.pop(note, None)
    checks = {
        "$ref": lambda ref: conforms(value, defs[ref.removeprefix("#/$defs/")], defs),
        "anyOf": lambda members: any(conforms(value, member, defs) for member in members),
        "oneOf": lambda members: sum(conforms(value, member, defs) for member in members) == 1,
        "const": lambda wanted: value == wanted,
        "enum": lambda words: value in words,
        "type": lambda name: is_json_type(value, name),
        "required": lambda names: not isinstance(value, dict) or all(name in value for name in names),
        "items": lambda item: not isinstance(value, list) or all(conforms(v, item, defs) for v in value),
        "prefixItems": lambda items: all(conforms(v, item, defs) for v, item in zip(value, items, strict=False)),
        "minItems": lambda least: not isinstance(value, list) or len(value) >= least,
        "maxItems": lambda most: not isinstance(value, list) or len(value) <= most,
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "minimum": lambda least: not isinstance(value, (int, float)) or value >= least,
        "maximum": lambda most: not isinstance(value, (int, float)) or value <= most,
        "exclusiveMinimum": lambda least: not isinstance(value, (int, float)) or value > least,
        "exclusiveMaximum": lambda most: not isinstance(value, (int, float)) or value < most,
        "properties": lambda fields: all(
            conforms(item, fields[name], defs) for name, item in value.items() if name in fields
        ),
        "additionalProperties": lambda rule: all(
            rule if isinstance(rule, bool) else conforms(item, rule, defs)
            for name, item in value.items()
            if name not in schema.get("properties", {})
        ),
    }
    # the type first: the others take it for granted
    return all(checks[name](schema[name]) for name in sorted(schema, key=lambda name: name != "type"))


def is_json_type(value: Any, name: str) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, (int, float)) if name == "number" else isinstance(value, kinds[name])
