"""`mcgen refusals`: the registry as a table, as JSON, and as the page of the docs."""

from __future__ import annotations

import json

from click.testing import CliRunner, Result

from mcgen.cli import main
from mcgen.spec.refusals import GROUPS, page


def refusals(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["refusals", *arguments])


def test_every_refusal_is_in_the_table() -> None:
    done = refusals()
    assert done.exit_code == 0
    assert all(title in done.stdout for title, _ in GROUPS.values())
    assert "diag(…) in a step" in done.stdout


def test_markdown_is_the_page() -> None:
    assert refusals("--markdown").stdout == page()


def test_json() -> None:
    found = json.loads(refusals("--json").stdout)
    assert {group: len(rows) for group, rows in found.items()} == {name: len(of) for name, (_, of) in GROUPS.items()}
    assert all(set(row) == {"for example", "refused", "why", "instead"} for rows in found.values() for row in rows)
