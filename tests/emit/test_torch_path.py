"""The torch path of generated modules: against the printed reference, in the types and shapes it is called with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.utils.checkpoint

from mcgen.emit.module.arguments import arguments_source
from mcgen.emit.module.operator import forgets, operator_source
from mcgen.emit.module.reference import reference_source
from mcgen.emit.module.state import state_source
from mcgen.emit.text.rendering import render
from mcgen.emit.torch.path import torch_source
from mcgen.symbolic.meaning import meaning
from tests.emit.fragments import difference, gradients, inputs, run, source, spec_of

LINEAR, DECAY, SWLA = ({"rule": name} for name in ("linear", "decay", "swla"))
CASCADE = {"steps": ["S = beta*S + outer(v, k[-1])", "M = alpha*M + lam*S + outer(v[-3], k)"]}
GRM, SSC = {"kind": "grm"}, {"kind": "ssc", "top_k": 2}
AGGREGATES = {
    "none": {"kind": "none"},
    "residual": {"kind": "residual"},
    "mean": {"kind": "mean"},
    "grm": GRM,
    "soup": {"kind": "soup", "connector": "q"},
    "ssc": SSC,
    "ssc_by_q": {"kind": "ssc", "top_k": 1, "connector": "q", "pool": "sum", "scale": 0.25},
}


def spec(update: dict[str, Any], **sections: Any) -> Any:
    head = {"head": {"key_dim": 6, "value_dim": 5}} if "head" not in sections else {}
    return spec_of(update, **head, **sections)


def torch_module(parsed: Any) -> str:
    """A module with the torch path alone: what the kernels take most of the time to print for."""
    found = meaning(parsed)
    operator = operator_source(found, found.inputs) + "\n\n\n" + state_source(found, found.recurrence.slots)
    sizes = render("sizes.py.jinja", segment_size=parsed.segment.size)
    finite = render("finite.py.jinja", deep=False, within_segment=forgets(found))
    sizes += "\n\n" + finite.partition("def _replace_triton")[0]
    sizes = sizes.replace("_by_rows(spoil_rows, y, late)", "raise AssertionError")
    constants = f"triton = None\nSPEC_HASH = {parsed.digest()!r}\nTOP_K = {parsed.aggregate.top_k}"
    constants += "\n_run_forward_triton = _run_backward_triton = _saved_triton = None"
    return source(constants, sizes, arguments_source(parsed), reference_source(parsed), torch_source(found), operator)


def module_of(parsed: Any) -> SimpleNamespace:
    return run(torch_module(parsed))


def segment(size: int | None, init: str = "independent") -> dict[str, Any]:
    return {"segment": {"size": size, "init": init} if size else {"mode": "logarithmic", "init": init}}


def call(module: Any, arguments: dict[str, Any], **others: Any) -> torch.Tensor:
    return module.op(**arguments, backend="torch", **others)


def against_reference(module: Any, parsed: Any, T: int, **others: Any) -> None:
    arguments = inputs(parsed, T, **others)
    y, expected = call(module, arguments), module.reference(**arguments)
    assert difference(y, expected) < 1e-10
    wanted = gradients(expected, arguments)
    for name, got in gradients(y, arguments).items():
        assert (got - wanted[name]).norm() <= 1e-9 * wanted[name].norm() + 1e-12, name


@pytest.mark.parametrize("mode", [16, None], ids=["constant", "logarithmic"])
@pytest.mark.parametrize("init", ["independent", "checkpoint"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_aggregate_matches_the_reference(aggregate: str, init: str, mode: int | None) -> None:
    parsed = spec(CASCADE, aggregate=AGGREGATES[aggregate], **segment(mode, init))
    against_reference(module_of(parsed), parsed, 100, B=1, H=2)


@pytest.mark.parametrize("T", [1, 2, 63, 100, 16, 17])
@pytest.mark.parametrize("aggregate", ["residual", "grm", "ssc"])
def test_every_length_matches_the_reference(aggregate: str, T: int) -> None:
    parsed = spec(SWLA, aggregate=AGGREGATES[aggregate], **segment(16))
    against_reference(module_of(parsed), parsed, T)


@pytest.mark.parametrize("init", ["independent", "checkpoint"])
@pytest.mark.parametrize("size", [12, 31, 90])
@pytest.mark.parametrize("aggregate", ["none", "mean", "grm", "ssc"])
def test_walks_in_small_panels_match_the_reference(aggregate: str, size: int, init: str) -> None:
    """Segments in several panels, of lengths no chunk divides, several in a panel, lags longer than a chunk."""
    parsed = spec(
        {"steps": ["S = beta*S + outer(v[-9], k)", "M = alpha*M + S"]},
        aggregate=AGGREGATES[aggregate],
        **segment(size, init),
    )
    module = module_of(parsed)
    module.op.__globals__.update(TOKENS=8, PANEL_ROWS=48, SCRATCH=1, TILE=4)
    against_reference(module, parsed, 100, B=1, H=2)


@pytest.mark.parametrize("dims", [(1, 1), (3, 1), (1, 3), (96, 96)], ids=str)
def test_every_head_size_matches_the_reference(dims: tuple[int, int]) -> None:
    parsed = spec(CASCADE, aggregate=SSC, head={"key_dim": dims[0], "value_dim": dims[1]}, **segment(16))
    against_reference(module_of(parsed), parsed, 70, B=1)


@pytest.fixture(scope="module")
def decay() -> tuple[Any, SimpleNamespace]:
    """A gated memory with a cache: its spec and its module."""
    parsed = spec(DECAY, aggregate=GRM, **segment(16))
    return parsed, module_of(parsed)


@pytest.mark.parametrize("gate", [0.0, 1.0, -0.7, 1e-30, -1e-30], ids=str)
@pytest.mark.parametrize("init", ["independent", "checkpoint"])
def test_gates_of_any_size_are_exact_in_float32(gate: float, init: str) -> None:
    """Half of a chunk's gates in a row, between ordinary ones: neither divisions by them nor logarithms."""
    parsed = spec(DECAY, aggregate=GRM, **segment(128, init))
    arguments = inputs(parsed, 128, B=1, H=2)
    with torch.no_grad():
        arguments["alpha"][:, 16:48] = gate
        arguments["alpha"][:, 90] = gate
    narrow = {name: x.detach().float().requires_grad_() for name, x in arguments.items()}
    module = module_of(parsed)
    y, expected = call(module, narrow), module.reference(**arguments)
    assert difference(y, expected) < 1e-5
    wanted = gradients(expected, arguments)
    for name, got in gradients(y, narrow).items():
        assert torch.isfinite(got).all(), name
        assert difference(got, wanted[name]) < 1e-5, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_that_of_the_inputs_and_the_outputs(dtype: torch.dtype, decay: tuple) -> None:
    """Gates in float32, the rest narrow: y has v's type, each gradient its input's, the arithmetic is float32."""
    parsed, module = decay
    arguments = {name: x.detach().to(dtype) for name, x in inputs(parsed, 50).items()}
    arguments["alpha"] = arguments["alpha"].float()
    arguments = {name: x.requires_grad_() for name, x in arguments.items()}
    wide = {name: x.detach().double().requires_grad_() for name, x in arguments.items()}
    y, expected = call(module, arguments), module.reference(**wide)
    assert y.dtype == dtype
    rounding = torch.finfo(dtype).eps
    assert ((y.double() - expected).abs() <= rounding * expected.abs() + 1e-6).all()
    wanted = gradients(expected, wide)
    for name, got in gradients(y, arguments).items():
        assert got.dtype == arguments[name].dtype
        assert difference(got, wanted[name]) < 2 * rounding, name


