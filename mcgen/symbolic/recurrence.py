"""From the lines of a rule to a linear recurrence in its slots (SEMANTICS 2 and 6).

With x_t the column of slots after token t and G^w_t the writes of token t,

    x_t = A_t x_{t-1} + sum over writes w of b^w_t G^w_t,

where A_t and b^w_t are functions of token t's gates. The lines are run once with every slot a linear form over last
token's slots and this token's writes, so a line that reads a slot assigned above it is substituted, and one that reads
a slot assigned below it is not. Slots are then put in an order in which A is lower triangular, or refused; those that
stay zero, or that the memory does not depend on, are left out. Gates that are numbers are put in as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import TypeVar

import sympy

from mcgen.errors import Diagnostic, SpecError
from mcgen.spec import Spec, Step
from mcgen.spec.grammar import Binary, Call, Expression, Lag, Name, Span, Unary, walk
from mcgen.spec.refusals import CYCLE, NOT_LINEAR
from mcgen.symbolic.expressions import problem, to_sympy
from mcgen.symbolic.objective import VALUE, ErrorRow, error_row
from mcgen.symbolic.text import text

MEMORY = "M"

First = TypeVar("First")
Second = TypeVar("Second")


@dataclass(frozen=True)
class Write:
    """The rank-one write c(v[t - value_lag]) k[t - key_lag]ᵀ, whose value row does not depend on the memory."""

    value_lag: int = 0
    key_lag: int = 0
    value: sympy.Expr = VALUE

    def at(self, token: str) -> str:
        """The write of a token as text."""
        value = text(self.value.subs(VALUE, sympy.Symbol(_lagged("v", token, self.value_lag))))
        return f"{f'({value})' if self.value.is_Add else value} {_lagged('k', token, self.key_lag)}ᵀ"

    def __str__(self) -> str:
        return self.at("t")


@dataclass(frozen=True)
class GradientWrite:
    """The gradient of the objective, taken by the line numbered `line`: e(p, v) k^T, with p read from the memory."""

    line: int

    def at(self, token: str) -> str:
        """The write of a token as text."""
        return f"grad[{token}, line {self.line + 1}]"

    def __str__(self) -> str:
        return self.at("t")


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
    unread       slots of the rule that stay zero or that the memory does not depend on: they are not computed
    """

    slots: tuple[str, ...]
    forms: Mapping[str, LinearForm]
    memory_at: Mapping[int, LinearForm]
    error: ErrorRow | None
    chunk: int | None
    unread: tuple[str, ...] = ()

    def transition(self, slot: str, source: str) -> sympy.Expr:
        """A[slot, source]."""
        return self.forms[slot].get(PreviousSlot(source), sympy.S.Zero)

    def injection(self, slot: str, write: Write | GradientWrite) -> sympy.Expr:
        """b[slot, write]."""
        return self.forms[slot].get(write, sympy.S.Zero)

    @property
    def writes(self) -> tuple[Write | GradientWrite, ...]:
        """Every write some slot takes, each once; or the memory, only for a later line of the token to read it."""
        forms = [*(self.forms[slot] for slot in self.slots), *(self.memory_at.values() if self.chunk is None else ())]
        return tuple(dict.fromkeys(atom for form in forms for atom in form if not isinstance(atom, PreviousSlot)))

    @property
    def gradients_come_first(self) -> bool:
        """Whether every gradient is taken before any line assigns the memory."""
        return all(form == {PreviousSlot(MEMORY): 1} for form in self.memory_at.values())

    @property
    def reads_memory(self) -> bool:
        """Whether some write depends on the state."""
        return any(isinstance(write, GradientWrite) for write in self.writes)


def _lagged(name: str, token: str, lag: int) -> str:
    return f"{name}[{token}-{lag}]" if lag else f"{name}[{token}]"


