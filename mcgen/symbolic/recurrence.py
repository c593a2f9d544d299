"""From the lines of a rule to a linear recurrence in its slots (SEMANTICS 2 and 6).

With x_t the column of slots after token t and G^w_t the writes of token t,

    x_t = A_t x_{t-1} + sum over writes w of b^w_t G^w_t,

where A_t and b^w_t are functions of token t's gates. The lines are run once with every slot a linear form over last
token's slots and this token's writes, so a line that reads a slot assigned above it is substituted, and one that reads
a slot assigned below it is not. Slots are then put in an order in which A is lower triangular, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import sympy

from mcgen.errors import SpecError
from mcgen.spec import Spec, Step
from mcgen.spec.grammar import Binary, Call, Expression, Lag, Name, Span, Unary
from mcgen.symbolic.expressions import to_sympy
from mcgen.symbolic.objective import VALUE, ErrorRow, error_row

MEMORY = "M"


@dataclass(frozen=True)
class Write:
    """The rank-one write c(v[t - value_lag]) k[t - key_lag]ᵀ, whose value row does not depend on the memory."""

    value_lag: int = 0
    key_lag: int = 0
    value: sympy.Expr = VALUE

    def __str__(self) -> str:
        return f"{_lagged(sympy.sstr(self.value), self.value_lag)} {_lagged('k', self.key_lag)}ᵀ"


@dataclass(frozen=True)
class GradientWrite:
    """The gradient of the objective, taken by the line numbered `line`: e(p, v) k^T, with p read from the memory."""

    line: int

    def __str__(self) -> str:
        return f"grad[line {self.line + 1}]"


@dataclass(frozen=True)
class PreviousSlot:
    """Last token's value of a slot."""

    name: str

    def __str__(self) -> str:
        return f"{self.name}[t-1]"


Atom = PreviousSlot | Write | GradientWrite
LinearForm = Mapping[Atom, sympy.Expr]


@dataclass(frozen=True)
class Recurrence:
    """x_t = A_t x_{t-1} + sum_w b^w_t G^w_t, in triangular normal form.

    slots        in an order in which A is lower triangular; slot `M` is among them
    forms        each slot after a token, over last token's slots and this token's writes: the rows of (A, b)
    memory_at    for each line that takes a gradient, the memory as it stands at that line, likewise
    error        the objective's error row, where the rule has an objective
    chunk        length of the chunks gradients are taken over; None where they are taken token by token
    """

    slots: tuple[str, ...]
    forms: Mapping[str, LinearForm]
    memory_at: Mapping[int, LinearForm]
    error: ErrorRow | None
    chunk: int | None

    def transition(self, slot: str, source: str) -> sympy.Expr:
        """A[slot, source]."""
        return self.forms[slot].get(PreviousSlot(source), sympy.S.Zero)

    def injection(self, slot: str, write: Write | GradientWrite) -> sympy.Expr:
        """b[slot, write]."""
        return self.forms[slot].get(write, sympy.S.Zero)

    @property
    def writes(self) -> tuple[Write | GradientWrite, ...]:
        """Every write some slot takes, each once."""
        return tuple(dict.fromkeys(a for s in self.slots for a in self.forms[s] if not isinstance(a, PreviousSlot)))

    @property
    def reads_memory(self) -> bool:
        """Whether some write depends on the state."""
        return any(isinstance(write, GradientWrite) for write in self.writes)


def _lagged(name: str, lag: int) -> str:
    return f"{name}[t-{lag}]" if lag else f"{name}[t]"


def recurrence(spec: Spec) -> Recurrence:
    """The recurrence of a spec's rule.

    Raises:
        SpecError: a line is not linear in the slots, or slots feed one another in a cycle.
    """
    error = error_row(spec.objective_expression) if spec.objective_expression is not None else None
    state: dict[str, LinearForm] = {slot: {PreviousSlot(slot): sympy.S.One} for slot in spec.slots}
    memory_at: dict[int, LinearForm] = {}
    diagnostics = []
    for index, step in enumerate(spec.steps):
        line = _Line(step, index, state, error if spec.memory.kind == "matrix" else None)
        try:
            form = line.linear(step.expression)
        except SpecError as problem:
            diagnostics += problem.diagnostics
            continue
        if GradientWrite(index) in form:
            memory_at[index] = state[MEMORY]
        state = {**state, step.slot: form}
    if diagnostics:
        raise SpecError(diagnostics)
    return Recurrence(_triangular_order(spec, state), state, memory_at, error, spec.gradient_chunk)


