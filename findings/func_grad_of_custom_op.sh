#!/usr/bin/env bash
# torch 2.13.0: an operator with torch.library.register_autograd(..., setup_context=...) has no torch.func.grad. The
# error asks for a setup_context "staticmethod" that whoever registers has no class to put on, though setup_context is
# what was registered. autograd itself works, and so does vmap with register_vmap, but not vmap over grad: gradients a
# sample of a layer built on such a kernel need an autograd.Function around it. (A good guess: the way that the manual
# recommends composes with torch.func.)
# Seen: backward gives 2 x; torch.func.grad raises RuntimeError with "it must override the setup_context staticmethod".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch


@torch.library.custom_op("findings::square", mutates_args=())
def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])


def backward(ctx, d):
    return 2 * ctx.saved_tensors[0] * d


torch.library.register_autograd("findings::square", backward, setup_context=setup_context)
x = torch.tensor([1.0, 3.0], requires_grad=True)
square(x).sum().backward()
try:
    torch.func.grad(lambda x: square(x).sum())(x.detach())
    found = "works"
except RuntimeError as error:
    found = str(error)
print(torch.__version__, x.grad.tolist(), found)
assert x.grad.tolist() == [2.0, 6.0] and "it must override the setup_context staticmethod" in found
PY
