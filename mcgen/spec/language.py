"""Which names and functions each kind of expression knows, and the form it must have.

Every check yields `Problem`s and never stops at the first. Whether steps are linear in the slots is the symbolic
stage's to say.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from mcgen.errors import Severity
from mcgen.spec import refusals
from mcgen.spec.grammar import (
    CONSTANTS,
    FUNCTIONS,
    STRUCTURAL,
    Binary,
    Call,
    Expression,
    Lag,
    Name,
    Number,
    Span,
    Unary,
    children,
    evaluate,
    unparse,
    walk,
)
from mcgen.spec.names import RESERVED, closest, gate_problem, slot_problem
from mcgen.spec.refusals import Refusal

MAX_EXPONENT = 100
VECTORS = ("v", "k")
OBJECTIVE_NAMES = ("p", "v")
MEMORY = "M"


@dataclass(frozen=True)
class Problem:
    """A fault at a span of an expression's text."""

    message: str
    span: Span
    hint: str = ""
    severity: Severity = "error"


def check_scalar(expression: Expression, variable: str, of: str) -> Iterator[Problem]:
    """An activation (of x) or a constant a head (of h): scalar functions of one variable."""
    yield from _check_elementwise(expression, (variable,), of)
    yield from _check_numbers(expression)


def check_objective(expression: Expression) -> Iterator[Problem]:
    """A combination, with numeric coefficients, of `sum(f(p, v))` and `dot(f(p, v), g(p, v))`."""
    yield from _check_combination(expression)
    yield from _check_numbers(expression)
    if not any(isinstance(part, Name) and part.id == "p" for part in walk(expression)):
        yield Problem("the objective does not depend on p, so grad is zero", expression.span, severity="warning")


def check_slot(slot: Name) -> Iterator[Problem]:
    """The left side of a step."""
    if why := slot_problem(slot.id):
        yield Problem(f"`{slot.id}` cannot be assigned: it {why}", slot.span, "the memory is M; other names are free")


def check_step(expression: Expression, slots: Collection[str]) -> Iterator[Problem]:
    """The right side of a step: slots, gates, grad, and `outer` of vectors."""
    yield from _check_step_names(expression, slots)
    yield from _check_numbers(expression)


def gate_names(expression: Expression, slots: Collection[str]) -> Iterator[str]:
    """The gates of a step in order of appearance, repeats included."""
    for part in walk(expression):
        if isinstance(part, Name) and part.id not in slots and not gate_problem(part.id):
            yield part.id


def calls(expression: Expression, function: str) -> list[Call]:
    """The calls of a function in an expression."""
    return [part for part in walk(expression) if isinstance(part, Call) and part.function == function]


def names(expression: Expression, name: str) -> list[Name]:
    """Where a name stands in an expression."""
    return [part for part in walk(expression) if isinstance(part, Name) and part.id == name]


def _check_step_names(expression: Expression, slots: Collection[str]) -> Iterator[Problem]:
    match expression:
        case Call(function="outer"):
            yield from _check_outer(expression, slots)
            return
        case Call(function=function) if function in (*slots, MEMORY):
            yield _read_problem(expression)
            return
        case Call():
            yield from _check_step_call(expression)
        case Lag():
            yield _lag_problem(expression, slots)
        case Name(id=name) if name not in slots and name not in ("grad", *CONSTANTS):
            yield from _check_gate(expression)
    for child in children(expression):
        yield from _check_step_names(child, slots)


def _check_step_call(call: Call) -> Iterator[Problem]:
    if call.function == "diag":
        gate = next((argument.id for argument in call.arguments if isinstance(argument, Name)), "alpha")
        yield _refused(refusals.DIAGONAL, call, gate=gate)
    elif call.function in refusals.MATRIX_FUNCTIONS:
        yield _refused(refusals.MATRIX_FUNCTION, call, function=call.function)
    else:
        yield from _check_call(call, (*FUNCTIONS, "outer"), "a step")


def _refused(refusal: Refusal, expression: Expression, **words: object) -> Problem:
    return Problem(refusal.message(**words), expression.span, refusal.hint(**words))


def _read_problem(expression: Expression) -> Problem:
    return _refused(refusals.READ, expression, text=unparse(expression))


