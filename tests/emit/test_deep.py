"""Deep memories on the torch path: values and all gradients against the reference in float64."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from mcgen.errors import UnsupportedError
from mcgen.pipeline import source
from mcgen.plan.layered import GROUP
from mcgen.spec import loads
from mcgen.tune.verification import Case, hold

TITANS = {"rule": "titans", "gradient": {"chunk": 7}}
DLA = {"rule": "dla", "gradient": {"chunk": 4}}
HUBER = {
    "objective": "sum(sqrt(1 + (p - v)**2))",
    "steps": ["S = beta*S - eta*grad", "M = alpha*M + S"],
    "gradient": {"chunk": 16},
}
TWO = {
    "objective": "sum((p - v)**2)",
    "steps": ["M = alpha*M - eta*grad", "M = M - lam*grad"],
    "gradient": {"chunk": 5},
}
LONG = {"rule": "titans", "gradient": {"chunk": 100}}

CASES = {
    "none": ({}, TITANS, {"kind": "none"}, {"init": "checkpoint"}),
    "residual": ({"residual": False, "activation": "tanh"}, DLA, {"kind": "residual"}, {"init": "checkpoint"}),
    "mean": ({"activation": "softplus"}, DLA, {"kind": "mean"}, {"mode": "logarithmic"}),
    "grm": ({"norm": "layernorm"}, TITANS, {"kind": "grm", "pool": "sum"}, {}),
    "three layers": ({"layers": 3, "activation": "silu"}, TITANS, {"kind": "grm", "connector": "q"}, {}),
    "soup": ({"norm": "layernorm"}, TITANS, {"kind": "soup"}, {}),
    "soup in a chain": ({"activation": "x*tanh(x)"}, TITANS, {"kind": "soup"}, {"init": "checkpoint"}),
    "ssc": ({}, HUBER, {"kind": "ssc", "top_k": 2}, {}),
    "two gradients": ({}, TWO, {"kind": "grm"}, {}),
    "gradient of a segment": ({}, LONG, {"kind": "grm"}, {"size": 150}),
    "soup, gradient of a segment": ({}, LONG, {"kind": "soup"}, {"size": 150}),
}


def _spec(name: str, memory: dict, update: dict, aggregate: dict, segment: dict, head: tuple[int, int]) -> str:
    size = {} if segment.get("mode") == "logarithmic" else {"size": 16}
    memory = {"kind": "mlp", "layers": 2, "expansion": 2, **memory}
    return yaml.safe_dump(
        {
            "mcgen": 1,
            "name": name,
            "memory": memory,
            "update": update,
            "segment": {**size, **segment},
            "aggregate": aggregate,
            "head": {"key_dim": head[0], "value_dim": head[1]},
        }
    )


def _module(folder: Path, text: str):
    spec = loads(text)
    path = folder / f"{spec.name}.py"
    path.write_text(source(spec))
    found = importlib.util.spec_from_file_location(spec.name, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return spec, module


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(tmp_path: Path, name: str) -> None:
    memory, update, aggregate, segment = CASES[name]
    head = (6, 9) if memory.get("residual") is False else (6, 6)
    spec, module = _module(tmp_path, _spec(f"deep_{list(CASES).index(name)}", memory, update, aggregate, segment, head))
    length = 310 if "size" in segment else 53
    findings = list(hold(Case(module, spec, batch=1, length=length, heads=2), "torch", "cpu", seed=3))
    assert {f.tensor for f in findings} >= {"y", "dk", "dtheta[0]", "dtheta[1]"}
    assert [f for f in findings if not f.holds] == []


def test_soup_differs_from_grm(tmp_path: Path) -> None:
    ys = []
    for kind in ("soup", "grm"):
        _, module = _module(tmp_path, _spec(f"deep_{kind}", {}, TITANS, {"kind": kind}, {}, (6, 6)))
        torch.manual_seed(0)
        q, k, v, u = (torch.randn(1, 40, 1, 6, dtype=torch.float64) for _ in range(4))
        gates = {name: torch.full((1, 40, 1), 0.5, dtype=torch.float64) for name in ("alpha", "beta")}
        gates["eta"] = torch.full((1, 40, 1), 0.02, dtype=torch.float64)
        theta = [torch.randn(1, 12, 6, dtype=torch.float64), torch.randn(1, 6, 12, dtype=torch.float64)]
        ys.append(module.op(q, k, v, u, theta=theta, **gates))
    assert torch.equal(ys[0][:, :16], ys[1][:, :16])  # the first segment reads one memory
    assert not torch.allclose(ys[0][:, 16:], ys[1][:, 16:], rtol=1e-3)


def test_gradients_token_by_token_are_refused() -> None:
    text = _spec("deep_token", {}, {**TITANS, "gradient": "token"}, {"kind": "grm"}, {}, (6, 6))
    with pytest.raises(UnsupportedError, match=r"\{chunk: b\}.*\{chunk: 1\}"):
        source(loads(text))


@pytest.mark.parametrize("heads", [1, 4, 64])
def test_the_backward_pass_holds_few_states(tmp_path: Path, heads: int) -> None:
    """Those before a segment's panels and before one panel's chunks: a small multiple of √(chunks of the segment)."""
    length = 1 << 20
    text = _spec(f"deep_states_{heads}", {}, {**LONG, "gradient": {"chunk": 64}}, {"kind": "none"}, {}, (6, 6))
    _, module = _module(tmp_path, text.replace("size: 16", f"size: {length}"))
    (run,) = module._panels(length, heads)
    chunks = [(panel.last - panel.first) // panel.chunk for panel in run]
    assert sum(chunks) * 64 == length
    assert len(run) + max(chunks) < 4 * sum(chunks) ** 0.5


@pytest.mark.parametrize("segment", [{}, {"init": "checkpoint"}], ids=["side by side", "in a chain"])
def test_the_triton_path_of_long_chunks_holds_few_states(tmp_path: Path, segment: dict) -> None:
    """Those before a chain's groups of spans and before one group's spans: a small multiple of √(spans)."""
    length, chunk = 1 << 20, 128
    text = _spec("deep_spans", {}, {**LONG, "gradient": {"chunk": chunk}}, {"kind": "none"}, segment, (6, 6))
    importlib.import_module("triton")  # a file defines its kernels, and what launches them, where Triton is imported
    _, module = _module(tmp_path, text.replace("size: 16", "size: 524288"))
    spans = module._all_spans(length, (), torch.device("cpu"))
    covered = sum(int((table[:, 1] - table[:, 0]).sum()) for _, _, table in spans)
    assert covered == length
    groups = module._groups(spans, GROUP)
    assert [span for group in groups for span in group] == spans
    assert len(groups) + max(map(len, groups)) <= 2 * len(spans) ** 0.5 + GROUP


def test_no_name_of_a_file_is_given_twice() -> None:
    """Both backends lie in one file: a constant or function of one must not stand for one of the other."""
    text = source(loads(_spec("deep_names", {}, LONG, {"kind": "ssc", "top_k": 2}, {"size": 150}, (6, 6))))
    body = ast.parse(text).body
    assigned = [target for s in body if isinstance(s, ast.Assign) for target in s.targets]
    given = [target.id for target in assigned if isinstance(target, ast.Name)]
    given += [s.name for s in body if isinstance(s, ast.FunctionDef | ast.ClassDef)]
    assert {one for one in given if given.count(one) > 1} <= {"triton", "tl"}
