"""What a spec costs: arithmetic, traffic and state as SymPy polynomials in the sizes of a problem.

    B batch, H heads, T tokens, C tokens a segment, N segments, L tokens a chunk step, K and V the head's sizes, top_k,
    X the expansion of an mlp, e bytes an element of the inputs

FLOPs are those of products, two for a multiply and an add, over whole tiles of L x L as kernels compute them; scalar
functions are left out. A read of cached segments counts (N - 1)/2 of them for every token, the mean over a sequence.
Bytes count every tensor once for each pass over it. Backward, every product has two derivatives; states, scores and,
for the gradients of gates, the reads of states are computed again; a gate's own gradient takes a product of (L, L) with
(L, L) for every matrix of its products over runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

import sympy

from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY, GradientWrite, Recurrence, Write
from mcgen.symbolic.text import text

B, H, T, C, N, L, K, V, X, e = SIZES = sympy.symbols("B H T C N L K V X e", positive=True, integer=True)
TOP_K = sympy.Symbol("top_k", positive=True, integer=True)
STATE_BYTES = 4

CHUNK = 64
SAMPLE: Mapping[sympy.Symbol, int] = {B: 1, H: 16, T: 8192, L: CHUNK, e: 2}
"""The problem that numbers are shown for; a spec gives the other sizes."""


@dataclass(frozen=True)
class Part:
    """One thing that costs, forward and backward."""

    label: str
    forward: sympy.Expr
    backward: sympy.Expr = sympy.S.Zero


@dataclass(frozen=True)
class Counts:
    """How much structure a recurrence has, which is what its cost depends on.

    keys     distinct key rows among the writes, `values` value rows
    pairs    pairs of a slot and a write that the slot takes, itself or through others
    squares  products of (L, L) with (L, L): a link passing on a write
    vectors  products of (L, L) with a vector: a link passing on a start, or a write as of the chunk's end
    scalars  products of a row with a column: a link passing on a start as of the chunk's end
    decays   matrices (L, L) of products over runs of a gate that has a gradient
    starts   columns of such products, from the chunk's start
    """

    slots: int
    writes: int
    keys: int
    values: int
    pairs: int
    squares: int
    vectors: int
    scalars: int
    decays: int
    starts: int
    gradients: int


def counts(meaning: Meaning) -> Counts:
    """The structure of a spec's recurrence."""
    recurrence, gates = meaning.recurrence, set(meaning.spec.tensor_gates)
    takes: dict[str, set[object]] = {}
    holds: dict[str, set[str]] = {}
    for slot in recurrence.slots:
        sources = _sources(recurrence, slot)
        takes[slot] = _own_writes(recurrence, slot).union(*(takes[source] for source in sources))
        holds[slot] = {slot}.union(*(holds[source] for source in sources))
    links = [(slot, source) for slot in recurrence.slots for source in _sources(recurrence, slot)]
    # Rows of the memory are read by queries, rows of a slot that others take in by those.
    read = [MEMORY, *dict.fromkeys(source for _, source in links)]
    passing = [source for slot in read for source in _sources(recurrence, slot)]
    gated = [slot for slot in read if {g.name for g in recurrence.transition(slot, slot).free_symbols} & gates]
    kinds = [bool(_own_writes(recurrence, slot)) + bool(_sources(recurrence, slot)) for slot in gated]
    return Counts(
        slots=len(recurrence.slots),
        writes=len(recurrence.writes),
        keys=len({write.key_lag if isinstance(write, Write) else 0 for write in recurrence.writes}),
        values=len({(w.value_lag, w.value) if isinstance(w, Write) else w for w in recurrence.writes}),
        pairs=sum(map(len, takes.values())),
        squares=sum(len(takes[source]) for source in passing),
        vectors=sum(len(holds[source]) for source in passing) + sum(len(takes[source]) for _, source in links),
        scalars=sum(len(holds[source]) for _, source in links),
        decays=sum(kinds),
        starts=len(gated),
        gradients=sum(isinstance(write, GradientWrite) for write in recurrence.writes),
    )


def _own_writes(recurrence: Recurrence, slot: str) -> set[object]:
    return {write for write in recurrence.writes if recurrence.injection(slot, write) != 0}


def _sources(recurrence: Recurrence, slot: str) -> list[str]:
    return [s for s in recurrence.slots if s != slot and recurrence.transition(slot, s) != 0]


