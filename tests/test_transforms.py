"""What torch does with an operator: one graph for every length, torch.func, empty inputs, devices, FLOPs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.symbolic import cost as costs
from mcgen.symbolic.meaning import meaning
from mcgen.tune.verification import imported
from tests.emit.fragments import difference, inputs, leaves

ROOT = Path(__file__).parents[1]
VARIED = (
    "linear_grm",
    "swla_ssc",
    "decay_grm_log",
    "gated_delta_none",
    "linear_residual",
    "titans_chunk_grm",
    "dla_soup",
)
"""Specs whose saved tensors differ: every aggregate, both inits, segments of one length and of many, all schedules."""


@pytest.fixture
def generated() -> Iterator[Callable[[str], ModuleType]]:
    """Shipped modules by name; graphs of other tests are forgotten."""
    torch._dynamo.reset()
    yield lambda name: imported(ROOT / "generated" / f"{name}.py")
    torch._dynamo.reset()


def arguments_of(name: str, T: int, **how: Any) -> dict[str, Any]:
    spec = load(shipped()[name])
    found = inputs(spec, T, dtype=torch.float32, **how)
    return found if spec.routes_by_u else {one: x for one, x in found.items() if one != "u"}


def flat(arguments: dict[str, Any]) -> list[torch.Tensor]:
    return list(leaves(arguments).values())


@pytest.mark.parametrize("name", VARIED)
def test_one_graph_serves_every_length(name: str, generated: Callable[[str], ModuleType]) -> None:
    """Forward and backward, with every size but the head's symbolic: 2 to 5,000 tokens are one graph each way."""
    module, counter = generated(name), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: module.op(**x).square().mean(), backend=counter, dynamic=True, fullgraph=True)
    for T in (7, 2, 3, 65, 257, 513, 5000):
        arguments = arguments_of(name, T, B=1, H=3)
        expected, loss = module.op(**arguments).square().mean(), compiled(arguments)
        torch.testing.assert_close(loss, expected)
        wanted = torch.autograd.grad(expected, flat(arguments))
        for found, right in zip(torch.autograd.grad(loss, flat(arguments)), wanted, strict=True):
            torch.testing.assert_close(found, right)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", VARIED)
def test_exports_with_a_length_that_is_a_symbol(name: str, generated: Callable[[str], ModuleType]) -> None:
    layer = generated(name).Layer(32, 3).eval()
    length = torch.export.Dim("length", min=2, max=5000)
    exported = torch.export.export(layer, (torch.randn(2, 40, 32),), dynamic_shapes=({1: length},))
    for T in (2, 40, 300, 700):
        x = torch.randn(2, T, 32)
        torch.testing.assert_close(exported.module()(x), layer(x))


@pytest.mark.parametrize("name", shipped())
def test_fake_operators_promise_what_real_ones_give(name: str, generated: Callable[[str], ModuleType]) -> None:
    """Also those of Triton, whose forward pass takes what it saves from the same formula."""
    module = generated(name)
    for T in (1, 2, 65, 200):
        tensors = [x.detach() for x in module_inputs(module, arguments_of(name, T, B=1, H=2))]
        run, run_backward, first = module.OPERATORS["torch"]
        real = run(tensors, [])
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(x) for x in tensors]
            for backend, (operator, *_) in module.OPERATORS.items():
                fake = operator(fakes, [])
                assert fake[0].shape == real[0].shape
                if backend == "torch":
                    assert [x.shape for x in fake] == [x.shape for x in real]
        d = run_backward(tensors, real[first:], torch.ones_like(real[0]), [], [])
        assert [x.shape for x in d] == [x.shape for x in tensors]


def module_inputs(module: ModuleType, arguments: dict[str, Any]) -> list[torch.Tensor]:
    return [*(arguments[name] for name in module.INPUTS), *arguments.get("theta", [])]


