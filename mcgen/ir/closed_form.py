"""R and C of a recurrence as nodes: the closed form of SEMANTICS 6 for one chunk.

    M_t = sum over slots s of R[t, s] X_s + sum over writes w, j <= t of C_w[t, j] G^w_j,      G^w_j = value_j key_jᵀ

C and R follow from the triangular recurrence: a slot decays what token i added to it, and token i adds its writes and
last token's value of the slots that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sympy

from mcgen.ir.derivative import run
from mcgen.ir.layers import Layer
from mcgen.ir.program import Builder, Node, is_identity
from mcgen.ir.vocabulary import coefficient, passing
from mcgen.spec import Spec
from mcgen.symbolic.expressions import problem, symbol, to_sympy
from mcgen.symbolic.functions import Absolute, Where
from mcgen.symbolic.objective import VALUE
from mcgen.symbolic.recurrence import GradientWrite, Recurrence, Write

AnyWrite = Write | GradientWrite


@dataclass(frozen=True)
class Coefficients:
    """What a slot is made of, seen from one kind of row: R by slot at the chunk's start, C by write."""

    start: Mapping[str, Node]
    writes: Mapping[AnyWrite, Node]


@dataclass(frozen=True)
class ClosedForm:
    """R and C of a recurrence as nodes, for one chunk.

    `errors` holds the error rows[t out] at each layer of every gradient the rule takes, once known, and `seen` what
    each layer of a deep memory sees of the keys[t in]. `masked` programs take `valid[t]`, 1 at the chunk's tokens and 0
    past the sequence's end, where nothing changes.
    """

    b: Builder
    recurrence: Recurrence
    gates: Mapping[sympy.Symbol, Node]
    masked: bool
    errors: dict[GradientWrite, Mapping[Layer, Node]] = field(default_factory=dict)
    seen: dict[Layer, Node] = field(default_factory=dict)
    _known: dict[tuple[str, str | None, bool], Coefficients] = field(default_factory=dict, repr=False)

    def coefficients(self, slot: str, row: str | None, exclusive: bool = False) -> Coefficients:
        """The coefficients of `slot` after token `row` (before it, where exclusive), or at the chunk's end."""
        if (slot, row, exclusive) not in self._known:
            self._known[slot, row, exclusive] = self._coefficients(slot, row, exclusive)
        return self._known[slot, row, exclusive]

    def _coefficients(self, slot: str, row: str | None, exclusive: bool) -> Coefficients:
        own = self.gate(self.recurrence.transition(slot, slot), 1, f"{slot}_keeps")
        start = {slot: self._decay(own, row, None, exclusive)}
        writes = {}
        for write in self.recurrence.writes:
            rate = self.recurrence.injection(slot, write)
            if rate != 0:
                kept, value = self._decay(own, row, "j", exclusive), self.gate(rate, 0, f"rate{self.number(write)}")
                writes[write] = self.b.product(kept, self.along(value, "j"))
        for source in self.recurrence.slots:
            rate = self.recurrence.transition(slot, source)
            if source == slot or rate == 0:
                continue
            value = self.gate(rate, 0, f"{slot}_takes_{source}")
            passed = self.b.product(self._decay(own, row, "s", exclusive), self.along(value, "s"))
            self.b.call(passed, passing(slot, source, row, exclusive))
            read = self.coefficients(source, "t", exclusive=True)
            self._add(start, {s: self._passed(passed, node) for s, node in read.start.items()})
            self._add(writes, {w: self._passed(passed, node) for w, node in read.writes.items()})
        for source, node in start.items():
            self.b.call(node, None if source == slot else coefficient(slot, source, row, exclusive, write=False))
        for write, node in writes.items():
            self.b.call(node, coefficient(slot, self.number(write), row, exclusive, write=True))
        return Coefficients(start, writes)

    def number(self, write: AnyWrite) -> str:
        """Which of several writes, as the ending of a name."""
        writes = self.recurrence.writes
        return f"_{writes.index(write) + 1}" if len(writes) > 1 else ""

    def _passed(self, passed: Node, read: Node) -> Node:
        """What a slot takes in of another: the sum over tokens s of passed[., s] times what that other was before s."""
        return self.b.contract(passed, self.along(read, "s"), "s")

    def _add(self, into: dict, more: Mapping) -> None:
        for key, node in more.items():
            into[key] = self.b.total([into[key], node]) if key in into else node

    def _decay(self, gate: Node, row: str | None, column: str | None, exclusive: bool) -> Node:
        return run(self.b, self.b.broadcast(gate, ("t",)), row, column, exclusive and row is not None)

    def gate(self, expression: sympy.Expr, neutral: int, name: str = "") -> Node:
        """A function of the gates; past the sequence's end the neutral value, whatever the function gives there."""
        value = self.b.map(expression, self.gates)
        if not self.masked or expression == neutral:
            return value if is_identity(value) else self.b.call(value, name or None)
        valid, x = sympy.symbols("valid x", real=True)
        masked = Where(valid, x, sympy.Integer(neutral))
        return self.b.call(self.b.map(masked, {valid: self.b.input("valid", "t"), x: value}), name or None)

    def along(self, gate: Node, axis: str) -> Node:
        return self.b.rename(gate, "t", axis)

    def key(self, write: AnyWrite, layer: Layer) -> Node:
        """The write's keys[j in]: what the layer sees of the token's own key, where it writes a gradient."""
        if isinstance(write, GradientWrite) and layer in self.seen:
            return self.along(self.seen[layer], "j")
        return self.b.input(key_name(write.key_lag if isinstance(write, Write) else 0), "j", "k")

    def value(self, write: AnyWrite, layer: Layer) -> Node:
        """The write's value rows[j out]; a gradient's are its error rows, taken back to the layer's result."""
        if isinstance(write, GradientWrite):
            return self.along(self.errors[write][layer], "j")
        return self.of_values(write.value, {VALUE: self.b.input(value_name(write.value_lag), "j", "v")})

    def of_values(self, expression: sympy.Expr, values: Mapping[sympy.Symbol, Node]) -> Node:
        """A function of rows. Masked programs pad with zeros, where it or a derivative need not be finite. It is 0
        there, and its derivatives are taken elsewhere: 0 times infinity is no 0."""
        if self.masked and not _is_finite(expression, dict.fromkeys(values, 0)):
            there = sum(map(Absolute, values))
            others = {value: Where(there, value, number) for value, number in _stand_in(expression, values).items()}
            expression = Where(there, expression.subs(others, simultaneous=True), sympy.S.Zero)
        return self.b.map(expression, values)


