"""The configurations that a search tries, best first.

Without the GPU nothing is timed, so the order is a simple cost. A chunk of more rows comes first: a walk has fewer
steps, and a product of 64 rows is what tensor cores like best. Then a wider tile: what every program of a chunk repeats
is repeated less often. Then fewer warps: more programs share a processor, and a program's warps wait less for one
another. The first candidate that spills nothing is taken.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcgen.plan.configurations import Configuration, tile
from mcgen.plan.targets import Target

ROWS = {"bfloat16": (64, 32, 16), "float32": (32, 16)}
"""Rows of a chunk by the type of products' operands: those of float32 take two registers where others take one."""
COLUMNS = (64, 32, 16)
WARPS = {"cuda": (4, 8), "hip": (4,)}
"""On AMD a thread of an 8-wave program has half the registers of one with 4, which hold as much of a tile."""
AHEAD_ROWS = {"bfloat16": (128, 64, 32, 16), "float32": (64, 32, 16)}
AHEAD_COLUMNS = (128, 64, 32, 16)
STAGES = (3, 2)
"""Of kernels whose loops are plain products; with LARGE elements of a tile, as many warps as there may be."""
LARGE = 8192
MOST_OF_CHUNK, MOST_OF_STATE, LEAST = 16, 32, 1
"""Elements a thread of the chunk's tile and of the state's; more of either spilled wherever several are alive."""


def candidates(axis: str, key_dim: int, value_dim: int, element: str, target: Target) -> Iterator[Configuration]:
    """Configurations of a kernel with `axis` ("k", "v", or none) on its grid, in the order to try them."""
    size, other = (key_dim, value_dim) if axis == "k" else (value_dim, key_dim)
    widths = [width for width in COLUMNS if width <= tile(size)] if axis else [tile(size)]
    for rows in ROWS[element]:
        for width in widths:
            for warps in WARPS[target.backend]:
                threads = warps * target.warp_size
                fits = rows * width <= MOST_OF_CHUNK * threads and tile(other) * width <= MOST_OF_STATE * threads
                if (fits or not axis) and rows * width >= LEAST * threads:
                    yield Configuration(rows, width, warps)


def ahead_candidates(axis: str, key_dim: int, value_dim: int, element: str, target: Target) -> Iterator[Configuration]:
    """Configurations of a kernel whose loops are plain products, in the order to try them.

    A wide tile first: it is what rows are multiplied with, and loaded again for every tile of rows. Then many rows, so
    that it is loaded for few of these; then loads two turns ahead.
    """
    size, other = (key_dim, value_dim) if axis == "k" else (value_dim, key_dim)
    for width in [width for width in AHEAD_COLUMNS if width <= tile(size)] if axis else [tile(size)]:
        for rows in AHEAD_ROWS[element]:
            large = max(rows, tile(other) if axis else 0) * width >= LARGE
            for stages in STAGES:
                yield Configuration(rows, width, max(WARPS[target.backend]) if large else 4, stages)


def streamed_candidates(
    rows: int | None, hidden: int, element: str, target: Target, whole: bool = False
) -> Iterator[Configuration]:
    """Configurations of a kernel that takes a layer's hidden units in tiles, or `whole`, in the order to try them.

    One that goes by gradient chunks takes `rows` at once, all others as many as they can. A barrier in each turn of
    their loops leaves nothing to a pipeline, so there is one stage.
    """
    widths = [tile(hidden)] if whole else [width for width in COLUMNS if width <= tile(hidden)]
    for count in (rows,) if rows else ROWS[element]:
        for width in widths:
            for warps in WARPS[target.backend]:
                yield Configuration(count, width, warps)
