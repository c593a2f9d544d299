"""Programs with axes too long for a tile, as loops over tiles of these axes.

Values along such an axis exist a tile at a time, inside a loop. A sum over it is complete after the loop; what needs
that sum comes in a later loop. So a program falls into phases, each a loop over the tiles of one long axis:

    level of a phase = how many sums over long axes lie one behind another before it.

Tokens' rows along a hidden axis that took a product to make are stored where a later loop reads them, and so is what a
loop over *another* hidden axis reads (where a layer leads from one to the next). All else is made again in every phase.

Values along no long axis are made between the loops, in as many sections as there are loops and one more. What a
section or a loop reads of another section is stored too, and loaded where it is read: so a loop holds its sums in
registers, and of everything else only what it is at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mcgen.ir.program import AXES, TOKEN_AXES, Contract, Input, Iota, Node, Program, Reduce, topological
from mcgen.passes.schedule import alias

TILES = 3  # sums of a loop that are tiles; of 16 rows on cuda:90, more and fewer had more spilled values in loops
HIDDEN = frozenset(axis for axis in AXES if axis.startswith("h"))
"""The axes between the layers of a memory."""
SEGMENTS = "n"
"""Segments, which are taken one at a time; values along them are made again wherever they are read."""
LONG = HIDDEN | {SEGMENTS}


@dataclass(frozen=True)
class Phase:
    """One loop over tiles of an axis.

    sums     values that are complete after the loop
    rows     values along the axis to be stored for later loops
    outputs  names of the program's outputs that have the axis
    """

    level: int
    axis: str
    sums: tuple[Node, ...]
    rows: tuple[Node, ...]
    outputs: tuple[str, ...]

    @property
    def roots(self) -> tuple[Node, ...]:
        return self.sums + self.rows


@dataclass(frozen=True)
class Section:
    """What is made between two loops, of values along no long axis: before the loop of the same number, or at the end.

    made    these values, operands first
    wanted  those of them, or of earlier ones, that the loop reads
    outputs names of the program's outputs that can be had now and could not before
    """

    made: tuple[Node, ...]
    wanted: tuple[Node, ...]
    outputs: tuple[str, ...]


def long_axes(node: Node) -> frozenset[str]:
    """The long axes along which a value lies."""
    return frozenset(node.axes) & LONG


def hidden_axis(node: Node) -> str | None:
    """The hidden axis that a value lies along, if it is one."""
    (axis, *more) = *(long_axes(node) & HIDDEN), None
    return axis if len(more) == 1 else None


def summed(node: Node) -> frozenset[str]:
    """The long axes that a value is a sum over."""
    return LONG & frozenset(node.over) if isinstance(node, (Contract, Reduce)) else frozenset()


def is_crossing(node: Node) -> bool:
    """Whether a value is made by going from one long axis to another."""
    return bool(long_axes(node)) and bool(summed(node))


def home(node: Node) -> str:
    """The axis of the loop that a value is made in; of two, the later one. "" for what lies along none."""
    axes = long_axes(node) or summed(node)
    return max(axes, key=AXES.index, default="")


@dataclass(frozen=True)
class Phases:
    """The phases of one program."""

    program: Program

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in self.program.nodes if alias(node) is node)

    @cached_property
    def rows(self) -> frozenset[Node]:
        """Values along one hidden axis that are stored: read in a loop over another one, or costly to make again."""
        return self._crossing | frozenset(self._again)

    @cached_property
    def _crossing(self) -> frozenset[Node]:
        """What a loop over another hidden axis reads, and products that lead from one to another."""
        found = {node for node in self.nodes if is_crossing(node)}
        for node in self.nodes:
            for operand in _aliased(node):
                if self._is_elsewhere(node, operand):
                    found |= set(self._kept(operand))
        return frozenset(found)

    def _kept(self, node: Node) -> Iterator[Node]:
        """What of a value is stored: itself, or where it lies along segments too, those of its operands that do not."""
        if isinstance(node, Input):
            return
        if SEGMENTS not in node.axes:
            yield node
            return
        for operand in _aliased(node):
            if hidden_axis(operand):
                yield from self._kept(operand)

    @cached_property
    def _again(self) -> Mapping[Node, int]:
        """Rows that took a product and that a later loop reads again, each with the loop that makes it."""
        first: dict[Node, int] = {}
        again: dict[Node, int] = {}
        for at, phase in enumerate(self._loops):
            seen, stack = set(), self._roots_of(phase)
            while stack:
                node = stack.pop()
                if node in seen or (node in self._crossing and node not in phase.rows):
                    continue
                seen.add(node)
                if node in self._costly and first.setdefault(node, at) < at:
                    again[node] = first[node]
                else:
                    stack += _aliased(node)
        return again

    @cached_property
    def _costly(self) -> frozenset[Node]:
        """Tokens' rows along one hidden axis that took a product."""
        found: set[Node] = set()
        for node in self.nodes:
            is_row = hidden_axis(node) and len(set(node.axes) & TOKEN_AXES) == 1 == len(node.axes) - 1
            if is_row and (isinstance(node, Contract) or found.intersection(_aliased(node))):
                found.add(node)
        return frozenset(found)

    @cached_property
    def levels(self) -> dict[Node, int]:
        """The level of the phase that each value is made in; along no long axis, of the first that may read it."""
        found: dict[Node, int] = {}
        for node in self.nodes:
            level = max((self._after(node, operand, found) for operand in _aliased(node)), default=0)
            found[node] = level
        return found

    def _after(self, node: Node, operand: Node, levels: dict[Node, int]) -> int:
        """The first level at which a node may read an operand."""
        return levels[operand] + (self._is_complete_later(operand) or self._is_elsewhere(node, operand))

    @staticmethod
    def _is_complete_later(node: Node) -> bool:
        return bool(summed(node)) and not long_axes(node)

    @staticmethod
    def _is_elsewhere(node: Node, operand: Node) -> bool:
        """Whether an operand lies along another hidden axis than the loop that reads it."""
        return hidden_axis(operand) not in (None, home(node)) and not isinstance(operand, Input)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """In order."""
        return tuple(
            replace(phase, rows=phase.rows + tuple(node for node, made in self._again.items() if made == at))
            for at, phase in enumerate(self._loops)
        )

    @cached_property
    def _loops(self) -> tuple[Phase, ...]:
        """The phases, each without the rows that others read again. What is stored as an output comes in a loop after
        the one for sums: both at once are too much to hold in registers, and what they share is cheap to make again."""
        roots = [node for node in self.nodes if self._is_complete_later(node) or node in self._crossing]
        roots += [node for node in map(alias, self.program.outputs.values()) if long_axes(node)]
        places = sorted(set(map(self._place, roots)), key=lambda place: (place[0], AXES.index(place[1])))
        loops = [phase for level, axis in places for phase in self._loops_at(level, axis)]
        return tuple(phase for phase in loops if phase.roots or phase.outputs)

    def _place(self, node: Node) -> tuple[int, str]:
        return self.levels[node], home(node)

    def _loops_at(self, level: int, axis: str) -> Iterator[Phase]:
        here = [node for node in self.nodes if self._place(node) == (level, axis)]
        sums = tuple(node for node in here if self._is_complete_later(node))
        rows = tuple(node for node in here if node in self._crossing)
        outputs = {name: alias(node) for name, node in self.program.outputs.items() if long_axes(node)}
        stored = tuple(name for name, node in outputs.items() if self._place(node) == (level, axis))
        first, *others = self._shares(sums)
        yield Phase(level, axis, first, rows, ())
        yield from (Phase(level, axis, some, (), ()) for some in others)
        yield Phase(level, axis, (), (), stored)

    def _roots_of(self, phase: Phase) -> list[Node]:
        return [*phase.roots, *(alias(self.program.outputs[label]) for label in phase.outputs)]

    def _shares(self, sums: Sequence[Node]) -> list[tuple[Node, ...]]:
        """The sums of each loop, TILES of them tiles: they stay in registers throughout, with what they are made of."""
        shares: list[list[Node]] = [[]]
        for node in sums:
            if is_tile(node) and sum(map(is_tile, shares[-1])) == TILES:
                shares.append([])
            shares[-1].append(node)
        return list(map(tuple, shares))

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """One for each phase, before it, and one after the last."""
        done = {node: at + 1 for at, phase in enumerate(self.phases) for node in phase.sums}
        first: dict[Node, int] = {}
        for node in self.nodes:
            first[node] = done.get(node) or max((first[operand] for operand in _aliased(node)), default=0)
        found, outputs = [], {name: alias(node) for name, node in self.program.outputs.items()}
        for at in range(len(self.phases) + 1):
            wanted = tuple(self.read(self.phases[at])) if at < len(self.phases) else ()
            ready = tuple(name for name, node in outputs.items() if first[node] == at and not long_axes(node))
            made = topological([*wanted, *(outputs[name] for name in ready)], _aliased, done)
            done |= dict.fromkeys(made, at)
            found.append(Section(made, wanted, ready))
        return tuple(found)

    def read(self, phase: Phase) -> list[Node]:
        """The values along no long axis that a loop reads."""
        outside = lambda node: not long_axes(node) and node not in phase.sums  # noqa: E731
        loaded = lambda node: node in self.rows and node not in phase.rows  # noqa: E731
        inside = lambda node: () if outside(node) or loaded(node) else _aliased(node)  # noqa: E731
        return [node for node in topological(self._roots_of(phase), inside) if outside(node)]

    @cached_property
    def kept(self) -> tuple[Node, ...]:
        """Values along no long axis that are stored where they are made: another section reads them, or a loop reads
        tiles of them. Numbers stay in registers, and inputs are loaded again."""
        at = {node: i + 1 for i, phase in enumerate(self.phases) for node in phase.sums}
        at |= {node: i for i, section in enumerate(self.sections) for node in section.made}
        found: dict[Node, None] = {}
        for i, section in enumerate(self.sections):
            operands = [alias(operand) for node in section.made for operand in node.operands]
            operands += [alias(self.program.outputs[name]) for name in section.outputs]
            found |= dict.fromkeys(node for node in operands if at[node] != i)
            found |= dict.fromkeys(node for node in section.wanted if at[node] != i or is_tile(node))
        return tuple(node for node in found if node.axes and not is_at_hand(node))


def _aliased(node: Node) -> Iterator[Node]:
    """The operands of a node, whatever axes they have been given."""
    return map(alias, node.operands)


def is_tile(node: Node) -> bool:
    return len(node.axes) > 1


def is_at_hand(node: Node) -> bool:
    """Whether a value is there without being made."""
    return isinstance(node, (Input, Iota))


def cone(roots: Iterable[Node], axis: str) -> tuple[list[Node], list[Node]]:
    """The values along an axis that some values need, operands first, and those along it not that these read."""
    along = lambda node: axis in node.axes or axis in summed(node)  # noqa: E731
    found = topological(map(alias, roots), lambda node: _aliased(node) if along(node) else ())
    return [node for node in found if along(node)], [node for node in found if not along(node)]
