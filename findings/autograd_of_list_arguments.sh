#!/usr/bin/env bash
# torch 2.13.0: an operator of torch.library whose first argument is a list of tensors, with a list of integers behind
# it. What the backward function of register_autograd has to give for that second list depends on what is in it: None
# where it has integers; an empty list where it is empty; and nothing at all, one gradient fewer than there are
# arguments, where it is left at, or equals, the default that the schema gives it. Else the backward pass raises
# RuntimeError. (A good guess: one gradient an argument of the schema, and None for what is no tensor, as for operators
# without lists of tensors.)
# Seen: of ([g], None) only [3] goes through; [] asks for ([g], []), a default of [] for ([g],).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch


def holds(name, schema, given, place):
    """Whether a backward function that gives this for (tensors, place) is accepted."""
    torch.library.define(f"finding::{name}", schema)
    torch.library.impl(f"finding::{name}", "default", lambda tensors, place=(): tensors[0] * 2)
    torch.library.register_autograd(f"finding::{name}", lambda ctx, g: given(g * 2))
    x = torch.ones(2, requires_grad=True)
    try:
        getattr(torch.ops.finding, name)([x], place).sum().backward()
    except RuntimeError as error:
        assert "same structure as the inputs" in str(error), error
        return False
    return x.grad.tolist() == [2.0, 2.0]


forms = {"([g], None)": lambda g: ([g], None), "([g], [])": lambda g: ([g], []), "([g],)": lambda g: ([g],)}
cases = {
    "[3]": ("(Tensor[] tensors, int[] place) -> Tensor", [3]),
    "[]": ("(Tensor[] tensors, int[] place) -> Tensor", []),
    "default []": ("(Tensor[] tensors, int[] place=[]) -> Tensor", []),
}
seen = {}
for i, (case, (schema, place)) in enumerate(cases.items()):
    seen[case] = [form for j, (form, given) in enumerate(forms.items()) if holds(f"op_{i}_{j}", schema, given, place)]
print(torch.__version__, "|", " | ".join(f"{case}: accepts {' '.join(forms)}" for case, forms in seen.items()))
assert seen == {"[3]": ["([g], None)"], "[]": ["([g], [])"], "default []": ["([g],)"]}
PY
