"""The generated file, put together from its parts."""

from __future__ import annotations

import re

from mcgen import __version__
from mcgen.emit.module.arguments import arguments_source
from mcgen.emit.module.layer import layer_source
from mcgen.emit.module.operator import forgets, operator_source
from mcgen.emit.module.reference import reference_source
from mcgen.emit.module.state import state_source
from mcgen.emit.say.mathematics import DOCSTRING_WIDTH, mathematics, shapes_text
from mcgen.emit.text.called import called, definitions
from mcgen.emit.text.layout import laid_out
from mcgen.emit.text.literal import docstring_lines, literal
from mcgen.emit.text.private_names import privately
from mcgen.emit.text.rendering import render
from mcgen.emit.text.unused import without_unused
from mcgen.emit.torch.path import torch_source
from mcgen.emit.triton.path import triton_source
from mcgen.symbolic.meaning import Meaning
from mcgen.symbolic.meaning import meaning as meaning_of

LIBRARY = (
    "collections",
    "contextlib",
    "copy",
    "functools",
    "importlib.util",
    "itertools",
    "json",
    "logging",
    "math",
    "os",
    "sys",
    "types",
    "warnings",
)
"""What a file may need of the standard library."""
ALWAYS = ("contextlib", "os", "sys")
"""What every file needs of it, for its first lines."""


def module_source(meaning: Meaning, tuned: bool = False) -> str:
    """The text of a spec's module; with the launch configurations in the user's tables too, where it is `tuned`."""
    spec = meaning.spec
    private = privately(spec)
    lowered = meaning if private is spec else meaning_of(private)
    first = [arguments_source(spec), reference_source(spec), _constants(meaning)]
    last = [
        render("finite.py.jinja", deep=not meaning.linear, within_segment=forgets(meaning)),
        operator_source(lowered, meaning.inputs),
        state_source(lowered, meaning.recurrence.slots),
        layer_source(spec),
    ]
    paths = [without_unused(torch_source(lowered)), triton_source(lowered, tuned), *map(without_unused, last)]
    sizes = called(definitions(render("sizes.py.jinja", segment_size=spec.segment.size)), "\n".join(paths))
    parts = [*map(without_unused, first), *sizes, *paths]
    body = laid_out("\n\n\n".join(part.strip("\n") for part in parts if part.strip()))
    return render(
        "module.py.jinja",
        title=docstring_lines(f"{spec.name}: {spec.doc}" if spec.doc.strip() else spec.name, DOCSTRING_WIDTH),
        mathematics=[*mathematics(spec), *shapes_text(spec)],
        library=[module for module in LIBRARY if module in ALWAYS or _uses(body, module)],
        functional=_uses(body, "F"),
        version=__version__,
        spec=literal(spec.to_dict()),
        digest=spec.digest(),
        body=body,
    )


def _uses(text: str, module: str) -> bool:
    """Whether a text names something of a module. What stands before it is looked at last: letters are found fast."""
    return re.search(rf"{module}\.(?<!\w{module}\.)", text) is not None


def _constants(meaning: Meaning) -> str:
    return f"TOP_K = {meaning.spec.aggregate.top_k}" if meaning.aggregate == "ssc" else ""
