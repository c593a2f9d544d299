"""Warnings about rules that mean something, but hardly what was meant: a default that ruins them, a gradient that is 0.

What a gate starts as is what an untrained layer makes it where x w_h is 0: scale * fn(bias).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy

from mcgen.errors import Diagnostic
from mcgen.spec import Gate, Spec, Step
from mcgen.spec.grammar import NOWHERE, Call, Expression, Name, Number, Span, Unary, evaluate, unparse, walk
from mcgen.symbolic.expressions import symbol
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.reach import changes, stays_zero, unreached
from mcgen.symbolic.recurrence import MEMORY, GradientWrite
from mcgen.symbolic.text import text

FEW = 3
"""A memory of which half is forgotten after so few tokens keeps nothing for later ones."""

STEEP = 0.1
"""Steps of a deep memory from which on it has been seen to diverge."""

HEADS = 64
"""The most heads of which constants are looked at."""

SQUASHING = ("sigmoid", "tanh", "exp", "softplus", "erf")
"""Functions that a step makes a gate of from any number: the layer's are of the same kind."""

KEEPS, DISCOUNTS = 4.0, -4.6
"""Biases at which a sigmoid, and a decay with its slowest rate, keep 0.98 and 0.99 a token."""

LINGERS = 1.0
"""A bias at which a sigmoid keeps 0.73: of a momentum, which makes steps four times as long."""

WORTHWHILE = 1.1
"""A remedy brings what a slot keeps nearer to 1 by more than this factor."""

ROUNDING = 1e-9


def advice(meaning: Meaning) -> tuple[Diagnostic, ...]:
    """Every warning about a rule, with its place and a remedy."""
    return tuple(_Adviser(meaning).findings())


def initial(gate: Gate) -> float:
    """What a gate starts as; of `decay`, in the head that forgets least, whose rate is 1."""
    if gate.fn == "identity":
        return gate.scale * gate.bias
    function = "softplus" if gate.fn == "decay" else gate.fn
    try:
        value = evaluate(Call(function, (Number(gate.bias, NOWHERE),), NOWHERE), {})
    except ArithmeticError:
        return math.inf
    return gate.scale * (math.exp(-value) if gate.fn == "decay" else value)


def _entry(gate: Gate) -> str:
    """A gate of the layer as a remedy; its scale and projection where they are not the default."""
    fields = {"fn": gate.fn, "bias": gate.bias} | ({"scale": gate.scale} if gate.scale != 1 else {})
    fields |= {"from": gate.source} if gate.source else {}
    shown = ", ".join(f"{name}: {value}" for name, value in fields.items())
    return f"write gates: {{{gate.name}: {{{shown}}}}}"


