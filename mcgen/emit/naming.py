"""Names for the values of tile programs in source text: what their makers call them, or what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import sympy

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


@dataclass
class Names:
    """Hands out one name a value; a name taken gets a number."""

    taken: set[str]
    names: dict[Node, str] = field(default_factory=dict)

    def give(self, node: Node, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        self.names[node] = name
        return name


def name_values(program: Program, reserved: set[str], order: Iterable[Node] | None = None) -> dict[Node, str]:
    """A name for every node of one program; an output that is not an input is called by its output's name.

    Values that ask for one name are numbered in `order`, the program's own where there is none.
    """
    names = Names(set(reserved))
    outputs = {node: label for label, node in reversed(program.outputs.items()) if not isinstance(node, Input)}
    names.taken |= set(outputs.values())
    for node in program.nodes if order is None else order:
        if node in outputs:
            names.names[node] = outputs[node]
        else:
            names.give(node, node.label.name if node.label else word(node, names.names))
    return names.names


def named(programs: Sequence[Program], reserved: set[str]) -> list[Program]:
    """The programs of one file, every value with a label: one name a value, whichever of them it is in.

    Values of different programs share a name that both their makers gave them, and no other.
    """
    together = _relabelled(programs, lambda node: node.label)
    labels = _File(together, reserved).labels
    return _relabelled(together, labels.get)


def _relabelled(programs: Sequence[Program], label: Callable[[Node], Label | None]) -> list[Program]:
    """The programs over one set of nodes, so that what is in several of them is one node."""
    b, new = Builder(), {}
    for node in _whole(programs).nodes:
        new[node] = b.call(rebuilt(b, node, new), label(node))
    return [Program(p.name, {name: new[node] for name, node in p.outputs.items()}) for p in programs]


def _whole(programs: Sequence[Program]) -> Program:
    return Program("file", {f"{i} {name}": node for i, p in enumerate(programs) for name, node in p.outputs.items()})


@dataclass(frozen=True)
class _File:
    """The names of a file's values: of outputs first, then those that makers gave, then those of parts and the rest."""

    programs: Sequence[Program]
    reserved: set[str]

    @cached_property
    def labels(self) -> Mapping[Node, Label]:
        names = self._known
        labels = {node: self._called(node, name) for node, name in names.items() if not isinstance(node, Input)}
        more = Names({*self.reserved, *names.values()}, names)
        for node in _whole(self.programs).nodes:
            if node in names:
                continue
            if isinstance(node, Rename):
                names[node] = names[node.operand] + ("_T" if moves(node) else "")
            else:
                more.give(node, node.label.name if node.label else self._part(node, names))
            labels[node] = Label(names[node], part=True)
        return labels

    @cached_property
    def _known(self) -> dict[Node, str]:
        """The names of inputs, of outputs, and of what has been named for what it is."""
        names: dict[Node, str] = {}
        held: dict[str, list[set[int]]] = {}
        for node, wanted in self._wanted:
            name, count = wanted, 1
            while any(others & self._inside[node] for others in held.get(name, ())) or name in self.reserved:
                count += 1
                name = f"{wanted}_{count}"
            names[node] = name
            held.setdefault(name, []).append(self._inside[node])
        return names

    @property
    def _wanted(self) -> Iterator[tuple[Node, str]]:
        """Values and what they are to be called, those first that come first to their name."""
        nodes, seen = _whole(self.programs).nodes, set()
        found = [(node, node.name) for node in nodes if isinstance(node, Input)]
        found += [(node, name) for program in self.programs for name, node in program.outputs.items()]
        found += [(_behind(node), node.label.name) for node in nodes if node.label and not node.label.part]
        for node, name in found:
            if node not in seen:
                seen.add(node)
                yield node, name

    @cached_property
    def _inside(self) -> Mapping[Node, set[int]]:
        """The programs that each value is in, by number."""
        found: dict[Node, set[int]] = {}
        for number, program in enumerate(self.programs):
            for node in program.nodes:
                found.setdefault(node, set()).add(number)
        return found

    def _called(self, node: Node, name: str) -> Label:
        return Label(name, node.label.equation if node.label else "")

    def _part(self, node: Node, names: Mapping[Node, str]) -> str:
        """A word for a value that nobody has named: what it is made of, or the one that it is a part of."""
        found = word(node, names)
        return found if len(found) <= LONGEST else f"{self._whole_of(node, names)}_part"

    def _whole_of(self, node: Node, names: Mapping[Node, str]) -> str:
        """The named value that a value first goes into."""
        while node not in names:
            node = self._users[node][0]
        return names[node]

    @cached_property
    def _users(self) -> Mapping[Node, list[Node]]:
        found: dict[Node, list[Node]] = {}
        for node in _whole(self.programs).nodes:
            for operand in node.operands:
                found.setdefault(operand, []).append(node)
        return found


LONGEST = 30
"""Letters of a name that is put together from others."""


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
    if len(values) == 1:
        function = expression.func.__name__.lower() if expression.is_Function else ""
        return f"{function}_{others[0]}" if function else f"{others[0]}_scaled"
    return _fraction(node, names)


def _fraction(node: Map, names: Mapping[Node, str]) -> str:
    """What stands above and below in a function of several values."""
    denominator = sympy.fraction(node.expression)[1]
    below = [names[value] for i, value in enumerate(node.values) if denominator.has(placeholder(i))]
    above = [names[value] for value in node.values if names[value] not in below]
    return "_over_".join("_".join(part) for part in (above, below) if part)


def _with_axes(name: str, node: Node) -> str:
    axes = "".join(axis[0] for axis in node.axes)
    return f"{name}_{axes}" if axes else name
