"""Error rows of the gradients a rule takes, for one chunk of a matrix memory (SEMANTICS 6).

The gradient at token t is e_t k_tᵀ with e = dL/dp at p = M k_t. Taken over chunks, M is the memory at the chunk's
start and every row is a function of p alone. Taken token by token, M holds the chunk's earlier gradients too; where e
is affine in p, e = kappa p + c(v), the rows then solve a unit lower triangular system

    E = kappa (R'∘K X + (C'_w∘K K_wᵀ) V_w) + c(V) + kappa (C'∘K Kᵀ) E,

primes the coefficients of M as it stands at the line that takes the gradient. Several such lines give a system of
blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from mcgen.ir.closed_form import AnyWrite, ClosedForm, Coefficients
from mcgen.ir.derivative import vjp
from mcgen.ir.layers import Layer, activation_name, layers, read, seen_by
from mcgen.ir.program import Builder, Node
from mcgen.ir.vocabulary import KEYS, errors
from mcgen.spec import Spec
from mcgen.symbolic.functions import Absolute, Where
from mcgen.symbolic.objective import PREDICTION, VALUE
from mcgen.symbolic.recurrence import GradientWrite, LinearForm, PreviousSlot

Weights = Mapping[Layer, Node]
MATRIX = Layer("", "k", "v")


def find_errors(form: ClosedForm, spec: Spec, slots: Mapping[str, Weights], anchor: Weights) -> None:
    """Puts into the form the error rows of every gradient write, from the slots at the chunk's start.

    `anchor` is the memory that gradients are taken at, where they are taken over chunks.
    """
    gradients = [write for write in form.recurrence.writes if isinstance(write, GradientWrite)]
    if not gradients:
        return
    if form.recurrence.chunk is not None:
        form.errors.update(dict.fromkeys(gradients, _at_anchor(form, spec, anchor)))
        return
    (layer,) = layers(spec)
    rows = _together(form, {slot: weights[layer] for slot, weights in slots.items()}, gradients)
    form.errors.update({write: {layer: node} for write, node in rows.items()})


def _at_anchor(form: ClosedForm, spec: Spec, anchor: Weights) -> Weights:
    """Error rows at each layer, for gradients at one memory: its read of the keys, reversed from dL/dp."""
    b = form.b
    read_out = read(b, spec, _keys(form), lambda layer, x: b.contract(x, anchor[layer], layer.into), KEYS)
    values = {PREDICTION: read_out.value, VALUE: _values(form)}
    called = errors(spec.memory.layers, activation_name(spec), spec.memory.norm == "layernorm")
    error = b.call(form.of_values(form.recurrence.error.expression, values), called(KEYS.value))
    form.seen.update(read_out.inputs)
    at = {node: layer.suffix for layer, node in read_out.results.items()}
    rows = vjp(b, {"p": read_out.value}, {"p": error}, at, called)
    return {layer: rows[layer.suffix] for layer in read_out.results}


def _together(
    form: ClosedForm, slots: Mapping[str, Node], gradients: Sequence[GradientWrite]
) -> dict[GradientWrite, Node]:
    """Error rows[t v] of gradients taken token by token from a matrix memory: the solution of their system."""
    system = [_equation(form, slots, gradients, write) for write in gradients]
    rows = _solved(form.b, [row for row, _ in system], [right for _, right in system])
    for write, row in zip(gradients, rows, strict=True):
        form.b.call(row, f"error{_number(gradients, write)}", "E = A E + B")
    return dict(zip(gradients, rows, strict=True))


def _keys(form: ClosedForm) -> Node:
    return form.b.rename(form.b.input("k", "j", "k"), "j", "t")


def _values(form: ClosedForm) -> Node:
    return form.b.rename(form.b.input("v", "j", "v"), "j", "t")


def _equation(
    form: ClosedForm, slots: Mapping[str, Node], gradients: Sequence[GradientWrite], write: GradientWrite
) -> tuple[list[Node | None], Node]:
    """The block row of a line: its coefficients[t j] on every line's error rows, and its right-hand side[t v]."""
    b, keys = form.b, _keys(form)
    kappa, rest = form.recurrence.error.affine
    at = _at_line(form, form.recurrence.memory_at[write.line])
    k, c = b.constant(kappa), form.of_values(rest, {VALUE: _values(form)})
    scores = lambda w: b.product(k, at.writes[w], seen_by(b, keys, form.key(w, MATRIX), MATRIX))  # noqa: E731
    right = [b.product(k, node, seen_by(b, keys, slots[slot], MATRIX)) for slot, node in at.start.items()]
    right += [b.contract(scores(w), form.value(w, MATRIX), "j") for w in at.writes if not isinstance(w, GradientWrite)]
    for g in set(gradients) & set(at.writes):
        b.call(scores(g), f"system{_number(gradients, write)}{_number(gradients, g)}", "A")
    rest = b.call(b.total([*right, c]), f"error_rest{_number(gradients, write)}", "B")
    return [scores(g) if g in at.writes else None for g in gradients], rest


