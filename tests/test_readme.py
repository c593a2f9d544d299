"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mcgen.cli import main
from mcgen.spec import loads
from mcgen.symbolic.diagnosis import examined

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SLOW = ("--backend triton", "mcgen tune")
"""What the tests of the commands try on smaller things."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("mcgen ")]
    return [shlex.split(line, comments=True)[1:] for line in lines if not any(slow in line for slow in SLOW)]


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(commands()) > 8
    for command in commands():
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, (command, done.output)


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")]
    assert targets and all(f"\n{target}:" in makefile for target in targets)


def test_specs_are_specs() -> None:
    whole, part = blocks("yaml")
    assert loads(whole).name == "my_memory"
    spec = loads(f"mcgen: 1\nname: part\nmemory: {{kind: matrix}}\n{part}")
    assert spec.tensor_gates == ("alpha", "mu")


def test_the_lines_of_each_memory_are_a_spec_without_warnings() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and "`update:" in line]
    assert len(rows) > 8
    for row in rows:
        lines = "\n".join(["memory: {kind: matrix}"] * ("memory:" not in row) + re.findall("`(.*?)`", row))
        assert examined(loads(f"mcgen: 1\nname: listed\n{lines}")) == (), row


def test_the_python_runs() -> None:
    program = "\n".join(blocks("python"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_folder_is_told_of() -> None:
    folders = {path.name for path in (ROOT / "mcgen").iterdir() if (path / "__init__.py").exists()}
    told = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert folders == set(re.findall(r"^\| `mcgen/(\w+)`", told, re.MULTILINE))


def test_every_file_that_the_architecture_names_is_there() -> None:
    """A path with a folder is one from the repository or from the package, whichever has it."""
    told = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+[\w.]+\.py)`", told)
    assert named
    assert [path for path in named if not any((base / path).exists() for base in (ROOT, ROOT / "mcgen"))] == []
