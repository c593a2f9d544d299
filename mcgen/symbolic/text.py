"""SymPy expressions as text of the spec language, for people: `sigmoid(x)`, `abs(x)`, short decimals."""

from __future__ import annotations

import sympy
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from mcgen.symbolic import functions

NAMES = {function: name for name, function in functions.SCALAR_FUNCTIONS.items()}
DECIMALS = 6


class _Printer(StrPrinter):
    """Prints the compiler's own functions by their names in a spec, and fractions that are short decimals as such."""

    def _print_Function(self, expr: sympy.Function) -> str:
        return f"{NAMES.get(expr.func, expr.func.__name__.lower())}({self.stringify(expr.args, ', ')})"

    def _print_Power(self, expr: sympy.Expr) -> str:
        base, exponent = (self.parenthesize(x, PRECEDENCE["Pow"]) for x in expr.args)
        return f"{base}**{exponent}"

    def _print_Rational(self, expr: sympy.Rational) -> str:
        return decimal(expr) or super()._print_Rational(expr)


def text(expression: sympy.Expr) -> str:
    """The expression as a reader of specs would write it."""
    return _Printer().doprint(expression)


def decimal(value: sympy.Rational) -> str | None:
    """A fraction as a decimal, where that is exact and short."""
    scaled = abs(value) * 10**DECIMALS
    if value.q == 1 or not scaled.is_Integer:
        return None
    whole, part = divmod(int(scaled), 10**DECIMALS)
    return f"{'-' if value < 0 else ''}{whole}.{part:0{DECIMALS}d}".rstrip("0")


def as_factor(expression: sympy.Expr) -> str:
    """The expression's text, in parentheses where it would not bind as a factor."""
    shown = text(expression)
    return f"({shown})" if expression.is_Add or shown.startswith("-") else shown


def summed(terms: list[tuple[sympy.Expr, str]]) -> str:
    """A sum of coefficients times names: `alpha*M[t-1] - eta*G`; 0 where there are none."""
    shown = ""
    for coefficient, name in terms:
        minus = coefficient.could_extract_minus_sign()
        size = -coefficient if minus else coefficient
        piece = name if size == 1 else f"{as_factor(size)}*{name}"
        shown += (" - " if minus else " + ") + piece if shown else ("-" if minus else "") + piece
    return shown or "0"
