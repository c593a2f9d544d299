#!/usr/bin/env bash
# torch 2.13.0: Conv1d takes an empty batch, but no empty sequence, not even with padding that would give it outputs:
# RuntimeError, where Linear, and padding by F.pad before the same convolution, go on. A short causal convolution
# (Mamba, Gated DeltaNet) therefore fails on the empty shard of a packed or split sequence. (A good guess: both empty
# axes are alike, as in Linear; or padding of kernel - 1 on both sides makes length 0 a valid input.)
# Seen: batch 0 gives (0, 4, 8); length 0 raises; padded by hand it gives (2, 4, 0).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F

padded = torch.nn.Conv1d(4, 4, 4, groups=4, padding=3)
plain = torch.nn.Conv1d(4, 4, 4, groups=4)
batch = tuple(padded(torch.zeros(0, 4, 5)).shape)
try:
    length = tuple(padded(torch.zeros(2, 4, 0)).shape)
except RuntimeError as error:
    length = f"raises {str(error).splitlines()[0]}"
by_hand = tuple(plain(F.pad(torch.zeros(2, 4, 0), (4, 0)))[..., 1:].shape)
print(torch.__version__, "| batch 0:", batch, "| length 0:", length, "| padded by hand:", by_hand)
assert batch == (0, 4, 8) and str(length).startswith("raises") and by_hand == (2, 4, 0)
PY
