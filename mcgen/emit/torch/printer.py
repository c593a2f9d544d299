"""Tile programs as torch source: a function of tensors whose last dimensions are a value's axes, in order.

Whatever dimensions stand before those (batch, head, lanes, chunks) are carried along by broadcasting. What a function
is given is `x.name`, what it gives `out.name`, and what it alone knows `name`. A statement is a value of the program;
one that nobody has named and that is used once stands where it is used, and a value whose text has stood before is not
computed again (the same decay along another axis).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from string import ascii_lowercase

import sympy

from mcgen.emit.text.expressions import LINE_LENGTH
from mcgen.emit.text.naming import moves, word
from mcgen.emit.text.scalar import ATOM, MATRIX, SUM, TORCH, Bound
from mcgen.emit.torch.fused import SPELLINGS, fused
from mcgen.ir.program import (
    AXES,
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
from mcgen.passes.schedule import alias
from mcgen.symbolic import functions

HELPERS = ("_gelu_vjp", "_inverses", "_products", "_runs", "_runs_from", "_runs_to", "_solve", "_spread", "_step")
RESERVED = {"F", "math", "torch", "types", "x", "out", *HELPERS, *(f"n_{axis}" for axis in AXES)}
INDENT = 4
BORROWED = "x.k"
"""The keys, which a program is like that has no inputs: all its values are numbers along tokens."""

SCALARS = replace(
    TORCH, functions={**TORCH.functions, functions.Step: "_step({})".format, **SPELLINGS}, one_number=True
)


def function(program: Program, name: str, docstring: str, tags: Mapping[str, str] | None = None) -> str:
    """The program, whose values have labels, as a Python function of its inputs by name; it returns a dict.

    `tags` says what the statements that lead to an output compute, by the output's name.
    """
    names = {node: node.label.name if node.label else word(node, {}) for node in program.nodes}
    names |= {node: f"x.{node.name}" for node in program.nodes if isinstance(node, Input)}
    outputs = {alias(node): label for label, node in reversed(program.outputs.items())}
    names |= {node: f"out.{label}" for node, label in outputs.items() if not isinstance(node, Input)}
    body = Body(program, names, tags or {})
    lines = [
        f"def {name}(**x):",
        f'    """{docstring}"""',
        "    x, out = types.SimpleNamespace(**x), types.SimpleNamespace()",
        *(f"    {line}" for line in body.statements()),
        *(f"    out.{label} = {body.name(node)}" for label, node in body.repeated.items()),
        "    return vars(out)",
    ]
    return "\n".join(lines)


@dataclass
class Text:
    """The text of a value, how tightly it binds, and whether it is a product `left @ right` of two texts."""

    text: str
    binding: int = ATOM
    product: tuple[str, str] | None = None

    def __str__(self) -> str:
        """The text where anything may stand beside it."""
        return self.bound.within(ATOM)

    @property
    def bound(self) -> Bound:
        return Bound(self.text, self.binding)


@dataclass
class Body:
    """The statements of one function."""

    program: Program
    names: Mapping[Node, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: dict[Node, Text] = field(default_factory=dict)
    inlined: set[Node] = field(default_factory=set)
    same: dict[Node, Node] = field(default_factory=dict)
    tables: dict[tuple[Node, str], str] = field(default_factory=dict)
    inverses: dict[Node, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)

    def statements(self) -> list[str]:
        for node in self.program.nodes:
            self._settle(node)
        shown, lines = self._shown(), []
        for label, node in self.program.outputs.items():
            group = [line for part in topological([node]) for line in shown.pop(part, [])]
            lines += [f"# {self.tags[label]}", *group] if len(group) > 1 and label in self.tags else group
        lengths = [f"{size} = {self._length(axis)}" for axis, size in self.sizes.items() if _occurs(size, lines)]
        return [*lengths, *lines]

    def _shown(self) -> dict[Node, list[str]]:
        """The lines of every value that has a statement."""
        lines: dict[Node, list[str]] = {}
        begun: set[tuple[Node, str] | Node] = set()
        for node in self.program.nodes:
            if isinstance(node, Input) or node in self.same or node in self.inlined:
                continue
            if isinstance(node, Decay) and (key := self._table(node)) not in begun:
                begun.add(key)
                lines[node] = [f"{self.tables[key]} = {key[1]}({self.name(node.gate)})"]
            if isinstance(node, Solve) and node.matrix not in begun:
                begun.add(node.matrix)
                lines[node] = [f"{self.inverses[node.matrix]} = _inverses({self.name(node.matrix)})"]
            lines.setdefault(node, []).extend(self._statement(node))
        every = [line for some in lines.values() for line in some]
        return {n: some for n, some in lines.items() if not isinstance(n, Iota) or _occurs(self.names[n], every, 2)}

    def _statement(self, node: Node) -> list[str]:
        """A value's line, and beside or before it its axes and equation."""
        line, equation = f"{self.names[node]} = {self.texts[node].text}", node.label.equation if node.label else ""
        axes = f"[{' '.join(node.axes)}]" if node.axes else ""
        said = " ".join(filter(None, [axes, equation]))
        if INDENT + len(f"{line}  # {said}") <= LINE_LENGTH:
            return [f"{line}  # {said}" if said else line]
        return [f"# {said}", line] if " = " in equation else [line]

    @cached_property
    def repeated(self) -> dict[str, Node]:
        """Outputs that are inputs, or other outputs."""
        return {label: node for label, node in self.program.outputs.items() if self.name(node) != f"out.{label}"}

    def name(self, node: Node) -> str:
        return self.names[self.same.get(node, node)]

    # -- which values get a statement ---------------------------------------------------------------------------------

    def _settle(self, node: Node) -> None:
        """Finds the text of a value whose operands are settled, and which of those stand inside it."""
        if isinstance(node, Input):
            return
        if isinstance(node, Rename) and not moves(node):
            self.same[node] = self.same.get(node.operand, node.operand)
            return
        self.inlined.update(self._products(node))
        candidates = [operand for operand in dict.fromkeys(node.operands) if self._may_stand_in(operand, node)]
        candidates.sort(key=lambda operand: len(self.texts[operand].text))
        self.inlined.update(candidates)
        text = self._text(node)
        while candidates and not (self._fits(node, text) and all(self._is_once(o, text) for o in candidates)):
            self.inlined.discard(candidates.pop())
            text = self._text(node)
        before = next((other for other, known in self.texts.items() if known.text == text.text), None)
        if before is not None and before not in self.inlined and node not in self._outputs:
            self.same[node] = before
        else:
            self.texts[node] = text

    def _may_stand_in(self, operand: Node, user: Node) -> bool:
        """Whether a value that nobody has named may stand in the one that uses it; tables and systems need names."""
        if (
            not isinstance(operand, Map | Contract | Reduce)
            or isinstance(user, Decay)
            or self._is_matrix(operand, user)
        ):
            return False
        return bool(operand.operands) and self._once(operand) and (operand.label is None or operand.label.part)

    def _is_once(self, operand: Node, text: Text) -> bool:
        return text.text.count(self.texts[operand].text) == 1

    def _is_matrix(self, operand: Node, user: Node) -> bool:
        return isinstance(user, Solve) and operand is user.matrix

    def _products(self, node: Node) -> list[Node]:
        """The matrix products of a sum that has at least two of its own."""
        if not isinstance(node, Map) or not node.expression.is_Add:
            return []
        terms = [v for i, v in enumerate(node.values) if placeholder(i) in node.expression.args]
        found = [v for v in terms if isinstance(v, Contract) and self._once(v) and self.texts[v].product]
        found = [v for v in found if v.axes == node.axes]
        return found if len(found) > 1 else []

    def _once(self, node: Node) -> bool:
        """Whether a value is used once, and by no other name."""
        named = node in self.same or node in self.same.values() or node in self._outputs
        return not named and self._uses[node] == 1

    @cached_property
    def _outputs(self) -> set[Node]:
        return set(map(alias, self.program.outputs.values()))

    @cached_property
    def _uses(self) -> Counter[Node]:
        return Counter(operand for node in self.program.nodes for operand in node.operands)

    def _fits(self, node: Node, text: Text) -> bool:
        return INDENT + len(self.names[node]) + len(" = ") + len(text.text) <= LINE_LENGTH

    def _of(self, node: Node) -> str:
        """A value as an operand: its name, or the text that stands in its place."""
        return str(self.texts[node]) if node in self.inlined else self.name(node)

    def _aligned(self, value: Node, node: Node) -> str:
        """A value as an operand in a function along a node's axes."""
        if value in self.inlined and value.axes == node.axes:
            return self.texts[value].bound
        return aligned(self._of(value), value.axes, node.axes)

    # -- texts --------------------------------------------------------------------------------------------------------

    def _text(self, node: Node) -> Text:
        match node:
            case Iota((axis,)):
                return Text(f"torch.arange({self._size(axis)}, {self._like})")
            case Map():
                return self._map(node)
            case Contract():
                return self._contract(node)
            case Reduce(_, operation, operand, over):
                name = "amax" if operation == "max" else "sum"
                return Text(f"{self._of(operand)}.{name}({_dims(operand, over)})")
            case Rename(_, operand):
                return Text(f"{self._of(operand)}.mT")
            case Solve(_, matrix, right, transposed):
                flag = ", transposed=True" if transposed else ""
                bare = self.texts[right].text if right in self.inlined else self.name(right)
                return Text(f"_solve({self.name(matrix)}, {self._inverses(matrix)}, {bare}{flag})")
            case Decay():
                return Text(self._decay(node))
        raise TypeError(type(node).__name__)

    def _map(self, node: Map) -> Text:
        if products := self._products(node):
            return self._sum_of_products(node, products)
        if (reach := _reach(node)) is not None:
            return self._triangle(node, reach)
        values = {placeholder(i): self._aligned(v, node) for i, v in enumerate(node.values)}
        if not node.values and node.axes:
            shape = ", ".join(map(self._size, node.axes)) + "," * (len(node.axes) == 1)
            return Text(f"torch.full(({shape}), {SCALARS.text(node.expression, {})}, {self._like})")
        return self._spread(node, {axis for v in node.values for axis in v.axes}, values)

    def _triangle(self, node: Map, reach: int) -> Text:
        """A value where column < row + reach and 0 elsewhere; ones, where it has no other values."""
        others = [value for value in node.values if not isinstance(value, Iota)]
        like = f"torch.ones({', '.join(map(self._size, node.axes))}, {self._like})"
        return Text(f"{self._of(others[0]) if others else like}.tril({reach - 1 if reach != 1 else ''})")

    def _spread(self, node: Map, covered: set[str], values: Mapping[sympy.Symbol, str]) -> Text:
        if covered == set(node.axes):
            text = SCALARS.bound(fused(node.expression), values)
            return Text(str(text), text.binding)
        sizes = ", ".join(self._size(axis) if axis not in covered else "-1" for axis in node.axes)
        return Text(f"_spread({SCALARS.text(fused(node.expression), values, SUM)}, {sizes})")

    def _sum_of_products(self, node: Map, products: Sequence[Node]) -> Text:
        """A sum of at least two matrix products, and of what else it has."""
        pairs = ", ".join("({}, {})".format(*self.texts[v].product) for v in products)
        values = {placeholder(i): v for i, v in enumerate(node.values)}
        total = sympy.Symbol("total", real=True)
        rest = node.expression - sum(symbol for symbol, v in values.items() if v in products) + total
        named = {symbol: self._aligned(v, node) for symbol, v in values.items() if v not in products}
        text = SCALARS.bound(rest, {**named, total: f"_products({pairs})"})
        return Text(str(text), text.binding)

    def _contract(self, node: Contract) -> Text:
        left, right, over = node.left, node.right, node.over
        shared = tuple(axis for axis in node.axes if axis in left.axes and axis in right.axes)
        rows = tuple(axis for axis in left.axes if axis not in right.axes)
        columns = tuple(axis for axis in right.axes if axis not in left.axes)
        if not rows and not columns:
            return Text(f"({self._of(left)} * {self._of(right)}).sum({_dims(left, over)})")
        if not columns or (rows and (*shared, *rows, *columns) != node.axes):
            left, right, rows, columns = right, left, columns, rows
        x, y = self._matrix(left, shared, rows, over), self._matrix(right, shared, over, columns)
        if x is None or y is None or (*shared, *rows, *columns) != node.axes or (len(rows) > 1 and len(columns) > 1):
            return self._einsum(node)
        if not rows:
            return Text(f"({x} @ {y}).squeeze(-2)")
        if len(rows) > 1:
            return Text(f"({x} @ {y}).unflatten(-2, {_tail(self._of(left), left.axes, rows)})")
        if len(columns) > 1:
            return Text(f"({x} @ {y}).unflatten(-1, {_tail(self._of(right), right.axes, columns)})")
        return Text(f"{x} @ {y}", MATRIX, product=(self._bare(left, x), self._bare(right, y)))

    def _bare(self, value: Node, text: str) -> str:
        """A value's text where it stands between commas."""
        return self.texts[value].text if value in self.inlined and text == str(self.texts[value]) else text

    def _decay(self, node: Decay) -> str:
        """The part of a table of products that a node is: rows are where runs end, columns where they begin."""
        key = gate, helper = self._table(node)
        if key not in self.tables:
            taken = {*self.names.values(), *self.tables.values()}
            self.tables[key] = _unused(f"{_bare(self.name(gate))}{helper}", taken)
        row = ":-1" if node.exclusive else "1:" if node.row else "-1"
        column = "1:" if node.column else "0"
        part = {"_runs": f"{row}, {column}", "_runs_from": row, "_runs_to": column}[helper]
        return f"{self.tables[key]}[..., {part}]" + (".mT" if node.row and node.axes == (node.column, node.row) else "")

    def _inverses(self, matrix: Node) -> str:
        """The name of the inverses that the systems with a matrix share."""
        taken = {*self.names.values(), *self.tables.values(), *self.inverses.values()}
        return self.inverses.setdefault(matrix, _unused(f"{_bare(self.name(matrix))}_inverses", taken))

    def _table(self, node: Decay) -> tuple[Node, str]:
        """The gate, and the helper whose table has a node's products: that of all runs, if some node wants a tile."""
        if node.gate in self._tiled:
            return node.gate, "_runs"
        return node.gate, "_runs_from" if node.row else "_runs_to"

    @cached_property
    def _tiled(self) -> set[Node]:
        """The gates of which some node wants the products of all runs."""
        return {node.gate for node in self.program.nodes if isinstance(node, Decay) and node.row and node.column}

    def _einsum(self, node: Contract) -> Text:
        letter = dict(zip(dict.fromkeys([*node.left.axes, *node.right.axes]), ascii_lowercase, strict=False))
        x, y, result = ("".join(letter[axis] for axis in part) for part in (node.left.axes, node.right.axes, node.axes))
        formula = f"...{x},...{y}->...{result}"
        return Text(f'torch.einsum("{formula}", {self._of(node.left)}, {self._of(node.right)})')

    def _matrix(self, node: Node, batch: Sequence[str], rows: Sequence[str], columns: Sequence[str]) -> str | None:
        """The value as a matrix of `rows` by `columns`, several axes made one each; None where they are interleaved."""
        text = self._of(node)
        if node.axes == (*batch, *rows, *columns):
            return _flat(text, rows, columns)
        return f"{_flat(text, columns, rows)}.mT" if node.axes == (*batch, *columns, *rows) else None

    # -- sizes --------------------------------------------------------------------------------------------------------

    def _size(self, axis: str) -> str:
        return self.sizes.setdefault(axis, f"n_{axis}")

    @property
    def _like(self) -> str:
        name = next((self.names[node] for node in self.program.inputs.values() if node.axes), BORROWED)
        return f"dtype={name}.dtype, device={name}.device"

    def _length(self, axis: str) -> str:
        """The text of an axis's length, from an input that has it; all axes of tokens are as long."""
        known = {
            axis: f"{self.names[node]}.shape[{i - len(node.axes)}]"
            for node in self.program.inputs.values()
            for i, axis in enumerate(node.axes)
        }
        tokens = (text for other, text in known.items() if AXES.index(other) < AXES.index("n"))
        return known[axis] if axis in known else next(tokens, f"{BORROWED}.shape[-2]")


