"""The benchmark script still runs, and every line of its report names what there is to run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ratios.py"


@pytest.fixture(scope="module")
def ratios() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ratios", SCRIPT)
    module = sys.modules["ratios"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_name_subjects(ratios: ModuleType) -> None:
    named = {row.subject for row in (*ratios.RATIOS, *ratios.PEAKS)} | {row.against for row in ratios.RATIOS}
    assert named <= ratios.SUBJECTS.keys()


def test_lines_without_their_package_are_skipped(ratios: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ratios.Ratio("linear none", "attention", bound=0.5, needs="a_package_of_nobody")
    monkeypatch.setattr(ratios, "RATIOS", (row,))
    done = CliRunner().invoke(ratios.main, ["--no-memory"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "skipped: a_package_of_nobody is not" in done.output


def test_it_runs_and_writes_what_it_measured(ratios: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    arguments = ["--length", "300", "--rounds", "1", "--no-memory", "--json", str(path)]
    done = CliRunner().invoke(ratios.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "linear grm" in done.output
    measured = json.loads(path.read_text())["ratios"]
    assert [(row["subject"], row["against"]) for row in measured] == [(r.subject, r.against) for r in ratios.RATIOS]
    assert all(row["ratio"] > 0 for row in measured)


def test_peak_memory_counts_what_a_call_needs(ratios: ModuleType) -> None:
    """Gradients of q, k, v, u alone are four tensors of T * H * D floats."""
    tensor = 8192 * ratios.HEADS * ratios.DIM * 4
    assert ratios.peak("linear none", 8192) > 3 * tensor