def recurrence(spec: Spec) -> Recurrence:
    """The recurrence of a spec's rule.

    Raises:
        SpecError: a line is not linear in the slots, slots feed one another in a cycle, or a coefficient or the
            objective's gradient is no finite real number. Holds every such finding.
    """
    error, diagnostics = _error_row(spec)
    numbers = constants(spec)
    state: dict[str, LinearForm] = {slot: {PreviousSlot(slot): sympy.S.One} for slot in spec.slots}
    memory_at: dict[int, LinearForm] = {}
    for index, step in enumerate(spec.steps):
        line = _Line(step, index, state, error if spec.memory.kind == "matrix" else None, numbers)
        try:
            form = line.form()
        except SpecError as refusal:
            diagnostics += refusal.diagnostics
            continue
        if GradientWrite(index) in form:
            memory_at[index] = state[MEMORY]
        state = {**state, step.slot: form}
    if diagnostics:
        raise SpecError(diagnostics)
    order = _triangular_order(spec, state)
    initial = () if spec.memory.kind == "matrix" else (MEMORY,)
    forms, memory_at = _without_zeros(order, state, memory_at, initial)
    return _without_unread(Recurrence(order, forms, memory_at, error, spec.gradient_chunk))


def constants(spec: Spec) -> dict[str, sympy.Expr]:
    """The gates that are one number, the same for every head."""
    values = {}
    for gate in spec.gates:
        if gate.kind == "constant":
            values[gate.name] = sympy.Rational(repr(float(gate.value)))
        elif gate.kind == "per_head" and to_sympy(gate.value).is_number:
            values[gate.name] = to_sympy(gate.value)
    return values


def _error_row(spec: Spec) -> tuple[ErrorRow | None, list[Diagnostic]]:
    if spec.objective_expression is None:
        return None, []
    error = error_row(spec.objective_expression)
    if why := problem(error.expression):
        position, hint = spec.objective_position, "its gradient must be finite for ordinary p and v"
        return None, [position.diagnose(f"the objective's gradient {why}", hint=hint)]
    return error, []


def _triangular_order(spec: Spec, forms: Mapping[str, LinearForm]) -> tuple[str, ...]:
    reads = {slot: [source for source in _sources(form) if source != slot] for slot, form in forms.items()}
    try:
        return tuple(TopologicalSorter(reads).static_order())
    except CycleError as refusal:
        cycle = refusal.args[1]
        step = next(step for step in spec.steps if step.slot in cycle)
        raise SpecError(
            step.diagnose(step.expression.span, CYCLE.message(cycle=" -> ".join(reversed(cycle))), CYCLE.hint())
        ) from None


def _sources(form: LinearForm) -> Iterator[str]:
    """The slots whose last value a form reads."""
    return (atom.name for atom in form if isinstance(atom, PreviousSlot))


def _without_zeros(
    order: tuple[str, ...], forms: Mapping[str, LinearForm], memory_at: Mapping[int, LinearForm], initial: Iterable[str]
) -> tuple[dict[str, LinearForm], dict[int, LinearForm]]:
    """Forms that do not read slots which stay zero: all start there but `initial`, and no write ever reaches those."""
    reached = set(initial)
    for slot in order:
        written = any(not isinstance(atom, PreviousSlot) for atom in forms[slot])
        reached |= {slot} if written or reached.intersection(_sources(forms[slot])) else set()

    def rest(form: LinearForm) -> LinearForm:
        return {a: c for a, c in form.items() if not isinstance(a, PreviousSlot) or a.name in reached}

    return {s: rest(form) for s, form in forms.items()}, {line: rest(form) for line, form in memory_at.items()}


def _without_unread(whole: Recurrence) -> Recurrence:
    """The recurrence of M and of the slots it depends on, through states or through gradients."""
    reached, lines, waiting = {MEMORY}, set(), [whole.forms[MEMORY]]
    while waiting:
        form = waiting.pop()
        new = set(_sources(form)) - reached
        taken = {atom.line for atom in form if isinstance(atom, GradientWrite)} - lines
        waiting += [*(whole.forms[slot] for slot in new), *(whole.memory_at[line] for line in taken)]
        reached, lines = reached | new, lines | taken
    return replace(
        whole,
        slots=tuple(slot for slot in whole.slots if slot in reached),
        forms={slot: form for slot, form in whole.forms.items() if slot in reached},
        memory_at={line: form for line, form in whole.memory_at.items() if line in lines},
        unread=tuple(slot for slot in whole.slots if slot not in reached),
    )


