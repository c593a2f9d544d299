"""The `State` of a generated module: what its memory knows of the tokens so far, to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from mcgen.emit.text.rendering import render
from mcgen.emit.torch.path import TorchPath, lagged_inputs
from mcgen.ir.layers import layers, sizes
from mcgen.ir.step import state_axes
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY

LEAST = 16
"""Tokens between checkpoints at least: with fewer, keeping states costs more than running their tokens again."""
MOST = 64
"""Tokens between checkpoints where no gradient chunk says otherwise."""


def state_source(meaning: Meaning, slots: Iterable[str]) -> str:
    """The text that defines `State` and `_go_on`; `slots` are the user's names of the slots.

    Nothing for logarithmic segments, whose borders depend on how many tokens follow.
    """
    if meaning.spec.segment.size is None:
        return ""
    return render("state.py.jinja", **_State(meaning).context(slots))


def state_parts(meaning: Meaning) -> dict[str, object]:
    """What an operator says of its state: the names of its parts, and of what is cached at the ends of segments."""
    state = _State(meaning)
    return {"parts": _names(state.shapes), "bank": _names(state.bank), "weights": len(state.layers)}


class _State:
    """The state of one meaning."""

    def __init__(self, meaning: Meaning) -> None:
        self.meaning = meaning
        self.path = TorchPath(meaning)
        self.layers = layers(meaning.spec)

    def context(self, slots: Iterable[str]) -> dict[str, object]:
        """What the template shows."""
        meaning, lagged = self.meaning, lagged_inputs(self.meaning)
        deep = not meaning.linear
        parts = {
            theirs: [f"{own}{layer.suffix}" for layer in self.layers]
            for theirs, own in zip(slots, meaning.recurrence.slots, strict=True)
        }
        return {
            "checkpoint": self.checkpoint,
            "plain": self.path.plain,
            "chained": meaning.chained,
            "reads_cached": meaning.reads_cached,
            "summed": self.path.reading == "sums",
            "banked": bool(self.path.banked),
            "deep": deep,
            "written": _names(name for name in meaning.inputs if name not in ("q", "u")),
            "lag": max((lag for *_, lag in lagged), default=0),
            "sources": _names(sorted({source for _, source, _ in lagged})),
            "shapes": _mapping({**self.shapes, **self.bank}),
            "theta": _names(parts[MEMORY]) if deep else "",
            "slot_parts": "{" + ", ".join(f'"{name}": ({_names(of)})' for name, of in parts.items()) + "}",
        }

    @property
    def checkpoint(self) -> int:
        """Tokens from one checkpoint to the next: whole gradient chunks, whose start is no part of the state."""
        chunk = self.meaning.gradient_chunk
        return MOST if chunk is None else chunk * -(-LEAST // chunk)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every part of the state that goes from token to token."""
        size = sizes(self.meaning.spec)
        return {name: tuple(size[axis] for axis in axes) for name, axes in state_axes(self.meaning).items()}

    @cached_property
    def bank(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of everything that is cached at the end of a segment."""
        if self.path.reading == "sums":
            return {"total": self.shapes[MEMORY]}
        cached = {name: self.shapes[part] for name, part in self.path.memory.items()} if self.path.banked else {}
        return {**cached, **({"pools": self.shapes["pool"]} if self.meaning.routes else {})}


def _names(names: Iterable[str]) -> str:
    """The inside of a tuple of names."""
    quoted = [f'"{name}"' for name in names]
    return ", ".join(quoted) + ("," if len(quoted) == 1 else "")


def _mapping(items: Mapping[str, object]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in items.items()) + "}"
