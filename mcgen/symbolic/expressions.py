"""From the spec's syntax tree to SymPy, for expressions that are scalar functions of named values."""

from __future__ import annotations

import sympy

from mcgen.spec.grammar import Binary, Call, Expression, Name, Number, Unary
from mcgen.symbolic.functions import SCALAR_FUNCTIONS


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
    return left**right


def to_sympy(expression: Expression) -> sympy.Expr:
    """The SymPy form of a scalar expression; names become real symbols, `pi` the number."""
    match expression:
        case Number(value):
            return number(value)
        case Name(id):
            return sympy.pi if id == "pi" else symbol(id)
        case Unary(op, operand):
            return -to_sympy(operand) if op == "-" else to_sympy(operand)
        case Binary(op, left, right):
            return apply(op, to_sympy(left), to_sympy(right))
        case Call(function, arguments):
            return SCALAR_FUNCTIONS[function](*map(to_sympy, arguments))
    raise TypeError(f"no scalar form for {expression!r}")
