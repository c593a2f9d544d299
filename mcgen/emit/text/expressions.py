"""From the spec language's syntax tree to torch source text, and to the small pieces of Python around it.

Everything here works on the parsed tree, so no text of a user reaches a generated file.
"""

from __future__ import annotations

import builtins
import keyword
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mcgen.errors import UnsupportedError
from mcgen.spec.grammar import Binary, Call, Expression, Lag, Name, Number, Unary, evaluate, unparse, walk

LINE_LENGTH = 120

SUM, PRODUCT, UNARY, POWER, ATOM = range(1, 6)
PRECEDENCE = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "**": POWER}
# The least precedence that stands on either side of an operator without parentheses.
OPERANDS = {"+": (SUM, PRODUCT), "-": (SUM, PRODUCT), "*": (PRODUCT, UNARY), "/": (PRODUCT, UNARY), "**": (ATOM, UNARY)}

# gelu is the exact, erf form; the threshold makes softplus exact in float64 too (torch's own
# default returns x above 20, where log(1 + exp(x)) - x is still 2e-9).
TORCH_FUNCTIONS = {
    name: f"torch.{name}({{}})"
    for name in ("exp", "log", "sqrt", "abs", "sign", "sin", "cos", "tanh", "cosh", "sigmoid", "erf", "relu")
} | {
    "softplus": "F.softplus({}, threshold=40.0)",
    "gelu": "F.gelu({})",
    "silu": "F.silu({})",
    "min": "torch.minimum({}, {})",
    "max": "torch.maximum({}, {})",
}
FUNCTIONS_OF_TWO = ("min", "max")


def names(expression: Expression) -> tuple[str, ...]:
    """The names an expression reads, in order of appearance, each once; `pi` is none."""
    return tuple(dict.fromkeys(e.id for e in walk(expression) if isinstance(e, Name) and e.id != "pi"))


def is_constant(expression: Expression) -> bool:
    return not any(isinstance(e, Lag) or (isinstance(e, Name) and e.id != "pi") for e in walk(expression))


def constant(expression: Expression) -> float:
    """The value of an expression without names.

    Raises:
        UnsupportedError: it is no finite real number.
    """
    try:
        return evaluate(expression, {})
    except (ArithmeticError, ValueError):
        raise UnsupportedError(f"`{unparse(expression)}` is no finite real number; write one that is") from None


@dataclass(frozen=True)
class Text:
    """Source text and the precedence of its outermost operator."""

    text: str
    precedence: int = ATOM

    def within(self, least: int) -> str:
        """The text, in parentheses where something of precedence `least` or more has to stand."""
        return self.text if self.precedence >= least else f"({self.text})"


@dataclass(frozen=True)
class Printer:
    """Prints expressions; its tables say how names, calls and lagged names read in the language printed.

    names    the text of each name, an atom; a name not listed is printed as it is
    calls    a format string for each function

    Every name is a tensor. Functions of plain numbers, and numbers too big for a tensor operation, are printed as their
    value.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=lambda: TORCH_FUNCTIONS)

    def text(self, expression: Expression) -> str:
        return self.print(expression).text

    def print(self, expression: Expression) -> Text:
        if is_constant(expression) and _must_fold(expression):
            return _number(constant(expression))
        match expression:
            case Number(value):
                return _number(value)
            case Name("pi"):
                return Text("math.pi")
            case Name(id):
                return Text(self.names.get(id, id))
            case Lag(name, lag):
                return Text(f"{name}_{lag}")
            case Unary("-", operand):
                return Text("-" + self.print(operand).within(UNARY), UNARY)
            case Unary(_, operand):
                return self.print(operand)
            case Binary():
                return self._binary(expression)
            case Call():
                return self._call(expression)
        raise TypeError(f"no expression: {expression!r}")

    def _binary(self, expression: Binary) -> Text:
        least = OPERANDS[expression.op]
        left = self.print(expression.left).within(least[0])
        right = self.print(expression.right).within(least[1])
        return Text(f"{left} {expression.op} {right}", PRECEDENCE[expression.op])

    def _call(self, expression: Call) -> Text:
        form = self.calls[expression.function]
        # A method's receiver binds more tightly than an argument does.
        least = ATOM if form.startswith("{}.") else SUM
        return Text(form.format(*(self._argument(a, expression).within(least) for a in expression.arguments)))

    def _argument(self, argument: Expression, call: Call) -> Text:
        """torch's functions of two tensors take no numbers: those get the shape of the other argument."""
        if call.function not in FUNCTIONS_OF_TWO or not is_constant(argument):
            return self.print(argument)
        like = next(name for other in call.arguments for name in names(other))
        return Text(f"torch.full_like({self.names.get(like, like)}, {self.text(argument)})")


def _number(value: float) -> Text:
    if not math.isfinite(value):
        raise UnsupportedError(f"{value!r} is no finite number; write one that is")
    return Text(repr(value), ATOM if value >= 0 else UNARY)


def _must_fold(expression: Expression) -> bool:
    """Functions need a tensor to work on, and whole numbers beyond 2**53 do not multiply one."""
    constant(expression)  # refuses what has no value
    return any(isinstance(e, Call) or abs(constant(e)) >= 2**53 for e in walk(expression)) and not (
        isinstance(expression, Number) and isinstance(expression.value, float)
    )


class Identifiers:
    """Names for a user's names in generated Python: themselves, unless the text around them uses that name already."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {*taken, *dir(builtins), *keyword.kwlist, *keyword.softkwlist}

    def fresh(self, wanted: str) -> str:
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted
