"""The last rung of the ladder: printed Triton, interpreted, against the definition, for rules that nobody chose."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mcgen.spec import Spec
from tests.emit.fragments import inputs, reference_of
from tests.hostile import Tensors, results
from tests.interpreted import interpreted
from tests.ir.test_ladder import AGGREGATES, RANDOM, SEGMENTS
from tests.symbolic.rules import learning, small, updates

RULES = st.tuples(
    st.one_of(updates(), learning()), st.sampled_from(AGGREGATES), st.sampled_from(SEGMENTS), st.integers(2, 20)
)
TOLERANCE = 2e-5
"""Of the norm: float32's rounding, of terms that may be larger than their sum."""


def job(update: dict[str, Any], aggregate: dict[str, Any], segment: dict[str, Any], T: int) -> tuple[Spec, Tensors]:
    spec = small(update, aggregate=aggregate, segment=segment)
    return spec, {name: t.detach() for name, t in inputs(spec, T, B=1, H=2, dtype=torch.float32).items()}


@settings(RANDOM, max_examples=3, phases=(Phase.generate,))  # a batch of rules shares a process, and is not shrunk
@given(st.lists(RULES, min_size=5, max_size=5))
def test_printed_triton_means_what_the_lines_say(rules: list[tuple[dict, dict, dict, int]]) -> None:
    jobs = [job(*rule) for rule in rules]
    with tempfile.TemporaryDirectory() as folder:
        found = interpreted(jobs, Path(folder))
    for (spec, x), got in zip(jobs, found, strict=True):
        wanted = results(reference_of(spec), {name: t.double() for name, t in x.items()})
        single = results(reference_of(spec), x)
        for part, expected in wanted.items():
            own = (single[part] - expected).norm()
            assert (got[part] - expected).norm() <= 8 * own + TOLERANCE * expected.norm() + 1e-9, (part, spec.to_dict())
