"""The printed reference: against an oracle that shares nothing with it, against identities, and against autograd."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mcgen.emit.module.arguments import arguments_source
from mcgen.emit.module.reference import HELPERS, LOCALS, reference_source
from mcgen.emit.text.layout import laid_out
from tests.emit.fragments import difference, gradients, inputs, leaves, reference_of, run, source, spec_of

CONFORMANCE = Path(__file__).resolve().parents[3] / "shared" / "conformance"
HALF = "sum((p - v)**2)/2"
MLP = {"kind": "mlp", "expansion": 2}
SMALL = {"key_dim": 4, "value_dim": 4}


def load(name: str) -> Any:
    path = CONFORMANCE / f"{name}.py"
    if not path.exists():
        pytest.skip("the conformance kit does not lie beside the checkout")
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def plain(update: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A spec as plain data, small."""
    return {"mcgen": 1, "name": "example", "memory": {"kind": "matrix"}, "update": update, "head": SMALL, **sections}


def segment(size: int | None = 5, init: str = "independent") -> dict[str, Any]:
    return {"size": size, "init": init} if size else {"mode": "logarithmic", "init": init}


AGGREGATES = [
    {"kind": "none"},
    {"kind": "residual"},
    {"kind": "mean"},
    {"kind": "grm", "connector": "q", "pool": "sum"},
    {"kind": "soup", "scale": -0.5},
    {"kind": "ssc", "top_k": 2},
]
RULES = {
    "linear": {"rule": "linear"},
    "swla": {"rule": "swla"},
    "far_lags": {"steps": ["M = alpha*M + outer(v[-2], k[-7]) - outer(v, k[-1])"]},
    "cascade": {"steps": ["S = beta*S + outer(v, k[-1])", "R = S - 0.5*R", "M = alpha*M + lam*R/2 + outer(v, k)"]},
    "reads_late": {"steps": ["M = alpha*M + S", "S = beta*S - outer(v, k)"]},
    "functions_of_gates": {"steps": ["M = exp(-abs(a))*M + sqrt(b + 1)*(outer(v, k)*(1 - sigmoid(a)) + M)/2**3"]},
    "gated_delta": {"rule": "gated_delta"},
    "two_gradients": {"objective": HALF, "steps": ["M = M - eta*grad", "M = alpha*M", "M = M - 0.1*grad"]},
    "gradient_and_outer": {"objective": HALF, "steps": ["M = alpha*M - eta*grad + lam*outer(v[-1], k)"]},
    "cubic": {"objective": "sum((p - v)**3)/3 + 0.5*dot(p, p - v) - dot(v, v)", "steps": ["M = alpha*M - eta*grad"]},
    "pseudo_huber": {"objective": "sum(sqrt(1 + (p - v)**2))", "steps": ["M = alpha*M - eta*grad"]},
    "functions": {
        "objective": "sum(log(cosh(p - v)) + sin(p)*cos(v) + exp(-p**2) + tanh(p)*erf(v) + abs(p) + sigmoid(p)*relu(v)"
        " + silu(p) + gelu(p*v) + softplus(30*p)/30)",
        "steps": ["M = alpha*M - eta*grad"],
    },
    "titans_chunk": {"rule": "titans", "gradient": {"chunk": 3}},
    "titans_whole_segment": {"rule": "titans", "gradient": {"chunk": 100}},
}


def deep(update: dict[str, Any], **memory: Any) -> dict[str, Any]:
    """An mlp's spec, and whatever gradient the update asks for."""
    return plain(update, memory={**MLP, **memory})


