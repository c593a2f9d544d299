"""`mcgen schema`: the spec language as a JSON schema."""

from __future__ import annotations

import click

from mcgen.cli.output import print_json
from mcgen.spec.schema import json_schema


@click.command()
def schema() -> None:
    """Print the JSON schema of the spec language, with which editors complete and check specs.

    \b
    Example:
      mcgen schema > mcgen.schema.json
      # then, as the first line of a spec:
      # yaml-language-server: $schema=mcgen.schema.json
    """
    print_json(json_schema())
