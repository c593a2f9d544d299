"""Launch configurations: tile sizes and warps of a kernel, by what it computes, the head, the inputs' type and the GPU.

They were found by compiling, see `mcgen.tune.search`, and lie in tables, a file an architecture: those shipped in the
package, and the user's own in their cache folder. What no table has gets a default by rule. A build reads the shipped
ones alone, so that a file is the same wherever it is built; the file itself looks for the user's when it is run.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from mcgen.errors import UnsupportedError

SHIPPED = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
"""The architectures whose tables are shipped, as targets call them."""
ELEMENTS = ("bfloat16", "float32")
"""The types of inputs that configurations are found for; float16 launches as bfloat16 does."""
HIDDEN = "f"
"""How kernels call the hidden units of a layer, which they take in tiles."""


class Configuration(NamedTuple):
    """Tokens of a chunk, columns of the tile on the grid or of hidden units, warps of a program, stages of its loops'
    pipelines."""

    rows: int
    columns: int
    warps: int
    stages: int = 1

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """As generated files and tables write it."""
        return self.rows, self.columns, self.warps, self.stages


class Entry(NamedTuple):
    """A configuration with what the kernel takes in it: registers a thread, bytes reloaded, bytes of shared memory.

    `tried` is its place among the candidates, from 1. Of the reloads, `loop_loads` stand in loops and `inner_loads` in
    loops that hold no other.
    """

    kernel: str
    configuration: Configuration
    registers: int
    spills: int
    shared_bytes: int
    tried: int
    loop_loads: int = 0
    inner_loads: int = 0


class Key(NamedTuple):
    """What a configuration is kept by: a kernel's digest, the head's sizes, the inputs' type, the architecture, and
    where a kernel goes by gradient chunks, the rows that it takes at once."""

    digest: str
    key_dim: int
    value_dim: int
    element: str
    architecture: str
    rows: int | None = None


Defaults = Mapping[str, Mapping[str, Configuration]]
"""By the family of architectures, as their names begin (`cpu` is the interpreter), and by the type of inputs."""
INTERPRETED = Configuration(32, 64, 4)
Table = Mapping[Key, Entry]


def folders(tuned: bool) -> tuple[Path, ...]:
    """Where the tables of a build lie, first things first: the shipped ones, after the user's where it is `tuned`."""
    return (user_folder(), shipped_folder()) if tuned else (shipped_folder(),)


def find(key: Key, folders: Iterable[Path]) -> Entry | None:
    """What the tables in some folders have for a kernel, the first that has anything; None where none has."""
    for folder in folders:
        found = _read(folder / f"{key.architecture}.json").get(key)
        if found is not None:
            return found
    return None


def defaults(key_dim: int, value_dim: int) -> Defaults:
    """Configurations of matrix memories by rule, by family and type of inputs, for kernels that no table has.

    Small tiles and few warps: what spills nothing in nearly every kernel that was compiled, not what is fastest.
    """
    wide = max(key_dim, value_dim) > 64
    chosen = {"sm": Configuration(32, 32, 8 if wide else 4), "gf": Configuration(32, 32, 4), "cpu": INTERPRETED}
    return {family: dict.fromkeys(ELEMENTS, one) for family, one in chosen.items()}


def tile(size: int) -> int:
    """The power of two, 16 at least, that holds a number of columns."""
    return max(16, 1 << (size - 1).bit_length())


def architectures(folders: Iterable[Path]) -> list[str]:
    """Every architecture that some folder has a table for: NVIDIA's by number, then AMD's."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.json")}, key=_age)


def _age(architecture: str) -> tuple[bool, int, str]:
    number = architecture.removeprefix("sm")
    return not number.isdigit(), int(number) if number.isdigit() else 0, architecture


def shipped_folder() -> Path:
    return Path(str(resources.files("mcgen"))) / "tune" / "tables"


def user_folder(name: str = "configurations") -> Path:
    """Where `mcgen tune` keeps what it found: in `$MCGEN_CACHE_DIR`, or in the user's cache folder for mcgen."""
    import platformdirs

    return Path(os.environ.get("MCGEN_CACHE_DIR") or platformdirs.user_cache_dir("mcgen")) / name


def keep(folder: Path, found: Table) -> None:
    """Add entries to the tables in a folder, a file an architecture, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for architecture in {key.architecture for key in found}:
        path = folder / f"{architecture}.json"
        more = {key: entry for key, entry in found.items() if key.architecture == architecture}
        write(path, {**_read(path), **more})


def read(folder: Path) -> Table:
    """All entries of the tables in a folder."""
    return {key: entry for path in sorted(folder.glob("*.json")) for key, entry in _read(path).items()}


def drop(folder: Path, kernels: Collection[str]) -> None:
    """Leave in the tables in a folder only entries of kernels with one of these digests."""
    for path in folder.glob("*.json"):
        table = _read(path)
        kept = {key: entry for key, entry in table.items() if key.digest in kernels}
        if len(kept) < len(table):
            write(path, kept)


def write(path: Path, table: Table) -> None:
    """A table as JSON: an object a kernel, a line a head and type, in an order of its own."""
    kernels: dict[tuple[str, str], dict[str, list[int]]] = {}
    for key, entry in sorted(table.items(), key=lambda item: (item[1].kernel, *map(str, item[0]))):
        place = f"{key.key_dim}x{key.value_dim} {key.element}" + (f" {key.rows}" if key.rows else "")
        chosen = entry.configuration
        numbers = [*chosen.numbers, entry.registers, entry.spills, entry.shared_bytes, entry.tried]
        numbers += [entry.loop_loads, entry.inner_loads] if entry.spills else []
        kernels.setdefault((entry.kernel, key.digest), {})[place] = numbers
    blocks = [
        f"  {json.dumps(f'{kernel} {digest}')}: {{\n"
        + ",\n".join(f"    {json.dumps(place)}: {json.dumps(numbers)}" for place, numbers in rows.items())
        + "\n  }"
        for (kernel, digest), rows in kernels.items()
    ]
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    aside.replace(path)
    _parsed.cache_clear()


def _read(path: Path) -> Table:
    """The table in a file, an empty one where there is none. Raises UnsupportedError where what is there is none."""
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = f"{path} is no table of launch configurations ({error}); remove it, and `mcgen tune` makes it anew"
        raise UnsupportedError(message) from error


@functools.lru_cache(maxsize=32)
def _parsed(path: Path, _: int) -> Table:
    rows: Iterable = json.loads(path.read_text(encoding="utf-8")).items()
    architecture = path.stem
    return {
        Key(digest, key_dim, value_dim, element, architecture, *more): _entry(kernel, numbers)
        for (kernel, digest), places in ((title.split(), places) for title, places in rows)
        for (key_dim, value_dim, element, *more), numbers in ((_place(p), numbers) for p, numbers in places.items())
    }


@functools.lru_cache(maxsize=256)
def _place(text: str) -> tuple:
    """The head's sizes, the type of inputs, and where there are any the rows, as a table writes them."""
    head, element, *more = text.split()
    key_dim, value_dim = map(int, head.split("x"))
    return key_dim, value_dim, element, *map(int, more)


def _entry(kernel: str, numbers: list[int]) -> Entry:
    if not {int}.issuperset(map(type, numbers)):
        raise ValueError(f"{kernel} has {numbers}")
    rows, columns, warps, stages, *taken = numbers
    return Entry(kernel, Configuration(rows, columns, warps, stages), *taken)