def _is_finite(expression: sympy.Expr, at: Mapping[sympy.Symbol, int]) -> bool:
    """Whether a function and its derivatives are finite at some values."""
    derivatives = (sympy.diff(expression, value) for value in at)
    return not any(problem(function.subs(at)) for function in (expression, *derivatives))


def _stand_in(expression: sympy.Expr, values: Iterable[sympy.Symbol]) -> dict[sympy.Symbol, int]:
    """Values at which a function and its derivatives are finite, or the last of those tried."""
    tried = [dict(zip(values, numbers, strict=False)) for numbers in ((1, 0), (1, 2), (2, 1), (1, 1))]
    return next((at for at in tried if _is_finite(expression, at)), tried[-1])


def gate_nodes(b: Builder, spec: Spec) -> dict[sympy.Symbol, Node]:
    """Each gate's value: an input along the tokens, a number, or a function of the head's index `head`."""
    head = b.input("head")
    values = {}
    for gate in spec.gates:
        if gate.kind == "tensor":
            values[symbol(gate.name)] = b.input(gate.name, "t")
        elif gate.kind == "per_head":
            values[symbol(gate.name)] = b.map(to_sympy(gate.value), {symbol("h"): head})
        else:
            values[symbol(gate.name)] = b.constant(sympy.Rational(repr(float(gate.value))))
    return values


def key_name(lag: int) -> str:
    """The program input that holds the keys `lag` tokens back, along j."""
    return f"k_{lag}" if lag else "k"


def value_name(lag: int) -> str:
    return f"v_{lag}" if lag else "v"


def lagged_names(recurrence: Recurrence) -> dict[str, tuple[str, int]]:
    """Input -> (tensor, lag) of every lagged view of keys and values that some write takes."""
    writes = [write for write in recurrence.writes if isinstance(write, Write)]
    keys = sorted({write.key_lag for write in writes} - {0})
    values = sorted({write.value_lag for write in writes} - {0})
    return {**{key_name(n): ("k", n) for n in keys}, **{value_name(n): ("v", n) for n in values}}
