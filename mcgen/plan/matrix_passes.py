"""The passes of a matrix memory: what its kernels are handed, and the host code's buffers, launches and statements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

from mcgen.ir.closed_form import lagged_names
from mcgen.plan.cached_reads import UNITS, Choosing, choosing_kernels, tiles_of, where_chosen
from mcgen.plan.host import (
    BACKWARD,
    FORWARD,
    Buffer,
    Compute,
    Kernel,
    Launch,
    Make,
    Part,
    Pass,
    Statement,
    When,
    operands,
)
from mcgen.plan.matrix import MatrixPlan, Walk
from mcgen.plan.matrix_choices import Choice, choices
from mcgen.plan.pass_tensors import (
    BLOCK,
    CHAIN,
    OF_SEQUENCE,
    OWN,
    ROWS,
    WIDTHS,
    PassTensors,
    Y,
    chooses,
    goes_on,
    keeps_y,
    led,
    of_tokens,
    owe,
    recall,
    result,
    save,
)
from mcgen.plan.weighted_reads import CONSTANTS, WeightedReads

SIZES = ("K", "V", "BT", "BK", "BV", "IN", "PREC")
STEPPED = ("CHUNK", "STEPS", "STEP")


@dataclass(frozen=True)
class MatrixPasses:
    """The passes of one plan."""

    plan: MatrixPlan

    def choices(self) -> list[Choice]:
        return choices(self.plan)

    phased = MappingProxyType({})  # programs in loops over hidden units: none
    flies = False

    @property
    def block(self) -> int:
        return self.plan.block

    @property
    def constants(self) -> Mapping[str, int]:
        """Sizes that the plan decides."""
        return CONSTANTS if self.plan.meaning.routes else {}

    @cached_property
    def tensors(self) -> PassTensors:
        plan, lagged = self.plan, lagged_names(self.plan.meaning.recurrence)
        return PassTensors(plan.meaning, plan.programs, ("K", "V"), (*plan.errors, *plan.reverse.pulls), lagged)

    @property
    def slots(self) -> tuple[str, ...]:
        return self.plan.meaning.recurrence.slots

    @cached_property
    def saved(self) -> tuple[Buffer, ...]:
        """What the forward pass leaves for the backward pass, y and choices apart."""
        return (*self._kept("start"), *self.tensors.saved, *(of_tokens(name, "v") for name in self.plan.errors))

    def _kept(self, what: str) -> list[Buffer]:
        """The state, or its gradient, at every block's border, where blocks follow one another."""
        if not self.plan.starts:
            return []
        found = [Buffer(f"{what}_{slot}", ("B", "H", "n_blocks", "K", "V")) for slot in self.slots]
        return found + ([Buffer(f"{what}_pool", ("B", "H", "n_blocks", "K"))] if self.plan.meaning.routes else [])

    # -- kernels ------------------------------------------------------------------------------------------------------

    @cached_property
    def kernels(self) -> Mapping[str, Kernel]:
        """All kernels by name, in the order of the file."""
        meaning, plan = self.plan.meaning, self.plan
        found = [self._states()] if self.saved or self.goes_on else []
        found += [self._weighted.read_cached()] if meaning.routes else []
        found += [self._read(), *(self._walk(name, walk) for name, walk in plan.walks.items())]
        found += self._reading_back() if meaning.reads_cached else []
        found += [self._retreat()] if self._retreats_always or self.goes_on else []
        if chooses(meaning):
            found += [*choosing_kernels(self.tensors, self._kernel), self._read("read_chosen", chooses=True)]
        return {kernel.name: kernel for kernel in found}

    def _kernel(
        self,
        name: str,
        tensors: Sequence[str],
        writes: Iterable[str],
        takes: Mapping[str, str],
        tables: tuple[str, ...] = ("blocks",),
        sizes: tuple[str, ...] = (*OF_SEQUENCE, "n_blocks", "n_segments"),
        more: tuple[str, ...] = (),
        axis: str = "v",
        both: Iterable[str] = (),
        ahead: bool = False,
        going_on: Sequence[str] = (),
    ) -> Kernel:
        axis, ahead = ("", True) if name == "route" else (axis, ahead)
        taken = {**takes, axis.upper(): "a tile"} if axis else takes
        given, state = operands(tensors, writes, both), tuple(going_on) if self.goes_on else ()
        constants = (*SIZES, *more)
        return Kernel(name, given, tables, sizes, constants, taken, axis, going_on=state, ahead=ahead)

    @property
    def goes_on(self) -> bool:
        return goes_on(self.plan.meaning)

    @property
    def _retreats_always(self) -> bool:
        """Whether gradients of whole sequences have to go from block to block."""
        return self.plan.starts or bool(self.plan.reverse.pulls)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the state that one call leaves for the next; the memory at a gradient chunk's start is none."""
        return (*self.slots, *(["pool"] if self.plan.meaning.routes else []))

    def _begun(self, names: Iterable[str]) -> list[str]:
        """What of a state kernels begin with whose programs walk a block, where nothing is kept of blocks' starts."""
        return [] if self.plan.starts else [f"begin_{name}" for name in names if name in self.parts]

    def _owed(self, names: Iterable[str]) -> list[str]:
        """What the state after the last token owes to a kernel; what it owes to pools comes with those."""
        return [f"d_after_{name}" for name in names if name in self.slots]

    @property
    def _stepped(self) -> tuple[str, ...]:
        return STEPPED if self.plan.stepped else ()

    def _states(self) -> Kernel:
        kept = [buffer.name for buffer in self.saved if buffer.name not in ("lse", "online")]
        tensors, tables = [*self.tensors.of("states"), *kept], ("blocks", "chains")
        going_on = [*(f"begin_{name}" for name in self.parts), *(f"after_{name}" for name in self.parts)]
        return self._kernel("states", tensors, kept, CHAIN, tables, more=self._stepped, going_on=going_on)

    def _read(self, name: str = "read", chooses: bool = False) -> Kernel:
        routed, sums = self.plan.meaning.routes, self.plan.meaning.reads_cached and not self.plan.meaning.routes
        unread = {"cached", "pools"} if routed else set()
        left = [buffer.name for buffer in self.saved if buffer.name not in unread]
        cached = (["r_chosen", "o_chosen"] if chooses else ["lse_cached", "y_cached"]) if routed else []
        tensors = [*self.tensors.of("read", *(["read_segment"] if sums else [])), *left, *cached, "y"]
        more, begun = ("TOP_K",) if chooses else (), self._begun(self.plan.state)
        return self._kernel(name, tensors, ["lse", "online", "y"], BLOCK, more=more, going_on=begun)

    def _reading_back(self) -> list[Kernel]:
        """The reverse of reads of every earlier segment."""
        if self.plan.meaning.routes:
            return self._weighted.reading_back()
        rows = [f"d_{name}_rows" for name in self.tensors.queries]
        given, sizes = [*self.tensors.of("segment"), "cached", "d_cached"], (*OF_SEQUENCE, "n_segments")
        return [
            self._kernel("rows", [*self.tensors.of("rows"), "d_y", "cached", *rows], rows, BLOCK),
            self._kernel("segments", given, ["d_cached"], OWN, ("segments",), sizes),
        ]

    def _retreat(self) -> Kernel:
        plan, pulls, meaning = self.plan, self.plan.reverse.pulls, self.plan.meaning
        inputs = [*plan.programs["retreat"].inputs, *plan.advancing(plan.retreat_state).inputs]
        starts = [f"start_{name}" for name in plan.retreat_state if name != "anchor"] if plan.starts else []
        ends = [buffer.name for buffer in self._kept("d_end")]
        given = (["d_cached"] if meaning.reads_cached else []) + (["d_pools"] if meaning.routes else [])
        tensors = [*self.tensors.behind(inputs), *pulls, *starts, *ends, *given]
        going_on = [*self._begun(plan.retreat_state), *self._owed(self.slots), *(f"d_begin_{n}" for n in self.parts)]
        written, tables = [*pulls, *ends], ("blocks", "chains")
        return self._kernel("retreat", tensors, written, CHAIN, tables, more=self._stepped, going_on=going_on)

    def _walk(self, name: str, walk: Walk) -> Kernel:
        tensors = self.tensors.behind([*walk.program.inputs, *self.plan.advancing(walk.state).inputs])
        if self.plan.starts:
            tensors += [f"start_{part}" for part in walk.state if part != "anchor"]
            tensors += [f"d_end_{part}" for part in walk.d_state if part != "anchor"]
        else:
            tensors += ["d_cached"] if "M" in walk.d_state and self.plan.meaning.reads_cached else []
            tensors += ["d_pools"] if "pool" in walk.d_state else []
        wanted = [f"d_{one}" for one in walk.wanted]
        constants = STEPPED if walk.stepped else ()
        axis = "" if walk.whole else walk.axis
        going_on = [*self._begun(walk.state), *([] if self.plan.starts else self._owed(walk.d_state))]
        return self._kernel(name, [*tensors, *wanted], wanted, BLOCK, more=constants, axis=axis, going_on=going_on)

    # -- passes -------------------------------------------------------------------------------------------------------

    @property
    def _weighted(self) -> WeightedReads:
        return WeightedReads(self.tensors, partial(self._kernel, ahead=True))

    @property
    def _choosing(self) -> Choosing:
        return Choosing(self.kernels, self.tensors, room=lambda kernel: None, tiled=True)

    def _launch(self, kernel: str, units: str = UNITS, tiled: bool = True, parts: tuple[Part, ...] = ()) -> Launch:
        return Launch(self.kernels[kernel], units, tiles_of(kernel) if tiled else "", parts=parts)

    @cached_property
    def forward(self) -> Pass:
        meaning = self.plan.meaning
        body: list[Statement] = [*save(meaning, self.saved), Make((Y,))]
        states = self._launch("states", "x.n_chains * x.BH")
        if self.saved:
            body.append(states)
        elif self.goes_on:
            body.append(When("x.place", (states,)))
        if self.plan.sums:
            line = "x.cached.copy_(x.cached.cumsum(2) - x.cached)  # for each segment, the sum of the states before it"
            line = "_sum_cached(x)" if self.goes_on else line
            body.append(Compute(line, reads=("cached",), changes=("cached",)))
        every = self._weighted.read() if meaning.routes else []
        body += where_chosen(self.tensors, self._choosing.read, [*every, self._launch("read")])
        return Pass("forward", FORWARD, self.tensors.given, tuple(body), result(meaning))

    @cached_property
    def backward(self) -> Pass:
        meaning = self.plan.meaning
        body: list[Statement] = [
            *owe(meaning),
            recall(meaning, self.saved),
            Compute(f"x.d_y = {led(meaning, 'd_y')}", (of_tokens("d_y", "y", "v"),)),
        ]
        if self.goes_on and keeps_y(meaning) and self.tensors.lagged:
            body.append(Compute("x.y = _led(x, x.y)"))
        if meaning.reads_cached:
            body += where_chosen(self.tensors, self._choosing.reverse, self._reverse_reads())
            if self.goes_on and not self.plan.sums:
                body.append(Compute("_owe_cached(x)", changes=("d_cached",)))
        body += self._retreats()
        body.append(Make(tuple(self._gradients())))
        if self.goes_on and self.tensors.lagged:
            body.append(Compute("_clear_front(x)"))
        for name, walk in self.plan.walks.items():
            body += self._walked(name, walk)
        for name, (source, lag) in self.tensors.lagged.items():
            line = f"_add_unlagged({'x, ' if self.goes_on else ''}x.d_{source}, x.d_{name}, {lag})"
            body.append(Compute(line, reads=(f"d_{source}", f"d_{name}"), changes=(f"d_{source}",)))
        begun = " + _of_begun(x)" if self.goes_on else ""
        return Pass("backward", BACKWARD, self.tensors.given, tuple(body), f"_gradients(x, tensors){begun}")

    def _reverse_reads(self) -> list[Statement]:
        """The reverse of reads of every earlier segment."""
        if self.plan.meaning.routes:
            return self._weighted.reverse()
        line = "x.d_cached = x.d_cached.flip(2).cumsum(2).flip(2) - x.d_cached  # each state stands in every later sum"
        line = "_owe_cached(x)" if self.goes_on else line
        return [
            Make(tuple(of_tokens(f"d_{name}_rows", name) for name in self.tensors.queries)),
            self._launch("rows", tiled=False),
            Make(self.tensors.d_cached),
            self._launch("segments", "x.n_segments * x.BH"),
            Compute(line, reads=("d_cached",), changes=("d_cached",)),
        ]

    def _retreats(self) -> list[Statement]:
        """The gradient of the state from block to block, and what passes through error rows."""
        if not self._retreats_always:
            return [When("x.begun", (self._launch("retreat", "x.BH"),))] if self.goes_on else []
        found = [of_tokens(name, "v") for name in self.plan.reverse.pulls]
        return [Make((*found, *self._kept("d_end"))), self._launch("retreat", "x.n_chains * x.BH")]

    def _gradients(self) -> list[Buffer]:
        """Gradients of tensors with a head's axis; those of gates come with their kernels."""
        lagged = {source for source, _ in self.tensors.lagged.values()}
        found = []
        for name in self.plan.wanted:
            source = self.tensors.lagged.get(name, (name, 0))[0]
            if source in WIDTHS:  # those that lags are added to are summed up in float32
                found.append(of_tokens(f"d_{name}", source, "float32" if source in lagged else source))
        return found

    def _walked(self, name: str, walk: Walk) -> list[Statement]:
        wanted = [f"d_{gate}" for gate in walk.wanted] if walk.parts else []
        made = [Make(tuple(Buffer(gate, ROWS) for gate in wanted))] if wanted else []
        return [*made, self._launch(name, parts=tuple(Part(gate, tiles_of(name), 0) for gate in wanted))]
