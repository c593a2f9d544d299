"""How rows read all earlier segments of a matrix memory, by a softmax over routing logits: kernels and statements.

A read-out is linear in the state, so what rows read is a sum of products of weighted queries and states, and its
reverse is sums of such products too: they are accumulated as such, with states in the type of the inputs. Logits are
products of tiles of rows and tiles of BN segments. The softmax over cached segments is by itself, `lse_cached` its
log-sum-exp; the online memory joins it where it is read.

The reverse leaves weights and logits' gradients, a number a row and segment, for the kernels that go over rows: for a
band of rows at a time, so that they stay few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mcgen.ir.step import query_name
from mcgen.plan.cached_reads import ALL_BLOCKS, OF_BLOCKS, SEGMENTS, TILE, TILES, tiles_of
from mcgen.plan.host import Buffer, Compute, Each, Kernel, Launch, Let, Make, Statement
from mcgen.plan.pass_tensors import LATER, OF_SEQUENCE, ROWS, PassTensors

BAND = 64
"""Weights that are kept at once, for each token: rows of a longer sequence are taken a part at a time."""
CONSTANTS = {"BAND": BAND, "BN": SEGMENTS}
TOKENS = ("t_first", "t_last")
"""The tokens of a band: the first, and the one after the last."""
RUN = 512
"""Tokens of a run, about, that a program goes over which would go over all: few segments are few programs otherwise."""
RUNS = 8
"""Runs, at most: each has a part of the gradients."""
PROGRAMS = 512
"""Programs that are enough without runs."""
OF_ROWS = ("B", "H", "n_segments", "n_rows")
OF_TILES = (*OF_BLOCKS, "t_first", "n_rows")


@dataclass(frozen=True)
class WeightedReads:
    """These kernels and statements, for the tensors of one meaning; `make` has a kernel of a matrix memory."""

    tensors: PassTensors
    make: Callable[..., Kernel]

    @property
    def query(self) -> str:
        return query_name(self.tensors.meaning)

    # -- kernels ------------------------------------------------------------------------------------------------------

    def read_cached(self) -> Kernel:
        left = ["lse_cached", "y_cached"]
        tensors = [*self.tensors.queries, "rounded", "pools", *left]
        return self.make("read_cached", tensors, left, TILE, sizes=OF_BLOCKS, more=("BN",))

    def reading_back(self) -> list[Kernel]:
        return [self.weigh(), self.rows(), self.segments(), self.logits(), self.pools()]

    def weigh(self) -> Kernel:
        tensors = [self.query, "lse", "pools", "weights"]
        return self.make("weigh", tensors, ["weights"], TILE, sizes=OF_TILES, more=("BN",), axis="")

    def rows(self) -> Kernel:
        parts = ["d_logits_parts", "d_r_parts", "d_q_parts"]
        return self.make("rows", ["q", "d_y", "y", "rounded", "weights", *parts], parts, TILE, sizes=OF_TILES)

    def segments(self) -> Kernel:
        parts, sizes = ["d_cached_parts"], (*OF_SEQUENCE, "n_segments", *TOKENS, "n_rows")
        return self.make("segments", ["q", "d_y", "weights", *parts], parts, LATER, ("segments",), sizes, both=parts)

    def logits(self) -> Kernel:
        """Gradients of the query that routes, by its logits, and by its reads where it is what reads, too."""
        own, found = (["d_q_parts"], ["n_parts"]) if self.query == "q" else ([], [])
        d_query = f"d_{self.query}_rows"
        tensors, sizes = ["pools", "d_logits", *own, d_query], (*OF_TILES, *found)
        return self.make("logits", tensors, [d_query], TILE, sizes=sizes, more=("BN",), axis="k")

    def pools(self) -> Kernel:
        parts, sizes = ["d_pools_parts"], (*OF_SEQUENCE, "n_segments", *TOKENS, "n_rows")
        tensors, takes = [self.query, "d_logits", *parts], {**LATER, "n_segments": "BN"}
        return self.make("pools", tensors, parts, takes, ("segments",), sizes, ("BN",), axis="", both=parts)

    # -- statements ---------------------------------------------------------------------------------------------------

    def read(self) -> list[Statement]:
        """What rows read of cached segments, by itself."""
        return [
            self._round(),
            ALL_BLOCKS,
            Make((Buffer("lse_cached", ROWS), Buffer("y_cached", (*ROWS, "V")))),
            self._launch("read_cached", TILES.format("read_cached"), tiles_of("read_cached")),
        ]

    def reverse(self) -> list[Statement]:
        """Its reverse, to the gradients of rows' queries, of their online logits and of what is cached."""
        cached, pools = (buffer.shape for buffer in self.tensors.d_cached)
        d_q = Buffer("d_q_parts", ("n_parts", *ROWS, "K"))
        return [
            self._round(),
            Let("x.n_parts, x.n_runs", f"{tiles_of('rows')}, min({RUNS}, _cdiv(x.T, {RUN}))"),
            Let("x.n_shares", f"max(1, min(x.n_runs, {PROGRAMS} // (x.n_segments * x.BH)))"),
            Let("bands", "_bands_of(x)"),
            Let("x.n_rows", "_most_rows(bands)"),
            Make((Buffer("d_r_parts", ("n_parts", *ROWS)), d_q, Buffer(f"d_{self.query}_rows", (*ROWS, "K")))),
            Make((Buffer("weights", OF_ROWS), Buffer("d_logits_parts", ("n_parts", *OF_ROWS)))),
            Make((Buffer("d_cached_parts", ("n_shares", *cached)), Buffer("d_pools_parts", ("n_runs", *pools)))),
            Each("x.n_first, x.n_last, x.t_first, x.t_last", "bands", tuple(self._of_band())),
            *([self._add_up("d_q_rows", "d_q_parts", (*ROWS, "K"))] if self.query != "q" else []),
            self._add_up("d_r", "d_r_parts", ROWS),
            self._add_up("d_cached", "d_cached_parts", cached),
            self._add_up("d_pools", "d_pools_parts", pools),
        ]

    def _of_band(self) -> list[Statement]:
        return [
            self._launch("weigh", TILES.format("weigh"), ""),
            self._launch("rows", TILES.format("rows"), "x.n_parts"),
            self._add_up("d_logits", "d_logits_parts", OF_ROWS),
            self._launch("segments", "x.n_segments * x.BH", f"{tiles_of('segments')} * x.n_shares"),
            self._launch("logits", TILES.format("logits"), tiles_of("logits")),
            self._launch("pools", "_cdiv(x.n_segments, BN) * x.BH", "x.n_runs"),
        ]

    def _launch(self, kernel: str, units: str, tiles: str) -> Launch:
        return Launch(getattr(self, kernel)(), units, tiles)

    def _round(self) -> Statement:
        shape = self.tensors.cached[0].shape
        return Compute("x.rounded = _rounded(x)", (Buffer("rounded", shape, "q"),), ("cached",))

    def _add_up(self, name: str, parts: str, shape: tuple[str | int, ...]) -> Statement:
        return Compute(f"x.{name} = _added(x.{parts})", (Buffer(name, shape),), (parts,))
