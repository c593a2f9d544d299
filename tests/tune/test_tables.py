"""The shipped tables of launch configurations: current, clean, and what a build writes into a file."""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path

import pytest

from mcgen import pipeline
from mcgen.plan import configurations
from mcgen.plan.configurations import ELEMENTS, SHIPPED, Entry, Key
from mcgen.plan.kernels import digests
from mcgen.plan.targets import lookup
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.tune import offline
from mcgen.tune.search import LONG_CHUNK, job, modules, with_gradient_chunk, with_head

GENERATED = Path(__file__).parents[2] / "generated"
HEADS = (64, 128)
TABLES = {
    name: configurations._read(configurations.shipped_folder() / f"{lookup(name).architecture}.json")
    for name in SHIPPED
}


def covered() -> list[str]:
    """The shipped specs that the tables are for: matrix memories."""
    return [name for name, path in shipped().items() if load(path).memory.kind == "matrix"]


def deep() -> list[str]:
    """The other shipped specs: their kernels have sizes of heads in them."""
    return [name for name in shipped() if name not in covered()]


def configured(text: str) -> dict[str, str]:
    """The kernels of a file that are launched by configurations, with the digests that it gives for them."""
    (found,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DIGESTS"
    ]
    return found


@functools.cache
def kernels(name: str) -> dict[str, str]:
    return configured((GENERATED / f"{name}.py").read_text(encoding="utf-8"))


@functools.cache
def deep_kernels(name: str, head: int, chunk: int | None = None) -> dict[str, str]:
    """For heads of a size, and gradient chunks: the spec's own, or of so many tokens."""
    spec = with_head(load(shipped()[name]), head)
    return configured(pipeline.source(with_gradient_chunk(spec, chunk) if chunk else spec))


@pytest.mark.parametrize("name", shipped())
def test_a_file_knows_its_kernels(name: str) -> None:
    text = (GENERATED / f"{name}.py").read_text(encoding="utf-8")
    assert kernels(name).items() <= digests(text).items()
    assert set(kernels(name)) == set(importlib.import_module(f"generated.{name}").AXES)


@pytest.mark.parametrize("name", covered())
def test_every_kernel_is_there_and_clean(name: str) -> None:
    missing, faulty = set(), set()
    for kernel, digest in kernels(name).items():
        for target, table in TABLES.items():
            for head in HEADS:
                for element in ELEMENTS:
                    entry = table.get(Key(digest, head, head, element, lookup(target).architecture))
                    if entry is None:
                        missing.add((name, kernel, element, target, head))
                    elif not _is_clean(entry, target):
                        faulty.add((name, kernel, element, target, head))
    assert missing == set()
    assert faulty == set()


def _is_clean(entry: Entry, target: str) -> bool:
    return entry.spills == 0 and entry.shared_bytes <= lookup(target).shared_bytes


@pytest.mark.parametrize("chunk", [None, LONG_CHUNK], ids=["own chunk", "long chunk"])
@pytest.mark.parametrize("name", deep())
def test_a_deep_kernel_is_there_and_spills_nothing_in_loops_over_tiles(name: str, chunk: int | None) -> None:
    """For products in bfloat16. Soups alone go by steps of 16 tokens where gradient chunks are long."""
    by_steps = chunk is not None and load(shipped()[name]).aggregate.kind == "soup"
    missing, faulty = set(), set()
    for head in HEADS:
        for kernel, digest in deep_kernels(name, head, chunk).items():
            for target, table in TABLES.items():
                found = [
                    table.get(Key(digest, head, head, "bfloat16", lookup(target).architecture, n)) for n in (None, 16)
                ]
                (entry,) = [entry for entry in found if entry] or (None,)
                if entry is None:
                    missing.add((kernel, target, head))
                elif (
                    entry.inner_loads > allowed(kernel, head, by_steps)
                    or entry.shared_bytes > lookup(target).shared_bytes
                ):
                    faulty.add((kernel, target, head))
    assert missing == set()
    assert faulty == set()


def allowed(kernel: str, head: int, by_steps: bool) -> int:
    """Reloads in innermost loops of backward kernels of heads of 128: one in the loop that fills with zeros, two more
    in a loop over tiles where a long gradient chunk goes by steps."""
    return (3 if by_steps else 1) if (kernel, head) == ("reverse", 128) else 0


def test_no_kernel_is_there_that_no_spec_has() -> None:
    """`make offline` drops them."""
    current = {digest for name in covered() for digest in kernels(name).values()}
    variants = [(name, head, chunk) for name in deep() for head in HEADS for chunk in (None, LONG_CHUNK)]
    current |= {digest for variant in variants for digest in deep_kernels(*variant).values()}
    assert {key.digest for table in TABLES.values() for key in table} <= current


SAMPLE = [
    ("linear_grm", 64, "bfloat16", "cuda:90", "read"),
    ("mamba2_grm", 64, "bfloat16", "hip:gfx942", "gates"),
    ("swla_ssc", 64, "float32", "cuda:80", "states"),
    ("decay_grm_log", 128, "bfloat16", "cuda:100", "rows"),
]


@pytest.mark.parametrize(("name", "head", "element", "target", "kernel"), SAMPLE)
def test_a_sample_compiles_to_what_the_table_says(
    name: str, head: int, element: str, target: str, kernel: str, tmp_path: Path
) -> None:
    (module,) = modules([with_head(load(shipped()[name]), head)], tmp_path, [element])
    (found,) = [one for one in module.kernels[element] if one.kernel == f"{kernel}_kernel"]
    key = Key(module.digests[kernel], head, head, element, lookup(target).architecture)
    entry = TABLES[target][key]
    compiled = offline.compile_job(job(module.path, found, element, entry.configuration, lookup(target)), tmp_path)
    assert compiled.clean
    assert (compiled.registers, compiled.shared_bytes) == (entry.registers, entry.shared_bytes)


@pytest.mark.parametrize("name", shipped())
def test_a_build_writes_them_into_the_file(name: str) -> None:
    """All that the tables have to have: both types for matrix memories, bfloat16 for deep ones."""
    module = importlib.import_module(f"generated.{name}")
    assert set(module.CONFIGURATIONS) == {lookup(target).architecture for target in SHIPPED}
    for by_type in module.CONFIGURATIONS.values():
        for kind in ELEMENTS if name in covered() else ["bfloat16"]:
            assert set(by_type[kind]) == set(module.AXES)
