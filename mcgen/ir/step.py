"""The chunk step of a matrix memory, from its recurrence: SEMANTICS 6 as a tile program.

With X_s the (K, V) slots at the chunk's start, rows of tokens t and earlier tokens j,

    M_t   = sum over slots s of R[t, s] X_s + sum over writes w, j <= t of C_w[t, j] G^w_j,      G^w_j = k_j v_jᵀ
    o_t   = M_tᵀ q_t
    X_s'  = the same sums with the chunk's end in place of t

and C, R follow from the triangular recurrence: a slot s decays what token i added to it, and token i adds its writes
and last token's value of the slots that s reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import sympy

from mcgen.ir.derivative import vjp
from mcgen.ir.program import Builder, Node, Program
from mcgen.spec import Spec
from mcgen.symbolic.expressions import problem, symbol, to_sympy
from mcgen.symbolic.functions import Absolute, Where
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.objective import VALUE
from mcgen.symbolic.recurrence import MEMORY, Recurrence, Write

WITHOUT_GRADIENT = frozenset({"head", "valid", "count"})


@dataclass(frozen=True)
class Coefficients:
    """What a slot is made of, seen from one kind of row: R by slot at the chunk's start, C by write."""

    start: Mapping[str, Node]
    writes: Mapping[Write, Node]


@dataclass(frozen=True)
class ClosedForm:
    """R and C of a recurrence as nodes, for one chunk.

    `masked` programs take `valid[t]`, 1 at the chunk's tokens and 0 past the sequence's end, where nothing changes.
    """

    b: Builder
    recurrence: Recurrence
    gates: Mapping[sympy.Symbol, Node]
    masked: bool
    _known: dict[tuple[str, str | None, bool], Coefficients] = field(default_factory=dict, repr=False)

    def coefficients(self, slot: str, row: str | None, exclusive: bool = False) -> Coefficients:
        """The coefficients of `slot` after token `row` (before it, where exclusive), or at the chunk's end."""
        if (slot, row, exclusive) not in self._known:
            self._known[slot, row, exclusive] = self._coefficients(slot, row, exclusive)
        return self._known[slot, row, exclusive]

    def _coefficients(self, slot: str, row: str | None, exclusive: bool) -> Coefficients:
        own = self._gate(self.recurrence.transition(slot, slot), neutral=1)
        start = {slot: self._decay(own, row, None, exclusive)}
        writes = {}
        for write in self.recurrence.writes:
            rate = self.recurrence.injection(slot, write)
            if rate != 0:
                kept = self._decay(own, row, "j", exclusive)
                writes[write] = self.b.product(kept, self._along(self._gate(rate, 0), "j"))
        for source in self.recurrence.slots:
            rate = self.recurrence.transition(slot, source)
            if source == slot or rate == 0:
                continue
            passed = self.b.product(self._decay(own, row, "s", exclusive), self._along(self._gate(rate, 0), "s"))
            read = self.coefficients(source, "t", exclusive=True)
            self._add(start, {s: self._passed(passed, node) for s, node in read.start.items()})
            self._add(writes, {w: self._passed(passed, node) for w, node in read.writes.items()})
        return Coefficients(start, writes)

    def _passed(self, passed: Node, read: Node) -> Node:
        """What a slot takes in of another: the sum over tokens s of passed[., s] times what that other was before s."""
        return self.b.contract(passed, self._along(read, "s"), "s")

    def _add(self, into: dict, more: Mapping) -> None:
        for key, node in more.items():
            into[key] = self.b.total([into[key], node]) if key in into else node

    def _decay(self, gate: Node, row: str | None, column: str | None, exclusive: bool) -> Node:
        return self.b.decay(self.b.broadcast(gate, ("t",)), row, column, exclusive and row is not None)

    def _gate(self, expression: sympy.Expr, neutral: int) -> Node:
        """A function of the gates; past the sequence's end the neutral value, whatever the function gives there."""
        value = self.b.map(expression, self.gates)
        if not self.masked or expression == neutral:
            return value
        valid, x = sympy.symbols("valid x", real=True)
        masked = Where(valid, x, sympy.Integer(neutral))
        return self.b.map(masked, {valid: self.b.input("valid", "t"), x: value})

    def _along(self, gate: Node, axis: str) -> Node:
        return self.b.rename(gate, "t", axis)

    def key(self, write: Write) -> Node:
        return self.b.input(key_name(write.key_lag), "j", "k")

    def value(self, write: Write) -> Node:
        """The write's value row. Masked programs pad with zeros, where a function need not be finite: there it is 0."""
        value = write.value
        if self.masked and problem(value.subs(VALUE, 0)):
            value = Where(Absolute(VALUE), value, sympy.S.Zero)
        return self.b.map(value, {VALUE: self.b.input(value_name(write.value_lag), "j", "v")})


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


def query_name(meaning: Meaning) -> str:
    """The input that routes: the connector, or the query in its place."""
    return "u" if meaning.spec.aggregate.connector == "u" else "q"