def _number(gradients: Sequence[GradientWrite], write: GradientWrite) -> str:
    """Which of several lines, as the ending of a name."""
    return f"_{gradients.index(write)}" if len(gradients) > 1 else ""


def _at_line(form: ClosedForm, memory: LinearForm) -> Coefficients:
    """R' and C' of the memory at a line, given as a form over last token's slots and this token's writes."""
    b = form.b
    terms: dict[str | AnyWrite, list[Node]] = {}
    for atom, rate in memory.items():
        value = form.gate(rate, neutral=0)
        if isinstance(atom, PreviousSlot):
            before = form.coefficients(atom.name, "t", exclusive=True)
            for of, node in {**before.start, **before.writes}.items():
                terms.setdefault(of, []).append(b.product(value, node))
        else:
            terms.setdefault(atom, []).append(_same_token(b, value))
    found = {of: b.total(nodes) for of, nodes in terms.items()}
    start = {of: node for of, node in found.items() if isinstance(of, str)}
    return Coefficients(start, {of: node for of, node in found.items() if of not in start})


def _same_token(b: Builder, rate: Node) -> Node:
    """A diagonal[t j]."""
    row, column, value = sympy.symbols("row column value", real=True)
    diagonal = Where(1 - Absolute(row - column), value, sympy.S.Zero)
    return b.map(diagonal, {row: b.iota("t"), column: b.iota("j"), value: rate})


def _solved(b: Builder, rows: list[list[Node | None]], right: list[Node]) -> list[Node]:
    """The E with E_l = sum over m of A[l, m] E_m + B_l: the first unknown eliminated, the others solved likewise."""
    if not right:
        return []
    (own, *others), *below = rows
    first = _solve(b, own, right[0])
    passed = [_solve(b, own, node) if node is not None else None for node in others]
    reduced, remaining = [], []
    for (factor, *rest), value in zip(below, right[1:], strict=True):
        reduced.append([_plus(b, node, _times(b, factor, other)) for node, other in zip(rest, passed, strict=True)])
        remaining.append(_plus(b, value, _times(b, factor, first)))
    found = _solved(b, reduced, remaining)
    for factor, value in zip(passed, found, strict=True):
        first = _plus(b, first, _times(b, factor, value))
    return [first, *found]


def _solve(b: Builder, matrix: Node | None, right: Node) -> Node:
    return right if matrix is None else b.solve(matrix, right)


def _times(b: Builder, matrix: Node | None, right: Node | None) -> Node | None:
    """matrix[t j] times right[t ...], along the tokens."""
    if matrix is None or right is None:
        return None
    return b.contract(b.rename(matrix, "j", "s"), b.rename(right, "t", "s"), "s")


def _plus(b: Builder, left: Node | None, right: Node | None) -> Node | None:
    return b.total([left, right]) if left is not None and right is not None else left if right is None else right
