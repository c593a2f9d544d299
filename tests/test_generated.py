"""Generated files: those in `generated/` are what the shipped specs give, and any of them is a file one can ship."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from mcgen import pipeline
from mcgen.spec import load, loads
from mcgen.spec.shipped import shipped
from mcgen.tune.verification import Case, hold, imported

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "generated"
RUFF = Path(sys.executable).with_name("ruff")


def python(program: str, *arguments: str, **environment: str) -> str:
    """What a program prints, run in an interpreter of its own in the project's folder."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_file_is_what_its_spec_gives(name: str) -> None:
    """`mcgen build mcgen/specs/*.yaml` makes them anew."""
    path = GENERATED / f"{name}.py"
    assert path.exists(), f"build it: mcgen build {name}"
    assert path.read_bytes() == pipeline.source(load(shipped()[name])).encode("utf-8"), (
        f"build it again: mcgen build {name}"
    )


def test_nothing_else_lies_beside_them() -> None:
    assert {path.stem for path in GENERATED.glob("*.py")} == {"__init__", *shipped()}


def test_a_shipped_file_knows_its_spec() -> None:
    from generated import swla_ssc as m

    spec = load(shipped()["swla_ssc"])
    assert spec.to_dict() == m.SPEC
    assert spec.digest() == m.SPEC_HASH
    assert m.Layer is m.SwlaSsc
    assert {"MCGEN_VERSION", "op", "reference", "UnsupportedError"} <= vars(m).keys()