def _reach(node: Map) -> int | None:
    """r, if a value of axes (row, column) is 1, or one of its values, where column < row + r, and 0 elsewhere."""
    places = [value for value in node.values if isinstance(value, Iota)]
    others = [value for value in node.values if not isinstance(value, Iota)]
    if len(node.axes) != 2 or {place.axes for place in places} != {(axis,) for axis in node.axes}:
        return None
    if len(others) > 1 or any(value.axes != node.axes for value in others):
        return None
    symbol = {value: placeholder(i) for i, value in enumerate(node.values)}
    row, column = (symbol[place] for axis in node.axes for place in places if place.axes == (axis,))
    kept = symbol[others[0]] if others else sympy.S.One
    for ahead in (0, 1):
        condition = row - column + ahead
        if node.expression == (functions.Where(condition, kept, sympy.S.Zero) if others else functions.Step(condition)):
            return ahead
    return None


def _bare(name: str) -> str:
    """A value's name without what says where it comes from."""
    return name.rpartition(".")[2]


def _occurs(name: str, lines: Sequence[str], times: int = 1) -> bool:
    return sum(len(re.findall(rf"\b{name}\b", line)) for line in lines) >= times


def aligned(name: str, axes: Sequence[str], target: Sequence[str]) -> str:
    """Indexing that gives a value singleton dimensions for the target's axes it lacks."""
    if tuple(axes) == tuple(target):
        return name
    return f"{name}[..., {', '.join(':' if axis in axes else 'None' for axis in target)}]"


def _dims(node: Node, over: Sequence[str]) -> str:
    dims = [str(node.axes.index(axis) - len(node.axes)) for axis in over]
    return dims[0] if len(dims) == 1 else f"({', '.join(dims)})"


def _flat(text: str, first: Sequence[str], second: Sequence[str]) -> str:
    """A value of axes (..., first, second) as a matrix; without a first axis, of one row."""
    if len(second) > 1:
        text += f".flatten(-{len(second)})"
    if len(first) > 1:
        text += f".flatten(-{len(first) + 1}, -2)"
    return text if first else f"{text}[..., None, :]"


def _tail(name: str, axes: Sequence[str], part: Sequence[str]) -> str:
    start = axes.index(part[0]) - len(axes)
    stop = start + len(part)
    return f"{name}.shape[{start}:{stop if stop else ''}]"


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
