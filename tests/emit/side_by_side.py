"""One of two processes that train a layer side by side, one of which has an empty batch at each step.

python -m tests.emit.side_by_side FOLDER RANK     # FOLDER has the generated memory.py; gradients go to RANK.pt
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).parents[2]
EMPTY = [(0, 7, 10), (2, 0, 10)]
"""What the second process has at one step and the first one at the next."""

Gradients = dict[str, torch.Tensor]


def batch(step: int) -> torch.Tensor:
    return torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(step))


def layer_in(folder: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("memory", folder / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.Layer()


def gradients(layer: torch.nn.Module, x: torch.Tensor) -> Gradients:
    layer.zero_grad()
    layer(x).square().sum().backward()
    return {name.removeprefix("module."): p.grad.clone() for name, p in layer.named_parameters()}


def side_by_side(folder: Path) -> list[list[Gradients]]:
    """The gradients of each step in each of two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.emit.side_by_side", str(folder)]
    running = [subprocess.Popen([*command, rank], cwd=ROOT, env=environment) for rank in "01"]
    try:
        assert [process.wait(timeout=300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    layer = DistributedDataParallel(layer_in(folder))
    found = []
    for step, empty in enumerate(EMPTY):
        x = batch(step) if rank == step % 2 else torch.empty(empty)
        found.append(gradients(layer, x))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
    # At once: threads of torch's that still run when the interpreter is torn down can abort the process.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
