"""The chunk step of a matrix memory, from its recurrence: SEMANTICS 6 as a tile program.

With X_s the (K, V) slots at the chunk's start, rows of tokens t and earlier tokens j,

    M_t   = sum over slots s of R[t, s] X_s + sum over writes w, j <= t of C_w[t, j] G^w_j,      G^w_j = k_j v_jᵀ
    o_t   = M_tᵀ q_t
    X_s'  = the same sums with the chunk's end in place of t

where the value rows v_j of a gradient are its error rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy

from mcgen.ir.closed_form import ClosedForm, gate_nodes
from mcgen.ir.derivative import cotangents, vjp
from mcgen.ir.error_rows import MATRIX, Weights, find_errors
from mcgen.ir.layers import Layer, layers, read, seen_by
from mcgen.ir.program import Builder, Node, Program, name_of
from mcgen.ir.vocabulary import MATRIX_QUERIES, QUERIES, following
from mcgen.spec import Spec
from mcgen.symbolic.functions import Where
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY, GradientWrite

WITHOUT_GRADIENT = frozenset({"head", "valid", "count", "fresh", "share"})


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
    return Program("step_vjp", step_gradients(b, meaning, step_outputs(b, meaning, masked, anchored), anchored))


def step_with_vjp(meaning: Meaning, masked: bool = False, anchored: bool = False) -> Program:
    """The step and its derivative as one program: the outputs of both, from the inputs of both."""
    b = Builder()
    outputs = step_outputs(b, meaning, masked, anchored)
    return Program("step", {**outputs, **step_gradients(b, meaning, outputs, anchored)})


def step_gradients(
    b: Builder, meaning: Meaning, outputs: Mapping[str, Node], anchored: bool = False, **known: Node
) -> dict[str, Node]:
    """`d_<input>` for every tensor the operator differentiates and for the state, zeros where nothing reads one.

    `known` are cotangents of outputs that are no inputs.
    """
    results, zero = vjp(b, outputs, cotangents(b, outputs) | known), b.constant(0)
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
    names = [*meaning.recurrence.slots, *(["anchor"] if anchored else [])]
    slots = {f"{name}{layer.suffix}": (layer.into, layer.out) for name in names for layer in layers(meaning.spec)}
    return {**slots, **({"pool": ("k",)} if meaning.routes else {})}


def step_after_errors(meaning: Meaning, anchored: bool) -> Program:
    """The masked chunk step where the error rows are known: inputs `error_<n>`[t v]."""
    b = Builder()
    known = {name: b.input(name, "t", "v") for name in error_names(meaning).values()}
    return Program("step", step_outputs(b, meaning, True, anchored, known))


def step_with_errors(meaning: Meaning, anchored: bool) -> Program:
    """The masked chunk step, with its error rows as outputs `error_<n>`[t v]."""
    b = Builder()
    return Program("step", {**step_outputs(b, meaning, True, anchored), **error_outputs(b, meaning, True, anchored)})


Reading = Callable[[Builder, Meaning, ClosedForm, Mapping[str, Weights]], dict[str, Node]]
"""What a chunk step reads of the memory, as outputs by name, from its closed form and the slots at its start."""


def read_online(b: Builder, meaning: Meaning, form: ClosedForm, slots: Mapping[str, Weights]) -> dict[str, Node]:
    """`o`[t v], M_t(q_t)."""
    linear = lambda layer, x: after_tokens(form, slots, layer, x)  # noqa: E731
    reader = MATRIX_QUERIES if meaning.linear else QUERIES
    return {"o": read(b, meaning.spec, b.input("q", "t", "k"), linear, reader).value}


def step_outputs(
    b: Builder,
    meaning: Meaning,
    masked: bool,
    anchored: bool = False,
    errors: Mapping[str, Node] | None = None,
    reading: Reading = read_online,
) -> dict[str, Node]:
    """The outputs of the chunk step as nodes. `errors` gives the error rows by name where they are known already."""
    form, slots = closed_form(b, meaning, masked)
    at = anchor(b, slots[MEMORY]) if anchored else slots[MEMORY]
    if errors is None:
        find_errors(form, meaning.spec, slots, at)
    else:
        form.errors.update({write: {MATRIX: errors[name]} for write, name in error_names(meaning).items()})
    outputs = {f"anchor{layer.suffix}_next": node for layer, node in at.items()} if anchored else {}
    outputs |= reading(b, meaning, form, slots)
    if meaning.routes:
        outputs["r"], outputs["pool_next"] = pooled(b, meaning)
    for slot, weights in slots.items():
        for layer in weights:
            outputs[f"{slot}{layer.suffix}_next"] = next_state(form, slot, slots, layer)
    return outputs


def closed_form(b: Builder, meaning: Meaning, masked: bool) -> tuple[ClosedForm, dict[str, Weights]]:
    """The closed form of a chunk, and the slots at its start."""
    form = ClosedForm(b, meaning.recurrence, gate_nodes(b, meaning.spec), masked)
    return form, {slot: weights(b, meaning.spec, slot) for slot in meaning.recurrence.slots}


def weights(b: Builder, spec: Spec, name: str, *segment: str) -> Weights:
    """Inputs that hold the parameters of a slot, a layer each."""
    return {layer: b.input(f"{name}{layer.suffix}", *segment, layer.into, layer.out) for layer in layers(spec)}


def error_outputs(b: Builder, meaning: Meaning, masked: bool, anchored: bool = False) -> dict[str, Node]:
    """The error rows[t v] of the gradients a matrix memory's rule takes, by name."""
    form, slots = closed_form(b, meaning, masked)
    find_errors(form, meaning.spec, slots, anchor(b, slots[MEMORY]) if anchored else slots[MEMORY])
    return {name: form.errors[write][MATRIX] for write, name in error_names(meaning).items()}


