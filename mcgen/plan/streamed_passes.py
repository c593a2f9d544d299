"""The passes of a deep memory whose state streams through buffers: its kernels' operands, and its host code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.ir.backward import query_inputs
from mcgen.ir.program import Program
from mcgen.passes.phases import HIDDEN as HIDDEN_AXES
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
    where_chosen,
)
from mcgen.plan.configurations import HIDDEN
from mcgen.plan.host import Buffer, Compute, Kernel, Launch, Let, Make, Pass, Statement, operands
from mcgen.plan.streamed import StreamedPlan

SIZES = ("K", "V", "F", "BT", "BK", "BV", "BF", "STATE", "MEMORY", "ROWS", "IN", "PREC")
OF_SEQUENCE = ("T", "H", "BH")
BLOCK = {"T": "a block", "n_segments": "those before its segment"}
CHAIN = {"T": "a chain", "n_segments": "its own"}
LATER = {"T": "rows of later segments", "n_segments": "one"}
CHOICES = {"T": "rows of some choices", "n_segments": "those chosen"}
CHOOSERS = {"T": "rows that chose it", "n_segments": "one"}
CHAINS = "x.n_chains * x.BH"
STEPPING = ("walk", "read_soup", "through_layers", "reverse")
"""The kernels that go step by step: each takes the rows of a gradient chunk at once, unless it is several steps."""
TO_AND_FRO = "2 * STATE + ROWS"
WEIGHTS = Compute("x.theta = _packed(tensors[len(INPUTS) :])", (Buffer("theta", ("H", "MEMORY")),))
"""The initial weights, a row a head."""
WIDTHS = {"q": "K", "u": "K", "k": "K", "v": "V", "y": "V"}


@dataclass(frozen=True)
class StreamedPasses:
    """The passes of one plan."""

    plan: StreamedPlan

    def choices(self) -> Iterable[tuple[str, str, str]]:
        return self.plan.choices()

    @property
    def phased(self) -> Mapping[str, Program]:
        """The programs that are loops over hidden units."""
        return {name: self.plan.programs[name] for name in self.plan.phased}

    # -- buffers ------------------------------------------------------------------------------------------------------

    @cached_property
    def queries(self) -> list[str]:
        return query_inputs(self.plan.meaning)

    def of_tokens(self, name: str, like: str, type: str = "float32") -> Buffer:
        """A buffer of a row a token, as wide as an input."""
        return Buffer(name, (*ROWS, *((WIDTHS[like],) if like in WIDTHS else ())), type)

    @cached_property
    def given(self) -> tuple[Buffer, ...]:
        """The operator's inputs, in float types of their own."""
        return tuple(self.of_tokens(name, name, name) for name in self.plan.meaning.inputs)

    @cached_property
    def saved(self) -> tuple[Buffer, ...]:
        """What the forward pass leaves for the backward pass, y and choices apart."""
        states = [Buffer("cached", ("B", "H", "n_segments", "MEMORY"))] if self.plan.meaning.reads_cached else []
        pools = Buffer("pools", ("B", "H", "n_segments", "K"))
        routing = [pools, Buffer("lse", ROWS), Buffer("online", ROWS)] if self.plan.meaning.routes else []
        return (*states, *routing)

    @property
    def _cached_gradients(self) -> tuple[Buffer, ...]:
        kept = {buffer.name: buffer.shape for buffer in self.saved}
        return tuple(Buffer(f"d_{name}", kept[name]) for name in ("cached", "pools") if name in kept)

    # -- kernels ------------------------------------------------------------------------------------------------------

    def tensors(self, inputs: Iterable[str]) -> list[str]:
        """The per-token tensors behind program inputs, each once, in an order of their own."""
        read = set(inputs)
        known = [*self.plan.meaning.inputs, "d_y", "y", "lse", "online", "delta", "d_r", *self.plan.between]
        known += [f"d_{name}_rows" for name in self.queries]
        return [name for name in known if name in read]

    def _inputs(self, *programs: str) -> list[str]:
        return self.tensors([name for part in programs for name in self.plan.programs[part].inputs])

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
    ) -> Kernel:
        """A kernel whose programs take unit after unit, and the hidden units in tiles, with scratch of their own."""
        rows = self.plan.least_rows if name in STEPPING and not self.plan.anchored else None
        whole = name == "walk" and self.plan.resident
        constants = (*SIZES, *more)
        given = operands([*tensors, "work"], {*writes, "work"}, {"work"})
        return Kernel(name, given, tables, (*sizes, "n_entries"), constants, takes, HIDDEN, rows, whole)

    def _walking(self) -> list[Kernel]:
        meaning = self.plan.meaning
        out = ["y"] if not meaning.reads_cached else ["o", *(["r"] if meaning.routes else [])]
        kept = (["cached"] if meaning.reads_cached else []) + (["pools"] if meaning.routes else [])
        written = [*([] if self.plan.soup else out), *kept]
        tensors = [*self._inputs("walk"), *written, "theta"]
        return [self.kernel("walk", tensors, written, CHAIN, ("steps", "chains"))]

    def _reading(self) -> list[Kernel]:
        meaning = self.plan.meaning
        if self.plan.soup:
            return [self._soup("read_soup", ("read_soup", "logit"), ["cached", "pools"], ["lse", "online", "y"])]
        every = self._read_every() if meaning.reads_cached else []
        return [*self._choosing_reads(), *every] if chooses(meaning) else every

    def _read_every(self) -> list[Kernel]:
        routed = ["lse", "online"] if self.plan.meaning.routes else []
        more = ["o", "r", "pools", *routed] if routed else ["o"]
        return [self.kernel("read", [*self._inputs("read_segment"), "cached", *more, "y"], [*routed, "y"], BLOCK)]

    def _choosing_reads(self) -> list[Kernel]:
        logit, read = (self.plan.only_read(label) for label in ("r_cached", "o_cached"))
        chosen, top = ["chosen", "r_chosen"], ("TOP_K",)
        online = ["o", "r", "r_chosen", "o_chosen", "lse", "online", "y"]
        return [
            self.kernel(
                "route", [*self.tensors(logit.inputs), "pools", *chosen], chosen, BLOCK, more=("TOP_K", "PLACES")
            ),
            self._of_choices("chosen_reads", [*self.tensors(read.inputs), "cached"], ["o_chosen"]),
            self.kernel("read_chosen", online, ["lse", "online", "y"], BLOCK, more=top),
        ]

    def _of_choices(self, name: str, tensors: list[str], written: list[str]) -> Kernel:
        sizes = ("T", "H", "n_choices", "n_groups")
        return self.kernel(name, [*tensors, *written], written, CHOICES, ("order", "groups"), sizes, ("TOP_K",))

    def _reading_back(self) -> list[Kernel]:
        meaning = self.plan.meaning
        if not meaning.reads_cached:
            return []
        through = self._through_layers() if self.plan.soup else []
        choosing = self._choosing_back() if chooses(meaning) else []
        return [*through, *self._reverse_every(), *choosing]

    def _through_layers(self) -> list[Kernel]:
        return [self._soup("through_layers", ("through_layers",), ["cached", "pools"], ["delta", *self.plan.between])]

    def _soup(self, name: str, programs: Sequence[str], reads: list[str], writes: list[str]) -> Kernel:
        """A kernel that walks the chains again, for what is read of all segments at once."""
        tensors = [*self._inputs(*programs, "advance"), *reads, *writes, "theta"]
        return self.kernel(name, tensors, writes, CHAIN, ("steps", "chains"))

    def _reverse_every(self) -> list[Kernel]:
        routed, found = self.plan.meaning.routes, [f"d_{name}_rows" for name in self.queries]
        dots = ["d_y", *(["y", "delta"] if routed else [])] if not self.plan.soup else []
        more = ["pools", "d_r"] if routed else []
        written = {*found, "d_r", *(["delta"] if not self.plan.soup else [])}
        rows = self.kernel("rows", [*self._inputs("rows"), "cached", *more, *dots, *found], written, BLOCK)
        pools = ["pools", "d_pools"] if routed else []
        tensors = [*self._inputs("segment"), "cached", "d_cached", *pools]
        return [rows, self.kernel("segments", tensors, ["d_cached", "d_pools"], LATER, ("segments",))]

    def _choosing_back(self) -> list[Kernel]:
        sums = [f"d_{name}_chosen" for name in [*self.queries, "r"]]
        rows = self._of_choices("chosen_rows", [*self._inputs("rows"), "cached", "pools"], sums)
        gradients, sizes = ["d_cached", "d_pools"], ("T", "H", "n_segments", "n_groups")
        tensors = [*self._inputs("segment"), "cached", "pools", *gradients]
        tables = ("order", "bounds", "segments")
        return [rows, self.kernel("chosen_segments", tensors, gradients, CHOOSERS, tables, sizes, ("TOP_K",))]

    def _walking_back(self) -> list[Kernel]:
        program, meaning = self.plan.programs["reverse"], self.plan.meaning
        more = (["d_cached"] if meaning.reads_cached else []) + (["d_pools"] if meaning.routes else [])
        found = [name for name in program.outputs if name.removeprefix("d_") not in self.plan.state]
        tensors = [*self._inputs("reverse", "advance"), *more, *found, "theta", "d_theta"]
        sizes = ("group", *OF_SEQUENCE, "n_segments")
        return [self.kernel("reverse", tensors, [*found, "d_theta"], CHAIN, ("steps", "chains"), sizes)]

    # -- passes -------------------------------------------------------------------------------------------------------

    @property
    def choosing(self) -> Choosing:
        return Choosing(self.kernels, self.queries, room="ROWS")

    @cached_property
    def forward(self) -> Pass:
        rows = Make((self.of_tokens("y", "y", "v"), *self._online_rows()))
        body = [WEIGHTS, *save(self.plan.meaning, self.saved), rows, *self.walk(), *self._read()]
        return Pass("forward", FORWARD, self.given, tuple(body), "[x.y, *saved]")

    def _online_rows(self) -> list[Buffer]:
        """What is read of the online memory, for the kernel that reads segments."""
        if self.plan.soup or not self.plan.meaning.reads_cached:
            return []
        return [self.of_tokens("o", "y"), *([Buffer("r", ROWS)] if self.plan.meaning.routes else [])]

    def walk(self) -> list[Statement]:
        """The chains forward."""
        return self._stepping("walk", "ROWS" if self.plan.resident else TO_AND_FRO)

    def _read(self) -> list[Statement]:
        if self.plan.soup:
            return self._stepping("read_soup")
        if not self.plan.meaning.reads_cached:
            return []
        choosing = self.choosing.read() if chooses(self.plan.meaning) else []
        return where_chosen(self.plan.meaning, choosing, [self._launch("read")])

    def _launch(self, kernel: str, units: str = UNITS, room: str = "ROWS") -> Launch:
        return Launch(self.kernels[kernel], units, room=room)

    def _stepping(self, kernel: str, room: str = TO_AND_FRO) -> list[Statement]:
        """A kernel that goes step by step, of as many rows as it takes."""
        return [Let("x.steps, x.chains, x.group", f'_steps("{kernel}", x)'), self._launch(kernel, CHAINS, room)]

    @cached_property
    def backward(self) -> Pass:
        y = self.of_tokens("y", "y", "v")
        shared = self.plan.meaning.aggregate == "mean"
        d_y = "d_y.float() * _shares(x.T, x.device)" if shared else "d_y.contiguous()"
        body = [
            WEIGHTS,
            recall(self.plan.meaning, self.saved, y if keeps_y(self.plan.meaning) else None),
            Compute(f"x.d_y = {d_y}", (self.of_tokens("d_y", "y", "float32" if shared else "v"),)),
            *self._reverse_reads(),
            Make(tuple(self.gradients())),
            *self.walk_back(),
        ]
        return Pass(
            "backward",
            BACKWARD,
            self.given,
            tuple(body),
            "_gradients(x, tensors) + _unpacked(x.d_theta.sum((0, 1)), tensors[len(INPUTS) :])",
        )

    def gradients(self) -> list[Buffer]:
        """Those of the inputs; of gates in float32."""
        gates = self.plan.meaning.spec.tensor_gates
        return [
            self.of_tokens(f"d_{name}", name, "float32" if name in gates else name) for name in self.plan.meaning.inputs
        ]

    def _reverse_reads(self) -> list[Statement]:
        meaning = self.plan.meaning
        if not meaning.reads_cached:
            return []
        choosing = self.choosing.reverse(self._cached_gradients) if chooses(meaning) else []
        return where_chosen(meaning, choosing, self._reverse_every_read())

    def _reverse_every_read(self) -> list[Statement]:
        """The reverse of reads of every earlier segment."""
        own = (Buffer("delta", ROWS), Buffer("d_r", ROWS)) if self.plan.meaning.routes else ()
        between = tuple(Buffer(name, (*ROWS, width_of(axis))) for name, axis in self.plan.between.items())
        through = self._stepping("through_layers") if self.plan.soup else []
        rows = tuple(self.of_tokens(f"d_{name}_rows", name) for name in self.queries)
        return [
            Make((*own, *between)),
            *through,
            Make((*rows, *self._cached_gradients)),
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