@dataclass(frozen=True)
class _Adviser:
    meaning: Meaning

    @property
    def spec(self) -> Spec:
        return self.meaning.spec

    def findings(self) -> Iterator[Diagnostic]:
        yield from self._squashed_twice()
        yield from self._always_zero()
        for slot in self.meaning.recurrence.slots:
            yield from self._kept(slot)
        yield from self._steep()
        yield from self._without_gradient()

    @cached_property
    def _gates(self) -> dict[str, Gate]:
        """The gates that the layer makes, by name."""
        return {gate.name: gate for gate in self.spec.gates if gate.kind == "tensor"}

    def _is_listed(self, gate: str) -> bool:
        return ("update", "gates", gate) in self.spec.document.values

    def _at(self, gate: str, message: str, hint: str) -> Diagnostic:
        """A warning at a gate's entry, or where it first stands in a step."""
        if self._is_listed(gate):
            position = self.spec.document.key(("update", "gates", gate))
            return position.diagnose(message, hint=hint, severity="warning")
        step, span = next(self._uses(gate))
        return step.diagnose(span, message, hint, "warning")

    def _uses(self, gate: str) -> Iterator[tuple[Step, Span]]:
        for step in self.spec.steps:
            yield from ((step, part.span) for part in walk(step.expression) if part == Name(gate, NOWHERE))

    # What the layer and a step both make of a gate.

    def _squashed_twice(self) -> Iterator[Diagnostic]:
        for step in self.spec.steps:
            for part in walk(step.expression):
                if (gate := self._squashed(part)) is not None:
                    message = f"`{unparse(part)}` of a gate that the layer makes by {gate.fn} already"
                    best = self._best(gate, [_of(gate, "identity", bias) for bias in (0.0, KEEPS, -KEEPS)])
                    yield step.diagnose(part.span, message, _entry(best), "warning")

    def _squashed(self, part: Expression) -> Gate | None:
        """The gate of the layer that a call squashes again; exp of a negative one is a decay."""
        if not isinstance(part, Call) or part.function not in SQUASHING:
            return None
        argument = part.arguments[0]
        negative = isinstance(argument, Unary) and argument.op == "-"
        name = argument.operand if isinstance(argument, Unary) else argument
        gate = self._gates.get(name.id) if isinstance(name, Name) else None
        if gate is None or gate.fn == "identity" or (part.function == "exp" and (negative or gate.scale < 0)):
            return None
        return gate

    def _squashed_gate(self, name: str) -> bool:
        """Whether that is what is wrong with a gate, before anything else."""
        parts = (part for step in self.spec.steps for part in walk(step.expression))
        return any((gate := self._squashed(part)) is not None and gate.name == name for part in parts)

    def _always_zero(self) -> Iterator[Diagnostic]:
        for gate in self._gates.values():
            if gate.scale == 0:
                hint = f"a constant is written {gate.name}: 0.0"
                yield self._at(gate.name, f"`{gate.name}` is always 0, for its scale is", hint)

    # What a slot keeps of itself.

    def _kept(self, slot: str) -> Iterator[Diagnostic]:
        kept = self._share(slot)
        gates = [gate for name, gate in self._gates.items() if kept.has(symbol(name))]
        shares = self._sizes(kept) if kept != 0 else []
        if shares and max(shares) > 1 + ROUNDING:
            yield from self._growing(slot, gates, max(shares))
        elif gates and shares and max(shares) < 0.5 ** (1 / FEW):
            yield from self._forgetting(slot, gates, max(shares))

    def _share(self, slot: str) -> sympy.Expr:
        return self.meaning.recurrence.transition(slot, slot)

    def _sizes(self, coefficient: sympy.Expr, changed: Gate | None = None) -> list[float]:
        """How large a coefficient is at first, in every head; empty where that is no number."""
        gates = self._gates | ({changed.name: changed} if changed else {})
        values = {symbol(name): initial(gate) for name, gate in gates.items()}
        heads = [gate for gate in self.spec.gates if gate.kind == "per_head" and coefficient.has(symbol(gate.name))]
        by_head = zip(*map(self._by_head, heads), strict=True) if heads else [()]
        names = [symbol(gate.name) for gate in heads]
        sizes = [_value(coefficient, {**values, **dict(zip(names, row, strict=True))}) for row in by_head]
        return [] if None in sizes else list(map(abs, sizes))

    def _by_head(self, gate: Gate) -> list[float]:
        """What a constant is in each head; not a number where it has no value."""
        return [_at_head(gate.value, head) for head in range(min(self.spec.layer.heads, HEADS))]

    def _growing(self, slot: str, gates: list[Gate], size: float) -> Iterator[Diagnostic]:
        grows, most = f"{slot} grows by {size:.6g} a token", "let a token keep at most all of it"
        if not gates:
            yield self._constant(slot, f"{grows}, whatever the input", most)
            return
        better = [(gate, best) for gate in gates if (best := self._better(slot, gate)) is not None]
        for gate, best in better or [(gates[0], None)]:
            message = f"`{gate.name}` is {_short(initial(gate))} at first, and {grows}"
            if not self._squashed_gate(gate.name):
                yield self._at(gate.name, message, _entry(best) if best else most)

    def _constant(self, slot: str, message: str, hint: str) -> Diagnostic:
        """A warning at the constant that multiplies a slot, or at the slot's line where that is a number in it."""
        lines = [step for step in self.spec.steps if step.slot == slot]
        names = {part.id for step in lines for part in walk(step.expression) if isinstance(part, Name)}
        large = [gate.name for gate in self.spec.gates if gate.name in names and self._is_large(gate)]
        if large:
            position = self.spec.document.nearest(("update", "gates", large[0], "per_head"))
            return position.diagnose(message, hint=hint, severity="warning")
        return lines[-1].diagnose(lines[-1].expression.span, message, hint, "warning")

    def _is_large(self, gate: Gate) -> bool:
        values = [gate.value] if gate.kind == "constant" else self._by_head(gate) if gate.kind == "per_head" else []
        return any(abs(value) > 1 for value in values)

    def _forgetting(self, slot: str, gates: list[Gate], size: float) -> Iterator[Diagnostic]:
        for gate in gates:
            if slot != MEMORY and self._is_listed(gate.name):
                continue  # a trace that fades within a few tokens, and says so
            best = self._better(slot, gate)
            if best is None or gate.name in self._flat or self._squashed_gate(gate.name):
                continue
            made = f"`{gate.name}` is {_short(initial(gate))} at first"
            if not self._is_listed(gate.name):
                made = f"`{gate.name}` has no entry in gates, which makes it {gate.fn}({_short(gate.bias)})"
            lasting = f", or bias: {math.copysign(KEEPS, best.bias)} for what should last" if slot != MEMORY else ""
            decay = ", or fn: decay with a bias such as -4.6" if best.fn != "decay" and best.bias > 0 else ""
            message = f"{made}, and {slot} keeps {_short(size)} of itself a token"
            yield self._at(gate.name, message, _entry(best) + (lasting or decay))

    def _better(self, slot: str, gate: Gate) -> Gate | None:
        """The gate with a bias at which a slot keeps more of itself, or grows less; None where there is none."""
        size = KEEPS if slot == MEMORY else LINGERS
        own = (DISCOUNTS,) if gate.fn == "decay" else (size, -size)
        candidates = [_of(gate, gate.fn, bias) for bias in own] + [_of(gate, "sigmoid", bias) for bias in (size, -size)]
        best = self._best(gate, candidates)
        found, now = (_evenness(self._sizes(self._share(slot), one)) for one in (best, gate))
        return best if found > WORTHWHILE * now else None

    def _best(self, gate: Gate, candidates: list[Gate]) -> Gate:
        """The first candidate with which the slots it scales keep about as much of themselves as with any."""
        shares = [
            share for slot in self.meaning.recurrence.slots if (share := self._share(slot)).has(symbol(gate.name))
        ]
        scores = [min((_evenness(self._sizes(share, one)) for share in shares), default=0.0) for one in candidates]
        return next(one for one, score in zip(candidates, scores, strict=True) if score * WORTHWHILE >= max(scores))

    # Steps of a deep memory.

    def _steep(self) -> Iterator[Diagnostic]:
        forms = [] if self.meaning.linear else self.meaning.recurrence.forms.values()
        rates = [rate for form in forms for atom, rate in form.items() if isinstance(atom, GradientWrite)]
        for name in self._gates:
            scaled = [rate for rate in rates if rate.has(symbol(name)) and rate.subs(symbol(name), 0) == 0]
            sizes = [size for rate in scaled for size in self._sizes(rate)]
            if sizes and max(sizes) > STEEP and not self._is_listed(name):
                chunk = self.meaning.recurrence.chunk or 1
                message = f"`{name}` has no entry in gates: steps of {_short(max(sizes))} along gradients of an mlp"
                together = f"those of a chunk of {chunk} tokens add up, and it diverges; " if chunk > 1 else ""
                yield self._at(name, message, together + _entry(Gate(name, "tensor", None, "softplus", 0.0, 0.01)))

    # Gradients that are 0 by construction.

    @cached_property
    def _flat(self) -> tuple[str, ...]:
        """The inputs whose gradient is 0 by construction; none where nothing is written at all, which is refused."""
        return unreached(self.meaning) if self.meaning.recurrence.writes else ()

    def _without_gradient(self) -> Iterator[Diagnostic]:
        if self._flat and stays_zero(self.meaning):
            yield self._stays_zero()
            return
        if "v" in self._flat:
            yield self._value_without_gradient()
        yield from (self._gate_without_gradient(name) for name in self._gates if name in self._flat)

    def _stays_zero(self) -> Diagnostic:
        message, hint = "M never leaves 0", "write outer(v, k) to it"
        position = self.spec.steps[-1].position
        if self.meaning.recurrence.error is not None:
            message += ": the objective's gradient by p is 0 where p is, and nothing else is written"
            hint = "take one that tells v from 0, such as sum((p - v)**2)/2"
            position = self.spec.objective_position
        return position.diagnose(message, hint=hint, severity="warning")

    def _value_without_gradient(self) -> Diagnostic:
        found, position = self.meaning.recurrence, self.spec.objective_position
        message = "the gradient by v is 0 everywhere"
        if not found.reads_memory or position is None:
            last = self.spec.steps[-1].position
            return last.diagnose(f"{message}: no write that is read has it", severity="warning")
        message += f": the objective's gradient by p, {text(found.error.expression)}, has no derivative by v"
        hint = "take one whose gradient changes with v, such as sum((p - v)**2)/2, or sqrt(1 + x**2) in place of abs(x)"
        return position.diagnose(message, hint=hint, severity="warning")

    def _gate_without_gradient(self, name: str) -> Diagnostic:
        found = self.meaning.recurrence
        forms = [*found.forms.values(), *found.memory_at.values()]
        parts = [part for form in forms for part in form.values() if part.has(symbol(name))]
        flat = [part for part in parts if not changes(part, symbol(name))]
        why = "M does not depend on it" if not parts else "what it multiplies is 0"
        if flat:
            why = f"{text(flat[0])} has no derivative by it"
        hint = "make it a constant, or let M depend on it smoothly"
        return self._at(name, f"the gradient by `{name}` is 0 everywhere: {why}", hint)