def error_names(meaning: Meaning) -> dict[GradientWrite, str]:
    """A name for the error rows of every gradient write; over chunks, all lines of a rule take the same."""
    gradients = [write for write in meaning.recurrence.writes if isinstance(write, GradientWrite)]
    return {w: f"error_{0 if meaning.recurrence.chunk is not None else i}" for i, w in enumerate(gradients)}


def anchor(b: Builder, memory: Weights) -> Weights:
    """The memory at the start of the gradient chunk: this step's, where `fresh` says that one begins."""
    fresh, new, old = sympy.symbols("fresh new old", real=True)
    chosen, begins = Where(fresh, new, old), b.input("fresh")
    return {
        layer: b.map(chosen, {fresh: begins, new: node, old: b.input(f"anchor{layer.suffix}", layer.into, layer.out)})
        for layer, node in memory.items()
    }


def after_tokens(form: ClosedForm, slots: Mapping[str, Weights], layer: Layer, x: Node) -> Node:
    """A layer of M_t applied to rows x[t in], one M_t a row."""
    b, rows = form.b, form.coefficients(MEMORY, "t")
    terms = [_weighted(b, "R", node, seen_by(b, x, slots[slot][layer], layer)) for slot, node in rows.start.items()]
    for write, node in rows.writes.items():
        scores = _weighted(b, "C", node, seen_by(b, x, form.key(write, layer), layer))
        terms.append(b.contract(scores, form.value(write, layer), "j"))
    return b.total(terms)


def _weighted(b: Builder, letter: str, coefficient: Node, value: Node) -> Node:
    return b.call(b.product(coefficient, value), f"{letter}_{name_of(value).name}", part=True)


def next_state(form: ClosedForm, slot: str, slots: Mapping[str, Weights], layer: Layer) -> Node:
    b, end = form.b, form.coefficients(slot, None)
    terms = [b.product(node, slots[source][layer]) for source, node in end.start.items()]
    for write, node in end.writes.items():
        written = b.product(node, form.value(write, layer))
        b.call(written, f"{slot}{layer.suffix}_writes{form.number(write)}", part=True)
        terms.append(b.contract(form.key(write, layer), written, "j"))
    return b.call(b.total(terms), following(f"{slot}{layer.suffix}", layer.number, deep=bool(layer.suffix)))


def pooled(b: Builder, meaning: Meaning) -> tuple[Node, Node]:
    """The online routing logit scale * <u_t, running mean (or sum) of keys>, and the running sum at the chunk's end."""
    u, k, before = b.input(query_name(meaning), "t", "k"), b.input("k", "j", "k"), b.input("pool", "k")
    earlier, later, score, x, y, count = sympy.symbols("earlier later score x y count", real=True)
    seen = Where(later - earlier + 1, score, sympy.S.Zero)
    scores = b.map(seen, {later: b.iota("t"), earlier: b.iota("j"), score: b.contract(u, k, "k")})
    size = count if meaning.spec.aggregate.pool == "mean" else sympy.S.One
    terms = {x: b.sum(scores, "j"), y: b.contract(u, before, "k"), count: b.input("count", "t")}
    aggregate = meaning.spec.aggregate
    scale = "" if aggregate.scale == 1 else f"{aggregate.scale!r} "
    r = b.map(logit_scale(meaning) * (x + y) / size, terms)
    b.call(r, "r", f"r_t = {scale}<{query_name(meaning)}_t, {aggregate.pool} of the segment's keys up to t>")
    return r, b.call(b.total([before, b.sum(k, "j")]), "pool_next")
