"""Launches and bytes are counted without running anything, interpreted kernels and compiled ones alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mcgen.tune import offline
from mcgen.tune.traffic import Launch, count, total_bytes

KERNELS = Path(__file__).with_name("kernels.py")


@pytest.fixture(params=["interpreted", "compiled"])
def double(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TRITON_INTERPRET", "1" if request.param == "interpreted" else "0")
    offline._load.cache_clear()
    yield offline._load(KERNELS).double
    offline._load.cache_clear()


def test_launches_and_bytes(double: Any) -> None:
    x, y = torch.ones(1000, dtype=torch.bfloat16), torch.zeros(1000)

    def call() -> None:
        double[(1,)](x, y, 1000, B=1024)
        double[(1,)](x, y=x, n=1000, B=1024)
        double[(1,)](x[:10], y, 10, B=16)

    launches = count(call)
    assert launches == [Launch("double", 6000), Launch("double", 2000), Launch("double", 4020)]
    assert total_bytes(launches) == 12020
    assert not y.any()


def test_a_backward_pass_is_counted(double: Any) -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            y = torch.empty_like(x)
            double[(1,)](x, y, x.numel(), B=16)
            return y

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
            return Double.apply(dy)

    x = torch.ones(16, requires_grad=True)
    assert count(lambda: Double.apply(x).sum().backward()) == [Launch("double", 128)] * 2


def test_launches_run_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    offline._load.cache_clear()
    double = offline._load(KERNELS).double
    x, y = torch.ones(10), torch.zeros(10)
    assert count(lambda: double[(1,)](x, y, 10, B=16), run=True) == [Launch("double", 80)]
    assert torch.equal(y, 2 * x)
    offline._load.cache_clear()


def test_interception_ends_with_the_call() -> None:
    from triton import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    kinds = (JITFunction, InterpretedFunction)
    before = [kind.run for kind in kinds]
    with pytest.raises(ZeroDivisionError):
        count(lambda: 1 / 0)
    assert [kind.run for kind in kinds] == before
