"""Packed sequences: `cu_seqlens` gives what every sequence gives by itself, values and gradients, everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mcgen.emit.say.mathematics import weight_shapes
from mcgen.pipeline import source
from mcgen.spec import load, loads
from mcgen.spec.shipped import shipped
from tests.emit.layers import SPECS, built
from tests.test_lengths import generated

LENGTHS = [3, 0, 70, 1, 300, 0]
BORDERS = list(accumulate(LENGTHS, initial=0))


def inputs(module: ModuleType, name: str, length: int) -> dict[str, Any]:
    """Random arguments of a shipped module's op, in float64, that all need gradients."""
    spec, draw = load(shipped()[name]), torch.Generator().manual_seed(0)
    wide = {**dict.fromkeys("qku", spec.head.key_dim), "v": spec.head.value_dim}
    new = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    found = {n: torch.nn.functional.normalize(new(1, length, 2, wide[n]), dim=-1) for n in module.INPUTS if n in wide}
    found |= {n: new(1, length, 2).sigmoid() * 0.1 for n in module.INPUTS if n not in wide}
    deep = spec.memory.kind == "mlp"
    weights = [new(2, *shape) * 0.1 for shape in weight_shapes(spec)] if deep else []
    for tensor in [*found.values(), *weights]:
        tensor.requires_grad_()
    return found | ({"theta": weights} if weights else {})


def leaves(given: dict[str, Any]) -> list[torch.Tensor]:
    return [leaf for value in given.values() for leaf in (value if isinstance(value, list) else [value])]


def alone(function: Any, given: dict[str, Any]) -> torch.Tensor:
    """What a function gives for every sequence by itself."""
    parts = [
        function(**{n: t if n == "theta" else t[:, begin:end] for n, t in given.items()})
        for begin, end in pairwise(BORDERS)
        if begin < end
    ]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", shipped())
def test_the_operator_gives_what_sequences_give_alone(name: str) -> None:
    module = generated(name)
    given = inputs(module, name, BORDERS[-1])
    y, expected = module.op(**given, cu_seqlens=torch.tensor(BORDERS)), alone(module.op, given)
    assert torch.equal(y, expected)
    weights = torch.randn(y.shape, dtype=y.dtype)
    found, wanted = (torch.autograd.grad((z * weights).sum(), leaves(given)) for z in (y, expected))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["linear_grm", "decay_grm_log", "titans_grm"])
def test_the_definition_takes_them_too(name: str) -> None:
    module = generated(name)
    given = inputs(module, name, BORDERS[-1])
    with torch.no_grad():
        y = module.reference(**given, cu_seqlens=BORDERS)
        assert torch.equal(y, alone(module.reference, given))
        assert torch.allclose(y, module.op(**given, cu_seqlens=BORDERS), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("spec", ["linear", "mamba", "many", "titans"])
def test_a_layer_begins_anew_with_every_sequence(spec: str) -> None:
    layer = built(**SPECS[spec]).Layer()
    x = torch.randn(1, BORDERS[-1], 10)
    parts = [layer(x[:, begin:end]) for begin, end in pairwise(BORDERS) if begin < end]
    packed = layer(x, cu_seqlens=torch.tensor(BORDERS, dtype=torch.int32))
    assert torch.allclose(packed, torch.cat(parts, 1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(packed, layer(x), rtol=1e-2, atol=1e-3)


def test_numbers_at_hand_are_taken_from_there() -> None:
    """A tensor on a GPU would be waited for; and nothing is remembered of a tensor whose numbers change."""
    module = generated("linear_grm")
    given = inputs(module, "linear_grm", 9)
    borders = torch.tensor([0, 4, 9])
    first = module.op(**given, cu_seqlens=borders)
    assert torch.equal(first, module.op(**given, cu_seqlens=borders.to("meta"), cu_seqlens_cpu=[0, 4, 9]))
    assert torch.equal(first, module.op(**given, cu_seqlens_cpu=borders))
    borders[1] = 7
    assert torch.equal(module.op(**given, cu_seqlens=borders), module.op(**given, cu_seqlens=[0, 7, 9]))
    assert not torch.equal(module.op(**given, cu_seqlens=borders), first)


@pytest.mark.parametrize("borders", [[0], [0, 0, 0]])
def test_nothing_may_be_packed(borders: list[int]) -> None:
    module = generated("titans_grm")
    given = inputs(module, "titans_grm", 0)
    assert module.op(**given, cu_seqlens=borders).shape == (1, 0, 2, 64)


@pytest.mark.parametrize(
    ("borders", "error", "message"),
    [
        ([0, 4], ValueError, r"must go from 0 to T = 9 and never fall, got \[0, 4\]"),
        ([1, 9], ValueError, "must go from 0 to T = 9"),
        ([0, 7, 4, 9], ValueError, "never fall"),
        ([], ValueError, "must go from 0"),
        ([0, 4.0, 9], TypeError, "whole numbers"),
        (torch.tensor([0.0, 9.0]), TypeError, r"int32 or int64 and have one axis, got torch.float32 \(2,\)"),
        (torch.tensor([[0, 9]]), TypeError, r"got torch.int64 \(1, 2\)"),
    ],
)
def test_wrong_borders_are_named(borders: Any, error: type[Exception], message: str) -> None:
    module = generated("linear_grm")
    given = inputs(module, "linear_grm", 9)
    for call in (module.op, module.reference):
        with pytest.raises(error, match=message):
            call(**given, cu_seqlens=borders)


def test_packed_sequences_lie_in_a_batch_of_one() -> None:
    module = generated("linear_grm")
    given = {name: t.expand(3, *t.shape[1:]) for name, t in inputs(module, "linear_grm", 9).items()}
    with pytest.raises(ValueError, match="one behind another in a batch of 1, got a batch of 3"):
        module.op(**given, cu_seqlens=[0, 9])


KERNELS = """\
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("m", sys.argv[1])
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
x = [torch.randn(1, 60, 2, 4, requires_grad=True) for _ in m.INPUTS]
y = m.op(*x, cu_seqlens=[0, 7, 60], backend="triton")
z = torch.cat([m.op(*(t[:, :7] for t in x), backend="triton"), m.op(*(t[:, 7:] for t in x), backend="triton")], 1)
assert torch.equal(y, z)
assert not torch.equal(y, m.op(*x, backend="triton"))
for a, b in zip(torch.autograd.grad(y.sum(), x), torch.autograd.grad(z.sum(), x)):
    torch.testing.assert_close(a, b)
"""


def test_kernels_take_them(tmp_path: Path) -> None:
    small = load(shipped()["linear_grm"]).to_dict() | {"head": {"key_dim": 4, "value_dim": 4}}
    small["segment"]["size"] = 16
    path = tmp_path / "small.py"
    path.write_text(source(loads(json.dumps(small))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KERNELS, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