def _triangular_order(spec: Spec, forms: Mapping[str, LinearForm]) -> tuple[str, ...]:
    reads = {
        slot: [a.name for a in form if isinstance(a, PreviousSlot) and a.name != slot] for slot, form in forms.items()
    }
    try:
        return tuple(TopologicalSorter(reads).static_order())
    except CycleError as problem:
        cycle = problem.args[1]
        step = next(step for step in spec.steps if step.slot in cycle)
        path = " -> ".join(reversed(cycle))
        raise SpecError(
            [
                step.diagnose(
                    step.expression.span,
                    f"slots feed one another in a cycle: {path}",
                    "let a slot read only slots that do not read it back, directly or through others",
                )
            ]
        ) from None


@dataclass(frozen=True)
class _Line:
    """One line of a rule, being read as a linear form. `error` is given where writes are known not to be deep."""

    step: Step
    index: int
    state: Mapping[str, LinearForm]
    error: ErrorRow | None

    def linear(self, expression: Expression) -> LinearForm:
        """The linear form of an expression shaped like the memory."""
        match expression:
            case Name("grad"):
                return self._gradient()
            case Name(id) if id in self.state:
                return self.state[id]
            case Call("outer", (value, key)):
                return {Write(_lag(value), _lag(key)): sympy.S.One}
            case Unary(op, operand):
                return _scaled(self.linear(operand), -1 if op == "-" else 1)
            case Binary("+" | "-" as op, left, right):
                return _sum(self.linear(left), _scaled(self.linear(right), 1 if op == "+" else -1))
            case Binary("*", left, right) if self._shaped(left) != self._shaped(right):
                scale, shaped = (right, left) if self._shaped(left) else (left, right)
                return _scaled(self.linear(shaped), to_sympy(scale))
            case Binary("/", left, right) if self._shaped(left) and not self._shaped(right):
                return _scaled(self.linear(left), 1 / to_sympy(right))
        raise self._not_linear(expression)

    def _gradient(self) -> LinearForm:
        """A gradient whose error row is free of p is a write like any other: e(v) k^T."""
        if self.error is None or self.error.reads_memory:
            return {GradientWrite(self.index): sympy.S.One}
        return {Write(value=self.error.expression): sympy.S.One} if self.error.expression != 0 else {}

    def _shaped(self, expression: Expression) -> bool:
        """Whether an expression is shaped like the memory, rather than a number a head."""
        match expression:
            case Name(id):
                return id == "grad" or id in self.state
            case Call(function, arguments):
                return function == "outer" or any(map(self._shaped, arguments))
            case Unary(_, operand):
                return self._shaped(operand)
            case Binary(_, left, right):
                return self._shaped(left) or self._shaped(right)
        return False

    def _not_linear(self, expression: Expression) -> SpecError:
        span: Span = expression.span
        if not self._shaped(expression):
            message, hint = "this term is a number, not shaped like the memory", "multiply it by a slot, outer(...) or grad"
        else:
            message = "not linear in the slots"
            hint = "each term is a number or a function of gates, times one slot, outer(...) or grad"
        return SpecError([self.step.diagnose(span, message, hint)])


def _lag(argument: Expression) -> int:
    return argument.lag if isinstance(argument, Lag) else 0


def _scaled(form: LinearForm, factor: sympy.Expr | int) -> LinearForm:
    return _nonzero({atom: coefficient * factor for atom, coefficient in form.items()})


def _sum(left: LinearForm, right: LinearForm) -> LinearForm:
    atoms = dict.fromkeys([*left, *right])
    return _nonzero({atom: left.get(atom, sympy.S.Zero) + right.get(atom, sympy.S.Zero) for atom in atoms})


def _nonzero(form: LinearForm) -> LinearForm:
    return {atom: coefficient for atom, coefficient in form.items() if coefficient != 0}


