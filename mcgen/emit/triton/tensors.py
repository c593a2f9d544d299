"""How the tiles of per-token tensors are loaded and stored, and programs bound to them: alike in every kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.triton.printer import Binding, statements
from mcgen.ir.closed_form import lagged_names
from mcgen.ir.program import Program
from mcgen.ir.step import query_name
from mcgen.plan.host import Kernel
from mcgen.symbolic.meaning import Meaning

Store = Callable[[str], list[str]]
"""Statements that store the tile that a text stands for."""
SCALARS = {
    "head": "i_h.to(tl.float32)",
    "valid": "m_t.to(tl.float32)",
    "count": "(i_t - segment_start + 1 + o_t).to(tl.float32)",
    "share": "b_share",
    "fresh": "b_fresh",
}
MATRIX_AXES = {"q": "k", "u": "k", "k": "k", "v": "v", "y": "v"}
OF_SEGMENT = "i_cached = i_bh.to(tl.int64) * n_segments + i_s"
"""Where what is cached of a segment lies."""
POOLS = "tl.load(pools + i_cached * K + o_k, mask=m_k, other=0.0)"


@dataclass(frozen=True)
class Tensors:
    """The per-token tensors of one meaning."""

    meaning: Meaning

    @cached_property
    def lagged(self) -> Mapping[str, tuple[str, int]]:
        return lagged_names(self.meaning.recurrence)

    @cached_property
    def narrow(self) -> frozenset[str]:
        """Tensors whose tiles keep their own type, for products."""
        return frozenset({"q", "u", "k", "v", "d_y", *self.lagged})

    def load(self, name: str) -> str:
        """The text that loads a tile, zero past the sequence's end and before a lag's border."""
        if name in SCALARS:
            return SCALARS[name]
        source, lag = self.lagged.get(name, (name, 0))
        row, seen = "i_row", "m_t"
        if lag:
            row, seen = f"(i_row - {lag} * H)", f"(m_t & (i_t + o_t - {lag} >= border))"
        axis = columns(source)
        if axis is None:
            return f"tl.load({source} + {row} + o_t * H, mask={seen}, other=0.0).to(tl.float32)"
        tile = f"{source} + {row} * {axis.upper()} + (o_t[:, None] * (H * {axis.upper()}) + o_{axis}[None, :])"
        return f"tl.load({tile}, mask={both(seen, f'm_{axis}')}, other=0.0){self._narrowed(name)}"

    def gathered(self, name: str) -> str:
        """The text that loads the rows `o_row`, numbered over (B, T, H)."""
        axis = MATRIX_AXES.get(name.removeprefix("d_"))
        if axis is None:
            return f"tl.load({name} + o_row, mask=m_t, other=0.0).to(tl.float32)"
        tile = f"{name} + o_row.to(tl.int64)[:, None] * {axis.upper()} + o_{axis}[None, :]"
        return f"tl.load({tile}, mask=m_t[:, None] & m_{axis}[None, :], other=0.0){self._narrowed(name)}"

    def _narrowed(self, name: str) -> str:
        return ".to(IN)" if name in self.narrow else ""

    def store(self, name: str, parts: bool = False) -> Store:
        """Statements that store the tile of an input's gradient; a lagged view's is zero before the lag's border."""
        source, lag = self.lagged.get(name, (name, 0))
        tensor, axis = f"d_{name}", MATRIX_AXES.get(source)
        if axis is None:
            base = f"{tensor} + i_v.to(tl.int64) * (BH // H) * T * H" if parts else tensor
            return number(base)
        place = f"{tensor} + i_row * {axis.upper()} + (o_t[:, None] * (H * {axis.upper()}) + o_{axis}[None, :])"
        mask, seen = both("m_t", f"m_{axis}"), f"(i_t + o_t - {lag} >= border)[:, None]"
        clean = (lambda tile: f"tl.where({seen}, {tile}, 0.0)") if lag else (lambda tile: tile)
        return lambda tile: [f"tl.store({place}, {clean(tile)}.to({tensor}.dtype.element_ty), mask={mask})"]

    def bind(
        self, program: Program, load: Mapping[str, str], store: Mapping[str, Store], stream: str = ""
    ) -> list[str]:
        """The program's statements, per-token inputs loaded as always, others as `load` says."""
        loads = {name: load.get(name) or self.load(name) for name in program.inputs}
        held = frozenset(name for name, text in loads.items() if text.startswith("b_"))
        return without_idle(statements(program, Binding(loads, store, self.narrow, held, stream)))


def columns(tensor: str) -> str | None:
    """The axis of a per-token tensor besides the tokens, by its name; None for one number a token."""
    if tensor.startswith(("error_", "pull_")):
        return "v"
    return MATRIX_AXES.get(tensor.removeprefix("d_").removesuffix("_rows"))


def both(rows: str, columns: str) -> str:
    return f"{rows}[:, None] & {columns}[None, :]"


def number(tensor: str) -> Store:
    """Statements that store one number a token."""
    return lambda tile: [f"tl.store({tensor} + i_row + o_t * H, {tile}, mask=m_t)"]


def added(total: str, mask: str = "") -> Store:
    """Statements that add a tile to a sum, where a mask holds."""
    return lambda tile: [f"{total} += tl.where({mask}, {tile}, 0.0)" if mask else f"{total} += {tile}"]


def nothing(tile: str) -> list[str]:
    """A tile that is stored nowhere: the kernel reads its register."""
    return []


def discard(names: Iterable[str]) -> dict[str, Store]:
    return dict.fromkeys(names, nothing)


def without_idle(lines: Iterable[str]) -> list[str]:
    """Lines without those that only give a register its own value."""
    return [line for line in lines if not _is_idle(line)]


def _is_idle(line: str) -> bool:
    target, _, value = line.strip().partition(" = ")
    return target == value


def carry(lines: Sequence[str], to: str, source: str, names: Iterable[str]) -> list[str]:
    """Lines, then parts of the state carried on: `to` and `source` say what each is called as `b_{}` and the like."""
    return [*lines, *(f"{to.format(name)} = {source.format(name)}" for name in names)]


def kernel_text(template: str, kernel: Kernel, **values: object) -> str:
    """A kernel's definition, by its template."""
    constants = (f"{name}: tl.constexpr," for name in kernel.constants)
    arguments = " ".join([*(f"{name}," for name in kernel.arguments[: -len(kernel.constants)]), *constants])
    return render(f"triton/{template}.py.jinja", kernel=kernel.name, signature=arguments, **values)


def routing(meaning: Meaning) -> dict[str, str]:
    """The query that routes, and what its products with pooled keys are multiplied by, as text behind them."""
    by = float(meaning.spec.aggregate.scale)
    return {"query": query_name(meaning), "scale": "" if by == 1 else f" * {by!r}"}


def pooled(meaning: Meaning, value: str, start: str, end: str) -> str:
    """Pooled keys from their sum over a segment."""
    return f"{value} / ({end} - {start})" if meaning.spec.aggregate.pool == "mean" else value
