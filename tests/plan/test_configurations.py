"""Tables of launch configurations: kept, read back, and rid of what no kernel has any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcgen.errors import UnsupportedError
from mcgen.plan import configurations
from mcgen.plan.configurations import Configuration, Entry, Key, architectures, drop, find, folders, keep, read

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


def test_a_build_reads_the_users_tables_only_where_it_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path))
    keep(configurations.user_folder(), FOUND)
    key, entry = next(iter(FOUND.items()))
    assert find(key, folders(tuned=False)) is None
    assert find(key, folders(tuned=True)) == entry


def test_the_first_folder_that_has_a_kernel_has_it(tmp_path: Path) -> None:
    key, entry = next(iter(FOUND.items()))
    other = Entry(entry.kernel, Configuration(64, 64, 4), 128, 0, 4096, 1)
    keep(tmp_path / "one", {key: other})
    keep(tmp_path / "two", FOUND)
    both = [tmp_path / "one", tmp_path / "two"]
    assert find(key, both) == other
    assert {find(key, both[::-1]) for key in FOUND} == {*FOUND.values()}


def test_architectures_go_by_their_age(tmp_path: Path) -> None:
    for folder, names in {"one": ["sm100", "gfx942", "sm90"], "two": ["sm80", "sm90", "gfx90a"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.json").touch()
    assert architectures([tmp_path / "one", tmp_path / "two"]) == ["sm80", "sm90", "sm100", "gfx90a", "gfx942"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"read": 3}', '{"read a": 3}', '{"read a": {"64x64": []}}', '{"a b": {"6x6 f": ["1"]}}']
)
def test_what_is_no_table_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sm90.json"
    path.write_text(text)
    for call in (lambda: read(tmp_path), lambda: keep(tmp_path, FOUND), lambda: find(next(iter(FOUND)), [tmp_path])):
        with pytest.raises(UnsupportedError, match=f"{path} is no table of launch configurations .* remove it"):
            call()
    assert path.read_text() == text
