"""A generated module finds by itself what `mcgen tune` found on its machine, and takes no harm from all else there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs.macos
import platformdirs.unix
import platformdirs.windows
import pytest
import torch

from mcgen import pipeline
from mcgen.plan import configurations
from mcgen.plan.configurations import Configuration, Entry, Key
from mcgen.spec import Spec, load
from mcgen.spec.shipped import shipped
from mcgen.tune.launches import specialisations
from mcgen.tune.search import with_head
from mcgen.tune.verification import imported

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FLOAT32 = torch.float32


def spec_of(name: str, head: int) -> Spec:
    return with_head(load(shipped()[name]), head)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Modules of every kind of host: of matrices, of steps through layers, of layers by themselves."""
    folder = tmp_path_factory.mktemp("files")
    found = {name: folder / f"{name}.py" for name in ("linear_ssc", "titans_grm", "titans_chunk_grm")}
    for name, path in found.items():
        path.write_text(pipeline.source(spec_of(name, 16)), encoding="utf-8")
    return found


@pytest.fixture
def module(files: dict[str, Path]) -> ModuleType:
    return imported(files["linear_ssc"])


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's tables, empty."""
    monkeypatch.setenv("MCGEN_CACHE_DIR", str(tmp_path))
    (tmp_path / "configurations").mkdir()
    return tmp_path / "configurations"


def table(module: ModuleType, row: Any, kind: str = "float32", kernel: str = "read") -> dict[str, Any]:
    """A table with one kernel of a module in it."""
    return {f"whatever {module.DIGESTS[kernel]}": {f"16x16 {kind}": row}}


