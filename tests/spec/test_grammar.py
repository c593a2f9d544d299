"""The expression language: precedence as in Python, spans that cover their text, limits instead of hangs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcgen.spec.grammar import (
    FUNCTIONS,
    Binary,
    Call,
    Expression,
    ExpressionError,
    Lag,
    Name,
    Number,
    Span,
    Unary,
    evaluate,
    parse,
    parse_step,
    unparse,
    walk,
)

ANYWHERE = Span(0, 0)

numbers = st.one_of(st.integers(0, 10**9), st.floats(0, 1e30, allow_nan=False)).map(lambda n: Number(n, ANYWHERE))
words = st.sampled_from(["alpha", "M", "grad", "pi", "x_1", "_"]).map(lambda name: Name(name, ANYWHERE))
lags = st.builds(Lag, st.sampled_from("vk"), st.integers(1, 100), st.just(ANYWHERE))


def compound(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    return st.one_of(
        st.builds(Unary, st.sampled_from("+-"), inner, st.just(ANYWHERE)),
        st.builds(Binary, st.sampled_from(["+", "-", "*", "/", "**"]), inner, inner, st.just(ANYWHERE)),
        st.builds(
            Call, st.sampled_from(["exp", "max", "outer"]), st.lists(inner, max_size=3).map(tuple), st.just(ANYWHERE)
        ),
    )


expressions = st.recursive(st.one_of(numbers, words, lags), compound, max_leaves=12)


@given(expressions)
def test_unparsed_parses_back(expression: Expression) -> None:
    assert parse(unparse(expression)) == expression


@given(expressions)
def test_spans_cover_their_text(expression: Expression) -> None:
    text = unparse(expression)
    for part in walk(parse(text)):
        piece = text[part.span.offset : part.span.offset + part.span.length]
        assert parse(piece) == part


@pytest.mark.parametrize(
    "text",
    ["2 - 3 - 4", "2/3/4*5", "-2**2", "2**-1", "2**3**2", "-3*-2", "2*(3 + 4)", "1e-3 + .5 + 2.", "- - 1", "+2 - -3"],
)
def test_value_is_pythons(text: str) -> None:
    assert evaluate(parse(text), {}) == pytest.approx(eval(text))


def test_step_splits_at_its_assignment() -> None:
    slot, expression = parse_step(" M = alpha*M + outer(v[-2], k[-0])")
    assert (slot.id, slot.span) == ("M", Span(1, 1))
    assert unparse(expression) == "alpha*M + outer(v[-2], k)"


def test_lag_of_zero_is_the_name() -> None:
    assert parse("v[0]") == parse("v[-0]") == Name("v", ANYWHERE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("sigmoid(0)", 0.5),
        ("softplus(0)", math.log(2)),
        ("softplus(800)", 800.0),
        ("sigmoid(-800)", 0.0),
        ("gelu(1)", 0.5 * (1 + math.erf(1 / math.sqrt(2)))),
        ("silu(2)", 2 / (1 + math.exp(-2))),
        ("relu(-3)", 0.0),
        ("sign(-3) + sign(0)", -1.0),
        ("max(2, min(5, 3))", 3.0),
        ("cos(pi)", -1.0),
        ("1 - 2**(-5 - h)", 1 - 2.0**-7),
    ],
)
def test_functions_have_their_values(text: str, value: float) -> None:
    assert evaluate(parse(text), {"h": 2.0}) == pytest.approx(value, rel=1e-14, abs=1e-300)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_has_a_value(function: str) -> None:
    arguments = ", ".join(["0.5"] * FUNCTIONS[function])
    assert math.isfinite(evaluate(parse(f"{function}({arguments})"), {}))


@pytest.mark.parametrize(
    "text", ["1/0", "log(0)", "10**400", "2**10**10", "exp(1000)", "sqrt(-1)", "(-8)**(1/3)", "cosh(1e9)"]
)
def test_no_value_is_an_error_and_quick(text: str) -> None:
    with pytest.raises((ArithmeticError, ValueError)):
        evaluate(parse(text), {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "()",
        "f(,)",
        "f(1,)",
        "a b",
        "a..b",
        "1j",
        "0x10",
        "1_000",
        "a if b else c",
        "lambda: 1",
        "[1]",
        "a[b]",
        "a[-1][-1]",
        "f(x)(y)",
        "'a'",
        "a;b",
        "a\\\nb",
        "a # b",
        "a := b",
        "a @ b",
        "a // b",
        "a % b",
        "not a",
        "a and b",
        "*a",
        "a**",
        "√a",
        "ａ",
        "9" * 31,
        "1e309",
        "(" * 10**5,
        "-" * 10**5,
        "a**" * 10**5,
        "a+" * 10**5 + "a",
    ],
)
def test_what_is_not_of_the_language_is_an_error(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text)


@given(st.text(alphabet="aMvk 0.1e9+-*/()[],=\n\"'\\{}#_é\0", max_size=60))
def test_any_text_parses_or_is_an_error_inside_it(text: str) -> None:
    for parser in (parse, parse_step):
        try:
            parser(text)
        except ExpressionError as error:
            assert 0 <= error.span.offset <= len(text)
