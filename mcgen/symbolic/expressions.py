"""From the spec's syntax tree to SymPy, for expressions that are scalar functions of named values."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence

import sympy

from mcgen.spec import grammar
from mcgen.spec.grammar import NOWHERE, Binary, Call, Expression, Name, Number, Unary, evaluate
from mcgen.symbolic.functions import SCALAR_FUNCTIONS, Power, settled


def symbol(name: str) -> sympy.Symbol:
    """The symbol a name stands for: real, so that sqrt(x**2) is |x| and not a complex root."""
    return sympy.Symbol(name, real=True)


def number(value: int | float) -> sympy.Expr:
    """A literal: floats that are short decimals become exact rationals, so 0.5*x and x/2 are one expression."""
    return sympy.Integer(value) if isinstance(value, int) else sympy.Rational(repr(value))


OPERATORS: Mapping[str, Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {**grammar.OPERATORS, "**": Power}


def to_sympy(expression: Expression, numbers: Mapping[str, sympy.Expr] | None = None) -> sympy.Expr:
    """The SymPy form of a scalar expression: names become the numbers given, or real symbols; `pi` is the number.

    What floats cannot hold becomes a value that `problem` finds.
    """
    return settled(_to_sympy(expression, {"pi": sympy.pi, **(numbers or {})}))


def _to_sympy(expression: Expression, numbers: Mapping[str, sympy.Expr]) -> sympy.Expr:
    match expression:
        case Number(value):
            return number(value)
        case Name(id):
            return numbers[id] if id in numbers else symbol(id)
        case Unary(op, operand):
            return -_to_sympy(operand, numbers) if op == "-" else _to_sympy(operand, numbers)
        case Binary(op, left, right):
            return _within_floats(OPERATORS[op](_to_sympy(left, numbers), _to_sympy(right, numbers)))
        case Call(function, arguments):
            return _called(function, [_to_sympy(argument, numbers) for argument in arguments])
    raise TypeError(f"no scalar form for {expression!r}")


def _within_floats(value: sympy.Expr) -> sympy.Expr:
    """A number no larger than floats go; what is larger is undefined, before it grows beyond all bounds."""
    large = value.is_Rational and value.p.bit_length() - value.q.bit_length() > sys.float_info.max_exp
    return sympy.nan if large else value


def _called(function: str, arguments: Sequence[sympy.Expr]) -> sympy.Expr:
    """A function's value; of numbers it is tried in floats first, since SymPy would write exp(1e9 log 7) out."""
    if any(argument.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) for argument in arguments):
        return sympy.nan
    if all(argument.is_number for argument in arguments):
        try:
            literals = tuple(Number(float(argument), NOWHERE) for argument in arguments)
            if evaluate(Call(function, literals, NOWHERE), {}) == 0:
                return sympy.S.Zero
        except (ArithmeticError, TypeError, ValueError):
            return sympy.nan
    return SCALAR_FUNCTIONS[function](*arguments)


def problem(expression: sympy.Expr) -> str | None:
    """What keeps floats from computing an expression, as the end of a sentence about it; None where they can."""
    parts = sympy.preorder_traversal(expression)
    for part in parts:
        if not part.is_number:
            if isinstance(part, Power) and part.args[0].is_negative and part.args[0].is_number:
                return "raises a negative number to a power that need not be whole"
            continue
        parts.skip()
        if not _is_finite(part):
            return "has no finite value"
    return None


def _is_finite(value: sympy.Expr) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
