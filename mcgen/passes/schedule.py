"""In what order a program's values are computed where tiles are registers: as few tiles alive at once as can be had.

Sums of several tiles become chains, so that each term may be added as it comes. Then a beam search over orders keeps
those whose peak of live tiles is lowest. Inputs, and values that have no tile behind them, come right before their
first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mcgen.ir import check
from mcgen.ir.program import Builder, Contract, Input, Map, Node, Program, Rename, placeholder, topological
from mcgen.ir.rebuild import rebuilt, rewritten

WIDTH = 12
"""Orders kept at every step of the search."""


def chained(program: Program) -> Program:
    """Sums of more than two terms as sums of two: x + y + z -> (x + y) + z, where the values are tiles."""
    make = lambda b, node, new: (_chain if _is_long_sum(node) else rebuilt)(b, node, new)  # noqa: E731
    return rewritten(program, make, by="chained")


def _is_long_sum(node: Node) -> bool:
    return isinstance(node, Map) and len(node.axes) > 1 and node.expression.is_Add and len(node.expression.args) > 2


def _chain(b: Builder, node: Map, new: Mapping[Node, Node]) -> Node:
    values = {placeholder(i): new[value] for i, value in enumerate(node.values)}
    first, *others = node.expression.as_ordered_terms()
    total, symbol = b.map(first, values) if not first.is_Symbol else values[first], placeholder(len(values))
    for term in others:
        total = b.map(symbol + term, {**values, symbol: total})
    return b.broadcast(total, node.axes)


def scheduled(
    program: Program, held: Collection[str] = (), kept: Collection[str] = (), streamed: Collection[Node] = ()
) -> list[Node]:
    """The program's nodes in an order to compute them.

    `held` names inputs that lie in registers from the start, `kept` outputs that stay there to the end; inputs in
    `streamed` are loaded piece by piece.
    """
    order = _Search(program, frozenset(held), frozenset(kept), frozenset(streamed)).order()
    if check.is_on():
        check.ordered(program, order)
    return order


def alias(node: Node) -> Node:
    """The value that a renaming only gives another axis to, in the same place."""
    while isinstance(node, Rename) and node.axes.index(node.new) == node.operand.axes.index(node.old):
        node = node.operand
    return node


def added(program: Program) -> dict[Node, Contract]:
    """Sums of two tiles one of which is a product that nothing else reads: it may be added as it is made."""
    users = Counter(alias(operand) for node in program.nodes if alias(node) is node for operand in node.operands)
    users.update(map(alias, program.outputs.values()))
    found = {}
    for node in program.nodes:
        if isinstance(node, Map) and node.expression == placeholder(0) + placeholder(1) and len(node.axes) == 2:
            products = [value for value in map(alias, reversed(node.values)) if is_product(value) and users[value] == 1]
            if products and all(value.axes == node.axes for value in node.values):
                found[node] = products[0]
    return found


def streamable(program: Program, axis: str, held: Collection[str]) -> dict[Node, tuple[Input, Input]]:
    """Products summed over a whole axis whose operands are inputs that nothing else reads: they need no whole tile."""
    found = {node: node.operands for node in program.nodes if is_product(node) and node.over == (axis,)}
    others = {operand for node in program.nodes if node not in found for operand in node.operands}
    others |= {node for node in program.inputs.values() if node.name in held}
    loaded = lambda node: isinstance(node, Input) and node not in others  # noqa: E731
    return {node: operands for node, operands in found.items() if all(map(loaded, operands))}


def is_product(node: Node) -> bool:
    """Whether a node is a product of two matrices: one axis summed, one left of each."""
    if not isinstance(node, Contract) or len(node.over) > 1:
        return False
    return all(len(tile.axes) == 2 for tile in (node, node.left, node.right))


class _State(NamedTuple):
    """An order so far, of nodes that have tiles: how much lived at most and in all, by which it is judged; what is
    computed, and what lives. Nodes are numbers here, and sets of them numbers too, whose bits they are."""

    peak: float
    total: float
    order: tuple[int, ...]
    done: int
    live: int


@dataclass
class _Search:
    """What an order is sought for: `heavy` nodes, those that have tiles, numbered from 0, and after them loaded tiles.

    Of each heavy node, by number: `needs`, the tiles that it reads; `awaited`, those of them to be computed before;
    `brought`, what lives that did not before: itself, and those of them that are loaded. Of every node, `users`; one
    that stays has one that is never done. `unread` have none.
    """

    program: Program
    held: frozenset[str]
    kept: frozenset[str]
    streamed: frozenset[Node]

    def __post_init__(self) -> None:
        products = set(added(self.program).values())
        behind = _with_tiles(self.program.nodes)
        nodes = [node for node in self.program.nodes if alias(node) is node and node not in products]
        self.heavy = [node for node in nodes if node in behind and not isinstance(node, Input)]
        self.numbers = {node: at for at, node in enumerate(self.heavy)}
        computed = _bits(range(len(self.heavy)))
        heavy = frozenset(self.heavy)
        self.needs = [self._numbered(self._tiles(node, heavy)) for node in self.heavy]
        self.start = _bits(
            self._numbered(n for n in self.program.inputs.values() if n.name in self.held and _is_tile(n))
        )
        self.awaited = [_bits(needs) & computed for needs in self.needs]
        self.brought = [1 << at | _bits(needs) & ~computed for at, needs in enumerate(self.needs)]
        self.users = self._users()
        self.unread = _bits(at for at, users in enumerate(self.users) if not users)
        self.tiles = _bits(at for at, node in enumerate(self.heavy) if _is_tile(node))
        self.vectors = computed & ~self.tiles
        self.loaded = _bits(self.numbers.values()) & ~computed

    def _numbered(self, nodes: Iterable[Node]) -> list[int]:
        return [self.numbers.setdefault(node, len(self.numbers)) for node in dict.fromkeys(nodes)]

    def _users(self) -> list[int]:
        staying = {alias(node) for name, node in self.program.outputs.items() if name in self.kept}
        users = [1 << len(self.numbers) if node in staying else 0 for node in self.numbers]
        for at, needs in enumerate(self.needs):
            for number in needs:
                users[number] |= 1 << at
        return users

    def _tiles(self, node: Node, heavy: Collection[Node]) -> Iterator[Node]:
        """The heavy nodes and loaded tiles that a node reads, through values that are neither."""
        for operand in map(alias, node.operands):
            loaded = isinstance(operand, Input) and _is_tile(operand) and operand not in self.streamed
            if operand in heavy or loaded:
                yield operand
            else:
                yield from self._tiles(operand, heavy)

    def order(self) -> list[Node]:
        states = [_State(0.0, 0.0, (), 0, self.start)]
        for _ in self.heavy:
            found: dict[int, _State] = {}
            for state in states:
                for at in self._ready(state.done):
                    after = self._after(state, at)
                    found[after.done] = min(after, found.get(after.done, after))
            states = sorted(found.values())[:WIDTH]
        heavy = [self.heavy[at] for at in states[0].order]
        return list(topological([*heavy, *self.program.outputs.values()]))  # what is light right before its first use

    def _ready(self, done: int) -> Iterator[int]:
        return (at for at, awaited in enumerate(self.awaited) if not (done >> at & 1 or awaited & ~done))

    def _after(self, state: _State, at: int) -> _State:
        done, during = state.done | 1 << at, state.live | self.brought[at]
        over = _bits(number for number in self.needs[at] if not self.users[number] & ~done)
        size = self._size(during)
        order = (*state.order, at)
        return _State(max(state.peak, size), state.total + size, order, done, during & ~(over | self.unread))

    def _size(self, live: int) -> float:
        """Of a tile 1, of a loaded one half, since it mostly keeps the input's type; vectors are next to nothing."""
        tiles, loaded, vectors = ((live & kind).bit_count() for kind in (self.tiles, self.loaded, self.vectors))
        return tiles + loaded / 2 + vectors / 64


def _with_tiles(nodes: Iterable[Node]) -> set[Node]:
    """The nodes that are tiles or have some behind them, of nodes that come after their operands."""
    found: set[Node] = set()
    for node in nodes:
        if _is_tile(node) or not found.isdisjoint(node.operands):
            found.add(node)
    return found


def _is_tile(node: Node) -> bool:
    return len(node.axes) > 1


def _bits(numbers: Iterable[int]) -> int:
    """A set of numbers, each once, as bits."""
    return sum(1 << number for number in numbers)
