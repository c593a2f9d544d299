"""Names of generated files: of what a value is, one a value in a whole file, and tables of places read once."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch

from mcgen.emit.module.file import module_source
from mcgen.emit.text.naming import named
from mcgen.emit.text.unused import without_unused
from mcgen.emit.torch.path import TorchPath, torch_source
from mcgen.ir.program import Builder, Label, Program, name_of
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.meaning import meaning
from tests.emit.fragments import gradients, inputs, run, spec_of

OF_NOTHING = re.compile(r"[xd]_?[tsmjnkhv]*\d*|(sum|max)_[tsmjnkhv]+\d*|.*_part(_\d+)?")
"""Names that say of a value how it lies, or what it is a part of, and not what it is."""
GRADIENTS = re.compile(r"d_[quvk]|d_tv")  # of inputs of one letter
MOST = 2
"""Values of a file that are called by what they are a part of: sums that a rewrite takes apart in a softmax."""


def printed(text: str) -> Iterator[ast.FunctionDef]:
    """The functions that tile programs are printed as."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.args.kwarg and node.args.kwarg.arg == "x":
            yield node


def assigned(function: ast.FunctionDef) -> set[str]:
    """What a printed function makes: values of its own, and those it gives."""
    stored = [node for node in ast.walk(function) if isinstance(getattr(node, "ctx", None), ast.Store)]
    names = {node.id if isinstance(node, ast.Name) else node.attr for node in stored if not isinstance(node, ast.Tuple)}
    return names - {"x", "out"}


@pytest.mark.parametrize("name", shipped())
def test_values_are_called_by_what_they_are(name: str) -> None:
    functions = list(printed(without_unused(torch_source(meaning(load(shipped()[name]))))))
    names = set().union(*map(assigned, functions))
    assert {"_writes", "_carry", "_read_online", "_pulls", "_carry_vjp", "_inputs_vjp"} <= {f.name for f in functions}
    unsaid = {one for one in names if OF_NOTHING.fullmatch(one) and not GRADIENTS.fullmatch(one)}
    assert len(unsaid) <= MOST, unsaid
    assert all("_part" in one for one in unsaid), unsaid


def test_a_deep_memory_is_read_by_its_names() -> None:
    """Pre-activations, activations, the norm, error rows, and the cotangents of all: with their equations."""
    text = torch_source(meaning(load(shipped()["titans_grm"])))
    lines = {
        "hidden_1": "x_2(k) = gelu(z_1(k))",
        "q_hidden_1": "x_2(q) = gelu(z_1(q))",
        "cached_hidden_1": "x_2(q, n) = gelu(z_1(q, n))",
        "norm_scale": "sqrt(var(z_2(k)) + 1e-5)",
        "error": "e = dJ/dp, p = M(k)",
        "error_2": "e_2 = dJ/dz_2(k), e through LN",
        "error_1": "e_1 = gelu'(z_1(k)) W_2ᵀ e_2",
        "d_hidden_1": "dL/dx_2(k)",
        "C_M_tj": "dM_t/dG_j",
        "alpha_run_tj": "product of alpha_i over j < i <= t",
    }
    for name, equation in lines.items():
        assert re.search(rf"^    (out\.)?{name} = .*  # .*{re.escape(equation)}$", text, re.MULTILINE), name


# -- one name, one value ----------------------------------------------------------------------------------------------

TITANS = {"rule": "titans", "gradient": {"chunk": 5}}
DEEP = {"kind": "mlp", "expansion": 2, "norm": "layernorm"}
MOMENTUM = {"steps": ["S = beta*S - eta*grad", "M = alpha*M + lam*S"], "objective": "sum((p - v)**2)/2"}
CASES: Mapping[str, dict[str, Any]] = {
    "a fast trace": {"update": {"steps": ["S = beta*S + outer(v, k[-1])", "M = alpha*M + S - eta*outer(v[-2], k)"]}},
    "a rule that reads itself": {"update": MOMENTUM},
    "an mlp": {"update": TITANS, "memory": DEEP},
    "an mlp of three layers": {"update": TITANS, "memory": {**DEEP, "layers": 3, "residual": False}},
    "a soup": {"update": TITANS, "memory": DEEP, "aggregate": {"kind": "soup"}},
    "chosen segments": {"update": TITANS, "memory": DEEP, "aggregate": {"kind": "ssc", "top_k": 1}},
    "a sum": {"update": {"rule": "delta"}, "aggregate": {"kind": "residual"}},
}


