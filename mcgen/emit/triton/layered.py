"""The Triton path of deep memories whose gradient chunks are long: every layer by itself (`mcgen.plan.layered`).

Rows of a span lie in buffers of their own, (chain, token, ·). Where each tile of a layer has a part of them there is
one such buffer a tile, and they are added up between two kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.triton.printer import size
from mcgen.emit.triton.streamed import StreamedKernels, Text, place_of, width_of
from mcgen.ir.by_layer import owed
from mcgen.ir.layers import Layer, sizes
from mcgen.ir.program import Program
from mcgen.ir.step import query_name
from mcgen.passes.phases import HIDDEN
from mcgen.passes.simplify import select, simplify
from mcgen.plan.configurations import tile
from mcgen.plan.layered import LayeredPlan
from mcgen.plan.plan import planned
from mcgen.plan.streamed import RULES
from mcgen.symbolic.recurrence import MEMORY


@dataclass(frozen=True)
class LayeredKernels(StreamedKernels):
    """The kernels of one deep memory, layer by layer, as text."""

    @cached_property
    def streamed(self) -> LayeredPlan:
        return LayeredPlan(self.meaning)

    @cached_property
    def span_rows(self) -> Mapping[str, str | None]:
        """The rows of a span that kernels leave for each other, with their axis besides the tokens; None of numbers."""
        found: dict[str, str | None] = {}
        first, *deeper = self.streamed.layers
        for layer in (first, *deeper):
            seen = {f"seen{layer.suffix}": layer.into} if layer is not first else {}
            rows = {f"error{layer.suffix}": layer.out, f"result{layer.suffix}": layer.out, **seen}
            found |= rows | {f"d_{name}": axis for name, axis in rows.items()}
            found |= {owed(gate, layer): None for gate in self.meaning.spec.tensor_gates}
        return found | {owed(name, first): "k" for name in ("q", "k")}

    @property
    def of_layers(self) -> Mapping[str, tuple[Layer, Program]]:
        """The kernels that take tiles of a layer through a span, with their layers and programs."""
        found = {f"layer{layer.suffix}": layer for layer in self.streamed.layers}
        forward = {name: (layer, self.programs[name]) for name, layer in found.items()}
        return forward | {name: (walk.layer, walk.program) for name, walk in self.streamed.walks.items()}

    def widths(self, axis: str | None) -> tuple[int, ...]:
        """Numbers a token of rows along an axis."""
        return (sizes(self.meaning.spec)[axis],) if axis else ()

    def parted(self, kernel: str) -> dict[str, str]:
        """The rows of which each tile of a layer has a part, and which tiles' sums these are."""
        layer, program = self.of_layers[kernel]
        which = {layer.out: "inputs", layer.into: "results", None: "both"}
        return {name: which[self.span_rows[name]] for name in program.outputs if name in self.span_rows}

    def room(self, kernel: str) -> str | None:
        """Numbers a step of the states that a program keeps, as the host writes it; None where it keeps none."""
        walk, lengths = self.streamed.walks[kernel], sizes(self.meaning.spec)
        if not (walk.state and walk.d_state):
            return None
        tiles = ["BF" if axis in HIDDEN else str(tile(lengths[axis])) for axis in (walk.layer.into, walk.layer.out)]
        return " * ".join([str(len(walk.state)), *tiles])

    # -- how tiles are loaded and stored ------------------------------------------------------------------------------

    def load(self, name: str) -> str:
        if name in self.span_rows:
            place, mask = self._in_span(name, "i_at")
            return f"tl.load({place}, mask={mask}, other=0.0)"
        return super().load(name)

    def _buffers(self, name: str) -> list[tuple[str, str, tuple[str, ...]]]:
        part = name.removeprefix("d_")
        if part.startswith("anchor_"):
            pointer = "p_d_anchor" if name.startswith("d_") else "p_anchor"
            return [(pointer, self.places[part.replace("anchor", MEMORY, 1)], self.state[part])]
        return super()._buffers(name)

    def _in_span(self, name: str, row: str) -> tuple[str, str]:
        """The text of the addresses of rows in their buffer, from that which a tile begins with, and of their mask."""
        axis = self.span_rows[name]
        if axis is None:
            return f"{name} + {row} + o_t", "m_t"
        width = width_of(axis)
        return (
            f"{name} + {row} * {width} + (o_t[:, None] * {width} + o_{axis}[None, :])",
            f"m_t[:, None] & m_{axis}[None, :]",
        )

    def leave(self, name: str, row: str = "i_at") -> Callable[[str], list[str]]:
        """Statements that leave a span's rows for another kernel."""
        place, mask = self._in_span(name, row)
        return lambda tile: [f"tl.store({place}, {tile}, mask={mask})"]

    def tensors(self, inputs: Iterable[str]) -> list[str]:
        given = list(inputs)
        more = [name for name in (*self.span_rows, "d_k_rows") if name in given]
        return [*super().tensors(given), *more]

    # -- kernels of a step --------------------------------------------------------------------------------------------

    def errors(self) -> Text:
        program = self.programs["errors"]
        store = {name: self.leave(name) for name in program.outputs}
        doc = "The rows that gradients are made of: what layers see of the keys, and their errors"
        return self._step("errors", [*program.outputs, "records"], self.phased(program, store), doc)

    def online(self) -> Text:
        program, to = self.programs["online"], "o" if self.meaning.reads_cached else "y"
        return self._step("online", [to], self.phased(program, {"o": self._rows(to)}), "The online read-outs")

    def reverse_online(self) -> Text:
        program = self.programs["reverse_online"]
        lines = self.phased(program, {name: self.leave(name) for name in program.outputs})
        return self._step("reverse_online", list(program.outputs), lines, "Gradients of the last layer's results")

    def inputs(self) -> Text:
        program = self.programs["inputs"]
        own = {name for name in program.outputs if name.startswith("d_anchor_")}
        store = {name: self.keep(name) if name in own else self.store(name[2:]) for name in program.outputs}
        more = [*(name for name in program.outputs if name not in own), "records", "d_anchors"]
        doc = "The gradients of all that tokens bring along, and each step's share of the anchor's"
        return self._step("inputs", more, self.phased(program, store), doc)

    def _step(self, kernel: str, more: list[str], lines: list[str], doc: str) -> Text:
        arguments = [*self.tensors(self.programs[kernel].inputs), *more]
        phased = kernel in self.streamed.phased
        return self._text("layered/step", arguments, lines, kernel=kernel, phased=phased, doc=doc)

    # -- kernels of a layer -------------------------------------------------------------------------------------------

    def layer(self, layer: Layer) -> Text:
        kernel = f"layer{layer.suffix}"
        program, slots = self.programs[kernel], self.streamed.slots(layer)
        result = f"result{layer.suffix}"
        (leave,) = self.leave(result, "at_into")("{}")
        store = {**self.discard(program.outputs), result: lambda tile: ["if READS:", f"    {leave.format(tile)}"]}
        lines = self._carry(self.bind(program, _held(slots), store), "b_{}", "b_{}_next", slots)
        kept = ["cached"] if self.meaning.reads_cached else []
        arguments = [*self.tensors(program.inputs), result, *kept, "records"]
        more = {"parts": self._parts(slots), "layer": self._tile(layer)}
        return self._text("layered/layer", arguments, lines, kernel=kernel, **more)

    def walk_back(self, kernel: str) -> Text:
        """A gradient kernel of a layer, as planned."""
        walk = self.streamed.walks[kernel]
        layer, program = walk.layer, walk.program
        following = [f"{name}_next" for name in walk.state]
        owing = [name for name in program.outputs if name in self.span_rows]
        place = {layer.out: "at_into", layer.into: "at_out", None: "at_both"}
        store = self.discard(program.outputs) | {n: self.leave(n, place[self.span_rows[n]]) for n in owing}
        held = _held(walk.state) | {f"d_{name}_next": f"b_d_{name}_next" for name in walk.d_state}
        advance = select(self.programs[f"layer{layer.suffix}"], following, "advance")
        if walk.d_state:
            lines = self._carry(self.bind(program, held, store), "b_d_{}_next", "b_d_{}", walk.d_state)
            again = self.bind(advance, held, self.discard(following))
            again = self._carry(again, "b_{}", "b_{}_next", walk.state) if walk.state else []
        else:
            both = simplify(Program(kernel, {**program.outputs, **advance.outputs}), RULES)
            lines = self._carry(self.bind(both, held, store | self.discard(following)), "b_{}", "b_{}_next", walk.state)
            again = []
        more = ["d_cached"] if self.meaning.reads_cached and walk.d_state else []
        records = [*(["records"] if walk.state else []), *(["d_records"] if walk.d_state else [])]
        arguments = [*self.tensors([*program.inputs, *advance.inputs]), *more, *owing, *records]
        lengths = [size(layer.into), size(layer.out)]
        return self._text(
            "layered/walk",
            arguments,
            lines,
            kernel=kernel,
            advance=again,
            sizes=lengths,
            room=" * ".join(lengths),
            state=self._parts(walk.state),
            d_state=self._parts(walk.d_state),
            leaves=walk.leaves,
            wanted=", ".join(owing),
            layer=self._tile(layer),
        )

    def _tile(self, layer: Layer) -> dict[str, object]:
        """How many tiles a layer's axes come in, and the index of each that is cut."""
        tiles = {layer.into: "i_into", layer.out: "i_out"}
        n_into, n_out = ("n_tiles" if axis in HIDDEN else "1" for axis in tiles)
        return {
            "n_into": n_into,
            "n_out": n_out,
            "hidden": {axis: index for axis, index in tiles.items() if axis in HIDDEN},
        }

    def _parts(self, names: Iterable[str]) -> list[dict[str, object]]:
        """Parts of the state, with where they lie in a record."""
        found = []
        for name in names:
            place, mask = place_of("", self.state[name], self.places[name])
            found.append({"name": name, "place": place, "mask": mask, "learned": name.startswith(f"{MEMORY}_")})
        return found

    # -- kernels of a segment -----------------------------------------------------------------------------------------

    def logits(self) -> Text:
        program = self.programs["logits"]
        store = {"r": self._number("r"), **self.discard(["pool_next"])}
        lines = self._carry(self.bind(program, _held(["pool"]), store), "b_{}", "b_{}_next", ["pool"])
        return self._text("layered/logits", [*self.tensors(program.inputs), "r", "pools"], lines)

    def reverse_logits(self) -> Text:
        query = query_name(self.meaning)
        whole, ahead = self.programs["reverse_logits"], self.programs["logits"]
        queries = Program(
            "queries", {f"d_{query}": whole.outputs[f"d_{query}"], "pool_next": ahead.outputs["pool_next"]}
        )
        keys = select(whole, ["d_k", "d_pool"], "keys")
        add, store = self._added_rows(f"d_{query}_rows"), self._rows("d_k_rows", "k")
        there = self.bind(queries, _held(["pool"]), {f"d_{query}": add, **self.discard(["pool_next"])})
        back = self.bind(keys, {"d_pool_next": "b_d_pool_next"}, {"d_k": store, **self.discard(["d_pool"])})
        arguments = self.tensors([*queries.inputs, *keys.inputs])
        return self._text(
            "layered/reverse_logits",
            [*arguments, "d_pools", f"d_{query}_rows", "d_k_rows"],
            self._carry(back, "b_d_{}_next", "b_d_{}", ["pool"]),
            queries_program=self._carry(there, "b_{}", "b_{}_next", ["pool"]),
        )

    def kernels(self) -> dict[str, Text]:
        found = {f"layer{layer.suffix}": self.layer(layer) for layer in self.streamed.layers}
        found |= {kernel: self.walk_back(kernel) for kernel in self.streamed.walks}
        names = planned(self.meaning).kernels
        return {name: found[name] if name in found else getattr(self, name)() for name in names}


def _held(names: Iterable[str]) -> dict[str, str]:
    """Inputs that lie in registers before a program begins."""
    return {name: f"b_{name}" for name in names}
