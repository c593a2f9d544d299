"""The Triton path of a generated module: tile programs printed into the loop nests of templates/triton.

Every kernel is described here by the tensors its program reads and writes; the loop nests know only the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.text.unused import without_unused
from mcgen.emit.torch.path import tensor_inputs
from mcgen.emit.triton.host import host_source
from mcgen.emit.triton.launching import default_configurations, launching
from mcgen.emit.triton.printer import Binding, statements
from mcgen.ir import aggregate, backward
from mcgen.ir.closed_form import lagged_names
from mcgen.ir.program import Program
from mcgen.ir.step import step_with_errors
from mcgen.passes.carried import carried
from mcgen.passes.factors import FACTORS
from mcgen.passes.simplify import select, simplify
from mcgen.plan.matrix import MatrixPlan as Plan
from mcgen.plan.matrix import Walk
from mcgen.plan.plan import planned, scheduled
from mcgen.symbolic.meaning import Meaning

SCALARS = {
    "head": "i_h.to(tl.float32)",
    "valid": "m_t.to(tl.float32)",
    "count": "(i_t - segment_start + 1 + o_t).to(tl.float32)",
    "share": "b_share",
    "fresh": "b_fresh",
}
MATRIX_AXES = {"q": "k", "u": "k", "k": "k", "v": "v", "y": "v"}

CACHED = {
    "cached": "tl.load(cached + i_cached * K * V + (o_k[:, None] * V + o_v[None, :]),"
    " mask=m_k[:, None] & m_v[None, :], other=0.0)",
    "pools": "tl.load(pools + i_cached * K + o_k, mask=m_k, other=0.0)",
}


@dataclass(frozen=True)
class Kernels:
    """The kernels of one meaning: their programs, bound to their tensors, as text."""

    meaning: Meaning

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.meaning)

    @cached_property
    def lagged(self) -> Mapping[str, tuple[str, int]]:
        return lagged_names(self.meaning.recurrence)

    @property
    def state(self) -> Mapping[str, tuple[str, ...]]:
        return self.plan.state

    @property
    def slots(self) -> tuple[str, ...]:
        return self.meaning.recurrence.slots

    @property
    def starts(self) -> bool:
        return self.plan.starts

    @cached_property
    def queries(self) -> list[str]:
        return backward.query_inputs(self.meaning)

    @cached_property
    def forward_tensors(self) -> list[str]:
        """What a forward kernel leaves for the backward pass, in order."""
        names = []
        if self.starts:
            names += [f"start_{slot}" for slot in self.slots] + (["start_pool"] if self.meaning.routes else [])
        if self.meaning.reads_cached:
            names += ["cached"]
        if self.meaning.routes:
            names += ["pools", "lse", "online"]
        return names + self.plan.errors

    @cached_property
    def programs(self) -> Mapping[str, Program]:
        """Every tile program the kernels are printed from, by kernel and part."""
        meaning = self.meaning
        following = [f"{name}_next" for name in self.state]
        known, chain = self.plan.advance, simplify(step_with_errors(meaning, self.plan.anchored), FACTORS)
        read = ["o", *(["r"] if meaning.routes else []), *following]
        programs = {
            "states": select(chain, [*following, *self.plan.errors], "states"),
            "advance": select(known, following, "advance"),
            "read": select(known, [name for name in read if name != "anchor_next"], "read"),
            "retreat": simplify(self.plan.reverse.chain, FACTORS),
        }
        if meaning.reads_cached:
            programs["read_segment"] = simplify(aggregate.program(aggregate.read_segment, meaning), FACTORS)
            programs["rows"] = simplify(backward.rows(meaning), FACTORS)
            programs["segment"] = simplify(backward.segment(meaning), FACTORS)
        return programs

    # -- how tiles are loaded and stored ------------------------------------------------------------------------------

    def load(self, name: str) -> str:
        """The text that loads a per-token tensor's tile, zero past the sequence's end and before a lag's border."""
        if name in SCALARS:
            return SCALARS[name]
        source, lag = self.lagged.get(name, (name, 0))
        row, seen = "i_row", "m_t"
        if lag:
            row, seen = f"(i_row - {lag} * H)", f"(m_t & (i_t + o_t - {lag} >= border))"
        axis = columns(source)
        if axis is None:
            return f"tl.load({source} + {row} + o_t * H, mask={seen}, other=0.0).to(tl.float32)"
        width = axis.upper()
        tile = f"{source} + {row} * {width} + (o_t[:, None] * (H * {width}) + o_{axis}[None, :])"
        narrow = ".to(IN)" if name in self.narrow else ""
        return f"tl.load({tile}, mask={_both(seen, f'm_{axis}')}, other=0.0){narrow}"

    @cached_property
    def narrow(self) -> frozenset[str]:
        return frozenset({"q", "u", "k", "v", "d_y", *self.lagged})

    def store(self, name: str, parts: bool = False) -> Callable[[str], list[str]]:
        """Statements that store the tile of an input's gradient; a lagged view's is zero before the lag's border."""
        source, lag = self.lagged.get(name, (name, 0))
        tensor, axis = f"d_{name}", MATRIX_AXES.get(source)
        if axis is None:
            base = f"{tensor} + i_v.to(tl.int64) * (BH // H) * T * H" if parts else tensor
            return lambda tile: [f"tl.store({base} + i_row + o_t * H, {tile}, mask=m_t)"]
        width = axis.upper()
        place = f"{tensor} + i_row * {width} + (o_t[:, None] * (H * {width}) + o_{axis}[None, :])"
        mask, seen = _both("m_t", f"m_{axis}"), f"(i_t + o_t - {lag} >= border)[:, None]"
        clean = (lambda tile: f"tl.where({seen}, {tile}, 0.0)") if lag else (lambda tile: tile)
        return lambda tile: [f"tl.store({place}, {clean(tile)}.to({tensor}.dtype.element_ty), mask={mask})"]

    def keep_rows(self, tensor: str) -> Callable[[str], list[str]]:
        """Statements that store rows[t v] in float32."""
        place = f"{tensor} + i_row * V + (o_t[:, None] * (H * V) + o_v[None, :])"
        return lambda tile: [f"tl.store({place}, {tile}, mask={_both('m_t', 'm_v')})"]

    def bind(self, program: Program, load: Mapping[str, str], store: Mapping, stream: str = "") -> list[str]:
        """The program's statements, per-token inputs loaded as always, others as `load` says."""
        loads = {name: load.get(name) or self.load(name) for name in program.inputs}
        held = frozenset(name for name, text in loads.items() if text.startswith("b_"))
        return statements(program, Binding(loads, store, self.narrow, held, stream))

    # -- the kernels --------------------------------------------------------------------------------------------------

    def _arguments(self, *programs: str, more: list[str] = ()) -> list[str]:
        """The per-token tensors some programs read, then others: a kernel's pointer arguments, each once."""
        return list(dict.fromkeys([*self.tensors([n for part in programs for n in self.programs[part].inputs]), *more]))

    def tensors(self, inputs: Iterable[str]) -> list[str]:
        """The per-token tensors behind program inputs, each once, in an order of their own."""
        read = {self.lagged.get(name, (name, 0))[0] for name in inputs}
        known = [*tensor_inputs(self.meaning), "d_y", "y", "lse", "online", "delta", "d_r"]
        known += self.between
        known += [f"d_{name}_rows" for name in self.queries]
        return [name for name in known if name in read]

    @cached_property
    def between(self) -> list[str]:
        """Rows that one kernel leaves for another."""
        return [*self.plan.errors, *self.plan.reverse.pulls]

    def states(self) -> tuple[list[str], str]:
        own = {name: f"b_{name}" for name in self.state}
        store = {
            **self.discard(self.programs["states"].outputs),
            **{name: self.keep_rows(name) for name in self.plan.errors},
        }
        program = self._carried(self.bind(self.programs["states"], own, store), "b_{}", "b_{}_next")
        more = [name for name in self.forward_tensors if name not in ("lse", "online")]
        arguments = self._arguments("states", more=more)
        return self.render("states", arguments, program=program, stepped=self.plan.stepped)

    def discard(self, store: Mapping) -> Mapping:
        return {name: lambda tile: [] for name in store}

    def _carried(self, lines: list[str], to: str, source: str) -> list[str]:
        """Lines, then the state carried to the next chunk; loads of what a register holds already are no statements."""
        return self._carry(lines, to, source, list(self.state))

    def _carry(self, lines: list[str], to: str, source: str, names: Sequence[str]) -> list[str]:
        kept = [line for line in lines if not idle(line)]
        return kept + [f"{to.format(name)} = {source.format(name)}" for name in names]

    def read(self, kernel: str = "read", chooses: bool = False) -> tuple[list[str], str]:
        own = {name: f"b_{name}" for name in self.state}
        outputs = self.discard(self.programs["read"].outputs)
        lines = self.bind(self.programs["read"], own, outputs)
        program = self._carry(lines, "b_{}", "b_{}_next", [name for name in self.state if name != "anchor"])
        parts, segment = ["read"], []
        if self.meaning.reads_cached and not chooses:
            parts.append("read_segment")
            segment = self._segment_program("read_segment", self.discard(self.programs["read_segment"].outputs))
        unread = {"cached", "pools"} if chooses else set()
        left = [name for name in self.forward_tensors if name not in unread]
        more = [*left, *(["r_chosen", "o_chosen"] if chooses else []), "y"]
        arguments = self._arguments(*parts, more=more)
        return self.render("read", arguments, kernel=kernel, program=program, segment=segment, chooses=chooses)

    def _segment_program(self, part: str, store: Mapping, load: Mapping = {}, stream: str = "") -> list[str]:
        program = self.programs[part]
        loads = {**CACHED, **load}
        loads = {name: text for name, text in loads.items() if name in program.inputs}
        lines = self.bind(program, loads, store, stream)
        return [line for line in lines if not idle(line)]

    def rows(self) -> tuple[list[str], str]:
        add = lambda name: lambda tile: [f"s_{name} += {tile}"]  # noqa: E731
        store = {f"d_{name}": add(name) for name in [*self.queries, "r"]}
        held = {"delta": "b_delta"} if self.meaning.routes else {}
        program = self._segment_program("rows", store, held, stream="v")
        arguments = self._arguments("rows", more=["d_y", *(["y", "delta", "d_r"] if self.meaning.routes else [])])
        arguments += [
            "cached",
            *(["pools"] if self.meaning.routes else []),
            *(f"d_{name}_rows" for name in self.queries),
        ]
        return self.render("rows", list(dict.fromkeys(arguments)), program=program)

    def segments(self) -> tuple[list[str], str]:
        add = lambda name: lambda tile: [f"s_{name} += {tile}"]  # noqa: E731
        store = {"d_cached": add("cached"), "d_pools": add("pools")}
        program = self._segment_program("segment", store, {"cached": "b_cached", "pools": "b_pools"})
        more = ["cached", "pools", "d_cached", "d_pools"] if self.meaning.routes else ["d_cached"]
        return self.render("segments", self._arguments("segment", more=more), program=program)

    def retreat(self) -> tuple[list[str], str]:
        whole, pulls = self.programs["retreat"], self.plan.reverse.pulls
        held = {name: f"b_{name}" for name in self.state} | {f"d_{n}_next": f"b_d_{n}_next" for n in self.state}
        store = {**self.discard(whole.outputs), **{name: self.keep_rows(name) for name in pulls}}
        program = self._carried(self.bind(whole, held, store), "b_d_{}_next", "b_d_{}")
        state = carried(whole, list(self.state), self.plan.advance, "{}", "{}_next")
        following, advance = self._recomputed(state, held)
        more = [f"start_{name}" for name in state if name != "anchor"] if self.starts else []
        if self.starts:
            more += [f"d_end_{slot}" for slot in self.slots] + (["d_end_pool"] if self.meaning.routes else [])
        more += ["d_cached"] if self.meaning.reads_cached else []
        more += ["d_pools"] if self.meaning.routes else []
        arguments = list(dict.fromkeys([*self.tensors([*whole.inputs, *following.inputs]), *pulls, *more]))
        walk = {"stepped": self.plan.stepped, "recompute": state, "advance": advance, "pulls": pulls}
        return self.render("retreat", arguments, program=program, **walk)

    def _recomputed(self, state: Sequence[str], held: Mapping[str, str]) -> tuple[Program, list[str]]:
        """The program that takes parts of the state a chunk further, and its statements."""
        following = select(self.plan.advance, [f"{name}_next" for name in state], "advance")
        lines = self.bind(following, held, self.discard(following.outputs))
        return following, self._carry(lines, "b_{}", "b_{}_next", state)

    def gradient_kernels(self) -> dict[str, tuple[list[str], str]]:
        """The kernels of the reverse chunk step, by name, as planned."""
        return {name: self._gradient_kernel(name, walk) for name, walk in self.plan.walks.items()}

    def _gradient_kernel(self, kernel: str, walk: Walk) -> tuple[list[str], str]:
        store = {f"d_{name}": self.store(name, parts=walk.parts) for name in walk.wanted}
        store |= {f"d_{name}": lambda tile: [] for name in walk.d_state}
        held = {name: f"b_{name}" for name in self.state} | {f"d_{n}_next": f"b_d_{n}_next" for n in self.state}
        following, advance = self._recomputed(walk.state, held)
        if walk.reverse:
            program = self._carry(self.bind(walk.program, held, store), "b_d_{}_next", "b_d_{}", walk.d_state)
        else:
            both = simplify(Program(kernel, {**walk.program.outputs, **following.outputs}), FACTORS)
            store |= self.discard(following.outputs)
            program = self._carry(self.bind(both, held, store), "b_{}", "b_{}_next", walk.state)
        arguments = self.tensors([*walk.program.inputs, *following.inputs])
        if self.starts:
            arguments += [f"start_{name}" for name in walk.state if name != "anchor"]
            arguments += [f"d_end_{name}" for name in walk.d_state if name != "anchor"]
        else:
            arguments += ["d_cached"] if "M" in walk.d_state and self.meaning.reads_cached else []
            arguments += ["d_pools"] if "pool" in walk.d_state else []
        return self.render(
            "gradients",
            [*arguments, *(f"d_{name}" for name in walk.wanted)],
            kernel=kernel,
            wanted=walk.wanted,
            parts=walk.parts,
            advance=advance,
            program=program,
            axis=walk.axis,
            stepped=walk.stepped,
            reverse=walk.reverse,
            d_state=walk.d_state,
            recompute=walk.state,
        )

    @cached_property
    def gradients(self) -> list[str]:
        """The inputs whose gradients the kernels write, lagged views apart."""
        names = [label.removeprefix("d_") for label in self.plan.gradients.outputs]
        return [name for name in names if name not in self.state]

    def render(self, template: str, arguments: list[str], **more: object) -> tuple[list[str], str]:
        meaning = self.meaning
        text = render(
            f"triton/{template}.py.jinja",
            arguments=", ".join(arguments),
            state=self.state,
            slots=self.slots,
            starts=self.starts,
            queries=self.queries,
            kind=meaning.aggregate,
            chained=meaning.chained,
            routes=meaning.routes,
            reads_cached=meaning.reads_cached,
            mean_pool=meaning.spec.aggregate.pool == "mean",
            **more,
        )
        return arguments, text


