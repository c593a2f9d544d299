"""`mcgen list` and `mcgen schema`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from mcgen.cli import main
from mcgen.spec import PRESETS
from mcgen.spec.schema import json_schema
from mcgen.spec.shipped import shipped


def test_lists_every_preset_with_its_recurrence_and_every_shipped_spec() -> None:
    done = CliRunner().invoke(main, ["list"])
    assert done.exit_code == 0
    for name, preset in PRESETS.items():
        assert name in done.stdout
        assert all(step in done.stdout for step in preset.steps)
    assert all(name in done.stdout for name in shipped())


def test_json() -> None:
    done = CliRunner().invoke(main, ["list", "--json"])
    listed = json.loads(done.stdout)
    assert [(one["name"], tuple(one["steps"])) for one in listed["presets"]] == [
        (name, preset.steps) for name, preset in PRESETS.items()
    ]
    assert [one["name"] for one in listed["specs"]] == list(shipped())
    assert all(one["doc"] for one in listed["specs"])


def test_schema_is_printed_as_json() -> None:
    done = CliRunner().invoke(main, ["schema"])
    assert json.loads(done.stdout) == json_schema()
