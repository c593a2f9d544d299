"""Every shipped spec at lengths around chunks and segments, and at others, on both paths, and the room they take."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mcgen.cli import main
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.tune.verification import Case, hold, imported
from tests.held import misses

GENERATED = Path(__file__).parents[1] / "generated"


def generated(name: str) -> ModuleType:
    return imported(GENERATED / f"{name}.py")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_spec_is_verified(name: str) -> None:
    done = CliRunner().invoke(main, ["verify", name, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    lengths = {finding["length"] for finding in report["findings"]}
    assert report["ok"]
    assert {1, 2, 63, 64, 65, 97, 131} <= lengths


@pytest.mark.parametrize("name", shipped())
@settings(max_examples=2, deadline=None, phases=(Phase.generate,))
@given(length=st.integers(3, 400))
def test_a_shipped_module_holds_at_any_length(name: str, length: int) -> None:
    case = Case(generated(name), load(shipped()[name]), length, batch=1, heads=2)
    assert [finding for finding in hold(case, "torch", "cpu", seed=length) if not finding.holds] == []


SMALL = {"key_dim": 4, "value_dim": 4}


@pytest.mark.parametrize(
    ("name", "lengths"),
    [("retnet_none", (64, 65, 257)), ("gated_delta_grm", (63, 97)), ("swla_ssc", (65, 131)), ("titans_grm", (64, 65))],
)
def test_kernels_hold_around_chunks_and_segments(name: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    spec = load(shipped()[name]).to_dict() | {"head": SMALL}
    spec["segment"]["size"] = 256 if name == "retnet_none" else 32
    assert misses([(spec, length) for length in lengths], tmp_path) == []


@pytest.mark.parametrize("name", shipped())
def test_what_is_set_aside_holds_every_panel(name: str) -> None:
    """The torch path's room for states is a formula, since a length may be a symbol; the walk is none."""
    module = generated(name)
    for heads in (1, 3, 16, 24, 64, 200):
        for length in (*range(1, 200), 255, 256, 257, 511, 512, 513, 1000, 1024, 4097):
            walk = module._panels(length, heads)
            rooms = module._rooms_torch(1, length, heads)
            inner = sum(len(run) - 1 for run in walk)
            for part, shape in rooms.items():
                if part.startswith("inner_"):
                    assert inner <= shape[2] <= inner + 6 + length // 50, (part, length, heads)
                elif part.startswith("kept_"):
                    assert walk[-1][-1].j <= shape[2] <= walk[-1][-1].j + 1, (part, length, heads)
