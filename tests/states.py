"""What interpreted kernels give of a sequence in several calls: the same bits, and gradients as exact as in one.

python -m tests.states    # with TRITON_INTERPRET=1, which Triton reads when imported
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mcgen.pipeline import source
from mcgen.spec import load, loads
from mcgen.spec.shipped import shipped
from tests.emit.fragments import difference, gradients, inputs, leaves, run

ROOT = Path(__file__).parents[1]
CASES = {
    # tokens of a segment, of the sequence, and where calls begin: inside chunks, at their ends and at those of segments
    "linear_grm": (80, 100, (70, 71, 90)),
    "swla_ssc": (32, 70, (5, 33, 40, 64)),
    "gated_delta_grm": (80, 100, (70, 90)),
    "linear_residual": (32, 70, (21, 50)),
    "momentum_delta_none": (80, 100, (66, 81)),
    "titans_matrix_chunk_none": (32, 70, (21, 33)),
    "titans_grm": (32, 50, (5, 20, 33)),
    "titans_grm_checkpoint": (32, 50, (20, 32, 40)),
    "titans_soup": (32, 40, (20, 33)),
    "titans_chunk_grm": (80, 100, (70, 90)),
    "dla_residual": (32, 50, (20, 33)),
}
"""One of every family of kernels and of what goes from call to call."""


def module_and_inputs(name: str) -> tuple[SimpleNamespace, dict[str, Any]]:
    """A shipped spec in small heads, and arguments in float32 that need gradients."""
    segment, T, _ = CASES[name]
    spec = load(shipped()[name]).to_dict() | {"head": {"key_dim": 4, "value_dim": 4}}
    spec["segment"]["size"] = segment
    spec = loads(json.dumps(spec))
    given = inputs(spec, T, B=2, H=2, dtype=torch.float32)
    with torch.no_grad():
        if "eta" in given:
            given["eta"] /= 20
    return run(source(spec)), given


def with_gradients(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a type that need gradients of their own."""
    new = lambda x: x.detach().to(dtype, copy=True).requires_grad_()  # noqa: E731
    return {name: [new(W) for W in x] if name == "theta" else new(x) for name, x in given.items()}


def part(given: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {name: x if name == "theta" else x[:, begin:end] for name, x in given.items()}


def in_calls(module: SimpleNamespace, given: dict[str, Any], borders: list[int]) -> torch.Tensor:
    found, state = [], None
    for begin, end in pairwise(borders):
        y, state = module.op(**part(given, begin, end), state=state, return_state=True, backend="triton")
        found.append(y)
    return torch.cat(found, 1)


def missed(name: str) -> Iterator[str]:
    """What does not hold of a case."""
    module, given = module_and_inputs(name)
    _, T, cuts = CASES[name]
    with torch.no_grad():
        whole = module.op(**given, backend="triton")
        if not torch.equal(in_calls(module, given, [0, *cuts, T]), whole):
            yield f"{name}: a split changes bits"
        second = {n: x if n == "theta" else x[1:] for n, x in given.items()}
        if not torch.equal(in_calls(module, second, [0, cuts[0], T]), whole[1:]):
            yield f"{name}: the rest of the batch changes bits"
    narrow, wide = (with_gradients(second, dtype) for dtype in (torch.float32, torch.float64))
    expected = gradients(module.op(**wide, backend="torch"), wide)
    found = gradients(in_calls(module, narrow, [0, cuts[-1], T]), narrow)
    for leaf in leaves(narrow):
        if (far := difference(found[leaf], expected[leaf])) > 1e-4:
            yield f"{name}: the gradient of {leaf} is off by {far:.1e}"


def interpreted() -> str:
    """What interpreted kernels get wrong, empty where that is nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.states"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr[-3000:] if done.returncode else ""


def main() -> int:
    misses = [line for name in CASES for line in missed(name)]
    print("\n".join(misses))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
