"""Assignments that nothing reads are taken out, and nothing else changes."""

from __future__ import annotations

import pytest

from mcgen.emit.text.unused import without_unused

CASES = {
    "a value": ("a = q + 1\nreturn q", "return q"),
    "what only such read": ("a = q\nb = a + 1\nc, d = b, q\nreturn d", "d = q\nreturn d"),
    "parts of a tuple": ("a, b, c = q, 2, len(q)\nreturn b", "b = 2\nreturn b"),
    "parts of an unpacked value": ("a, b = q\nreturn b", "_, b = q\nreturn b"),
    "an unpacked value": ("a, b = q\nreturn q", "return q"),
    "what may have effects": ("a = f(q)\nreturn q", "a = f(q)\nreturn q"),
    "what may have effects, unpacked": ("a, b = f(q)\nreturn q", "_, _ = f(q)\nreturn q"),
    "a load": ("a = tl.load(q)\nreturn q", "return q"),
    "an atomic": ("a = tl.atomic_add(q, 1)\nreturn q", "a = tl.atomic_add(q, 1)\nreturn q"),
    "a function": ("a = lambda x: f(x)\nreturn q", "return q"),
    "a sum": ("a = 0\nfor i in q:\n    a += i\nreturn q", "a = 0\nfor i in q:\n    a += i\nreturn q"),
    "what an inner function reads": (
        "a = q\ndef g():\n    return a\nreturn g",
        "a = q\ndef g():\n    return a\nreturn g",
    ),
    "all of a block": ("if q:\n    a = 1\nreturn q", "if q:\n    pass\nreturn q"),
    "over several lines": ("a = (\n    q\n    + 1\n)\nreturn q", "return q"),
    "an element": ("a = q\na[0] = 1\nreturn q", "a = q\na[0] = 1\nreturn q"),
    "an attribute": ("a = q\na.b = 1\nreturn q", "a = q\na.b = 1\nreturn q"),
}


def function(body: str) -> str:
    return "def f(q):\n" + "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize(("before", "after"), CASES.values(), ids=CASES)
def test_in_a_function(before: str, after: str) -> None:
    assert without_unused(function(before)) == function(after)


def test_names_of_the_module_stay() -> None:
    text = "SIZE = 1\nA, B = 1, 2\n\n\nclass C:\n    x = 1\n"
    assert without_unused(text) == text
