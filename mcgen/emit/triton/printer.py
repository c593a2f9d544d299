"""Tile programs as Triton statements: every value a tile whose dimensions are its axes, in order.

A skeleton (a kernel's template) has bound the axes' offsets and masks and the tensors' bases before a program begins,
and says for each input how its tile is loaded, and for each output what to do with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mcgen.emit.text.naming import name_values
from mcgen.emit.text.rendering import template_words
from mcgen.emit.text.scalar import TRITON
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
    in_order,
    placeholder,
)
from mcgen.passes.phases import HIDDEN, SEGMENTS
from mcgen.passes.schedule import added, alias, chained, scheduled, streamable


@dataclass(frozen=True)
class Binding:
    """How a program meets its kernel.

    load    text that loads an input's tile, by name
    store   statements that put an output's tile (named in the text as given) where it belongs
    narrow  inputs whose tiles keep the type of the tensors, for products between two of them
    held    inputs that lie in registers before the program begins
    stream  an axis no tile of which is needed whole: products of two inputs over it are loops over its tiles
    """

    load: Mapping[str, str]
    store: Mapping[str, Callable[[str], list[str]]]
    narrow: frozenset[str]
    held: frozenset[str] = frozenset()
    stream: str = ""


def room(before: Mapping[str, int]) -> str:
    """Where something lies behind so many things of each size, as text: `2 * K * F + V`."""
    return " + ".join(f"{count} * {size}" if count > 1 else size for size, count in before.items()) or "0"


def size(axis: str) -> str:
    if axis in HIDDEN:
        return "BF"
    return "BT" if axis in TOKEN_AXES else f"B{axis.upper()}"


def offset(axis: str) -> str:
    return "o_t" if axis in TOKEN_AXES else f"o_{axis}"


def laid(node: Node) -> tuple[str, ...]:
    """The axes of a value's tile: segments are taken one at a time, in a loop, so a tile has none of them."""
    return without_segments(node.axes)


def without_segments(axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis != SEGMENTS)


def aligned(name: str, axes: Sequence[str], target: Sequence[str]) -> str:
    """Indexing that broadcasts a value to the target's axes; a scalar broadcasts by itself."""
    if tuple(axes) == tuple(target) or not axes:
        return name
    return f"{name}[{', '.join(':' if axis in axes else 'None' for axis in target)}]"


@functools.cache
def template_names() -> frozenset[str]:
    """What the templates of kernels call tiles of their own, without the b_ before it."""
    return frozenset(name.removeprefix("b_") for name in template_words() if name.startswith("b_"))


