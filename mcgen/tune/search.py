"""Finding launch configurations without the GPU: candidates are compiled for it until one is good: it spills nothing
where that would matter, and fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcgen import pipeline
from mcgen.plan import configurations
from mcgen.plan.configurations import HIDDEN, Configuration, Entry, Key
from mcgen.plan.kernels import SUFFIX, digests
from mcgen.plan.targets import Target
from mcgen.spec import Spec
from mcgen.spec.model import Chunk
from mcgen.tune import offline
from mcgen.tune.candidates import ahead_candidates, candidates, streamed_candidates
from mcgen.tune.launches import Specialisation, specialisations
from mcgen.tune.offline import Job, Resources
from mcgen.tune.progress import in_steps

HEADS = (64, 128)
"""Sizes of heads that the shipped tables have configurations for."""
LONG_CHUNK = 64
"""Tokens of a gradient chunk that the tables have deep memories for, besides that of the shipped specs: it is long, and
kernels of long ones are the same for all lengths."""


@dataclass(frozen=True)
class Module:
    """A built file, the spec it is of, and its kernels by type of inputs."""

    spec: Spec
    path: Path
    digests: Mapping[str, str]
    kernels: Mapping[str, Sequence[Specialisation]]


@dataclass(frozen=True)
class Subject:
    """A kernel to find a configuration for on one target, with its candidates and a job for each.

    `afresh` is whether the first candidates are tried on every target, whatever another found: where they are few.
    """

    key: Key
    kernel: str
    target: Target
    candidates: tuple[Configuration, ...]
    jobs: tuple[Job, ...]
    afresh: bool = False


@dataclass(frozen=True)
class Found:
    """What became of a subject: the entry of the best candidate, and whether that one is good.

    `best` is what that candidate takes; there is no entry where nothing can be launched.
    """

    subject: Subject
    entry: Entry | None
    best: Resources
    good: bool


def modules(
    specs: Sequence[Spec],
    folder: Path,
    elements: Sequence[str] = configurations.ELEMENTS,
    progress: bool = False,
) -> list[Module]:
    """The specs' files, built into a folder, with the kernels each launches. Raises what building raises."""
    found = []
    with in_steps("building", len(specs), progress) as advance:
        for spec in specs:
            found.append(_module(spec, folder, elements))
            advance()
    return found


def with_head(spec: Spec, size: int) -> Spec:
    """The same spec for another size of heads, keys and values alike."""
    return replace(spec, head=spec.head.model_copy(update={"key_dim": size, "value_dim": size}))


def with_gradient_chunk(spec: Spec, size: int) -> Spec:
    """The same spec with gradients taken for that many tokens at once."""
    return replace(spec, update=spec.update.model_copy(update={"gradient": Chunk(chunk=size)}))


def variants(spec: Spec) -> Iterator[Spec]:
    """What the shipped tables have of a spec: heads of two sizes, gradients of a deep memory by its chunk and by 64, as
    which longer ones are too."""
    for size in HEADS:
        one = with_head(spec, size)
        yield one
        if spec.memory.kind == "mlp" and (spec.gradient_chunk or 0) < LONG_CHUNK:
            yield with_gradient_chunk(one, LONG_CHUNK)


def _module(spec: Spec, folder: Path, elements: Sequence[str]) -> Module:
    path = folder / f"{spec.name}_{spec.head.key_dim}_{spec.head.value_dim}_{spec.gradient_chunk}.py"
    text = pipeline.source(spec)
    path.write_text(text, encoding="utf-8")
    return Module(spec, path, digests(text), {element: specialisations(spec, element) for element in elements})


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
    key = Key(module.digests[name], head.key_dim, head.value_dim, element, target.architecture, kernel.rows)
    tiled = ahead_candidates if kernel.ahead else candidates
    tried = tuple(tiled(kernel.axis, head.key_dim, head.value_dim, element, target))
    if kernel.axis == HIDDEN:
        tried = tuple(streamed_candidates(kernel.rows, kernel.constexprs["F"], element, target, kernel.whole))
    jobs = tuple(job(module.path, kernel, element, chosen, target) for chosen in tried)
    return Subject(key, name, target, tried, jobs, kernel.ahead)


