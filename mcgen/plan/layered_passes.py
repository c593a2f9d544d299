"""The passes of a deep memory whose layers go one by one: loops over flights of chains, and over their spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.ir.by_layer import owed
from mcgen.ir.layers import Layer
from mcgen.ir.program import Program
from mcgen.ir.step import query_name
from mcgen.passes.phases import HIDDEN as HIDDEN_AXES
from mcgen.passes.simplify import select
from mcgen.plan.cached_reads import tiles_of
from mcgen.plan.configurations import HIDDEN, tile
from mcgen.plan.host import (
    Buffer,
    Compute,
    Each,
    Kernel,
    Launch,
    Let,
    Make,
    Part,
    Routine,
    Run,
    Statement,
    When,
    operands,
)
from mcgen.plan.layered import LayeredPlan
from mcgen.plan.pass_tensors import OF_SEQUENCE, ROWS, goes_on
from mcgen.plan.streamed_passes import SIZES, StreamedPasses, width_of

IN_SPANS = (*SIZES[:-2], "SPAN", *SIZES[-2:])
STEP = {"T": "a step of a span", "n_flight": "one"}
TILES = {"T": "a span", "n_flight": "one", "n_segments": "its own"}
SEGMENT = {"T": "a segment", "n_segments": "one"}
STATE = Buffer("records", ("n_flight", "STATE"))
ANCHOR = "[:, STATE - MEMORY :]"
PARAMETERS = "[:, :MEMORY]"


@dataclass(frozen=True)
class LayeredPasses(StreamedPasses):
    """The passes of one plan; what reads cached segments is a streamed plan's."""

    plan: LayeredPlan

    @property
    def constants(self) -> dict[str, int]:
        return {**super().constants, "SPAN": self.plan.span}

    # -- rows of a span -----------------------------------------------------------------------------------------------

    @cached_property
    def span_rows(self) -> Mapping[str, str | None]:
        """The rows of a span that kernels leave for each other, with their axis besides the tokens; None of numbers."""
        found: dict[str, str | None] = {}
        first, *deeper = self.plan.layers
        for layer in (first, *deeper):
            seen = {f"seen{layer.suffix}": layer.into} if layer is not first else {}
            rows = {f"error{layer.suffix}": layer.out, f"result{layer.suffix}": layer.out, **seen}
            found |= rows | {f"d_{name}": axis for name, axis in rows.items()}
            found |= {owed(gate, layer): None for gate in self.plan.meaning.spec.tensor_gates}
        return found | {owed(name, first): "k" for name in ("q", "k")}

    def _empty_rows(self, back: bool) -> Make:
        """Room for a span's rows of the chains in flight, and for their gradients on the way back."""
        found = {name: axis for name, axis in self.span_rows.items() if back or not name.startswith("d_")}
        wide = {name: (width_of(axis),) if axis else () for name, axis in found.items()}
        return Make(tuple(Buffer(name, ("n_flight", "SPAN", *width)) for name, width in wide.items()))

    # -- kernels ------------------------------------------------------------------------------------------------------

    def _with_rows(self, inputs: Iterable[str]) -> list[str]:
        """The tensors behind program inputs, rows of a span among them."""
        given = list(inputs)
        return [*self.tensors.behind(given), *(name for name in (*self.span_rows, "d_k_rows") if name in given)]

    def _inputs(self, program: str) -> list[str]:
        return self._with_rows(self.plan.programs[program].inputs)

    def _walking(self) -> list[Kernel]:
        routed = [self._logits()] if self.plan.meaning.routes else []
        layers = [self._layer(layer) for layer in self.plan.layers]
        return [*routed, self._errors(), *layers, self._online()]

    def _walking_back(self) -> list[Kernel]:
        routed = [self._reverse_logits()] if self.plan.meaning.routes else []
        walks = [self._layer_back(name) for name in self.plan.walks]
        return [*routed, self._of_step("reverse_online"), *walks, self._through_inputs()]

    def _in_span(
        self,
        name: str,
        tensors: Sequence[str],
        writes: Iterable[str],
        takes: Mapping[str, str],
        sizes: tuple[str, ...],
        both: tuple[str, ...] = (),
        more: tuple[str, ...] = (),
    ) -> Kernel:
        sizes = ("n_before", *sizes, "n_entries")
        constants = (*IN_SPANS, *more)
        return Kernel(name, operands(tensors, writes, both), ("spans",), sizes, constants, takes, HIDDEN)

    def _of_step(self, name: str, more: Sequence[str] = (), written: Sequence[str] | None = None) -> Kernel:
        outputs = list(self.plan.programs[name].outputs) if written is None else list(written)
        work = ["work"] if name in self.plan.phased else []
        tensors = [*self._inputs(name), *outputs, *more, *work]
        return self._in_span(name, tensors, {*outputs, *work}, STEP, ("n_steps", *OF_SEQUENCE), tuple(work))

    def _errors(self) -> Kernel:
        return self._of_step("errors", ["records"])

    def _online(self) -> Kernel:
        return self._of_step("online", written=["o" if self.plan.meaning.reads_cached else "y"])

    def _through_inputs(self) -> Kernel:
        program = self.plan.programs["inputs"]
        own = [name for name in program.outputs if not name.startswith("d_anchor_")]
        tensors = [*self._inputs("inputs"), *own, "records", "d_anchors", "work"]
        written = {*own, "d_anchors", "work"}
        return self._in_span("inputs", tensors, written, STEP, ("n_steps", *OF_SEQUENCE), ("work",))

    def _layer(self, layer: Layer) -> Kernel:
        name, result = f"layer{layer.suffix}", f"result{layer.suffix}"
        kept = ["cached"] if self.plan.meaning.reads_cached else []
        tensors = [*self._inputs(name), result, *kept, "records"]
        sizes, modes = (*OF_SEQUENCE, "n_segments"), ("READS", "ADVANCES")
        return self._in_span(name, tensors, [result, *kept], TILES | {"F": "a tile"}, sizes, ("records",), modes)

    def _layer_back(self, name: str) -> Kernel:
        walk, meaning = self.plan.walks[name], self.plan.meaning
        advance = self.plan.advancing(walk)
        owing = [label for label in walk.program.outputs if label in self.span_rows]
        more = ["d_cached"] if meaning.reads_cached and walk.d_state else []
        records = [*(["records"] if walk.state else []), *(["d_records"] if walk.d_state else [])]
        work = ["work"] if self.room(name) else []
        inputs = self._with_rows([*walk.program.inputs, *advance.inputs])
        tensors = [*inputs, *more, *owing, *records, *work]
        both = ("d_records",) if walk.leaves else ()
        sizes, takes = (*OF_SEQUENCE, "n_segments"), TILES | {"F": "a tile"}
        return self._in_span(name, tensors, {*owing, *work}, takes, sizes, (*both, *work))

    def _logits(self) -> Kernel:
        tensors, state = [*self._inputs("logits"), "r", "pools"], ("begin_pool", "after_pool")
        return self._of_segment("logits", tensors, ["r", "pools"], state)

    def _reverse_logits(self) -> Kernel:
        query = query_name(self.plan.meaning)
        whole, ahead = self.plan.programs["reverse_logits"], self.plan.programs["logits"]
        queries = Program("queries", {"d": whole.outputs[f"d_{query}"], "pool_next": ahead.outputs["pool_next"]})
        keys = select(whole, ["d_k", "d_pool"], "keys")
        rows = (f"d_{query}_rows",)
        tensors = [*self._with_rows([*queries.inputs, *keys.inputs]), "d_pools", *rows, "d_k_rows"]
        return self._of_segment("reverse_logits", tensors, ["d_k_rows"], ("begin_pool", "d_begin_pool"), rows)

    def _of_segment(
        self,
        name: str,
        tensors: Sequence[str],
        writes: Sequence[str],
        state: tuple[str, ...],
        both: tuple[str, ...] = (),
    ) -> Kernel:
        given, sizes = operands(tensors, writes, both), (*OF_SEQUENCE, "n_segments", "n_entries")
        state = state if goes_on(self.plan.meaning) else ()
        return Kernel(name, given, ("segments",), sizes, SIZES, SEGMENT, HIDDEN, going_on=state)

    def room(self, kernel: str) -> str | None:
        """Numbers of the states that a program keeps, one a step; None where it keeps none."""
        walk, lengths = self.plan.walks[kernel], {"k": "key_dim", "v": "value_dim"}
        if not (walk.state and walk.d_state):
            return None
        head = self.plan.meaning.spec.head
        axes = (walk.layer.into, walk.layer.out)
        tiles = [f'_columns("{kernel}", x)' if a in HIDDEN_AXES else str(tile(getattr(head, lengths[a]))) for a in axes]
        states = [str(len(walk.state))] if len(walk.state) > 1 else []
        return " * ".join([f'_cdiv(SPAN, _rows_at_once("{kernel}", x))', *states, *tiles])

    # -- launches -----------------------------------------------------------------------------------------------------

    def _steps(self, kernel: str, *first: Statement) -> list[Statement]:
        """A kernel for all steps of a span of the chains in flight, after what needs their number."""
        room = self.rows_of(self.plan.programs[kernel]) if kernel in self.plan.phased else None
        steps = Let("x.n_steps", f'_cdiv(x.tokens, _rows_at_once("{kernel}", x))')
        return [steps, *first, Launch(self.kernels[kernel], "x.n_flight * x.n_steps", room=room)]

    def _tiles(self, kernel: str, reads: str = "", modes: Mapping[str, str] = {}) -> Launch:
        """A layer's kernel for all its tiles and the chains in flight; its parts of rows are added up."""
        layer, program = self._of_layers[kernel]
        tiles = tiles_of(kernel)
        into, out = (tiles if axis in HIDDEN_AXES else "" for axis in (layer.into, layer.out))
        count = {layer.out: into, layer.into: out, None: " * ".join(filter(None, [into, out]))}
        rows = {name: count[self.span_rows[name]] for name in program.outputs if name in self.span_rows}
        parts = tuple(Part(name, number, 1, reads) for name, number in rows.items() if number)
        units = " * ".join(filter(None, ["x.n_flight", into, out]))
        room = self.room(kernel) if kernel in self.plan.walks else None
        return Launch(self.kernels[kernel], units, room=room, parts=parts, modes=modes)

    @cached_property
    def _of_layers(self) -> Mapping[str, tuple[Layer, Program]]:
        """The kernels that take tiles of a layer through a span, with their layers and programs."""
        forward = {f"layer{layer.suffix}": layer for layer in self.plan.layers}
        found = {name: (layer, self.plan.programs[name]) for name, layer in forward.items()}
        return found | {name: (walk.layer, walk.program) for name, walk in self.plan.walks.items()}

    # -- passes -------------------------------------------------------------------------------------------------------

    @cached_property
    def _enter(self) -> Routine:
        body = (
            Let("x.tokens, begins, x.spans", "span"),
            When("begins", (Compute(f"x.records{ANCHOR} = x.records{PARAMETERS}", (), ("records",), ("records",)),)),
        )
        doc = "Goes on to a span. Where a gradient chunk begins with it, its gradients are taken at the memory there."
        return Routine("_enter", doc, body, ("span",))

    @cached_property
    def _through_span(self) -> Routine:
        modes = {"READS": "reads", "ADVANCES": "advances"}
        layers = [self._tiles(f"layer{layer.suffix}", "reads", modes) for layer in self.plan.layers]
        doc = "A span of the chains in flight: the rows that gradients are made of, then layer after layer."
        return Routine("_through_span", doc, (*self._steps("errors"), *layers), ("reads", "advances"))

    def _through(self, reads: bool, advances: bool) -> Run:
        return Run(self._through_span, (f"reads={reads}", f"advances={advances}"))

    def _flights(self, body: Sequence[Statement]) -> Each:
        """Chains are few at a time, since each is many programs: a flight after another."""
        sizes = Let("x.n_before, x.n_flight", "first, last - first")
        begin = Compute("x.records = _records(x, first, last)", (STATE,), ("theta",))
        return Each("first, last", "_flights(x.n_chains * x.BH, _most_chains(x.device))", (sizes, begin, *body))

    def walk(self) -> list[Statement]:
        online = self._steps("online")
        body = (Run(self._enter, ("span",)), self._through(True, True), *online)
        spans = Each("span", "_in_flight(x, first, last)", body)
        routed = self.plan.meaning.routes
        logits = [Launch(self.kernels["logits"], "x.n_segments * x.BH")] if routed else []
        keep = [Compute("_keep_after(x, first, last)", (), ("records",))] if goes_on(self.plan.meaning) else []
        return [*logits, self._flights([self._empty_rows(back=False), spans, *keep])]

    @cached_property
    def _reverse_span(self) -> Routine:
        anchors = Buffer("d_anchors", ("n_flight", "n_steps", "MEMORY"))
        add = Compute(f"x.d_records{ANCHOR} += x.d_anchors.sum(1)", (), ("d_anchors", "d_records"), ("d_records",))
        body = (
            self._through(True, False),
            *self._steps("reverse_online"),
            *(self._tiles(name) for name in self.plan.walks),
            *self._steps("inputs", Make((anchors,))),
            add,
        )
        doc = (
            "The reverse of a span of the chains in flight, from the states before it and gradients of those after it."
        )
        return Routine("_reverse_span", doc, body)

    def walk_back(self) -> list[Statement]:
        """Groups of spans, the last first: the states that groups begin with are made going forward once and kept,
        those that their spans begin with once more."""
        routed = self.plan.meaning.routes
        d_theta = Buffer("d_theta", ("n_chains", "B", "H", "MEMORY"))
        back = Compute(
            f"x.d_theta.view(-1, MEMORY)[first:last] = x.d_records{PARAMETERS}", (), ("d_records",), ("d_theta",)
        )
        begun, owed = goes_on(self.plan.meaning), "torch.zeros_like(x.records)"
        owed = "_take_owed(x, first, last)" if begun else owed
        flight = [
            self._empty_rows(back=True),
            Compute(f"x.d_records = {owed}", (Buffer("d_records", STATE.shape),)),
            Let("groups", f"_groups(_in_flight(x, first, last), {self.plan.group})"),
            *self._ahead(),
            Each("group", "reversed(groups)", tuple(self._group_back())),
            back,
            *([Compute("_leave_begun(x, first, last)", (), ("d_records",))] if begun else []),
        ]
        return [*(self._logits_back() if routed else []), Make((d_theta,)), self._flights(flight)]

    def _logits_back(self) -> list[Statement]:
        launch = Launch(self.kernels["reverse_logits"], "x.n_segments * x.BH")
        return [Make((Buffer("d_k_rows", (*ROWS, "K")),)), launch]

    def _ahead(self) -> list[Statement]:
        """The states that groups begin with, kept."""
        keep = Compute("kept.append(x.records.clone())", (), ("records",))
        on = Each("span", "group", (Run(self._enter, ("span",)), self._through(False, True)))
        return [Compute("kept = [x.records.clone()]", (), ("records",)), Each("group", "groups[:-1]", (on, keep))]

    def _group_back(self) -> list[Statement]:
        """A group's spans forward once more, each one's state kept, and back."""
        keep = Compute("starts.append(x.records.clone())", (), ("records",))
        ahead = When("span is not group[-1]", (self._through(False, True),))
        d_parameters = Compute(f"x.d_records{PARAMETERS} += x.d_records{ANCHOR}", (), ("d_records",), ("d_records",))
        none_left = Compute(f"x.d_records{ANCHOR} = 0", (), (), ("d_records",))
        back = (
            Let("x.tokens, begins, x.spans", "span"),
            Compute("x.records = starts.pop()", (STATE,)),
            Run(self._reverse_span),
            When("begins", (d_parameters, none_left)),
        )
        return [
            Compute("x.records, starts = kept.pop(), []", (STATE,)),
            Each("span", "group", (Run(self._enter, ("span",)), keep, ahead)),
            Each("span", "reversed(group)", back),
        ]