def _check_gate(name: Name) -> Iterator[Problem]:
    if name.id in VECTORS:
        yield Problem(f"`{name.id}` is a vector", name.span, "a write is outer(v, k)")
    elif name.id == MEMORY:
        yield Problem("no step assigns M", name.span, "M is the memory: one step must be `M = …`")
    elif why := gate_problem(name.id):
        hint = "a step knows slots, gates, grad and outer(v, k)" if name.id in RESERVED else "choose another name"
        yield Problem(f"`{name.id}` cannot be a gate: it {why}", name.span, hint)


def _lag_problem(lag: Lag, slots: Collection[str]) -> Problem:
    if lag.name in VECTORS:
        return Problem(f"`{unparse(lag)}` outside outer(…)", lag.span, "a write is outer(v[-1], k[-1])")
    if lag.name == "grad":
        return _refused(refusals.LAG_ON_GRADIENT, lag)
    if lag.name in (*slots, MEMORY):
        return _refused(refusals.LAG_ON_SLOT, lag, name=lag.name)
    if gate_problem(lag.name):
        return _refused(refusals.LAG_ON_NAME, lag, name=lag.name)
    return _refused(refusals.LAG_ON_GATE, lag)


def _check_outer(call: Call, slots: Collection[str]) -> Iterator[Problem]:
    if len(call.arguments) != len(VECTORS):
        yield _arity_problem(call, len(VECTORS))
        return
    for vector, argument in zip(VECTORS, call.arguments, strict=True):
        if _plain_name(argument) == vector:
            continue
        if _reads_memory(argument, slots):
            yield _read_problem(argument)
            continue
        place = "first" if vector == "v" else "second"
        message = f"the {place} argument of outer is {vector} or {vector}[-n]"
        yield Problem(message, argument.span, _outer_hint(call, argument))


def _plain_name(argument: Expression) -> str | None:
    """The name of an argument that is one, or a lag of one."""
    return argument.id if isinstance(argument, Name) else argument.name if isinstance(argument, Lag) else None


def _reads_memory(argument: Expression, slots: Collection[str]) -> bool:
    memory = {*slots, MEMORY, "grad", "p"}
    return any(_plain_name(part) in memory or getattr(part, "function", None) in memory for part in walk(argument))


def _outer_hint(call: Call, argument: Expression) -> str:
    """What the language has for an argument that is not the vector it should be."""
    name, both = _plain_name(argument), [_plain_name(one) for one in call.arguments]
    if both == ["k", "v"]:
        return "outer(v, k) is v kᵀ, the value first"
    if name in VECTORS:
        return refusals.SQUARE.hint()
    if name is not None and not gate_problem(name):
        return refusals.SECOND_PAIR.hint()
    if any(isinstance(part, Binary) and part.op in ("+", "-") for part in walk(argument)):
        return "outer is linear in both: write a sum, outer(v, k) + beta*outer(v[-1], k)"
    return "outer(v, k) is v kᵀ; factors go in front: alpha*outer(v, k)"


def _check_combination(expression: Expression) -> Iterator[Problem]:
    match expression:
        case Unary(operand=operand):
            yield from _check_combination(operand)
        case Binary(op="+" | "-", left=left, right=right):
            yield from _check_combination(left)
            yield from _check_combination(right)
        case Binary(op="*", left=left, right=right) if _is_numeric(left):
            yield from _check_combination(right)
        case Binary(op="*" | "/", left=left, right=right) if _is_numeric(right):
            yield from _check_combination(left)
        case Call(function="sum" | "dot" as function, arguments=arguments):
            yield from _check_call(expression, STRUCTURAL, "an objective")
            for argument in arguments:
                yield from _check_elementwise(argument, OBJECTIVE_NAMES, f"the {function} of an objective")
        case _:
            yield from _not_a_combination(expression)