def job(path: Path, kernel: Specialisation, element: str, chosen: Configuration, target: Target) -> Job:
    """The compilation of a kernel in a configuration, as a launch would have it."""
    sizes = {axis: configurations.tile(kernel.constexprs[axis.upper()]) for axis in "kv"}
    if kernel.axis:
        sizes[kernel.axis] = chosen.columns
    tiles = {f"B{axis.upper()}": size for axis, size in sizes.items()}
    exact = "ieee" if target.backend == "hip" else "tf32x3"
    precision = exact if element == "float32" or target.backend == "hip" else "tf32"
    chunk = kernel.constexprs.get("CHUNK", 1)
    steps = -(-chunk // chosen.rows)
    stepped = {"STEPS": steps, "STEP": -(-chunk // steps)} if "CHUNK" in kernel.constexprs else {}
    constants = {**kernel.constexprs, "BT": chosen.rows, **tiles, **stepped, "PREC": precision}
    return Job(path, kernel.kernel, kernel.signature, constants, target, chosen.warps, chosen.stages)


def search(wanted: Sequence[Subject], processes: int = 2, progress: bool = True) -> list[Found]:
    """The first good candidate of every subject, in their order, or else the best.

    Subjects that differ in their target alone have the same candidates, and are searched one after another: each begins
    where the one before it found its own, which is seldom far off, and spares what would have been tried in vain; or
    afresh.
    """
    alike: dict[tuple, list[Subject]] = {}
    for subject in wanted:
        key = subject.key if subject.afresh else subject.key._replace(architecture="")
        alike.setdefault((key, subject.candidates), []).append(subject)
    results = _in_workers(list(alike.values()), processes, progress)
    lost = [[subject] for group in alike.values() for subject in group if subject.key not in results]
    results |= _in_workers(lost, 1, progress)  # a crash takes a group's other targets along
    return [_found(subject, *results.get(subject.key, (0, _CRASHED))) for subject in wanted]


def _in_workers(
    groups: Sequence[Sequence[Subject]], processes: int, progress: bool
) -> dict[Key, tuple[int, Resources]]:
    jobs = [[subject.jobs for subject in group] for group in groups]
    results = offline.in_workers(first_good_of_each, jobs, processes, progress, len) if jobs else []
    kept = [zip(group, some, strict=True) for group, some in zip(groups, results, strict=True) if some is not None]
    return {subject.key: result for pairs in kept for subject, result in pairs}


HOPELESS = 2048
"""Spilled bytes a thread, twice what its registers hold."""
BETWEEN_LOOPS = 128
"""Reloads a step that a streamed kernel may have outside its loops over tiles: a small part of what a step does."""
_CRASHED = Resources(failure="the compiler crashed")


def is_good(job: Job, found: Resources) -> bool:
    """Whether a kernel spills nothing; of one that streams tiles, nothing inside its loops over them."""
    if found.clean or "BF" not in job.constexprs:
        return found.clean
    return found.failure is None and not found.inner_spill_loads and found.loop_spill_loads <= BETWEEN_LOOPS


def first_good_of_each(alike: Sequence[Sequence[Job]]) -> list[tuple[int, Resources]]:
    """`first_good` of jobs for one target after another, from the place on that was found for the one before."""
    found: list[tuple[int, Resources]] = []
    begin = 0
    for jobs in alike:
        at, best = first_good(jobs[begin:])
        at, good = begin + at, is_good(jobs[begin + at], best)
        if begin and not good:
            at, best = first_good(jobs)
            good = is_good(jobs[at], best)
        begin = at if good else 0
        found.append((at, best))
    return found


def first_good(jobs: Sequence[Job]) -> tuple[int, Resources]:
    """The place and resources of the first job that is good, or else of the one that spills least where it matters.

    One whose warps have as much of a tile to hold as those of another that spilled is not tried, and none with as many
    rows as one that spilled HOPELESS, unless tiles are streamed: what does not fit then are values of rows by rows.
    """
    tried: dict[int, Resources] = {}
    spilled: dict[tuple, float] = {}
    for at, one in enumerate(jobs):
        kind, load = (one.constexprs["BT"], one.num_stages), _tile_per_warp(one)
        if load >= spilled.get(kind, math.inf):
            continue
        tried[at] = offline.compile_job(one)
        if is_good(one, tried[at]):
            return at, tried[at]
        hopeless = tried[at].spill_loads >= HOPELESS and "BF" not in one.constexprs
        spilled[kind] = 0 if hopeless else load
    return min(tried.items(), key=lambda pair: _badness(pair[1]), default=(0, _CRASHED))


def _badness(found: Resources) -> tuple:
    return found.failure is not None, found.inner_spill_loads, found.loop_spill_loads, found.spill_loads


def _tile_per_warp(job: Job) -> float:
    """Elements of the tiles that a kernel takes along its axes, a warp."""
    return math.prod(job.constexprs.get(name, 1) for name in ("BK", "BV", "BF")) / job.num_warps


def _found(subject: Subject, at: int, best: Resources) -> Found:
    if best.failure is not None:
        return Found(subject, None, best, False)
    loads = best.spill_loads, best.shared_bytes, at + 1, best.loop_spill_loads, best.inner_spill_loads
    entry = Entry(subject.kernel, subject.candidates[at], best.registers, *loads)
    return Found(subject, entry, best, is_good(subject.jobs[at], best))
