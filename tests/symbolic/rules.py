"""Rules as tests draw them: cascades of up to three slots, in any order of lines, with lags and gates of every kind.

`updates` draws rules whose writes are known beforehand, `learning` those with gradients that read the memory.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from mcgen.spec import Spec
from mcgen.spec.grammar import Binary, Call, Expression, Lag, Name, Unary, evaluate
from mcgen.symbolic.recurrence import recurrence
from tests.emit.fragments import spec_of

SLOTS = ("R", "S", "M")
GATES = ("a", "b", "c")
COEFFICIENTS = (
    "a",
    "b",
    "c",
    "a*b",
    "-c",
    "(1 - a)",
    "0.5",
    "b/2",
    "sigmoid(3*c)",
    "exp(-abs(a))",
    "max(a, b)",
    "c**2",
    "(a + b)/4",
    "(b + 1)**c",
    "min(c, 0.25)",
)
OBJECTIVE = "-dot(p, v)"
QUADRATIC = (
    "sum((p - v)**2)",
    "dot(p, p)",
    "dot(p, v)",
    "sum((p + v)*(p/2 - v))",
    "sum(p*sin(v))",
    "dot(p - v, p - tanh(v))",
    "sum(p)",
    "sum(v**2)",
)
"""Objectives whose error rows are affine in p."""
BENT = ("sum(sqrt(1 + (p - v)**2))", "sum(softplus(p - v))", "sum((v**2 + 1)*(p - v)**2)/4", "dot(sin(p), v)")
"""Objectives whose curvature is no number; p grows no faster for them than for quadratic ones."""
NUMBERS = ("", "0.5*", "-0.25*", "2/3*", "0*")
CHUNKS = (1, 2, 3, 5, 7, 100)
"""Lengths of gradient chunks, for segments of 7: one token, some that divide it or not, the whole, and beyond."""


@st.composite
def terms(draw: st.DrawFn, readable: tuple[str, ...], gradients: bool) -> str:
    """One term: a coefficient times a slot, a write, or a gradient."""
    kind = draw(st.sampled_from([*readable, readable[-1], "outer", "outer", *(["grad"] if gradients else [])]))
    if kind == "outer":
        value, key = (draw(st.sampled_from([name, name, f"{name}[-1]", f"{name}[-3]"])) for name in "vk")
        kind = f"outer({value}, {key})"
    return draw(st.sampled_from([kind, *(f"{coefficient}*{kind}" for coefficient in COEFFICIENTS), f"{kind}/2"]))


@st.composite
def lines(draw: st.DrawFn, readable: tuple[str, ...], gradients: bool) -> str:
    """A line that assigns the last of the slots it may read."""
    found = draw(st.lists(terms(readable, gradients), min_size=1, max_size=3))
    signs = draw(st.lists(st.sampled_from([" + ", " - "]), min_size=len(found) - 1, max_size=len(found) - 1))
    return f"{readable[-1]} = " + "".join(piece for pair in zip(found, [*signs, ""], strict=True) for piece in pair)


@st.composite
def updates(draw: st.DrawFn, gradients: st.SearchStrategy[bool] = st.booleans()) -> dict[str, Any]:  # noqa: B008
    """An `update` section: lines in any order over one to three slots, M among them; a gate may be a constant.

    A slot reads only itself and those listed before it, so there are no cycles, but lines read above and below.
    """
    slots = SLOTS[draw(st.integers(0, 2)) :]
    order = draw(st.permutations([*slots, *draw(st.lists(st.sampled_from(slots), max_size=2))]))
    taken = draw(gradients)
    steps = [draw(lines(slots[: slots.index(slot) + 1], taken)) for slot in order]
    if not any("outer" in step or "grad" in step for step in steps if step.startswith("M")):
        steps.append("M = M + outer(v, k)")
    used = sorted({gate for step in steps for gate in GATES if gate in names_of(step)})
    gates = {}
    if used and draw(st.booleans()):
        gates[draw(st.sampled_from(used))] = draw(st.sampled_from([0.0, 1.0, 0.75, {"per_head": "1 - 2**(-1 - h)"}]))
    objective = {"objective": OBJECTIVE} if any("grad" in step for step in steps) else {}
    return {"steps": steps, "gates": gates, **objective}


@st.composite
def objectives(draw: st.DrawFn, first: tuple[str, ...]) -> str:
    """A combination with numeric coefficients: one of the first objectives, and perhaps quadratic ones."""
    terms = [draw(st.sampled_from(first)), *draw(st.lists(st.sampled_from(QUADRATIC), max_size=2))]
    scales = [draw(st.sampled_from(NUMBERS[:4])), *(draw(st.sampled_from(NUMBERS)) for _ in terms[1:])]
    return " + ".join(map("".join, zip(scales, terms, strict=True)))


@st.composite
def learning(draw: st.DrawFn) -> dict[str, Any]:
    """An `update` whose memory depends on gradients that read it: token by token where that has a parallel form."""
    bent = draw(st.booleans())
    update = draw(updates(gradients=st.just(True)))
    update["objective"] = draw(objectives(BENT if bent else QUADRATIC[:4]))
    chunk = draw(st.sampled_from(CHUNKS if bent else (None, None, *CHUNKS)))
    update["gradient"] = {"chunk": chunk} if chunk else "token"
    if not any("grad" in step for step in update["steps"]):
        update["steps"].append("M = M - eta*grad")
    assume(recurrence(small(update)).reads_memory)
    return update


def names_of(step: str) -> set[str]:
    """The names a line reads."""
    expression = step.split("=", 1)[1]
    return set("".join(c if c.isalnum() or c == "_" else " " for c in expression).split())


def small(update: dict[str, Any], **sections: Any) -> Spec:
    """A spec of small heads."""
    return spec_of(update, **({"head": {"key_dim": 3, "value_dim": 2}} | sections))


Vector = dict[Any, float]


def run_lines(spec: Spec, gates: list[dict[str, float]]) -> list[dict[str, Vector]]:
    """The definition of a rule, run in floats: every slot after every token, from 1, as a sum over what was before.

    Keys are the slots before the first token, by name, and writes as (value lag, key lag, token); gradients are those
    of -dot(p, v).
    """
    slots: dict[str, Vector] = {slot: {slot: 1.0} for slot in spec.slots}
    history = []
    for token, values in enumerate(gates, 1):
        for step in spec.steps:
            slots = {**slots, step.slot: _vector(step.expression, slots, values, token)}
        history.append(slots)
    return history


def _vector(expression: Expression, slots: dict[str, Vector], gates: dict[str, float], token: int) -> Vector:
    match expression:
        case Name("grad"):
            return {(0, 0, token): -1.0}
        case Name(id) if id in slots:
            return slots[id]
        case Call("outer", arguments):
            value, key = (argument.lag if isinstance(argument, Lag) else 0 for argument in arguments)
            return {(value, key, token): 1.0}
        case Unary(op, operand):
            return _scaled(_vector(operand, slots, gates, token), -1.0 if op == "-" else 1.0)
        case Binary("+" | "-" as op, left, right):
            first, second = (_vector(side, slots, gates, token) for side in (left, right))
            second = _scaled(second, 1.0 if op == "+" else -1.0)
            return {key: first.get(key, 0.0) + second.get(key, 0.0) for key in first | second}
        case Binary("*", left, right):
            return _scaled(_vector(right, slots, gates, token), evaluate(left, gates))
        case Binary("/", left, right):
            return _scaled(_vector(left, slots, gates, token), 1 / evaluate(right, gates))
    raise AssertionError(expression)


def _scaled(vector: Vector, factor: float) -> Vector:
    return {key: value * factor for key, value in vector.items()}


def gate_values(spec: Spec, seed: int, count: int, head: int = 1) -> list[dict[str, float]]:
    """Gates of each of `count` tokens: between 0 and 1, one in four exactly 0 or 1."""
    generator = random.Random(seed)
    tokens = []
    for _ in range(count):
        values = {
            name: generator.choice([0.0, 1.0, *(generator.uniform(0, 1) for _ in range(6))])
            for name in spec.tensor_gates
        }
        for gate in spec.gates:
            if gate.kind == "constant":
                values[gate.name] = gate.value
            elif gate.kind == "per_head":
                values[gate.name] = evaluate(gate.value, {"h": float(head)})
        tokens.append(values)
    return tokens
