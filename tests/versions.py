"""What is promised of versions, each in an environment of its own: `python -m tests.versions [NAME …]`, or all.

The oldest and the newest torch and Triton: the conformance kit, where it lies beside the checkout, and some tests. All
Pythons at hand: the shipped specs give the files in `generated/`. An environment lies in build/versions/NAME and is
installed once; those of torch are several GB each where pip finds builds for CUDA alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.interpreters import interpreters

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "versions"
KIT = ROOT.parent / "shared" / "conformance" / "check.py"
GROUPS = ("matrix", "delta", "deep")

TOOLS = ("hypothesis>=6.100", "jsonschema>=4.21", "pytest>=8")
OLDEST = (
    "click==8.2.0",
    "jinja2==3.1.0",
    "networkx==3.0",
    "numpy==1.26.0",
    "platformdirs==4.0.0",
    "pydantic==2.7.0",
    "pyyaml==6.0.1",
    "rich==13.7.0",
    "ruff==0.9.0",
    "sympy==1.13.1",
)
"""What pyproject.toml allows at least."""
FORMATTED = ("ruff", "sympy")
"""What the bytes of a file follow from, besides mcgen."""

TORCH_TESTS = ("tests/emit/test_layer.py", "tests/emit/test_torch_fused.py", "tests/ir", "tests/tune/test_launches.py")
TRITON_TESTS = ("tests/cli/test_tune.py", "tests/cli/test_verify.py", "tests/emit/test_tuned.py")


@dataclass(frozen=True)
class Versions:
    """Packages, those that are put over what they bring along, backends to hold, and tests to run."""

    packages: tuple[str, ...]
    over: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


RANGE = {
    # Its Triton, 3.2, compiles the kernels; `tune` and the interpreter want a newer one.
    "oldest": Versions(("torch==2.6.0", *OLDEST, *TOOLS), backends=("torch",), tests=TORCH_TESTS),
    # Whatever Triton that torch is of: the oldest that tunes. Its interpreter breaks on numpy 2.4.
    "oldest-compiler": Versions(("torch==2.13.0", "numpy<2.4", *TOOLS), ("triton==3.6.0",), ("triton",), TRITON_TESTS),
    "newest": Versions(("torch==2.14.1", *TOOLS), backends=("torch", "triton"), tests=TORCH_TESTS + TRITON_TESTS),
}


@dataclass(frozen=True)
class Check:
    """A command of an environment, and what it holds."""

    environment: str
    what: str
    command: tuple[str | Path, ...]


def main(*names: str) -> int:
    """0 where all holds; what does not is printed with the end of what it said."""
    pythons = {f"python{version}": path for version, path in interpreters().items()}
    makers: dict[str, Callable[[], Iterator[Check]]] = {
        **{name: partial(_of_range, name, versions) for name, versions in RANGE.items()},
        **{name: partial(_of_python, name, path) for name, path in pythons.items()},
    }
    if unknown := set(names) - makers.keys():
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    held = [_holds(check) for name in names or makers for check in makers[name]()]
    return int(not all(held))


def _of_range(name: str, versions: Versions) -> Iterator[Check]:
    python = _environment(name, Path(sys.executable), versions.packages, versions.over)
    for backend in versions.backends if KIT.exists() else ():
        for group in GROUPS:
            command = python, KIT, group, "--backend", backend, "--identities", "10"
            yield Check(name, f"conformance, {group} on {backend}", command)
    yield Check(name, "tests", (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *versions.tests))


def _of_python(name: str, interpreter: Path) -> Iterator[Check]:
    """Without torch: a build does not import it."""
    python = _environment(name, interpreter, _without_torch())
    specs = sorted((ROOT / "mcgen" / "specs").glob("*.yaml"))
    yield Check(name, "builds", (python, "-m", "mcgen", "build", "--check", *specs, "-o", ROOT / "generated"))


def _without_torch() -> tuple[str, ...]:
    """What mcgen needs but torch, in the versions that the files in `generated/` were made with."""
    text, pinned = (ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text()
    needed = re.findall(r'^    "([^"]+)",', text.partition("\ndependencies = [")[2].partition("\n]")[0], re.MULTILINE)
    pins = re.findall(rf"^(?:{'|'.join(FORMATTED)})==.+$", pinned, re.MULTILINE)
    return (*(one for one in needed if not one.startswith("torch")), *pins)


def _environment(name: str, interpreter: Path, packages: Sequence[str], over: Sequence[str] = ()) -> Path:
    """The interpreter of an environment that has what is asked for; nothing is installed twice."""
    folder = FOLDER / name
    python, stamp, wanted = folder / "bin" / "python", folder / "installed.txt", "\n".join([*packages, "", *over, ""])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"{name}: installing {', '.join([*packages, *over])}", flush=True)
    pip = python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    # With mcgen among them where torch is: that its needs let torch be is part of the promise.
    own = ["--editable", ROOT] if any(one.startswith("torch") for one in packages) else []
    subprocess.run([*pip, *packages, *own], check=True)
    if over:
        subprocess.run([*pip, "--no-deps", *over], check=True)
    stamp.write_text(wanted)
    return python


def _holds(check: Check) -> bool:
    start = time.monotonic()
    done = subprocess.run(check.command, cwd=ROOT, env=_variables(), capture_output=True, text=True)
    verdict = "holds" if done.returncode == 0 else f"FAILS with {done.returncode}"
    print(f"{check.environment}: {check.what}: {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-40:]), flush=True)
    return done.returncode == 0


def _variables() -> Mapping[str, str]:
    """The checkout comes before whatever is installed; the tests turn Triton's interpreter on and off themselves."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
