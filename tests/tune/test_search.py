"""The search for configurations: which candidates are compiled, and which is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mcgen.plan.configurations import Configuration, Key
from mcgen.plan.targets import Target, lookup
from mcgen.tune import offline
from mcgen.tune.candidates import ahead_candidates
from mcgen.tune.offline import Job, Resources
from mcgen.tune.search import HOPELESS, Subject, first_good, first_good_of_each, search

SM80, SM90 = lookup("cuda:80"), lookup("cuda:90")
PLACES = [(64, 64, 8), (64, 32, 8), (32, 64, 8), (32, 32, 8), (16, 32, 8)]
"""Rows, columns and warps of candidates, in order."""


def jobs(target: Target) -> list[Job]:
    return [
        Job(Path("f.py"), "k", {}, {"BT": rows, "BV": columns}, target, warps, 1) for rows, columns, warps in PLACES
    ]


@pytest.fixture
def spills(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], int]:
    """What candidates spill, by target and place, 0 unless set; `compiled` has what was compiled, in order."""
    table: dict[tuple[str, int], int] = {}

    def compile_job(job: Job) -> Resources:
        place = PLACES.index((job.constexprs["BT"], job.constexprs["BV"], job.num_warps))
        compiled.append((job.target.arch, place))
        return Resources(spill_loads=table.get((job.target.arch, place), 0))

    compiled.clear()
    monkeypatch.setattr(offline, "compile_job", compile_job)
    return table


compiled: list[tuple[str, int]] = []


def set_spills(table: dict[tuple[str, int], int], target: Target, of: Mapping[int, int]) -> None:
    table.update({(target.arch, place): count for place, count in of.items()})


def test_the_first_that_spills_nothing_is_taken(spills: dict) -> None:
    set_spills(spills, SM80, {0: 8, 1: 4})
    assert first_good(jobs(SM80)) == (2, Resources())


def test_narrower_tiles_are_not_tried_where_rows_are_too_many(spills: dict) -> None:
    set_spills(spills, SM80, {0: HOPELESS, 2: 4})
    assert first_good(jobs(SM80))[0] == 3
    assert [place for _, place in compiled] == [0, 2, 3]


def test_the_least_bad_is_taken_where_none_is_clean(spills: dict) -> None:
    set_spills(spills, SM80, {0: 40, 1: 30, 2: 20, 3: 5, 4: 9})
    at, best = first_good(jobs(SM80))
    assert (at, best.spill_loads) == (3, 5)


def test_a_target_begins_where_the_one_before_it_ended(spills: dict) -> None:
    set_spills(spills, SM80, {0: 8, 1: 8})
    set_spills(spills, SM90, {2: 8})
    assert [at for at, _ in first_good_of_each([jobs(SM80), jobs(SM90)])] == [2, 3]
    assert compiled == [("cuda:80", 0), ("cuda:80", 1), ("cuda:80", 2), ("cuda:90", 2), ("cuda:90", 3)]


def test_what_was_passed_over_is_tried_where_nothing_else_is_clean(spills: dict) -> None:
    set_spills(spills, SM80, {0: 8, 1: 8, 2: 8})
    set_spills(spills, SM90, {3: 8, 4: 8})
    assert [at for at, _ in first_good_of_each([jobs(SM80), jobs(SM90)])] == [3, 0]


@pytest.mark.parametrize(
    ("axis", "arch", "first"), [("v", "cuda:90", (128, 128, 8, 3)), ("", "cuda:80", (128, 64, 8, 3))]
)
def test_plain_products_are_tried_with_many_rows_and_stages_ahead(axis: str, arch: str, first: tuple) -> None:
    size = first[1]
    tried = list(ahead_candidates(axis, size, size, "bfloat16", lookup(arch)))
    assert tried[0].numbers == first
    assert {one.stages for one in tried} == {3, 2}
    assert len({one.columns for one in tried}) == (4 if axis else 1)


@pytest.mark.parametrize(("afresh", "groups"), [(False, [2]), (True, [1, 1])])
def test_targets_are_searched_together_unless_afresh(
    afresh: bool, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike(given: list[list[Subject]], *_: object) -> dict[Key, tuple[int, Resources]]:
        seen.append([len(group) for group in given])
        return {subject.key: (0, Resources()) for group in given for subject in group}

    seen: list[list[int]] = []
    monkeypatch.setattr("mcgen.tune.search._in_workers", alike)
    keys = [Key("d", 64, 64, "bfloat16", target.architecture) for target in (SM80, SM90)]
    search([Subject(key, "k", SM80, (Configuration(64, 64, 8),), tuple(jobs(SM80)), afresh) for key in keys])
    assert seen == [groups, []]
