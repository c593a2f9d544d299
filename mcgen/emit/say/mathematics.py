"""What a spec says, as mathematics in plain text for docstrings and headers; and the trees it is printed from."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator

from mcgen.emit.text.expressions import constant, is_constant, names
from mcgen.ir.layers import layers, sizes
from mcgen.spec import Gate, Spec
from mcgen.spec.grammar import NOWHERE, Binary, Call, Expression, Name, Number, Unary, unparse
from mcgen.spec.spec import ROUTED

DOCSTRING_WIDTH = 112

READ_OUTS = {
    "none": "y_t = M_t(q_t)",
    "residual": "y_t = M_t(q_t) + sum of M(q_t) over the cached memories (eq. 7)",
    "mean": "y_t = mean of M(q_t) over the cached memories and the online one",
    "grm": "y_t = sum of w M(q_t) over the cached memories and the online one (eq. 9, 10)",
    "soup": "y_t = M(q_t) with M the sum of w M over the cached memories and the online one (eq. 14, 15)",
    "ssc": "y_t = sum of w M(q_t) over the top {top_k} of the cached memories by r and the online one (eq. 16, 17)",
}
"""What a token reads; equations of Behrouz et al., "Memory Caching: RNNs with Growing Memory" (arXiv 2602.24281)."""


def weight_shapes(spec: Spec) -> list[tuple[int, int]]:
    """(out, in) of each weight of the memory, first to last."""
    lengths = sizes(spec)
    return [(lengths[layer.out], lengths[layer.into]) for layer in layers(spec)]


def activation(spec: Spec) -> Expression:
    """σ of an mlp memory, as an expression in x."""
    named = spec.activation_expression is None
    return Call(spec.memory.activation, (Name("x", NOWHERE),), NOWHERE) if named else spec.activation_expression


def memory_text(spec: Spec) -> str:
    """M(x), in words of the field."""
    memory = spec.memory
    if memory.kind == "matrix":
        return "M(x) = W x"
    sigma = memory.activation if spec.activation_expression is None else "σ"
    inner = f"{sigma}(W_1 x)"
    for layer in range(2, memory.layers):
        inner = f"{sigma}(W_{layer} {inner})" if memory.layers < 5 else f"… {sigma}(W_1 x)"
    body = f"W_{memory.layers} {inner}"
    body = f"LN({body})" if memory.norm == "layernorm" else body
    where = f", σ(x) = {unparse(spec.activation_expression)}" if spec.activation_expression is not None else ""
    return f"M(x) = {'x + ' if memory.residual else ''}{body}{where}"


def constant_gates_text(spec: Spec) -> str:
    """The gates that are no arguments."""
    return ", ".join(_constant_gate(gate) for gate in spec.gates if gate.kind != "tensor")


def _constant_gate(gate: Gate) -> str:
    value = gate.value if isinstance(gate.value, float | int) else unparse(gate.value)
    return f"{gate.name} = {value}" + (" of head h" if gate.kind == "per_head" else "")


def segments_text(spec: Spec) -> str:
    segment = spec.segment
    size = f"{segment.size} tokens" if segment.mode == "constant" else "the binary expansion of T, longest first"
    goes = "restarts at each" if segment.init == "independent" else "goes on from the last"
    return f"{size}; every slot {goes} (init: {segment.init})"


def read_text(spec: Spec) -> list[str]:
    """The read-out, and how its weights are made."""
    aggregate = spec.aggregate
    rows = [READ_OUTS[aggregate.kind].format(top_k=aggregate.top_k)]
    if aggregate.kind in ROUTED:
        scale = f"{aggregate.scale!r} " if aggregate.scale != 1 else ""
        pooled = f"{aggregate.pool} of the segment's keys"
        rows.append(
            f"w = softmax(r), r = {scale}<{aggregate.connector}_t, {pooled}>, of those up to t for the online memory"
        )
    return rows


def mathematics(spec: Spec) -> list[str]:
    """The spec's memory, update, segments and read-out, one labelled line each, wrapped for a docstring."""
    rows = [("memory", [memory_text(spec)])]
    if spec.objective_expression is not None:
        chunk = f"where its chunk of {spec.gradient_chunk} began" if spec.gradient_chunk else "at that line"
        rows.append(
            ("objective", [f"{unparse(spec.objective_expression)}, p = M(k_t); grad at M as it stands {chunk}"])
        )
    rows.append(("update", [f"{step.slot} = {unparse(step.expression)}" for step in spec.steps]))
    rows.append(("with", [text] if (text := constant_gates_text(spec)) else []))
    rows += [("segments", [segments_text(spec)]), ("read-out", read_text(spec))]
    return [line for label, texts in rows for line in labelled(label, texts)]


