"""`mcgen targets`: the GPUs mcgen knows, and what it knows of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

import click

from mcgen.plan.targets import Target, targets

COLUMNS: dict[str, Callable[[Target], str]] = {
    "target": lambda target: target.name,
    "arch": lambda target: target.arch,
    "SMs": lambda target: str(target.sm_count),
    "shared KB": lambda target: str(target.shared_bytes // 1024),
    "L2 MB": lambda target: str(target.l2_bytes >> 20),
    "GB/s": lambda target: f"{target.bandwidth:,}",
    "bf16": lambda target: f"{target.peak['bf16']:,.0f}",
    "tf32": lambda target: f"{target.peak['tf32']:,.0f}",
    "fp32": lambda target: f"{target.peak['fp32']:,.0f}",
}
WORDS = ("target", "arch")


@click.command("targets", epilog="Example: mcgen targets --json")
@click.option("--json", "as_json", is_flag=True, help="Print every fact of every target as JSON.")
def command(as_json: bool) -> None:
    """List the GPUs mcgen compiles for: limits of a block, bandwidth, and peak TFLOP/s by operand type."""
    known = targets().values()
    if as_json:
        click.echo(json.dumps([asdict(target) for target in known], indent=2))
    else:
        _print_table(known)


def _print_table(known: Iterable[Target]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption="bf16, tf32, fp32: peak TFLOP/s, dense",
        caption_justify="left",
    )
    for title in COLUMNS:
        table.add_column(title, justify="left" if title in WORDS else "right", no_wrap=True)
    for target in known:
        table.add_row(*(show(target) for show in COLUMNS.values()))
    Console().print(table)