def columns(tensor: str) -> str | None:
    """The axis of a per-token tensor besides the tokens, by its name; None for one number a token."""
    if tensor.startswith(("error_", "pull_")):
        return "v"
    return MATRIX_AXES.get(tensor.removeprefix("d_").removesuffix("_rows"))


def _both(rows: str, columns: str) -> str:
    return f"{rows}[:, None] & {columns}[None, :]"


def idle(line: str) -> bool:
    """Whether a statement only gives a register its own value."""
    target, _, value = line.strip().partition(" = ")
    return target == value


FUNCTIONS = {
    "_sign": """@_jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))""",
    "_step": """@_jit
def _step(x):
    return tl.where(x > 0, 1.0, 0.0)""",
    "_larger": """@_jit
def _larger(x, y):
    return tl.where(x > y, 1.0, tl.where(x == y, 0.5, 0.0))""",
    "_softplus": """@_jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))""",
    "_tanh": """@_jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)""",
    "_cosh": """@_jit
def _cosh(x):
    return 0.5 * (tl.exp(x) + tl.exp(-x))""",
    "_sinh": """@_jit
def _sinh(x):
    return 0.5 * (tl.exp(x) - tl.exp(-x))""",
    "_whole_pow": """@_jit
def _whole_pow(x, N: tl.constexpr):
    y = x
    for _ in tl.static_range(1, N):
        y *= x
    return y""",
    "_pow": """@_jit
def _pow(x, y):
    return tl.where(x == 0, 0.0, tl.exp2(y * tl.log2(x)))""",
    "_power": """@_jit
def _power(x, y):
    whole = tl.floor(y) == y
    odd = whole & (2.0 * tl.floor(0.5 * y) != y)
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    signed = tl.where(x < 0, tl.where(odd, -size, tl.where(whole, size, float("nan"))), size)
    return tl.where(y == 0, 1.0, tl.where(x == 0, tl.where(y > 0, 0.0, float("inf")), signed))""",
}


