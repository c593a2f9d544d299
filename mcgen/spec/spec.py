"""A spec as later stages read it: defaults filled in, presets expanded, expressions parsed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from mcgen.errors import Diagnostic, Severity
from mcgen.spec import model
from mcgen.spec.document import Document
from mcgen.spec.grammar import Expression, Span
from mcgen.spec.names import class_name
from mcgen.spec.source import Position

ROUTED = ("grm", "soup", "ssc")
"""Aggregates that weight memories by routing logits."""


@dataclass(frozen=True)
class Step:
    """`slot = expression`. Spans in the expression count from the start of the line as its author wrote it."""

    slot: str
    expression: Expression
    text: str
    position: Position = field(compare=False, repr=False)

    def diagnose(self, span: Span, message: str, hint: str = "", severity: Severity = "error") -> Diagnostic:
        """A diagnostic that points at `span` of this step in the user's file, or at the `rule` that the step is of."""
        if self.position.offsets is None:
            message = f"{message} (in `{self.text}`)"
        return self.position.diagnose(message, span, hint, severity)


@dataclass(frozen=True)
class Gate:
    """A scalar a token and head that steps use.

    tensor: an argument of `op`; the layer makes it as scale * fn(x w_h + bias), gates of one `source` sharing w_h.
    constant: `value` is a number. per_head: `value` is an expression in the head's number h.
    """

    name: str
    kind: Literal["tensor", "constant", "per_head"]
    value: float | Expression | None = None
    fn: str = "sigmoid"
    bias: float = 0.0
    scale: float = 1.0
    source: str | None = None


@dataclass(frozen=True)
class Rule:
    """The recurrence, parsed. `slots` in order of first assignment, `gates` in order of first appearance."""

    objective: Expression | None
    steps: tuple[Step, ...]
    slots: tuple[str, ...]
    gates: tuple[str, ...]
    objective_position: Position | None = None


@dataclass(frozen=True)
class Spec:
    """One spec. The sections are as written with defaults filled in; the rest is resolved from them.

    Two specs are equal where their `to_dict` are; positions and warnings do not count.
    """

    name: str
    doc: str
    memory: model.Memory
    update: model.Update
    segment: model.Segment
    aggregate: model.Aggregate
    head: model.Head
    layer: model.Layer
    objective_expression: Expression | None = field(repr=False)
    steps: tuple[Step, ...] = field(repr=False)
    activation_expression: Expression | None = field(repr=False)
    slots: tuple[str, ...] = field(repr=False)
    gates: tuple[Gate, ...] = field(repr=False)
    warnings: tuple[Diagnostic, ...] = field(default=(), compare=False, repr=False)
    objective_position: Position | None = field(default=None, compare=False, repr=False)
    document: Document | None = field(default=None, compare=False, repr=False)
    """The file, for the places of its fields."""

    def __hash__(self) -> int:
        return hash(self.digest())

    @property
    def class_name(self) -> str:
        """The layer's class: `TitansGrm` for `titans_grm`."""
        return class_name(self.name)

    @property
    def gradient_chunk(self) -> int | None:
        """Tokens that share one place where `grad` is taken; None where each token has its own."""
        gradient = self.update.gradient
        return gradient.chunk if isinstance(gradient, model.Chunk) else None

    @property
    def tensor_gates(self) -> tuple[str, ...]:
        """The gates that `op` takes, in the order of its arguments."""
        return tuple(gate.name for gate in self.gates if gate.kind == "tensor")

    @property
    def routes_by_u(self) -> bool:
        """Whether `u` decides which memories are read."""
        return self.aggregate.kind in ROUTED and self.aggregate.connector == "u"

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data, a spec itself: defaults filled in, fields that do not apply left out, order fixed."""
        memory = self.memory.model_dump()
        return {
            "mcgen": 1,
            "name": self.name,
            "doc": self.doc,
            "memory": memory if self.memory.kind == "mlp" else {"kind": self.memory.kind},
            "update": self.update.model_dump(mode="json", by_alias=True, exclude_none=True),
            "segment": self.segment.model_dump(exclude_none=True),
            "aggregate": self.aggregate.model_dump(exclude_none=True),
            "head": self.head.model_dump(),
            "layer": self.layer.model_dump(),
        }

    def digest(self) -> str:
        """sha256, in hexadecimal, of the canonical JSON of `to_dict`: sorted keys, no spaces, ASCII."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()
