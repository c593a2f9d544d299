"""The specs that travel with the package."""

from __future__ import annotations

from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path

from mcgen.errors import Diagnostic, SpecError
from mcgen.spec.names import suggest


def shipped() -> dict[str, Path]:
    """The shipped specs' files, by name, sorted."""
    folder = Path(str(files("mcgen"))) / "specs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(argument: str | PathLike[str]) -> Path:
    """The file a user means: a path, or the name of a shipped spec where no such file exists.

    Raises:
        SpecError: neither.
    """
    path, known = Path(argument), shipped()
    if path.exists():
        return path
    if fspath(argument) in known:
        return known[fspath(argument)]
    hint = suggest(path.stem, known) if path.parent == Path() else ""
    raise SpecError(Diagnostic("error", "no such file, nor a shipped spec of this name", fspath(argument), hint=hint))
