"""`mcgen new`: its output passes `check`, and nothing is ever overwritten."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from mcgen.cli import main
from mcgen.cli.new import scaffold
from mcgen.spec import PRESETS, Chunk, GateMap, PerHead, load, loads
from mcgen.spec.model import SpecFile


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


def fields(model: type[BaseModel]) -> Iterator[str]:
    """Every field of a model and of those inside it, as it is written in a file."""
    for name, field in model.model_fields.items():
        yield field.alias or name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_is_in_it(preset: str) -> None:
    text = scaffold("mine", preset)
    names = {name for part in (SpecFile, Chunk, GateMap, PerHead) for name in fields(part)}
    assert {"gradient", "objective", "from", "per_head", "top_k", "norm", "chunk"} <= names
    assert not [name for name in names if not re.search(rf"\b{name}:[ \n]", text)]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_stands_in_its_comments_is_a_spec_too(tmp_path: Path, preset: str) -> None:
    """A gate's other forms, the other memory, and ssc, each in the place of what is there."""
    text = scaffold("mine", preset)
    forms = re.findall(r"^  #   alpha: (\{.*?\}|[\d.]+)", text, re.MULTILINE)
    assert len(forms) == 4
    gated = [re.sub(r"^    (\w+): .*", rf"    \1: {form}", text, flags=re.MULTILINE) for form in forms]
    others = [
        text.replace("{kind: grm, connector", re.search(r"\{(kind: ssc, top_k: 2)\}", text).expand(r"{\1, connector"))
    ]
    if deep := re.search(r"^# (memory: .*)", text, re.MULTILINE):
        learning = 'objective: "sum((p - v)**2)/2"\n  steps: ["M = M - 0.01*grad"]'
        rule = re.sub(r"  gates:\n(    .*\n)*|  gates: .*\n", "", text.replace(f"rule: {preset}", learning))
        others.append(
            rule.replace("memory: {kind: matrix}", deep[1]).replace("gradient: token", "gradient: {chunk: 16}")
        )
    for number, other in enumerate([*gated, *others]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(other)
        assert CliRunner().invoke(main, ["check", str(path)]).exit_code == 0, other


def test_what_it_writes_has_no_warnings(tmp_path: Path) -> None:
    for preset in PRESETS:
        assert new(tmp_path, f"a_{preset}", "--from", preset).stderr == ""
        assert CliRunner().invoke(main, ["check", str(tmp_path / f"a_{preset}.yaml")]).stderr == ""


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
