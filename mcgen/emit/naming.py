"""Names for the values of a tile program in source text: what a value is, where that can be said in a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mcgen.ir.program import Contract, Decay, Input, Iota, Map, Node, Program, Reduce, Rename, Solve


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
    axes = "".join(axis[0] for axis in node.axes)
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
            return f"decay_{axes}" if axes else "decay_all"
        case Reduce(_, operation, _, _):
            return f"{operation}_{axes}" if axes else operation
        case Map() | Contract() | Rename():
            return f"x_{axes}" if axes else "x"
    raise TypeError(type(node).__name__)


def name_values(program: Program, reserved: set[str], order: Iterable[Node] | None = None) -> dict[Node, str]:
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
            names.give(node, hint(node, names.names))
    return names.names
