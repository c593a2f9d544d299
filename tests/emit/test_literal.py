"""Whatever a user's text holds, it is the same text in a generated file, and ends no string there."""

from __future__ import annotations

import ast
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcgen.emit.text.literal import _shows, docstring_lines, literal

NASTY = [
    'ends with a quote"',
    "ends with a backslash\\",
    'a """ b \'\'\' c """""" d',
    "{{ jinja }} {% if x %} {# no #} {braces} %s",
    "\\n \\u0041 \\N{DASH} \\",
    "line\nline\r\n\tline\x0c\x1b[31m\x00",
    "漢字 é \u0301 \u202e \u200b \U0001f600 \u2028 \ud800",
    '"' * 200,
    "\\" * 300,
    "x" * 500,
    "# -*- coding: ascii -*-\n# ruff: noqa\ndef f(): # type: ignore",
    "",
]
NAMES = st.text("abc_", min_size=1, max_size=12)
TEXTS = st.text(max_size=300) | st.lists(st.sampled_from(NASTY), max_size=3).map("".join)
PLAIN = st.recursive(
    TEXTS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, PLAIN, max_size=5))
def test_a_literal_is_its_value_in_short_lines(value: dict) -> None:
    text = literal(value)
    assert ast.literal_eval(text) == value
    assert all(columns(line) <= 120 for line in text.splitlines())
    text.encode("utf-8")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_a_docstring_says_what_the_text_says(text: str) -> None:
    lines = docstring_lines(f"name: {text}", 100)
    meant = ast.literal_eval('"""' + "\n".join(lines) + '\n"""')
    assert "".join(meant.split()) == "".join(f"name: {text}".split())
    assert all(columns(line) <= 100 for line in lines)


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ({"a": 1e22, "b": -4.6, "c": None}, '{\n    "a": 1e22,\n    "b": -4.6,\n    "c": None,\n}'),
        ({"a": ["it's", 'a "word"']}, '{\n    "a": ["it\'s", \'a "word"\'],\n}'),
        (
            {"a": {"b": "c" * 60, "d": "e" * 60}},
            '{\n    "a": {\n        "b": "' + "c" * 60 + '",\n        "d": "' + "e" * 60 + '",\n    },\n}',
        ),
        (
            {"doc": "a word " * 18},
            '{\n    "doc": (\n        "' + "a word " * 15 + "a " + '"\n        "word ' + "a word " * 2 + '"\n    ),\n}',
        ),
    ],
)
def test_it_is_laid_out_as_by_a_formatter(value: dict, text: str) -> None:
    assert literal(value) == text


def test_what_is_shown_is_what_every_python_knows() -> None:
    """A newer Unicode has more characters, and makes some of the older ones wider."""
    shown = [c for c in map(chr, range(0x110000)) if _shows(c)]
    first = unicodedata.ucd_3_2_0
    assert len(shown) > 40_000 and {*"é漢→≤σ°"} <= set(shown)
    assert not [c for c in shown if first.category(c) == "Cn"]
    assert not [c for c in shown if (first.east_asian_width(c) in "WF") != (unicodedata.east_asian_width(c) in "WF")]
    assert not {*"\u1e9e\u20bf\u231a\u200b\xad"} & set(shown)