@dataclass(frozen=True)
class _Line:
    """One line of a rule, being read as a linear form. `error` is given where writes are known not to be deep."""

    step: Step
    index: int
    state: Mapping[str, LinearForm]
    error: ErrorRow | None
    numbers: Mapping[str, sympy.Expr]

    def form(self) -> LinearForm:
        """The linear form of the line.

        Raises:
            SpecError: a term is not linear in the slots, or a coefficient no finite real number; holds every such term.
        """
        form = self._linear(self.step.expression)
        for coefficient in form.values():
            self._check(coefficient, self.step.expression)
        return form

    def _linear(self, expression: Expression) -> LinearForm:
        """The linear form of an expression shaped like the memory."""
        match expression:
            case Name("grad"):
                return self._gradient()
            case Name(id) if id in self.state:
                return self.state[id]
            case Call("outer", (value, key)):
                return {Write(_lag(value), _lag(key)): sympy.S.One}
            case Unary(op, operand):
                return _scaled(self._linear(operand), -1 if op == "-" else 1)
            case Binary("+" | "-" as op, left, right):
                first, second = _both(lambda: self._linear(left), lambda: self._linear(right))
                return _sum(first, _scaled(second, 1 if op == "+" else -1))
            case Binary("*", left, right) if self._shaped(left) != self._shaped(right):
                scale, shaped = (right, left) if self._shaped(left) else (left, right)
                return _scaled(*_both(lambda: self._linear(shaped), lambda: self._number(scale)))
            case Binary("/", left, right) if self._shaped(left) and not self._shaped(right):
                form, divisor = _both(lambda: self._linear(left), lambda: self._number(right))
                self._check(1 / divisor, right)
                return _scaled(form, 1 / divisor)
        raise self._not_linear(expression)

    def _gradient(self) -> LinearForm:
        """A gradient whose error row is free of p is a write like any other: e(v) k^T, its number a coefficient."""
        if self.error is None or self.error.reads_memory:
            return {GradientWrite(self.index): sympy.S.One}
        factor, value = self.error.expression.as_coeff_Mul()
        return {Write(value=value): factor} if factor != 0 else {}

    def _number(self, expression: Expression) -> sympy.Expr:
        """A coefficient as a function of the gates."""
        value = to_sympy(expression, self.numbers)
        self._check(value, expression)
        return value

    def _check(self, coefficient: sympy.Expr, expression: Expression) -> None:
        if why := problem(coefficient):
            read = {part.id for part in walk(expression) if isinstance(part, Name)}
            numbers = [f"{gate} is {float(value)}" for gate, value in self.numbers.items() if gate in read]
            raise SpecError(self.step.diagnose(expression.span, f"this coefficient {why}", "; ".join(numbers)))

    def _shaped(self, expression: Expression) -> bool:
        """Whether an expression is shaped like the memory, rather than a number a head."""
        return any(
            part.function == "outer" if isinstance(part, Call) else part.id == "grad" or part.id in self.state
            for part in walk(expression)
            if isinstance(part, Call | Name)
        )

    def _not_linear(self, expression: Expression) -> SpecError:
        span: Span = expression.span
        if not self._shaped(expression):
            what = f"`{expression.id}` is a gate," if isinstance(expression, Name) else "this term is"
            message = f"{what} a number, not shaped like the memory"
            hint = "multiply it by a slot, outer(...) or grad"
        else:
            message, hint = NOT_LINEAR.message(), NOT_LINEAR.hint()
        return SpecError(self.step.diagnose(span, message, hint))


def _both(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of both; where either is refused, so is the whole, with the findings of both."""
    results, diagnostics = [], []
    for part in (first, second):
        try:
            results.append(part())
        except SpecError as refusal:
            diagnostics += refusal.diagnostics
    if diagnostics:
        raise SpecError(diagnostics)
    return tuple(results)


def _lag(argument: Expression) -> int:
    return argument.lag if isinstance(argument, Lag) else 0


def _scaled(form: LinearForm, factor: sympy.Expr | int) -> LinearForm:
    return _nonzero({atom: coefficient * factor for atom, coefficient in form.items()})


def _sum(left: LinearForm, right: LinearForm) -> LinearForm:
    atoms = dict.fromkeys([*left, *right])
    return _nonzero({atom: left.get(atom, sympy.S.Zero) + right.get(atom, sympy.S.Zero) for atom in atoms})


def _nonzero(form: LinearForm) -> LinearForm:
    return {atom: coefficient for atom, coefficient in form.items() if coefficient != 0}
