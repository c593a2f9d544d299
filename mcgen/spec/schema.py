"""The JSON schema of the spec language, from the typed model and the rules between fields that a schema can state."""

from __future__ import annotations

from typing import Any

from mcgen.spec.model import Memory, SpecFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema as plain data. What only mcgen can judge (expressions, used gates) it accepts."""
    schema = SpecFile.model_json_schema(by_alias=True)
    definitions = {name: _without_nulls(definition) for name, definition in schema["$defs"].items()}
    for name, rules in _BETWEEN_FIELDS.items():
        definitions[name] |= rules
    return {"$schema": DIALECT, **schema, "$defs": definitions}


def _without_nulls(schema: Any) -> Any:
    """Null is how the model says `left out`; editors should not offer it."""
    if isinstance(schema, list):
        return [_without_nulls(item) for item in schema if item != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_nulls(value) for key, value in schema.items() if not (key == "default" and value is None)}
    if len(kept.get("anyOf", ())) != 1:
        return kept
    (only,) = kept.pop("anyOf")
    return only | kept


def _when(field: str, value: str, then: dict[str, Any], otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    condition = {"properties": {field: {"const": value}}, "required": [field]}
    return {"if": condition, "then": then} | ({"else": otherwise} if otherwise else {})


def _absent(*fields: str) -> dict[str, Any]:
    return {"properties": dict.fromkeys(fields, False)}


_BETWEEN_FIELDS = {
    "Memory": _when("kind", "matrix", _absent(*(name for name in Memory.model_fields if name != "kind"))),
    "Update": {
        "oneOf": [{"required": ["rule"], **_absent("objective", "steps")}, {"required": ["steps"], **_absent("rule")}]
    },
    "Segment": _when("mode", "logarithmic", _absent("size")),
    "Aggregate": _when("kind", "ssc", {"required": ["top_k"]}, _absent("top_k")),
}
