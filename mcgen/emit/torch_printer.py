"""Tile programs as torch source: a function of tensors whose last dimensions are a value's axes, in order.

Whatever dimensions stand before those (batch, head, segments in parallel) are carried along by broadcasting.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence

from mcgen.emit.naming import name_values
from mcgen.emit.scalar import TORCH
from mcgen.ir.program import AXES, Contract, Decay, Input, Iota, Map, Node, Program, Reduce, Rename, Solve, placeholder

HELPERS = ("_runs", "_runs_from", "_runs_to", "_spread")
RESERVED = {"F", "math", "torch", "others", "_", *HELPERS, *(f"n_{axis}" for axis in AXES)}


def function(program: Program, name: str, docstring: str) -> str:
    """The program as a Python function of its inputs by name; it ignores what it does not need, and returns a dict."""
    names = name_values(program, RESERVED)
    taken = [label for label, node in program.inputs.items() if names[node] == label]
    renamed = {label: names[node] for label, node in program.inputs.items() if names[node] != label}
    rest = "others" if renamed else "_"
    lines = [f"def {name}(*, {', '.join([*taken, f'**{rest}'])}):", f'    """{docstring}"""']
    lines += [f'    {text} = others["{label}"]' for label, text in renamed.items()]
    lines += [f"    {line}" for line in statements(program, names)]
    outputs = [f'        "{label}": {names[node]},' for label, node in program.outputs.items()]
    return "\n".join([*lines, "    return {", *outputs, "    }"])


def statements(program: Program, names: Mapping[Node, str]) -> list[str]:
    sizes = _Sizes(program, names)
    lines: list[str] = []
    tiles = {node.gate for node in program.nodes if isinstance(node, Decay) and node.row and node.column}
    runs: dict[tuple[str, Node], str] = {}
    for node in program.nodes:
        if isinstance(node, Input):
            continue
        if isinstance(node, Decay):
            helper = _table(node, tiles)
            if (helper, node.gate) not in runs:
                table = _unused(names[node.gate] + helper, {*names.values(), *runs.values()})
                lines.append(f"{table} = {helper}({names[node.gate]})")
                runs[helper, node.gate] = table
            value = _run(node, helper, runs[helper, node.gate])
        else:
            value = _expression(node, names, sizes)
        lines.append(f"{names[node]} = {value}")
    return [*sizes.lines(), *lines]


def _table(node: Decay, tiles: Collection[Node]) -> str:
    """The helper whose table of products holds a node's: one of all runs, where some node wants a tile of them."""
    if node.gate in tiles:
        return "_runs"
    return "_runs_from" if node.row else "_runs_to"


def _run(node: Decay, helper: str, table: str) -> str:
    """The part of the table that a node is: rows are where runs end, columns where they begin."""
    row = ":-1" if node.exclusive else "1:" if node.row else "-1"
    column = "1:" if node.column else "0"
    part = {"_runs": f"{row}, {column}", "_runs_from": row, "_runs_to": column}[helper]
    return f"{table}[..., {part}]" + (".mT" if node.row and node.axes == (node.column, node.row) else "")


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


class _Sizes:
    """Lengths of axes that some statement has to name, each taken from an input that has the axis."""

    def __init__(self, program: Program, names: Mapping[Node, str]) -> None:
        self._source = {
            axis: f"{names[node]}.shape[{i - len(node.axes)}]"
            for node in program.inputs.values()
            for i, axis in enumerate(node.axes)
        }
        self._like = next(names[node] for node in program.inputs.values() if node.axes)
        self._used: dict[str, None] = {}

    def __getitem__(self, axis: str) -> str:
        self._used[axis] = None
        return f"n_{axis}"

    @property
    def like(self) -> str:
        return f"dtype={self._like}.dtype, device={self._like}.device"

    def lines(self) -> list[str]:
        token = next((source for axis, source in self._source.items() if AXES.index(axis) < AXES.index("n")), None)
        return [f"n_{axis} = {self._source.get(axis, token)}" for axis in self._used]


