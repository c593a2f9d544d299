"""`mcgen verify`: generated code held against the token-by-token reference."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from mcgen.cli.main import DOES_NOT_HOLD, DONE
from mcgen.cli.output import in_progress, json_option, print_json, print_table
from mcgen.spec import Spec, load, loads
from mcgen.spec.shipped import find

if TYPE_CHECKING:
    from types import ModuleType

    from mcgen.tune.verification import Case, Finding

INTERPRET = "TRITON_INTERPRET"
SMALL_SEGMENT = 16
LENGTHS = (1, 2, 63, 64, 65, 97, 131)
LONGEST = 1025
"""Most tokens that the reference is run on."""

COLUMNS = ("tensor", "what", "error", "tolerance", "worst at (b, t, h, d)", "of tokens", "ok")


@dataclass(frozen=True)
class Subject:
    """A module to verify, the spec it is of, and whether it is what that spec gives today."""

    module: ModuleType
    spec: Spec
    current: bool


@click.command()
@click.argument("subject", metavar="SPEC|MODULE")
@click.option("--backend", type=click.Choice(["torch", "triton"]), help="Default: triton on cuda, torch on the CPU.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of the random inputs.")
@json_option
def verify(subject: str, backend: str | None, device: str, seed: int, as_json: bool) -> int:
    """Hold generated code against its token-by-token reference, values and gradients; exit 1 on a miss.

    SPEC is a file or a shipped spec's name, and is built for this; MODULE is a generated .py file. On the CPU, Triton
    kernels run interpreted, on small problems.

    \b
    Example:
      mcgen verify linear_grm
      mcgen verify generated/linear_grm.py --backend triton
    """
    backend = backend or ("triton" if device == "cuda" else "torch")
    if backend == "triton" and not _interpreter_is_set(interpret=device == "cpu"):
        return _again(subject, "--backend", backend, "--device", device, "--seed", str(seed), *["--json"] * as_json)
    with tempfile.TemporaryDirectory(prefix="mcgen-") as folder:
        findings = list(_findings(subject, backend, device, seed, Path(folder)))
    if as_json:
        print_json(_plain(subject, backend, device, seed, findings))
    else:
        _show(f"{subject}: {backend} on {device}, seed {seed}", findings)
    return DONE if all(finding.holds for finding in findings) else DOES_NOT_HOLD


def _interpreter_is_set(interpret: bool) -> bool:
    """Turn Triton's interpreter on or off, if it is not too late: Triton reads its switch when it is imported."""
    if (os.environ.get(INTERPRET) == "1") == interpret:
        return True
    os.environ[INTERPRET] = "1" if interpret else "0"
    return "triton" not in sys.modules


def _again(*arguments: str) -> int:
    """The exit status of the same command in a process of its own, under this one's environment."""
    return subprocess.run([sys.executable, "-m", "mcgen", "verify", *arguments], check=False).returncode


def _findings(argument: str, backend: str, device: str, seed: int, folder: Path) -> Iterator[Finding]:
    from mcgen.tune.verification import hold, require

    require(backend, device)
    subject = _subject(argument, folder)
    cases = list(_cases(subject, small=(backend, device) == ("triton", "cpu"), folder=folder))
    for case in in_progress(cases, "verifying"):
        yield from hold(case, backend, device, seed)


def _subject(argument: str, folder: Path) -> Subject:
    """What to verify: a module as it lies there, or the one a spec gives, built into a folder."""
    from mcgen import pipeline
    from mcgen.tune.verification import imported

    if argument.endswith(".py"):
        module = imported(Path(argument))
        spec = loads(yaml.safe_dump(module.SPEC), argument)
        text = Path(argument).read_text(encoding="utf-8")
        return Subject(module, spec, current=any(text == pipeline.source(spec, tuned) for tuned in (False, True)))
    return _built(load(find(argument)), folder)


def _built(spec: Spec, folder: Path) -> Subject:
    from mcgen import pipeline
    from mcgen.tune.verification import imported

    path = folder / f"{spec.name}_{spec.segment.size}.py"
    path.write_text(pipeline.source(spec), encoding="utf-8")
    return Subject(imported(path), spec, current=True)


def _cases(subject: Subject, small: bool, folder: Path) -> Iterator[Case]:
    """Lengths around whole chunks and none of these, a segment and one, and, for long segments, the same rule in short
    ones, so that many are crossed."""
    from mcgen.tune.verification import Case

    spec, shape = subject.spec, (1, 2) if small else (2, 3)
    size = spec.segment.size or 1
    lengths = [1, 2, 63] if small else [*LENGTHS, *([size + 1] if size < LONGEST else [])]
    yield from (Case(subject.module, spec, length, *shape) for length in sorted({*lengths}))
    if size > 2 * SMALL_SEGMENT and subject.current:
        short = replace(spec, segment=spec.segment.model_copy(update={"size": SMALL_SEGMENT}))
        module = _built(short, folder).module
        lengths = [SMALL_SEGMENT + 1, 50] if small else [SMALL_SEGMENT + 1, 63, 100]
        yield from (Case(module, short, length, *shape) for length in lengths)


def _show(heading: str, findings: Sequence[Finding]) -> None:
    print_table(COLUMNS, map(_row, _worst(findings)), heading)
    missed = sum(not finding.holds for finding in findings)
    click.echo(f"{len(findings)} comparisons, {missed} missed; tokens: {_tried(findings)}")


def _tried(findings: Sequence[Finding]) -> str:
    lengths: dict[str, set[int]] = {}
    for finding in findings:
        lengths.setdefault(finding.segments, set()).add(finding.length)
    return "; ".join(f"{', '.join(map(str, sorted(tried)))} ({kind} segments)" for kind, tried in lengths.items())


def _worst(findings: Sequence[Finding]) -> list[Finding]:
    """For each tensor the finding furthest off."""
    worst: dict[str, Finding] = {}
    for finding in findings:
        other = worst.setdefault(finding.tensor, finding)
        if (finding.holds, -finding.error) < (other.holds, -other.error):
            worst[finding.tensor] = finding
    return list(worst.values())


def _row(finding: Finding) -> list[str]:
    index = f"({', '.join(map(str, finding.worst))})" if finding.worst else ""
    where = f"{finding.length} ({finding.segments} segments)"
    verdict = "ok" if finding.holds else finding.fault or "missed"
    if finding.zero:
        return [finding.tensor, finding.what, "0 by construction", "0", "", where, verdict]
    return [finding.tensor, finding.what, f"{finding.error:.1e}", f"{finding.tolerance:.0e}", index, where, verdict]


def _plain(subject: str, backend: str, device: str, seed: int, findings: Sequence[Finding]) -> dict[str, Any]:
    return {
        "subject": subject,
        "backend": backend,
        "device": device,
        "seed": seed,
        "ok": all(finding.holds for finding in findings),
        "findings": [_plain_finding(finding) for finding in findings],
    }


def _plain_finding(finding: Finding) -> dict[str, Any]:
    error = finding.error if math.isfinite(finding.error) else None
    return {**asdict(finding), "error": error, "ok": finding.holds}
