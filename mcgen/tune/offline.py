"""Compiling kernels for GPUs that are not at hand, and reading back what they take of them.

Triton needs no device to compile: the kernel a launch would compile, specialised as a launch would specialise it, is
built for a target, and its registers, spills and shared memory are held against the target's limits.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from inspect import getsource
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from mcgen.errors import InternalError
from mcgen.plan.configurations import user_folder
from mcgen.plan.targets import Target
from mcgen.tune import inspect
from mcgen.tune.progress import in_steps

if TYPE_CHECKING:
    from triton import JITFunction
    from triton.compiler import CompiledKernel

Item = TypeVar("Item")
Result = TypeVar("Result")

STAGE = "offline compilation"
# ptxas that gives up leaves a kernel with the fewest registers it can have and everything else in local memory.
FAILED_ALLOCATION = (32, 1024)


@dataclass(frozen=True)
class Resources(inspect.Usage):
    """What one compiled kernel takes: its usage, bytes of shared memory a block, and columns of tensor memory, `tmem`.

    `failure` says why the kernel cannot be launched at all, None where it can.
    """

    shared_bytes: int = 0
    tmem: int = 0
    failure: str | None = None

    @property
    def clean(self) -> bool:
        """Whether the kernel can be launched and spills nothing to memory."""
        return self.failure is None and self.spill_stores == 0 and self.spill_loads == 0


@dataclass(frozen=True)
class Job:
    """One kernel of a generated file, specialised, for one target.

    `signature` maps each argument that is no constexpr to its type: `*bf16`, `fp32`, `i32`. Every pointer is taken to
    be divisible by 16, as torch's are.
    """

    path: Path
    kernel: str
    signature: Mapping[str, str] = field(hash=False)
    constexprs: Mapping[str, Any] = field(hash=False)
    target: Target
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def compile_job(job: Job, cache: Path | None = None) -> Resources:
    """Compile one kernel for a target and say what it takes; kept in `cache`, the user's cache folder by default.

    What the compiler refuses or the target cannot run comes back as `failure`. Raises ValueError where the file has no
    such kernel, or an argument neither type nor value, InternalError where Triton's interpreter is or was on: in
    workers it never is.
    """
    fn = load_kernels(job.path).get(job.kernel)
    if fn is None:
        raise ValueError(f"{job.path} has no kernel {job.kernel}")
    _require_compiler(fn)
    types = _types(fn, job)
    kept = (cache or user_folder("offline")) / f"{_key(fn, types, job)}.json"
    found = _read(kept)
    if found is None:
        found = _compile(fn, types, job)
        _write(kept, found)
    return _judged(found, job.target, job.num_warps)


def in_workers(
    call: Callable[[Item], Result],
    items: Sequence[Item],
    processes: int = 2,
    progress: bool = True,
    weight: Callable[[Item], int] = lambda _: 1,
) -> list[Result | None]:
    """What `call` gives for every item, in worker processes; None where it brings its process down, even alone.

    `weight` is how many things an item counts for in what is shown of the progress.
    """
    results: dict[int, Result | None] = {}
    lost: list[int] = []
    with in_steps("compiling", sum(map(weight, items)), progress) as advance:
        for at, found in _in_processes(call, items, range(len(items)), processes):
            if found is None:
                lost.append(at)
            else:
                results[at] = found
                advance(weight(items[at]))
        # One crash breaks the whole pool: what it took along runs again, each item alone.
        for at in lost:
            ((_, results[at]),) = _in_processes(call, items, [at], 1)
            advance(weight(items[at]))
    return [results[at] for at in range(len(items))]


def load_kernels(path: Path | str) -> dict[str, JITFunction]:
    """The Triton functions of a Python file, by name, helpers among them. Runs the file's top level."""
    from triton import JITFunction

    return {name: value for name, value in vars(_load(Path(path).resolve())).items() if isinstance(value, JITFunction)}


def source_digest(fn: JITFunction) -> str:
    """A digest of what a kernel computes: its source and that of the functions it calls, and the globals they read.

    The kernel's own name, comments, docstrings and its place in the file do not count, so that equal kernels of two
    files have one digest.
    """
    parts: dict[str, str] = {}
    _collect(fn, "", parts)
    return _sha256(json.dumps(parts, sort_keys=True))


def _require_compiler(fn: JITFunction) -> None:
    from triton import JITFunction, knobs, language

    # Triton's own library is written in kernels too, and turns interpreted for good when triton is imported.
    compiled = isinstance(fn, JITFunction) and isinstance(language.cdiv, JITFunction)
    if knobs.runtime.interpret or not compiled:
        raise InternalError("nothing compiles in a process that has run with TRITON_INTERPRET set", stage=STAGE)


def _types(fn: JITFunction, job: Job) -> dict[str, str]:
    """The types of a kernel's arguments, in its own order."""
    types = {name: "constexpr" if name in job.constexprs else job.signature.get(name, "") for name in fn.arg_names}
    missing = [name for name, kind in types.items() if not kind]
    unknown = [name for name in (*job.signature, *job.constexprs) if name not in types]
    if missing or unknown:
        raise ValueError(f"{fn.__name__}: arguments without a type {missing}, unknown {unknown}")
    return types


def _pointers(types: Mapping[str, str]) -> list[int]:
    """The places of arguments that are pointers."""
    return [at for at, kind in enumerate(types.values()) if kind.startswith("*")]