@pytest.mark.parametrize("home", ["/home/a", "/Users/b"])
@pytest.mark.parametrize("xdg", [None, "", "relative", "/var/cache"])
@pytest.mark.parametrize(
    ("platform", "dirs"),
    [
        ("linux", platformdirs.unix.Unix),
        ("darwin", platformdirs.macos.MacOS),
        ("win32", platformdirs.windows.Windows),
    ],
)
def test_it_looks_where_mcgen_keeps_them(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, platform: str, dirs: type, home: str, xdg: str | None
) -> None:
    local = os.path.join(home, "AppData", "Local")
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("LOCALAPPDATA", local)
    monkeypatch.delenv("MCGEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(platformdirs.windows, "get_win_folder", lambda name: {"CSIDL_LOCAL_APPDATA": local}[name])
    assert module._tables_folder() == os.path.join(dirs("mcgen").user_cache_dir, "configurations")


def test_as_on_this_machine(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(module._tables_folder()) == configurations.user_folder()
    monkeypatch.setenv("MCGEN_CACHE_DIR", "somewhere")
    assert Path(module._tables_folder()) == configurations.user_folder() == Path("somewhere/configurations")


@pytest.mark.parametrize("name", ["linear_ssc", "titans_grm", "titans_chunk_grm"])
def test_it_finds_every_kernel_as_tune_keeps_it(files: dict[str, Path], tables: Path, name: str) -> None:
    module = imported(files[name])
    for element in configurations.ELEMENTS:
        keys = {
            one.kernel.removesuffix("_kernel"): Key(
                module.DIGESTS[one.kernel.removesuffix("_kernel")], 16, 16, element, "sm90", one.rows
            )
            for one in specialisations(spec_of(name, 16), element)
        }
        assert keys.keys() == module.AXES.keys()
        entries = {
            key: Entry(kernel, Configuration(16 << at % 3, 32, 8, 2), 1, 0, 1, 1)
            for at, (kernel, key) in enumerate(keys.items())
        }
        configurations.keep(tables, entries)
        module._tuned.cache_clear()
        assert module._tuned("sm90")[element] == {
            entry.kernel: entry.configuration.numbers for entry in entries.values()
        }


def test_it_says_which_table_it_takes_once(module: ModuleType, tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert module._configured("read", FLOAT32, CPU) == (*module.DEFAULTS["cpu"]["float32"], 1)
    module._tuned.cache_clear(), module._configurations.cache_clear()
    (tables / "cpu.json").write_text(json.dumps(table(module, [16, 16, 2, 3, 99])))
    with caplog.at_level(logging.INFO):
        assert module._configured("read", FLOAT32, CPU) == (16, 16, 2, 3)
        assert module._configured("states", FLOAT32, CPU) == (*module.DEFAULTS["cpu"]["float32"], 1)
        assert module._configured("read", torch.bfloat16, CPU) == (*module.DEFAULTS["cpu"]["bfloat16"], 1)
    (line,) = caplog.records
    assert (line.name, line.levelname) == (module.__name__, "INFO")
    assert line.getMessage() == f"linear_ssc takes launch configurations from {tables / 'cpu.json'}"


def test_it_says_nothing_of_a_table_without_its_kernels(
    module: ModuleType, tables: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tables / "cpu.json").write_text(json.dumps({"read " + "0" * 64: {"16x16 float32": [16, 16, 2, 3]}}))
    with caplog.at_level(logging.INFO):
        assert module._configured("read", FLOAT32, CPU) == (*module.DEFAULTS["cpu"]["float32"], 1)
    assert not caplog.records


BROKEN = ["", "{", "[]", "7", "\x00", '{"read DIGEST": 3}', '{"read DIGEST": {"16x16 float32": 3}}']
ROWS = ["[]", "[16]", '["16", 16, 4, 1]', "[0, 16, 4, 1]", "[16, 24, 4, 1]", "[8, 16, 4, 1]", "[16, 16, 4, 0]"]
ROWS += ["[16, 16, 3, 1]", "[16, 16, null, 1]", "[16.0, 16, 4, 1]", "[-16, 16, 4, 1]", "[true, 16, 4, 1]"]


@pytest.mark.parametrize("text", [*BROKEN, *(f'{{"read DIGEST": {{"16x16 float32": {row}}}}}' for row in ROWS)])
def test_it_passes_over_a_broken_table(
    module: ModuleType, tables: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tables / "cpu.json").write_text(text.replace("DIGEST", module.DIGESTS["read"]))
    assert module._configured("read", FLOAT32, CPU) == (*module.DEFAULTS["cpu"]["float32"], 1)
    (line,) = caplog.records
    assert line.levelname == "WARNING" and str(tables / "cpu.json") in line.getMessage()


def test_it_passes_over_what_it_may_not_read(
    module: ModuleType, tables: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tables / "cpu.json").mkdir()
    assert module._configured("read", FLOAT32, CPU)
    assert "passes over" in caplog.text


def test_kernels_without_configurations_are_named_once(
    module: ModuleType, tables: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setitem(module.__dict__, "_architecture", lambda device: "sm90")
    monkeypatch.setitem(module.__dict__, "CONFIGURATIONS", {})
    (tables / "sm90.json").write_text(json.dumps(table(module, [16, 16, 2, 3])))
    for _ in range(2):
        assert module._configured("read", FLOAT32, CPU) == (16, 16, 2, 3)
        assert module._configured("states", FLOAT32, CPU) == (*module.DEFAULTS["sm"]["float32"], 1)
    (warned,) = recwarn
    rest = ", ".join(kernel for kernel in module.AXES if kernel != "read")
    assert f"linear_ssc has no launch configurations on sm90 in float32 for {rest} and takes small" in str(
        warned.message
    )
    assert module._configured("read", torch.bfloat16, CPU) == (*module.DEFAULTS["sm"]["bfloat16"], 1)
    assert "in bfloat16 for any kernel" in str(recwarn.pop().message) + str(recwarn.pop().message)


LAUNCH = """\
import importlib.util, json, logging, os, sys
import torch
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
spec = importlib.util.spec_from_file_location("m", sys.argv[1])
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
seen = {}
launch, configured = m._launch, m._configured
def _configured(kernel, element, device):
    seen[kernel] = configured(kernel, element, device)
    return seen[kernel]
m._configured = _configured
x = {name: torch.nn.functional.normalize(torch.randn(1, 40, 1, 16), dim=-1).requires_grad_() for name in "qkvu"}
gates = {name: torch.rand(1, 40, 1) * 0.02 for name in m.INPUTS if name not in x}
theta = [torch.randn(1, *shape) * 0.1 for shape in ((64, 16), (16, 64))] if m.SPEC["memory"]["kind"] == "mlp" else None
y, z = m.op(**x, **gates, theta=theta, backend="triton"), m.reference(**x, **gates, theta=theta)
y.sum().backward()
print(json.dumps([seen, ((y - z).abs().max() / z.abs().max()).item()]))
"""


@pytest.mark.parametrize("name", ["linear_ssc", "titans_grm", "titans_chunk_grm"])
def test_launches_take_them(files: dict[str, Path], tables: Path, name: str) -> None:
    """Interpreted, for which `mcgen tune` has no table: one is written here."""
    module = imported(files[name])
    rows = dict.fromkeys(vars(module).get("STEPPING", ()), f" {module.LEAST_ROWS}")
    tiles = {kernel: [16, 16, 1, 2] for kernel in module.AXES}
    by_digest = {
        f"k {digest}": {f"16x16 float32{rows.get(kernel, '')}": tiles[kernel]}
        for kernel, digest in module.DIGESTS.items()
    }
    (tables / "cpu.json").write_text(json.dumps(by_digest))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCH, files[name]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logged, result = done.stdout.splitlines()
    assert logged == f"INFO {name} takes launch configurations from {tables / 'cpu.json'}"
    seen, error = json.loads(result)
    assert seen and all(row == tiles[kernel] for kernel, row in seen.items())
    assert error < 1e-4


MISSING = """\
import sys
sys.modules["triton"] = None
import torch
import importlib.util
spec = importlib.util.spec_from_file_location("m", sys.argv[1])
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
q, k, v, u = (torch.randn(1, 9, 1, 16) for _ in range(4))
torch.testing.assert_close(m.op(q, k, v, u), m.reference(q, k, v, u))
try:
    m.op(q, k, v, u, backend="triton")
except m.UnsupportedError as error:
    print(error)
"""


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_without_triton_it_is_triton_that_is_asked_for(files: dict[str, Path], interpret: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    command = [sys.executable, "-c", MISSING, files["linear_ssc"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'Triton is not installed: pip install triton, or pass backend="torch"\n'


def test_with_triton_it_is_a_gpu(files: dict[str, Path]) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    program = MISSING.replace('sys.modules["triton"] = None', "")
    command = [sys.executable, "-c", program, files["linear_ssc"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Triton needs a GPU, or on a CPU TRITON_INTERPRET=1 before this file is imported\n"
