"""How rows choose the segments that they read: kernels and statements, alike for every memory.

Choices are sorted by the segment they read, so that work and traffic of the reads follow top_k, whatever the number of
segments; only routing logits, one vector product each, meet them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mcgen.ir.step import query_name
from mcgen.passes.simplify import select
from mcgen.plan.host import INTEGER, Buffer, Compute, Kernel, Launch, Let, Make, Part, Statement, When
from mcgen.plan.pass_tensors import BLOCK, CHOICES, CHOOSERS, OF_SEQUENCE, ROWS, PassTensors, chooses

UNITS = "x.n_blocks * x.BH"
BLOCKS = ("n_first", "n_last")
"""The blocks whose rows a launch takes in tiles: the first, and the one after the last."""
OF_BLOCKS = (*OF_SEQUENCE, "n_segments", *BLOCKS)
ALL_BLOCKS = Let("x.n_first, x.n_last", "0, x.n_blocks")
TILES = '(x.n_last - x.n_first) * x.BH * _row_tiles("{}", x)'
"""How many tiles a kernel takes these rows in."""
TILE = {**BLOCK, "T": "a tile of a block"}
SEGMENTS = 16
"""Segments whose logits are one product, which kernels call BN: as few as tensor cores take."""
ROUTING = ("TOP_K", "PLACES", "BN")
CHOSEN = (*ROWS, "TOP_K")
LENGTHS = {"order": "n_choices", "groups": "n_choices", "bounds": "n_groups + 1"}
"""Of the tables that sort choices."""


def choosing_kernels(tensors: PassTensors, make: Callable[..., Kernel], *sizes: str) -> list[Kernel]:
    """The kernels but that which reads what was chosen; `make` has those of the memory's kind, `sizes` is what theirs
    find rows by."""
    read = select(tensors.programs["read_segment"], ["o_cached"], "o_cached").inputs
    chosen, gradients = ["chosen", "r_chosen"], ["d_cached", "d_pools"]
    sums = [f"d_{name}_chosen" for name in [*tensors.queries, "r"]]
    cached, top = ["cached", "pools"], ("TOP_K",)
    by_choice = CHOICES, ("order", "groups"), (*sizes, "n_choices", "n_groups"), top
    of_segment = ("order", "bounds", "segments"), (*(sizes or ("H",)), "n_segments", "n_groups"), top
    return [
        make("route", [query_name(tensors.meaning), "pools", *chosen], chosen, TILE, sizes=OF_BLOCKS, more=ROUTING),
        make("chosen_reads", [*tensors.behind(read), "cached", "o_chosen"], ["o_chosen"], *by_choice),
        make("chosen_rows", [*tensors.of("rows"), *cached, *sums], sums, *by_choice),
        make("chosen_segments", [*tensors.of("segment"), *cached, *gradients], gradients, CHOOSERS, *of_segment),
    ]


def where_chosen(
    tensors: PassTensors, choosing: Callable[[], Sequence[Statement]], all_read: Sequence[Statement]
) -> list[Statement]:
    """Statements for rows that choose among segments; of all segments, where there are no more than that."""
    if not chooses(tensors.meaning):
        return list(all_read)
    return [When("x.n_segments - 1 > TOP_K", tuple(choosing()), tuple(all_read))]


@dataclass(frozen=True)
class Choosing:
    """The statements of a pass where rows choose segments.

    room    numbers that a kernel's programs have as scratch, if they have any
    tiled   whether kernels that read or write values have their tiles on the grid, and each a part of sums over values
    """

    kernels: Mapping[str, Kernel]
    tensors: PassTensors
    room: Callable[[str], str | None]
    tiled: bool = False

    def read(self) -> list[Statement]:
        """The forward pass from cached states on."""
        return [
            Make((Buffer("r_chosen", CHOSEN),)),
            ALL_BLOCKS,
            Launch(self.kernels["route"], TILES.format("route"), room=self.room("route"), apart=not self.tiled),
            *self._grouped(),
            Make((Buffer("o_chosen", (*CHOSEN, "V")),)),
            self._of_choices("chosen_reads", self.tiled),
            self._launch("read_chosen", UNITS, self.tiled),
        ]

    def reverse(self) -> list[Statement]:
        """The reverse of these reads, to the gradients of rows' queries and of what is cached."""
        queries = self.tensors.queries
        rows = [Buffer(f"d_{name}_chosen", (*CHOSEN, "K")) for name in queries]
        sums = [
            Compute(f"x.d_{n}_rows = x.d_{n}_chosen.sum(3)", (Buffer(f"d_{n}_rows", (*ROWS, "K")),), (f"d_{n}_chosen",))
            for n in queries
        ]
        parts = (Part("d_pools", tiles_of("chosen_segments"), 0),) if self.tiled else ()
        return [
            *self._grouped(),
            Compute("x.delta = (x.y.float() * x.d_y.float()).sum(-1)", (Buffer("delta", ROWS),), ("y", "d_y")),
            Make((Buffer("d_r_chosen", CHOSEN), *rows)),
            self._of_choices("chosen_rows"),
            *sums,
            Compute("x.d_r = -x.d_r_chosen.sum(3)", (Buffer("d_r", ROWS),), ("d_r_chosen",)),
            Make(self.tensors.d_cached),
            self._launch("chosen_segments", "x.n_groups", self.tiled, parts),
        ]

    def _grouped(self) -> list[Statement]:
        tables = tuple(Buffer(name, (length,), INTEGER) for name, length in LENGTHS.items())
        return [
            Let("x.n_groups, x.n_choices", "x.BH * x.n_segments, x.BH * x.T * TOP_K"),
            Compute("x.order, x.groups, x.bounds = _group(x.chosen, x.n_segments)", tables, ("chosen",)),
        ]

    def _of_choices(self, kernel: str, tiled: bool = False) -> Launch:
        units = f'_cdiv(x.n_choices, _rows_at_once("{kernel}", x))'
        return self._launch(kernel, units, tiled)

    def _launch(self, kernel: str, units: str, tiled: bool, parts: tuple[Part, ...] = ()) -> Launch:
        return Launch(self.kernels[kernel], units, tiles_of(kernel) if tiled else "", self.room(kernel), parts)


def tiles_of(kernel: str) -> str:
    """How many tiles a kernel takes its axis in, as statements say it."""
    return f'_n_tiles("{kernel}", x)'
