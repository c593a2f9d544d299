"""What pip is asked for is what was tried: the oldest versions, and no Triton but where it is meant."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mcgen.tune.compiler import COMPILES
from tests.versions import OLDEST, RANGE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def least(requirement: str) -> tuple[str, str]:
    """The name of what is required, and the oldest version that will do, its zeros at the end left off."""
    name, version = re.match(r"([\w-]+)(?:>=|==)([\d.]+)", requirement).groups()
    return name, re.sub(r"(\.0)+$", "", version)


def test_torch_is_left_the_triton_that_it_came_with() -> None:
    assert not [one for one in PROJECT["dependencies"] if "triton" in one]


def test_the_oldest_of_everything_is_tried() -> None:
    """But of what only some Pythons need."""
    promised = {least(one) for one in PROJECT["dependencies"] if ";" not in one}
    tried = {least(one) for one in RANGE["oldest"].packages if one in OLDEST or one.startswith("torch")}
    assert promised == tried


def test_the_compiler_that_tune_wants_is_the_one_that_is_tried() -> None:
    (wanted,) = PROJECT["optional-dependencies"]["tune"]
    (tried,) = RANGE["oldest-compiler"].over
    assert least(wanted) == least(tried) == ("triton", ".".join(map(str, COMPILES)))


def test_the_readme_says_so() -> None:
    words = " ".join(README.split())
    assert f"Triton {COMPILES[0]}.{COMPILES[1]} or later, for `mcgen tune`" in words
    torches = [least(RANGE[name].packages[0])[1] for name in ("oldest", "newest")]
    versions = [".".join(version.split(".")[:2]) for version in torches]
    assert f"holds files with torch {' and '.join(versions)}" in words