def extras() -> dict[str, dict[str, Any]]:
    """Specs that share no letter with the conformance cases: every rule, aggregate, init and segmentation meets."""
    specs = {}
    for number, (name, rule) in enumerate(RULES.items()):
        init = "checkpoint" if number % 2 else "independent"
        size = None if number % 3 == 0 else 5
        specs[name] = plain(rule, segment=segment(size, init), aggregate=AGGREGATES[number % len(AGGREGATES)])
    for aggregate in AGGREGATES:
        specs[f"decay_{aggregate['kind']}"] = plain({"rule": "decay"}, segment=segment(4), aggregate=aggregate)
        specs[f"dla_{aggregate['kind']}"] = deep({"rule": "dla", "gradient": {"chunk": 2}}) | {
            "segment": segment(6, "checkpoint"),
            "aggregate": aggregate,
        }
    titans = {"rule": "titans", "gradient": "token"}
    specs["deep_token"] = deep(titans) | {"segment": segment(None)}
    specs["deep_three_layers"] = deep(titans, layers=3, activation="silu", norm="layernorm")
    specs["deep_four_relu"] = deep({"rule": "titans"}, layers=4, activation="relu", expansion=1)
    for activation in ("tanh", "sigmoid", "softplus", "x*sigmoid(1.702*x)", "tanh(x)**3 + x"):
        specs[f"deep_{activation}"] = deep({"rule": "titans", "gradient": {"chunk": 4}}, activation=activation)
    specs["deep_wide_value"] = deep({"rule": "dla"}, residual=False, norm="layernorm") | {
        "head": {"key_dim": 4, "value_dim": 6}
    }
    specs["deep_huber"] = deep({"objective": "sum(sqrt(1 + (p - v)**2))", "steps": ["M = alpha*M - eta*grad"]})
    specs["deep_two_gradients"] = deep(
        {"objective": HALF, "steps": ["M = M - eta*grad", "M = alpha*M - eta*grad"], "gradient": "token"}
    )
    return specs


def against_oracle(spec: dict[str, Any], T: int) -> None:
    oracle, parsed = load("oracle"), spec_of(**{k: v for k, v in spec.items() if k != "mcgen"})
    arguments = inputs(parsed, T)
    y = reference_of(parsed)(**arguments)
    gates = {name: arguments[name] for name in parsed.tensor_gates}
    q, k, v, u = (arguments[name] for name in "qkvu")
    expected = oracle.run(parsed.to_dict(), q, k, v, u, gates, arguments.get("theta"))
    assert difference(y, expected) < 1e-10
    wanted = gradients(expected, arguments)
    for name, got in gradients(y, arguments).items():
        assert (got - wanted[name]).norm() <= 1e-9 * wanted[name].norm() + 1e-12, name


@pytest.mark.parametrize("name", extras())
def test_agrees_with_the_oracle(name: str) -> None:
    against_oracle(extras()[name], T=13)


def test_agrees_with_the_oracle_on_every_public_case() -> None:
    for case in load("cases").CASES:
        if case["group"] not in ("matrix", "delta", "deep"):
            continue  # vectors, reads and routers are not in the language yet
        against_oracle(case["spec"], T=37)


# Identities of the semantics: each is an independent definition in closed form.


def test_linear_residual_independent_is_linear_attention_over_the_whole_sequence() -> None:
    spec = spec_of({"rule": "linear"}, aggregate={"kind": "residual"}, segment=segment(4), head=SMALL)
    x = inputs(spec, 11)
    scores = torch.einsum("bthk,bshk->bhts", x["q"], x["k"]).tril()
    assert difference(reference_of(spec)(**x), torch.einsum("bhts,bshv->bthv", scores, x["v"])) < 1e-12


def test_segments_of_one_token_under_grm_are_a_gated_global_attention() -> None:
    spec = spec_of({"rule": "linear"}, segment=segment(1), head=SMALL)
    x = inputs(spec, 9)
    r = torch.einsum("bthk,bshk->bhts", x["u"], x["k"])
    w = r.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1)
    weights = w * torch.einsum("bthk,bshk->bhts", x["q"], x["k"])
    assert difference(reference_of(spec)(**x), torch.einsum("bhts,bshv->bthv", weights, x["v"])) < 1e-12


def test_lags_stop_at_the_segment_where_it_is_independent_and_cross_it_where_not() -> None:
    for init, expected in (("independent", [0, 0, 1, 0, 0, 4, 0]), ("checkpoint", [0, 0, 1, 2, 3, 4, 5])):
        rule = {"steps": ["M = 0*M + outer(v, k[-2])"]}
        spec = spec_of(rule, aggregate={"kind": "none"}, segment=segment(3, init), head={"key_dim": 1, "value_dim": 1})
        ones = torch.ones(1, 7, 1, 1, dtype=torch.float64)
        k = torch.arange(1.0, 8.0, dtype=torch.float64).view(1, 7, 1, 1)
        assert reference_of(spec)(ones, k, ones).flatten().tolist() == expected


