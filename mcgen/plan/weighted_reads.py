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
from mcgen.plan.cached_reads import UNITS, tiles_of
from mcgen.plan.host import Buffer, Compute, Each, Kernel, Launch, Let, Make, Statement
from mcgen.plan.pass_tensors import BLOCK, LATER, OF_SEQUENCE, ROWS, PassTensors

BAND = 128
"""Weights that are kept at once, for each token."""
SEGMENTS = 16
"""Segments whose logits are one product: as few as tensor cores take."""
CONSTANTS = {"BAND": BAND, "BN": SEGMENTS}
BLOCKS = ("n_first", "n_last")
"""The blocks that a launch takes: the first, and the one after the last."""
TOKENS = ("t_first", "t_last")
"""The tokens of these."""
RUN = 1024
"""Tokens of a run that a program of `pools` goes over, about: few segments are few programs otherwise."""
RUNS = 8
"""Runs, at most: each has a part of the gradients."""
OF_ROWS = ("B", "H", "n_segments", "n_rows")


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
        sizes = (*OF_SEQUENCE, "n_segments", *BLOCKS)
        return self.make("read_cached", tensors, left, {**BLOCK, "T": "a tile of a block"}, sizes=sizes, more=("BN",))

    def rows(self) -> Kernel:
        queries = self.tensors.queries
        parts = ["d_logits_parts", "d_r_parts", *(f"d_{name}_parts" for name in queries)]
        tensors = [*queries, "d_y", "y", "lse", "rounded", "pools", "weights", *parts]
        sizes = (*OF_SEQUENCE, "n_segments", *BLOCKS, "t_first", "n_rows")
        takes = {**BLOCK, "T": "a tile of a block"}
        kernel = self.make("rows", tensors, ["weights", *parts], takes, sizes=sizes, more=("BN",))
        return kernel

    def segments(self) -> Kernel:
        tensors, sizes = ["q", "d_y", "weights", "d_cached"], (*OF_SEQUENCE, "n_segments", *TOKENS, "n_rows")
        return self.make("segments", tensors, ["d_cached"], LATER, ("segments",), sizes, both=["d_cached"])

    def pools(self) -> Kernel:
        tensors, sizes = [self.query, "d_logits", "d_pools_parts"], (*OF_SEQUENCE, "n_segments", *TOKENS, "n_rows")
        takes = {**LATER, "n_segments": "BN"}
        made = self.make(
            "pools", tensors, ["d_pools_parts"], takes, ("segments",), sizes, ("BN",), axis="", both=["d_pools_parts"]
        )
        return made

    # -- statements ---------------------------------------------------------------------------------------------------

    def read(self) -> list[Statement]:
        """What rows read of cached segments, by itself."""
        return [
            self._round(),
            Let("x.n_first, x.n_last", "0, x.n_blocks"),
            Make((Buffer("lse_cached", ROWS), Buffer("y_cached", (*ROWS, "V")))),
            self._launch("read_cached", f'{UNITS} * _row_tiles("read_cached", x)', tiles_of("read_cached")),
        ]

    def reverse(self) -> list[Statement]:
        """Its reverse, to the gradients of rows' queries, of their online logits and of what is cached."""
        queries = self.tensors.queries
        own = [Buffer(f"d_{name}_parts", ("n_parts", *ROWS, "K")) for name in queries]
        return [
            self._round(),
            Let("x.n_parts, x.n_runs", f'{tiles_of("rows")}, min({RUNS}, _cdiv(x.T, {RUN}))'),
            Let("x.n_rows", "_most_rows(_bands_of(x))"),
            Make((Buffer("d_r_parts", ("n_parts", *ROWS)), *own)),
            Make((Buffer("weights", OF_ROWS), Buffer("d_logits_parts", ("n_parts", *OF_ROWS)))),
            Make((self.tensors.d_cached[0], Buffer("d_pools_parts", ("n_runs", *self.tensors.d_cached[1].shape)))),
            Each("x.n_first, x.n_last, x.t_first, x.t_last", "_bands_of(x)", tuple(self._of_band())),
            *(self._add_up(f"d_{name}_rows", f"d_{name}_parts", (*ROWS, "K")) for name in queries),
            self._add_up("d_r", "d_r_parts", ROWS),
            self._add_up("d_pools", "d_pools_parts", self.tensors.d_cached[1].shape),
        ]

    def _of_band(self) -> list[Statement]:
        units = '(x.n_last - x.n_first) * x.BH * _row_tiles("rows", x)'
        return [
            self._launch("rows", units, "x.n_parts"),
            self._add_up("d_logits", "d_logits_parts", OF_ROWS),
            self._launch("segments", "x.n_segments * x.BH", tiles_of("segments")),
            self._launch("pools", "_cdiv(x.n_segments, BN) * x.BH", "x.n_runs"),
        ]

    def _launch(self, kernel: str, units: str, tiles: str) -> Launch:
        return Launch(getattr(self, kernel)(), units, tiles)

    def _round(self) -> Statement:
        shape = self.tensors.cached[0].shape
        return Compute("x.rounded = _rounded(x)", (Buffer("rounded", shape, "q"),), ("cached",))

    def _add_up(self, name: str, parts: str, shape: tuple[str | int, ...]) -> Statement:
        return Compute(f"x.{name} = _added(x.{parts})", (Buffer(name, shape),), (parts,))