@pytest.mark.parametrize("name", ["mamba2_grm", "titans_soup"])
def test_gradients_of_samples_one_by_one(name: str, generated: Callable[[str], ModuleType]) -> None:
    """vmap(grad(...)), as for gradients of every sample; and vmap alone, over any axis."""
    module = generated(name)
    samples = [{n: _detached(x) for n, x in arguments_of(name, 20, B=1, H=2, seed=s).items()} for s in range(3)]
    names = [n for n in samples[0] if n != "theta"]
    shared = {"theta": samples[0]["theta"]} if "theta" in samples[0] else {}

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, tensors[: len(names)], strict=True))
        return module.op(**given, **({"theta": list(tensors[len(names) :])} if shared else {})).square().sum()

    stacked = [torch.stack([sample[n] for sample in samples], 1) for n in names]
    weights = shared.get("theta", [])
    places = tuple(range(len(names) + len(weights)))
    one_by_one = torch.vmap(torch.func.grad(loss, places), in_dims=(*[1] * len(names), *[None] * len(weights)))
    found = one_by_one(*stacked, *weights)
    for s, sample in enumerate(samples):
        given = [x.clone().requires_grad_() for x in chain((sample[n] for n in names), weights)]
        for d, right in zip(found, torch.autograd.grad(loss(*given), given), strict=True):
            assert difference(d[s], right) < 1e-5
    mapped = torch.vmap(loss, in_dims=(*[1] * len(names), *[None] * len(weights)))(*stacked, *weights)
    torch.testing.assert_close(mapped[1], loss(*(samples[1][n] for n in names), *weights))


def _detached(x: Any) -> Any:
    return [W.detach() for W in x] if isinstance(x, list) else x.detach()


def test_other_transforms(generated: Callable[[str], ModuleType]) -> None:
    module = generated("linear_grm")
    x = {name: _detached(t) for name, t in arguments_of("linear_grm", 9, B=1, H=1).items()}
    others = {name: t for name, t in x.items() if name != "v"}
    jacobian = torch.func.jacrev(lambda v: module.op(v=v, **others))(x["v"])
    torch.testing.assert_close(torch.einsum("abcdefgh,efgh->abcd", jacobian, x["v"]), module.op(**x))
    for twice in (torch.func.hessian, lambda f: torch.func.grad(lambda v: torch.func.grad(f)(v).sum())):
        with pytest.raises(module.UnsupportedError, match="reference"):
            twice(lambda v: module.op(v=v, **others).square().sum())(x["v"])


@pytest.mark.parametrize("shape", [(1, 0, 2), (0, 5, 2), (0, 0, 2)], ids=str)
@pytest.mark.parametrize("name", VARIED)
def test_empty_inputs_have_gradients_of_zeros(
    name: str, shape: tuple[int, int, int], generated: Callable[[str], ModuleType]
) -> None:
    module, (B, T, H) = generated(name), shape
    arguments = arguments_of(name, T, B=B, H=H)
    y = module.op(**arguments)
    assert y.shape == (B, T, H, 64) and y.requires_grad
    y.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in flat(arguments))


@pytest.mark.parametrize("name", VARIED)
def test_the_flop_counter_counts_what_the_plan_reckons_with(name: str, generated: Callable[[str], ModuleType]) -> None:
    module, found = generated(name), meaning(load(shipped()[name]))
    arguments = arguments_of(name, 300, B=2, H=3)
    size = costs.sizes(found, {**costs.SAMPLE, costs.B: 2, costs.H: 3, costs.T: 300})
    if name == "decay_grm_log":
        size[costs.N] = bin(300).count("1")
    size[costs.TOP_K] = min(found.spec.aggregate.top_k or 0, size[costs.N] - 1)
    forward, backward = (int(total.subs(size)) for total in costs.Cost(found).total("flops"))
    with FlopCounterMode(display=False) as counter:
        y = module.op(**arguments)
        assert counter.get_total_flops() == forward
        y.sum().backward()
    assert counter.get_total_flops() == forward + backward


def test_launches_go_to_the_tensors_device(
    generated: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of many GPUs the current one need not be theirs; stand-ins take the part of both."""
    module, entered = generated("linear_grm"), []

    class OnSecond:
        is_cuda, device = True, torch.device("cuda:1")

    @contextlib.contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        entered.append(chosen)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    with module._on_device(OnSecond()):
        assert entered == [torch.device("cuda:1")]
    seen = []
    monkeypatch.setattr(module, "_on_device", lambda x: seen.append(x.shape) or contextlib.nullcontext())
    arguments = arguments_of("linear_grm", 9, B=1, H=1)
    module.op(**arguments).sum().backward()
    assert seen == [(1, 9, 1, 64), (1, 9, 1, 64)]  # forward and backward


def test_tables_that_a_graph_was_captured_with_stay(
    generated: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, cuda, capturing = generated("linear_grm"), torch.device("cuda"), False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    table = module._by_length(lambda T, device: [T])
    first, second = table(5, cuda), table(6, cuda)
    capturing = True
    assert table(5, cuda) is first
    with pytest.raises(module.UnsupportedError, match="7 tokens met first in a CUDA graph"):
        table(7, cuda)
    capturing = False
    for T in range(100, 200):
        table(T, cuda)
    assert table(5, cuda) is first
    assert table(199, cuda) is table(199, cuda)
    assert table(6, cuda) is not second
