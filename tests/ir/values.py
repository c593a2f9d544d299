"""Values for the inputs of tile programs, one head's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mcgen.ir.program import Program

Tensors = dict[str, torch.Tensor]
KEY, VALUE, TOKENS, CACHED = 3, 2, 6, 4
"""Lengths of axes, those of `tests.symbolic.rules.small` among them."""


def sizes(tokens: int = TOKENS) -> dict[str, int]:
    """The length of every axis, for a chunk of some tokens."""
    return {**dict.fromkeys(("t", "s", "m", "j"), tokens), "n": CACHED, "k": KEY, "v": VALUE}


def draw(program: Program, lengths: Mapping[str, int], seed: int) -> Tensors:
    """Values of a program's inputs: gates between 0 and 1, both exact; what is no tensor as it has to be."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name, node in program.inputs.items():
        shape = [lengths[axis] for axis in node.axes]
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if node.axes == ("t",) and not name.startswith("d_") and name != "r":
            x = torch.rand(shape, generator=generator, dtype=torch.float64)
            x[1:2], x[2:3] = 0.0, 1.0
        inputs[name] = x
    fixed = {"count": torch.arange(1.0, lengths["t"] + 1), "head": torch.tensor(2.0), "fresh": torch.tensor(1.0)}
    fixed["valid"] = (torch.arange(lengths["t"]) < lengths["t"] - 1).double()
    return inputs | {name: value.double() for name, value in fixed.items() if name in inputs}
