"""Digests of kernels: what they compute, and nothing else."""

from __future__ import annotations

from mcgen.plan.kernels import digests

READS = """
N = 3

@_jit
def scale_kernel(x, y):
    "Three times."
    store(y, N * load(x))
"""
TAKES = READS.replace("(x, y)", "(x, y, N: constexpr)")


def digest(text: str) -> str:
    (found,) = digests(text).values()
    return found


def test_a_number_that_a_kernel_reads_counts() -> None:
    assert digest(READS) != digest(READS.replace("N = 3", "N = 4"))


def test_one_that_an_argument_stands_for_does_not() -> None:
    assert digest(TAKES) == digest(TAKES.replace("N = 3", "N = 4"))


def test_names_and_docstrings_do_not() -> None:
    assert digest(READS) == digest(READS.replace("scale", "triple").replace("Three times", "Times three"))
