"""`mcgen refusals`: what is refused, why, and what there is instead."""

from __future__ import annotations

import click

from mcgen.cli.output import json_option, print_json, print_table
from mcgen.spec.refusals import GROUPS, page, row

COLUMNS = ("for example", "refused", "why", "instead")


@click.command()
@click.option("--markdown", is_flag=True, help="Print the page of the docs.")
@json_option
def refusals(markdown: bool, as_json: bool) -> None:
    """List what mcgen refuses, why, and what there is instead.

    \b
    Example:
      mcgen refusals
      mcgen refusals --markdown > docs/refusals.md
    """
    if as_json:
        print_json(
            {group: [dict(zip(COLUMNS, row(one), strict=True)) for one in of] for group, (_, of) in GROUPS.items()}
        )
    elif markdown:
        click.echo(page(), nl=False)
    else:
        for title, of in GROUPS.values():
            print_table(COLUMNS, map(row, of), title)
