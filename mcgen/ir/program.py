"""Tile programs: straight-line tensor programs over named axes.

A program is a directed acyclic graph of seven kinds of node. An axis is a name, not a position, and two values
broadcast against each other by the names they share:

    t, s, m, j   tokens of one chunk; `t` rows, `j` earlier tokens, the others in between
    n            segments
    k, h1, .. v  key, hidden and value dimensions

Every node lists its axes in that order, so a printer needs no layout of its own. Nodes are made by a `Builder`, which
infers axes and keeps one node for one value: a common subexpression is the same object. `evaluate` is what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from operator import attrgetter

import sympy

from mcgen.symbolic.functions import settled

AXES = ("t", "s", "m", "j", "n", "k", *(f"h{n}" for n in range(1, 64)), "v")
TOKEN_AXES = frozenset(AXES[: AXES.index("n")])
_PLACES = {axis: place for place, axis in enumerate(AXES)}
BETWEEN = "i"
"""What the text of a program calls the tokens that a product runs over: no axis."""


def in_order(axes: Iterable[str]) -> tuple[str, ...]:
    """Axes, each once, in the order in which every node lists them."""
    return tuple(sorted(set(axes), key=_PLACES.__getitem__))


@cache
def placeholder(index: int) -> sympy.Symbol:
    """The symbol that stands for the index-th operand in a Map's expression."""
    return sympy.Symbol(f"x{index}", real=True)


@lru_cache(maxsize=1 << 12)
def symbols(expression: sympy.Expr) -> Collection[sympy.Symbol]:
    """The symbols that an expression reads."""
    return expression.free_symbols


@dataclass(frozen=True)
class Label:
    """What a value is, for whoever reads printed programs: a name, and its equation where it has one.

    A value that is `part` of a named one is called by its name only where it has to be seen by itself.
    """

    name: str
    equation: str = ""
    part: bool = False

    @property
    def symbol(self) -> str:
        """What equations call the value: the left side of its own, where that is one symbol."""
        left, _, right = self.equation.partition(" = ")
        return left if right and not {"/", " "} & set(left) else ""


