"""From the spec's syntax tree to SymPy, for expressions that are scalar functions of named values."""

from __future__ import annotations

import math

import sympy

from mcgen.spec.grammar import Binary, Call, Expression, Name, Number, Unary
from mcgen.symbolic.functions import SCALAR_FUNCTIONS, Power, settled


def symbol(name: str) -> sympy.Symbol:
    """The symbol a name stands for: real, so that sqrt(x**2) is |x| and not a complex root."""
    return sympy.Symbol(name, real=True)


def number(value: int | float) -> sympy.Expr:
    """A literal: floats that are short decimals become exact rationals, so 0.5*x and x/2 are one expression."""
    return sympy.Integer(value) if isinstance(value, int) else sympy.Rational(repr(value))


def apply(op: str, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    if op == "*":
        return left * right
    if op == "/":
        return left / right
    return Power(left, right)


def to_sympy(expression: Expression) -> sympy.Expr:
    """The SymPy form of a scalar expression; names become real symbols, `pi` the number."""
    return settled(_to_sympy(expression))


def _to_sympy(expression: Expression) -> sympy.Expr:
    match expression:
        case Number(value):
            return number(value)
        case Name(id):
            return sympy.pi if id == "pi" else symbol(id)
        case Unary(op, operand):
            return -_to_sympy(operand) if op == "-" else _to_sympy(operand)
        case Binary(op, left, right):
            return apply(op, _to_sympy(left), _to_sympy(right))
        case Call(function, arguments):
            return SCALAR_FUNCTIONS[function](*map(_to_sympy, arguments))
    raise TypeError(f"no scalar form for {expression!r}")


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
