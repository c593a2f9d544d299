"""What is asked of a generated file at the edges of what it takes; every question is put to both backends.

python -m tests.odd QUESTION    # puts it to interpreted kernels of every family: Triton decides that when imported
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.emit.fragments import difference, gradients, inputs, leaves
from tests.emit.layers import built, whole_spec

ROOT = Path(__file__).parents[1]
HEAD = {"head": {"key_dim": 4, "value_dim": 4}, "layer": {"d_model": 6, "heads": 4}}
MLP = {"kind": "mlp", "expansion": 2}
SPECS: Mapping[str, dict[str, Any]] = {
    "linear": {"update": {"rule": "linear"}},
    "lagged, of chosen segments": {"update": {"rule": "swla"}, "aggregate": {"kind": "ssc", "top_k": 1}},
    "reads itself, goes on": {
        "update": {"rule": "gated_delta"},
        "aggregate": {"kind": "residual"},
        "segment": {"size": 5, "init": "checkpoint"},
    },
    "logarithmic": {"update": {"rule": "decay"}, "segment": {"mode": "logarithmic"}},
    "deep": {"update": {"rule": "titans", "gradient": {"chunk": 4}}, "memory": MLP},
    "deep, by layers": {
        "update": {"rule": "dla", "gradient": {"chunk": 64}},
        "memory": MLP,
        "segment": {"size": 64},
    },
}
"""One of every family of kernels, and of what may go wrong at borders."""

Question = Callable[[str, str], None]
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
EXACT = {"torch": (F64, 1e-10), "triton": (F32, 1e-5)}
"""The type that a backend is asked in, and how far off the answer may be."""


@functools.cache
def module(name: str) -> SimpleNamespace:
    return built(**HEAD, **SPECS[name])


SIZES = {"torch": {"T": 11, "B": 2}, "triton": {"T": 6, "B": 1}}
"""Of what a backend is asked with; interpreted kernels are slow."""


def arguments(name: str, T: int, dtype: torch.dtype = F64, B: int = 2, H: int = 4) -> dict[str, Any]:
    """Arguments of `op` that need gradients."""
    return inputs(whole_spec(**HEAD, **SPECS[name]), T, B=B, H=H, dtype=dtype)


def changed(given: Mapping[str, Any], change: Callable[[str, torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """The arguments after a change to each tensor, by its name."""
    return {
        n: [change(n, W) for W in x] if isinstance(x, list) else x if x is None else change(n, x)
        for n, x in given.items()
    }


def fresh(given: Mapping[str, Any]) -> dict[str, Any]:
    """Contiguous copies, which need gradients."""
    return changed(given, lambda _, x: x.detach().clone(memory_format=torch.contiguous_format).requires_grad_())


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert (x.shape, x.dtype) == (expected[name].shape, expected[name].dtype), name
        far = difference(x, expected[name]) if x.numel() else 0.0
        assert far <= tolerance, f"{name} is off by {far:.1e}"


def answer(function: Callable[..., torch.Tensor], given: Mapping[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    """y, and the gradients of a random weighting of it, by name."""
    y = function(**given, **options)
    return {"y": y, **gradients(y, dict(given))}


# -- no tokens, no sequences -------------------------------------------------------------------------------------------


def nothing_gives_nothing(name: str, backend: str) -> None:
    for B, T in ((2, 0), (0, 5), (0, 0)):
        for options in ({}, *([{"cu_seqlens": [0, 0, 0]}] if B == 1 else [])):
            _of_nothing(functools.partial(module(name).op, backend=backend, **options), name, B, T)
    _of_nothing(functools.partial(module(name).op, backend=backend, cu_seqlens=[0, 0, 0]), name, 1, 0)


def _of_nothing(function: Callable[..., torch.Tensor], name: str, B: int, T: int, H: int = 4) -> None:
    for dtype in (F32, BF16):
        given = arguments(name, T, dtype, B)
        y = function(**given)
        assert (y.shape, y.dtype) == ((B, T, H, 4), dtype)
        y.sum().backward()
        routed = module(name).SPEC["aggregate"]["kind"] not in ("none", "residual", "mean")
        for leaf, x in leaves(given).items():
            if leaf == "u" and not routed:
                assert x.grad is None
                continue
            assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype), leaf
            assert not x.grad.any(), leaf


# -- strides -----------------------------------------------------------------------------------------------------------


def _head_first(_: str, x: torch.Tensor) -> torch.Tensor:
    """The same numbers, laid out with tokens and heads (or a weight's axes) changed about."""
    return x.detach().transpose(1, 2).contiguous().transpose(1, 2)


def _spread(_: str, x: torch.Tensor) -> torch.Tensor:
    """The same numbers with others between them, and not at the start of their storage."""
    room = torch.full((2, *x.shape, 3), torch.nan, dtype=x.dtype)
    room[1, ..., 1] = x.detach()
    return room[1, ..., 1]


def _backwards(_: str, x: torch.Tensor) -> torch.Tensor:
    """One token, or row of a weight, for all of them (a stride of 0), in a tensor laid out the other way about."""
    return x.detach()[:, :1].mT.contiguous().mT.expand(x.shape) if x.dim() > 2 else x


def _one_for_all(_: str, x: torch.Tensor) -> torch.Tensor:
    """One number for all of them: every stride is 0."""
    return x.detach().flatten()[3].expand(x.shape)


LAYS = {"torch": (_head_first, _spread, _backwards, _one_for_all), "triton": (_spread, _one_for_all)}
"""Fewer for interpreted kernels, which are slow: all are made contiguous at one place."""


def strides_do_not_matter(name: str, backend: str) -> None:
    op, (dtype, tolerance) = functools.partial(module(name).op, backend=backend), EXACT[backend]
    given = arguments(name, dtype=dtype, **SIZES[backend])
    for lay in LAYS[backend]:
        laid = changed(given, lay)
        views = changed(laid, lambda _, x: x.requires_grad_())
        assert not any(x.is_contiguous() for n, x in leaves(views).items() if x.dim() == 4), lay
        assert_same(answer(op, views), answer(op, fresh(laid)), tolerance)


def strides_of_what_comes_back_do_not_matter(name: str, backend: str) -> None:
    dtype, tolerance = EXACT[backend]
    given = arguments(name, dtype=dtype, **SIZES[backend])
    y, flat = module(name).op(**given, backend=backend), list(leaves(given).values())
    pull = functools.partial(torch.autograd.grad, y, flat, retain_graph=True, allow_unused=True, materialize_grads=True)
    d_y = torch.randn(y.shape, dtype=dtype)
    for lay in LAYS[backend]:
        laid = lay("", d_y)
        assert not laid.is_contiguous()
        found, expected = (dict(zip(leaves(given), pull(d), strict=True)) for d in (laid, laid.contiguous()))
        assert_same(found, expected, tolerance)


# -- heads of keys and values ------------------------------------------------------------------------------------------


def heads_may_share_keys(name: str, backend: str) -> None:
    """Fewer heads of k and v give what each of them repeated gives; what comes back is summed over those it served."""
    m, (dtype, tolerance) = module(name), EXACT[backend]
    for k_heads, v_heads in ((2, 2), (1, 1), (1, 4), (4, 2)) if backend == "torch" else ((2, 1),):
        given = arguments(name, dtype=dtype, **SIZES[backend])
        few = fresh(given | {"k": given["k"][:, :, :k_heads], "v": given["v"][:, :, :v_heads]})
        many = fresh(few | {n: few[n].repeat_interleave(4 // few[n].shape[2], 2) for n in "kv"})
        expected = answer(m.op, many, backend=backend)
        for n, heads in (("k", k_heads), ("v", v_heads)):
            expected[n] = expected[n].unflatten(2, (heads, -1)).sum(3)
        assert_same(answer(m.op, few, backend=backend), expected, tolerance)
        if backend == "torch":
            assert_same(answer(m.reference, few), expected, tolerance)


# -- types -------------------------------------------------------------------------------------------------------------

TYPES = {"torch": (BF16, F16, F32, F64), "triton": (BF16, F16, F32)}
ROUNDINGS = 3
"""How many times the type's own precision an answer may be off, at these sizes; more where that is small."""


def every_type_is_taken(name: str, backend: str) -> None:
    """Inputs of a type with gates of the same or float32, and initial weights either way: y has v's type, gradients
    have their inputs', and both are within rounding of the definition in float64 for the same numbers."""
    m = module(name)
    for dtype in TYPES[backend]:
        for of_gates in {dtype: None, torch.promote_types(dtype, F32): None}:
            given = arguments(name, **SIZES[backend])
            typed = fresh(changed(given, lambda n, x: x.to(dtype if n in "qkvu" else of_gates)))  # noqa: B023
            found = answer(m.op, typed, backend=backend)
            assert found["y"].dtype == dtype
            assert all(found[n].dtype == x.dtype for n, x in leaves(typed).items())
            exact = answer(m.reference, fresh(changed(typed, lambda _, x: x.double())))
            bound = ROUNDINGS * torch.finfo(dtype).eps * (1 if dtype in (F16, BF16) else 100)
            of_u = {"u": found.pop("u")} if "u" in found else {}  # what logits are owed: differences of like numbers
            assert_same({n: x.double() for n, x in found.items()}, {n: exact[n] for n in found}, bound)
            assert_same({n: x.double() for n, x in of_u.items()}, {n: exact[n] for n in of_u}, 10 * bound)


def types_may_be_mixed(name: str, backend: str) -> None:
    """Each tensor of its own type: as if all were of the widest, but y is of v's and each gradient of its own's."""
    m, mixed = module(name), {"q": BF16, "k": F32, "v": F16, "u": F32}
    given = fresh(changed(arguments(name, **SIZES[backend]), lambda n, x: x.to(mixed.get(n, F32))))
    found = answer(m.op, given, backend=backend)
    exact = answer(m.reference, fresh(changed(given, lambda _, x: x.double())))
    assert found["y"].dtype == F16
    assert all(found[n].dtype == x.dtype for n, x in leaves(given).items())
    assert_same({n: x.double() for n, x in found.items()}, exact, 3 * torch.finfo(BF16).eps)


# -- packed sequences --------------------------------------------------------------------------------------------------

LENGTHS = (1, 0, 6, 0, 1)


def packed_sequences_are_apart(name: str, backend: str, lengths: Sequence[int] = LENGTHS) -> None:
    """Of length 0 and 1 too; borders of either type; k of fewer heads."""
    m, (dtype, tolerance) = module(name), EXACT[backend]
    given = arguments(name, sum(lengths), dtype, B=1)
    given = fresh(given | {"k": given["k"][:, :, :2]})
    apart = functools.partial(_apart, functools.partial(m.op, backend=backend), lengths)
    borders, expected = list(accumulate(lengths, initial=0)), answer(apart, given)
    kinds = (torch.tensor(borders, dtype=torch.int32), borders, torch.tensor(borders))
    for cu_seqlens in kinds if backend == "torch" else kinds[:1]:
        found = answer(functools.partial(m.op, backend=backend), given, cu_seqlens=cu_seqlens)
        assert_same(found, expected, tolerance)
    if backend == "torch":
        assert_same(answer(m.reference, given, cu_seqlens=borders), answer(apart, given), 1e-8)


def _apart(function: Callable[..., torch.Tensor], lengths: Sequence[int], **given: Any) -> torch.Tensor:
    """What a function gives for every sequence by itself, also for those that have no tokens."""
    borders = pairwise(accumulate(lengths, initial=0))
    cuts = ({n: x if n == "theta" else x[:, begin:end] for n, x in given.items()} for begin, end in borders)
    return torch.cat([function(**cut) for cut in cuts], 1)


def nothing_is_remembered_of_borders(name: str, backend: str) -> None:
    """A tensor that is given again with other numbers in it is read again, forward and backward."""
    m, (dtype, tolerance) = module(name), EXACT[backend]
    borders, given = torch.tensor([0, 4, 9], dtype=torch.int32), arguments(name, 9, dtype, B=1)
    op = functools.partial(m.op, backend=backend)
    first = answer(op, given, cu_seqlens=borders)
    y = op(**given, cu_seqlens=borders)
    borders[1] = 7
    assert_same({"y": y, **gradients(y, given)}, first, tolerance)
    second = answer(op, given, cu_seqlens=borders)
    assert_same(second, answer(op, given, cu_seqlens=[0, 7, 9]), tolerance)
    assert difference(second["y"], first["y"]) > 1e-3


# -- padding -----------------------------------------------------------------------------------------------------------

PADDINGS = ((3, 4, 0), (0, 0, 7), (0, 6, 1), (0, 7, 0), (6, 1, 0))
"""Of each row: tokens of padding, of the sequence, and of padding again."""


def padded_rows_are_apart(name: str, backend: str) -> None:
    """A layer's, its short convolutions' too. Whatever lies at padding, NaN here, is in no result and no gradient."""
    paddings = PADDINGS if backend == "torch" else PADDINGS[:2]
    torch.manual_seed(0)
    layer = module(name).Layer(num_kv_heads=2, dtype=EXACT[backend][0])
    tolerance = 10 * EXACT[backend][1]
    real = torch.tensor([[0] * a + [1] * n + [0] * b for a, n, b in paddings]).bool()
    clean = torch.randn(*real.shape, 6, dtype=EXACT[backend][0]).masked_fill(~real[..., None], 0)
    weights = torch.randn(clean.shape, dtype=clean.dtype)
    alone = functools.partial(_rows_apart, layer, paddings, backend)
    y, expected = _pulled(layer, clean, alone, weights)
    for mask in (real, real.long(), real.int()) if backend == "torch" else (real,):
        x = clean.masked_fill(~real[..., None], torch.nan)
        padded, found = _pulled(layer, x, functools.partial(layer, attention_mask=mask, backend=backend), weights)
        assert not padded[~real].any()
        assert not found["x"][~real].any()
        assert_same({"y": padded, **found}, {"y": y, **expected}, tolerance)


def _rows_apart(
    layer: torch.nn.Module, paddings: Sequence[tuple[int, int, int]], backend: str, x: torch.Tensor
) -> torch.Tensor:
    rows = [
        torch.nn.functional.pad(layer(row[None, a : a + n], backend=backend), (0, 0, a, b))
        for row, (a, n, b) in zip(x, paddings, strict=True)
    ]
    return torch.cat(rows)


def _pulled(
    layer: torch.nn.Module, x: torch.Tensor, function: Callable[..., torch.Tensor], weights: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a function of x gives, and the gradients of x and of a layer's parameters."""
    named = {"x": x.clone().requires_grad_(), **dict(layer.named_parameters())}
    y = function(named["x"])
    found = torch.autograd.grad((y * weights).sum(), list(named.values()))
    return y.detach(), dict(zip(named, found, strict=True))


QUESTIONS: Mapping[str, Question] = {
    function.__name__: function
    for function in (
        nothing_gives_nothing,
        strides_do_not_matter,
        strides_of_what_comes_back_do_not_matter,
        heads_may_share_keys,
        every_type_is_taken,
        types_may_be_mixed,
        packed_sequences_are_apart,
        nothing_is_remembered_of_borders,
        padded_rows_are_apart,
    )
}


FAMILIES = dict.fromkeys(
    ("strides_of_what_comes_back_do_not_matter", "types_may_be_mixed", "padded_rows_are_apart"), ("linear", "deep")
)
FAMILIES |= dict.fromkeys(
    ("strides_do_not_matter", "every_type_is_taken", "heads_may_share_keys", "nothing_is_remembered_of_borders"),
    ("linear", "reads itself, goes on", "deep"),
)
"""Those that interpreted kernels of are asked what host code does alike for all."""


def interpreted(question: str) -> str:
    """What interpreted kernels get wrong, empty where that is nothing."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.odd", question]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr[-3000:] if done.returncode else ""


def _misses(question: str) -> Iterator[str]:
    for name in FAMILIES.get(question, SPECS):
        try:
            QUESTIONS[question](name, "triton")
        except AssertionError as error:
            yield f"{name}: {error}"


def main(question: str) -> int:
    misses = list(_misses(question))
    print("\n".join(misses))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
