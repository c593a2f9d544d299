"""`mcgen targets`: the GPUs mcgen knows, and what it knows of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import click

from mcgen.cli.output import json_option, print_json, print_table
from mcgen.plan.targets import Target, targets

COLUMNS: dict[str, Callable[[Target], str]] = {
    "target": lambda target: target.name,
    "arch": lambda target: target.arch,
    "SMs": lambda target: f"{target.sm_count:3}",
    "shared KB": lambda target: f"{target.shared_bytes // 1024:9}",
    "L2 MB": lambda target: f"{target.l2_bytes >> 20:5}",
    "GB/s": lambda target: f"{target.bandwidth:5,}",
    "bf16": lambda target: f"{target.peak['bf16']:5,.0f}",
    "tf32": lambda target: f"{target.peak['tf32']:5,.0f}",
    "fp32": lambda target: f"{target.peak['fp32']:4,.0f}",
}


@click.command("targets")
@json_option
def targets_(as_json: bool) -> None:
    """List the GPUs mcgen compiles for: limits of a block, bandwidth, and dense peak TFLOP/s by operand type.

    \b
    Example:
      mcgen targets
      mcgen targets --json
    """
    known = targets().values()
    if as_json:
        print_json([asdict(target) for target in known])
    else:
        print_table(list(COLUMNS), [[show(target) for show in COLUMNS.values()] for target in known])