@dataclass
class Printer:
    """Prints one program under one binding."""

    program: Program
    binding: Binding
    names: dict[Node, str] = field(init=False)
    order: list[Node] = field(init=False)
    added: dict[Node, Contract] = field(init=False)
    streamed: dict[Node, tuple[Input, Input]] = field(init=False)
    pieces: set[Node] = field(init=False)
    lines: list[str] = field(default_factory=list)
    runs: dict[Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.program = chained(self.program)
        self.added = {} if self.binding.stream else added(self.program)
        self.streamed = streamable(self.program, self.binding.stream, self.binding.held)
        self.pieces = {operand for operands in self.streamed.values() for operand in operands}
        self.order = self._ordered()
        outputs = {label: alias(node) for label, node in self.program.outputs.items()}
        named = name_values(Program(self.program.name, outputs), template_names())
        self.names = {node: f"b_{named[alias(node)]}" for node in self.order}

    def _ordered(self) -> list[Node]:
        kept = [label for label in self.program.outputs if not self.binding.store[label]("")]
        return scheduled(self.program, self.binding.held, kept, self.pieces)

    def statements(self) -> list[str]:
        pending = dict(self.program.outputs)
        for node in self.order:
            self._emit(node)
            for label in [label for label, output in pending.items() if output is node]:
                self.lines += self.binding.store[label](self.names[pending.pop(label)])
        return self.lines

    def _emit(self, node: Node) -> None:
        if isinstance(node, Decay) and node.gate not in self.runs:
            self.runs[node.gate] = self.names[node.gate]
            run = self.names[node.gate]
            self.lines.append(f"{run}_e, {run}_f, {run}_e1, {run}_f1 = _tile_runs({run})")
        if node in self.streamed:
            self.lines += self._stream(node)
        elif alias(node) is node and node not in self.added.values() and node not in self.pieces:
            self.lines.append(f"{self.names[node]} = {self._expression(node)}")

    def _stream(self, node: Contract) -> list[str]:
        """A product as a loop over tiles of the axis it is summed over."""
        axis, name = self.binding.stream, self.names[node]
        loads = [f"{self.names[piece]} = {self.binding.load[piece.name]}" for piece in self.streamed[node]]
        tile = f"i_{axis} * B{axis.upper()} + tl.arange(0, B{axis.upper()})"
        return [
            f"{name} = {zeros(laid(node))}",
            f"for i_{axis} in range(tl.cdiv({axis.upper()}, B{axis.upper()})):",
            *(f"    {line}" for line in (f"o_{axis} = {tile}", f"m_{axis} = o_{axis} < {axis.upper()}", *loads)),
            f"    {name} = {self._contract(node, name)}",
        ]

    def _expression(self, node: Node) -> str:
        match node:
            case Input(_, name):
                return self.binding.load[name]
            case Iota((axis,)):
                return offset(axis)
            case Map() if node in self.added:
                product = self.added[node]
                (other,) = (value for value in node.values if alias(value) is not product)
                return self._contract(product, self._wide(other))
            case Map():
                return self._map(node)
            case Contract():
                return self._contract(node)
            case Reduce(_, operation, operand, over):
                return self._reduce(operation, self._wide(operand), laid(operand), over)
            case Rename(axes, operand, _, new):
                moved = axes.index(new) != operand.axes.index(node.old)
                return f"tl.trans({self.names[operand]})" if moved else self.names[operand]
            case Decay():
                return self._decay(node)
            case Solve(_, matrix, right, transposed):
                return f"_tile_solve({self.names[matrix]}, {self._wide(right)}, one, BT, PREC, {transposed})"
        raise TypeError(type(node).__name__)

    def _wide(self, node: Node) -> str:
        """A value in float32."""
        return f"{self.names[node]}.to(tl.float32)" if self._is_narrow(node) else self.names[node]

    def _is_narrow(self, node: Node) -> bool:
        node = alias(node)
        return isinstance(node, Input) and node.name in self.binding.narrow

    def _map(self, node: Map) -> str:
        values = {placeholder(i): aligned(self._wide(v), laid(v), laid(node)) for i, v in enumerate(node.values)}
        text = TRITON.text(node.expression, values)
        covered = {axis for value in node.values for axis in laid(value)}
        if covered == set(laid(node)):
            return text
        return (
            f"({text}) + {zeros(laid(node))}" if node.values else f"tl.full([{_sizes(laid(node))}], {text}, tl.float32)"
        )

    def _reduce(self, operation: str, text: str, axes: Sequence[str], over: Sequence[str]) -> str:
        remaining = list(axes)
        for axis in without_segments(over):
            text = f"tl.{operation}({text}, {remaining.index(axis)})"
            remaining.remove(axis)
        return text

    def _contract(self, node: Contract, total: str = "") -> str:
        """A product; one of matrices is added to `total`, where that is given."""
        left, right, over = node.left, node.right, without_segments(node.over)
        union = tuple(axis for axis in (*laid(left), *laid(right)) if axis in node.axes or axis in over)
        union = tuple(dict.fromkeys(union))
        if not is_tile_product(node):
            union = in_order(union)
            factors = [aligned(self._wide(factor), laid(factor), union) for factor in (left, right)]
            return self._reduce("sum", " * ".join(factors), union, over)
        if laid(node)[0] in right.axes:
            left, right = right, left
        (axis,) = over
        return self._dot(left, right, axis, total)

    def _dot(self, left: Node, right: Node, axis: str, total: str) -> str:
        both = self._is_narrow(left) and self._is_narrow(right)
        name = self.names.__getitem__ if both else self._wide
        x = name(left) if laid(left)[1] == axis else f"tl.trans({name(left)})"
        y = name(right) if laid(right)[0] == axis else f"tl.trans({name(right)})"
        return f"_tile_dot({x}, {y}, one, PREC)" if not total else f"_tile_dot_add({total}, {x}, {y}, one, PREC)"

    def _decay(self, node: Decay) -> str:
        run, order = self.runs[node.gate], node.axes
        part = lambda p, ends: [f"{run}_{letter}{p}" if not ends else f"tl.sum({run}_{letter}1, 0)" for letter in "ef"]  # noqa: E731
        rows = part("", node.row is None)
        if node.exclusive and node.row:
            rows = [f"({run}_{letter} - {run}_{letter}1)" for letter in "ef"]
        columns = [f"{run}_{letter}" for letter in "ef"]
        row_axes, column_axes = ((node.row,) if node.row else ()), ((node.column,) if node.column else ())
        differences = [
            f"{aligned(r, row_axes, order)} - {aligned(c, column_axes, order)}" if node.column else r
            for r, c in zip(rows, columns, strict=True)
        ]
        text = f"_tile_product({', '.join(differences)})"
        if not (node.row and node.column):
            return text
        reach = ">" if node.exclusive else ">="
        mask = f"{aligned('o_t', row_axes, order)} {reach} {aligned('o_t', column_axes, order)}"
        return f"tl.where({mask}, {text}, 0.0)"


def is_tile_product(node: Node) -> bool:
    """Whether a value is made of tiles by one matrix product."""
    if not isinstance(node, Contract) or len(without_segments(node.over)) != 1:
        return False
    return all(len(laid(tile)) == 2 for tile in (node, node.left, node.right))


def _sizes(axes: Sequence[str]) -> str:
    return ", ".join(map(size, axes))


def zeros(axes: Sequence[str]) -> str:
    return f"tl.zeros([{_sizes(axes)}], tl.float32)" if axes else "0.0"


def statements(program: Program, binding: Binding) -> list[str]:
    """The program's statements, as lines of text."""
    return Printer(program, binding).statements()
