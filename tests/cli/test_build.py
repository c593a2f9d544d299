"""`mcgen build`: what it writes, that it writes whole or not at all, and what `--check` finds."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcgen.cli import main
from mcgen.cli.build import write_whole
from mcgen.plan import configurations
from mcgen.plan.configurations import Configuration, Entry, Key
from mcgen.spec import load
from mcgen.tune.verification import imported

SPEC = """\
mcgen: 1
name: {name}
memory: {{kind: matrix}}
update: {{rule: decay}}
aggregate: {{kind: none}}
head: {{key_dim: 8, value_dim: 8}}
"""


def spec(folder: Path, name: str, change: tuple[str, str] = ("", "")) -> str:
    """The path of a small spec, one piece of its text replaced."""
    path = folder / f"{name}.yaml"
    path.write_text(SPEC.format(name=name).replace(*change))
    return str(path)


def build(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["build", *map(str, arguments)])


def test_it_writes_a_module_named_after_the_spec(tmp_path: Path) -> None:
    done = build(spec(tmp_path, "mine"), "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stdout == f"wrote  {tmp_path / 'out' / 'mine.py'}\n"
    text = (tmp_path / "out" / "mine.py").read_text()
    assert f'SPEC_HASH = "{load(tmp_path / "mine.yaml").digest()}"' in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.py"]


def test_the_folder_is_generated_unless_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert build(spec(tmp_path, "mine")).exit_code == 0
    assert (tmp_path / "generated" / "mine.py").exists()


def test_a_file_that_is_right_stays_untouched(tmp_path: Path) -> None:
    mine = spec(tmp_path, "mine")
    build(mine, "-o", tmp_path)
    os.utime(tmp_path / "mine.py", (0, 0))
    assert "unchanged" in build(mine, "-o", tmp_path).output
    assert (tmp_path / "mine.py").stat().st_mtime == 0
    (tmp_path / "mine.py").write_text("old")
    assert "wrote" in build(mine, "-o", tmp_path).output


def test_where_one_spec_is_wrong_nothing_is_written_and_all_errors_are_shown(tmp_path: Path) -> None:
    wrong, worse = spec(tmp_path, "wrong", ("rule", "role")), spec(tmp_path, "worse", ("matrix", "matrx"))
    done = build(spec(tmp_path, "mine"), wrong, worse, "nowhere.yaml", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert all(part in done.stderr for part in (f"{wrong}:4:10", f"{worse}:3:16", "no such file"))
    assert done.stdout.split() == ["not", "written", str(tmp_path / "out/mine.py"), *wrong_lines(wrong, worse)]
    assert not (tmp_path / "out").exists()


def wrong_lines(*files: str) -> list[str]:
    return [word for file in (*files, "nowhere.yaml") for word in ("error", file)]


def test_two_specs_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = spec(tmp_path, "mine"), spec(tmp_path / "other", "mine")
    done = build(first, second, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert f"two specs are called `mine`: this one and {first}\n  {second}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_check_writes_nothing_and_names_what_is_not_what_its_spec_gives(tmp_path: Path) -> None:
    specs = [spec(tmp_path, name) for name in ("right", "stale", "absent")]
    build(*specs[:2], "-o", tmp_path)
    stale = tmp_path / "stale.py"
    stale.write_text(stale.read_text().replace("B, T, H, K = ", "B, T, H, J = ", 1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = build("--check", *specs, "-o", tmp_path)
    assert done.exit_code == 1
    assert all(
        line in done.output for line in (f"holds    {tmp_path / 'right.py'}", f"missing  {tmp_path / 'absent.py'}")
    )
    assert f"differs  {stale}\n--- {stale}\n+++ {specs[1]}, built\n" in done.output
    assert "\n-    B, T, H, J = " in done.output and "\n+    B, T, H, K = " in done.output
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert build("--check", specs[0], "-o", tmp_path).exit_code == 0


def test_check_sees_a_changed_end_of_line(tmp_path: Path) -> None:
    mine = spec(tmp_path, "mine")
    build(mine, "-o", tmp_path)
    path = tmp_path / "mine.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert build("--check", mine, "-o", tmp_path).exit_code == 1


DEEP = ("matrix}\nupdate: {rule: decay}", "mlp}\nupdate: {rule: titans, gradient: token}")
CURVED = ("rule: decay", 'objective: "sum(exp(p - v))", steps: ["M = M - eta*grad"]')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (DEEP, "gradient: token needs a matrix memory"),
        (CURVED, "gradient: token needs an objective quadratic in p"),
    ],
)
def test_what_cannot_be_lowered_is_refused_with_what_would_be(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    mine = spec(tmp_path, "mine", change)
    done = build(mine, "-o", tmp_path)
    assert done.exit_code == 2
    assert f"error: {reason}" in done.stderr
    assert CliRunner().invoke(main, ["check", mine]).exit_code == 2
    assert CliRunner().invoke(main, ["check", "--parse-only", mine]).exit_code == 0


def test_an_unknown_target_is_the_users_error(tmp_path: Path) -> None:
    mine = spec(tmp_path, "mine")
    done = build(mine, "-o", tmp_path, "--target", "h10")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean h100?" in done.stderr
    assert build(mine, "-o", tmp_path, "--target", "h100", "--target", "cuda:80").exit_code == 0


def test_a_file_where_the_folder_should_be_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert build(spec(tmp_path, "mine"), "-o", tmp_path / "out").exit_code == 2


def test_json(tmp_path: Path) -> None:
    done = build(spec(tmp_path, "mine"), "--json", "-o", tmp_path)
    [row] = json.loads(done.stdout)
    assert (row["name"], row["status"], row["errors"]) == ("mine", "wrote", [])
    assert row["digest"] == load(tmp_path / "mine.yaml").digest()
    done = build(spec(tmp_path, "mine"), spec(tmp_path, "wrong", ("rule", "role")), "--json", "-o", tmp_path)
    rows = json.loads(done.stdout)
    assert (done.exit_code, [row["status"] for row in rows]) == (2, ["not written", "error"])
    assert rows[1]["errors"][0]["line"] == 4


def keep(folder: Path, digests: dict[str, str]) -> None:
    """Launch configurations of kernels on one GPU, as `mcgen tune` keeps them."""
    key = {name: Key(digest, 8, 8, "float32", "sm90") for name, digest in digests.items()}
    configurations.keep(folder, {key[name]: Entry(name, Configuration(16, 16, 2), 1, 0, 1, 1) for name in key})


def test_what_was_tuned_is_written_only_if_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "configurations"
    mine, path = spec(tmp_path, "mine"), tmp_path / "mine.py"
    build(mine, "-o", tmp_path)
    before, module = path.read_bytes(), imported(path)
    keep(folder, module.DIGESTS)
    assert build("--check", mine, "-o", tmp_path).exit_code == 0
    assert build("--check", "--tuned", mine, "-o", tmp_path).exit_code == 1

    done = build("--tuned", mine, "-o", tmp_path)
    assert done.exit_code == 0 and f"with launch configurations from {folder}\n" in done.stderr
    tuned = imported(path).CONFIGURATIONS["sm90"]
    assert tuned == {"float32": dict.fromkeys(module.DIGESTS, (16, 16, 2, 1))}
    assert build("--check", "--tuned", mine, "-o", tmp_path).exit_code == 0
    assert build("--check", mine, "-o", tmp_path).exit_code == 1
    [row] = json.loads(build("--tuned", mine, "-o", tmp_path, "--json").stdout)
    assert row["tuned"] == str(folder)
    build(mine, "-o", tmp_path)
    assert path.read_bytes() == before


def test_where_nothing_was_tuned_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path / "cache"))
    done = build("--tuned", spec(tmp_path, "mine"), "-o", tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"no launch configurations lie in {tmp_path / 'cache' / 'configurations'}: `mcgen tune`" in done.stderr
    (tmp_path / "cache" / "configurations").mkdir(parents=True)
    (tmp_path / "cache" / "configurations" / "sm90.json").write_text("{")
    done = build("--tuned", spec(tmp_path, "mine"), "-o", tmp_path)
    assert done.exit_code == 2 and "sm90.json is no table of launch configurations" in done.stderr
    assert build(spec(tmp_path, "mine"), "-o", tmp_path).exit_code == 0


def test_kernels_that_no_table_has_are_named_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(configurations, "shipped_folder", lambda: tmp_path / "tables")
    mine = spec(tmp_path, "mine", ("decay", "linear"))
    done = build(mine, "-o", tmp_path, "--target", "h100", "--target", "mi300x")
    line = f"warning: {mine}: default tiles for {{}} on sm90, gfx942; `mcgen tune {mine} --offline` finds better\n"
    assert done.exit_code == 0 and done.stderr == line.format("every kernel in bfloat16 and float32")
    digests = imported(tmp_path / "mine.py").DIGESTS
    keep(tmp_path / "tables", {name: digest for name, digest in digests.items() if name != "keys"})
    done = build(mine, "-o", tmp_path, "--target", "h100")
    lacking = "every kernel in bfloat16 on sm90; keys in float32 on sm90"
    assert done.stderr == f"warning: {mine}: default tiles for {lacking}; `mcgen tune {mine} --offline` finds better\n"
    [row] = json.loads(build(mine, "-o", tmp_path, "--json").stdout)
    [warning] = row["warnings"]
    assert "every kernel in float32 on sm80, sm100, gfx942; keys in float32 on sm90" in warning["message"]


def test_where_tables_have_every_kernel_nothing_is_said(tmp_path: Path) -> None:
    assert build("linear_grm", "-o", tmp_path).stderr == ""


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("old")
    whole = Path.write_bytes

    def breaks(path: Path, content: bytes) -> int:
        if "second" in path.name:
            whole(path, content[:2])
            raise OSError(28, "No space left on device", str(path))
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", breaks)
    with pytest.raises(OSError, match="No space"):
        write_whole({first: "new", second: "new"})
    assert first.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["first.py"]


def test_it_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mcgen", "build", "linear_grm", "-o", str(tmp_path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "triton", "numpy"}
