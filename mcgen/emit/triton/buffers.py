"""How a deep memory's state, and rows between kernels, lie in buffers: the text of tiles' addresses and masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mcgen.emit.triton.phases import Rows, phased_statements
from mcgen.emit.triton.printer import Binding, offset, room, size
from mcgen.emit.triton.tensors import POOLS, Store, Tensors, both, without_idle
from mcgen.ir.layers import sizes
from mcgen.ir.program import Program
from mcgen.plan.configurations import tile
from mcgen.plan.streamed import StreamedPlan
from mcgen.plan.streamed_passes import width_of
from mcgen.symbolic.recurrence import MEMORY

POINTERS = {
    (False, False): "p_state",
    (False, True): "p_next",
    (True, True): "p_d_next",
    (True, False): "p_d_state",
}
"""The buffer of a state or its gradient, before a step or after it."""
Load = Callable[[str], str | None]


@dataclass(frozen=True)
class Buffers:
    """The buffers of one plan, and programs bound to them.

    `more` says how inputs are loaded that only some kernels have, and `anchors` whether the memory at a gradient
    chunk's start is read from a record, as `anchor_<layer>`.
    """

    plan: StreamedPlan
    tensors: Tensors
    more: Load = field(default=lambda name: None)
    anchors: bool = False

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Where each part of the state begins in a buffer, as text."""
        found: dict[str, str] = {}
        before: Counter[str] = Counter()
        for name, axes in self.plan.state.items():
            found[name] = room(before)
            before[" * ".join(map(width_of, axes))] += 1
        return found

    def layout(self) -> list[str]:
        """Each part of the state with its shape, and where it begins."""
        shapes = {name: ", ".join(map(str, self.plan.shape(name))) for name in self.plan.state}
        return [f"{name} ({shapes[name]}) at {at}" for name, at in self.plan.places.items()]

    @cached_property
    def ragged(self) -> frozenset[str]:
        """Axes that tiles may reach beyond."""
        return frozenset(axis for axis, size in sizes(self.plan.meaning.spec).items() if size != tile(size))

    def load(self, name: str) -> str:
        """The text that loads an input's tile."""
        if name == "share":
            return "1.0"  # d_y comes multiplied by it
        if name == "pools":
            return POOLS
        if name in self.plan.between:
            return loaded(*row(name, self.plan.between[name]))
        if (found := self.more(name)) is not None:
            return found
        return loaded(*self.place(name)) if self.holds(name) else self.tensors.load(name)

    def holds(self, name: str) -> bool:
        """Whether an input or output is a part of a buffer."""
        return self._part(name) is not None

    def _part(self, name: str) -> tuple[str, str] | None:
        """The buffer that holds an input or output, and the part of the state as which it lies there."""
        part = name.removeprefix("d_")
        if self.anchors and part.startswith("anchor_"):
            return "p_d_anchor" if name.startswith("d_") else "p_anchor", part.replace("anchor", MEMORY, 1)
        if part.startswith("cached_"):
            return f"{name.rpartition('_')[0]} + i_cached * MEMORY", part.replace("cached", MEMORY, 1)
        part = part.removesuffix("_next")
        if part not in self.plan.state:
            return None
        return POINTERS[name.startswith("d_"), name.endswith("_next")], part

    def place(self, name: str) -> tuple[str, str]:
        """The addresses and the mask of the tile of a buffer's part."""
        pointer, part = self._part(name)
        return self.part(part, pointer)

    def part(self, part: str, pointer: str = "") -> tuple[str, str]:
        """The addresses, behind a pointer, and the mask of the tile of a part of the state."""
        return place_of(pointer, self.plan.state[part], self.places[part])

    def keep(self, name: str, add: bool = False) -> Store:
        """Statements that store, or add, the tile of a buffer's part."""
        place, mask = self.place(name)
        total = f"{loaded(place, mask)} + " if add else ""
        return lambda tile: [f"tl.store({place}, {total}{tile}, mask={mask})"]

    def phased(self, program: Program, store: Mapping[str, Store], held: Mapping[str, str] = {}) -> list[str]:
        """A program's statements, in loops over hidden units."""
        loads = {name: held.get(name) or self.load(name) for name in program.inputs}
        binding = Binding(loads, store, self.tensors.narrow, frozenset(held))
        return without_idle(phased_statements(program, binding, BETWEEN_LOOPS, self.ragged))


def place_of(pointer: str, axes: tuple[str, ...], at: str) -> tuple[str, str]:
    """The text of the addresses of a tile of a buffer's part, and of their mask."""
    base = f"{pointer} + {at}" if at != "0" else pointer
    if len(axes) == 1:
        return f"{base} + o_{axes[0]}", f"m_{axes[0]}"
    into, out = axes
    return f"{base} + (o_{into}[:, None] * {width_of(out)} + o_{out}[None, :])", both(f"m_{into}", f"m_{out}")


def row(tensor: str, axis: str) -> tuple[str, str]:
    """The text of the addresses of a tile of rows along an axis, and of their mask."""
    width = width_of(axis)
    place = f"{tensor} + i_row * {width} + (o_t[:, None] * (H * {width}) + o_{axis}[None, :])"
    return place, both("m_t", f"m_{axis}")


def loaded(place: str, mask: str) -> str:
    return f"tl.load({place}, mask={mask}, other=0.0)"


def rows_of(tensor: str, axis: str = "v") -> Store:
    """Statements that store a tensor's rows along an axis, in its type."""
    place, mask = row(tensor, axis)
    return lambda tile: [f"tl.store({place}, ({tile}).to({tensor}.dtype.element_ty), mask={mask})"]


def added_rows(tensor: str) -> Store:
    """Statements that add to a tensor's rows along k."""
    place, mask = row(tensor, "k")
    return lambda tile: [f"tl.store({place}, {loaded(place, mask)} + {tile}, mask={mask})"]


def _hidden_rows(at: str, axis: str) -> str:
    return f"{at} + (o_t[:, None] * F + o_{axis}[None, :])"


def _whole(at: str, axes: Sequence[str]) -> str:
    first, *second = map(offset, axes)
    return f"{at} + ({first}[:, None] * {size(axes[1])} + {second[0]}[None, :])" if second else f"{at} + {first}"


BETWEEN_LOOPS = Rows(
    "p_rows",
    lambda at, axis: f"tl.load({_hidden_rows(at, axis)}, mask=m_{axis}[None, :], other=0.0)",
    lambda at, axis, tile: f"tl.store({_hidden_rows(at, axis)}, {tile}, mask=m_{axis}[None, :])",
    lambda at, axes: f"tl.load({_whole(at, axes)})",
    lambda at, axes, value: f"tl.store({_whole(at, axes)}, {value})",
)
"""What passes between a kernel's loops."""
