"""From a file to a `Spec`: read, check everything, fill in the defaults, resolve."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike

from pydantic import ValidationError

from mcgen.errors import Diagnostic, SpecError, in_order
from mcgen.spec import model
from mcgen.spec.contradictions import contradictions
from mcgen.spec.document import MAX_BYTES, Document, read_document
from mcgen.spec.grammar import Expression
from mcgen.spec.messages import model_diagnostics
from mcgen.spec.rule import RuleReader
from mcgen.spec.source import Source
from mcgen.spec.spec import Gate, Rule, Spec

DEFAULT_SEGMENT = 256
DEFAULT_CHUNK = 16


def load(path: str | PathLike[str]) -> Spec:
    """Read a spec file.

    Raises:
        SpecError: the file cannot be read or is not a valid spec; holds every diagnostic of the file.
    """
    name = os.fsdecode(path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise SpecError(Diagnostic("error", f"cannot be read: {getattr(error, 'strerror', error)}", name)) from None
    if len(content) > MAX_BYTES:
        raise SpecError(Diagnostic("error", f"a spec of more than {MAX_BYTES} bytes", name))
    return loads(_decoded(content, name), name)


def loads(text: str, filename: str = "<string>") -> Spec:
    """Read a spec from text; `filename` is what diagnostics call it.

    Raises:
        SpecError: not a valid spec; holds every diagnostic of the text, in the order of the text.
    """
    document = read_document(Source(filename, text))
    reader = RuleReader(document)
    rule, per_head = reader.rule(), reader.per_head()
    activation = reader.activation()
    parsed, findings = _validated(document)
    found = [*document.diagnostics, *findings, *contradictions(document), *reader.diagnostics]
    diagnostics = in_order(found)
    if parsed is None or any(finding.severity == "error" for finding in diagnostics):
        readable = not any(finding.severity == "error" for finding in reader.diagnostics)
        alone = _rule_alone(document) if readable else None
        raise SpecError(diagnostics, alone and _spec(document, alone, rule, per_head, activation))
    return _spec(document, parsed, rule, per_head, activation, diagnostics)


def _rule_alone(document: Document) -> model.SpecFile | None:
    """The memory and the update of a spec, all else left at its defaults."""
    sections = {name: document.data[name] for name in ("memory", "update") if name in document.data}
    try:
        return model.SpecFile.model_validate({"mcgen": 1, "name": "rule", **sections})
    except ValidationError:
        return None


def _spec(
    document: Document,
    parsed: model.SpecFile,
    rule: Rule,
    per_head: Mapping[str, Expression],
    activation: Expression | None,
    warnings: tuple[Diagnostic, ...] = (),
) -> Spec:
    update = _filled_update(parsed, rule)
    return Spec(
        name=parsed.name,
        doc=parsed.doc,
        memory=parsed.memory.model_copy(update={"activation": " ".join(parsed.memory.activation.split())}),
        update=update,
        segment=_filled_segment(parsed),
        aggregate=parsed.aggregate,
        head=parsed.head,
        layer=parsed.layer,
        objective_expression=rule.objective,
        steps=rule.steps,
        activation_expression=activation,
        slots=rule.slots,
        gates=tuple(_gate(name, gate, per_head) for name, gate in update.gates.items()),
        warnings=warnings,
        objective_position=rule.objective_position,
        document=document,
    )


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = Source(name, error.object[: error.start].decode())
        line, column = start.place(len(start.text))
        message = f"not UTF-8: the byte 0x{error.object[error.start]:02x}"
        raise SpecError(Diagnostic("error", message, name, line, column, start.line(line))) from None


def _validated(document: Document) -> tuple[model.SpecFile | None, list[Diagnostic]]:
    try:
        return model.SpecFile.model_validate(document.data), []
    except ValidationError as error:
        return None, model_diagnostics(document, error)


def _filled_update(parsed: model.SpecFile, rule: Rule) -> model.Update:
    """The update with its default gradient, every gate of the rule in its order, and texts on one line."""
    update, default = parsed.update, model.Chunk(chunk=DEFAULT_CHUNK)
    gradient = update.gradient or ("token" if parsed.memory.kind == "matrix" else default)
    gates = {name: _one_line(update.gates.get(name, model.GateMap())) for name in rule.gates}
    filled = {"gradient": gradient, "gates": gates}
    if update.objective is not None:
        filled["objective"] = " ".join(update.objective.split())
    if update.steps is not None:
        filled["steps"] = tuple(step.text for step in rule.steps)
    return update.model_copy(update=filled)


def _one_line(gate: model.GateSpec) -> model.GateSpec:
    return model.PerHead(per_head=" ".join(gate.per_head.split())) if isinstance(gate, model.PerHead) else gate


def _filled_segment(parsed: model.SpecFile) -> model.Segment:
    segment = parsed.segment
    init = segment.init or ("checkpoint" if parsed.aggregate.kind == "none" else "independent")
    size = (segment.size or DEFAULT_SEGMENT) if segment.mode == "constant" else None
    return segment.model_copy(update={"init": init, "size": size})


def _gate(name: str, gate: model.GateSpec, per_head: Mapping[str, Expression]) -> Gate:
    if isinstance(gate, model.GateMap):
        return Gate(name, "tensor", None, gate.fn, gate.bias, gate.scale, gate.source)
    if isinstance(gate, model.PerHead):
        return Gate(name, "per_head", per_head[name])
    return Gate(name, "constant", gate)