@pytest.mark.parametrize("memory", [{"kind": "matrix"}, MLP])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"kind": "ssc", "top_k": 99}, {"kind": "grm"}),
        ({"kind": "soup"}, {"kind": "grm"}),
    ],
)
def test_aggregates_that_agree(memory: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (
        spec_of({"rule": "titans"}, memory=memory, aggregate=a, segment=segment(4), head=SMALL) for a in (one, other)
    )
    x = inputs(first, 11)
    agree = difference(reference_of(first)(**x), reference_of(second)(**x)) < 1e-12
    assert agree == (one["kind"] == "ssc" or memory["kind"] == "matrix")


@pytest.mark.parametrize("memory", [{"kind": "matrix"}, MLP])
@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda a: a["kind"])
def test_one_segment_is_the_plain_recurrence(memory: dict[str, Any], aggregate: dict[str, Any]) -> None:
    one, plain = (
        spec_of({"rule": "titans"}, memory=memory, aggregate=a, segment=segment(9), head=SMALL)
        for a in (aggregate, {"kind": "none"})
    )
    x = inputs(one, 9)
    assert difference(reference_of(one)(**x), reference_of(plain)(**x)) < 1e-12


@pytest.mark.parametrize("memory", [{"kind": "matrix"}, MLP])
def test_momentum_of_zero_and_chunks_of_one(memory: dict[str, Any]) -> None:
    fields = {"memory": memory, "segment": segment(5), "head": SMALL}
    titans = spec_of({"rule": "titans", "gradient": {"chunk": 1}}, **fields)
    lines = {"objective": "sum((p - v)**2)", "steps": ["M = alpha*M - eta*grad"], "gradient": "token"}
    x = inputs(titans, 8)
    x["beta"] = torch.zeros_like(x["beta"])
    without = {name: value for name, value in x.items() if name != "beta"}
    assert difference(reference_of(titans)(**x), reference_of(spec_of(lines, **fields))(**without)) < 1e-12


def test_ssc_keeps_the_earlier_of_equal_logits_and_always_the_online_memory() -> None:
    spec = spec_of({"rule": "linear"}, aggregate={"kind": "ssc", "top_k": 1}, segment=segment(1), head=SMALL)
    x = inputs(spec, 4)
    x["u"] = torch.zeros_like(x["u"])
    weights = torch.zeros(4, 4, dtype=torch.float64)
    weights[:, 0] = weights[range(4), range(4)] = 0.5
    weights[0, 0] = 1.0
    scores = weights * torch.einsum("bthk,bshk->bhts", x["q"], x["k"])
    assert difference(reference_of(spec)(**x), torch.einsum("bhts,bshv->bthv", scores, x["v"])) < 1e-12


@pytest.mark.parametrize("name", ["two_gradients", "titans_chunk", "deep_token", "dla_soup", "swla", "decay_ssc"])
def test_a_later_token_changes_no_earlier_output(name: str) -> None:
    spec = spec_of(**{k: v for k, v in extras()[name].items() if k not in ("mcgen", "segment")}, segment=segment(4))
    x, run_reference = inputs(spec, 9), reference_of(spec)
    later = {
        name: value if name == "theta" else torch.cat([value[:, :5], value[:, 5:] + 1], 1) for name, value in x.items()
    }
    assert torch.equal(run_reference(**x)[:, :5], run_reference(**later)[:, :5])


# Gates.


def test_constant_gates_are_gates_of_one_value() -> None:
    lines = {"steps": ["M = exp(-decay)*M + min(decay, g)*outer(v, k) + max(0.25, g)*outer(v[-1], k)"]}
    fixed = {**lines, "gates": {"decay": {"per_head": "min(2**(-1 - h)*pi, 1)"}, "g": 0.3}}
    spec, free = spec_of(fixed, head=SMALL), spec_of(lines, head=SMALL)
    x = inputs(free, 7)
    x["decay"] = torch.tensor([1.0, torch.pi / 4], dtype=torch.float64).expand(2, 7, 2)
    x["g"] = torch.full((2, 7, 2), 0.3, dtype=torch.float64)
    assert spec.tensor_gates == ()
    assert difference(reference_of(spec)(*(x[n] for n in "qkvu")), reference_of(free)(**x)) < 1e-12


