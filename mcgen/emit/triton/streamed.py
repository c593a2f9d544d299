"""The Triton path of memories whose state is too large for a program's registers: MLPs.

The state lies in buffers. A chunk step reads one and writes another, tile by tile along the hidden axes, in the phases
that its program falls into (`mcgen.passes.phases`). Everything else is as for a matrix: the same programs, derivatives
and bindings, other loop nests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.triton.choices import gathered
from mcgen.emit.triton.path import Kernels, idle
from mcgen.emit.triton.phases import Rows, phased_statements
from mcgen.emit.triton.printer import Binding, offset, room, size
from mcgen.ir.layers import sizes
from mcgen.ir.program import Program
from mcgen.passes.phases import HIDDEN as HIDDEN_AXES
from mcgen.passes.simplify import select
from mcgen.plan.configurations import tile
from mcgen.plan.plan import planned
from mcgen.plan.streamed import StreamedPlan
from mcgen.symbolic.recurrence import MEMORY

Text = tuple[list[str], str]


@dataclass(frozen=True)
class StreamedKernels(Kernels):
    """The kernels of one deep memory: their programs, bound to their tensors, as text."""

    @cached_property
    def streamed(self) -> StreamedPlan:
        return StreamedPlan(self.meaning)

    @property
    def soup(self) -> bool:
        return self.streamed.soup

    @property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        return self.streamed.state

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Where each part of the state begins in a buffer, as text."""
        found: dict[str, str] = {}
        before: Counter[str] = Counter()
        for name, axes in self.state.items():
            found[name] = room(before)
            before[" * ".join(map(width_of, axes))] += 1
        return found

    @property
    def between(self) -> Mapping[str, str]:
        return self.streamed.between

    @property
    def programs(self) -> Mapping[str, Program]:
        return self.streamed.programs

    # -- how tiles are loaded and stored ------------------------------------------------------------------------------

    def load(self, name: str) -> str:
        if name == "share":
            return "1.0"  # d_y comes multiplied by it
        if name == "pools":
            return "tl.load(pools + i_cached * K + o_k, mask=m_k, other=0.0)"
        if name in self.between:
            place, mask = _row(name, self.between[name])
            return f"tl.load({place}, mask={mask}, other=0.0)"
        for pointer, part, axes in self._buffers(name):
            return _loaded(pointer, axes, part)
        return super().load(name)

    def _buffers(self, name: str) -> list[tuple[str, str, tuple[str, ...]]]:
        """The buffer that holds an input or output, where it begins there, and its axes; none for a tensor's."""
        if name.removeprefix("d_").startswith("cached_"):
            part = name.removeprefix("d_").replace("cached", MEMORY, 1)
            pointer = name.rpartition("_")[0]
            return [(f"{pointer} + i_cached * MEMORY", self.places[part], self.state[part])]
        part = name.removeprefix("d_").removesuffix("_next")
        if part not in self.state:
            return []
        pointer = {
            (False, False): "p_state",
            (False, True): "p_next",
            (True, True): "p_d_next",
            (True, False): "p_d_state",
        }[name.startswith("d_"), name.endswith("_next")]
        return [(pointer, self.places[part], self.state[part])]

    def keep(self, name: str, add: bool = False) -> Callable[[str], list[str]]:
        """Statements that store, or add, the tile of a buffer's part."""
        ((pointer, at, axes),) = self._buffers(name)
        place, mask = place_of(pointer, axes, at)
        total = f"tl.load({place}, mask={mask}, other=0.0) + " if add else ""
        return lambda tile: [f"tl.store({place}, {total}{tile}, mask={mask})"]

    @property
    def rows_between(self) -> Rows:
        def place(at: str, axis: str) -> str:
            return f"{at} + (o_t[:, None] * F + o_{axis}[None, :])"

        def whole(at: str, axes: tuple[str, ...]) -> str:
            first, *second = map(offset, axes)
            return (
                f"{at} + ({first}[:, None] * {size(axes[1])} + {second[0]}[None, :])" if second else f"{at} + {first}"
            )

        return Rows(
            "p_rows",
            lambda at, axis: f"tl.load({place(at, axis)}, mask=m_{axis}[None, :], other=0.0)",
            lambda at, axis, tile: f"tl.store({place(at, axis)}, {tile}, mask=m_{axis}[None, :])",
            lambda at, axes: f"tl.load({whole(at, axes)})",
            lambda at, axes, value: f"tl.store({whole(at, axes)}, {value})",
        )

    @cached_property
    def ragged(self) -> frozenset[str]:
        """Axes that tiles may reach beyond."""
        return frozenset(axis for axis, size in sizes(self.meaning.spec).items() if size != tile(size))

    def phased(
        self, program: Program, store: Mapping[str, Callable[[str], list[str]]], held: Mapping = {}
    ) -> list[str]:
        loads = {name: held.get(name) or self.load(name) for name in program.inputs}
        binding = Binding(loads, store, self.narrow, frozenset(held))
        lines = phased_statements(program, binding, self.rows_between, self.ragged)
        return [line for line in lines if not idle(line)]

    # -- the kernels --------------------------------------------------------------------------------------------------

    def walk(self) -> Text:
        program, read = self.programs["walk"], self.meaning.reads_cached
        if self.soup:
            arguments = [*self.tensors(program.inputs), "cached", "pools"]
            lines = self.phased(program, {name: self._following(name) for name in program.outputs}, self._resident)
            return self._text("streamed/walk", arguments, lines, doc="The state at the end of every segment")
        outputs = {"o": self._rows("o" if read else "y"), "r": self._number("r")}
        store = {name: outputs.get(name) or self._following(name) for name in program.outputs}
        out = ["o", *(["r"] if self.meaning.routes else [])] if read else ["y"]
        kept = [*(["cached"] if read else []), *(["pools"] if self.meaning.routes else [])]
        doc = "The online read-outs, and the state at the end of every segment" if read else "The read-outs y"
        lines = self.phased(program, store, self._resident)
        return self._text("streamed/walk", [*self.tensors(program.inputs), *out, *kept], lines, doc=doc)

    @property
    def _resident(self) -> dict[str, str]:
        """The parts of the state that the walk holds in registers, as it calls them."""
        return {name: f"s_{name}" for name in self.state} if self.streamed.resident else {}

    def _following(self, name: str) -> Callable[[str], list[str]]:
        """Statements of the walk that keep a part of the state after a step."""
        part = name.removesuffix("_next")
        return (lambda tile: [f"n_{part} = {tile}"]) if self.streamed.resident else self.keep(name)

    def _held(self) -> list[dict[str, str]]:
        """What the walk does with each part of the state that it holds: how it begins, and where it is kept."""
        found = []
        for name in self._resident:
            axes = self.state[name]
            place, mask = place_of("", axes, self.places[name])
            shape = ", ".join(map(size, axes))
            learned = name.startswith(f"{MEMORY}_")
            begin = f"tl.load(theta + i_h * MEMORY{place}, mask={mask}, other=0.0)"
            begin = begin if learned else f"tl.zeros([{shape}], tl.float32)"
            found.append({"name": name, "begin": begin, "learned": learned, "place": place, "mask": mask})
        return found

    def read(self) -> Text:
        program, routes = self.programs["read_segment"], self.meaning.routes
        store = {name: (lambda tile: []) for name in program.outputs}
        more = ["o", "r", "pools", "lse", "online"] if routes else ["o"]
        arguments = [*self.tensors(program.inputs), "cached", *more, "y"]
        return self._text("streamed/read", arguments, self.phased(program, store))

    def read_soup(self) -> Text:
        program, logit = self.programs["read_soup"], self.programs["logit"]
        routed = select(self.programs["read_segment"], ["r_cached"], "logit")
        nothing = lambda tile: []  # noqa: E731
        held = {"lse": "b_lse", "online": "b_online"}
        lines = self.phased(program, {"y": self._rows("y")}, held)
        parts = {
            "logit": self.phased(logit, {"r": nothing}),
            "routed": self.phased(routed, {"r_cached": nothing}),
        }
        more = ["cached", "pools", "lse", "online", "y"]
        return self._soup("read_soup", [*program.inputs, *logit.inputs], more, lines, **parts)

    def through_layers(self) -> Text:
        program = self.programs["through_layers"]
        store = {"delta": self._number("delta")}
        for name, axis in self.between.items():
            place, mask = _row(name, axis)
            store[name] = lambda tile, place=place, mask=mask: [f"tl.store({place}, {tile}, mask={mask})"]
        lines = self.phased(program, store)
        return self._soup(
            "through_layers", program.inputs, ["cached", "pools", "delta", *self.between], lines, logit=[]
        )

    def _soup(
        self, kernel: str, inputs: Iterable[str], more: Iterable[str], program: list[str], **parts: object
    ) -> Text:
        """A kernel that walks the chains again, for what is read of all segments at once."""
        given = self.tensors(self.programs["advance"].inputs)
        arguments = list(dict.fromkeys([*self.tensors([*inputs, *given]), *more]))
        return self._text("streamed/soup", arguments, program, kernel=kernel, advance_call=self._advance_call, **parts)

    @property
    def _advance_call(self) -> str:
        given = ", ".join(self.tensors(self.programs["advance"].inputs))
        numbers = "i_row, i_t, m_t, b_fresh, segment_start, H, one, n_tiles"
        constants = "K, V, F, BT, BK, BV, BF, STATE, MEMORY, ROWS, IN, PREC"
        return f"_advance({given}, p_state, p_next, p_rows, {numbers}, {constants})"

    def rows(self) -> Text:
        program, routes = self.programs["rows"], self.meaning.routes
        store = {f"d_{name}": _added(f"s_{name}") for name in [*self.queries, "r"]}
        held = {"delta": "b_delta"} if routes and not self.soup else {}
        more = ["pools", "d_r"] if routes else []
        more += [] if self.soup else ["d_y", *(["y", "delta"] if routes else [])]
        arguments = [*self.tensors(program.inputs), "cached", *more, *(f"d_{name}_rows" for name in self.queries)]
        return self._text("streamed/rows", list(dict.fromkeys(arguments)), self.phased(program, store, held))

    def segments(self) -> Text:
        program = self.programs["segment"]
        store = {name: self.keep(name, add=True) for name in program.outputs if name != "d_pools"}
        store |= {"d_pools": _added("s_pools")}
        more = ["cached", "d_cached", *(["pools", "d_pools"] if self.meaning.routes else [])]
        return self._text("streamed/segments", [*self.tensors(program.inputs), *more], self.phased(program, store))

    def reverse(self) -> Text:
        program, advance = self.programs["reverse"], self.programs["advance"]
        parts = {f"d_{name}" for name in self.state}
        store = {name: self.keep(name) if name in parts else self.store(name[2:]) for name in program.outputs}
        given = self.tensors(advance.inputs)
        more = ["d_cached"] if self.meaning.reads_cached else []
        more += ["d_pools"] if self.meaning.routes else []
        arguments = self.tensors([*program.inputs, *advance.inputs]) + more
        arguments += [name for name in program.outputs if name not in parts]
        return self._text(
            "streamed/reverse",
            arguments,
            self.phased(program, store),
            advance=self.phased(advance, {name: self.keep(name) for name in advance.outputs}),
            advance_arguments=", ".join(given),
            advance_call=self._advance_call,
        )

    def _rows(self, tensor: str, axis: str = "v") -> Callable[[str], list[str]]:
        place, mask = _row(tensor, axis)
        return lambda tile: [f"tl.store({place}, ({tile}).to({tensor}.dtype.element_ty), mask={mask})"]

    def _added_rows(self, tensor: str) -> Callable[[str], list[str]]:
        """Statements that add to a tensor's rows along k."""
        place, mask = _row(tensor, "k")
        return lambda tile: [f"tl.store({place}, tl.load({place}, mask={mask}, other=0.0) + {tile}, mask={mask})"]

    def _number(self, tensor: str) -> Callable[[str], list[str]]:
        return lambda tile: [f"tl.store({tensor} + i_row + o_t * H, {tile}, mask=m_t)"]

    def _text(self, template: str, arguments: list[str], program: list[str], **more: object) -> Text:
        meaning = self.meaning
        text = render(
            f"triton/{template}.py.jinja",
            arguments=", ".join(arguments),
            program=program,
            queries=self.queries,
            kind=meaning.aggregate,
            soup=self.soup,
            routes=meaning.routes,
            keeps=meaning.reads_cached,
            chained=meaning.chained,
            barrier=bool(self.streamed.between_loops),
            resident=self._held(),
            axes=[axis for axis in sizes(meaning.spec) if axis in HIDDEN_AXES],
            pool_at=self.places.get("pool"),
            mean_pool=meaning.spec.aggregate.pool == "mean",
            **more,
        )
        return arguments, text

    # -- where rows choose what they read -----------------------------------------------------------------------------

    def route(self) -> Text:
        logit = select(self.programs["read_segment"], ["r_cached"], "logit")
        program = self.phased(logit, {"r_cached": lambda tile: []})
        return self._text("route", [*self.tensors(logit.inputs), "pools", "chosen", "r_chosen"], program, streamed=True)

    def chosen_reads(self) -> Text:
        read = select(self.programs["read_segment"], ["o_cached"], "read")
        program = self._grouped(read, {"o_cached": "o"})
        doc, arguments = "Read-outs of chosen segments", [*self.tensors(read.inputs), "cached", "o_chosen"]
        return self._text("streamed/chosen", arguments, program, kernel="chosen_reads", doc=doc, sums={"o": "v"})

    def chosen_rows(self) -> Text:
        rows = self.programs["rows"]
        sums = {**{f"d_{name}": "k" for name in self.queries}, "d_r": None}
        program = self._grouped(rows, {name: name for name in sums})
        arguments = [*self.tensors(rows.inputs), "cached", "pools", *(f"{name}_chosen" for name in sums)]
        doc = "What every choice owes to the segment it reads: gradients of its row's queries and of its logit"
        return self._text("streamed/chosen", arguments, program, kernel="chosen_rows", doc=doc, sums=sums)

    def chosen_segments(self) -> Text:
        program = self.programs["segment"]
        store = {name: self.keep(name, add=True) for name in program.outputs if name != "d_pools"}
        store |= {"d_pools": _added("s_pools")}
        lines = self.phased(program, store, self._gathered(program))
        arguments = [*self.tensors(program.inputs), "cached", "pools", "d_cached", "d_pools"]
        return self._text("streamed/chosen_segments", arguments, lines)

    def read_chosen(self) -> Text:
        return self._text("streamed/read_chosen", ["o", "r", "r_chosen", "o_chosen", "lse", "online", "y"], [])

    def _grouped(self, program: Program, sums: Mapping[str, str]) -> list[str]:
        """A program for the rows of one group at a time, added up where a row belongs to it."""
        masks = {1: "m_group", 2: "m_group[:, None]"}
        store = {label: _added(f"s_{sums[label]}", masks[len(node.axes)]) for label, node in program.outputs.items()}
        return self.phased(program, store, self._gathered(program))

    def _gathered(self, program: Program) -> dict[str, str]:
        """The loads of per-token inputs by rows that choices name."""
        return {name: gathered(self, name) for name in program.inputs if name != "pools" and not self._buffers(name)}

    def kernels(self) -> dict[str, Text]:
        return {name: getattr(self, name)() for name in planned(self.meaning).kernels}


