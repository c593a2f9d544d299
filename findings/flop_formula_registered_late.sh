#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode copies the table of formulas when it is made. An operator whose formula is registered
# after that, as by a module that a model imports lazily, counts as 0 FLOPs inside it, without a word; a counter made
# afterwards counts it. (A good guess: register_flop_formula holds from then on, or an unknown operator is reported.)
# Seen: "late 0, afterwards 128".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula


@torch.library.custom_op("findings::scan", mutates_args=())
def scan(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(0)


x = torch.ones(64)
with FlopCounterMode(display=False) as late:
    register_flop_formula(torch.ops.findings.scan)(lambda shape, **_: 2 * shape[0])
    scan(x)
with FlopCounterMode(display=False) as afterwards:
    scan(x)
found = f"late {late.get_total_flops()}, afterwards {afterwards.get_total_flops()}"
print(torch.__version__, found)
assert found == "late 0, afterwards 128", found
PY
