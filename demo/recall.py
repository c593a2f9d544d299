"""Multi-query associative recall on the CPU: a plain recurrent memory beside the same memory with cached segments.

A sequence is a number of key-value pairs, then each of its keys once more, in another order; the model names the value
that stood beside the key (MQAR of Arora et al., "Zoology", arXiv 2312.04927). Both models have two layers, equal width
and the same seed, and train at once, each in a process of its own. The plain memory, 8 × 32 numbers, holds a handful of
pairs and then mixes them up; the cached one reads the segments that hold the pair.

    python demo/recall.py [--seed 0] [--steps 400]
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parent
BUILT = FOLDER.parent / "build" / "demo"
MEMORIES = {"plain": "recall_plain", "cached": "recall_cached"}

KEYS, VALUES = 64, 32  # sizes of the two vocabularies
PAIRS = (4, 8, 16, 32, 64)  # pairs in a sequence, in the table
TRAINED = (32, 8, 32, 16)  # and in training, in turn: 64 is longer than any of them
BATCH, LEARNING_RATE, EVALUATED = 64, 8e-3, 512
SHOWN = 100  # steps from one line of progress to the next


def build() -> None:
    """Builds both specs into build/demo."""
    specs = [str(FOLDER / f"{name}.yaml") for name in MEMORIES.values()]
    subprocess.run([sys.executable, "-m", "mcgen", "build", *specs, "-o", str(BUILT)], check=True, cwd=FOLDER.parent)


def generated_layer(name: str) -> type[nn.Module]:
    """The layer of a built module."""
    spec = importlib.util.spec_from_file_location(name, BUILT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Layer


class Block(nn.Module):
    """x + layer(norm(x)): the memory alone, with no other layers between."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.memory = nn.Sequential(nn.RMSNorm(layer.d_model), layer)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.memory(x)


def model_of(layer: Callable[[], nn.Module], depth: int = 2) -> nn.Module:
    """Tokens (B, T) in, logits over the values (B, T, VALUES) out."""
    blocks = [Block(layer()) for _ in range(depth)]
    width = blocks[0].memory[1].d_model
    return nn.Sequential(nn.Embedding(KEYS + VALUES, width), *blocks, nn.RMSNorm(width), nn.Linear(width, VALUES))


@dataclass(frozen=True)
class Task:
    """Sequences of key, value, key, value, …, key, key, …; `answers` are the values that belong to the last keys."""

    tokens: Tensor
    answers: Tensor

    @classmethod
    def draw(cls, sequences: int, pairs: int, generator: torch.Generator) -> Task:
        keys = torch.rand(sequences, KEYS, generator=generator).argsort(-1)[:, :pairs]
        values = torch.randint(VALUES, (sequences, pairs), generator=generator)
        order = torch.rand(sequences, pairs, generator=generator).argsort(-1)
        written = torch.stack([keys, KEYS + values], -1).flatten(1)
        return cls(torch.cat([written, keys.gather(1, order)], 1), values.gather(1, order))

    def logits(self, model: nn.Module) -> Tensor:
        """The model's answers, (sequences, pairs, VALUES)."""
        return model(self.tokens)[:, -self.answers.shape[1] :]

    def accuracy(self, logits: Tensor) -> float:
        return (logits.argmax(-1) == self.answers).float().mean().item()


def train(name: str, model: nn.Module, steps: int, seed: int) -> None:
    """Trains a model, saying now and then how far it is."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    begin = time.perf_counter()
    for step in range(1, steps + 1):
        task = Task.draw(BATCH, TRAINED[(steps - step) % len(TRAINED)], generator)
        logits = task.logits(model)
        loss = F.cross_entropy(logits.flatten(0, 1), task.answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (steps - step) % SHOWN == 0:
            show_progress(name, step, steps, task, logits, time.perf_counter() - begin)


def show_progress(name: str, step: int, steps: int, task: Task, logits: Tensor, seconds: float) -> None:
    done, recall = f"training {name:<6}  step {step:>3} of {steps}", task.accuracy(logits)
    print(f"{done}   recalls {recall:6.1%} of {task.answers.shape[1]} pairs   {seconds:3.0f} s", flush=True)


@torch.no_grad()
def evaluate(model: nn.Module) -> list[float]:
    """Recall on sequences not seen before, for each number of pairs."""
    generator = torch.Generator().manual_seed(2**31)
    tasks = [Task.draw(EVALUATED, pairs, generator) for pairs in PAIRS]
    return [task.accuracy(task.logits(model)) for task in tasks]


@dataclass(frozen=True)
class Result:
    """What a trained model recalls, for each number of pairs, and how many parameters it has."""

    recalls: list[float]
    parameters: int


def trained(name: str, steps: int, seed: int) -> Result:
    """A model with the memory of this name, trained and evaluated; the same on every run with one seed."""
    torch.set_num_threads(1)  # tensors this small gain little from more: the other core has the other model
    torch.manual_seed(seed)
    model = model_of(generated_layer(MEMORIES[name]))
    train(name, model, steps, seed)
    return Result(evaluate(model), sum(parameter.numel() for parameter in model.parameters()))


def report(results: dict[str, Result]) -> None:
    """The table: a row a memory, a column a number of pairs."""
    print(f"\nvalues recalled, by the number of pairs in the sequence (chance is {1 / VALUES:.0%})\n")
    print(f"{'memory':<8}{'parameters':>12}" + "".join(f"{pairs:>9}" for pairs in PAIRS))
    for name, result in results.items():
        print(f"{name:<8}{result.parameters:>12,}" + "".join(f"{recall:>9.1%}" for recall in result.recalls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    build()
    with ProcessPoolExecutor(len(MEMORIES), multiprocessing.get_context("spawn")) as pool:
        found = pool.map(partial(trained, steps=options.steps, seed=options.seed), MEMORIES)
        report(dict(zip(MEMORIES, found, strict=True)))


if __name__ == "__main__":
    main()
