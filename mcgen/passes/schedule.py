"""In what order a program's values are computed where tiles are registers: as few tiles alive at once as can be had.

Sums of several tiles become chains, so that each term may be added as it comes. Then a beam search over orders keeps
those whose peak of live tiles is lowest. Inputs, and values that have no tile behind them, come right before their
first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from mcgen.ir.program import Builder, Contract, Input, Map, Node, Program, Rename, placeholder
from mcgen.ir.rebuild import rebuilt, rewritten

WIDTH = 12
"""Orders kept at every step of the search."""


def chained(program: Program) -> Program:
    """Sums of more than two terms as sums of two: x + y + z -> (x + y) + z, where the values are tiles."""
    return rewritten(program, lambda b, node, new: (_chain if _is_long_sum(node) else rebuilt)(b, node, new))


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
    return _Search(program, frozenset(held), frozenset(kept), frozenset(streamed)).order()


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


@dataclass(frozen=True)
class _State:
    """An order so far, of nodes that have tiles: what is computed, what lives, and how much lived at most."""

    order: tuple[Node, ...] = ()
    done: frozenset[Node] = frozenset()
    live: frozenset[Node] = frozenset()
    peak: float = 0.0
    total: float = 0.0


@dataclass
class _Search:
    program: Program
    held: frozenset[str]
    kept: frozenset[str]
    streamed: frozenset[Node]
    users: dict[Node, set[Node]] = field(default_factory=dict)
    needs: dict[Node, tuple[Node, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        products = set(added(self.program).values())
        nodes = [node for node in self.program.nodes if alias(node) is node and node not in products]
        self.heavy = [node for node in nodes if self._is_heavy(node)]
        heavy = set(self.heavy)
        for node in self.heavy:
            self.needs[node] = tuple(dict.fromkeys(self._tiles(node, heavy)))
            for operand in self.needs[node]:
                self.users.setdefault(operand, set()).add(node)
        self.rank = {node: i for i, node in enumerate(self.heavy)}
        self.staying = {alias(node) for name, node in self.program.outputs.items() if name in self.kept}

    def _is_heavy(self, node: Node) -> bool:
        """Whether a tile lies behind a value, itself included; an input's is loaded when it is needed."""
        return not isinstance(node, Input) and any(len(below.axes) > 1 for below in _below(node))

    def _tiles(self, node: Node, heavy: Collection[Node]) -> Iterator[Node]:
        """The heavy nodes and loaded tiles that a node reads, through values that are neither."""
        for operand in map(alias, node.operands):
            loaded = isinstance(operand, Input) and len(operand.axes) > 1 and operand not in self.streamed
            if operand in heavy or loaded:
                yield operand
            else:
                yield from self._tiles(operand, heavy)

    def order(self) -> list[Node]:
        start = frozenset(n for n in self.program.inputs.values() if n.name in self.held and len(n.axes) > 1)
        states = [_State(live=start)]
        for _ in self.heavy:
            found: dict[frozenset[Node], _State] = {}
            for state in states:
                for node in self._ready(state):
                    after = self._after(state, node)
                    known = found.get(after.done)
                    if known is None or self._cost(after) < self._cost(known):
                        found[after.done] = after
            states = sorted(found.values(), key=self._cost)[:WIDTH]
        return self._completed(states[0].order)

    def _cost(self, state: _State) -> tuple[float, float, list[int]]:
        return state.peak, state.total, [self.rank[node] for node in state.order]

    def _ready(self, state: _State) -> Iterator[Node]:
        for node in self.heavy:
            if node not in state.done and all(n in state.done or isinstance(n, Input) for n in self.needs[node]):
                yield node

    def _after(self, state: _State, node: Node) -> _State:
        done = state.done | {node}
        during = state.live | {n for n in self.needs[node] if isinstance(n, Input)} | {node}
        size = sum(map(_size, during))
        live = frozenset(n for n in during if n in self.staying or self.users.get(n, set()) - done)
        return _State((*state.order, node), done, live, max(state.peak, size), state.total + size)

    def _completed(self, heavy: tuple[Node, ...]) -> list[Node]:
        """The order with everything light put in before its first use."""
        order: dict[Node, None] = {}
        for node in [*heavy, *self.program.outputs.values()]:
            _visit(node, order)
        return list(order)


def _visit(node: Node, order: dict[Node, None]) -> None:
    if node not in order:
        for operand in node.operands:
            _visit(operand, order)
        order[node] = None


def _below(node: Node) -> Iterator[Node]:
    yield node
    for operand in node.operands:
        yield from _below(operand)


def _size(node: Node) -> float:
    """Of a tile 1, of a loaded one half, since it mostly keeps the input's type; vectors are next to nothing."""
    if len(node.axes) < 2:
        return 1 / 64
    return 0.5 if isinstance(node, Input) else 1.0
