"""The chunk step of a matrix memory, from its recurrence: SEMANTICS 6 as a tile program.

With X_s the (K, V) slots at the chunk's start, rows of tokens t and earlier tokens j,

    M_t   = sum over slots s of R[t, s] X_s + sum over writes w, j <= t of C_w[t, j] G^w_j,      G^w_j = k_j v_jᵀ
    o_t   = M_tᵀ q_t
    X_s'  = the same sums with the chunk's end in place of t

where the value rows v_j of a gradient are its error rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from mcgen.ir.closed_form import ClosedForm, gate_nodes
from mcgen.ir.derivative import vjp
from mcgen.ir.error_rows import error_rows
from mcgen.ir.program import Builder, Node, Program
from mcgen.symbolic.functions import Where
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY, GradientWrite, Recurrence

WITHOUT_GRADIENT = frozenset({"head", "valid", "count", "fresh"})


def query_name(meaning: Meaning) -> str:
    """The input that routes: the connector, or the query in its place."""
    return "u" if meaning.spec.aggregate.connector == "u" else "q"


def logit_scale(meaning: Meaning) -> sympy.Expr:
    return sympy.Rational(repr(float(meaning.spec.aggregate.scale)))


def step(meaning: Meaning, masked: bool = False, anchored: bool = False) -> Program:
    """The chunk step: outputs `o` (the online read-out), `r` (its logit), and the state's `<slot>_next`, `pool_next`.

    Inputs: q[t k], u[t k], keys[j k] and values[j v] by lag, gates[t], the slots[k v], `pool`[k] the sum of the
    segment's keys before the chunk, `count`[t] the number of the segment's tokens up to and including t.
    """
    return Program("step", step_outputs(Builder(), meaning, masked, anchored))


def step_vjp(meaning: Meaning, masked: bool = False, anchored: bool = False) -> Program:
    """The derivative of the step: outputs `d_<input>` for every input it depends on that has a gradient.

    Inputs beyond the step's: the cotangents d_o[t v], d_r[t], d_<slot>_next[k v], d_pool_next[k].
    """
    b = Builder()
    outputs = step_outputs(b, meaning, masked, anchored)
    cotangents = {name: b.input(f"d_{name}", *node.axes) for name, node in outputs.items()}
    return Program("step_vjp", step_gradients(b, meaning, outputs, cotangents, anchored))


def step_with_vjp(meaning: Meaning, masked: bool = False, anchored: bool = False) -> Program:
    """The step and its derivative as one program: the outputs of both, from the inputs of both."""
    b = Builder()
    outputs = step_outputs(b, meaning, masked, anchored)
    cotangents = {name: b.input(f"d_{name}", *node.axes) for name, node in outputs.items()}
    return Program("step", {**outputs, **step_gradients(b, meaning, outputs, cotangents, anchored)})


def step_gradients(
    b: Builder, meaning: Meaning, outputs: Mapping[str, Node], cotangents: Mapping[str, Node], anchored: bool = False
) -> dict[str, Node]:
    """`d_<input>` for every tensor the operator differentiates and for the state, zeros where nothing reads one."""
    results, zero = vjp(b, outputs, cotangents), b.constant(0)
    inputs = {name: node.axes for name, node in Program("step", outputs).inputs.items()}
    wanted = {**inputs, **tensor_axes(meaning), **state_axes(meaning, anchored)}
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


def state_axes(meaning: Meaning, anchored: bool = False) -> dict[str, tuple[str, ...]]:
    """What a walk carries from chunk to chunk, with its axes: the slots, the memory at the start of the gradient chunk
    (`anchor`) where that is several steps, and the sum of the segment's keys (`pool`)."""
    slots = [*meaning.recurrence.slots, *(["anchor"] if anchored else [])]
    return {**dict.fromkeys(slots, ("k", "v")), **({"pool": ("k",)} if meaning.routes else {})}


def step_after_errors(meaning: Meaning, anchored: bool) -> Program:
    """The masked chunk step where the error rows are known: inputs `error_<n>`[t v]."""
    b = Builder()
    known = {name: b.input(name, "t", "v") for name in error_names(meaning).values()}
    return Program("step", step_outputs(b, meaning, True, anchored, known))


def step_with_errors(meaning: Meaning, anchored: bool) -> Program:
    """The masked chunk step, with its error rows as outputs `error_<n>`[t v]."""
    b = Builder()
    return Program("step", {**step_outputs(b, meaning, True, anchored), **error_outputs(b, meaning, True, anchored)})


def step_outputs(
    b: Builder, meaning: Meaning, masked: bool, anchored: bool = False, errors: Mapping[str, Node] | None = None
) -> dict[str, Node]:
    """The outputs of the chunk step as nodes. `errors` gives the error rows by name where they are known already."""
    form, slots = closed_form(b, meaning, masked)
    at = _anchor(b, slots[MEMORY]) if anchored else slots[MEMORY]
    form.errors.update(_by_write(meaning, errors) if errors is not None else error_rows(form, slots, at))
    outputs = {"anchor_next": at} if anchored else {}
    outputs |= {"o": _read_out(b, meaning.recurrence, form, slots)}
    if meaning.routes:
        outputs["r"], outputs["pool_next"] = _pool(b, meaning)
    for slot in meaning.recurrence.slots:
        outputs[f"{slot}_next"] = _next_state(b, form, slot, slots)
    return outputs


def closed_form(b: Builder, meaning: Meaning, masked: bool) -> tuple[ClosedForm, dict[str, Node]]:
    """The closed form of a chunk, and the slots at its start."""
    form = ClosedForm(b, meaning.recurrence, gate_nodes(b, meaning.spec), masked)
    return form, {slot: b.input(slot, "k", "v") for slot in meaning.recurrence.slots}


def error_outputs(b: Builder, meaning: Meaning, masked: bool, anchored: bool = False) -> dict[str, Node]:
    """The error rows[t v] of the gradients a rule takes, by name, from the slots at the chunk's start."""
    form, slots = closed_form(b, meaning, masked)
    rows = error_rows(form, slots, _anchor(b, slots[MEMORY]) if anchored else slots[MEMORY])
    return {name: rows[write] for write, name in error_names(meaning).items()}


def error_names(meaning: Meaning) -> dict[GradientWrite, str]:
    """A name for the error rows of every gradient write; over chunks, all lines of a rule take the same."""
    gradients = [write for write in meaning.recurrence.writes if isinstance(write, GradientWrite)]
    return {w: f"error_{0 if meaning.recurrence.chunk is not None else i}" for i, w in enumerate(gradients)}


def _by_write(meaning: Meaning, errors: Mapping[str, Node]) -> dict[GradientWrite, Node]:
    return {write: errors[name] for write, name in error_names(meaning).items()}


def _anchor(b: Builder, memory: Node) -> Node:
    """The memory at the start of the gradient chunk: this step's, where `fresh` says that one begins."""
    fresh, new, old = sympy.symbols("fresh new old", real=True)
    return b.map(Where(fresh, new, old), {fresh: b.input("fresh"), new: memory, old: b.input("anchor", "k", "v")})


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