@dataclass(frozen=True)
class Cost:
    """What a spec's operator costs: FLOPs, bytes moved (`traffic`), and numbers held (`state`: values that decoding
    carries along, in its `forward`)."""

    meaning: Meaning

    def total(self, what: str) -> tuple[sympy.Expr, sympy.Expr]:
        """The sums of a column of parts, forward and backward, multiplied out."""
        parts: tuple[Part, ...] = getattr(self, what)
        return sympy.expand(sum(p.forward for p in parts)), sympy.expand(sum(p.backward for p in parts))

    @cached_property
    def counts(self) -> Counts:
        return counts(self.meaning)

    @cached_property
    def layers(self) -> list[tuple[sympy.Expr, sympy.Expr]]:
        """(in, out) of every weight of the memory."""
        memory = self.meaning.spec.memory
        if memory.kind == "matrix":
            return [(K, V)]
        widths = [K, *[X * K] * (memory.layers - 1), V]
        return list(pairwise(widths))

    @cached_property
    def parameters(self) -> sympy.Expr:
        return sum((into * out for into, out in self.layers), sympy.S.Zero)

    @cached_property
    def flops(self) -> tuple[Part, ...]:
        return _present([*self._online, *self._routing, _product("reads of cached segments", self._reads)])

    @property
    def _online(self) -> list[Part]:
        """The online read-out and the state, chunk by chunk."""
        n, tokens = self.counts, B * H * T
        into, out = (sum(pair[side] for pair in self.layers) for side in (0, 1))
        start, scores = tokens * 2 * n.slots * self.parameters, tokens * 2 * L * n.keys * into
        update = tokens * 2 * n.pairs * self.parameters
        squares, vectors, scalars = 2 * L * L * n.squares, 2 * L * n.vectors, 2 * n.scalars
        return [
            _product("reads of the state at the chunk's start", start, again=start if n.starts else sympy.S.Zero),
            _product("scores of queries and keys", scores, again=scores),
            Part("weighted values", tokens * 2 * L * n.writes * out, tokens * 2 * L * (n.writes + n.values) * out),
            _product("state at the chunk's end", update, again=update),
            Part("R and C", tokens * (squares + vectors + scalars), tokens * (3 * squares + 2 * vectors + scalars)),
            Part("gradients of the gates in R and C", sympy.S.Zero, tokens * (2 * L * L * n.decays + 2 * L * n.starts)),
            _product("error rows of gradients", tokens * self._gradient),
        ]

    @property
    def _routing(self) -> list[Part]:
        """Logits: online, each a running mean of keys, and of cached segments."""
        if not self.meaning.routes:
            return []
        width = B * H * T * K
        return [
            Part("online routing logits", width * (2 * L + 2), width * (4 * L + 2)),
            _product("logits of cached segments", width * 2 * self._segments),
        ]

    @property
    def _segments(self) -> sympy.Expr:
        return (N - 1) / 2

    @property
    def _gradient(self) -> sympy.Expr:
        """Error rows of a token: a prediction, and in a deep memory the way back; by token, a triangular solve."""
        n = self.counts
        if not n.gradients:
            return sympy.S.Zero
        if self.meaning.recurrence.chunk is not None:
            back = self.parameters - self.layers[0][0] * self.layers[0][1]
            return 2 * (self.parameters + back)
        system = 2 * L * K * n.keys + 2 * K * V * n.slots + 2 * L * V * (n.writes - n.gradients)
        return system + L * V * n.gradients**2

    @property
    def _reads(self) -> sympy.Expr:
        read = B * H * T * 2 * self.parameters
        kind = self.meaning.aggregate
        if kind == "none":
            return sympy.S.Zero
        if kind in ("residual", "mean") and self.meaning.linear:
            return read
        return read * (TOP_K if kind == "ssc" else self._segments)

    @cached_property
    def traffic(self) -> tuple[Part, ...]:
        """Two passes forward (states, read), three backward: rows, segments, and what lies inside a segment."""
        spec = self.meaning.spec
        gates, u = len(spec.tensor_gates), K if spec.routes_by_u else sympy.S.Zero
        tokens, written, queried = B * H * T * e, K + V + gates, K + u
        cached = self._held * STATE_BYTES if self.meaning.reads_cached else sympy.S.Zero
        starts = (
            B * H * T / L * self.counts.slots * self.parameters * STATE_BYTES if self.meaning.chained else sympy.S.Zero
        )
        again = 2 * tokens * (queried + V) if cached else sympy.S.Zero
        parts = [
            Part("k, v and gates, for the states", tokens * written, tokens * written),
            Part("all inputs, for the read-outs", tokens * (written + queried), tokens * (written + queried + V)),
            Part("y, or the gradients of the inputs", tokens * V, tokens * (written + queried)),
            Part("q, u and dy, for the cached segments", sympy.S.Zero, again),
            Part("cached states and pooled keys, and their gradients", 2 * cached, 4 * cached),
            Part("states at chunk starts", 2 * starts, 3 * starts),
        ]
        return _present(parts)

    @property
    def _held(self) -> sympy.Expr:
        """Numbers in the cache of segments."""
        return B * H * N * (self.parameters + (K if self.meaning.routes else 0))

    @cached_property
    def state(self) -> tuple[Part, ...]:
        parts = [
            Part("slots of the recurrence", B * H * self.counts.slots * self.parameters),
            Part("tokens that lags reach back to", B * H * self._lagged),
            Part("cached states and pooled keys", self._held if self.meaning.reads_cached else sympy.S.Zero),
        ]
        return _present(parts)

    @property
    def _lagged(self) -> sympy.Expr:
        writes = [write for write in self.meaning.recurrence.writes if isinstance(write, Write)]
        furthest = lambda lag: max(map(lag, writes), default=0)  # noqa: E731
        return K * furthest(lambda w: w.key_lag) + V * furthest(lambda w: w.value_lag)


