"""Holds Triton kernels, interpreted on the CPU, in a process of its own: Triton decides that when imported.

python -m tests.held CASES [resident] [by_parts]   # a JSON file of [[spec as a dict, tokens], ...]; misses as JSON

Numbers are multiplied as they are, or `by_parts` as GPUs do with float32. Hidden units of deep memories are taken in
tiles of 16, their state from buffers, for all but `resident` cases, and long gradient chunks in spans of 16 tokens, a
group each if they are few. Weights of cached segments are kept for few rows at once, and gradients added up in runs of
8 tokens. Every tensor that is made empty is full of NaN, so that what no kernel writes is seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Cases = Sequence[tuple[Mapping[str, Any], int]]


def misses(cases: Cases, folder: Path, *options: str) -> list[str]:
    """What kernels get wrong beyond rounding: values beyond 1e-5 and gradients beyond 1e-4 of the reference's."""
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.held", str(file), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def main(file: str, *options: str) -> None:
    import torch

    from mcgen.plan import layered, streamed, weighted_reads

    streamed.COLUMNS = 16
    layered.SPAN, layered.GROUP = 16, 1
    weighted_reads.CONSTANTS["BAND"], weighted_reads.RUN = 2, 8
    if "resident" not in options:
        streamed.WIDEST_TILE = 0

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    with tempfile.TemporaryDirectory() as folder:
        cases = json.loads(Path(file).read_text())
        print(json.dumps([text for case in cases for text in _held(*case, Path(folder), "by_parts" in options)]))


def _held(spec: Mapping[str, Any], length: int, folder: Path, by_parts: bool) -> list[str]:
    from mcgen.pipeline import source
    from mcgen.spec import loads
    from mcgen.tune.verification import Case, hold, imported
    from tests.interpreted import multiply_by_parts

    meaning = loads(json.dumps(spec))
    path = Path(tempfile.mkdtemp(dir=folder)) / "case.py"
    path.write_text(source(meaning))
    module = imported(path)
    if by_parts:
        multiply_by_parts(module)
    findings = list(hold(Case(module, meaning, length, batch=1, heads=2), "triton", "cpu", seed=length))
    assert findings
    return [f"{spec['name']}, {length} tokens: {f}" for f in findings if not f.holds]


if __name__ == "__main__":
    main(*sys.argv[1:])
