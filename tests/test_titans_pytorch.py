"""Deep Titans memories against an independent implementation: `NeuralMemory` of titans-pytorch, values and gradients.

How its conventions are written in ours:

| titans-pytorch                                              | here                                                 |
| ----------------------------------------------------------- | ---------------------------------------------------- |
| loss: the mean over the value's D components                | objective `sum((p - v)**2)`, eta divided by D        |
| step size: sigmoid(w x_t + b), a token                      | eta                                                  |
| forgetting: M keeps 1 - sigmoid(w x + b)                    | alpha                                                |
| momentum: S keeps sigmoid(w x + b)                          | beta                                                 |
| forgetting and momentum once a chunk of c tokens, of the    | beta at a chunk's first token, 1 elsewhere; alpha at |
|   mean of its inputs; S and M change at its end             |   its last, 1 elsewhere; M takes S in there: lam     |
| the last chunk is left out where it is not whole            | lam is 0 there                                       |
| token t reads what the first t + 1 tokens' whole chunks     | `y_t = M_t(q_t)`                                     |
|   left (queries are padded by one in front)                 |                                                      |
| gradients at the initial weights (no `batch_size`)          | gradient over the whole segment                      |
| gradients at the weights every `batch_size` tokens          | `gradient: {chunk: batch_size}`                      |
| weights (in, out), applied as x W                           | theta, transposed                                    |
| projections, the output's, and a sigmoid gate of each head  | identities; the gate's weights 0, so that it halves  |
| `pre_rmsnorm`, `post_rmsnorm`, `qk_rmsnorm`                 | off                                                  |
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcgen import pipeline
from tests.emit.fragments import run, spec_of

titans = pytest.importorskip("titans_pytorch", reason="titans-pytorch is not installed")

BATCH, HEADS, DIM, EXPANSION = 2, 2, 6, 3
STEPS = {"objective": "sum((p - v)**2)", "steps": ["S = beta*S - eta*grad", "M = alpha*M + lam*S"]}


@dataclass(frozen=True)
class Case:
    """A memory, the tokens of a chunk, those between two places of gradients, and those of a sequence."""

    residual: bool
    norm: str
    layers: int
    chunk: int
    gradient: int | None
    length: int

    def __str__(self) -> str:
        memory = f"{self.layers} layers, {'with' if self.residual else 'without'} residual, norm {self.norm}"
        return f"{memory}, chunks of {self.chunk}, gradients over {self.gradient or 'all'}, T {self.length}"


CASES = [
    Case(residual=True, norm="none", layers=2, chunk=1, gradient=None, length=23),
    Case(residual=True, norm="layernorm", layers=2, chunk=1, gradient=None, length=70),
    Case(residual=True, norm="layernorm", layers=2, chunk=4, gradient=None, length=39),
    Case(residual=False, norm="none", layers=3, chunk=4, gradient=None, length=32),
    Case(residual=True, norm="none", layers=2, chunk=4, gradient=8, length=39),
    Case(residual=True, norm="layernorm", layers=2, chunk=1, gradient=5, length=33),
]


class Memory(nn.Module):
    """Their multi-layer perceptron with our residual and our layer norm, which has no weights of its own."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.mlp = titans.MemoryMLP(DIM, depth=case.layers, expansion_factor=EXPANSION)
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        y = F.layer_norm(y, (DIM,)) if self.case.norm == "layernorm" else y
        return x + y if self.case.residual else y


def theirs(case: Case) -> nn.Module:
    """The peer, its projections identities, its gates' weights and every head's initial weights drawn."""
    torch.manual_seed(0)
    memory = titans.NeuralMemory(
        HEADS * DIM,
        dim_head=DIM,
        heads=HEADS,
        chunk_size=case.chunk,
        batch_size=case.gradient,
        model=Memory(case),
        mem_model_norm_add_residual=False,
        pre_rmsnorm=False,
        qkv_receives_diff_views=True,
    ).double()
    for projection in (memory.to_queries, memory.to_keys, memory.to_values, memory.combine_heads):
        nn.init.eye_(projection.weight)
    nn.init.zeros_(memory.retrieve_gate[0].weight)
    for weight in memory.memory_model_parameters:
        nn.init.normal_(weight, std=weight.shape[-2] ** -0.5)
    return memory


def ours(case: Case) -> SimpleNamespace:
    """The module of the spec that says the same."""
    return run(
        pipeline.source(
            spec_of(
                {**STEPS, "gradient": {"chunk": case.gradient or case.length}},
                memory={
                    "kind": "mlp",
                    "layers": case.layers,
                    "expansion": EXPANSION,
                    "residual": case.residual,
                    "norm": case.norm,
                },
                segment={"size": case.length, "init": "checkpoint"},
                aggregate={"kind": "none"},
                head={"key_dim": DIM, "value_dim": DIM},
            )
        )
    )


def gates(case: Case, memory: nn.Module, keys: Tensor) -> dict[str, Tensor]:
    """The gates (B, T, H) that say what the peer makes of its keys (B, T, H * D)."""
    whole = case.length // case.chunk * case.chunk
    place = torch.arange(case.length)
    ends = (place % case.chunk == case.chunk - 1)[:, None]
    begins = (place % case.chunk == 0)[:, None] & (place < whole)[:, None]
    means = keys[:, :whole].unflatten(1, (-1, case.chunk)).mean(2)

    def by_token(linear: nn.Module) -> Tensor:
        return F.pad(linear(means).sigmoid().repeat_interleave(case.chunk, 1), (0, 0, 0, case.length - whole))

    return {
        "beta": torch.where(begins, by_token(memory.to_momentum[0]), 1.0),
        "eta": memory.to_adaptive_step[0](keys).sigmoid() / DIM,
        "alpha": torch.where(ends, 1 - by_token(memory.to_decay_factor[0]), 1.0),
        "lam": ends.to(keys.dtype).expand(BATCH, case.length, HEADS),
    }


def views(case: Case) -> list[Tensor]:
    """Queries, keys and values (B, T, H * D), the keys short."""
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, case.length, HEADS * DIM)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return [x.requires_grad_() for x in (q, k / DIM**0.5, v)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_retrieved_values_and_gradients_are_theirs(case: Case) -> None:
    memory, module, x = theirs(case), ours(case), views(case)
    retrieved, _ = memory(torch.stack(x))
    theta = [weight.mT for weight in memory.memory_model_parameters]
    q, k, v = (t.unflatten(-1, (HEADS, DIM)) for t in x)
    y = module.op(q, k, v, theta=theta, **gates(case, memory, x[1])).flatten(2) / 2
    torch.testing.assert_close(y, retrieved, rtol=1e-9, atol=1e-9)

    weights: list[Any] = [*x, *memory.memory_model_parameters, memory.to_adaptive_step[0].weight]
    expected = torch.autograd.grad(retrieved.square().sum(), weights)
    for found, gradient in zip(torch.autograd.grad(y.square().sum(), weights), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-8 * gradient.abs().max().item())
    assert all(gradient.abs().max() > 1e-6 for gradient in expected), "the memory learns from every one of them"
