"""The passes of a matrix memory: what its kernels are handed, and the host code's buffers, launches and statements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from mcgen.ir.backward import query_inputs
from mcgen.ir.closed_form import lagged_names
from mcgen.plan.cached_reads import (
    BACKWARD,
    FORWARD,
    ROWS,
    UNITS,
    Choosing,
    chooses,
    keeps_y,
    recall,
    save,
    tiles_of,
    where_chosen,
)
from mcgen.plan.host import Buffer, Compute, Kernel, Launch, Make, Part, Pass, Statement, operands
from mcgen.plan.matrix import MatrixPlan, Walk
from mcgen.plan.matrix_choices import Choice, choices

SIZES = ("K", "V", "BT", "BK", "BV", "IN", "PREC")
STEPPED = ("CHUNK", "STEPS", "STEP")
OF_SEQUENCE = ("T", "H", "BH")
BLOCK = {"T": "a block", "n_blocks": "its own", "n_segments": "those before its segment"}
CHAIN = {"T": "a chain", "n_blocks": "its own", "n_segments": "its own"}
LATER = {"T": "rows of later segments", "n_segments": "one"}
OWN = {"T": "a segment", "n_segments": "one"}
CHOICES = {"T": "rows of some choices", "n_segments": "those chosen"}
CHOOSERS = {"T": "rows that chose it", "n_segments": "one"}
WIDTHS = {"q": "K", "u": "K", "k": "K", "v": "V", "y": "V"}
"""The axis besides the tokens of tensors that have one."""


@dataclass(frozen=True)
class MatrixPasses:
    """The passes of one plan."""

    plan: MatrixPlan

    def choices(self) -> list[Choice]:
        return choices(self.plan)

    phased = MappingProxyType({})  # programs in loops over hidden units: none

    # -- buffers ------------------------------------------------------------------------------------------------------

    @cached_property
    def lagged(self) -> Mapping[str, tuple[str, int]]:
        return lagged_names(self.plan.meaning.recurrence)

    @cached_property
    def queries(self) -> list[str]:
        return query_inputs(self.plan.meaning)

    @property
    def slots(self) -> tuple[str, ...]:
        return self.plan.meaning.recurrence.slots

    def of_tokens(self, name: str, like: str, type: str = "float32") -> Buffer:
        """A buffer of a row a token, as wide as an input."""
        wide = (WIDTHS[like],) if like in WIDTHS else ()
        return Buffer(name, (*ROWS, *wide), type)

    @cached_property
    def given(self) -> tuple[Buffer, ...]:
        """The operator's inputs, in float types of their own."""
        return tuple(self.of_tokens(name, name, name) for name in self.plan.meaning.inputs)

    @cached_property
    def saved(self) -> tuple[Buffer, ...]:
        """What the forward pass leaves for the backward pass, y and choices apart."""
        meaning, head = self.plan.meaning, ("B", "H")
        found = []
        if self.plan.starts:
            found += [Buffer(f"start_{slot}", (*head, "n_blocks", "K", "V")) for slot in self.slots]
            found += [Buffer("start_pool", (*head, "n_blocks", "K"))] if meaning.routes else []
        if meaning.reads_cached:
            found.append(Buffer("cached", (*head, "n_segments", "K", "V")))
        if meaning.routes:
            found += [Buffer("pools", (*head, "n_segments", "K")), Buffer("lse", ROWS), Buffer("online", ROWS)]
        return (*found, *(self.of_tokens(name, "v") for name in self.plan.errors))

    # -- kernels ------------------------------------------------------------------------------------------------------

    def tensors(self, inputs: Iterable[str]) -> list[str]:
        """The per-token tensors behind program inputs, each once, in an order of their own."""
        read = {self.lagged.get(name, (name, 0))[0] for name in inputs}
        known = [*self.plan.meaning.inputs, "d_y", "y", "lse", "online", "delta", "d_r", *self.plan.errors]
        known += [*self.plan.reverse.pulls, *(f"d_{name}_rows" for name in self.queries)]
        return [name for name in known if name in read]

    def _read_by(self, *programs: str) -> list[str]:
        return self.tensors([name for part in programs for name in self.plan.programs[part].inputs])

    @cached_property
    def kernels(self) -> Mapping[str, Kernel]:
        """All kernels by name, in the order of the file."""
        meaning, plan = self.plan.meaning, self.plan
        found = [self._states()] if self.saved else []
        found += [self._read(), *(self._walk(name, walk) for name, walk in plan.walks.items())]
        found += [self._rows(), self._segments()] if meaning.reads_cached else []
        found += [self._retreat()] if plan.starts or plan.reverse.pulls else []
        found += self._choices() if chooses(meaning) else []
        return {kernel.name: kernel for kernel in found}

    def _kernel(
        self,
        name: str,
        tensors: Sequence[str],
        writes: Iterable[str],
        takes: Mapping[str, str],
        tables: tuple[str, ...] = ("blocks",),
        sizes: tuple[str, ...] = (*OF_SEQUENCE, "n_blocks", "n_segments"),
        constants: tuple[str, ...] = (),
        axis: str = "v",
    ) -> Kernel:
        taken = {**takes, axis.upper(): "a tile"} if axis else takes
        return Kernel(name, operands(tensors, writes), tables, sizes, (*SIZES, *constants), taken, axis)

    @property
    def _stepped(self) -> tuple[str, ...]:
        return STEPPED if self.plan.stepped else ()

    def _states(self) -> Kernel:
        kept = [buffer.name for buffer in self.saved if buffer.name not in ("lse", "online")]
        tensors, tables = [*self._read_by("states"), *kept], ("blocks", "chains")
        return self._kernel("states", tensors, kept, CHAIN, tables, constants=self._stepped)

    def _read(self, name: str = "read", chooses: bool = False) -> Kernel:
        parts = ["read", *(["read_segment"] if self.plan.meaning.reads_cached and not chooses else [])]
        unread = {"cached", "pools"} if chooses else set()
        left = [buffer.name for buffer in self.saved if buffer.name not in unread]
        tensors = [*self._read_by(*parts), *left, *(["r_chosen", "o_chosen"] if chooses else []), "y"]
        return self._kernel(name, tensors, ["lse", "online", "y"], BLOCK, constants=("TOP_K",) if chooses else ())

    def _rows(self) -> Kernel:
        routed = self.plan.meaning.routes
        own = ["delta", "d_r"] if routed else []
        found = [f"d_{name}_rows" for name in self.queries]
        tensors = [*self._read_by("rows"), "d_y", *(["y"] if routed else []), *own, "cached"]
        return self._kernel("rows", [*tensors, *(["pools"] if routed else []), *found], [*own, *found], BLOCK)

    def _segments(self) -> Kernel:
        routed = self.plan.meaning.routes
        more = ["cached", "pools", "d_cached", "d_pools"] if routed else ["d_cached"]
        sizes, takes = (*OF_SEQUENCE, "n_segments"), LATER if routed else OWN
        return self._kernel(
            "segments", [*self._read_by("segment"), *more], ["d_cached", "d_pools"], takes, ("segments",), sizes
        )

    def _retreat(self) -> Kernel:
        plan, pulls, meaning = self.plan, self.plan.reverse.pulls, self.plan.meaning
        inputs = [*plan.programs["retreat"].inputs, *plan.advancing(plan.retreat_state).inputs]
        starts = [f"start_{name}" for name in plan.retreat_state if name != "anchor"] if plan.starts else []
        ends = [f"d_end_{slot}" for slot in self.slots] + (["d_end_pool"] if meaning.routes else [])
        ends = ends if plan.starts else []
        given = (["d_cached"] if meaning.reads_cached else []) + (["d_pools"] if meaning.routes else [])
        tensors = [*self.tensors(inputs), *pulls, *starts, *ends, *given]
        return self._kernel("retreat", tensors, [*pulls, *ends], CHAIN, ("blocks", "chains"), constants=self._stepped)

    def _walk(self, name: str, walk: Walk) -> Kernel:
        tensors = self.tensors([*walk.program.inputs, *self.plan.advancing(walk.state).inputs])
        if self.plan.starts:
            tensors += [f"start_{part}" for part in walk.state if part != "anchor"]
            tensors += [f"d_end_{part}" for part in walk.d_state if part != "anchor"]
        else:
            tensors += ["d_cached"] if "M" in walk.d_state and self.plan.meaning.reads_cached else []
            tensors += ["d_pools"] if "pool" in walk.d_state else []
        wanted = [f"d_{one}" for one in walk.wanted]
        constants = STEPPED if walk.stepped else ()
        axis = "" if walk.whole else walk.axis
        return self._kernel(name, [*tensors, *wanted], wanted, BLOCK, constants=constants, axis=axis)

    def _choices(self) -> list[Kernel]:
        logit, read = (self.plan.read_only(label) for label in ("r_cached", "o_cached"))
        rows, segment = (self.plan.programs[name] for name in ("rows", "segment"))
        sums = [f"d_{name}_chosen" for name in [*self.queries, "r"]]
        by_choice = {"tables": ("order", "groups"), "sizes": ("n_choices", "n_groups"), "constants": ("TOP_K",)}
        of_segment = {"tables": ("order", "bounds", "segments"), "sizes": ("H", "n_segments", "n_groups")}
        chosen, gradients = ["chosen", "r_chosen"], ["d_cached", "d_pools"]
        return [
            self._kernel(
                "route",
                [*self.tensors(logit.inputs), "pools", *chosen],
                chosen,
                BLOCK,
                constants=("TOP_K", "PLACES"),
                axis="",
            ),
            self._read("read_chosen", chooses=True),
            self._kernel(
                "chosen_reads", [*self.tensors(read.inputs), "cached", "o_chosen"], ["o_chosen"], CHOICES, **by_choice
            ),
            self._kernel(
                "chosen_rows", [*self.tensors(rows.inputs), "cached", "pools", *sums], sums, CHOICES, **by_choice
            ),
            self._kernel(
                "chosen_segments",
                [*self.tensors(segment.inputs), "cached", "pools", *gradients],
                gradients,
                CHOOSERS,
                **of_segment,
                constants=("TOP_K",),
            ),
        ]

    # -- passes -------------------------------------------------------------------------------------------------------

    @property
    def _choosing(self) -> Choosing:
        return Choosing(self.kernels, self.queries, room=None, tiled=True)

    def _launch(self, kernel: str, units: str = UNITS, tiled: bool = True, parts: tuple[Part, ...] = ()) -> Launch:
        return Launch(self.kernels[kernel], units, tiles_of(kernel) if tiled else "", parts=parts)

    @cached_property
    def forward(self) -> Pass:
        meaning = self.plan.meaning
        body: list[Statement] = [*save(meaning, self.saved), Make((self.of_tokens("y", "y", "v"),))]
        if self.saved:
            body.append(self._launch("states", "x.n_chains * x.BH"))
        if self.plan.sums:
            line = "x.cached.copy_(x.cached.cumsum(2) - x.cached)  # for each segment, the sum of the states before it"
            body.append(Compute(line, reads=("cached",), changes=("cached",)))
        choosing = self._choosing.read() if chooses(meaning) else []
        body += where_chosen(meaning, choosing, [self._launch("read")])
        return Pass("forward", FORWARD, self.given, tuple(body), "[x.y, *saved]")

    @cached_property
    def backward(self) -> Pass:
        meaning, y = self.plan.meaning, self.of_tokens("y", "y", "v")
        body: list[Statement] = [
            recall(meaning, self.saved, y if keeps_y(meaning) else None),
            Compute("x.d_y = d_y.contiguous()", (self.of_tokens("d_y", "y", "v"),)),
        ]
        if meaning.reads_cached:
            choosing = self._choosing.reverse(self._cached_gradients) if chooses(meaning) else []
            body += where_chosen(meaning, choosing, self._reverse_reads())
        body += self._retreats()
        body.append(Make(tuple(self._gradients())))
        for name, walk in self.plan.walks.items():
            body += self._walked(name, walk)
        for name, (source, lag) in self.lagged.items():
            line = f"_add_unlagged(x.d_{source}, x.d_{name}, {lag})"
            body.append(Compute(line, reads=(f"d_{source}", f"d_{name}"), changes=(f"d_{source}",)))
        return Pass("backward", BACKWARD, self.given, tuple(body), "_gradients(x, tensors)")

    @property
    def _cached_gradients(self) -> tuple[Buffer, ...]:
        kept = {buffer.name: buffer.shape for buffer in self.saved}
        return tuple(Buffer(f"d_{name}", kept[name]) for name in ("cached", "pools") if name in kept)

    def _reverse_reads(self) -> list[Statement]:
        """The reverse of reads of every earlier segment."""
        routed = self.plan.meaning.routes
        own = (Buffer("delta", ROWS), Buffer("d_r", ROWS)) if routed else ()
        parts = (Part("d_pools", tiles_of("segments"), 0),) if routed else ()
        body: list[Statement] = [
            Make((*own, *(self.of_tokens(f"d_{name}_rows", name) for name in self.queries))),
            self._launch("rows", tiled=False),
            Make(self._cached_gradients),
            self._launch("segments", "x.n_segments * x.BH", parts=parts),
        ]
        if self.plan.sums:
            line = (
                "x.d_cached = x.d_cached.flip(2).cumsum(2).flip(2) - x.d_cached  # each state stands in every later sum"
            )
            body.append(Compute(line, reads=("d_cached",), changes=("d_cached",)))
        return body

    def _retreats(self) -> list[Statement]:
        """The gradient of the state from block to block, and what passes through error rows."""
        if "retreat" not in self.kernels:
            return []
        found = [self.of_tokens(name, "v") for name in self.plan.reverse.pulls]
        if self.plan.starts:
            started = {b.name: b.shape for b in self.saved if b.name.startswith("start_")}
            found += [Buffer(name.replace("start", "d_end", 1), shape) for name, shape in started.items()]
        return [Make(tuple(found)), self._launch("retreat", "x.n_chains * x.BH")]

    def _gradients(self) -> list[Buffer]:
        """Gradients of tensors with a head's axis; those of gates come with their kernels."""
        lagged = {source for source, _ in self.lagged.values()}
        found = []
        for name in self.plan.wanted:
            source = self.lagged.get(name, (name, 0))[0]
            if source in WIDTHS:  # those that lags are added to are summed up in float32
                found.append(self.of_tokens(f"d_{name}", source, "float32" if source in lagged else source))
        return found

    def _walked(self, name: str, walk: Walk) -> list[Statement]:
        wanted = [f"d_{gate}" for gate in walk.wanted] if walk.parts else []
        made = [Make(tuple(Buffer(gate, ROWS) for gate in wanted))] if wanted else []
        return [*made, self._launch(name, parts=tuple(Part(gate, tiles_of(name), 0) for gate in wanted))]
