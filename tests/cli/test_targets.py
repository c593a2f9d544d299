"""`mcgen targets` lists every target, as a table and as JSON."""

from __future__ import annotations

import json

from click.testing import CliRunner

from mcgen.cli.targets import targets_
from mcgen.plan.targets import targets


def test_the_table_names_every_target() -> None:
    done = CliRunner().invoke(targets_)
    assert done.exit_code == 0
    assert all(name in done.output for name in targets())


def test_json_holds_every_fact() -> None:
    rows = json.loads(CliRunner().invoke(targets_, ["--json"]).output)
    assert [row["name"] for row in rows] == list(targets())
    assert {"arch": "cuda:90", "sm_count": 132, "shared_bytes": 232_448}.items() <= rows[3].items()
    assert rows[3]["peak"]["bf16"] == targets()["h100"].peak["bf16"]
