"""The passes of a deep memory whose state streams through buffers: its kernels' operands, and its host code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.ir.program import Program
from mcgen.passes.phases import HIDDEN as HIDDEN_AXES
from mcgen.plan.cached_reads import UNITS, Choosing, choosing_kernels, where_chosen
from mcgen.plan.configurations import HIDDEN
from mcgen.plan.host import BACKWARD, FORWARD, Buffer, Compute, Kernel, Launch, Let, Make, Pass, Statement, operands
from mcgen.plan.pass_tensors import (
    BLOCK,
    CHAIN,
    LATER,
    OF_SEQUENCE,
    ROWS,
    PassTensors,
    Y,
    chooses,
    goes_on,
    of_tokens,
    owe,
    recall,
    result,
    save,
)
from mcgen.plan.streamed import StreamedPlan

SIZES = ("K", "V", "F", "BT", "BK", "BV", "BF", "STATE", "MEMORY", "ROWS", "IN", "PREC")
CHAINS = "x.n_chains * x.BH"
STEPPING = ("walk", "read_soup", "through_layers", "reverse")
"""The kernels that go step by step: each takes the rows of a gradient chunk at once, unless it is several steps."""
TO_AND_FRO = "2 * STATE + ROWS"
WEIGHTS = Compute("x.theta = _packed(x.weights)", (Buffer("theta", ("H", "MEMORY")),))
"""The initial weights, a row a head."""
RESULT = "_gradients(x, tensors) + _of_weights(x)"


@dataclass(frozen=True)
class StreamedPasses:
    """The passes of one plan."""

    plan: StreamedPlan
    block = 64
    flies = True

    @property
    def constants(self) -> dict[str, int]:
        """Numbers of hidden units, and of what lies in buffers."""
        plan = self.plan
        return {"F": plan.hidden, "STATE": plan.total, "MEMORY": plan.memory, "ROWS": plan.between_loops}

    def choices(self) -> Iterable[tuple[str, str, str]]:
        return self.plan.choices()

    @property
    def phased(self) -> Mapping[str, Program]:
        """The programs that are loops over hidden units."""
        return {name: self.plan.programs[name] for name in self.plan.phased}

    @cached_property
    def tensors(self) -> PassTensors:
        return PassTensors(self.plan.meaning, self.plan.programs, ("MEMORY",), tuple(self.plan.between))

    @property
    def saved(self) -> tuple[Buffer, ...]:
        """What the forward pass leaves for the backward pass, y and choices apart."""
        return self.tensors.saved

    # -- kernels ------------------------------------------------------------------------------------------------------

    @cached_property
    def kernels(self) -> Mapping[str, Kernel]:
        """All kernels by name, in the order of the file."""
        found = [*self._walking(), *self._reading(), *self._reading_back(), *self._walking_back()]
        return {kernel.name: kernel for kernel in found}

    def kernel(
        self,
        name: str,
        tensors: Sequence[str],
        writes: Iterable[str],
        takes: Mapping[str, str],
        tables: tuple[str, ...] = ("blocks",),
        sizes: tuple[str, ...] = (*OF_SEQUENCE, "n_segments"),
        more: tuple[str, ...] = (),
        going_on: tuple[str, ...] = (),
    ) -> Kernel:
        """A kernel whose programs take unit after unit, and the hidden units in tiles, with scratch of their own."""
        rows = self.plan.least_rows if name in STEPPING and not self.plan.anchored else None
        whole = name == "walk" and self.plan.resident
        constants = (*SIZES, *more)
        given = operands([*tensors, "work"], {*writes, "work"}, {"work"})
        numbers, state = (*sizes, "n_entries"), going_on if goes_on(self.plan.meaning) else ()
        return Kernel(name, given, tables, numbers, constants, takes, HIDDEN, rows, whole, state)

    def _walking(self) -> list[Kernel]:
        meaning = self.plan.meaning
        out = ["y"] if not meaning.reads_cached else ["o", *(["r"] if meaning.routes else [])]
        kept = (["cached"] if meaning.reads_cached else []) + (["pools"] if meaning.routes else [])
        written = [*([] if self.plan.soup else out), *kept]
        tensors = [*self.tensors.of("walk"), *written, "theta"]
        return [self.kernel("walk", tensors, written, CHAIN, ("steps", "chains"), going_on=("begin", "after"))]

    def _reading(self) -> list[Kernel]:
        meaning = self.plan.meaning
        if self.plan.soup:
            return [self._soup("read_soup", ("read_soup", "logit"), ["cached", "pools"], ["lse", "online", "y"])]
        every = self._read_every() if meaning.reads_cached else []
        return [*every, self._read_chosen()] if chooses(meaning) else every

    def _read_every(self) -> list[Kernel]:
        routed = ["lse", "online"] if self.plan.meaning.routes else []
        more = ["o", "r", "pools", *routed] if routed else ["o"]
        return [self.kernel("read", [*self.tensors.of("read_segment"), "cached", *more, "y"], [*routed, "y"], BLOCK)]

    def _read_chosen(self) -> Kernel:
        written = ["lse", "online", "y"]
        return self.kernel("read_chosen", ["o", "r", "r_chosen", "o_chosen", *written], written, BLOCK, more=("TOP_K",))

    def _reading_back(self) -> list[Kernel]:
        meaning = self.plan.meaning
        if not meaning.reads_cached:
            return []
        through = self._through_layers() if self.plan.soup else []
        choosing = choosing_kernels(self.tensors, self.kernel, "T", "H") if chooses(meaning) else []
        return [*through, *self._reverse_every(), *choosing]

    def _through_layers(self) -> list[Kernel]:
        return [self._soup("through_layers", ("through_layers",), ["cached", "pools"], ["delta", *self.plan.between])]

    def _soup(self, name: str, programs: Sequence[str], reads: list[str], writes: list[str]) -> Kernel:
        """A kernel that walks the chains again, for what is read of all segments at once."""
        tensors = [*self.tensors.of(*programs, "advance"), *reads, *writes, "theta"]
        return self.kernel(name, tensors, writes, CHAIN, ("steps", "chains"), going_on=("begin",))

    def _reverse_every(self) -> list[Kernel]:
        routed, found = self.plan.meaning.routes, [f"d_{name}_rows" for name in self.tensors.queries]
        dots = ["d_y", *(["y", "delta"] if routed else [])] if not self.plan.soup else []
        more = ["pools", "d_r"] if routed else []
        written = {*found, "d_r", *(["delta"] if not self.plan.soup else [])}
        rows = self.kernel("rows", [*self.tensors.of("rows"), "cached", *more, *dots, *found], written, BLOCK)
        pools = ["pools", "d_pools"] if routed else []
        tensors = [*self.tensors.of("segment"), "cached", "d_cached", *pools]
        return [rows, self.kernel("segments", tensors, ["d_cached", "d_pools"], LATER, ("segments",))]

    def _walking_back(self) -> list[Kernel]:
        program, meaning = self.plan.programs["reverse"], self.plan.meaning
        more = (["d_cached"] if meaning.reads_cached else []) + (["d_pools"] if meaning.routes else [])
        found = [name for name in program.outputs if name.removeprefix("d_") not in self.plan.state]
        tensors = [*self.tensors.of("reverse", "advance"), *more, *found, "theta", "d_theta"]
        sizes = ("group", *OF_SEQUENCE, "n_segments")
        going_on, tables = ("begin", "d_after", "d_begin"), ("steps", "chains")
        return [self.kernel("reverse", tensors, [*found, "d_theta"], CHAIN, tables, sizes, going_on=going_on)]

    # -- passes -------------------------------------------------------------------------------------------------------

    @property
    def choosing(self) -> Choosing:
        return Choosing(self.kernels, self.tensors, self._scratch)

    @cached_property
    def _through_cached(self) -> Mapping[str, Program]:
        """The programs of the kernels that go through cached states, by kernel."""
        programs = self.plan.programs
        rows, segment = programs["rows"], programs["segment"]
        reads = {"read": programs["read_segment"], "chosen_reads": self.plan.only_read("o_cached")}
        return {**reads, "rows": rows, "chosen_rows": rows, "segments": segment, "chosen_segments": segment}

    def _scratch(self, kernel: str) -> str:
        """Numbers of scratch of a program that has to do with cached states; none where it goes through no state."""
        return self.rows_of(self._through_cached[kernel]) if kernel in self._through_cached else "0"

    def rows_of(self, program: Program) -> str:
        """Numbers of what passes between a program's loops: room for the most that any has, or none."""
        return "ROWS" if self.plan.keeps_rows(program) else "0"

    @cached_property
    def forward(self) -> Pass:
        rows = Make((Y, *self._online_rows()))
        body = [WEIGHTS, *save(self.plan.meaning, self.saved), rows, *self.walk(), *self._read()]
        return Pass("forward", FORWARD, self.tensors.given, tuple(body), result(self.plan.meaning))

    def _online_rows(self) -> list[Buffer]:
        """What is read of the online memory, for the kernel that reads segments."""
        if self.plan.soup or not self.plan.meaning.reads_cached:
            return []
        return [of_tokens("o", "y"), *([Buffer("r", ROWS)] if self.plan.meaning.routes else [])]

    def walk(self) -> list[Statement]:
        """The chains forward."""
        room = self.rows_of(self.plan.programs["walk"]) if self.plan.resident else TO_AND_FRO
        return self._stepping("walk", room)

    def _read(self) -> list[Statement]:
        if self.plan.soup:
            return self._stepping("read_soup")
        if not self.plan.meaning.reads_cached:
            return []
        return where_chosen(self.tensors, self.choosing.read, [self._launch("read")])

    def _launch(self, kernel: str, units: str = UNITS) -> Launch:
        return Launch(self.kernels[kernel], units, room=self._scratch(kernel))

    def _stepping(self, kernel: str, room: str = TO_AND_FRO) -> list[Statement]:
        """A kernel that goes step by step, of as many rows as it takes."""
        return [
            Let("x.steps, x.chains, x.group", f'_steps("{kernel}", x)'),
            Launch(self.kernels[kernel], CHAINS, room=room),
        ]

    @cached_property
    def backward(self) -> Pass:
        shared = self.plan.meaning.aggregate == "mean"
        place = "x.place" if goes_on(self.plan.meaning) else "()"
        d_y = f"d_y.float() * _shares(x.T, {place}, x.device)" if shared else "d_y.contiguous()"
        body = [
            WEIGHTS,
            *owe(self.plan.meaning),
            recall(self.plan.meaning, self.saved),
            Compute(f"x.d_y = {d_y}", (of_tokens("d_y", "y", "float32" if shared else "v"),)),
            *self._reverse_reads(),
            Make(tuple(self.gradients())),
            *self.walk_back(),
        ]
        begun = " + _of_begun(x)" if goes_on(self.plan.meaning) else ""
        return Pass("backward", BACKWARD, self.tensors.given, tuple(body), RESULT + begun)

    def gradients(self) -> list[Buffer]:
        """Those of the inputs; of gates in float32."""
        gates = self.plan.meaning.spec.tensor_gates
        return [of_tokens(f"d_{name}", name, "float32" if name in gates else name) for name in self.plan.meaning.inputs]

    def _reverse_reads(self) -> list[Statement]:
        if not self.plan.meaning.reads_cached:
            return []
        owed = [Compute("_owe_cached(x)", changes=("d_cached",))] if goes_on(self.plan.meaning) else []
        return [*where_chosen(self.tensors, self.choosing.reverse, self._reverse_every_read()), *owed]

    def _reverse_every_read(self) -> list[Statement]:
        """The reverse of reads of every earlier segment."""
        own = (Buffer("delta", ROWS), Buffer("d_r", ROWS)) if self.plan.meaning.routes else ()
        between = tuple(Buffer(name, (*ROWS, width_of(axis))) for name, axis in self.plan.between.items())
        through = self._stepping("through_layers") if self.plan.soup else []
        rows = tuple(of_tokens(f"d_{name}_rows", name) for name in self.tensors.queries)
        return [
            Make((*own, *between)),
            *through,
            Make((*rows, *self.tensors.d_cached)),
            self._launch("rows"),
            self._launch("segments", "x.n_segments * x.BH"),
        ]

    def walk_back(self) -> list[Statement]:
        """The chains backwards."""
        return [
            Make((Buffer("d_theta", ("n_chains", "B", "H", "MEMORY")),)),
            *self._stepping("reverse", "(2 * x.group + 4) * STATE + ROWS"),
        ]


def width_of(axis: str) -> str:
    """How sizes call the length of an axis of the parameters."""
    return "F" if axis in HIDDEN_AXES else axis.upper()
