"""Pydantic's findings as diagnostics in the user's file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mcgen.errors import Diagnostic
from mcgen.spec.document import Document, Path
from mcgen.spec.model import FORMS, Chunk, GateMap, PerHead, SpecFile
from mcgen.spec.names import suggest
from mcgen.spec.refusals import CHANNEL_FIELDS, GATE_BY_CHANNEL, ROUTER, ROUTER_FIELDS

_SHOWN_VALUE = 40


def model_diagnostics(document: Document, error: ValidationError) -> list[Diagnostic]:
    """One diagnostic a finding; values that could not be read have theirs already."""
    details = [(_path(document, detail["loc"]), detail) for detail in error.errors(include_url=False)]
    return [_diagnose(document, path, detail) for path, detail in details if path not in document.broken]


def _path(document: Document, loc: tuple[int | str, ...]) -> Path:
    """The path in the file: pydantic adds the form of a union (`<mapping>`) on the way."""
    path: Path = ()
    for part in loc:
        if part not in FORMS or (*path, part) in document.values:
            path = (*path, part)
    return path


def _diagnose(document: Document, path: Path, detail: ErrorDetails) -> Diagnostic:
    if detail["type"] == "extra_forbidden":
        message, hint = _unknown_field(path)
        return document.key(path).diagnose(message, hint=hint)
    if detail["type"] == "missing":
        position = document.key(path[:-1]) if path[:-1] else document.values[()]
        where = f" in {_dotted(path[:-1])}" if path[:-1] else ""
        return position.diagnose(f"missing field `{path[-1]}`{where}", hint=_described(path))
    message, hint = _explain(path, detail)
    return document.nearest(path).diagnose(message, hint=hint)


def _unknown_field(path: Path) -> tuple[str, str]:
    """Message and hint for a field that the mapping at `path[:-1]` does not have."""
    name = str(path[-1])
    if _is_gate(path[:-1]) and name in CHANNEL_FIELDS:
        return GATE_BY_CHANNEL.message(field=name), GATE_BY_CHANNEL.hint()
    if path[:-1] == ("aggregate",) and name in ROUTER_FIELDS:
        return ROUTER.message(field=name), ROUTER.hint()
    if name in _fields(path[:-1]):
        return f"unknown field `{name}`", "a constant a head has per_head alone"
    places = _places(name)
    elsewhere = f"it is a field of {' and of '.join(places)}" if places else ""
    return f"unknown field `{name}`", elsewhere or suggest(name, _fields(path[:-1]))


def _places(name: str) -> list[str]:
    """The mappings that have a field of this name, as they are called in a file."""
    sections = [(field,) for field in SpecFile.model_fields]
    mappings = {_dotted(path): _fields(path) for path in [(), *sections, ("update", "gradient")]}
    mappings["a gate, in update.gates"] = _fields(("update", "gates", ""))
    return [place for place, fields in mappings.items() if name in fields]


def _explain(path: Path, detail: ErrorDetails) -> tuple[str, str]:
    """Message and hint for a value of the wrong type or out of range."""
    value, name, context = detail["input"], _dotted(path), detail.get("ctx", {})
    if path == ("mcgen",) and detail["type"] != "int_type":
        return f"format version {_shown(value)} is not known", "this mcgen reads version 1"
    if path == ("update", "gradient"):
        return f"{name} cannot be {_shown(value)}", "token, or {chunk: 16}"
    if detail["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{name} cannot be {_shown(value)}", suggest(value, choices)
    if detail["type"] in _RANGES:
        shown = context.get("actual_length", _shown(value))
        return f"{name} {_RANGES[detail['type']](context)}, not {shown}", _described(path)
    wanted = "a number or a mapping" if _is_gate(path) else _TYPES.get(detail["type"], detail["msg"])
    return f"{name} must be {wanted}, not {_shown(value)}", _section_hint(path, value) or _type_hint(
        detail["type"], value
    )


_RANGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda context: f"must be at least {context['ge']}",
    "less_than_equal": lambda context: f"must be at most {context['le']}",
    "too_short": lambda context: f"needs at least {context['min_length']} item",
    "too_long": lambda context: f"takes at most {context['max_length']} items",
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _is_gate(path: Path) -> bool:
    return path[:2] == ("update", "gates") and len(path) == 3


def _section_hint(path: Path, value: Any) -> str:
    """How a value that stands where a mapping should becomes one: `memory: matrix` wants `{kind: matrix}`."""
    fields = _fields(path)
    return f"write {{{fields[0]}: {value}}}" if fields and isinstance(value, str | int) else ""


def _type_hint(kind: str, value: Any) -> str:
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return "write true" if value.lower() in ("yes", "on", "y") else "write false"
    if kind == "tuple_type":
        return 'a line an item: ["M = M + outer(v, k)"]'
    return "remove the quotes" if kind in ("int_type", "float_type") and _is_number(value) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?", value) is not None


def _shown(value: Any) -> str:
    """A value as the user wrote it, more or less, and not too long."""
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = f"`{value}`" if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_VALUE else text[:_SHOWN_VALUE] + "…"


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the spec"


def _model(path: Path) -> type[BaseModel] | None:
    """The model of the mapping at `path`."""
    if not path:
        return SpecFile
    if path[:1] == ("update",) and len(path) > 1:
        return GateMap if _is_gate(path) else Chunk if path == ("update", "gradient") else None
    field = SpecFile.model_fields.get(str(path[0])) if len(path) == 1 else None
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _fields(path: Path) -> list[str]:
    """The fields that the mapping at `path` may have."""
    model = _model(path)
    names = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return [*names, *PerHead.model_fields] if model is GateMap else names


def _described(path: Path) -> str:
    """The description of the field at `path`."""
    model = _model(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model else None
    return (field.description or "") if field else ""