@pytest.mark.parametrize("name", shipped())
def test_no_name_of_a_file_is_given_twice(name: str) -> None:
    """Both backends lie in one file: a constant of one must not stand for a constant of the other."""
    given = []
    for statement in ast.parse((GENERATED / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            given.append(statement.name)
        elif isinstance(statement, ast.Assign):
            names = [node for target in statement.targets for node in ast.walk(target)]
            given += [node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    assert {one for one in given if given.count(one) > 1} <= {"triton", "tl"}


BUILD = """\
import sys
from mcgen import pipeline
from mcgen.spec import load
for path in sys.argv[1:]:
    sys.stdout.write(pipeline.source(load(path)))
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_file_is_the_same_whatever_the_order_of_hashes(seed: str) -> None:
    names = ["fastslow_grm", "swla_ssc"]
    built = python(BUILD, *[str(shipped()[name]) for name in names], PYTHONHASHSEED=seed, PYTHONIOENCODING="utf-8")
    assert built == "".join((GENERATED / f"{name}.py").read_text(encoding="utf-8") for name in names)


BARE = """\
import sys
for name in ("mcgen", "jinja2", "pydantic", "click", "rich", "yaml", "platformdirs"):
    sys.modules[name] = None
import torch
from generated import decay_grm_log as m
x = {name: torch.randn(1, 9, 2, 64, requires_grad=True) for name in "qkvu"}
alpha = torch.rand(1, 9, 2)
y = m.op(**x, alpha=alpha)
torch.testing.assert_close(y, m.reference(**x, alpha=alpha))
y.sum().backward()
assert m.Layer(32, 2)(torch.randn(1, 9, 32)).shape == (1, 9, 32)
print("done")
"""


def test_it_runs_where_mcgen_is_not_installed() -> None:
    assert python(BARE) == "done\n"


IMPORT = """\
import time
import torch.utils.flop_counter  # where a file says how its operators are counted
start = time.process_time()
import generated.fastslow_grm
print(time.process_time() - start)
"""


def test_importing_one_is_quick_beyond_torch() -> None:
    assert any(float(python(IMPORT)) < 0.2 for _ in range(3))


def test_two_imports_of_one_file_coexist(tmp_path: Path) -> None:
    first, second = (imported(GENERATED / "linear_grm.py") for _ in range(2))
    q, k, v, u = (torch.randn(1, 3, 1, 64) for _ in range(4))
    assert torch.equal(first.op(q, k, v, u), second.op(q, k, v, u))


SPEC = {
    "mcgen": 1,
    "name": "odd",
    "memory": {"kind": "matrix"},
    "update": {"steps": ["M = alpha*M + outer(v, k)"]},
    "head": {"key_dim": 2, "value_dim": 3},
}

DOCS = [
    "",
    'ends with a quote"',
    "ends with a backslash\\",
    '"""\nimport os\nos.abort()\n"""',
    '\'\'\'\n""" \'\\"""\' \\N{DASH} \\x41 {braces} {{ jinja }} {% for x in y %} {# no #} %s',
    "def f():\n\n\n\nclass C: # type: ignore # noqa # fmt: off\n# -*- coding: ascii -*-\n\t\x0c\x1b[2J\x00?",
    "漢字 é e\u0301 \u202e \u200b \U0001f600 \u2028 " * 9,
    '"' * 130,
    "\\" * 130,
    "x" * 500,
]


LONG = "forgetting_factor_of_the_slow_memory"
RULES = [
    {
        "update": {
            "steps": [f"M = {LONG}*M + min({LONG}, {LONG}_2)**2.5*outer(v[-2], k) - exp({LONG}_3)*outer(v, k[-1])"]
        }
    },
    {"update": {"steps": ["M = a*M + S", "S = b*S + c*outer(v, k)"]}, "aggregate": {"kind": "mean"}},
    {"update": {"rule": "swla"}, "aggregate": {"kind": "none"}, "segment": {"init": "independent"}},
    {
        "update": {"rule": "decay"},
        "aggregate": {"kind": "ssc", "top_k": 1, "connector": "q", "pool": "sum", "scale": 0.5},
    },
    {"update": {"rule": "linear"}, "segment": {"mode": "logarithmic", "init": "checkpoint"}},
]
CHANGES = {"docs": [{"doc": doc} for doc in DOCS], "rules": RULES}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Files made from odd docs, and from odd rules."""
    return {kind: list(files(tmp_path_factory.mktemp(kind), changes)) for kind, changes in CHANGES.items()}


def files(folder: Path, changes: list[dict]) -> Iterator[Path]:
    for number, change in enumerate(changes):
        path = folder / f"odd{number}.py"
        path.write_text(pipeline.source(loads(yaml.safe_dump(SPEC | change))), encoding="utf-8")
        yield path


@pytest.mark.parametrize("number", range(len(DOCS)))
def test_a_doc_is_only_a_doc(odd: dict[str, list[Path]], number: int) -> None:
    made, doc = imported(odd["docs"][number]), DOCS[number]
    assert loads(yaml.safe_dump(SPEC | {"doc": doc})).to_dict() == made.SPEC
    assert made.SPEC["doc"] == doc
    assert "".join(doc.split()) in "".join(made.__doc__.split())


@pytest.mark.parametrize("number", range(len(RULES)))
def test_any_rule_gives_a_module(odd: dict[str, list[Path]], number: int) -> None:
    made = imported(odd["rules"][number])
    spec = loads(yaml.safe_dump(made.SPEC))
    assert all(finding.holds for finding in hold(Case(made, spec, 9, 1, 2), "torch", "cpu", 0))


@pytest.mark.skipif(not RUFF.exists(), reason="ruff is not installed")
@pytest.mark.parametrize("command", [["check"], ["format", "--diff"]], ids=["check", "format"])
@pytest.mark.parametrize("kind", ["docs", "rules"])
def test_odd_files_are_clean_and_formatted(odd: dict[str, list[Path]], kind: str, command: list[str]) -> None:
    """Those in `generated/` are linted with the project's own code."""
    arguments = [RUFF, *command, "--quiet", "--config", ROOT / "pyproject.toml", odd[kind][0].parent]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.stdout == ""


@pytest.mark.parametrize("name", shipped())
def test_the_header_says_what_the_file_computes(name: str) -> None:
    spec = load(shipped()[name])
    header = ast.get_docstring(ast.parse((GENERATED / f"{name}.py").read_text(encoding="utf-8")))
    words = " ".join(header.split())
    assert words.startswith(f"{name}: {' '.join(spec.doc.split())}")
    assert all(part in header for part in ("memory ", "update ", "segments ", "read-out ", "shapes "))
    assert all(f"{step.slot} = " in header for step in spec.steps)
