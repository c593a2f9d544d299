"""Names for the values of a tile program in source text: what a value is, where that can be said in a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import sympy

from mcgen.ir.program import (
    TOKEN_AXES,
    Contract,
    Decay,
    Input,
    Iota,
    Map,
    Node,
    Program,
    Reduce,
    Rename,
    Solve,
    placeholder,
    topological,
)
from mcgen.symbolic.functions import Shift, Where

Word = Callable[[Node, Mapping[Node, str]], str]


@dataclass
class Names:
    """Hands out one name a value; a name taken gets a number."""

    taken: set[str]
    names: dict[Node, str] = field(default_factory=dict)

    def give(self, node: Node, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}{count}"
        self.taken.add(name)
        self.names[node] = name
        return name


def hint(node: Node, names: Mapping[Node, str]) -> str:
    """A word for a value: its input's name, the pair it contracts, or its kind and axes."""
    match node:
        case Input(_, name):
            return name
        case Iota((axis,)):
            return f"at_{axis}"
        case Contract(_, left, right, _) if isinstance(left, Input) and isinstance(right, Input):
            return f"{names[left]}_{names[right]}"
        case Solve():
            return "rows"
        case Decay():
            return _with_axes("decay", node) if node.axes else "decay_all"
        case Reduce(_, operation, _, _):
            return _with_axes(operation, node)
        case Map() | Contract() | Rename():
            return _with_axes("x", node)
    raise TypeError(type(node).__name__)


def name_values(
    program: Program, reserved: set[str], order: Iterable[Node] | None = None, word: Word = hint
) -> dict[Node, str]:
    """A name for every node of a program; an output that is not an input is called by its output's name.

    Values with the same word are numbered in `order`, the program's own where there is none.
    """
    names = Names(set(reserved))
    outputs = {node: label for label, node in reversed(program.outputs.items()) if not isinstance(node, Input)}
    names.taken |= set(outputs.values())
    for node in program.nodes if order is None else order:
        if node in outputs:
            names.names[node] = outputs[node]
        else:
            names.give(node, word(node, names.names))
    return names.names


def described(program: Program, reserved: set[str]) -> dict[Node, str]:
    """Names that say more, for text that a person reads: inputs keep theirs, other values are called by a `Words`.

    A sum over a product that is used for nothing else has the product's name.
    """
    order = sorted(program.nodes, key=lambda node: not isinstance(node, Input))
    words = Words(program)
    names = name_values(program, reserved, [node for node in order if not words.product_under(node)], words.word)
    return names | {node: names[words.sum_over[node]] for node in order if words.product_under(node)}


