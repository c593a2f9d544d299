"""SymPy scalar expressions as source text, for any target language: a table of function spellings and one walk."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sympy

from mcgen.symbolic import functions

SUM, MATRIX, PRODUCT, UNARY, POWER, ATOM = range(6)  # how tightly a piece of text binds; MATRIX, a product of matrices

Spelling = Callable[..., str]


class Bound(str):
    """Text that may stand for a symbol though it is no name: how tightly it binds."""

    binding: int

    def __new__(cls, text: str, binding: int) -> Bound:
        found = super().__new__(cls, text)
        found.binding = binding
        return found

    def within(self, binding: int) -> str:
        """The text where only what binds so tightly may stand."""
        return str(self) if self.binding >= binding else f"({self})"


Names = Mapping[sympy.Symbol, str]
"""What stands for each symbol: names, or text that is `Bound`."""


def _whole(names: Names) -> Names:
    """The same where a factor stands before: products keep to themselves."""
    return {symbol: text.within(UNARY) if isinstance(text, Bound) else text for symbol, text in names.items()}


@lru_cache(maxsize=1 << 12)
def _terms(expression: sympy.Expr) -> tuple[tuple[sympy.Expr, str, sympy.Expr], ...]:
    """The terms of a sum, those with a minus last; each with its sign, and without."""
    terms = [(term, term.could_extract_minus_sign()) for term in expression.as_ordered_terms()]
    signed = [(term, "-", -term) if minus else (term, "+", term) for term, minus in terms]
    return tuple(sorted(signed, key=lambda term: term[1] == "-"))


@dataclass(frozen=True)
class ScalarPrinter:
    """Prints scalar expressions. `functions` spells a call from its arguments' texts; `power` spells x**y, and
    `power_binding` says how tightly that binds; `whole_power`, where x**n for a whole n is spelled another way, that.
    `one_number` multiplies the numbers of a product beforehand: each is a pass over memory, where values lie there.
    """

    functions: Mapping[type, Spelling]
    power: Spelling
    power_binding: int = ATOM
    whole_power: Spelling | None = None
    one_number: bool = False

    def text(self, expression: sympy.Expr, names: Names, binding: int = SUM) -> str:
        return self.bound(expression, names).within(binding)

    def bound(self, expression: sympy.Expr, names: Names) -> Bound:
        return Bound(*self._piece(expression, names))

    def _piece(self, expression: sympy.Expr, names: Names) -> tuple[str, int]:
        if expression.is_Symbol:
            return names[expression], getattr(names[expression], "binding", ATOM)
        if expression.is_number:
            return number(expression), UNARY if number(expression).startswith("-") else ATOM
        if expression.is_Add:
            return self._sum(expression, names), SUM
        if expression.is_Mul:
            return self._product(expression, names)
        if expression.is_Pow:
            return self._power(expression, names)
        return self.functions[expression.func](*(self.text(a, names) for a in expression.args)), ATOM

    def _sum(self, expression: sympy.Expr, names: Names) -> str:
        (first, _, _), *others = _terms(expression)
        text = self.text(first, names)
        for _, sign, size in others:
            text += f" {sign} {self.text(size, names, MATRIX)}"
        return text

    def _product(self, expression: sympy.Expr, names: Names) -> tuple[str, int]:
        if expression.could_extract_minus_sign():
            return f"-{self.text(-expression, names, UNARY if (-expression).is_Mul else ATOM)}", UNARY
        if self.one_number:
            coefficient, rest = expression.as_independent(*expression.free_symbols, as_Add=False)
            if not coefficient.is_Rational:
                return f"{number(coefficient)} * {self.text(rest, _whole(names), PRODUCT)}", PRODUCT
        above, below = sympy.fraction(expression, exact=True)
        first, *others = [f for f in sympy.Mul.make_args(above) if f != 1] or [sympy.S.One]
        factors = [self.text(first, names, PRODUCT), *(self.text(f, _whole(names), PRODUCT) for f in others)]
        text = " * ".join(factors)
        if below != 1:
            text += f" / {self.text(below, names, UNARY)}"
        return text, PRODUCT

    def _power(self, expression: sympy.Expr, names: Names) -> tuple[str, int]:
        base, exponent = expression.as_base_exp()
        if exponent == sympy.Rational(1, 2):
            return self.functions[sympy.sqrt](self.text(base, names)), ATOM
        if exponent.could_extract_minus_sign():
            return f"1.0 / {self.text(1 / expression, names, UNARY)}", PRODUCT
        if exponent.is_Integer and exponent <= 4 and base.is_Symbol:
            return " * ".join([self.text(base, names, UNARY)] * int(exponent)), PRODUCT
        if exponent.is_Integer and self.whole_power:
            return self.whole_power(self.text(base, names, ATOM), int(exponent)), ATOM
        return self.power(self.text(base, names, ATOM), self.text(exponent, names, UNARY)), self.power_binding


def _simple(text: str) -> bool:
    """Whether a formatter lets an operand touch the operator of a power: a name or a number."""
    return re.fullmatch(r"-?[\w.]+", text) is not None


def number(value: sympy.Expr) -> str:
    """A Python float literal; small integers stay as they read."""
    return f"{float(value)!r}"


def _extreme(call: str, clamp: str) -> Spelling:
    """torch's minimum and maximum take tensors alone; of a number and a tensor it is a clamp."""

    def spell(x: str, y: str) -> str:
        if _is_literal(x) or _is_literal(y):
            return f"torch.{clamp}({f'{y}, {x}' if _is_literal(x) else f'{x}, {y}'})"
        return f"torch.{call}({x}, {y})"

    return spell


