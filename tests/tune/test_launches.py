"""Kernels compile as a launch would have them compiled, by whichever Triton is there, also one too old for `tune`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcgen import pipeline
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.tune.launches import specialisations
from mcgen.tune.offline import load_kernels

ROOT = Path(__file__).parents[2]
COMPILE = """\
import sys
from pathlib import Path

import triton
from triton.backends import compiler
from triton.compiler import ASTSource

from mcgen import pipeline
from mcgen.plan import configurations
from mcgen.plan.configurations import Configuration
from mcgen.plan.targets import lookup
from mcgen.spec import load
from mcgen.spec.shipped import shipped
from mcgen.tune import offline
from mcgen.tune.launches import specialisations
from mcgen.tune.search import job, with_head

path = Path(sys.argv[1]) / f"{sys.argv[2]}.py"
spec = with_head(load(shipped()[sys.argv[2]]), 16)
path.write_text(pipeline.source(spec), encoding="utf-8")
target = lookup(sys.argv[3])
chip = compiler.GPUTarget(target.backend, target.capability, target.warp_size)
for kernel in specialisations(spec, "bfloat16"):
    one = job(path, kernel, "bfloat16", Configuration(16, kernel.constexprs["F"] if kernel.whole else 16, 4), target)
    fn = offline.load_kernels(path)[kernel.kernel]
    pointers = [at for at, name in enumerate(fn.arg_names) if one.signature.get(name, "").startswith("*")]
    types = {name: one.signature[name] for name in fn.arg_names if name not in one.constexprs}
    if hasattr(compiler, "AttrsDescriptor"):  # before Triton 3.3
        marks = {"arg_properties": {"tt.divisibility": pointers}, "cls": "AttrsDescriptor"}
        source = ASTSource(fn, types, dict(one.constexprs), compiler.AttrsDescriptor.from_dict(marks))
    else:
        types = {name: types.get(name, "constexpr") for name in fn.arg_names}
        source = ASTSource(fn, types, dict(one.constexprs), {(at,): [["tt.divisibility", 16]] for at in pointers})
    made = triton.compile(source, target=chip, options={"num_warps": 4, "num_stages": 1})
    print(kernel.kernel, len(made.asm["cubin"]) > 0)
"""


@pytest.mark.parametrize(
    ("name", "target"),
    [("linear_ssc", "cuda:80"), ("gated_delta_none", "cuda:90"), ("dla_none", "cuda:90")],
)
def test_kernels_compile(name: str, target: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILE, tmp_path, name, target]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) > 1 and all(line.endswith("_kernel True") for line in lines)


@pytest.mark.parametrize("name", ["swla_ssc", "dla_ssc", "titans_chunk_grm"])
def test_kernels_serve_every_length(name: str, tmp_path: Path) -> None:
    path, spec = tmp_path / f"{name}.py", load(shipped()[name])
    path.write_text(pipeline.source(spec), encoding="utf-8")
    kernels = load_kernels(path)
    for one in specialisations(spec, "bfloat16"):
        numbers = {argument for argument, type in one.signature.items() if type == "i32"}
        assert numbers == {p.name for p in kernels[one.kernel].params if p.do_not_specialize}, one.kernel