@pytest.mark.parametrize("name", ["decay_grm", "two_gradients", "dla_grm", "titans_chunk"])
def test_gates_of_zero_and_one_are_exact(name: str) -> None:
    spec = spec_of(**{k: v for k, v in extras()[name].items() if k != "mcgen"})
    x = inputs(spec, 8)
    for gate in spec.tensor_gates:
        x[gate] = torch.bernoulli(torch.full_like(x[gate], 0.5)).requires_grad_()
    y = reference_of(spec)(**x)
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(y, x).values())


# Differentiability.

TINY = {"key_dim": 2, "value_dim": 2}
CHECKED = {
    "cascade": plain(RULES["cascade"], aggregate={"kind": "grm"}),
    "two_gradients": plain(RULES["two_gradients"], aggregate={"kind": "soup"}),
    "pseudo_huber": plain(RULES["pseudo_huber"], aggregate={"kind": "mean"}),
    "deep": deep({"rule": "titans", "gradient": {"chunk": 2}}, norm="layernorm", expansion=1)
    | {"aggregate": {"kind": "ssc", "top_k": 1}},
    "deep_token": deep({"rule": "dla", "gradient": "token"}, activation="silu", expansion=1)
    | {"aggregate": {"kind": "soup"}},
}


@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck_of_first_and_second_order(name: str) -> None:
    spec = spec_of(**{k: v for k, v in (CHECKED[name] | {"head": TINY, "segment": segment(2)}).items() if k != "mcgen"})
    x, run_reference = inputs(spec, 4, B=1, H=1), reference_of(spec)
    flat = leaves(x)

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        named = dict(zip(flat, tensors, strict=True))
        theta = [value for name, value in named.items() if name.startswith("theta")]
        rest = {name: value for name, value in named.items() if not name.startswith("theta")}
        return run_reference(**rest, theta=theta or None)

    assert torch.autograd.gradcheck(function, tuple(flat.values()))
    assert torch.autograd.gradgradcheck(function, tuple(flat.values()), atol=1e-4)


@pytest.mark.parametrize("name", ["deep_token", "pseudo_huber", "swla"])
def test_values_are_the_same_where_gradients_are_off(name: str) -> None:
    spec = spec_of(**{k: v for k, v in extras()[name].items() if k != "mcgen"})
    x, run_reference = inputs(spec, 7), reference_of(spec)
    y = run_reference(**x)
    with torch.no_grad():
        assert torch.equal(run_reference(**x), y)
        assert not run_reference(**x).requires_grad
    with torch.inference_mode():
        assert torch.equal(run_reference(**x), y)


# Types.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["decay_grm", "deep_token", "pseudo_huber"])
def test_y_has_the_type_of_v_and_each_gradient_that_of_its_input(name: str, dtype: torch.dtype) -> None:
    spec = spec_of(**{k: v for k, v in extras()[name].items() if k != "mcgen"})
    x = inputs(spec, 7, dtype=dtype)
    for gate in spec.tensor_gates:
        x[gate] = x[gate].detach().float().requires_grad_()
    y = reference_of(spec)(**x)
    assert y.dtype == dtype
    flat = leaves(x)
    assert all(g.dtype == flat[name].dtype for name, g in gradients(y, x).items())


