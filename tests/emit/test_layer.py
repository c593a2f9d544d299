"""The generated layer, around an `op` that is the reference."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcgen.pipeline import source
from tests.emit.fragments import spec_of
from tests.emit.layers import HEAD, LAYER, SPECS, module

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "u_proj", "g_proj", "o_proj")


@pytest.fixture(params=SPECS)
def generated(request: pytest.FixtureRequest) -> SimpleNamespace:
    torch.manual_seed(0)
    return module(**SPECS[request.param])


def parameters(layer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in layer.named_parameters()}


def test_shape_and_gradients_of_every_parameter(generated: SimpleNamespace) -> None:
    layer = generated.Layer()
    x = torch.randn(2, 13, 10, requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    y.square().sum().backward()
    for name, parameter in [*layer.named_parameters(), ("x", x)]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_later_token_changes_no_earlier_output(generated: SimpleNamespace) -> None:
    layer, x = generated.Layer().double(), torch.randn(2, 13, 10, dtype=torch.float64)
    later = torch.cat([x[:, :7], x[:, 7:] + 1], 1)
    assert torch.allclose(layer(x)[:, :7], layer(later)[:, :7], rtol=0, atol=1e-12)
    assert not torch.allclose(layer(x)[:, 7:], layer(later)[:, 7:])


def test_parameters_are_exactly_these() -> None:
    assert parameters(module(**SPECS["linear"]).Layer()) == {
        "q_proj.weight": (12, 10),
        "k_proj.weight": (12, 10),
        "v_proj.weight": (18, 10),
        "u_proj.weight": (12, 10),
        "q_conv1d.weight": (12, 1, 4),
        "k_conv1d.weight": (12, 1, 4),
        "v_conv1d.weight": (18, 1, 4),
        "g_proj.weight": (18, 10),
        "o_norm.weight": (6,),
        "o_proj.weight": (10, 18),
    }


def test_gates_from_one_name_share_their_projection_and_bias() -> None:
    layer = module(**SPECS["mamba"]).Layer()
    own = {name: shape for name, shape in parameters(layer).items() if name.startswith(("dt", "alpha"))}
    assert own == {"dt_proj.weight": (3, 10), "dt_bias": (3,), "alpha_A_log": (3,)}
    gates = layer.gates(torch.randn(2, 5, 10))
    assert list(gates) == ["alpha", "dt"]
    assert torch.allclose(gates["alpha"], torch.exp(-layer.alpha_A_log.exp() * gates["dt"]))


def test_gates_from_one_name_that_start_apart_have_their_own_biases() -> None:
    gates = {"alpha": {"bias": 4.0, "from": "z"}, "beta": {"bias": 1.0, "from": "z"}, "lam": {"bias": 1.0, "from": "z"}}
    layer = module({"rule": "swla", "gates": gates}).Layer()
    own = {name for name in parameters(layer) if name.startswith(("z", "alpha", "beta", "lam"))}
    assert own == {"z_proj.weight", "alpha_bias", "beta_bias"}


def test_gates_may_be_called_what_the_layer_calls_its_own() -> None:
    names = ("_widen", "_project", "_discount", "_fitted", "F", "x_", "op")
    steps = f"M = {names[0]}*M + {' + '.join(f'{name}*outer(v, k)' for name in names[1:])}"
    layer = module({"steps": [steps], "gates": {name: {"fn": "decay"} for name in names}}).Layer()
    assert list(layer.gates(torch.randn(1, 3, 10))) == list(names)
    assert layer(torch.randn(1, 3, 10)).isfinite().all()


def test_a_gate_named_as_the_source_of_another_shares_with_it() -> None:
    gates = {"alpha": {"fn": "decay"}, "lam": {"fn": "softplus", "from": "alpha"}}
    layer = module({"steps": ["M = alpha*M + lam*outer(v, k)"], "gates": gates}).Layer()
    assert {n for n in parameters(layer) if n.startswith(("alpha", "lam"))} == {
        "alpha_proj.weight",
        "alpha_bias",
        "alpha_A_log",
    }


def test_gates_are_what_the_spec_says() -> None:
    layer = module(**SPECS["many"]).Layer().double()
    x = torch.randn(2, 5, 10, dtype=torch.float64)
    z = {name: torch.nn.functional.linear(x, layer.get_submodule(f"{name}_proj").weight) for name in "abcde"}
    gates = layer.gates(x)
    expected = {
        "a": torch.exp(-layer.a_A_log.exp() * torch.log1p(torch.exp(z["a"] + 1))),
        "b": 0.01 * torch.log1p(torch.exp(z["b"] - 1)),
        "c": torch.exp(z["c"] - 2),
        "d": torch.tanh(z["d"] + 0.25),
        "e": 2 * (z["e"] + 3),
    }
    assert list(gates) == list(expected)
    for name, value in expected.items():
        assert torch.allclose(gates[name], value, rtol=1e-10), name


def test_gate_ranges_at_the_ends_of_the_float_range() -> None:
    layer = module(**SPECS["many"]).Layer()
    with torch.no_grad():
        for name in "abd":
            layer.get_submodule(f"{name}_proj").weight.fill_(1e4)
    gates = layer.gates(torch.tensor([[[1.0] * 10, [-1.0] * 10]]))
    assert torch.equal(gates["a"], torch.tensor([[[0.0] * 3, [1.0] * 3]]))
    assert torch.equal(gates["d"], torch.tensor([[[1.0] * 3, [-1.0] * 3]]))
    assert gates["b"].isfinite().all()
    assert (gates["b"] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gates_are_float32_or_wider(dtype: torch.dtype) -> None:
    layer = module(**SPECS["many"]).Layer(dtype=dtype)
    gates = layer.gates(torch.randn(1, 3, 10, dtype=dtype))
    assert {gate.dtype for gate in gates.values()} == {torch.promote_types(dtype, torch.float32)}


def test_initial_values() -> None:
    torch.manual_seed(0)
    layer = module(**{**SPECS["many"], "head": {"key_dim": 32, "value_dim": 64}}).Layer(d_model=256, heads=64)
    for name in PROJECTIONS:
        if hasattr(layer, name):
            weight = layer.get_submodule(name).weight
            assert weight.std().item() == pytest.approx((3 * weight.shape[1]) ** -0.5, rel=0.02), name
    for name, bias in {"a": 1.0, "b": -1.0, "c": -2.0, "d": 0.25, "e": 3.0}.items():
        assert (layer.get_parameter(f"{name}_bias") == bias).all()
    rate = layer.a_A_log.exp()
    assert rate.min() >= 1
    assert rate.max() <= 16
    assert rate.mean().item() == pytest.approx(8.5, rel=0.15)
    assert (layer.o_norm.weight == 1).all()


def test_initial_weights_of_a_deep_memory() -> None:
    torch.manual_seed(0)
    memory = {"kind": "mlp", "layers": 3, "expansion": 4}
    layer = module({"rule": "titans"}, memory=memory, head={"key_dim": 32, "value_dim": 32}).Layer(heads=4)
    assert [tuple(W.shape) for W in layer.theta] == [(4, 128, 32), (4, 128, 128), (4, 32, 128)]
    for W in layer.theta:
        assert W.std().item() == pytest.approx(W.shape[-1] ** -0.5, rel=0.03)
        assert all((W[head] != 0).any() for head in range(4))
        assert not torch.equal(W[0], W[1])


def test_reset_parameters_gives_every_parameter_a_value_again(generated: SimpleNamespace) -> None:
    layer = generated.Layer()
    torch.manual_seed(3)
    layer.reset_parameters()
    first = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(3)
    layer.reset_parameters()
    assert all(torch.equal(first[name], value) for name, value in layer.state_dict().items())


def test_state_dict_round_trip(generated: SimpleNamespace) -> None:
    one, other, x = generated.Layer(), generated.Layer(), torch.randn(1, 7, 10)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(x), other(x))


def test_extra_repr() -> None:
    generated = module(**SPECS["linear"])
    assert (
        "d_model=10, heads=3, key_dim=4, value_dim=6, qk_norm=l2, conv_size=4, output_norm=rms, output_gate=True"
        in repr(generated.Layer())
    )
    assert repr(generated.Layer()).startswith("Example(")
    assert generated.Layer is generated.Example


def test_factory_arguments() -> None:
    layer = module(**SPECS["titans"]).Layer(device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(generated: SimpleNamespace, dtype: torch.dtype) -> None:
    layer = generated.Layer(dtype=dtype)
    y = layer(torch.randn(2, 7, 10, dtype=dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == dtype for p in layer.parameters())


def test_autocast(generated: SimpleNamespace) -> None:
    layer, x = generated.Layer(), torch.randn(2, 7, 10)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), layer(x), atol=0.05, rtol=0.1)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_compiles_without_a_graph_break() -> None:
    generated = module(**SPECS["mamba"])
    layer, x = generated.Layer(), torch.randn(1, 4, 10)
    assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"conv_size": 0}, ("q_conv1d", "k_conv1d", "v_conv1d")),
        ({"conv_size": None}, ("q_conv1d",)),
        ({"output_norm": "none"}, ("o_norm",)),
        ({"output_gate": False}, ("g_proj",)),
    ],
)
def test_options_leave_parts_out(options: dict[str, Any], absent: tuple[str, ...]) -> None:
    layer = module(**SPECS["linear"]).Layer(**options)
    assert not any(hasattr(layer, name) for name in absent)
    assert layer(torch.randn(1, 6, 10)).shape == (1, 6, 10)


def test_the_spec_gives_the_defaults() -> None:
    bare = {"d_model": 6, "heads": 2, "qk_norm": "none", "conv_size": 0, "output_norm": "none", "output_gate": False}
    layer = module({"rule": "linear"}, layer=bare, aggregate={"kind": "residual"}).Layer().double()
    assert set(parameters(layer)) == {f"{name}_proj.weight" for name in "qkvo"}
    x = torch.randn(1, 7, 6, dtype=torch.float64)
    q, k, v = (layer.get_submodule(f"{name}_proj")(x).unflatten(-1, (2, -1)) for name in "qkv")
    scores = torch.einsum("bthk,bshk->bhts", q, k).tril()
    expected = layer.o_proj(torch.einsum("bhts,bshv->bthv", scores, v).flatten(-2))
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4, 9])
@pytest.mark.parametrize("T", [0, 1, 3, 30])
def test_short_convolutions_read_no_later_token(size: int, T: int) -> None:
    convolution = module(**SPECS["linear"])._ShortConvolution(6, size).double()
    x = torch.randn(2, T, 6, dtype=torch.float64)
    kernel = convolution.weight[:, 0].flip(-1)  # (channels, tokens back)
    terms = [torch.nn.functional.pad(x, (0, 0, n, 0))[:, :T] * kernel[:, n] for n in range(size)]
    assert torch.allclose(convolution(x), torch.nn.functional.silu(sum(terms)), rtol=0, atol=1e-12)
    poisoned = torch.cat([x, torch.full((2, 2, 6), torch.nan, dtype=torch.float64)], 1)
    assert torch.allclose(convolution(poisoned)[:, :T], convolution(x), rtol=0, atol=1e-12)


def test_queries_and_keys_have_norm_one() -> None:
    generated = module(**SPECS["linear"])
    x = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1) * torch.tensor([1e-2, 1.0, 1e4])[:, None]
    assert torch.allclose(generated._l2(x).norm(dim=-1), torch.ones(3), atol=1e-2)
    assert generated._l2(torch.zeros(4)).isfinite().all()


@pytest.mark.parametrize("T", [0, 1, 3])
def test_short_sequences(generated: SimpleNamespace, T: int) -> None:
    assert generated.Layer()(torch.randn(2, T, 10)).shape == (2, T, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model must be a whole number from 1, got 0"),
        ({"heads": 1.5}, "heads must be a whole number from 1, got 1.5"),
        ({"conv_size": -1}, "conv_size must be a whole number or None, got -1"),
        ({"qk_norm": "l3"}, 'qk_norm must be "l2" or "none", got \'l3\''),
        ({"output_norm": None}, 'output_norm must be "rms" or "none", got None'),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(**SPECS["linear"]).Layer(**options)


@pytest.mark.parametrize("shape", [(3, 10), (1, 3, 9), (1, 1, 3, 10)])
def test_wrong_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, 10\), got"):
        module(**SPECS["linear"]).Layer()(torch.zeros(shape))


def test_a_file_is_clean_whatever_its_layer(tmp_path: Path) -> None:
    names = ["a_rather_long_name_for_a_gate", "another_rather_long_name"]
    long = {"steps": [f"M = {names[0]}*M + {names[1]}*outer(v, k)"]}
    long["gates"] = {
        names[0]: {"fn": "decay", "bias": -4.6, "from": "a_rather_long_name"},
        names[1]: {"fn": "softplus", "scale": 0.01},
    }
    for name, spec in {**SPECS, "long": {"update": long}}.items():
        whole = {"head": HEAD, "layer": LAYER} | spec
        (tmp_path / f"{name}.py").write_text(source(spec_of(**whole)))
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--config", str(Path(__file__).resolve().parents[2] / "pyproject.toml"), "--no-cache", str(tmp_path)]
    linted = subprocess.run([*ruff, "check", *options], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
