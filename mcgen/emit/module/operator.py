"""The operator of a generated module: `op`, and both paths behind custom ops of torch's."""

from __future__ import annotations

from mcgen.emit.module.state import state_parts
from mcgen.emit.text.rendering import render
from mcgen.emit.torch.path import lagged_inputs
from mcgen.plan.pass_tensors import keeps_y
from mcgen.symbolic.cost import flops
from mcgen.symbolic.meaning import Meaning


def forgets(meaning: Meaning) -> bool:
    """Whether nothing of a segment reaches the next."""
    return not meaning.chained and not meaning.reads_cached


def operator_source(meaning: Meaning, arguments: list[str]) -> str:
    """The text that defines `op` and what stands behind it; `arguments` are the user's names of its inputs."""
    spec, inputs = meaning.spec, meaning.inputs
    return render(
        "op.py.jinja",
        inputs=", ".join(f'"{name}"' for name in inputs),
        arguments=", ".join(f'"{name}"' for name in arguments),
        lagged=lagged_inputs(meaning),
        key_dim=spec.head.key_dim,
        value_dim=spec.head.value_dim,
        deep=not meaning.linear,
        keeps_y=keeps_y(meaning),
        flops=flops(meaning),
        segment_size=spec.segment.size,
        within_segment=forgets(meaning),
        **state_parts(meaning),
    )
