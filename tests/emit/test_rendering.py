"""Templates are compiled once: what Jinja made of them lies where Python keeps compiled modules."""

from __future__ import annotations

import sys
from pathlib import Path

import jinja2
import pytest

from mcgen.emit.text.rendering import SYNTAX, CompiledTemplates


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return tmp_path


def rendered(template: str, compiles: bool = True) -> str:
    """A template's text, in a process of its own as it were; where it may not compile, from what is kept."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"a/b.py.jinja": template}), bytecode_cache=CompiledTemplates(), **SYNTAX
    )
    if not compiles:
        environment.compile = None
    return environment.get_template("a/b.py.jinja").render(x=1)


def test_what_was_compiled_is_taken_from_where_it_lies() -> None:
    assert rendered("x = {{ x }}\n") == rendered("x = {{ x }}\n", compiles=False) == "x = 1\n"


def test_a_template_that_has_changed_is_compiled_again() -> None:
    assert rendered("x = {{ x }}\n") != rendered("y = {{ x }}\n") == "y = 1\n"


def test_nothing_is_kept_where_python_keeps_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert rendered("x = {{ x }}\n") == "x = 1\n"
    assert not list(cache.rglob("*.pyc"))


def test_a_folder_that_cannot_be_written_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").touch()
    monkeypatch.setattr(sys, "pycache_prefix", str(cache / "file"))
    assert rendered("x = {{ x }}\n") == "x = 1\n"
