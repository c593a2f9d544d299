"""The tensors of a pass that every memory has alike: inputs, rows and what is saved, and what programs take of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mcgen.ir.backward import query_inputs
from mcgen.ir.program import Program
from mcgen.plan.host import INTEGER, Buffer, Compute, Statement
from mcgen.plan.state import StateLayout
from mcgen.symbolic.meaning import Meaning

ROWS = ("B", "T", "H")
OF_SEQUENCE = ("T", "H", "BH")
"""Sizes that kernels find rows by."""
WIDTHS = {"q": "K", "u": "K", "k": "K", "v": "V", "y": "V"}
"""The axis besides the tokens of tensors that have one."""
BLOCK = {"T": "a block", "n_blocks": "its own", "n_segments": "those before its segment"}
CHAIN = {"T": "a chain", "n_blocks": "its own", "n_segments": "its own"}
LATER = {"T": "rows of later segments", "n_segments": "one"}
OWN = {"T": "a segment", "n_segments": "one"}
CHOICES = {"T": "rows of some choices", "n_segments": "those chosen"}
CHOOSERS = {"T": "rows that chose it", "n_segments": "one"}
"""What a program takes of axes."""


def of_tokens(name: str, like: str, type: str = "float32") -> Buffer:
    """A buffer of a row a token, as wide as an input."""
    return Buffer(name, (*ROWS, *((WIDTHS[like],) if like in WIDTHS else ())), type)


Y = of_tokens("y", "y", "v")


@dataclass(frozen=True)
class PassTensors:
    """The tensors of one meaning.

    programs   the tile programs that kernels are printed from
    state      the axes of one memory in the cache
    between    rows that one kernel leaves for another
    lagged     inputs and lags behind the names of lagged views
    """

    meaning: Meaning
    programs: Mapping[str, Program]
    state: tuple[str, ...]
    between: Sequence[str]
    lagged: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @cached_property
    def given(self) -> tuple[Buffer, ...]:
        """The operator's inputs, in float types of their own."""
        return tuple(of_tokens(name, name, name) for name in self.meaning.inputs)

    @cached_property
    def queries(self) -> list[str]:
        return query_inputs(self.meaning)

    def behind(self, inputs: Iterable[str]) -> list[str]:
        """The per-token tensors behind program inputs, each once, in an order of their own."""
        read = {self.lagged.get(name, (name, 0))[0] for name in inputs}
        known = [*self.meaning.inputs, "d_y", "y", "lse", "online", "delta", "d_r", *self.between]
        return [name for name in [*known, *(f"d_{name}_rows" for name in self.queries)] if name in read]

    def of(self, *programs: str) -> list[str]:
        """Those that some programs read."""
        return self.behind(name for part in programs for name in self.programs[part].inputs)

    # -- what is saved ------------------------------------------------------------------------------------------------

    @cached_property
    def cached(self) -> tuple[Buffer, ...]:
        """The state and the pooled key of every segment, as far as they are read."""
        segments, meaning = ("B", "H", "n_segments"), self.meaning
        found = [Buffer("cached", (*segments, *self.state))] if meaning.reads_cached else []
        return (*found, *([Buffer("pools", (*segments, "K"))] if meaning.routes else []))

    @property
    def saved(self) -> tuple[Buffer, ...]:
        """That, and of rows the log-sum-exp of logits and the weight of the online memory."""
        return (*self.cached, *((Buffer("lse", ROWS), Buffer("online", ROWS)) if self.meaning.routes else ()))

    @property
    def d_cached(self) -> tuple[Buffer, ...]:
        return tuple(Buffer(f"d_{buffer.name}", buffer.shape) for buffer in self.cached)


def keeps_y(meaning: Meaning) -> bool:
    """Whether the reverse of reads starts from y: from its inner product with the cotangent, as a softmax's does."""
    return meaning.routes and meaning.aggregate != "soup"


def chooses(meaning: Meaning) -> bool:
    """Whether rows choose the segments that they read."""
    return meaning.aggregate == "ssc"


def choices(meaning: Meaning) -> tuple[Buffer, ...]:
    """What the forward pass saves in tensors of their own: the segments that rows choose."""
    return (Buffer("chosen", (*ROWS, "TOP_K"), INTEGER),) if chooses(meaning) else ()


def goes_on(meaning: Meaning) -> bool:
    """Whether a pass may go on from a state: not where segments depend on the length of the whole sequence."""
    return meaning.spec.segment.size is not None


def save(meaning: Meaning, saved: Sequence[Buffer]) -> list[Statement]:
    """Room for what the forward pass saves; all of it is the same at every run, what lies between tensors too."""
    state = StateLayout(meaning) if goes_on(meaning) else None
    tensors, sizes = ("tensors, place", "x.B, x.T, x.H, x.place") if state else ("tensors", "x.B, x.T, x.H")
    clear = Compute(f"_clear_between(saved[0], _rooms_triton({sizes}))")
    earlier = [Compute("_copy_earlier(x)")] if state and state.banked else []
    return [Compute(f"saved = _saved_triton({tensors})"), clear, _recall((), saved, choices(meaning)), *earlier]


def result(meaning: Meaning) -> str:
    """What the forward pass gives."""
    return "_results(x, saved)" if goes_on(meaning) else "[x.y, *saved]"


def owe(meaning: Meaning) -> list[Statement]:
    """What is owed to the state after the last token, and room for what is to the one before."""
    return [Compute("_owe(x, d_after)")] if goes_on(meaning) else []


def led(meaning: Meaning, tensor: str) -> str:
    """A tensor of tokens with the rows in front that lags look back at."""
    return f"_led(x, {tensor})" if goes_on(meaning) and StateLayout(meaning).lag else f"{tensor}.contiguous()"


def recall(meaning: Meaning, saved: Sequence[Buffer]) -> Compute:
    """What the forward pass saved, by name: y where that is kept, parts of one buffer, and rows' choices."""
    return _recall((Y,) if keeps_y(meaning) else (), saved, choices(meaning))


def _recall(first: Sequence[Buffer], saved: Sequence[Buffer], apart: Sequence[Buffer]) -> Compute:
    names = [*(one.name for one in first), "buffer", *(one.name for one in apart)]
    return Compute(f"_recall(x, {names}, saved)".replace("'", '"'), makes=(*first, *saved, *apart))