def test_v_decides_the_type_of_y(decay: tuple) -> None:
    parsed, module = decay
    arguments = {name: x.detach().float() for name, x in inputs(parsed, 20).items()}
    assert call(module, arguments | {"v": arguments["v"].double()}).dtype == torch.float64
    assert call(module, arguments | {"v": arguments["v"].bfloat16()}).dtype == torch.bfloat16


def test_strides_make_no_difference(decay: tuple) -> None:
    """Heads before tokens, every other head of more, one head for all, tokens in reverse."""
    parsed, module = decay
    arguments = {name: x.detach() for name, x in inputs(parsed, 40).items()}
    strided = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in arguments.items()}
    strided["k"] = arguments["k"].repeat_interleave(2, 2)[:, :, ::2]
    strided["u"] = arguments["u"][:, :, :1].expand(-1, -1, 2, -1)
    strided["v"] = arguments["v"].flip(1).flip(1)
    strided = {name: x.requires_grad_() for name, x in strided.items()}
    plain = {
        name: x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for name, x in strided.items()
    }
    y, expected = call(module, strided), call(module, plain)
    assert y.is_contiguous()
    assert torch.equal(y, expected)
    wanted = gradients(expected, plain)
    for name, got in gradients(y, strided).items():
        assert torch.equal(got, wanted[name]), name


@pytest.mark.parametrize("wanted", [[], ["k"], ["alpha", "u"]], ids=str)
def test_gradients_go_to_the_inputs_that_ask(wanted: list[str], decay: tuple) -> None:
    parsed, module = decay
    arguments = {name: x.detach().requires_grad_(name in wanted) for name, x in inputs(parsed, 40).items()}
    y = call(module, arguments)
    assert y.requires_grad == bool(wanted)
    if wanted:
        y.square().sum().backward()
    every = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    call(module, every).square().sum().backward()
    for name, x in arguments.items():
        assert torch.equal(x.grad, every[name].grad) if name in wanted else x.grad is None


def test_gradients_pass_gradcheck() -> None:
    parsed = spec(SWLA, aggregate=SSC, head={"key_dim": 2, "value_dim": 2}, **segment(4))
    module = module_of(parsed)
    arguments = inputs(parsed, 14, B=1, H=1)
    names = list(arguments)
    assert torch.autograd.gradcheck(lambda *x: call(module, dict(zip(names, x, strict=True))), list(arguments.values()))