ROWS = ("_block", "_chunk_step", "_chain", "_segment", "_span")
"""The functions that give a row of a table as the numbers it has."""


def triton_source(meaning: Meaning, tuned: bool = False) -> str:
    """The text that defines `_run_forward_triton`, `_run_backward_triton` and `_saved_triton`.

    Where it is `tuned`, the launch configurations in it are from the user's tables first.
    """
    kernels = Kernels(meaning)
    parts = {"read": kernels.read(), **kernels.gradient_kernels()}
    launches_states = bool(kernels.forward_tensors)
    if launches_states:
        parts = {"states": kernels.states(), **parts}
    if meaning.reads_cached:
        parts |= {"rows": kernels.rows(), "segments": kernels.segments()}
    if kernels.starts or kernels.plan.reverse.pulls:
        parts["retreat"] = kernels.retreat()
    if meaning.aggregate == "ssc":
        from mcgen.emit.triton.choices import choice_kernels

        parts |= choice_kernels(kernels)
    text = "\n\n\n".join(source.strip("\n") for _, source in parts.values())
    kernels_text = without_unused(f"{prelude(text, meaning)}\n\n\n{text}\n")
    schedule = scheduled(planned(meaning))
    known = launching(meaning.spec, kernels_text, schedule.kernels, tuned=tuned)
    return f"{kernels_text}\n\n{host_source(schedule, known, default_configurations(meaning.spec))}"


def prelude(text: str, meaning: Meaning) -> str:
    """The functions that kernels call, of those that some text has calls of."""
    return render(
        "triton/prelude.py.jinja",
        chained=meaning.chained,
        streamed=not meaning.linear,
        decays="_tile_runs(" in text,
        solves="_tile_solve(" in text,
        rows=[name for name in ROWS if f"{name}(" in text],
        functions=[source for name, source in FUNCTIONS.items() if f"{name}(" in text],
    ).strip()
