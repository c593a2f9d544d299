"""Digests of kernels: what they compute, and nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mcgen.errors import InternalError
from mcgen.plan.kernels import digests
from tests.interpreters import interpreters

ROOT = Path(__file__).parents[2]
READS = """
N = 3

@_jit
def scale_kernel(x, y):
    "Three times."
    store(y, N * load(x))
"""
TAKES = READS.replace("(x, y)", "(x, y, N: constexpr)")
WALKS = """
@_jit
def _advance(b_x, N: constexpr):
    b_more = b_x + N
    return b_more

@_jit
def walk_kernel(x, y, n, BT: tl.constexpr, BV: tl.constexpr):
    o_t, (o_v, _) = tl.arange(0, BT), tl.arange(0, BV)
    total = 0.0
    for i in range(n):
        total += _advance(tl.load(x + (i * BT + o_t), mask=o_t < n), BT)
    tl.store(y + o_v, total[None, :] - 1e-05 * total)
"""
RENAMED = (
    WALKS.replace("total", "b_sum")
    .replace("o_t", "places")
    .replace("(x, y, n,", "(q, out, count,")
    .replace("range(n)", "range(count)")
    .replace("places < n", "places < count")
    .replace("load(x", "load(q")
    .replace("store(y", "store(out")
    .replace("b_more", "b_next")
)


def digest(text: str) -> str:
    (found,) = digests(text).values()
    return found


def test_a_number_that_a_kernel_reads_counts() -> None:
    assert digest(READS) != digest(READS.replace("N = 3", "N = 4"))


@pytest.mark.parametrize("number", ["3.0", "True", "'3'"])
def test_so_does_its_type(number: str) -> None:
    assert digest(READS) != digest(READS.replace("N = 3", f"N = {number}"))


def test_one_that_an_argument_stands_for_does_not() -> None:
    assert digest(TAKES) == digest(TAKES.replace("N = 3", "N = 4"))


def test_one_that_a_value_of_the_kernel_hides_does_not() -> None:
    hides = READS.replace("    store", "    N = load(y)\n    store")
    assert digest(hides) == digest(hides.replace("N = 3", "N = 4"))


def test_names_and_docstrings_do_not() -> None:
    assert digest(READS) == digest(READS.replace("scale", "triple").replace("Three times", "Times three"))


def test_names_of_arguments_and_values_do_not() -> None:
    assert RENAMED != WALKS
    assert digest(WALKS) == digest(RENAMED)


def test_nor_does_how_it_is_spelled() -> None:
    spelled = WALKS.replace("= 0.0", "= (0.0)").replace("1e-05", "0.00001")
    spelled = spelled.replace("    for i", "    # every tile\n\n    for i")
    assert spelled != WALKS
    assert digest(spelled) == digest(WALKS)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("total[None, :]", "total[:, None]"),
        ("+= _advance", "-= _advance"),
        ("b_x + N", "N + b_x"),
        ("(x, y, n,", "(y, x, n,"),
        ("BT: tl.constexpr, BV: tl.constexpr", "BV: tl.constexpr, BT: tl.constexpr"),
        ("mask=o_t", "other=o_t"),
        ("tl.load", "tl.read"),
        ("y + o_v", "y + o_t"),
        ("return b_more", "return b_x"),
        ("1e-05", "1e-06"),
    ],
)
def test_what_it_computes_does(part: str, other: str) -> None:
    assert WALKS.count(part) == 1
    assert digest(WALKS) != digest(WALKS.replace(part, other))


def test_names_by_which_arguments_are_passed_do() -> None:
    """A configuration says how large BT and BV are: two kernels that have them the other way round are two."""
    swapped = WALKS.replace("BT", "B_").replace("BV", "BT").replace("B_", "BV")
    assert digest(WALKS) != digest(swapped)


@pytest.mark.parametrize("inside", ["lambda x: x", "[x for x in y]"])
def test_a_function_inside_a_kernel_is_a_fault(inside: str) -> None:
    with pytest.raises(InternalError, match="scale_kernel has a function of its own"):
        digests(READS.replace("load(x)", f"load({inside})"))


PRINT = """\
import json, sys
from mcgen.plan.kernels import digests
print(json.dumps([digests(open(path, encoding="utf-8").read()) for path in sys.argv[1:]]))
"""


@pytest.mark.parametrize(("version", "path"), interpreters().items())
def test_it_is_the_same_in_every_python(version: str, path: Path, tmp_path: Path) -> None:
    """With nothing installed: a bare interpreter reads what is built here."""
    walks = tmp_path / "walks.py"
    walks.write_text(WALKS)
    files = [walks, *(ROOT / "generated" / f"{name}.py" for name in ("fastslow_grm", "titans_chunk_grm"))]
    done = subprocess.run([path, "-S", "-c", PRINT, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [digests(file.read_text(encoding="utf-8")) for file in files]