class Recorder:
    """What printed functions make in one pass after another, panel by panel: each call's values by name."""

    def __init__(self, module: SimpleNamespace) -> None:
        self.code = {f.__code__ for f in vars(module).values() if _is_printed(f)}
        self.panels: list[list[tuple[str, dict[str, torch.Tensor]]]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "return" or frame.f_code not in self.code:
            return
        if frame.f_code.co_name == "_writes":  # a panel begins
            self.panels.append([])
        made = {**frame.f_locals, **vars(frame.f_locals["out"])}
        values = {name: value.detach().clone() for name, value in made.items() if isinstance(value, torch.Tensor)}
        self.panels[-1].append((frame.f_code.co_name, values))


def _is_printed(value: object) -> bool:
    code = getattr(value, "__code__", None)
    return code is not None and code.co_varnames[:1] == ("x",) and code.co_argcount == 0 and bool(code.co_flags & 8)


def recorded(call: Callable[[], object], module: SimpleNamespace) -> list[list[tuple[str, dict[str, torch.Tensor]]]]:
    recorder = Recorder(module)
    before = sys.getprofile()
    sys.setprofile(recorder)
    try:
        call()
    finally:
        sys.setprofile(before)
    return recorder.panels


def is_share(function: str, name: str) -> bool:
    """Whether a value is what of a gradient goes through one function: a walk adds what goes through others."""
    return function.endswith("_vjp") and function not in ("_carry_vjp", "_inputs_vjp") and name.startswith("d_")


@pytest.mark.parametrize("case", CASES)
def test_one_name_is_one_value_in_the_whole_file(case: str) -> None:
    """Whichever function makes it, forward and backward: values of one panel, a chunk of one segment."""
    sections = {"aggregate": {"kind": "grm"}, "segment": {"size": 5}, "head": {"key_dim": 3, "value_dim": 3}}
    parsed = spec_of(CASES[case]["update"], **{**sections, **{n: s for n, s in CASES[case].items() if n != "update"}})
    module = run(module_source(meaning(parsed)))
    vars(module)["op"].__globals__.update(PANEL_ROWS=1, TOKENS=5)
    arguments = inputs(parsed, 20, B=1)
    y = None

    def forward() -> None:
        nonlocal y
        y = module.op(**arguments, backend="torch")

    there = recorded(forward, module)
    back = recorded(lambda: gradients(y, arguments), module)
    assert len(there) == len(back) == 4
    compared = set()
    for calls in (one + other for one, other in zip(there, reversed(back), strict=True)):
        known: dict[str, tuple[str, torch.Tensor]] = {}
        for function, values in calls:
            for name, value in values.items():
                if name.startswith("n_") or is_share(function, name):
                    continue
                first, other = known.setdefault(name, (function, value))
                if first != function:
                    compared.add(name)
                    assert torch.allclose(value.squeeze(), other.squeeze(), rtol=1e-9, atol=1e-12), (
                        name,
                        function,
                        first,
                    )
    assert len(compared) > 3


# -- labels -----------------------------------------------------------------------------------------------------------


def two(first: str, second: str) -> list[Program]:
    """Two programs: x² and, of another builder, x³, with the same label or another."""
    found = []
    for name, power in ((first, 2), (second, 3)):
        b = Builder()
        value = b.call(b.product(*[b.input("x", "t")] * power), name)
        found.append(Program(name, {"y": b.sum(b.product(value, b.input("z", "t")), "t")}))
    return found


def labels(program: Program) -> set[str]:
    return {node.label.name for node in program.nodes if node.label}


def test_programs_share_the_names_that_their_makers_gave() -> None:
    first, second = named(two("cube", "cube"), set())
    assert "cube" in labels(first) & labels(second)


def test_a_name_given_twice_in_one_program_gets_a_number() -> None:
    b = Builder()
    x = b.input("x", "t")
    values = [b.call(b.product(*[x] * power), "power") for power in (2, 3)]
    (program,) = named([Program("both", {"y": b.product(*values)})], {"power_2"})
    assert labels(program) == {"power", "power_3", "y"}


def test_inputs_and_outputs_keep_their_names() -> None:
    b = Builder()
    x = b.input("power", "t")
    value = b.call(b.product(x, x), "power")
    (program,) = named([Program("one", {"y": b.product(value, x)})], set())
    assert program.inputs.keys() == {"power"}
    assert labels(program) == {"power_2", "y"}


def test_the_name_of_a_part_gives_way() -> None:
    b = Builder()
    x = b.input("x", "t")
    square = b.call(b.product(x, x), "of_something", part=True)
    assert b.call(square, "square") is square
    assert name_of(b.call(square, "late")) == Label("square")


# -- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["swla_ssc", "titans_chunk_grm", "titans_soup"])
def test_rows_of_tables_are_read_in_one_place(name: str) -> None:
    """Where blocks, steps, chains, segments and spans lie is known to the functions that give a row by its columns."""
    text = module_source(meaning(load(shipped()[name])))
    functions = {node.name: ast.unparse(node) for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    kernels = {name: text for name, text in functions.items() if name.endswith("_kernel")}
    table = re.compile(r"tl\.load\((blocks|steps|chains|segments|spans) \+")
    assert not [name for name, text in kernels.items() if table.search(text)]
    assert any("_block(blocks, i_n)" in text or "_chunk_step(steps, i_n)" in text for text in kernels.values())


@pytest.mark.parametrize("name", ["swla_ssc", "titans_grm"])
def test_kernels_follow_the_same_words(name: str) -> None:
    found = meaning(load(shipped()[name]))
    text = module_source(found)
    tiles = set(re.findall(r"\bb_(\w+) = ", text))
    assert not [tile for tile in tiles if re.fullmatch(r"x_[tsmjnkhv]+\d*", tile)]
    whole = {node.label.name for node in TorchPath(found).whole.nodes if node.label and not node.label.part}
    assert len(tiles & whole) > 10
