"""From a spec file to a source file, a stage a line: the table of contents of the compiler."""

from __future__ import annotations

from pathlib import Path

from mcgen.emit.module import module_source
from mcgen.spec import Spec, load
from mcgen.symbolic.meaning import lowerable, meaning


def build(path: str | Path) -> tuple[Spec, str]:
    """The spec in a file and the text of its module.

    Raises:
        SpecError: the file is not a spec; every fault in it is in the error.
        UnsupportedError: the spec is valid but cannot be lowered; the message says what would be accepted.
    """
    spec = load(path)
    return spec, source(spec)


def source(spec: Spec) -> str:
    """The text of a spec's module; raises what `build` raises."""
    understood = meaning(spec)
    lowerable(understood)
    return module_source(understood)
