"""Tile programs with long axes as Triton statements: a loop over tiles for each phase (`mcgen.passes.phases`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import sympy

from mcgen.emit.triton.printer import Binding, Printer, aligned, is_tile_product, laid, offset, room, size, zeros
from mcgen.ir.program import Contract, Decay, Input, Map, Node, Program, in_order, placeholder
from mcgen.passes.phases import (
    SEGMENTS,
    Phase,
    Phases,
    Section,
    cone,
    is_at_hand,
    is_crossing,
    is_tile,
    long_axes,
    summed,
)
from mcgen.passes.schedule import alias

BARRIER = "tl.debug_barrier()"
"""Between a loop that stores rows and one that loads them: other threads read what one has written."""


@dataclass(frozen=True)
class Rows:
    """Where values that pass between loops are kept, in the buffer `base`: text that loads, and a statement that
    stores, from where a value begins, a tile of it along a long axis, or of given axes the whole."""

    base: str
    load: Callable[[str, str], str]
    store: Callable[[str, str, str], str]
    load_whole: Callable[[str, tuple[str, ...]], str]
    store_whole: Callable[[str, tuple[str, ...], str], str]


@dataclass
class PhasedPrinter(Printer):
    """Prints one program under one binding, phase by phase. `ragged` are axes that tiles may reach beyond."""

    rows: Rows | None = None
    ragged: frozenset[str] = frozenset()
    phases: Phases = field(init=False)
    have: set[Node] = field(default_factory=set)
    made: set[Node] = field(default_factory=set)
    outer: list[set[Node]] = field(default_factory=list)
    indent: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.phases = Phases(self.program)
        self.added = {node: product for node, product in self.added.items() if self._fusible(product)}
        self.places = {node: f"p_{self.names[node].removeprefix('b_')}" for node, _ in kept_places(self.phases)}

    def _ordered(self) -> list[Node]:
        return list(self.program.nodes)

    def _fusible(self, product: Node) -> bool:
        return not summed(product) and product not in self.phases.rows

    def statements(self) -> list[str]:
        for node, at in kept_places(self.phases):
            self._line(f"{self.places[node]} = {self.rows.base}" + (f" + {at}" if at != "0" else ""))
        for section, phase in zip(self.phases.sections, (*self.phases.phases, None), strict=True):
            self._section(section)
            if phase is not None:
                self._phase(phase)
        return self.lines

    def _section(self, section: Section) -> None:
        """Statements between two loops. What is stored in them is there for the next loop after a barrier."""
        self.runs.clear()
        self._values(node for node in section.wanted if not (is_tile(node) and (node in self.made or is_at_hand(node))))
        for label in section.outputs:
            node = alias(self.program.outputs[label])
            self._values([node])
            self.lines += self.binding.store[label](self.names[node])

    def _nodes(self, labels: Iterable[str]) -> list[Node]:
        return [alias(self.program.outputs[label]) for label in labels]

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def _values(self, nodes: Iterable[Node]) -> None:
        """Statements for values along no long axis, and for what they need."""
        for node in map(alias, nodes):
            if node in self.have:
                continue
            if node not in self.made and not is_at_hand(node):
                operands = [o for o in map(alias, node.operands) if not self._is_folded(o)]
                folded = [p for o in map(alias, node.operands) if self._is_folded(o) for p in map(alias, o.operands)]
                self._values([*operands, *folded])
            self._near(node)

    def _near(self, node: Node) -> None:
        """A value along no long axis as a name: made, or loaded if it has been made elsewhere."""
        if node in self.have:
            return
        self.have.add(node)
        if node in self.made:
            self._line(f"{self.names[node]} = {self.rows.load_whole(self.places[node], laid(node))}")
            return
        self._value(node)
        if not is_at_hand(node):
            self.made.add(node)
            self._keep(node)

    def _keep(self, node: Node) -> None:
        if node in self.places:
            self._line(self.rows.store_whole(self.places[node], laid(node), self.names[node]))

    def _is_folded(self, node: Node) -> bool:
        return node in self.added.values()

    def _value(self, node: Node) -> None:
        name = self.names[node]
        if isinstance(node, Decay) and node.gate not in self.runs:
            self.runs[node.gate] = run = self.names[alias(node.gate)]
            self._line(f"{run}_e, {run}_f, {run}_e1, {run}_f1 = _tile_runs({run})")
        self._line(f"{name} = {self._expression(node)}")

    # -- loops --------------------------------------------------------------------------------------------------------

    def _phase(self, phase: Phase) -> None:
        """A loop. Before it there are vectors in registers, and numbers; after it, its sums and numbers."""
        self._zeros(phase.sums)
        self._line(BARRIER)
        self.have = {node for node in self.have if not is_tile(node)}
        self._open(phase.axis)
        self._line(BARRIER)
        outputs = dict(zip(phase.outputs, self._nodes(phase.outputs), strict=True))
        inside, _ = cone([*phase.roots, *outputs.values()], phase.axis)
        wanted = [node for node in inside if node in phase.roots or node in outputs.values()]
        for node in wanted:
            self._make(node, phase)
            for label in [label for label, output in outputs.items() if output is node and not self._is_square(node)]:
                self._store(label, node)
        self._close()
        self.have = {node for node in self.have if not node.axes} | set(phase.sums)
        self.made |= set(phase.sums)
        for node in phase.sums:
            self._keep(node)

    def _make(self, node: Node, phase: Phase) -> None:
        """A root of a phase, in its loop."""
        if summed(node) and not long_axes(node):
            self._add_up(node, phase.axis)
        elif self._is_square(node):
            self._square(node, phase)
        else:
            self._row(node, phase.axis, fresh=node in phase.rows)
            if node in phase.rows:
                self._line(self.rows.store(self.places[node], phase.axis, self.names[node]))

    def _store(self, label: str, node: Node) -> None:
        for line in self.binding.store[label](self.names[node]):
            self._line(line)

    @staticmethod
    def _is_square(node: Node) -> bool:
        return len(long_axes(node)) == 2

    def _add_up(self, node: Node, axis: str) -> None:
        """A term of a sum that is complete after the loop."""
        inner = summed(node) - {axis} or self._inner_axes(node, axis)
        if inner:
            self._within(inner, node, axis)
            return
        self._rows(list(map(alias, node.operands)), axis)
        self._line(self._accumulated(node))

    def _inner_axes(self, node: Node, axis: str) -> frozenset[str]:
        return frozenset().union(*(long_axes(o) for o in map(alias, node.operands))) - {axis}

    def _accumulated(self, node: Node) -> str:
        name = self.names[node]
        if isinstance(node, Contract) and is_tile_product(node):
            return f"{name} = {self._contract(node, name)}"
        return f"{name} += {self._expression(node)}"

    def _rows(self, nodes: Sequence[Node], axis: str) -> None:
        for node in nodes:
            self._row(node, axis)

    def _row(self, node: Node, axis: str, fresh: bool = False) -> None:
        """A value along the loop's axis, and what it needs along it; `fresh` makes one that later loops load."""
        node = alias(node)
        if node in self.have or (len(long_axes(node)) == 2 and isinstance(node, Input)):
            return
        if not long_axes(node):
            self._near(node)
            return
        if self._is_folded(node):
            self._rows(node.operands, axis)
            return
        stored = node in self.phases.rows and not fresh
        if is_crossing(node) and not stored:
            self._cross(node, axis)
        else:
            if not stored:
                self._rows(node.operands, axis)
            self._made(node, stored)
        self.have.add(node)

    def _made(self, node: Node, stored: bool) -> None:
        if stored:
            self._line(f"{self.names[node]} = {self.rows.load(self.places[node], *long_axes(node))}")
        else:
            self._line(f"{self.names[node]} = {self._expression(node)}")

    def _cross(self, node: Node, axis: str) -> None:
        """A product that leads from other long axes to the loop's: a loop over their tiles."""
        self._zeros([node])
        self._within(summed(node), node, axis)

    def _square(self, node: Node, phase: Phase) -> None:
        """An output along two long axes: its tiles, over the other axis."""
        self._within(long_axes(node) - {phase.axis}, node, phase.axis)

    def _within(self, others: Iterable[str], root: Node, axis: str) -> None:
        """Loops over the tiles of other axes inside the loop over `axis`: a sum added up, or an output stored."""
        others = in_order(others)
        for node in self._outside(root, others):
            if axis in long_axes(node):
                self._row(node, axis)
        for other in others:
            self._open(other)
        is_sum = bool(summed(root) & set(others))
        self._inner(list(map(alias, root.operands)) if is_sum else [root])
        if is_sum:
            self._line(self._accumulated(root))
        for label, output in self.program.outputs.items():
            if alias(output) is root and not is_sum:
                self._store(label, root)
        for _ in others:
            self._close()

    def _outside(self, root: Node, others: Sequence[str]) -> list[Node]:
        """What a value made in loops over other axes reads of what lies along none of them."""
        found, seen, stack = [], set(), [root]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if not (set(others) & (set(node.axes) | summed(node))):
                found.append(node)
            elif node is root or node not in self.phases.rows:
                stack += map(alias, node.operands)
        return found

    def _inner(self, nodes: Sequence[Node]) -> None:
        """Values in a loop inside another."""
        for node in map(alias, nodes):
            if node in self.have:
                continue
            if not long_axes(node):
                self._near(node)
                continue
            if self._is_folded(node):
                self._inner(node.operands)
                continue
            stored = node in self.phases.rows
            if not stored:
                self._inner(node.operands)
            self._made(node, stored)
            self.have.add(node)

    def _zeros(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self._line(f"{self.names[node]} = {zeros(laid(node))}")

    def _open(self, axis: str) -> None:
        """A loop; what is made in it is there in it alone."""
        self.outer.append(set(self.have))
        if axis == SEGMENTS:
            self._line("for i_c in range(first, i_s):")
            self.indent += 1
            self._line("i_cached = i_bh.to(tl.int64) * n_segments + i_c")
            return
        self._line(f"for i_{axis} in range(n_tiles):")
        self.indent += 1
        self._line(f"{offset(axis)} = i_{axis} * BF + tl.arange(0, BF)")
        self._line(f"m_{axis} = {offset(axis)} < F")

    def _close(self) -> None:
        self.indent -= 1
        self.have = self.outer.pop()

    # -- values -------------------------------------------------------------------------------------------------------

    def _map(self, node: Map) -> str:
        text = super()._map(node)
        beyond = [axis for axis in laid(node) if axis in self.ragged and not _vanishes(node, axis)]
        masks = " & ".join(aligned(f"m_{axis}", (axis,), laid(node)) for axis in beyond)
        return f"tl.where({masks}, {text}, 0.0)" if masks else text


def _vanishes(node: Map, axis: str) -> bool:
    """Whether a function is 0 wherever its values along an axis are."""
    zeros = {placeholder(i): sympy.S.Zero for i, value in enumerate(node.values) if axis in value.axes}
    return bool(zeros) and node.expression.subs(zeros) == 0


def kept_places(phases: Phases) -> Iterator[tuple[Node, str]]:
    """Where what passes between loops is kept, as the text of an offset: rows along long axes first, then the whole."""
    before: Counter[str] = Counter()
    for node in (node for node in phases.nodes if node in phases.rows):
        yield node, room(before)
        before["BT * F"] += 1
    for node in phases.kept:
        yield node, room(before)
        before[" * ".join(map(size, laid(node)))] += 1


def phased_statements(program: Program, binding: Binding, rows: Rows, ragged: Iterable[str]) -> list[str]:
    """The program's statements, as lines of text. The kernel has BF and F, and `n_tiles` of a long axis."""
    return PhasedPrinter(program, binding, rows=rows, ragged=frozenset(ragged)).statements()