def _not_a_combination(expression: Expression) -> Iterator[Problem]:
    """Say what is wrong with the names first; only with the form if they are all known."""
    structural = [part for part in walk(expression) if isinstance(part, Call) and part.function in ("sum", "dot")]
    found = list(_check_elementwise(expression, OBJECTIVE_NAMES, "an objective", (*FUNCTIONS, "sum", "dot")))
    if found:
        yield from found
    elif structural:
        yield _refused(refusals.FUNCTION_OF_A_SUM, expression)
    elif _is_numeric(expression):
        yield Problem("a constant has no gradient", expression.span, "an objective is sums: sum((p - v)**2)/2")
    else:
        yield Problem("a vector outside sum(…)", expression.span, "sum over the value dimension: sum((p - v)**2)/2")


def _check_elementwise(
    expression: Expression, variables: Collection[str], of: str, functions: Iterable[str] = tuple(FUNCTIONS)
) -> Iterator[Problem]:
    match expression:
        case Call():
            yield from _check_call(expression, functions, of)
        case Lag():
            yield Problem(f"a lag in {of}", expression.span, "lags are for v and k inside the outer(…) of a step")
        case Name(id=name) if name not in (*variables, *CONSTANTS):
            yield _unknown_name(expression, variables, of)
    for child in children(expression):
        yield from _check_elementwise(child, variables, of, functions)


def _unknown_name(name: Name, variables: Collection[str], of: str) -> Problem:
    if variables == OBJECTIVE_NAMES:
        return _refused(refusals.OTHER_NAMES_IN_AN_OBJECTIVE, name, name=name.id, place=of)
    return Problem(f"unknown name `{name.id}` in {of}", name.span, f"it knows only {' and '.join(variables)}")


def _check_call(call: Call, functions: Iterable[str], of: str) -> Iterator[Problem]:
    name, arity = call.function, (FUNCTIONS | STRUCTURAL).get(call.function)
    span = Span(call.span.offset, len(name)) if not call.span.length < len(name) else call.span
    if arity is None:
        yield Problem(f"unknown function `{name}`", span, _function_hint(name, functions))
    elif name not in functions:
        yield Problem(f"{name}(…) has no place in {of}", span, _PLACES.get(name, ""))
    elif len(call.arguments) != arity:
        yield _arity_problem(call, arity)


def _function_hint(name: str, functions: Iterable[str]) -> str:
    choices = list(functions)
    return closest(name, choices) or f"one of: {', '.join(choices)}; a product is written {name}*(…)"


_PLACES = {"sum": "sums stand in objectives", "dot": "dot stands in objectives", "outer": "outer(v, k) stands in steps"}


def _arity_problem(call: Call, arity: int) -> Problem:
    plural = "" if arity == 1 else "s"
    return Problem(f"{call.function} takes {arity} argument{plural}, not {len(call.arguments)}", call.span)


def _is_numeric(expression: Expression) -> bool:
    """Whether an expression holds numbers alone."""
    return not any(
        isinstance(part, Lag)
        or (isinstance(part, Name) and part.id not in CONSTANTS)
        or (isinstance(part, Call) and part.function not in FUNCTIONS)
        for part in walk(expression)
    )


def _check_numbers(expression: Expression) -> Iterator[Problem]:
    """Constant parts are finite, divisors not zero and exponents small, for later stages compute with them exactly."""
    for part in walk(expression):
        if isinstance(part, Binary) and part.op in ("**", "/") and _is_numeric(part.right):
            yield from _check_right(part)
    for part in _constants(expression):
        if _value(part) is None:
            yield Problem(f"`{unparse(part)}` has no finite value", part.span)


def _check_right(part: Binary) -> Iterator[Problem]:
    value = _value(part.right)
    if part.op == "/" and value == 0:
        yield Problem("a division by zero", part.right.span)
    if part.op == "**" and value is not None and abs(value) > MAX_EXPONENT:
        yield Problem("an exponent too large", part.right.span, f"at most {MAX_EXPONENT}")


def _constants(expression: Expression) -> Iterator[Expression]:
    """The largest parts that hold numbers alone, other than plain numbers."""
    if isinstance(expression, Number):
        return
    if _is_numeric(expression):
        yield expression
        return
    for child in children(expression):
        yield from _constants(child)


def _value(expression: Expression) -> float | None:
    try:
        return evaluate(expression, {})
    except (ArithmeticError, ValueError):
        return None
    except TypeError:  # a wrong number of arguments, which has a problem of its own
        return 1.0
