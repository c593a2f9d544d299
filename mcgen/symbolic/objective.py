"""From an objective to its error row.

An objective is l(p, v) = sum over the value dimension of some L(p_i, v_i), so its gradient with respect to the
prediction is the row e_i = dL/dp (p_i, v_i), and, for a matrix memory p = W k, dl/dW = e kᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from mcgen.spec.grammar import Binary, Call, Expression, Unary
from mcgen.symbolic.expressions import OPERATORS, symbol, to_sympy
from mcgen.symbolic.functions import settled

PREDICTION, VALUE = symbol("p"), symbol("v")


@dataclass(frozen=True)
class ErrorRow:
    """e = dL/dp as a scalar function of p and v, element by element, and its derivative by p."""

    expression: sympy.Expr

    @property
    def reads_memory(self) -> bool:
        return self.expression.has(PREDICTION)

    @property
    def curvature(self) -> sympy.Expr:
        return sympy.diff(self.expression, PREDICTION)

    @property
    def affine(self) -> tuple[sympy.Expr, sympy.Expr] | None:
        """(kappa, c) with e = kappa*p + c(v) and kappa a number, or None where no such form is seen."""
        kappa = expanded(self.curvature)
        rest = expanded(self.expression - kappa * PREDICTION)  # of sign(p) too the derivative is a number
        return (kappa, rest) if kappa.is_number and not rest.has(PREDICTION) else None


def integrand(expression: Expression) -> sympy.Expr:
    """L(p, v) of a combination, with numeric coefficients, of `sum(f)` (integrand f) and `dot(a, b)` (a*b)."""
    match expression:
        case Call("sum", (argument,)):
            return to_sympy(argument)
        case Call("dot", (left, right)):
            return to_sympy(left) * to_sympy(right)
        case Unary(op, operand):
            return -integrand(operand) if op == "-" else integrand(operand)
        case Binary(op, left, right):
            return OPERATORS[op](integrand(left), integrand(right))
    return to_sympy(expression)


def error_row(objective: Expression) -> ErrorRow:
    """The error row of an objective; p is gone from it where it cancels."""
    row = bounded(settled(sympy.diff(integrand(objective), PREDICTION)))
    short = expanded(row)
    return ErrorRow(row if short.has(PREDICTION) else short)


def bounded(expression: sympy.Expr) -> sympy.Expr:
    """sinh(x)/cosh(x) as tanh(x), where no cosh is left then: in float32 the quotient overflows for |x| beyond 89."""
    shorter = expression.replace(sympy.sinh, lambda x: sympy.tanh(x) * sympy.cosh(x))
    return expression if shorter.has(sympy.cosh) else shorter


MAX_DEGREE = 32


def expanded(expression: sympy.Expr) -> sympy.Expr:
    """The expression multiplied out, where it is a polynomial of moderate degree; as it is elsewhere."""
    if not expression.is_polynomial(PREDICTION, VALUE) or _degree(expression) > MAX_DEGREE:
        return expression
    return sympy.expand(expression)


def _degree(expression: sympy.Expr) -> int:
    """A bound on the degree of a polynomial, without multiplying it out."""
    if expression.is_Pow and expression.exp.is_Integer:
        return _degree(expression.base) * int(expression.exp)
    degrees = map(_degree, expression.args)
    if expression.is_Mul:
        return sum(degrees)
    return max(degrees, default=int(expression in (PREDICTION, VALUE)))