def width_of(axis: str) -> str:
    return "F" if axis in HIDDEN_AXES else axis.upper()


def _row(tensor: str, axis: str) -> tuple[str, str]:
    """The text of the addresses of a tile of rows along an axis, and of their mask."""
    width = width_of(axis)
    place = f"{tensor} + i_row * {width} + (o_t[:, None] * (H * {width}) + o_{axis}[None, :])"
    return place, f"m_t[:, None] & m_{axis}[None, :]"


def place_of(pointer: str, axes: tuple[str, ...], at: str) -> tuple[str, str]:
    """The text of the addresses of a tile of a buffer's part, and of their mask."""
    base = f"{pointer} + {at}" if at != "0" else pointer
    if len(axes) == 1:
        return f"{base} + o_{axes[0]}", f"m_{axes[0]}"
    into, out = axes
    return f"{base} + (o_{into}[:, None] * {width_of(out)} + o_{out}[None, :])", f"m_{into}[:, None] & m_{out}[None, :]"


def _loaded(pointer: str, axes: tuple[str, ...], at: str) -> str:
    place, mask = place_of(pointer, axes, at)
    return f"tl.load({place}, mask={mask}, other=0.0)"


def _added(total: str, mask: str = "") -> Callable[[str], list[str]]:
    return lambda tile: [f"{total} += tl.where({mask}, {tile}, 0.0)" if mask else f"{total} += {tile}"]
