"""`mcgen list`: presets and shipped specs."""

from __future__ import annotations

from typing import Any

import click

from mcgen.cli.output import json_option, print_json, print_table
from mcgen.spec import PRESETS, load
from mcgen.spec.shipped import shipped


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the presets with their recurrences, and the specs that come with mcgen.

    \b
    Example:
      mcgen list
      mcgen list --json
    """
    presets, specs = _presets(), _specs()
    if as_json:
        print_json({"presets": presets, "specs": specs})
        return
    rows = [(p["name"], p["memory"], p["objective"] or "", "\n".join(p["steps"]), p["known_as"]) for p in presets]
    print_table(("preset", "memory", "objective", "recurrence", "known as"), rows, "Presets, for update.rule")
    print_table(("spec", "what it is"), [(s["name"], s["doc"]) for s in specs], "Shipped specs")


def _presets() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "memory": preset.memory,
            "objective": preset.objective,
            "steps": list(preset.steps),
            "known_as": preset.known_as,
        }
        for name, preset in PRESETS.items()
    ]


def _specs() -> list[dict[str, Any]]:
    return [{"name": name, "doc": load(path).doc, "file": str(path)} for name, path in shipped().items()]
