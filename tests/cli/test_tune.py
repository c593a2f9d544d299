"""`mcgen tune`: what it finds is what modules take, and what a tuned build writes into them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcgen.cli import main
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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "tuned.yaml").write_text(SPEC)
    return tmp_path / "tuned.yaml"


def test_a_module_finds_what_was_found_and_a_tuned_build_carries_it(path: Path, cache: Path, tmp_path: Path) -> None:
    done = run("tune", path, "--offline", "--target", "h100", "--processes", 1, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    for row in json.loads(done.stdout):
        chosen = row["configuration"]
        found.setdefault(row["type"], {})[row["kernel"]] = chosen["rows"], chosen["columns"], chosen["warps"], 1
    assert run("build", path, "-o", tmp_path).exit_code == 0
    module = imported(tmp_path / "tuned.py")
    assert module.CONFIGURATIONS == {}
    assert module._tuned("sm90") == found
    assert run("build", path, "--tuned", "-o", tmp_path).exit_code == 0
    written = imported(tmp_path / "tuned.py").CONFIGURATIONS
    assert written == {"sm90": found}


def test_it_says_how_far_it_is_from_the_start_and_at_last_where_it_keeps_what(path: Path, cache: Path) -> None:
    done = run("tune", path, "--offline", "--target", "h100", "--processes", 1)
    assert done.exit_code == 0, done.output
    said = done.stderr.splitlines()
    assert said[:3] == ["building: 0 of 1, 0:00:00", said[1], "compiling: 0 of 12, 0:00:00"]
    assert said[1].startswith("building: 1 of 1, ") and said[-1].startswith("compiling: 12 of 12, ")
    assert done.stdout.splitlines()[-1] == (f"kept in {cache / 'configurations'}, where modules of these specs find it")


def test_help_says_where_it_keeps_what() -> None:
    text = " ".join(run("tune", "--help").output.split())
    assert all(part in text for part in ("$MCGEN_CACHE_DIR", "~/.cache/mcgen", "configurations", "mcgen build --tuned"))


def test_what_is_no_table_is_named_before_anything_is_compiled(path: Path, cache: Path) -> None:
    (cache / "configurations").mkdir(parents=True)
    (cache / "configurations" / "sm90.json").write_text("{")
    done = run("tune", path, "--offline", "--target", "h100")
    assert done.exit_code == 2 and "sm90.json is no table of launch configurations" in done.stderr
    assert "compiling" not in done.stderr


def test_without_triton_it_says_what_is_missing(path: Path) -> None:
    program = "import sys; sys.modules['triton'] = None; from mcgen.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "tune", path, "--offline"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: mcgen tune needs Triton, which is not installed: pip install 'triton>=3.6'\n"


def test_an_old_triton_will_not_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.5.1")
    done = run("tune", path, "--offline")
    assert done.exit_code == 2
    assert "needs Triton 3.6 or later, and 3.5.1 is installed: pip install 'triton>=3.6'" in done.stderr


def test_what_is_wanted_has_to_be_said() -> None:
    done = run("tune", "--offline")
    assert done.exit_code == 2 and "SPEC" in done.output


def test_timing_needs_what_is_not_there() -> None:
    done = run("tune", "linear_grm")
    assert done.exit_code != 0 and "--offline" in done.output