@dataclass(frozen=True)
class Words:
    """Words for values by what they are made of.

    R_t, C_tj        coefficients of the closed form: of the state at the chunk's start, of earlier tokens' writes
    q_k, decayed_q_k products, by their factors; d_o_v the product of a cotangent
    weights, weight  a softmax's, of the cached memories and of the online one
    d_tj, x_tj       what has no better name, by its axes; with a d, what depends on a cotangent
    """

    program: Program

    LONGEST = 16

    def word(self, node: Node, names: Mapping[Node, str]) -> str:
        if pair := self._pair(node):
            return f"d_{pair[0].name}_{pair[1].name}"
        match node:
            case Decay() if node.exclusive:
                return _with_axes("before", node)
            case Contract(_, left, right, _):
                found = self._coefficient(node) or self._joined(names, left, right)
            case Map():
                found = self._coefficient(node) or self._function(node, names)
            case Reduce(_, _, operand, _) if operand in self.sum_over:
                found = self._coefficient(node) or self._joined(names, *operand.operands)
            case Reduce(_, operation, operand, _):
                found = self._coefficient(node) or self._short(f"{operation}_{self._stem(operand, names)}")
            case Rename(_, operand, _, _):
                return names[operand]
            case _:
                return hint(node, names)
        return found or _with_axes("d" if node in self._cotangents else "x", node)

    def product_under(self, node: Node) -> bool:
        """Whether a value is a product that one sum alone is over, and so is never seen by itself."""
        return node in self.sum_over

    @cached_property
    def sum_over(self) -> Mapping[Node, Node]:
        """For products that one sum alone is over, that sum."""
        uses = Counter(operand for node in self.program.nodes for operand in node.operands)
        outputs = set(self.program.outputs.values())
        sums = (node for node in self.program.nodes if isinstance(node, Reduce) and node.operation == "sum")
        return {
            node.operand: node
            for node in sums
            if _is_product(node.operand) and uses[node.operand] == 1 and node.operand not in outputs
        }

    @cached_property
    def _partners(self) -> Mapping[Node, Mapping[tuple[str, ...], Input]]:
        """The inputs that a value is multiplied with, by the axes that are summed."""
        found: dict[Node, dict[tuple[str, ...], Input]] = {}
        for node in self.program.nodes:
            if isinstance(node, Contract):
                for value, other in ((node.left, node.right), (node.right, node.left)):
                    if isinstance(other, Input) and not isinstance(value, Input):
                        found.setdefault(value, {}).setdefault(node.over, other)
        return found

    def _pair(self, node: Node) -> tuple[Input, Input] | None:
        """x and y, where a value can only be the cotangent of their product x yᵀ: it gives both their gradients."""
        if node not in self._cotangents or len(node.axes) != 2:
            return None
        partners = self._partners.get(node, {})
        pair = [partners.get((axis,)) for axis in node.axes]
        return None if None in pair or pair[0] is pair[1] else (pair[0], pair[1])

    # -- kinds of values ----------------------------------------------------------------------------------------------

    @cached_property
    def _cotangents(self) -> set[Node]:
        """Values that depend on a cotangent."""
        return _reached(self.program, lambda node: isinstance(node, Input) and node.name.startswith("d_"))

    @cached_property
    def _dense(self) -> set[Node]:
        """Values that depend on more than numbers a token."""
        return _reached(self.program, lambda node: isinstance(node, Input) and not self._a_token(node))

    @cached_property
    def _decayed(self) -> set[Node]:
        """Values that depend on a product of gates over a run of tokens."""
        return _reached(self.program, lambda node: isinstance(node, Decay) or _is_coefficient_name(node))

    def _a_token(self, node: Input) -> bool:
        known = ("count", "r", "r_cached", "w", "w_cached", "share")
        return set(node.axes) <= TOKEN_AXES and node.name not in known and not node.name.startswith("d_")

    def _coefficient(self, node: Node) -> str | None:
        if node in self._dense or node not in self._decayed or isinstance(node, Decay):
            return None
        return _with_axes("R" if set(node.axes) <= {"t"} else "C", node)

    # -- words --------------------------------------------------------------------------------------------------------

    def _function(self, node: Map, names: Mapping[Node, str]) -> str | None:
        values, expression = node.values, node.expression
        x, y = placeholder(0), placeholder(1)
        if values and all(isinstance(value, Iota) for value in values):
            return "causal"
        if expression == x:
            return _with_axes(self._stem(values[0], names), node)
        others = [value for value in values if not isinstance(value, Iota)]
        if expression.func is Where and len(others) == 1 < len(values):
            return self._short(f"causal_{self._stem(others[0], names)}")
        if values and expression.func is sympy.exp:
            return self._short(f"exp_{self._stem(values[0], names)}")
        if expression.func is Shift:
            return "top"
        if expression.is_Add and any(_is_exponential(value) for value in values):
            return "norm"
        if expression == x / y and values[0] in topological([values[1]]):
            return "weights" if "n" in node.axes else "weight"
        if (
            expression.is_Mul
            and len(values) > 1
            and expression in (sympy.Mul(*map(placeholder, range(len(values)))), x / y)
        ):
            return self._joined(names, *values)
        return None

    def _joined(self, names: Mapping[Node, str], *factors: Node) -> str | None:
        """Factors' names together, numbers a token first."""
        stems = [self._stem(node, names) for node in sorted(factors, key=self._is_scale, reverse=True)]
        return self._short("_".join(stems))

    def _is_scale(self, node: Node) -> bool:
        return isinstance(node, Decay) or (self._coefficient(node) is not None) or _is_coefficient_name(node)

    def _stem(self, node: Node, names: Mapping[Node, str]) -> str:
        """A value's name as part of another's; along another axis it is the same."""
        while isinstance(node, Rename):
            node = node.operand
        if isinstance(node, Decay):
            return "decayed"
        return names[node].partition("_")[0] if self._is_scale(node) else names[node]

    def _short(self, name: str) -> str | None:
        return name if len(name) <= self.LONGEST else None


def _with_axes(name: str, node: Node) -> str:
    axes = "".join(axis[0] for axis in node.axes)
    return f"{name}_{axes}" if axes else name


def _is_product(node: Node) -> bool:
    return isinstance(node, Map) and node.expression == placeholder(0) * placeholder(1)


def _is_exponential(node: Node) -> bool:
    return isinstance(node, Map) and node.expression.func is sympy.exp


def _is_coefficient_name(node: Node) -> bool:
    """Whether an input is a coefficient that another program has given."""
    return (
        isinstance(node, Input) and node.name.partition("_")[0] in ("R", "C", "decay") and set(node.axes) <= TOKEN_AXES
    )


def _reached(program: Program, begins: Callable[[Node], bool]) -> set[Node]:
    """Values that are, or depend on, one of a kind."""
    found: set[Node] = set()
    for node in program.nodes:
        if begins(node) or any(operand in found for operand in node.operands):
            found.add(node)
    return found