@dataclass(frozen=True, eq=False)
class Node:
    """A value. Its label says nothing about how it is made: two makers of one value share it, whatever they call it."""

    axes: tuple[str, ...]
    label: Label | None = field(default=None, kw_only=True)

    @property
    def operands(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Input(Node):
    """A value handed to the program, by name."""

    name: str


@dataclass(frozen=True, eq=False)
class Iota(Node):
    """0, 1, 2, ... along its one axis."""


@dataclass(frozen=True, eq=False)
class Map(Node):
    """A scalar function of its operands, element by element; axes an operand lacks are broadcast."""

    expression: sympy.Expr
    values: tuple[Node, ...]
    operands = property(attrgetter("values"))


@dataclass(frozen=True, eq=False)
class Contract(Node):
    """The product of two values, summed over the axes `over`, which both have; other shared axes are kept."""

    left: Node
    right: Node
    over: tuple[str, ...]
    operands = property(attrgetter("left", "right"))


@dataclass(frozen=True, eq=False)
class Reduce(Node):
    """The sum, or the maximum, over the axes `over`. A maximum only shifts a softmax: its derivative counts as 0."""

    operation: str
    operand: Node
    over: tuple[str, ...]
    operands = property(lambda self: (self.operand,))


@dataclass(frozen=True, eq=False)
class Rename(Node):
    """The same values along another axis as long: tokens along tokens, keys along values or the other way round."""

    operand: Node
    old: str
    new: str
    operands = property(lambda self: (self.operand,))


@dataclass(frozen=True, eq=False)
class Decay(Node):
    """Products of a gate over runs of tokens, with a zero gate exact.

    D[row, column] = product of gate[i] over column < i <= row, or over column < i < row where `exclusive`; 0 where
    row < column (row <= column where exclusive). Without a row the run goes to the chunk's end; without a column it
    begins with the chunk's first token.
    """

    gate: Node
    row: str | None
    column: str | None
    exclusive: bool
    operands = property(lambda self: (self.gate,))


@dataclass(frozen=True, eq=False)
class Solve(Node):
    """X with X = A X + B, for A[t j] strictly lower triangular (exact zeros on and above its diagonal) and B along t.

    `transposed` solves X = Aᵀ X + B instead. X has B's axes; A's columns are the rows of X again.
    """

    matrix: Node
    right: Node
    transposed: bool
    operands = property(attrgetter("matrix", "right"))


def name_of(node: Node) -> Label | None:
    """What a value is called: an input by its name, and what is another value along other axes as that is."""
    if isinstance(node, Rename) or is_spread(node):
        return name_of(node.operands[0]) or node.label
    return Label(node.name) if isinstance(node, Input) else node.label


def is_constant(node: Node, value: int | None = None) -> bool:
    """Whether a node is one number, the same everywhere (that number, where one is given)."""
    return isinstance(node, Map) and not node.values and (value is None or node.expression == value)


def is_spread(node: Node) -> bool:
    """Whether a node is another's value, the same along further axes if it has any."""
    return isinstance(node, Map) and node.expression == placeholder(0)


def is_identity(node: Node) -> bool:
    """Whether a node gives another as it is."""
    return is_spread(node) and node.axes == node.operands[0].axes


@dataclass(frozen=True)
class Program:
    """A named program: its outputs by name. Inputs are the Input nodes its outputs reach."""

    name: str
    outputs: Mapping[str, Node]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node the outputs reach, operands first."""
        return topological(self.outputs.values())

    @cached_property
    def inputs(self) -> Mapping[str, Input]:
        return {node.name: node for node in self.nodes if isinstance(node, Input)}

    def __str__(self) -> str:
        return render(self)


def topological(
    roots: Iterable[Node],
    operands: Callable[[Node], Iterable[Node]] = attrgetter("operands"),
    done: Container[Node] = (),
) -> tuple[Node, ...]:
    """Every node reachable from the roots, operands first, in the order a left-to-right walk meets them.

    `operands` says which to go on to from a node, where that is not all; nothing is sought behind those that are done.
    """
    order: dict[Node, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, expanded = stack.pop()
        if node in order or node in done:
            continue
        if expanded:
            order[node] = None
        else:
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(tuple(operands(node))))
    return tuple(order)


@dataclass
class Builder:
    """Makes nodes, infers their axes, and returns the node it already has for a value it has made before."""

    _interned: dict[tuple, Node] = field(default_factory=dict)
    functions: dict[sympy.Expr, list[Map]] = field(default_factory=dict)
    """The functions of values that have been made, by their expressions."""

    def _intern(self, node: Node) -> Node:
        """The node that is kept for what this one is made of; it has no label yet."""
        kept = self._interned.setdefault((type(node), *vars(node).values()), node)
        if kept is node and isinstance(node, Map):
            self.functions.setdefault(node.expression, []).append(node)
        return kept

    def call(self, node: Node, label: Label | str | None, equation: str = "", part: bool = False) -> Node:
        """The node, which is called so from now on. The first name stands, but that of a part; inputs have their own.

        A label is the one thing of a node that is set later: what a value is may be known only to whom it is given.
        """
        label = Label(label, equation, part) if isinstance(label, str) else label
        is_free = node.label is None or (node.label.part and label is not None and not label.part)
        if label is not None and is_free and node.operands:
            object.__setattr__(node, "label", label)
        if isinstance(node, Rename):
            self.call(node.operand, label)
        return node

    def input(self, name: str, *axes: str) -> Node:
        return self._intern(Input(in_order(axes), name))

    def iota(self, axis: str) -> Node:
        return self._intern(Iota((axis,)))

    def constant(self, value: sympy.Expr | int | float) -> Node:
        return self._intern(Map((), sympy.sympify(value, strict=True), ()))

    def map(self, expression: sympy.Expr, values: Mapping[sympy.Symbol, Node], axes: Iterable[str] = ()) -> Node:
        """A function of named values; `axes` adds axes to broadcast to beyond those of the values."""
        read = symbols(expression)
        used = {symbol: node for symbol, node in values.items() if symbol in read}
        distinct = tuple(dict.fromkeys(used.values()))
        moved = {symbol: placeholder(distinct.index(node)) for symbol, node in used.items()}
        moved = {symbol: place for symbol, place in moved.items() if symbol != place}
        axes = in_order([*axes, *(axis for node in distinct for axis in node.axes)])
        return self._intern(Map(axes, settled(expression.xreplace(moved) if moved else expression), distinct))

    def product(self, *values: Node) -> Node:
        symbols = [placeholder(i) for i in range(len(values))]
        return self.map(sympy.Mul(*symbols), dict(zip(symbols, values, strict=True)))

    def total(self, values: Sequence[Node]) -> Node:
        """The sum of values of any axes; the constant 0 where there are none."""
        if len(values) < 2:
            return values[0] if values else self.constant(0)
        symbols = [placeholder(i) for i in range(len(values))]
        return self.map(sympy.Add(*symbols), dict(zip(symbols, values, strict=True)))

    def broadcast(self, node: Node, axes: Iterable[str]) -> Node:
        missing = set(axes) - set(node.axes)
        return self.map(placeholder(0), {placeholder(0): node}, axes) if missing else node

    def contract(self, left: Node, right: Node, *over: str) -> Node:
        """Sum over `over` of left * right; an axis only one of them has is summed there first."""
        left = self.sum(left, *(set(over) & set(left.axes) - set(right.axes)))
        right = self.sum(right, *(set(over) & set(right.axes) - set(left.axes)))
        both = in_order(set(over) & set(left.axes) & set(right.axes))
        if not both:
            return self.product(left, right)
        kept = in_order(set(left.axes) | set(right.axes) - set(both))
        return self._intern(Contract(in_order(set(kept) - set(both)), left, right, both))

    def sum(self, operand: Node, *over: str) -> Node:
        return self._reduce("sum", operand, over)

    def max(self, operand: Node, *over: str) -> Node:
        return self._reduce("max", operand, over)

    def _reduce(self, operation: str, operand: Node, over: Iterable[str]) -> Node:
        over = in_order(set(over) & set(operand.axes))
        kept = in_order(set(operand.axes) - set(over))
        return self._intern(Reduce(kept, operation, operand, over)) if over else operand

    def rename(self, operand: Node, old: str, new: str) -> Node:
        if old == new or old not in operand.axes:
            return operand
        if isinstance(operand, Rename) and operand.new == old:
            return self.rename(operand.operand, operand.old, new)
        axes = in_order([new if axis == old else axis for axis in operand.axes])
        return self._intern(Rename(axes, operand, old, new))

    def solve(self, matrix: Node, right: Node, transposed: bool = False) -> Node:
        return self._intern(Solve(right.axes, matrix, right, transposed))

    def decay(self, gate: Node, row: str | None, column: str | None, exclusive: bool = False) -> Node:
        axes = in_order(axis for axis in (row, column) if axis)
        return self._intern(Decay(axes, gate, row, column, exclusive))


def describe(node: Node, name: Mapping[Node, str]) -> str:
    """A node as text, its operands by the names given."""
    match node:
        case Input(_, label):
            return f"input {label}"
        case Iota():
            return "iota"
        case Map(_, expression, values):
            return sympy.sstr(
                expression.xreplace({placeholder(i): sympy.Symbol(name[v]) for i, v in enumerate(values)})
            )
        case Contract(_, left, right, over):
            return f"sum[{' '.join(over)}] {name[left]} * {name[right]}"
        case Reduce(_, operation, operand, over):
            return f"{operation}[{' '.join(over)}] {name[operand]}"
        case Rename(_, operand, old, new):
            return f"{name[operand]} with {old} as {new}"
        case Decay(_, gate, row, column, exclusive):
            run = f"{column or 'start'} < {BETWEEN} {'<' if exclusive else '<='} {row or 'end'}"
            return f"product of {name[gate]}[{BETWEEN}] over {run}"
        case Solve(_, matrix, right, transposed):
            return f"x with x = {name[matrix]}{'ᵀ' if transposed else ''} x + {name[right]}"
    raise TypeError(f"no text for {type(node).__name__}")


def line(node: Node, name: Mapping[Node, str]) -> str:
    """A node's line in the text of a program."""
    return f"{name[node]}[{' '.join(node.axes)}] = {describe(node, name)}"


def render(program: Program) -> str:
    """The program as text, one line a node."""
    name: dict[Node, str] = {}
    lines = [f"program {program.name}"]
    for index, node in enumerate(program.nodes):
        name[node] = f"%{index}"
        lines.append(f"  {line(node, name)}")
    lines += [f"  output {label} = {name[node]}" for label, node in program.outputs.items()]
    return "\n".join(lines)
