"""Kernels are launched no more often, and handed no more, than the peer's that compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "traffic.py"


def run(*options: str) -> str:
    """What the script prints, in a process of its own, since it turns Triton's interpreter on."""
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["memory"], row["way"]): row for row in json.loads(run("--json"))}


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("memory", ["linear none", "decay none", "gated_delta none"])
def test_no_more_than_the_peer(rows: dict[tuple[str, str], dict[str, Any]], memory: str, way: str) -> None:
    row = rows[memory, way]
    assert 0 < row["found"]["launches"] <= row["of_peer"]["launches"]
    assert row["found"]["megabytes"] <= row["of_peer"]["megabytes"]


def test_every_way_moves_what_any_must(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """A launch that the count misses would leave less than inputs and outputs once each."""
    assert {way for _, way in rows} == {"forward", "backward"}
    for row in rows.values():
        assert row["found"]["megabytes"] >= row["bound"] > 0
        assert sum(row["kernels"].values()) == pytest.approx(row["found"]["megabytes"])


def test_bounds_are_of_inputs_and_outputs(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """q, k, v, y, and as many gradients as inputs; a gate has a float32 where they have 64 halves."""
    tensor = 4096 * 4 * 64 * 2 / 10**6
    assert rows["linear none", "forward"]["bound"] == pytest.approx(4 * tensor)
    assert rows["linear none", "backward"]["bound"] == pytest.approx(7 * tensor)
    assert rows["linear grm", "backward"]["bound"] == pytest.approx(9 * tensor)
    assert rows["decay none", "forward"]["bound"] == pytest.approx((4 + 1 / 32) * tensor)