def logit_scale(meaning: Meaning) -> sympy.Expr:
    return sympy.Rational(repr(float(meaning.spec.aggregate.scale)))


def step(meaning: Meaning, masked: bool = False) -> Program:
    """The chunk step: outputs `o` (the online read-out), `r` (its logit), and the state's `<slot>_next`, `pool_next`.

    Inputs: q[t k], u[t k], keys[j k] and values[j v] by lag, gates[t], the slots[k v], `pool`[k] the sum of the
    segment's keys before the chunk, `count`[t] the number of the segment's tokens up to and including t.
    """
    return Program("step", step_outputs(Builder(), meaning, masked))


def step_vjp(meaning: Meaning, masked: bool = False) -> Program:
    """The derivative of the step: outputs `d_<input>` for every input it depends on that has a gradient.

    Inputs beyond the step's: the cotangents d_o[t v], d_r[t], d_<slot>_next[k v], d_pool_next[k].
    """
    b = Builder()
    outputs = step_outputs(b, meaning, masked)
    cotangents = {name: b.input(f"d_{name}", *node.axes) for name, node in outputs.items()}
    return Program("step_vjp", step_gradients(b, meaning, outputs, cotangents))


def step_gradients(
    b: Builder, meaning: Meaning, outputs: Mapping[str, Node], cotangents: Mapping[str, Node]
) -> dict[str, Node]:
    """`d_<input>` for every tensor the operator differentiates and for the state, zeros where nothing reads one."""
    results, zero = vjp(b, outputs, cotangents), b.constant(0)
    inputs = {name: node.axes for name, node in Program("step", outputs).inputs.items()}
    wanted = {**inputs, **tensor_axes(meaning), **state_axes(meaning)}
    return {
        f"d_{name}": b.broadcast(results.get(name, zero), axes)
        for name, axes in wanted.items()
        if name not in WITHOUT_GRADIENT
    }


def tensor_axes(meaning: Meaning) -> dict[str, tuple[str, ...]]:
    """The tensors the operator differentiates, by its arguments' names, with their axes in a chunk."""
    axes = {"q": ("t", "k"), "k": ("j", "k"), "v": ("j", "v")}
    if meaning.spec.routes_by_u:
        axes["u"] = ("t", "k")
    return {**axes, **dict.fromkeys(meaning.spec.tensor_gates, ("t",))}


def state_axes(meaning: Meaning) -> dict[str, tuple[str, ...]]:
    """What a walk carries from chunk to chunk, with its axes: the slots, and the sum of the segment's keys."""
    return {**dict.fromkeys(meaning.recurrence.slots, ("k", "v")), **({"pool": ("k",)} if meaning.routes else {})}


def step_outputs(b: Builder, meaning: Meaning, masked: bool) -> dict[str, Node]:
    recurrence = meaning.recurrence
    form = ClosedForm(b, recurrence, gate_nodes(b, meaning.spec), masked)
    slots = {slot: b.input(slot, "k", "v") for slot in recurrence.slots}
    outputs = {"o": _read_out(b, recurrence, form, slots)}
    if meaning.routes:
        outputs["r"], outputs["pool_next"] = _pool(b, meaning)
    for slot in recurrence.slots:
        outputs[f"{slot}_next"] = _next_state(b, form, slot, slots)
    return outputs


def _read_out(b: Builder, recurrence: Recurrence, form: ClosedForm, slots: Mapping[str, Node]) -> Node:
    q, rows = b.input("q", "t", "k"), form.coefficients(MEMORY, "t")
    terms = [b.product(node, b.contract(q, slots[slot], "k")) for slot, node in rows.start.items()]
    for write, node in rows.writes.items():
        weights = b.product(node, b.contract(q, form.key(write), "k"))
        terms.append(b.contract(weights, form.value(write), "j"))
    return b.total(terms)


def _next_state(b: Builder, form: ClosedForm, slot: str, slots: Mapping[str, Node]) -> Node:
    end = form.coefficients(slot, None)
    terms = [b.product(node, slots[source]) for source, node in end.start.items()]
    terms += [b.contract(form.key(w), b.product(node, form.value(w)), "j") for w, node in end.writes.items()]
    return b.total(terms)


def _pool(b: Builder, meaning: Meaning) -> tuple[Node, Node]:
    """The online routing logit scale * <u_t, running mean (or sum) of keys>, and the running sum at the chunk's end."""
    u, k, before = b.input(query_name(meaning), "t", "k"), b.input("k", "j", "k"), b.input("pool", "k")
    earlier, later, score, x, y, count = sympy.symbols("earlier later score x y count", real=True)
    seen = Where(later - earlier + 1, score, sympy.S.Zero)
    scores = b.map(seen, {later: b.iota("t"), earlier: b.iota("j"), score: b.contract(u, k, "k")})
    size = count if meaning.spec.aggregate.pool == "mean" else sympy.S.One
    terms = {x: b.sum(scores, "j"), y: b.contract(u, before, "k"), count: b.input("count", "t")}
    return b.map(logit_scale(meaning) * (x + y) / size, terms), b.total([before, b.sum(k, "j")])