def _is_literal(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


TORCH = ScalarPrinter(
    {
        functions.Absolute: "torch.abs({})".format,
        functions.Sign: "torch.sign({})".format,
        functions.Step: "torch.heaviside({0}, torch.zeros_like({0}))".format,
        functions.Relu: "torch.relu({})".format,
        functions.Larger: "((torch.sign({} - ({})) + 1.0) / 2.0)".format,
        functions.Shift: "torch.maximum({}, {})".format,
        functions.Maximum: _extreme("maximum", "clamp_min"),
        functions.Minimum: _extreme("minimum", "clamp_max"),
        functions.Sigmoid: "torch.sigmoid({})".format,
        functions.Softplus: "F.softplus({}, threshold=40.0)".format,
        functions.Power: "torch.pow({}, {})".format,
        functions.Where: "torch.where({} > 0, {}, {})".format,
        sympy.exp: "torch.exp({})".format,
        sympy.log: "torch.log({})".format,
        sympy.sqrt: "torch.sqrt({})".format,
        sympy.sin: "torch.sin({})".format,
        sympy.cos: "torch.cos({})".format,
        sympy.tanh: "torch.tanh({})".format,
        sympy.cosh: "torch.cosh({})".format,
        sympy.sinh: "torch.sinh({})".format,
        sympy.erf: "torch.erf({})".format,
    },
    lambda base, exponent: f"{base}**{exponent}" if _simple(base) and _simple(exponent) else f"{base} ** {exponent}",
    POWER,
)


def _triton_power(x: str, y: str) -> str:
    """Of two values, either may be 0 or the base negative; of a number and a value there is less to see to."""
    return f"{'_pow' if _is_literal(x) or _is_literal(y) else '_power'}({x}, {y})"


TRITON = ScalarPrinter(
    {
        functions.Absolute: "tl.abs({})".format,
        functions.Sign: "_sign({})".format,
        functions.Step: "tl.where({} > 0, 1.0, 0.0)".format,
        functions.Relu: "tl.maximum({}, 0.0)".format,
        functions.Larger: "_larger({}, {})".format,
        functions.Shift: "tl.maximum({}, {})".format,
        functions.Maximum: "tl.maximum({}, {})".format,
        functions.Minimum: "tl.minimum({}, {})".format,
        functions.Sigmoid: "tl.sigmoid({})".format,
        functions.Softplus: "_softplus({})".format,
        functions.Power: _triton_power,
        functions.Where: "tl.where({} > 0, {}, {})".format,
        sympy.exp: "tl.exp({})".format,
        sympy.log: "tl.log({})".format,
        sympy.sqrt: "tl.sqrt_rn({})".format,
        sympy.sin: "tl.sin({})".format,
        sympy.cos: "tl.cos({})".format,
        sympy.tanh: "_tanh({})".format,
        sympy.cosh: "_cosh({})".format,
        sympy.sinh: "_sinh({})".format,
        sympy.erf: "tl.erf({})".format,
    },
    "_pow({}, {})".format,
    whole_power="_whole_pow({}, {})".format,
)
