"""Finding launch configurations without the GPU: candidates are compiled for it until one spills nothing and fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcgen import pipeline
from mcgen.plan import configurations
from mcgen.plan.configurations import HIDDEN, Configuration, Entry, Key
from mcgen.plan.kernels import SUFFIX, digests
from mcgen.plan.targets import Target
from mcgen.spec import Spec
from mcgen.tune import offline
from mcgen.tune.candidates import candidates, streamed_candidates
from mcgen.tune.launches import Specialisation, specialisations
from mcgen.tune.offline import Job, Resources


@dataclass(frozen=True)
class Module:
    """A built file, the spec it is of, and its kernels by type of inputs."""

    spec: Spec
    path: Path
    digests: Mapping[str, str]
    kernels: Mapping[str, Sequence[Specialisation]]


@dataclass(frozen=True)
class Subject:
    """A kernel to find a configuration for on one target, with its candidates and a job for each."""

    key: Key
    kernel: str
    target: Target
    candidates: tuple[Configuration, ...]
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Found:
    """What became of a subject: the entry kept, or None where no candidate was clean; then `best` is the least bad."""

    subject: Subject
    entry: Entry | None
    best: Resources


def modules(specs: Iterable[Spec], folder: Path, elements: Sequence[str] = configurations.ELEMENTS) -> list[Module]:
    """The specs' files, built into a folder, with the kernels each launches. Raises what building raises."""
    return [_module(spec, folder, elements) for spec in specs]


def with_head(spec: Spec, size: int) -> Spec:
    """The same spec for another size of heads, keys and values alike."""
    return replace(spec, head=spec.head.model_copy(update={"key_dim": size, "value_dim": size}))


def _module(spec: Spec, folder: Path, elements: Sequence[str]) -> Module:
    path = folder / f"{spec.name}_{spec.head.key_dim}_{spec.head.value_dim}.py"
    text = pipeline.source(spec)
    path.write_text(text, encoding="utf-8")
    return Module(spec, path, digests(text), {element: specialisations(path, element) for element in elements})


def subjects(built: Iterable[Module], targets: Sequence[Target]) -> list[Subject]:
    """What there is to find for the modules' kernels on the targets: kernels that are the same once."""
    found: dict[Key, Subject] = {}
    for module in built:
        for element, kernels in module.kernels.items():
            for kernel in kernels:
                for target in targets:
                    subject = _subject(module, element, kernel, target)
                    found.setdefault(subject.key, subject)
    return list(found.values())


def _subject(module: Module, element: str, kernel: Specialisation, target: Target) -> Subject:
    head, name = module.spec.head, kernel.kernel.removesuffix(SUFFIX)
    key = Key(module.digests[name], head.key_dim, head.value_dim, element, target.architecture)
    tried = tuple(candidates(kernel.axis, head.key_dim, head.value_dim, element, target))
    if kernel.axis == HIDDEN:
        tried = tuple(streamed_candidates(kernel.rows, kernel.constexprs["F"], element, target))
    jobs = tuple(job(module.path, kernel, element, chosen, target) for chosen in tried)
    return Subject(key, name, target, tried, jobs)


def job(path: Path, kernel: Specialisation, element: str, chosen: Configuration, target: Target) -> Job:
    """The compilation of a kernel in a configuration, as a launch would have it."""
    sizes = {axis: configurations.tile(kernel.constexprs[axis.upper()]) for axis in "kv"}
    if kernel.axis:
        sizes[kernel.axis] = chosen.columns
    tiles = {f"B{axis.upper()}": size for axis, size in sizes.items()}
    exact = "ieee" if target.backend == "hip" else "tf32x3"
    precision = exact if element == "float32" or target.backend == "hip" else "tf32"
    constants = {**kernel.constexprs, "BT": chosen.rows, **tiles, "PREC": precision}
    return Job(path, kernel.kernel, kernel.signature, constants, target, chosen.warps, chosen.stages)


def search(wanted: Sequence[Subject], processes: int = 2, progress: bool = True) -> list[Found]:
    """The first clean candidate of every subject, in their order.

    Subjects that differ in their target alone have the same candidates, and are searched one after another: each begins
    where the one before it found its own, which is seldom far off, and spares what would have been tried in vain.
    """
    alike: dict[tuple, list[Subject]] = {}
    for subject in wanted:
        alike.setdefault((replace(subject.key, architecture=""), subject.candidates), []).append(subject)
    jobs = [[subject.jobs for subject in group] for group in alike.values()]
    results = offline.in_workers(first_clean_of_each, jobs, processes, progress)
    found = {
        subject.key: _found(subject, *result)
        for group, some in zip(alike.values(), results, strict=True)
        for subject, result in zip(group, some or [(0, _CRASHED)] * len(group), strict=True)
    }
    return [found[subject.key] for subject in wanted]


HOPELESS = 2048
"""Spilled bytes a thread, twice what its registers hold."""
_CRASHED = Resources(failure="the compiler crashed")


def first_clean_of_each(alike: Sequence[Sequence[Job]]) -> list[tuple[int, Resources]]:
    """`first_clean` of jobs for one target after another, from the place on that was found for the one before."""
    found: list[tuple[int, Resources]] = []
    for jobs in alike:
        begin = found[-1][0] if found and found[-1][1].clean else 0
        at, best = first_clean(jobs[begin:])
        found.append((begin + at, best) if best.clean or not begin else first_clean(jobs))
    return found


def first_clean(jobs: Sequence[Job]) -> tuple[int, Resources]:
    """The place and resources of the first job that is clean, or else of the one that spills least.

    One whose warps have as much of a tile to hold as those of another that spilled is not tried, and none with as many
    rows as one that spilled HOPELESS: what does not fit then are values of rows by rows.
    """
    tried: dict[int, Resources] = {}
    spilled: dict[tuple, float] = {}
    for at, one in enumerate(jobs):
        kind, load = (one.constexprs["BT"], one.num_stages), _tile_per_warp(one)
        if load >= spilled.get(kind, math.inf):
            continue
        tried[at] = offline.compile_job(one)
        if tried[at].clean:
            return at, tried[at]
        spilled[kind] = load if tried[at].spill_loads < HOPELESS else 0
    return min(
        tried.items(), key=lambda pair: (pair[1].failure is not None, pair[1].spill_loads), default=(0, _CRASHED)
    )


def _tile_per_warp(job: Job) -> float:
    """Elements of the tiles that a kernel takes along its axes, a warp."""
    return math.prod(job.constexprs.get(name, 1) for name in ("BK", "BV", "BF")) / job.num_warps


def _found(subject: Subject, at: int, best: Resources) -> Found:
    if not best.clean:
        return Found(subject, None, best)
    chosen = subject.candidates[at]
    return Found(subject, Entry(subject.kernel, chosen, best.registers, 0, best.shared_bytes, at + 1), best)