@pytest.mark.parametrize("name", ["decay_grm", "deep_token", "functions"])
def test_low_precision_is_rounded_at_the_ends_alone(name: str) -> None:
    spec = spec_of(**{k: v for k, v in extras()[name].items() if k != "mcgen"})
    low = inputs(spec, 7, dtype=torch.bfloat16)
    wide = {n: [W.float() for W in x] if n == "theta" else x.float() for n, x in low.items()}
    run_reference = reference_of(spec)
    assert torch.equal(run_reference(**low), run_reference(**wide).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        inside = run_reference(**wide)
    assert torch.equal(inside, run_reference(**wide))


@pytest.mark.parametrize("name", ["decay_grm", "deep_token"])
@pytest.mark.parametrize("T", [0, 1, 2])
def test_short_sequences(name: str, T: int) -> None:
    spec = spec_of(**{k: v for k, v in extras()[name].items() if k != "mcgen"})
    x = inputs(spec, T)
    y = reference_of(spec)(**x)
    assert y.shape == (2, T, 2, 4)
    y.sum().backward()


# Arguments.


def arguments(**changes: Any) -> dict[str, Any]:
    x = {name: torch.zeros(2, 3, 2, 4) for name in "qkvu"}
    return {**x, "alpha": torch.zeros(2, 3, 2), **changes}


SPEC_ROUTED = spec_of({"rule": "decay"}, head=SMALL)
WRONG = {
    "no gate": ({"alpha": None}, TypeError, "missing gate: alpha"),
    "extra gate": ({"gamma": torch.zeros(2, 3, 2)}, TypeError, "unexpected argument: gamma; the gates are alpha"),
    "gate's shape": (
        {"alpha": torch.zeros(2, 3, 1)},
        ValueError,
        r"alpha must have shape \(2, 3, 2\), got \(2, 3, 1\)",
    ),
    "gate's kind": ({"alpha": 0.5}, TypeError, "alpha must be a tensor, got float"),
    "no u": ({"u": None}, TypeError, "u is missing"),
    "u's shape": ({"u": torch.zeros(2, 3, 1, 4)}, ValueError, r"u must have shape \(2, 3, 2, 4\)"),
    "q's dims": ({"q": torch.zeros(2, 3, 4)}, ValueError, r"q must have shape \(B, T, H, 4\), got \(2, 3, 4\)"),
    "key dim": ({"q": torch.zeros(2, 3, 2, 5)}, ValueError, r"q must have shape \(B, T, H, 4\), got \(2, 3, 2, 5\)"),
    "k's length": (
        {"k": torch.zeros(2, 4, 2, 4)},
        ValueError,
        r"k must have shape \(2, 3, 2, 4\), .*, got \(2, 4, 2, 4\)",
    ),
    "value dim": (
        {"v": torch.zeros(2, 3, 2, 3)},
        ValueError,
        r"v must have shape \(2, 3, 2, 4\), .* got \(2, 3, 2, 3\)",
    ),
    "integers": ({"k": torch.zeros(2, 3, 2, 4, dtype=torch.int64)}, TypeError, "k must be float16, .* got torch.int64"),
    "device": ({"v": torch.zeros(2, 3, 2, 4, device="meta")}, ValueError, "v must be on q's device, cpu, got meta"),
    "theta": ({"theta": [torch.zeros(2, 4, 4)]}, TypeError, "theta must be None: a matrix memory starts at zero"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    changes, error, message = WRONG[name]
    given = {name: x for name, x in arguments(**changes).items() if x is not None or name == "u"}
    with pytest.raises(error, match=message):
        reference_of(SPEC_ROUTED)(**given)


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        (None, TypeError, "theta must be the list of the memory's 2 initial weights, got None"),
        (torch.zeros(2, 2, 8, 4), TypeError, "theta must be the list of the memory's 2 initial weights, got Tensor"),
        ([torch.zeros(2, 8, 4)], ValueError, "theta must have 2 weights, got 1"),
        (
            [torch.zeros(2, 8, 4), torch.zeros(2, 8, 4)],
            ValueError,
            r"theta\[1\] must have shape \(2, 4, 8\), got \(2, 8, 4\)",
        ),
    ],
)
def test_wrong_theta_is_named(theta: Any, error: type[Exception], message: str) -> None:
    spec = spec_of({"rule": "dla"}, memory=MLP, head=SMALL)
    given = arguments(theta=theta, eta=torch.zeros(2, 3, 2))
    del given["alpha"]
    with pytest.raises(error, match=message):
        reference_of(spec)(**given)


@pytest.mark.parametrize("aggregate", [{"kind": "none"}, {"kind": "residual"}, {"kind": "grm", "connector": "q"}])
def test_u_is_ignored_where_nothing_routes_by_it(aggregate: dict[str, Any]) -> None:
    spec = spec_of({"rule": "decay"}, aggregate=aggregate, head=SMALL)
    x, run_reference = inputs(spec, 5), reference_of(spec)
    y = run_reference(**x)
    assert torch.autograd.grad(y.sum(), x["u"], allow_unused=True) == (None,)
    assert torch.equal(run_reference(**{**x, "u": None}), y)


def test_backend_is_one_of_three() -> None:
    check = run(source(arguments_source(SPEC_ROUTED)))._check
    given = arguments()
    gates = {"alpha": given.pop("alpha")}
    for backend in (None, "torch", "triton"):
        check(**given, theta=None, gates=gates, backend=backend)
    with pytest.raises(ValueError, match='backend must be "torch", "triton" or None, got \'cuda\''):
        check(**given, theta=None, gates=gates, backend="cuda")


# The text.

COLLIDING = {
    "steps": [
        "T = B*T + outer(v, k[-1])",
        "v_1 = k_1*v_1 + T",
        "alpha_t = alpha*alpha_t + dtype*v_1",
        "M = l*M + torch*alpha_t",
    ]
}
LONG = {
    "objective": " + ".join(f"sum(exp(-(p - {n}*v)**2/{n}.5)*sin(p*v))*{n}" for n in range(1, 9)),
    "steps": [
        "M = " + " + ".join(f"a_quite_long_name_{n}*outer(v[-{n}], k[-{n}])" for n in range(1, 9)) + " - eta*grad",
        "M = M*(" + " + ".join(f"sigmoid(a_quite_long_name_{n})*exp(-abs(eta))" for n in range(1, 9)) + ")",
    ],
    "gates": {"eta": {"per_head": " + ".join(f"exp(-{n}*h)*cos(h/{n})*0.0{n}" for n in range(1, 13))}},
}


def written() -> dict[str, Any]:
    """Every spec above, as parsed, and some that are hard on a printer."""
    specs = {**extras(), **CHECKED, "colliding": plain(COLLIDING), "long": plain(LONG)}
    specs["long_deep"] = deep(
        {
            "objective": LONG["objective"],
            "steps": [
                "slot_number_one = "
                + " + ".join(f"exp(-a_quite_long_name_{n})*slot_number_one" for n in range(1, 7))
                + " - eta*grad",
                "M = alpha*M + slot_number_one*(" + " + ".join(f"a_quite_long_name_{n}/{n}" for n in range(1, 9)) + ")",
            ],
        },
        activation=" + ".join(f"tanh(x/{n})*sigmoid({n}*x + 0.125)" for n in range(1, 9)),
    )
    return {name: spec_of(**{k: v for k, v in spec.items() if k != "mcgen"}) for name, spec in specs.items()}


def test_text_is_clean_once_it_is_laid_out(tmp_path: Path) -> None:
    for name, spec in written().items():
        text = laid_out(source(arguments_source(spec), reference_source(spec)))
        (tmp_path / f"{''.join(c if c.isalnum() else '_' for c in name)}.py").write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    options = ["--config", str(Path(__file__).resolve().parents[2] / "pyproject.toml"), "--no-cache", str(tmp_path)]
    linted = subprocess.run([*ruff, "check", "--ignore", "F401", *options], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("name", ["colliding", "long", "long_deep"])
def test_hard_text_runs(name: str) -> None:
    spec = written()[name]
    y = reference_of(spec)(**inputs(spec, 4))
    assert y.isfinite().all()


def test_names_that_collide_with_the_text_mean_what_plain_ones_do() -> None:
    renamed = {"steps": ["A = b*A + outer(v, k[-1])", "C = d*C + A", "E = f*E + g*C", "M = n*M + o*E"]}
    spec, other = spec_of(COLLIDING, head=SMALL), spec_of(renamed, head=SMALL)
    x = inputs(spec, 6)
    names = dict(zip(spec.tensor_gates, other.tensor_gates, strict=True))
    plain_names = {names.get(name, name): value for name, value in x.items()}
    assert torch.equal(reference_of(spec)(**x), reference_of(other)(**plain_names))


def test_the_text_uses_no_name_that_a_user_could_take_from_it() -> None:
    for name, spec in written().items():
        if name in ("colliding", "long", "long_deep"):
            continue
        users = {
            f"{n}{ending}" for n in (*spec.slots, *(g.name for g in spec.gates), "grad") for ending in ("", "_t", "_n")
        }
        tree = ast.parse(reference_source(spec))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        numbered = {n for n in used if n[:2] in ("v_", "k_", "c_") and n[2:].isdigit()}
        builtin = set(dir(builtins))
        helpers = ["bit", "borders", "create_graph", "objective", "best", "chosen", "first", "offset"]
        allowed = {*LOCALS.split(), *HELPERS, *helpers}
        assert used - users - numbered - builtin <= allowed, name


def test_text_is_deterministic() -> None:
    spec = written()["colliding"]
    assert reference_source(spec) == reference_source(written()["colliding"])