def _of(gate: Gate, fn: str, bias: float) -> Gate:
    """A gate made by another function of another bias; its scale and projection stay where the function does."""
    if fn == gate.fn:
        return Gate(gate.name, "tensor", None, fn, bias, gate.scale, gate.source)
    return Gate(gate.name, "tensor", None, fn, bias, 1.0, gate.source)


def _evenness(sizes: list[float]) -> float:
    """How near to 1 the size is that is furthest from it: 1 for 1, less for less and for more."""
    return min((min(size, 1 / size) if size else 0.0 for size in sizes), default=0.0)


def _value(expression: sympy.Basic, values: Mapping[sympy.Symbol, float]) -> float | None:
    """An expression in floats, from the inside out: SymPy's own have no bounds, and take long beyond those."""
    if isinstance(expression, sympy.Symbol):
        value = values.get(expression)
    else:
        arguments = [_value(argument, values) for argument in expression.args]
        value = None if None in arguments else _called(expression, arguments)
    return value if value is not None and math.isfinite(value) else None


def _called(expression: sympy.Basic, arguments: list[float]) -> float | None:
    try:
        return float(expression.func(*map(sympy.Float, arguments)) if arguments else expression)
    except (TypeError, ValueError, OverflowError):
        return None


def _at_head(expression: Expression, head: int) -> float:
    try:
        return evaluate(expression, {"h": float(head)})
    except (ArithmeticError, ValueError):
        return math.nan


def _short(value: float) -> str:
    return f"{value:.3g}"
