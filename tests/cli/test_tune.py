"""`mcgen tune`: what it finds is what the next build writes into the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcgen.cli import main
from mcgen.spec import load
from mcgen.tune.verification import imported

SPEC = """\
mcgen: 1
name: tuned
memory: {kind: matrix}
update: {rule: linear}
aggregate: {kind: none}
head: {key_dim: 24, value_dim: 24}
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_a_build_carries_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tuned.yaml"
    path.write_text(SPEC)
    done = run("tune", path, "--offline", "--target", "h100", "--processes", 1, "--json")
    assert done.exit_code == 0, done.output
    found = {(row["kernel"], row["type"]): row["configuration"] for row in json.loads(done.stdout)}
    assert run("build", path, "-o", tmp_path).exit_code == 0
    written = imported(tmp_path / f"{load(path).name}.py").CONFIGURATIONS
    assert set(written) == {"sm90"}
    for (kernel, kind), chosen in found.items():
        assert written["sm90"][kind][kernel][0] == chosen["rows"]
        assert written["sm90"][kind][kernel][3] == chosen["warps"]


def test_what_is_wanted_has_to_be_said() -> None:
    done = run("tune", "--offline")
    assert done.exit_code == 2 and "SPEC" in done.output


def test_timing_needs_what_is_not_there() -> None:
    done = run("tune", "linear_grm")
    assert done.exit_code != 0 and "--offline" in done.output
