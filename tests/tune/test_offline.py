"""Kernels compile for GPUs that are not at hand; what they take, and why they fail, comes back.

Everything compiles in worker processes: another test of the same process may have turned Triton's interpreter on.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from mcgen.errors import InternalError
from mcgen.plan.targets import lookup
from mcgen.tune import offline
from mcgen.tune.offline import Job, Resources, compile_job, in_workers, load_kernels, source_digest

KERNELS = Path(__file__).with_name("kernels.py")
ARCHITECTURES = ("cuda:80", "cuda:90", "cuda:100", "cuda:120", "hip:gfx942", "hip:gfx950")


@pytest.fixture(autouse=True)
def _fresh_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files loaded meanwhile have kernels to compile, whatever the tests around run interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    offline._load.cache_clear()
    yield
    offline._load.cache_clear()


def attend(target: str, dtype: str = "bf16", BT: int = 32, D: int = 64, warps: int = 4) -> Job:
    signature = {"q": f"*{dtype}", "k": f"*{dtype}", "o": f"*{dtype}", "T": "i32", "stride": "i32"}
    return Job(KERNELS, "attend", signature, {"BT": BT, "D": D}, lookup(target), warps, 2)


def compiled(jobs: Sequence[Job], cache: Path, processes: int = 2) -> list[Resources | None]:
    return in_workers(partial(compile_job, cache=cache), jobs, processes, progress=False)


JOBS = {
    **{arch: attend(arch) for arch in ARCHITECTURES},
    "large": attend("rtx4090", "fp32", BT=128, D=128, warps=8),
    "narrow": attend("h100", D=8),
    "odd": attend("h100", D=48),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def found(cache: Path) -> Mapping[str, Resources]:
    results = compiled(list(JOBS.values()), cache)
    return dict(zip(JOBS, results, strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_small_kernel_is_clean_everywhere(found: Mapping[str, Resources], arch: str) -> None:
    assert found[arch].clean and found[arch].failure is None
    assert 16 <= found[arch].registers <= (512 if arch.startswith("hip") else 255)
    assert 0 < found[arch].shared_bytes <= lookup(arch).shared_bytes


def test_a_large_tile_spills_and_is_too_large(found: Mapping[str, Resources]) -> None:
    large = found["large"]
    assert large.spill_loads > 0 and large.loop_spill_loads > 0 and not large.clean
    assert large.failure is not None and "shared memory" in large.failure and "rtx4090" in large.failure


def test_what_the_compiler_refuses_is_a_failure(found: Mapping[str, Resources]) -> None:
    assert "K >= 16" in (found["narrow"].failure or "")
    assert "power of 2" in (found["odd"].failure or "")


def test_limits_are_the_targets_not_the_compilers() -> None:
    def failure(target: str, warps: int = 4, **taken: int) -> str | None:
        return offline._judged(Resources(**taken), lookup(target), warps).failure

    assert "tensor memory" in (failure("b200", registers=100, tmem=672) or "")
    assert "register allocation" in (failure("h100", registers=32, spill_stores=20_000) or "")
    assert "32 warps" in (failure("mi300x", registers=32, warps=32) or "")
    assert failure("h100", registers=32, shared_bytes=lookup("h100").shared_bytes, warps=32) is None


def test_results_are_kept_by_architecture(found: Mapping[str, Resources], cache: Path) -> None:
    kept = set(cache.iterdir())
    assert compiled([attend("h100"), attend("h200")], cache) == [found["cuda:90"]] * 2
    assert set(cache.iterdir()) == kept


def test_a_crash_is_one_jobs_failure(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "crashing.py"
    crashing.write_text("import os\nos.abort()\n")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    bad = Job(crashing, "attend", {}, {}, lookup("h100"), 4, 2)
    results = compiled([attend("h100"), bad], cache)
    assert results[0].clean
    assert results[1] is None


def test_a_callers_script_does_not_run_again(tmp_path: Path) -> None:
    script = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from mcgen.plan.targets import lookup\n"
        "from mcgen.tune.offline import Job, compile_job, in_workers\n"
        f"kernels, cache = Path({str(KERNELS)!r}), Path({str(tmp_path)!r})\n"
        "types = {'x': '*fp32', 'y': '*fp32', 'n': 'i32'}\n"
        "job = Job(kernels, 'double', types, {'B': 64}, lookup('h100'), 4, 2)\n"
        "print(in_workers(partial(compile_job, cache=cache), [job], 1, False)[0].clean)\n"
    )
    root = KERNELS.parent.parent.parent
    done = subprocess.run([sys.executable, "-"], input=script, cwd=root, capture_output=True, text=True, check=True)
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_an_argument_without_a_type_is_refused(tmp_path: Path) -> None:
    job = Job(KERNELS, "attend", {}, {"BT": 32, "D": 64}, lookup("h100"), 4, 2)
    with pytest.raises(ValueError, match=r"without a type .*'stride'"):
        compiled([job], tmp_path, processes=1)


def test_the_interpreter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels(KERNELS)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InternalError, match="TRITON_INTERPRET"):
        compile_job(attend("h100"), tmp_path)


def test_a_digest_is_of_the_computation_alone(tmp_path: Path) -> None:
    kernels = load_kernels(KERNELS)
    text = KERNELS.read_text()
    assert source_digest(kernels["attend"]) == source_digest(kernels["attend_again"])
    assert source_digest(kernels["attend"]) != source_digest(kernels["double"])
    for change in (("LOG2E = tl.constexpr(1.4", "LOG2E = tl.constexpr(1.5"), ("tl.exp2(x *", "tl.exp2(x +")):
        other = tmp_path / f"{len(list(tmp_path.iterdir()))}.py"
        other.write_text(text.replace(*change))
        assert source_digest(load_kernels(other)["attend"]) != source_digest(kernels["attend"])
