"""Odd shapes, strides, types, heads, packings and paddings: what `tests.odd` asks, on both backends."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.emit.layers import SPECS as LAYERS
from tests.emit.layers import built
from tests.odd import QUESTIONS, SPECS, interpreted

GENERATED = sorted(path for path in (Path(__file__).parents[1] / "generated").glob("*.py") if path.stem != "__init__")
WIDE = {"i_row", "i_cached", "i_state", "i_part", "i_at"}
"""What kernels call numbers of rows and states, of which there may be more than 2**31."""


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", SPECS)
def test_in_torch(name: str, question: str) -> None:
    QUESTIONS[question](name, "torch")


@pytest.mark.parametrize("question", QUESTIONS)
def test_in_interpreted_kernels(question: str) -> None:
    assert interpreted(question) == ""


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda mask: mask.float(), TypeError, "attention_mask must be a tensor of booleans"),
        (lambda mask: mask[:, :3], ValueError, r"attention_mask must have shape \(2, 5\)"),
        (lambda mask: mask * 2, ValueError, "attention_mask must be 0 and 1 alone, got 2"),
        (
            lambda mask: mask * torch.tensor([1, 0, 1, 1, 1]),
            ValueError,
            r"in row 0 another begins at token 2.*cu_seqlens",
        ),
    ],
)
def test_a_mask_that_cannot_be_is_refused(change: object, error: type, message: str) -> None:
    layer, mask = built(**LAYERS["linear"]).Layer(), torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(error, match=message):
        layer(torch.zeros(2, 5, 10), attention_mask=change(mask))
    with pytest.raises(TypeError, match="give one of them"):
        layer(torch.zeros(2, 5, 10), attention_mask=mask, cu_seqlens=[0, 5])


@pytest.mark.parametrize("spec", ["linear", "titans"])
def test_padded_rows_have_states_of_their_own(spec: str) -> None:
    module = built(**LAYERS[spec])
    layer, x = module.Layer(dtype=torch.float64), torch.randn(2, 6, 10, dtype=torch.float64)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    y, states = layer(x, attention_mask=mask, return_state=True)
    assert [state.position for state in states] == [4, 6]
    token = torch.randn(2, 1, 10, dtype=torch.float64)
    step, states = layer(token, attention_mask=torch.ones(2, 1, dtype=torch.int64), state=states, return_state=True)
    for row, first in enumerate((2, 0)):
        whole = layer(torch.cat([x[row : row + 1, first:], token[row : row + 1]], 1))
        assert torch.allclose(y[row, first:], whole[0, :-1]) and torch.allclose(step[row], whole[0, -1:])


def offsets(path: Path) -> Iterator[tuple[str, ast.Assign]]:
    """The assignments of kernels to numbers of rows and states, by kernel."""
    for function in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(function, ast.FunctionDef) and function.name.endswith("_kernel"):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Assign)
                    and isinstance(node.targets[0], ast.Name)
                    and node.targets[0].id in WIDE
                ):
                    yield function.name, node


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.stem)
def test_addresses_have_64_bits(path: Path) -> None:
    """Numbers of rows and states are reckoned in 64 bits, and they alone are multiplied by lengths of rows."""
    found = list(offsets(path))
    assert found
    assert [
        f"{kernel}: {ast.unparse(node)}" for kernel, node in found if "tl.int64" not in ast.unparse(node.value)
    ] == []


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.stem)
def test_axes_that_grow_are_the_first_of_a_grid(path: Path) -> None:
    """Others may have 65,535 programs: they are tiles of a head's sizes."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    launches = [call for call in calls if ast.unparse(call.func) == "_launch"]
    assert launches
    tiles = {ast.unparse(call.args[3]) for call in launches if len(call.args) > 3}
    few = ("_n_tiles(", "x.n_parts", "x.n_runs")  # of a head's sizes, and of the few runs that rows are cut into
    assert {one for one in tiles if not one.startswith(few)} == set()