def _expression(node: Node, names: Mapping[Node, str], sizes: _Sizes) -> str:
    match node:
        case Iota((axis,)):
            return f"torch.arange({sizes[axis]}, {sizes.like})"
        case Map():
            return _map(node, names, sizes)
        case Contract():
            return _contract(node, names)
        case Reduce(_, operation, operand, over):
            dims = ", ".join(str(operand.axes.index(axis) - len(operand.axes)) for axis in over)
            method = {"sum": "sum", "max": "amax"}[operation]
            return f"{names[operand]}.{method}(({dims}))" if len(over) > 1 else f"{names[operand]}.{method}({dims})"
        case Rename(axes, operand, old, new):
            moved = axes.index(new) != operand.axes.index(old)
            return f"{names[operand]}.mT" if moved else names[operand]
        case Solve(_, matrix, right, transposed):
            system, upper = f"-{names[matrix]}{'.mT' if transposed else ''}", str(transposed)
            return f"torch.linalg.solve_triangular({system}, {names[right]}, upper={upper}, unitriangular=True)"
    raise TypeError(type(node).__name__)


def aligned(name: str, axes: Sequence[str], target: Sequence[str]) -> str:
    """Indexing that gives a value singleton dimensions for the target's axes it lacks."""
    if tuple(axes) == tuple(target):
        return name
    return f"{name}[..., {', '.join(':' if axis in axes else 'None' for axis in target)}]"


def _map(node: Map, names: Mapping[Node, str], sizes: _Sizes) -> str:
    values = {placeholder(i): aligned(names[v], v.axes, node.axes) for i, v in enumerate(node.values)}
    if not node.values:
        value = TORCH.text(node.expression, values)
        shape = ", ".join(sizes[axis] for axis in node.axes) + "," * (len(node.axes) == 1)
        return f"torch.full(({shape}), {value}, {sizes.like})" if node.axes else value
    text = TORCH.text(node.expression, values)
    covered = {axis for value in node.values for axis in value.axes}
    if covered == set(node.axes):
        return text
    spread = ", ".join(sizes[axis] if axis not in covered else "-1" for axis in node.axes)
    whole = text if node.expression.is_Symbol else f"({text})"
    return f"_spread({whole}, {spread})"


def _contract(node: Contract, names: Mapping[Node, str]) -> str:
    left, right, over = node.left, node.right, node.over
    shared = set(left.axes) & set(right.axes) - set(over)
    rows, columns = [a for a in left.axes if a not in right.axes], [a for a in right.axes if a not in left.axes]
    if not rows or not columns:
        x, y = (aligned(names[side], side.axes, _union(left, right)) for side in (left, right))
        dims = [_union(left, right).index(axis) - len(_union(left, right)) for axis in over]
        return f"({x} * {y}).sum({dims[0] if len(dims) == 1 else tuple(dims)})"
    x, y = _matrix(left, rows, over, names), _matrix(right, over, columns, names)
    several = len(rows) > 1 or len(columns) > 1
    apart = (*rows, *columns) != node.axes or (len(rows) > 1 and len(columns) > 1)
    if shared or x is None or y is None or (several and apart):
        letter = dict(zip(_union(left, right), string.ascii_letters, strict=False))
        x, y, result = ("..." + "".join(letter[a] for a in part) for part in (left.axes, right.axes, node.axes))
        formula = f"{x},{y}->{result}"
        return f'torch.einsum("{formula}", {names[left]}, {names[right]})'
    text = f"{x} @ {y}"
    if len(rows) > 1:
        return f"({text}).unflatten(-2, {_tail(names[left], left.axes, rows)})"
    if len(columns) > 1:
        return f"({text}).unflatten(-1, {_tail(names[right], right.axes, columns)})"
    return text if (*rows, *columns) == node.axes else f"({text}).mT"


def _tail(name: str, axes: Sequence[str], part: Sequence[str]) -> str:
    start = axes.index(part[0]) - len(axes)
    stop = start + len(part)
    return f"{name}.shape[{start}:{stop if stop else ''}]"


def _union(left: Node, right: Node) -> tuple[str, ...]:
    return tuple(axis for axis in AXES if axis in left.axes or axis in right.axes)


def _matrix(node: Node, rows: Sequence[str], columns: Sequence[str], names: Mapping[Node, str]) -> str | None:
    """The value as a matrix of `rows` by `columns`, several axes made one each; None where they are interleaved."""
    rows, columns = tuple(rows), tuple(columns)
    if node.axes == rows + columns:
        first, second = rows, columns
    elif node.axes == columns + rows:
        first, second = columns, rows
    else:
        return None
    text = names[node]
    if len(second) > 1:
        text += f".flatten(-{len(second)})"
    if len(first) > 1:
        text += f".flatten(-{len(first) + 1}, -2)"
    return text if first == rows else f"{text}.mT"
