"""The registry of what is refused: every example meets its refusal, and the page of the docs is what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mcgen.emit.text.rendering import ENVIRONMENT
from mcgen.errors import Diagnostic, SpecError
from mcgen.spec import loads, refusals
from mcgen.spec.refusals import GENERATED, GROUPS, LANGUAGE, LOWERING, PAGE, Refusal, page, row
from mcgen.symbolic.diagnosis import examined

ROOT = Path(__file__).parents[2]
REGISTERED = {name: value for name, value in vars(refusals).items() if isinstance(value, Refusal)}
NAMES = {id(refusal): name for name, refusal in REGISTERED.items()}


def met(refusal: Refusal, lowered: bool = True) -> list[Diagnostic]:
    """What is said of a refusal's example."""
    spec = {"mcgen": 1, "name": "a", "memory": {"kind": "matrix"}, **yaml.safe_load(refusal.example)}
    try:
        return [one for one in examined(loads(yaml.safe_dump(spec)), lowered) if one.severity == "error"]
    except SpecError as error:
        return list(error.diagnostics)


def said(refusal: Refusal, found: list[Diagnostic]) -> bool:
    """Whether a refusal is among the findings: its message, or, where one place has several, its hint."""
    messages, hints = {one.message for one in found}, {one.hint for one in found}
    return refusal.hint(**refusal.words) in hints or refusal.message(**refusal.words) in messages


@pytest.mark.parametrize("refusal", [*LANGUAGE, *LOWERING], ids=lambda refusal: NAMES[id(refusal)])
def test_an_example_meets_its_refusal(refusal: Refusal) -> None:
    found = met(refusal)
    assert said(refusal, found), [one.render() for one in found]
    assert all(one.line and one.column for one in found)


@pytest.mark.parametrize("refusal", LOWERING, ids=lambda refusal: NAMES[id(refusal)])
def test_what_is_not_lowered_is_in_the_language(refusal: Refusal) -> None:
    assert not met(refusal, lowered=False)


@pytest.mark.parametrize("refusal", GENERATED, ids=lambda refusal: NAMES[id(refusal)])
def test_generated_files_say_it_as_the_registry_does(refusal: Refusal) -> None:
    """Templates take the sentence by its name, and none raises UnsupportedError with a text of its own for it."""
    sources = [ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0] for name in ENVIRONMENT.list_templates()]
    asked = f'refusal("{NAMES[id(refusal)]}")'
    assert sum(asked in source for source in sources) == 1
    assert not any(refusal.sentence() in source for source in sources)


def test_every_refusal_is_in_one_group() -> None:
    grouped = [id(refusal) for _, group in GROUPS.values() for refusal in group]
    assert sorted(grouped) == sorted(map(id, REGISTERED.values()))


def test_the_page_of_the_docs_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize("refusal", REGISTERED.values(), ids=REGISTERED)
def test_a_row_of_the_page_has_every_word(refusal: Refusal) -> None:
    cells = row(refusal)
    assert all(cells)
    assert not any("$" in cell or "|" in cell or "\n" in cell for cell in cells)
