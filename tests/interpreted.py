"""Runs the Triton path of modules interpreted on the CPU, in a process of its own: Triton decides that when imported.

python -m tests.interpreted JOBS RESULTS [by_parts]     # files of torch.save; multiplies float32 as GPUs do
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcgen.spec import Spec, loads

Tensors = dict[str, torch.Tensor]
ROOT = Path(__file__).parents[1]


def interpreted(jobs: Sequence[tuple[Spec, Tensors]], folder: Path, *options: str) -> list[Tensors]:
    """y and the gradients of `hostile.results`, for the inputs of each job."""
    import json

    torch.save([(json.dumps(spec.to_dict()), x) for spec, x in jobs], folder / "jobs.pt")
    command = [sys.executable, "-m", "tests.interpreted", str(folder / "jobs.pt"), str(folder / "results.pt"), *options]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "results.pt")


def multiply_by_parts(module: Any) -> None:
    """Has a module's kernels make products of float32 as on GPUs with tf32: as three of these."""
    names = module.op.__globals__
    assert names["_precision"](torch.float32) == "ieee"
    names["_precision"] = lambda element: "tf32x3"


def main(jobs: str, results_file: str, *options: str) -> None:
    from mcgen.emit.module.file import module_source
    from mcgen.symbolic.meaning import meaning
    from tests.emit.fragments import run
    from tests.hostile import results

    found = []
    for text, x in torch.load(jobs):
        module = run(module_source(meaning(loads(text))))
        if "by_parts" in options:
            multiply_by_parts(module)
        found.append(results(module.op, x, backend="triton"))
    torch.save(found, results_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
