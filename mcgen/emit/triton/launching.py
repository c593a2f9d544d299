"""What a generated file knows of its launches: its kernels' digests, the configurations that they have in some table,
and defaults."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mcgen.plan import configurations
from mcgen.plan.configurations import ELEMENTS, Defaults, Key
from mcgen.plan.host import Kernel
from mcgen.plan.kernels import digests
from mcgen.spec import Spec

ByType = dict[str, dict[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Launching:
    """Digests by kernel; configurations by architecture, type and kernel."""

    digests: Mapping[str, str]
    configurations: Mapping[str, ByType]


def launching(spec: Spec, text: str, kernels: Mapping[str, Kernel], tuned: bool = False) -> Launching:
    """What is known of the launches of some kernels in a text; of the user's tables only where it is `tuned`."""
    head, digest = (spec.head.key_dim, spec.head.value_dim), digests(text)
    folders = configurations.folders(tuned)
    found: dict[str, ByType] = {}
    for architecture in configurations.architectures(folders):
        for element in ELEMENTS:
            for name, kernel in kernels.items():
                key = Key(digest[name], *head, element, architecture, kernel.rows)
                entry = configurations.find(key, folders)
                if entry is not None:
                    row = found.setdefault(architecture, {}).setdefault(element, {})
                    row[name] = entry.configuration.numbers
    return Launching({name: digest[name] for name in kernels}, found)


def by_type(defaults: Defaults) -> dict[str, ByType]:
    """BT, columns of a tile and num_warps by family of architectures and type, for what no table has."""
    numbers = lambda one: (one.rows, one.columns, one.warps)  # noqa: E731
    return {family: {kind: numbers(one) for kind, one in kinds.items()} for family, kinds in defaults.items()}


def without_configuration(text: str, architectures: Collection[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The kernels of a generated file that take default tiles, by type of products and architecture; empty for none."""
    kernels, found = (_table(text, name) for name in ("AXES", "CONFIGURATIONS"))
    places = [(element, architecture) for element in ELEMENTS for architecture in architectures]
    lacking = {(e, a): tuple(k for k in kernels if k not in found.get(a, {}).get(e, {})) for e, a in places}
    return {
        place: ("every kernel",) if len(missing) == len(kernels) else missing
        for place, missing in lacking.items()
        if missing
    }


def _table(text: str, name: str) -> dict:
    """A dict that a generated file has: in its line, and those after it that a formatter sets in or begins with }."""
    (table,) = re.findall(rf"^{name} = (\{{.*(?:\n[ }}].*)*)", text, re.MULTILINE)
    return ast.literal_eval(table)


def lacking_text(lacking: Mapping[tuple[str, str], tuple[str, ...]]) -> str:
    """What `without_configuration` gives, in words: kernels that lack the same together."""
    on: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (element, architecture), kernels in lacking.items():
        on.setdefault((kernels, element), []).append(architecture)
    both: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (kernels, element), names in on.items():
        both.setdefault((kernels, tuple(names)), []).append(element)
    parts = [
        f"{', '.join(kernels)} in {' and '.join(elements)} on {', '.join(names)}"
        for (kernels, names), elements in both.items()
    ]
    return "; ".join(parts)