def shapes_text(spec: Spec) -> list[str]:
    """The shapes of the arguments and of y, wrapped for a docstring."""
    key, value = spec.head.key_dim, spec.head.value_dim
    rows = [f"{'q, k, u' if spec.routes_by_u else 'q, k'} (B, T, H, {key}); v and y (B, T, H, {value})"]
    rows[0] += "; k and v may have fewer heads, dividing H"
    if spec.tensor_gates:
        rows.append(f"{', '.join(spec.tensor_gates)} (B, T, H)")
    if spec.memory.kind == "mlp":
        rows.append("theta: " + ", ".join(f"(H, {out}, {into})" for out, into in weight_shapes(spec)))
    return list(labelled("shapes", rows))


def labelled(label: str, texts: Iterable[str]) -> Iterator[str]:
    """Texts beside their label, wrapped and hanging."""
    for number, text in enumerate(texts):
        first = f"{label if number == 0 else '':<11}"
        yield from textwrap.wrap(text, DOCSTRING_WIDTH, initial_indent=first, subsequent_indent=" " * 13)


def error_row(objective: Expression) -> Expression | None:
    """e = d objective / dp, element by element, for objectives that are polynomials in p; None for others."""
    try:
        return _combined(_derivative(objective))
    except _NotSimple:
        return None


class _NotSimple(Exception):
    """Leave this derivative to autograd."""


Terms = list[tuple[float, "Expression | None"]]  # coefficients times factors; no factor is 1


def _derivative(expression: Expression) -> Terms:
    """The derivative by p of a polynomial in p, or of a sum over its elements."""
    if "p" not in names(expression):
        return []
    match expression:
        case Name():
            return [(1.0, None)]
        case Call("sum", (argument,)):
            return _derivative(argument)
        case Call("dot", (left, right)):
            return _derivative(Binary("*", left, right, NOWHERE))
        case Unary(op, operand):
            return _scaled(_derivative(operand), -1.0 if op == "-" else 1.0)
        case Binary("+" | "-" as op, left, right):
            return _derivative(left) + _scaled(_derivative(right), 1.0 if op == "+" else -1.0)
        case Binary("*", left, right):
            return _times(_derivative(left), right) + _times(_derivative(right), left)
        case Binary("/", left, right) if is_constant(right):
            return _scaled(_derivative(left), 1 / constant(right))
        case Binary("**", base, Number(int(power))) if power > 0:
            lower = base if power == 2 else Binary("**", base, Number(power - 1, NOWHERE), NOWHERE)
            return _scaled(_times(_derivative(base), lower) if power > 1 else _derivative(base), float(power))
    raise _NotSimple


def _scaled(terms: Terms, by: float) -> Terms:
    return [(coefficient * by, factor) for coefficient, factor in terms]


def _times(terms: Terms, by: Expression) -> Terms:
    if is_constant(by):
        return _scaled(terms, constant(by))
    return [(c, by if factor is None else Binary("*", factor, by, NOWHERE)) for c, factor in terms]


def _combined(terms: Terms) -> Expression:
    """The sum of the terms, equal factors taken together."""
    coefficients: dict[Expression | None, float] = defaultdict(float)
    for coefficient, factor in terms:
        coefficients[factor] += coefficient
    total: Expression | None = None
    for factor, coefficient in coefficients.items():
        term = _term(abs(coefficient), factor)
        if coefficient == 0:
            continue
        if total is None:
            total = term if coefficient > 0 else Unary("-", term, NOWHERE)
        else:
            total = Binary("+" if coefficient > 0 else "-", total, term, NOWHERE)
    return Number(0, NOWHERE) if total is None else total


def _term(coefficient: float, factor: Expression | None) -> Expression:
    number = Number(int(coefficient) if coefficient.is_integer() else coefficient, NOWHERE)
    if factor is None:
        return number
    return factor if coefficient == 1 else Binary("*", number, factor, NOWHERE)
