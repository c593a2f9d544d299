"""`mcgen list`: presets and shipped specs."""

from __future__ import annotations

from dataclasses import asdict

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
    presets = [{"name": name, **asdict(preset)} for name, preset in PRESETS.items()]
    specs = [{"name": name, "doc": load(path).doc, "file": str(path)} for name, path in shipped().items()]
    if as_json:
        print_json({"presets": presets, "specs": specs})
        return
    rows = [(p["name"], p["memory"], p["objective"] or "", "\n".join(p["steps"]), p["known_as"]) for p in presets]
    print_table(("preset", "memory", "objective", "recurrence", "known as"), rows, "Presets, for update.rule")
    print_table(("spec", "what it is"), [(s["name"], s["doc"]) for s in specs], "Shipped specs")
