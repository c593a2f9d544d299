"""`mcgen new`: its output passes `check`, and nothing is ever overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcgen.cli import main
from mcgen.cli.new import scaffold
from mcgen.spec import PRESETS, load, loads


def new(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["new", *arguments, "-o", str(folder)])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_a_spec_that_holds(tmp_path: Path, preset: str) -> None:
    assert new(tmp_path, "mine", "--from", preset).exit_code == 0
    made = load(tmp_path / "mine.yaml")
    assert (made.name, made.update.rule, made.memory.kind) == ("mine", preset, PRESETS[preset].memory)
    assert not made.warnings
    assert CliRunner().invoke(main, ["check", str(tmp_path / "mine.yaml")]).exit_code == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_what_it_writes_out_are_the_defaults_and_every_gate(preset: str) -> None:
    """Without sections that have defaults it is the same spec, so the comments tell the truth."""
    text = scaffold("mine", preset)
    full, short = loads(text), loads(text[: text.index("segment:")])
    assert full.digest() == short.digest()
    assert all(f"    {gate}: " in text for gate in full.tensor_gates)


@pytest.mark.parametrize("preset", PRESETS)
def test_it_says_which_biases_are_sane(preset: str) -> None:
    text = scaffold("mine", preset)
    assert "sigmoid(4) = 0.98 is half forgotten after 38 tokens" in text
    assert "A step size, eta" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_the_lines_in_its_comments_are_the_rule(preset: str) -> None:
    text = scaffold("mine", preset)
    lines = [line[2:] for line in text.splitlines() if line.startswith("#   ")]
    written = text.replace(f"  rule: {preset}\n", "\n".join(lines) + "\n")
    assert loads(written).steps == loads(text).steps
    assert loads(written).objective_expression == loads(text).objective_expression


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    done = new(tmp_path, "mine")
    assert done.exit_code == 2
    assert "exists already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize("name", ["lambda", "torch", "a-b", "../a", "", "é", "__init__"])
def test_a_name_no_spec_can_have_writes_nothing(tmp_path: Path, name: str) -> None:
    assert new(tmp_path, name).exit_code == 2
    assert not list(tmp_path.iterdir())
