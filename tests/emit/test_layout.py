"""Long statements are broken where a formatter would break them, and stay the same program."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mcgen.emit.text.layout import laid_out

A, B, C = (letter * 36 for letter in "abc")
RUFF = Path(sys.executable).with_name("ruff")

CASES = {
    "a call": f"y = f({A}, {B}, g={C})",
    "a call of many": f"y = f({A}, {B}, g={C}, h={A})",
    "a call in a call": f"y = torch.stack([{A}, {B}, {C}, {A}])",
    "what follows a call": f'y[:, :, first:last] = f({A}, {B}, {C})["y"]',
    "a sum": f"x = {A} + {B} + {C} * {A}",
    "a sum of long terms": f"x = {A} * {B} * {C} * {A} + {C}",
    "two factors": f"x = {A} * f({B}, {C}, {A})",
    "parentheses first": f"x = ({A} + {B}) * ({C} + {A})",
    "a tuple": f"x, y = f({A}, {B}), f({B}, {C})",
    "a tuple of names": f'NAMES = ("{A}", "{B}", "{C}", "{A}")',
    "a definition": f"def f(*, {A}, {B}, {C}, **_):\n    pass",
    "a long definition": f"def f(*, {A}, {B}, {C}, {A}1, **_):\n    pass",
    "a condition": f"if {A} and {B} and {C}[0]:\n    pass",
    "a return": f"def f():\n    return {A} @ {B} + {C} @ {A}",
    "a comprehension": f"x = {{name: f({A}, {B}) for name in {C} if {A}}}",
    "a subscript": f"x = {A} * ({B} - {C})[..., None, None] / {A}[..., None]",
    "powers": f"x = f({A} ** g({B}, {C}) ** 2.0)",
    "a call without arguments": f"x = {A}().{B}().{C}() + 1",
    "a comment behind": f"x = {A} + {B}  # {C} as they stand",
    "already broken": f"x = (\n    {A}\n    + f({A}, {B}, {C}, {A})\n)",
    "short": "x = 1",
}


@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_lines_are_short_and_the_program_is_the_same(text: str) -> None:
    made = laid_out(text)
    assert max(map(len, made.splitlines())) <= 120
    assert ast.dump(ast.parse(made)) == ast.dump(ast.parse(text))
    assert laid_out(made) == made


@pytest.mark.skipif(not RUFF.exists(), reason="ruff is not installed")
def test_a_formatter_leaves_every_case_as_it_is(tmp_path: Path) -> None:
    for i, text in enumerate(CASES.values()):
        (tmp_path / f"case{i}.py").write_text(laid_out(text))
    command = [RUFF, "format", "--isolated", "--line-length", "120", "--diff", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == ""


def test_definitions_stand_two_lines_apart() -> None:
    text = "x = 1\ndef f():\n    pass\n\n\n\n\n@a\nclass C:\n    y = 1\n# why\ndef g():\n    pass"
    expected = "x = 1\n\n\ndef f():\n    pass\n\n\n@a\nclass C:\n    y = 1\n\n\n# why\ndef g():\n    pass\n"
    assert laid_out(text) == expected


def test_long_texts_and_comments_inside_a_statement_keep_it_as_it_is() -> None:
    text = f'x = f(\n    {A},  # {B} {C} {A}\n    """{A}\n{B} {C} {A} {B}\n""",\n)\n'
    assert laid_out(text) == text