def test_second_derivatives_are_refused(decay: tuple) -> None:
    parsed, module = decay
    arguments = inputs(parsed, 9)
    (d_q,) = torch.autograd.grad(call(module, arguments).square().sum(), arguments["q"], create_graph=True)
    with pytest.raises(module.UnsupportedError, match="reference"):
        d_q.sum().backward()


def test_forward_mode_derivatives_are_refused_where_asked_for(decay: tuple) -> None:
    """An operator without a rule for them would give zeros; `reference` has them."""
    parsed, module = decay
    arguments = {name: x.detach() for name, x in inputs(parsed, 9).items()}
    along = {"q": torch.ones_like(arguments["q"])}
    with torch.autograd.forward_ad.dual_level():
        call(module, arguments)
        dual = {name: torch.autograd.forward_ad.make_dual(arguments[name], x) for name, x in along.items()}
        with pytest.raises(module.UnsupportedError, match="reference"):
            call(module, arguments | dual)
        tangent = torch.autograd.forward_ad.unpack_dual(module.reference(**(arguments | dual))).tangent
    assert torch.allclose(tangent, module.reference(**(arguments | along)))  # y is linear in q


@pytest.mark.parametrize("aggregate", ["none", "residual", "ssc"])
def test_operators_are_registered_as_torch_wants_them(aggregate: str) -> None:
    """Schema, fake tensors, autograd, and tracing with shapes that are not known."""
    parsed = spec(SWLA, aggregate=AGGREGATES[aggregate], **segment(8))
    module = module_of(parsed)
    arguments = {name: x.float().detach().requires_grad_() for name, x in inputs(parsed, 40, B=1).items()}
    order = module.op.__globals__["INPUTS"]
    tensors = [arguments[name] for name in order]
    forward, reverse, _ = module.op.__globals__["OPERATORS"]["torch"]
    names = module.op.__globals__
    detached = [x.detach() for x in tensors]
    for place in ([], [0, 0, 0]):
        torch.library.opcheck(forward.default, (tensors, place))
        y, *others = forward(detached, place)
        last = len(names["PARTS"] + names["BANK"]) if place else 0
        after = [torch.randn_like(t) for t in others[:last]]
        torch.library.opcheck(reverse.default, (detached, others[last:], torch.randn_like(y), after, place))


def test_compiles_into_one_graph(decay: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients through torch.compile(fullgraph=True), and again at another length."""
    parsed, module = decay
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where torch.compile looks up a function's globals
    compiled = torch.compile(lambda x: call(module, x).sin(), fullgraph=True, backend="aot_eager")
    for T in (40, 24, 33):
        arguments = {name: x.float().detach().requires_grad_() for name, x in inputs(parsed, T).items()}
        y, expected = compiled(arguments), call(module, arguments).sin()
        torch.testing.assert_close(y, expected)
        wanted = gradients(expected, arguments)
        for name, got in gradients(y, arguments).items():
            torch.testing.assert_close(got, wanted[name])


def test_autocast_narrows_nothing_inside(decay: tuple) -> None:
    parsed, module = decay
    arguments = {name: x.float().detach().requires_grad_() for name, x in inputs(parsed, 40).items()}
    expected = call(module, arguments)
    wanted = gradients(expected, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = call(module, arguments)
        found = gradients(y, arguments)
    assert torch.equal(y, expected)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_activation_checkpointing_gives_the_same_gradients(decay: tuple) -> None:
    parsed, module = decay
    arguments = inputs(parsed, 40)
    again = torch.utils.checkpoint.checkpoint(lambda: call(module, arguments).square(), use_reentrant=False)
    wanted = gradients(call(module, arguments).square(), arguments)
    for name, got in gradients(again, arguments).items():
        assert torch.equal(got, wanted[name]), name


FIRST_CALL = """\
import importlib.util
import sys
import torch
spec = importlib.util.spec_from_file_location("module", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x = {name: torch.randn(1, 9, 1, n, requires_grad=True) for name, n in zip("qkuv", (6, 6, 6, 5))}
module.op(**x, alpha=torch.rand(1, 9, 1)).sum().backward()
print(*sorted({"torch._dynamo", "torch._inductor", "sympy"} & sys.modules.keys()))
"""


def test_the_first_call_imports_no_compiler(tmp_path: Path, decay: tuple) -> None:
    """torch.compile's modules take seconds to import."""
    path = tmp_path / "module.py"
    path.write_text(torch_module(decay[0]), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", FIRST_CALL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_module_imported_again_runs_its_own_text(decay: tuple) -> None:
    """Two modules of one spec coexist, and neither runs the other's functions."""
    parsed, module = decay
    other = module_of(parsed)
    arguments = inputs(parsed, 20)
    expected = call(module, arguments)
    assert torch.equal(call(other, arguments), expected)
    names = other.op.__globals__
    original = names["_read_online"]
    names["_read_online"] = lambda **x: {name: 2 * t for name, t in original(**x).items()}
    assert not torch.equal(call(other, arguments), expected)
    assert torch.equal(call(module, arguments), expected)
