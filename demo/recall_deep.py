"""The task of recall.py for deep memories: Titans on a perceptron of two layers, without a cache and with one (grm).

Both models have two layers, equal width and the same seed. The plain memory learns through the whole sequence; the
cached one begins anew every four tokens and is kept. Their initial read-outs are made small, so that what a memory
gives at first is what it has learned from the sequence.

    python demo/recall_deep.py [--seed 0] [--steps 450]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from recall import BUILT, FOLDER, PAIRS, evaluate, generated_layer, model_of, train
from torch import nn

DEEP = {"plain": "recall_deep_plain", "cached": "recall_deep_cached"}
QUIET = 0.05  # what the last layer's initial weights are multiplied by


def build() -> None:
    """Builds both specs into build/demo."""
    specs = [str(FOLDER / f"{name}.yaml") for name in DEEP.values()]
    subprocess.run([sys.executable, "-m", "mcgen", "build", *specs, "-o", str(BUILT)], check=True, cwd=FOLDER.parent)


def deep_layer(name: str) -> nn.Module:
    """The layer of a built module, with a quiet memory."""
    layer = generated_layer(name)()
    with torch.no_grad():
        layer.theta[-1].mul_(QUIET)
    return layer


def trained(name: str, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = model_of(lambda: deep_layer(DEEP[name]))
    train(name, model, steps, seed)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=450)
    options = parser.parse_args()
    torch.set_num_threads(1)
    build()
    recalls = {name: evaluate(trained(name, options.steps, options.seed)) for name in DEEP}
    print("\nvalues recalled, by the number of pairs in the sequence\n")
    print(f"{'memory':<8}" + "".join(f"{pairs:>9}" for pairs in PAIRS))
    for name, recall in recalls.items():
        print(f"{name:<8}" + "".join(f"{share:>9.1%}" for share in recall))


if __name__ == "__main__":
    main()
