"""The launch configurations that a generated file carries: those its kernels have in some table, and defaults."""

from __future__ import annotations

from collections.abc import Mapping

from mcgen.plan import configurations
from mcgen.plan.configurations import Key
from mcgen.plan.kernels import digests
from mcgen.spec import Spec

ByType = dict[str, dict[str, tuple[int, ...]]]


def launch_configurations(
    spec: Spec, kernels: str, axes: Mapping[str, str], rows: Mapping[str, int] = {}
) -> dict[str, ByType]:
    """BT, BK, BV, num_warps and num_stages by architecture, type and kernel, of the kernels that some table has.

    `kernels` is their text, `axes` what each takes in tiles, `rows` how many it takes at once where that is given.
    """
    found: dict[str, ByType] = {}
    head, digest = (spec.head.key_dim, spec.head.value_dim), digests(kernels)
    for architecture in configurations.architectures():
        for element in configurations.ELEMENTS:
            for kernel, axis in axes.items():
                entry = configurations.find(Key(digest[kernel], *head, element, architecture, rows.get(kernel)))
                if entry is not None:
                    row = found.setdefault(architecture, {}).setdefault(element, {})
                    row[kernel] = entry.configuration.launch(axis, *head)
    return found


def default_configurations(spec: Spec) -> dict[str, ByType]:
    """BT, columns of a tile and num_warps by family of architectures and type, for what no table has."""
    head = spec.head.key_dim, spec.head.value_dim
    found: dict[str, ByType] = {}
    for family in configurations.FAMILIES:
        chosen = {kind: configurations.default(*head, kind, family) for kind in configurations.ELEMENTS}
        found[family] = {kind: (c.rows, c.columns, c.warps) for kind, c in chosen.items()}
    return found
