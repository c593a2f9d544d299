"""`mcgen check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcgen.cli import main
from mcgen.spec import load
from mcgen.spec.shipped import shipped

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
