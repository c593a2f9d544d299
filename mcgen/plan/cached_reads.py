"""What every plan does alike where rows read cached segments: what is saved for that, and how rows choose segments.

Choices are sorted by the segment they read, so that work and traffic of the reads follow top_k, whatever the number of
segments; only routing logits, one vector product each, meet them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcgen.plan.host import INTEGER, Buffer, Compute, Kernel, Launch, Let, Make, Part, Statement, When
from mcgen.symbolic.meaning import Meaning

FORWARD = "y, and what the backward pass needs of it."
BACKWARD = "The gradients of all inputs, from that of y and what the forward pass saved."
ROWS = ("B", "T", "H")
UNITS = "x.n_blocks * x.BH"
CHOSEN = (*ROWS, "TOP_K")
LENGTHS = {"order": "n_choices", "groups": "n_choices", "bounds": "n_groups + 1"}
"""Of the tables that sort choices."""


def keeps_y(meaning: Meaning) -> bool:
    """Whether the reverse of reads starts from y: from its inner product with the cotangent, as a softmax's does."""
    return meaning.routes and meaning.aggregate != "soup"


def chooses(meaning: Meaning) -> bool:
    """Whether rows choose the segments that they read."""
    return meaning.aggregate == "ssc"


def choices(meaning: Meaning) -> tuple[Buffer, ...]:
    """What the forward pass saves in tensors of their own: the segments that rows choose."""
    return (Buffer("chosen", CHOSEN, INTEGER),) if chooses(meaning) else ()


def save(meaning: Meaning, saved: Sequence[Buffer]) -> list[Statement]:
    """Room for what the forward pass saves; all of it is the same at every run, what lies between tensors too."""
    clear = Compute("_clear_between(saved[0], _rooms_triton(x.B, x.T, x.H))")
    return [Compute("saved = _saved_triton(tensors)"), clear, recall(meaning, saved)]


def recall(meaning: Meaning, saved: Sequence[Buffer], y: Buffer | None = None) -> Compute:
    """What the forward pass saved, by name: parts of one buffer, and where rows choose, their choices."""
    apart, first = choices(meaning), (y,) if y else ()
    names = [*(one.name for one in first), "buffer", *(one.name for one in apart)]
    listed = ", ".join(f'"{name}"' for name in names)
    return Compute(f"_recall(x, [{listed}], saved)", makes=(*first, *saved, *apart))


def where_chosen(meaning: Meaning, choosing: Sequence[Statement], all_read: Sequence[Statement]) -> list[Statement]:
    """Statements for rows that choose among segments; of all segments, where there are no more than that."""
    if not chooses(meaning):
        return list(all_read)
    return [When("x.n_segments - 1 > TOP_K", tuple(choosing), tuple(all_read))]


@dataclass(frozen=True)
class Choosing:
    """The statements of a pass where rows choose segments.

    room    numbers that a program has as scratch, if it has any
    tiled   whether kernels that read or write values have their tiles on the grid, and each a part of sums over values
    """

    kernels: Mapping[str, Kernel]
    queries: Sequence[str]
    room: str | None
    tiled: bool = False

    def read(self) -> list[Statement]:
        """The forward pass from cached states on."""
        return [
            Make((Buffer("r_chosen", CHOSEN),)),
            Launch(self.kernels["route"], UNITS, room=self.room, apart=not self.tiled),
            *self._grouped(),
            Make((Buffer("o_chosen", (*CHOSEN, "V")),)),
            self._of_choices("chosen_reads", self.tiled),
            Launch(self.kernels["read_chosen"], UNITS, self._tiles("read_chosen"), self.room),
        ]

    def reverse(self, cached: Sequence[Buffer]) -> list[Statement]:
        """The reverse of these reads, to the gradients of rows' queries and of what is cached."""
        rows = [Buffer(f"d_{name}_chosen", (*CHOSEN, "K")) for name in self.queries]
        dot = "(x.y.float() * x.d_y.float()).sum(-1)"
        sums = [
            Compute(f"x.d_{n}_rows = x.d_{n}_chosen.sum(3)", (Buffer(f"d_{n}_rows", (*ROWS, "K")),), (f"d_{n}_chosen",))
            for n in self.queries
        ]
        parts = (Part("d_pools", tiles_of("chosen_segments"), 0),) if self.tiled else ()
        return [
            *self._grouped(),
            Compute(f"x.delta = {dot}", (Buffer("delta", ROWS),), ("y", "d_y")),
            Make((Buffer("d_r_chosen", CHOSEN), *rows)),
            self._of_choices("chosen_rows"),
            *sums,
            Compute("x.d_r = -x.d_r_chosen.sum(3)", (Buffer("d_r", ROWS),), ("d_r_chosen",)),
            Make(tuple(cached)),
            Launch(self.kernels["chosen_segments"], "x.n_groups", self._tiles("chosen_segments"), self.room, parts),
        ]

    def _grouped(self) -> list[Statement]:
        tables = tuple(Buffer(name, (length,), INTEGER) for name, length in LENGTHS.items())
        return [
            Let("x.n_groups, x.n_choices", "x.BH * x.n_segments, x.BH * x.T * TOP_K"),
            Compute("x.order, x.groups, x.bounds = _group(x.chosen, x.n_segments)", tables, ("chosen",)),
        ]

    def _of_choices(self, kernel: str, tiled: bool = False) -> Launch:
        units = f'_cdiv(x.n_choices, _rows_at_once("{kernel}", x))'
        return Launch(self.kernels[kernel], units, self._tiles(kernel) if tiled else "", self.room)

    def _tiles(self, kernel: str) -> str:
        return tiles_of(kernel) if self.tiled else ""


def tiles_of(kernel: str) -> str:
    """How many tiles a kernel takes its axis in, as statements say it."""
    return f'_n_tiles("{kernel}", x)'