def _compile(fn: JITFunction, types: dict[str, str], job: Job) -> Resources:
    """Compile and read back, without a look at the target's limits."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    divisible = {(at,): [["tt.divisibility", 16]] for at in _pointers(types)}
    source = ASTSource(fn, types, dict(job.constexprs), divisible)
    gpu = GPUTarget(job.target.backend, job.target.capability, job.target.warp_size)
    with _scratch_cache(), _captured() as said:
        try:
            kernel, refused = triton.compile(source, target=gpu, options=job.options), None
        except Exception as error:  # whatever a compiler says to a kernel it cannot build is the answer asked for
            kernel, refused = None, error
    if kernel is None:
        return Resources(failure=_reason(refused, said.getvalue()))
    usage = _usage(kernel, job.target, said.getvalue())
    tmem = getattr(kernel.metadata, "tmem_size", None) or 0
    return Resources(**asdict(usage), shared_bytes=kernel.metadata.shared, tmem=tmem)


def _usage(kernel: CompiledKernel, target: Target, log: str) -> inspect.Usage:
    if target.backend == "hip":
        return inspect.from_amdgcn(kernel.asm["amdgcn"])
    usage = inspect.from_ptxas(log)
    if usage.spill_loads == 0:
        return usage
    in_loops, inner = inspect.sass_loop_loads(_disassembled(kernel.asm["cubin"]))
    return replace(usage, loop_spill_loads=in_loops, inner_spill_loads=inner)


def _disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        tool = knobs.nvidia.nvdisasm.path
        return subprocess.run([tool, str(binary)], check=True, capture_output=True, text=True).stdout


def _judged(found: Resources, target: Target, num_warps: int) -> Resources:
    """The same, failed where the target cannot run it. The compiler itself does not look."""
    return replace(found, failure=found.failure or next(_excess(found, target, num_warps), None))


def _excess(found: Resources, target: Target, num_warps: int) -> Iterator[str]:
    registers, spilled = FAILED_ALLOCATION
    if found.shared_bytes > target.shared_bytes:
        yield f"out of resources: {found.shared_bytes} bytes of shared memory, {target.name} has {target.shared_bytes}"
    if num_warps > target.max_warps:
        yield f"out of resources: {num_warps} warps, {target.name} runs {target.max_warps}"
    if found.tmem > target.tmem_columns:
        has = f"{target.name} has {target.tmem_columns}"
        yield f"out of resources: {found.tmem} columns of tensor memory, {has}"
    if target.backend == "cuda" and found.registers <= registers and found.spill_stores >= spilled:
        yield f"register allocation failed: {found.registers} registers with {found.spill_stores} bytes of spills"


def _reason(error: Exception, said: str) -> str:
    """One line of why: the error's own last line, or the first error the compiler printed where it says nothing."""
    printed = next((line.partition("error:")[2].strip() for line in said.splitlines() if "error:" in line), "")
    own = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    vague = not own or "PassManager::run failed" in own[-1]
    return f"{type(error).__name__}: {printed if vague and printed else own[-1] if own else 'no message'}"


@contextlib.contextmanager
def _scratch_cache() -> Iterator[None]:
    """Compile afresh, in a cache of its own: only a real compilation prints the log that is read."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.nvidia.scope():
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        yield


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """What is printed meanwhile: Python's standard output, and the compiler's own on the error descriptor."""
    said = io.StringIO()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as errors:
        os.dup2(errors.fileno(), 2)
        try:
            with contextlib.redirect_stdout(said):
                yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            errors.seek(0)
            said.write(errors.read().decode(errors="replace"))


def _key(fn: JITFunction, types: Mapping[str, str], job: Job) -> str:
    """The name a result is kept by: all that decides it, how figures are read included, the target's limits aside."""
    import triton

    constants = {name: str(value) for name, value in sorted(job.constexprs.items())}
    architecture, tools = [job.target.arch, job.target.warp_size], [triton.__version__, _sha256(getsource(inspect))]
    parts = [source_digest(fn), types, constants, _pointers(types), architecture, job.options, tools]
    return _sha256(json.dumps(parts, sort_keys=True, default=str))


def _collect(fn: JITFunction, name: str, parts: dict[str, str]) -> None:
    """Add a function's source under `name`, and what its body reads of the globals under theirs."""
    from triton import JITFunction, language

    parts[name] = _plain_source(fn, name or "kernel")
    for used in sorted({node.id for node in ast.walk(fn.parse()) if isinstance(node, ast.Name)}):
        value = fn.__globals__.get(used)
        if isinstance(value, JITFunction) and used not in parts and value is not fn:
            _collect(value, used, parts)
        elif isinstance(value, int | float | str | language.constexpr | language.dtype):
            parts.setdefault(used, repr(value))


def _plain_source(fn: JITFunction, name: str) -> str:
    tree = fn.parse()
    definition = tree.body[0]
    definition.name = name
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> Resources | None:
    """What is kept in a file; None where it is missing, or another version kept other figures."""
    try:
        found = json.loads(path.read_text())
        return Resources(**found) if found.keys() == asdict(Resources()).keys() else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, found: Resources) -> None:
    """Written aside and moved, since other processes may read meanwhile. A cache that cannot be written is none."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(asdict(found)))
        aside.replace(path)


@functools.lru_cache(maxsize=64)
def _load(path: Path) -> ModuleType:
    name = f"mcgen_kernels_{_sha256(str(path))[:12]}_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _in_processes(
    call: Callable[[Item], Result], items: Sequence[Item], which: Iterable[int], processes: int
) -> Iterator[tuple[int, Result | None]]:
    """Pairs of an item's place and its result, as they come; None where the pool broke under it."""
    # Spawned, not forked: torch's and the progress bar's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        with _without_main():
            places: dict[Future[Result], int] = {pool.submit(call, items[at]): at for at in which}
        for done in as_completed(places):
            try:
                yield places[done], done.result()
            except BrokenProcessPool:
                yield places[done], None


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Workers started meanwhile do not run the caller's script again: they need nothing of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """The parent may run its kernels interpreted; a worker loads them to compile."""
    os.environ.pop("TRITON_INTERPRET", None)
