"""Tables of launch configurations: kept, read back, and rid of what no kernel has any more."""

from __future__ import annotations

from pathlib import Path

from mcgen.plan.configurations import Configuration, Entry, Key, drop, keep, read

FOUND = {
    Key("a" * 64, 64, 64, "float32", "sm90"): Entry("read", Configuration(32, 64, 4), 200, 0, 4096, 1),
    Key("a" * 64, 64, 64, "float32", "sm80"): Entry("read", Configuration(16, 64, 4), 210, 0, 8192, 3),
    Key("b" * 64, 128, 64, "bfloat16", "sm90"): Entry("rows", Configuration(64, 32, 8, 2), 255, 0, 0, 2),
}


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    keep(tmp_path, FOUND)
    assert read(tmp_path) == FOUND
    assert {path.name for path in tmp_path.iterdir()} == {"sm80.json", "sm90.json"}


def test_what_is_found_again_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    keep(tmp_path, FOUND)
    key, entry = next(iter(FOUND.items()))
    better = Entry(entry.kernel, Configuration(64, 64, 4), 128, 0, 4096, 1)
    keep(tmp_path, {key: better})
    assert read(tmp_path) == {**FOUND, key: better}


def test_kernels_that_are_gone_are_dropped_and_others_stay(tmp_path: Path) -> None:
    keep(tmp_path, FOUND)
    drop(tmp_path, {"a" * 64})
    assert read(tmp_path) == {key: entry for key, entry in FOUND.items() if key.digest == "a" * 64}
