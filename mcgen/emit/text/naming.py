"""Names for the values of tile programs in source text: what their makers call them, or what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from mcgen.ir import check
from mcgen.ir.program import (
    Builder,
    Contract,
    Decay,
    Input,
    Iota,
    Label,
    Map,
    Node,
    Program,
    Reduce,
    Rename,
    Solve,
    placeholder,
)
from mcgen.ir.rebuild import rebuilt


def name_values(program: Program, reserved: Collection[str]) -> Mapping[Node, str]:
    """A name for every node of one program; inputs and outputs have their own, others none that is reserved."""
    return _File([program], reserved).names


def named(programs: Sequence[Program], reserved: Collection[str]) -> list[Program]:
    """The programs of one file, every value with a label: one name a value, whichever of them it is in.

    Values of different programs share a name that both their makers gave them, and no other.
    """
    together = _relabelled(programs, lambda node: node.label)
    file = _File(together, reserved)
    return _relabelled(together, lambda node: Label(file.names[node], _equation(node), node not in file.known))


def _equation(node: Node) -> str:
    return node.label.equation if node.label and not node.label.part else ""


def _relabelled(programs: Sequence[Program], label: Callable[[Node], Label | None]) -> list[Program]:
    """The programs over one set of nodes, so that what is in several of them is one node."""
    b, new = Builder(), {}
    for node in _whole(programs).nodes:
        new[node] = b.call(rebuilt(b, node, new), label(node))
    found = [Program(p.name, {name: new[node] for name, node in p.outputs.items()}) for p in programs]
    if check.is_on():
        for before, after in zip(programs, found, strict=True):
            check.passed(["named"], before, after, new)
    return found


def _whole(programs: Sequence[Program]) -> Program:
    return Program("file", {f"{i} {name}": node for i, p in enumerate(programs) for name, node in p.outputs.items()})


@dataclass(frozen=True)
class _File:
    """The names of a file's values: of inputs and outputs, then those that makers gave, then those of parts and the
    rest."""

    programs: Sequence[Program]
    reserved: Collection[str]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return _whole(self.programs).nodes

    @cached_property
    def names(self) -> Mapping[Node, str]:
        names, taken = dict(self.known), {*self.reserved, *self.known.values()}
        for node in self.nodes:
            if node in names:
                continue
            if isinstance(node, Rename):
                names[node] = names[node.operand] + ("_T" if moves(node) else "")
            else:
                names[node] = _first_free(node.label.name if node.label else self._word(node, names), taken)
                taken.add(names[node])
        return names

    @cached_property
    def known(self) -> Mapping[Node, str]:
        """The names of inputs, of outputs, and of what has been named for what it is."""
        names = dict(self._given)
        held: dict[str, set[int]] = {}
        for node, name in names.items():
            held.setdefault(name, set()).update(self._inside[node])
        for node in self.nodes:
            value = _behind(node)
            if value in names or node.label is None or node.label.part:
                continue
            elsewhere = [name for name, programs in held.items() if programs & self._inside[value]]
            names[value] = name = _first_free(node.label.name, {*self.reserved, *elsewhere})
            held.setdefault(name, set()).update(self._inside[value])
        return names

    @property
    def _given(self) -> Mapping[Node, str]:
        """The names of inputs and outputs; of an output that has several, the first."""
        outputs = [(node, name) for program in self.programs for name, node in program.outputs.items()]
        return {**dict(reversed(outputs)), **{node: node.name for node in self.nodes if isinstance(node, Input)}}

    @cached_property
    def _inside(self) -> Mapping[Node, set[int]]:
        """The programs that each value is in, by number."""
        found: dict[Node, set[int]] = {}
        for number, program in enumerate(self.programs):
            for node in program.nodes:
                found.setdefault(node, set()).add(number)
        return found

    def _word(self, node: Node, names: Mapping[Node, str]) -> str:
        """A word for a value that nobody has named: what it is made of, or the one that it is a part of."""
        found = word(node, names)
        return found if len(found) <= LONGEST else f"{self._whole_of(node)}_part"

    def _whole_of(self, node: Node) -> str:
        """The named value that a value first goes into."""
        while node not in self.known:
            node = self._users[node][0]
        return self.known[node]

    @cached_property
    def _users(self) -> Mapping[Node, list[Node]]:
        found: dict[Node, list[Node]] = {}
        for node in self.nodes:
            for operand in node.operands:
                found.setdefault(operand, []).append(node)
        return found


LONGEST = 30
"""Letters of a name that is put together from others."""


def _first_free(wanted: str, taken: Collection[str]) -> str:
    """A name, or where it is taken, that with a number."""
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}_{count}"
    return name


def moves(node: Rename) -> bool:
    """Whether an axis has another place under its new name."""
    return node.axes.index(node.new) != node.operand.axes.index(node.old)


def _behind(node: Node) -> Node:
    """The value that renamings only give other axes: it has their name."""
    while isinstance(node, Rename):
        node = node.operand
    return node


def word(node: Node, names: Mapping[Node, str]) -> str:
    """A word for a value by what it is made of: products by their factors, runs of a gate by the gate."""
    match node:
        case Input(_, name):
            return name
        case Iota((axis,)):
            return f"at_{axis}"
        case Decay():
            run = "before" if node.exclusive else "run"
            return _with_axes(f"{names[node.gate]}_{run}", node) if node.axes else f"{names[node.gate]}_{run}_all"
        case Contract(_, left, right, _):
            return f"{names[left]}_{names[right]}"
        case Solve(_, _, right, _):
            return f"{names[right]}_solved"
        case Reduce(_, "sum", Map(_, expression, (left, right))) if expression == placeholder(0) * placeholder(1):
            return f"{names[left]}_dot_{names[right]}"
        case Reduce(_, operation, operand, _):
            return f"{names[operand]}_{operation}"
        case Rename(_, operand):
            return names[operand]
        case Map():
            return _function(node, names)
    raise TypeError(type(node).__name__)


def _function(node: Map, names: Mapping[Node, str]) -> str:
    values, expression = node.values, node.expression
    others = [names[value] for value in values if not isinstance(value, Iota)]
    if not values:
        return _with_axes("constant", node)
    if not others:
        return "causal" if expression.subs(dict.fromkeys(expression.free_symbols, 0)) == 1 else "earlier"
    if len(others) < len(values):
        return f"causal_{'_'.join(others)}"
    if expression == placeholder(0):
        return _with_axes(others[0], node)
    return _of_one(expression, others[0]) if len(values) == 1 else _fraction(node, names)


def _of_one(expression: sympy.Expr, name: str) -> str:
    x = placeholder(0)
    if expression.is_Function:
        return f"{expression.func.__name__.lower()}_{name}"
    slope = sympy.diff(expression, x)
    words = {-x: f"minus_{name}", x**2: f"{name}_squared"}
    return words.get(expression) or (f"{name}_scaled" if slope.is_number else f"of_{name}")


def _fraction(node: Map, names: Mapping[Node, str]) -> str:
    """What stands above and below in a function of several values."""
    denominator = sympy.fraction(node.expression)[1]
    below = [names[value] for i, value in enumerate(node.values) if denominator.has(placeholder(i))]
    above = [names[value] for value in node.values if names[value] not in below]
    return "_over_".join("_".join(part) for part in (above, below) if part)


def _with_axes(name: str, node: Node) -> str:
    axes = "".join(axis[0] for axis in node.axes)
    return f"{name}_{axes}" if axes else name