def _product(label: str, forward: sympy.Expr, again: sympy.Expr = sympy.S.Zero) -> Part:
    """A product has two derivatives of its size; `again` is what the backward pass computes once more."""
    return Part(label, forward, 2 * forward + again)


def _present(parts: list[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.forward != 0 or part.backward != 0)


def sizes(meaning: Meaning, sample: Mapping[sympy.Symbol, int] = SAMPLE) -> dict[sympy.Symbol, int]:
    """The sample problem's sizes with those that the spec fixes."""
    spec = meaning.spec
    found = {**sample, K: spec.head.key_dim, V: spec.head.value_dim, X: spec.memory.expansion}
    found[L] = meaning.step(sample[L])
    tokens = found[T]
    if spec.segment.mode == "constant":
        found |= {C: spec.segment.size, N: -(-tokens // spec.segment.size)}
    else:
        found |= {C: 1 << (tokens.bit_length() - 1), N: tokens.bit_length()}
    return {**found, TOP_K: min(spec.aggregate.top_k or 0, found[N])}


def flops(meaning: Meaning) -> tuple[str, str]:
    """FLOPs forward and backward as Python, in B, H, T and N, with the spec's own sizes put in."""
    fixed = {size: sympy.Integer(value) for size, value in sizes(meaning).items() if size not in (B, H, T, C, N, TOP_K)}
    parts = Cost(meaning).flops
    both = sum(p.forward.xreplace(fixed) for p in parts), sum(p.backward.xreplace(fixed) for p in parts)
    most = f"min({meaning.spec.aggregate.top_k}, N - 1)"
    return tuple(str(sympy.factor(total)).replace("/", "//").replace("top_k", most) for total in both)


def cost_table(found: Cost, what: str, problem: Mapping[sympy.Symbol, int]) -> tuple[list[str], list[list[str]]]:
    """A column of a cost's parts as a table: formulas, and their values for a problem, the sum last."""
    parts = [*getattr(found, what), Part("together", *found.total(what))]
    both = any(part.backward != 0 for part in parts)
    rows = []
    for part in parts:
        cells = [part.forward, part.backward] if both else [part.forward]
        formulas = [text(sympy.factor(cell)) if part.label != "together" else "" for cell in cells]
        values = [short(cell, problem) for cell in cells]
        rows.append([part.label, *chain(*zip(formulas, values, strict=True))])
    heads = ["forward", "", "backward", ""] if both else ["numbers", ""]
    return [what, *heads], rows


UNITS = ("", " k", " M", " G", " T", " P", " E")


def short(expression: sympy.Expr, problem: Mapping[sympy.Symbol, int]) -> str:
    """The value of a polynomial for a problem, to three digits: `1.23 G`."""
    value = float(sympy.sympify(expression, strict=True).subs(problem))
    power = 0
    while value >= 999.5 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{UNITS[power]}"
