"""What is known of each GPU: the limits a kernel must keep and the rates its cost is reckoned with."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from mcgen.errors import UnsupportedError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Target:
    """One GPU. Sizes are bytes, `bandwidth` GB/s, `peak` dense TFLOP/s by the operands' type; see targets.toml."""

    name: str
    title: str
    arch: str
    match: tuple[str, ...]
    sm_count: int
    warp_size: int
    max_warps: int
    shared_bytes: int
    registers_per_sm: int
    tmem_columns: int
    l2_bytes: int
    bandwidth: float
    peak: Mapping[str, float] = field(hash=False)

    @property
    def backend(self) -> str:
        """Triton's backend: `cuda` or `hip`."""
        return self.arch.partition(":")[0]

    @property
    def architecture(self) -> str:
        """What a generated module calls the architecture: `sm90`, `gfx942`."""
        return f"sm{self.capability}" if self.backend == "cuda" else str(self.capability)

    @property
    def capability(self) -> int | str:
        """What the backend calls the architecture: 90, or `gfx942`."""
        name = self.arch.partition(":")[2]
        return int(name) if self.backend == "cuda" else name


@functools.cache
def targets() -> Mapping[str, Target]:
    """Every target by its name, in the file's order."""
    return {
        name: Target(name=name, **{**row, "match": tuple(row["match"])}) for name, row in _data()["targets"].items()
    }


def architectures() -> tuple[str, ...]:
    """The architectures that have a target standing for them."""
    return tuple(_data()["defaults"])


def lookup(name: str) -> Target:
    """The target called `name`, or the one that stands for it where `name` is an architecture (`cuda:90`).

    Raises UnsupportedError, with a suggestion, where there is neither.
    """
    name = name.lower()
    known = targets()
    if name in known:
        return known[name]
    if name in architectures():
        return known[_data()["defaults"][name]]
    close = difflib.get_close_matches(name, [*known, *architectures()], n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    raise UnsupportedError(f"no target is called {name!r}; {hint}")


@functools.cache
def _data() -> dict:
    return tomllib.loads(resources.files("mcgen.plan").joinpath("targets.toml").read_text(encoding="utf-8"))
