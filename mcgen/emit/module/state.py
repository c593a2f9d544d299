"""The `State` of a generated module: what its memory knows of the tokens so far, to go on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mcgen.emit.text.rendering import render
from mcgen.emit.torch.path import TorchPath
from mcgen.ir.layers import layers
from mcgen.plan.state import StateLayout
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.recurrence import MEMORY


def state_source(meaning: Meaning, slots: Iterable[str]) -> str:
    """The text that defines `State` and `_go_on`; `slots` are the user's names of the slots.

    Nothing for logarithmic segments, whose borders depend on how many tokens follow.
    """
    if meaning.spec.segment.size is None:
        return ""
    state, deep = StateLayout(meaning), not meaning.linear
    parts = {
        theirs: [f"{own}{layer.suffix}" for layer in layers(meaning.spec)]
        for theirs, own in zip(slots, meaning.recurrence.slots, strict=True)
    }
    return render(
        "state.py.jinja",
        checkpoint=state.checkpoint,
        plain=TorchPath(meaning).plain,
        chained=meaning.chained,
        reads_cached=meaning.reads_cached,
        summed=state.summed,
        banked=state.banked,
        deep=deep,
        written=_names(name for name in meaning.inputs if name not in ("q", "u")),
        lag=state.lag,
        sources=_names(state.sources),
        shapes=_mapping({**state.parts, **state.bank}),
        theta=_names(parts[MEMORY]) if deep else "",
        slot_parts="{" + ", ".join(f'"{name}": ({_names(of)})' for name, of in parts.items()) + "}",
    )


def state_parts(meaning: Meaning) -> dict[str, object]:
    """What an operator says of its state: the names of its parts, and of what is cached at the ends of segments."""
    state = StateLayout(meaning)
    return {"parts": _names(state.parts), "bank": _names(state.bank), "weights": len(layers(meaning.spec))}


def _names(names: Iterable[str]) -> str:
    """The inside of a tuple of names."""
    quoted = [f'"{name}"' for name in names]
    return ", ".join(quoted) + ("," if len(quoted) == 1 else "")


def _mapping(items: Mapping[str, object]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in items.items()) + "}"
