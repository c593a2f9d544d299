"""The derivative table: every row against autograd of the evaluator, and that against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch

from mcgen.ir.derivative import DERIVATIVES, vjp
from mcgen.ir.evaluate import evaluate
from mcgen.ir.program import Builder, Contract, Decay, Input, Iota, Map, Node, Program, Reduce, Rename, Solve
from mcgen.symbolic import functions
from mcgen.symbolic.functions import SCALAR_FUNCTIONS, Larger, Maximum, Minimum, Power, Sign, Step, Where

SIZES = {"t": 5, "s": 5, "m": 5, "j": 5, "n": 3, "k": 2, "v": 4, "h1": 3}
X, Y, Z = sympy.symbols("x y z", real=True)
Make = Callable[[Builder], Node]


def draw(node: Input, seed: int) -> torch.Tensor:
    shape = [SIZES[axis] for axis in node.axes]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(make: Make, values: dict[str, torch.Tensor] | None = None, differences: bool = True) -> None:
    """The derivative program of a node against autograd through the evaluator, and that against finite differences."""
    b = Builder()
    node = make(b)
    program = Program("example", {"y": node})
    inputs = {name: draw(one, seed) for seed, (name, one) in enumerate(program.inputs.items())} | (values or {})
    inputs = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    cotangent = torch.randn([SIZES[axis] for axis in node.axes], dtype=torch.float64)
    y = evaluate(program, inputs, SIZES)["y"]
    found = torch.autograd.grad(y, list(inputs.values()), cotangent, allow_unused=True, materialize_grads=True)
    results = vjp(b, {"y": node}, {"y": b.input("d_y", *node.axes)})
    reverse = Program("reverse", {f"d_{name}": results.get(name, b.constant(0)) for name in inputs})
    got = evaluate(reverse, {**inputs, "d_y": cotangent}, SIZES)
    for name, expected in zip(inputs, found, strict=True):
        torch.testing.assert_close(got[f"d_{name}"].expand_as(expected), expected, rtol=1e-12, atol=1e-12)
    if differences:
        names = list(inputs)
        whole = lambda *tensors: evaluate(program, dict(zip(names, tensors, strict=True)), SIZES)["y"]  # noqa: E731
        assert torch.autograd.gradcheck(whole, tuple(inputs.values()))


def of_x(expression: sympy.Expr) -> Make:
    return lambda b: b.map(expression, {X: b.input("x", "t", "v"), Y: b.input("y", "t"), Z: b.input("z")})


POSITIVE = {"x": torch.rand(5, 4, dtype=torch.float64) + 0.1}
KINKED = {
    "x": torch.tensor([[-1.0, 0.0, 1.0, 2.0]] * 5, dtype=torch.float64),
    "y": torch.arange(-2.0, 3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SCALAR_FUNCTIONS)
def test_every_function_of_the_language(name: str) -> None:
    function = SCALAR_FUNCTIONS[name]
    arguments = (X, Y) if name in ("min", "max") else (X,)
    check(of_x(function(*arguments) + Y), POSITIVE)


@pytest.mark.parametrize(
    "expression",
    [
        X * Y * Z,
        X / Y - Z / 3,
        X**3 + X**-2,
        sympy.exp(X * Y) * functions.Sigmoid(-X),
        functions.Softplus(30 * X),
        Where(Y, X * Z, sympy.sin(X)),
        Power(sympy.exp(X), Y),
    ],
    ids=str,
)
def test_maps(expression: sympy.Expr) -> None:
    check(of_x(expression))


@pytest.mark.parametrize(
    "expression",
    [
        functions.Absolute(X),
        functions.Relu(X),
        Maximum(X, Y),
        Minimum(X, Y - 1),
        Sign(X) * X,
        Step(X) * X,
        Larger(X, Y) * Z,
    ],
    ids=str,
)
def test_maps_at_their_kinks(expression: sympy.Expr) -> None:
    """There is no difference quotient at a kink; the derivative there is the one autograd takes."""
    check(of_x(expression), KINKED, differences=False)


@pytest.mark.parametrize(
    ("base", "exponent"), [(0.0, 0.0), (0.0, 1.0), (0.0, 2.5), (0.7, 0.0), (1.0, 1.0), (-2.0, 2.0)]
)
def test_powers_at_their_ends(base: float, exponent: float) -> None:
    """No 0·∞ where a base or an exponent is 0."""
    values = {"x": torch.full((5, 4), base, dtype=torch.float64), "y": torch.full((5,), exponent, dtype=torch.float64)}
    if base < 0:  # by the exponent, neither has a derivative
        values = {"x": values["x"]}
        check(of_x(Power(X, sympy.Integer(2))), values)
    else:
        check(of_x(Power(X, Y)), values, differences=False)


@pytest.mark.parametrize(
    ("left", "right", "over"),
    [
        ("tk", "kv", "k"),
        ("tk", "jk", "k"),
        ("tj", "jv", "j"),
        ("tn", "nkv", "n"),
        ("tnk", "nkv", "nk"),
        ("tk", "tk", "k"),
        ("tj", "tjv", "tj"),
        ("tk", "v", "k"),
        ("t", "v", ""),
    ],
)
def test_contractions(left: str, right: str, over: str) -> None:
    check(lambda b: b.contract(b.input("x", *left), b.input("y", *right), *over))


@pytest.mark.parametrize("over", ["t", "tv", "v"])
def test_sums(over: str) -> None:
    check(lambda b: b.sum(b.input("x", "t", "v"), *over))


def test_a_maximum_has_no_derivative() -> None:
    b = Builder()
    assert vjp(b, {"y": b.max(b.input("x", "t", "n"), "n")}, {"y": b.input("d_y", "t")}) == {}


def test_renames() -> None:
    check(lambda b: b.product(b.rename(b.input("x", "t", "v"), "t", "j"), b.input("y", "t")))
    check(lambda b: b.rename(b.input("x", "j", "k"), "j", "t"))


GATES = {
    "ordinary": [0.9, 0.5, 0.3, 0.8, 0.7],
    "a zero": [0.9, 0.0, 0.3, 0.8, 0.7],
    "zeros": [0.0, 0.5, 0.0, 0.0, 0.7],
    "all zero": [0.0] * 5,
    "ones": [1.0, 1.0, 0.0, 1.0, 1.0],
    "negative": [-0.9, 0.5, -1.3, 0.0, -0.7],
    "tiny": [1e-200, 0.5, 1e-200, 1e-30, 0.7],
}
RUNS = [(row, column, exclusive) for row in ("t", None) for column in ("j", None) for exclusive in (False, True)]


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("row", "column", "exclusive"), [run for run in RUNS if run[0] or not run[2]])
def test_products_over_runs(gates: str, row: str | None, column: str | None, exclusive: bool) -> None:
    values = {"x": torch.tensor(GATES[gates], dtype=torch.float64)}
    check(lambda b: b.decay(b.input("x", "t"), row, column, exclusive), values)


@pytest.mark.parametrize(("row", "column"), [("s", "j"), ("t", "s"), ("m", "j")])
def test_products_over_runs_along_other_axes(row: str, column: str) -> None:
    b = Builder()
    node, plain = b.decay(b.input("x", "t"), row, column), b.decay(b.input("x", "t"), "t", "j")
    inputs = {"x": draw(b.input("x", "t"), 0)}
    values = evaluate(Program("p", {"y": node, "z": plain}), inputs, SIZES)
    assert torch.equal(values["y"], values["z"])
    if row != "m":
        check(lambda b: b.decay(b.input("x", "t"), row, column))


def test_products_over_runs_are_what_they_say() -> None:
    gate = torch.tensor(GATES["negative"], dtype=torch.float64)
    for row, column, exclusive in RUNS:
        b = Builder()
        value = evaluate(
            Program("p", {"y": b.decay(b.input("x", "t"), row, column, exclusive and bool(row))}), {"x": gate}, SIZES
        )
        for r in range(5 if row else 1):
            for c in range(5 if column else 1):
                last = (r if exclusive else r + 1) if row else 5
                first = c + 1 if column else 0
                inside = not (row and column) or (c < r if exclusive else c <= r)
                expected = gate[first:last].prod() if inside else gate.new_zeros(())
                index = ((r,) if row else ()) + ((c,) if column else ())
                assert torch.allclose(value["y"][index], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_solves(transposed: bool) -> None:
    """Only what lies below the diagonal is the matrix's: its gradient elsewhere is cut off by the mask that made it."""
    below = Where(X - Y, Z, sympy.S.Zero)

    def make(b: Builder) -> Node:
        matrix = b.map(below, {X: b.iota("t"), Y: b.iota("j"), Z: b.input("x", "t", "j")})
        return b.solve(matrix, b.input("y", "t", "v"), transposed)

    check(make)


def test_every_kind_of_node_has_a_row() -> None:
    assert set(DERIVATIVES) == {Input, Iota, Map, Contract, Reduce, Rename, Decay, Solve}


def test_a_value_used_twice_gets_both_cotangents() -> None:
    check(lambda b: b.total([b.product(b.input("x", "t"), b.input("x", "t")), b.sum(b.input("x", "t"), "t")]))


def test_an_output_that_is_an_input() -> None:
    check(lambda b: b.input("x", "t"))


def test_two_outputs_that_are_one_value() -> None:
    b = Builder()
    x = b.input("x", "t")
    results = vjp(b, {"y": x, "z": x}, {"y": b.input("d_y", "t"), "z": b.input("d_z", "t")})
    ones = torch.ones(5, dtype=torch.float64)
    program = Program("p", {"d_x": results["x"]})
    assert torch.equal(evaluate(program, {"d_y": ones, "d_z": 2 * ones}, SIZES)["d_x"], 3 * ones)
