"""`mcgen check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcgen import pipeline
from mcgen.cli import main
from mcgen.errors import UnsupportedError
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.symbolic.diagnosis import examined
from tests.symbolic.rules import learning, small, updates

GOOD = "mcgen: 1\nname: good\nmemory: {kind: matrix}\nupdate: {rule: linear}\n"
WARNED = GOOD.replace("rule: linear", 'steps: ["S = S + outer(v, k)", "M = M + outer(v, k)"]')
WRONG = GOOD + "segmnt: {}\nhaed: {}\n"


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.yaml" for name in ("good", "warned", "wrong")}
    for (_, path), text in zip(paths.items(), (GOOD, WARNED, WRONG), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def test_a_line_for_each_spec_and_what_is_wrong_on_standard_error(files: dict[str, Path]) -> None:
    done = check(*files.values())
    assert done.exit_code == 2
    good, warned, wrong = done.stdout.splitlines()
    assert good == f"ok     {files['good']}: good, matrix, M = M + outer(v, k), grm over constant segments of 256"
    assert warned.startswith(f"ok     {files['warned']}")
    assert wrong == f"wrong  {files['wrong']}: 2 errors"
    assert [line for line in done.stderr.splitlines() if not line.startswith(" ")] == [
        "warning: nothing that M depends on reads the slot `S`",
        "error: unknown field `segmnt`",
        "error: unknown field `haed`",
    ]


def test_warnings_are_no_failure(files: dict[str, Path]) -> None:
    assert check(files["good"], files["warned"]).exit_code == 0


HEAD = "mcgen: 1\nname: refused\nmemory: {kind: matrix}\n"
LEARN = 'steps: ["M = M - eta*grad"]'
REFUSED = {
    "not quadratic": (
        HEAD + f'update: {{objective: "sum(exp(p - v))", {LEARN}}}\n',
        (4, 21, 17),
        "gradient: token needs an objective quadratic in p",
        "take gradient: {chunk: b} ({chunk: 1} is the same as token here)",
    ),
    "token of an mlp": (
        HEAD.replace("matrix", "mlp") + "update: {rule: dla, gradient: token, gates: {eta: 0.01}}\n",
        (4, 31, 5),
        "gradient: token needs a matrix memory",
        "take gradient: {chunk: b} for an mlp",
    ),
    "flat activation": (
        HEAD.replace("matrix", "mlp, activation: sign(x)") + "update: {rule: dla, gates: {eta: 0.01}}\n",
        (3, 33, 7),
        "an activation whose derivative is 0 everywhere",
        "such as gelu",
    ),
    "equal weights": (HEAD + "update: {rule: linear}\naggregate: {scale: 0}\n", (5, 20, 1), "scale: 0", "kind: mean"),
    "nothing written": (
        HEAD + 'update: {steps: ["M = M"]}\n',
        (4, 18, 7),
        "nothing is ever written to M",
        "outer(v, k)",
    ),
}


@pytest.mark.parametrize(("text", "place", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_build_refuses_check_refuses_in_the_same_words(
    tmp_path: Path, text: str, place: tuple[int, int, int], message: str, hint: str
) -> None:
    path = tmp_path / "refused.yaml"
    path.write_text(text)
    done = check("--json", path)
    (report,) = json.loads(done.stdout)
    (error,) = report["errors"]
    assert (done.exit_code, report["ok"], report["name"]) == (2, False, None)
    assert (error["line"], error["column"], error["length"]) == place
    assert message in error["message"] and hint in error["hint"]
    shown = check(path)
    assert (shown.exit_code, shown.stdout) == (2, f"wrong  {path}: 1 error\n")
    assert f"{path}:{place[0]}:{place[1]}" in shown.stderr
    built = CliRunner().invoke(main, ["build", str(path), "-o", str(tmp_path / "out")])
    assert (built.exit_code, built.stderr) == (2, shown.stderr)


@pytest.mark.parametrize("text", [text for text, *_ in REFUSED.values()], ids=REFUSED)
def test_parse_only_asks_for_the_language_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "refused.yaml"
    path.write_text(text)
    assert check("--parse-only", path).exit_code == 0
    (report,) = json.loads(check("--parse-only", "--json", path).stdout)
    assert (report["ok"], report["name"], report["errors"]) == (True, "refused", [])
    path.write_text(text + "haed: 3\n")
    (report,) = json.loads(check("--parse-only", "--json", path).stdout)
    assert [error["message"] for error in report["errors"]] == ["unknown field `haed`"]


def test_what_cannot_be_lowered_comes_with_what_is_wrong_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(REFUSED["not quadratic"][0] + "haed: 3\n")
    (report,) = json.loads(check("--json", path).stdout)
    assert [(error["line"], error["column"]) for error in report["errors"]] == [(4, 21), (5, 1)]


def test_what_ruins_a_rule_is_a_warning_of_check_build_and_explain(tmp_path: Path) -> None:
    path = tmp_path / "warned.yaml"
    path.write_text(HEAD + "update: {rule: decay}\n")
    for command in (["check"], ["build", "-o", str(tmp_path / "out")], ["explain", "--stage", "spec"]):
        done = CliRunner().invoke(main, [*command, str(path)])
        assert done.exit_code == 0
        assert done.stderr.startswith("warning: `alpha` has no entry in gates")
        assert f"{path}:4:16" in done.stderr
        assert "write gates: {alpha: {fn: sigmoid, bias: 4.0}}" in done.stderr
    for command in (["check"], ["build", "-o", str(tmp_path / "out")]):
        (report,) = json.loads(CliRunner().invoke(main, [*command, "--json", str(path)]).stdout)
        found = [(one["line"], one["column"]) for one in report["warnings"] if "default tiles" not in one["message"]]
        assert found == [(4, 16)]


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(update=st.one_of(updates(), learning()), chunk=st.sampled_from([None, 1, 3]), mlp=st.booleans())
def test_check_and_build_agree_on_any_rule(update: dict[str, Any], chunk: int | None, mlp: bool) -> None:
    """Neither refuses what the other takes."""
    gradient = {"chunk": chunk} if chunk else "token"
    memory = {"kind": "mlp"} if mlp and not any("outer" in step for step in update["steps"]) else {"kind": "matrix"}
    spec = small({**update, "gradient": gradient}, memory=memory)
    refused = any(one.severity == "error" for one in examined(spec))
    try:
        pipeline.source(spec)
    except UnsupportedError:
        assert refused
    else:
        assert not refused


def test_json(files: dict[str, Path]) -> None:
    done = check("--json", *files.values())
    assert (done.exit_code, done.stderr) == (2, "")
    good, warned, wrong = json.loads(done.stdout)
    assert (good["ok"], good["name"], good["digest"]) == (True, "good", load(files["good"]).digest())
    assert [one["line"] for one in warned["warnings"]] == [4]
    assert (wrong["ok"], wrong["name"]) == (False, None)
    assert [(one["line"], one["column"], one["hint"]) for one in wrong["errors"]] == [
        (5, 1, "did you mean `segment`?"),
        (6, 1, "did you mean `head`?"),
    ]


def test_shipped_specs_go_by_name_where_no_file_has_it() -> None:
    done = check(*shipped())
    assert done.exit_code == 0
    assert done.stdout.count("ok ") == len(shipped())


def test_a_missing_file_suggests_a_shipped_spec() -> None:
    done = check("linear_grn")
    assert done.exit_code == 2
    assert "did you mean `linear_grm`?" in done.stderr


def test_what_is_wrong_with_a_rule_comes_with_what_is_wrong_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(GOOD.replace("rule: linear", 'steps: ["M = a*M*M + outer(v, k)"]') + "segment: {size: 0}\n")
    for command in (["check"], ["explain"], ["build", "-o", str(tmp_path)]):
        done = CliRunner().invoke(main, [*command, str(path)])
        assert done.exit_code == 2
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
            "error: not linear in the slots",
            "error: segment.size must be at least 1, not 0",
        ]
