"""Any bytes and any mutation of a spec give an answer of `mcgen check`: never a traceback, never a hang."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcgen.cli import main
from mcgen.errors import SpecError
from mcgen.spec import loads
from mcgen.spec.shipped import shipped

TEXTS = [path.read_text(encoding="utf-8") for path in shipped().values()]
TEXTS.append(
    "mcgen: 1\nname: titans_grm\nmemory: {kind: mlp, activation: x*sigmoid(x), residual: true}\n"
    'update:\n  objective: "sum((p - v)**2)/2 - dot(p, v)"\n  steps:\n    - "S = beta*S - eta*grad"\n    - >-\n'
    "      M = alpha*M\n      + S\n  gradient: {chunk: 16}\n  gates:\n    alpha: &a {fn: sigmoid, bias: 1e-3}\n"
    '    beta: {per_head: "1 - 2**(-5 - h)"}\n    eta: *a\naggregate: {kind: ssc, top_k: 2}\n'
)
PIECES = ["*", "&a ", "*a", "!!x ", "|", ">", "\t", "\0", '"', "'", "\\", "{", "}", "[", "]", "- ", ": ", "? ", "#"]
PIECES += ["\n", "  ", "---\n", "%YAML 1.3\n", "<<: *a\n", "**", "(", ")", "v[-1]", "outer(v, k)", "grad", "M", "="]
PIECES += ["1e999", "9" * 50, "é🎉", ".nan", "null", "true", "\ud800", "\u2028", "\x85", "\ufeff", "\r", "sum(", "x"]

piece = st.one_of(st.sampled_from(PIECES), st.text(max_size=5))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid spec with a few pieces cut out, doubled or put in."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        text = text[:start] + draw(st.one_of(piece, st.just(text[start:end] * 2))) + text[end:]
    return text


def assert_sound(text: str) -> None:
    """`loads` gives a spec, or errors that point into the text and can be shown."""
    try:
        made = loads(text, "a.yaml")
    except SpecError as error:
        assert any(one.severity == "error" for one in error.diagnostics)
        found = error.diagnostics
    else:
        assert loads(text).digest() == made.digest()
        found = made.warnings
    for one in found:
        one.render().encode("utf-8", "surrogatepass")
        assert one.message
        assert 1 <= one.column <= len(one.source_line) + 1
        assert one.length >= 1


@settings(deadline=2000)
@given(mutated())
def test_mutated_specs(text: str) -> None:
    assert_sound(text)


@settings(deadline=2000)
@given(st.lists(piece, max_size=40).map("".join))
def test_texts_of_pieces(text: str) -> None:
    assert_sound(text)


@settings(deadline=2000, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), mutated().map(lambda text: text.encode("utf-8", "surrogatepass"))))
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_any_bytes_through_the_command(tmp_path: Path, flags: list[str], content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    done = CliRunner().invoke(main, ["check", str(path), *flags])
    assert done.exit_code in (0, 2), done.output
    assert "Traceback" not in done.output


def test_bytes_through_the_process(tmp_path: Path) -> None:
    """A few in real processes, in the plainest of locales, where what cannot be encoded would fail."""
    generator = random.Random(0)
    contents = [generator.randbytes(100), TEXTS[0].encode() + 'doc: "é🎉"\nhaed: {é: 1}\n'.encode(), b"\xff\xfe", b""]
    for number, content in enumerate(contents):
        (tmp_path / f"é{number}.yaml").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "mcgen", "check", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        timeout=60,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert done.stdout.count(b"wrong") == len(contents)


LARGE = 200_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "brackets": "[" * LARGE,
    "braces": "{" * LARGE,
    "dashes": "- " * (LARGE // 2),
    "questions": "? " * (LARGE // 2),
    "questions in lines": "?\n" * (LARGE // 2),
    "brackets in lines": "[\n" * (LARGE // 2),
    "quotes": '"' * LARGE,
    "line breaks": "\n" * LARGE,
    "items": "- a\n" * (LARGE // 4),
    "one key many times": "a: 1\n" * (LARGE // 5),
    "aliases of aliases": BOMB,
    "too long": "a" * (1 << 19),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_end_soon(text: str) -> None:
    @settings(deadline=3000, max_examples=1, database=None)
    @given(st.just(text))
    def run(text: str) -> None:
        with pytest.raises(SpecError):
            loads(text)

    run()
