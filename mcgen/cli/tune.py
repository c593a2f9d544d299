"""`mcgen tune`: launch configurations for the kernels of specs."""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcgen.cli.main import DOES_NOT_HOLD, DONE
from mcgen.cli.output import json_option, print_json, print_table
from mcgen.errors import UnsupportedError
from mcgen.plan import configurations
from mcgen.plan.kernels import digests
from mcgen.plan.targets import lookup
from mcgen.spec import Spec, load
from mcgen.spec.shipped import find, shipped

if TYPE_CHECKING:
    from mcgen.tune.search import Found

COLUMNS = ("kernel", "head", "type", "for", "rows x columns", "warps", "registers", "shared bytes", "spills", "tried")


@click.command()
@click.argument("specs", nargs=-1)
@click.option(
    "--target", "target_names", multiple=True, help="A GPU to tune for, see `mcgen targets`; may be repeated."
)
@click.option("--offline", is_flag=True, help="Compile candidates for the GPU, which need not be at hand.")
@click.option(
    "--shipped",
    "ships",
    is_flag=True,
    help="Search for what the package's own tables lack of the shipped specs named, or of all, and keep it there;"
    " what no shipped spec has any more is dropped.",
)
@click.option("--again", is_flag=True, help="With --shipped: search for what the tables have, too.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Compilers at work at once.")
@json_option
def tune(
    specs: tuple[str, ...],
    target_names: tuple[str, ...],
    offline: bool,
    ships: bool,
    again: bool,
    processes: int,
    as_json: bool,
) -> int:
    """Find launch configurations for the kernels of specs, and keep them for this machine.

    SPEC is a file, or the name of a shipped spec. Candidates are tried larger tiles first; the first that keeps all
    values in registers (of a deep memory's kernels: all in loops over tiles) and fits the GPU's shared memory is taken.
    Where a kernel has none, the one that spills least is, and the exit is 1.

    What is found is kept in the folder `configurations` of $MCGEN_CACHE_DIR, or else of the user's cache folder for
    mcgen (~/.cache/mcgen on Linux), a table an architecture; the last line says where. Modules look there when they
    first launch a kernel, so they need not be built again; `mcgen build --tuned` writes it into them. What compilations
    gave is kept beside it, in `offline`. Needs Triton, though no GPU.

    \b
    Example:
      mcgen tune my_memory.yaml --offline --target h100
      mcgen build my_memory.yaml
    """
    if not offline:
        raise UnsupportedError("tuning by timing on a GPU is not built yet; pass --offline to tune by compiling")
    if not specs and not ships:
        raise click.UsageError("Missing argument `SPEC...`.")
    from mcgen.tune.compiler import require_triton

    require_triton("mcgen tune")
    targets = [lookup(name) for name in target_names or configurations.SHIPPED]
    chosen = [load(find(name)) for name in specs] if specs else [load(path) for path in shipped().values()]
    folder = configurations.shipped_folder() if ships else configurations.user_folder()
    kept = configurations.read(folder)  # what is there is a table, before anything takes hours
    known = kept if ships and not again else {}
    found = _search(_variants(chosen) if ships else chosen, targets, processes, known)
    configurations.keep(folder, {one.subject.key: one.entry for one in found if one.entry is not None})
    if ships:
        configurations.drop(folder, _kernels_of(_variants(map(load, shipped().values()))))
    if as_json:
        print_json([_plain(one) for one in found])
    else:
        print_table(COLUMNS, map(_row, found), "launch configurations")
    if lost := [f"{one.subject.kernel} ({_place(one)})" for one in found if one.entry is None]:
        click.echo(f"warning: default tiles are left to {', '.join(lost)}: nothing that was tried can run", err=True)
    click.echo(f"kept in {folder}" + ("" if ships else ", where modules of these specs find it"), err=as_json)
    return DONE if all(one.good for one in found) else DOES_NOT_HOLD


def _variants(specs: Iterable[Spec]) -> list[Spec]:
    from mcgen.tune.search import variants

    return [one for spec in specs for one in variants(spec)]


def _kernels_of(specs: Iterable[Spec]) -> set[str]:
    """The digests of all kernels of specs."""
    from mcgen import pipeline

    return {digest for spec in specs for digest in digests(pipeline.source(spec)).values()}


def _search(specs: Sequence[Spec], targets: Sequence[Any], processes: int, known: Container[Any]) -> list[Found]:
    """What is found for the specs' kernels, but for those whose configurations are known."""
    from mcgen.tune.search import modules, search, subjects

    with tempfile.TemporaryDirectory(prefix="mcgen-") as folder:
        wanted = subjects(modules(specs, Path(folder), progress=True), targets)
        return search([subject for subject in wanted if subject.key not in known], processes)


def _place(one: Found) -> str:
    return f"{one.subject.key.element} on {one.subject.key.architecture}"


def _row(one: Found) -> tuple[str, ...]:
    key, entry, best = one.subject.key, one.entry, one.best
    place = one.subject.kernel, f"{key.key_dim}x{key.value_dim}", key.element, key.architecture
    if entry is None:
        return *place, "none", "", "", "", str(best.failure), str(len(one.subject.jobs))
    tiles = f"{entry.configuration.rows} x {entry.configuration.columns}"
    spills = f"{entry.spills} bytes, reloads in loops {entry.loop_loads}, innermost {entry.inner_loads}"
    numbers = entry.configuration.warps, entry.registers, entry.shared_bytes
    return *place, tiles, *map(str, numbers), spills if entry.spills else "", str(entry.tried)


def _plain(one: Found) -> dict[str, Any]:
    key, entry = one.subject.key, one.entry
    place = {"kernel": one.subject.kernel, "digest": key.digest, "head": [key.key_dim, key.value_dim]}
    place |= {"type": key.element, "architecture": key.architecture}
    if entry is None:
        return {**place, "configuration": None, "failure": one.best.failure}
    chosen = {name: getattr(entry.configuration, name) for name in ("rows", "columns", "warps")}
    return {**entry._asdict(), **place, "configuration": chosen}
