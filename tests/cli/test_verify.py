"""`mcgen verify`: it holds what is right, and names what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from mcgen import pipeline
from mcgen.cli import main
from mcgen.spec import Spec, load, loads
from mcgen.tune import verification
from mcgen.tune.verification import Case, hold, imported

ROOT = Path(__file__).parents[2]
SPEC = """\
mcgen: 1
name: {name}
memory: {{kind: matrix}}
update: {{steps: ["M = {alpha}*M + outer(v, k)"]}}
segment: {{size: 40}}
head: {{key_dim: 4, value_dim: 3}}
"""


def spec(folder: Path, name: str, alpha: str = "alpha") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(name=name, alpha=alpha))
    return path


def built(folder: Path, name: str, extra: str = "") -> Path:
    """A generated module, with more text at its end."""
    path = folder / f"{name}.py"
    path.write_text(pipeline.source(load(spec(folder, name))) + extra)
    return path


WRONG = """

right = op


def op(q, *tensors, **options):
    {line}
    return y
"""


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def outside(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "mcgen", "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_a_spec_holds_at_odd_lengths_across_its_own_segments_and_short_ones(tmp_path: Path) -> None:
    done = verify(spec(tmp_path, "holds"), "--seed", "7")
    assert done.exit_code == 0
    assert "torch on cpu, seed 7" in " ".join(done.output.split())  # the heading is wrapped where the path is long
    assert all(f" {name} " in done.output for name in ("y", "dq", "dk", "dv", "du", "dalpha"))
    tokens = "1, 2, 41, 63, 64, 65, 97, 131 (40-token segments); 17, 63, 100"
    assert f"66 comparisons, 0 missed; tokens: {tokens}" in done.output


def test_a_module_is_held_as_it_lies_there(tmp_path: Path) -> None:
    """Segments are its own: what mcgen would make of its spec is another file."""
    path = built(
        tmp_path, "as_it_lies", WRONG.format(line="y = right(1.001 * q - 0.001 * q.detach(), *tensors, **options)")
    )
    done = verify(path, "--json")
    report = json.loads(done.output)
    assert done.exit_code == 1
    assert {finding["tensor"] for finding in report["findings"] if not finding["ok"]} == {"dq"}
    assert {finding["segments"] for finding in report["findings"]} == {"40-token"}


def test_a_miss_is_shown_with_its_place_and_the_seed(tmp_path: Path) -> None:
    line = "y = right(q, *tensors, **options).clone(); y[1, -1, 0, 2] += 1"
    done = verify(built(tmp_path, "misses", WRONG.format(line=line)), "--seed", "3")
    assert done.exit_code == 1
    [row] = [line.split() for line in done.output.splitlines() if line.strip().startswith("y ")]
    assert float(row[2]) > 0.01
    assert row[4:8] == ["(1,", "0,", "0,", "2)"]
    assert row[-1] == "missed"
    assert "seed 3" in done.output


SIGNS = 'objective: "sum(abs(p - v))", gradient: {{chunk: 8}}, steps: ["M = {alpha}*M - eta*grad"]'


def test_a_gradient_that_is_0_by_construction_is_named(tmp_path: Path) -> None:
    """An objective of signs has none by v at any token: a row of 0.0 and ok would say that it has."""
    path = tmp_path / "signs.yaml"
    path.write_text(SPEC.replace('steps: ["M = {alpha}*M + outer(v, k)"]', SIGNS).format(name="signs", alpha="alpha"))
    done = verify(path)
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "0 by construction" in rows["dv"] and "0 by construction" not in rows["dk"]
    report = json.loads(verify(path, "--json").stdout)
    assert {finding["tensor"] for finding in report["findings"] if finding["zero"]} == {"dv"}


def test_a_gradient_that_should_be_0_and_is_not_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "signs.yaml"
    path.write_text(SPEC.replace('steps: ["M = {alpha}*M + outer(v, k)"]', SIGNS).format(name="signs", alpha="alpha"))
    module = tmp_path / "signs.py"
    line = "y = right(q, *tensors, **options) + 1e-12 * (options['v'] - options['v'].detach())"
    module.write_text(pipeline.source(load(path)) + WRONG.format(line=line))
    wrong = [finding for finding in json.loads(verify(module, "--json").stdout)["findings"] if not finding["ok"]]
    assert {(finding["tensor"], finding["fault"]) for finding in wrong} == {("dv", "not 0 in op")}


def test_what_the_file_raises_is_a_miss(tmp_path: Path) -> None:
    path = built(tmp_path, "raises", WRONG.format(line="raise ZeroDivisionError('odd')"))
    done = verify(path, "--json")
    assert done.exit_code == 1
    findings = json.loads(done.output)["findings"]
    assert {(finding["tensor"], finding["fault"], finding["error"]) for finding in findings} == {
        ("y", "ZeroDivisionError: odd", None)
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "not a generated module: it has no SPEC, op, reference"),
        ("x = (", "cannot be imported: SyntaxError"),
        (None, "cannot be imported: FileNotFoundError"),
    ],
)
def test_what_is_no_generated_module_is_the_users_error(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "odd.py"
    if text is not None:
        path.write_text(text)
    done = verify(path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert reason in done.stderr


def test_triton_kernels_are_held_interpreted(tmp_path: Path) -> None:
    """The command turns the interpreter on itself, whatever the environment says."""
    done = outside(built(tmp_path, "kernels"), "--backend", "triton", "--json", TRITON_INTERPRET="0")
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"]) == (0, True)
    tried = {(finding["segments"], finding["length"]) for finding in report["findings"]}
    assert {("40-token", 1), ("40-token", 63), ("16-token", 50)} <= tried


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_without_triton_it_says_what_is_missing(tmp_path: Path, device: str) -> None:
    program = "import sys; sys.modules['triton'] = None; from mcgen.cli import main; main(sys.argv[1:])"
    arguments = ["verify", spec(tmp_path, "without"), "--backend", "triton", "--device", device]
    environment = {**os.environ, "TRITON_INTERPRET": str(int(device == "cpu"))}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--backend triton needs Triton, which is not installed: pip install 'triton>=3." in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_the_users_error(tmp_path: Path) -> None:
    done = outside(spec(tmp_path, "nogpu"), "--device", "cuda")
    assert done.returncode == 2
    assert "there is no CUDA device here" in done.stderr


def test_a_spec_that_cannot_be_lowered_is_the_users_error(tmp_path: Path) -> None:
    path = spec(tmp_path, "reads")
    curved = 'objective: "sum(exp(p - v))", steps: ["M = M - eta*grad"]'
    path.write_text(path.read_text().replace('steps: ["M = alpha*M + outer(v, k)"]', curved))
    done = verify(path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "needs an objective quadratic in p" in done.stderr


def loaded(folder: Path, name: str, **options: str) -> tuple[Spec, Case]:
    path = folder / f"{name}.py"
    of = loads(SPEC.format(name=name, alpha=options.get("alpha", "alpha")))
    path.write_text(pipeline.source(of))
    return of, Case(imported(path), of, 63, 1, 2)


def test_gates_are_exactly_0_and_exactly_1_at_some_tokens(tmp_path: Path) -> None:
    _, case = loaded(tmp_path, "exact")
    alpha = verification._inputs(case, 0, exact=True)["alpha"]
    assert (alpha == 0).any() and (alpha == 1).any()
    assert ((alpha[:, 1:] == 0) & (alpha[:, :-1] == 0)).any()


def test_a_rule_that_divides_by_a_gate_is_held_where_it_has_a_value(tmp_path: Path) -> None:
    _, case = loaded(tmp_path, "divides", alpha="1/alpha")
    assert (verification._inputs(case, 0, exact=False)["alpha"] != 0).all()
    assert all(finding.holds for finding in hold(case, "torch", "cpu", 0))


def test_a_gate_without_a_derivative_at_0_is_held_elsewhere(tmp_path: Path) -> None:
    _, case = loaded(tmp_path, "root", alpha="sqrt(abs(alpha))")
    assert all(finding.holds for finding in hold(case, "torch", "cpu", 0))


def compared(found: torch.Tensor, expected: torch.Tensor) -> verification.Finding:
    case = Case(None, loads(SPEC.format(name="some", alpha="alpha")), 63, 1, 2)
    return verification._compared(case, "dq", "gradient", found, expected, 1e-9, torch.float64)


def test_an_error_is_relative_to_what_is_expected() -> None:
    expected = torch.full((2, 3), 100.0, dtype=torch.float64)
    finding = compared(expected * (1 + 1e-8), expected)
    assert finding.error == pytest.approx(1e-8, rel=1e-3)
    assert not finding.holds


def test_what_is_expected_to_be_zero_may_be_off_by_rounding_alone() -> None:
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert compared(zero + 1e-17, zero).holds
    assert not compared(zero + 1e-14, zero).holds


def test_a_nan_is_a_miss_at_its_place() -> None:
    expected = torch.ones(2, 3, dtype=torch.float64)
    found = expected.clone()
    found[1, 2] = torch.nan
    finding = compared(found, expected)
    assert (finding.worst, finding.fault, finding.holds) == ((1, 2), "not finite", False)


def test_another_shape_or_type_is_a_miss() -> None:
    expected = torch.ones(2, 3, dtype=torch.float64)
    assert "float32 (2, 3) in place of torch.float64 (2, 3)" in compared(expected.float(), expected).fault
    assert not compared(expected[:1], expected).holds
