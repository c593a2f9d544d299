"""The generated file, put together from its parts."""

from __future__ import annotations

import pprint
import re

from mcgen import __version__
from mcgen.emit.arguments import arguments_source
from mcgen.emit.mathematics import mathematics, shapes_text
from mcgen.emit.reference import reference_source
from mcgen.emit.rendering import render
from mcgen.emit.torch_path import kept_slots, lagged_inputs, online, tensor_inputs, torch_source
from mcgen.symbolic.meaning import Meaning


def module_source(meaning: Meaning) -> str:
    """The text of a spec's module."""
    spec = meaning.spec
    parts = [arguments_source(spec), reference_source(spec), _constants(meaning), torch_source(meaning), _operator(meaning)]
    text = render(
        "module.py.jinja",
        title=_in_docstring(f"{spec.name}: {spec.doc or 'a memory with cached segments'}"),
        header=_in_docstring("\n".join([*mathematics(spec), *shapes_text(spec)])),
        version=repr(__version__),
        spec=pprint.pformat(spec.to_dict(), width=118, sort_dicts=False),
        digest=repr(spec.digest()),
        body="\n\n".join(part.strip("\n") + "\n" for part in parts if part.strip()),
    )
    return re.sub(r"\n{4,}", "\n\n\n", text).rstrip() + "\n"


def _in_docstring(text: str) -> str:
    """Text that can stand in a triple-quoted string and means itself there."""
    return text.replace("\\", "\\\\").replace('"""', r"\"\"\"").rstrip()


def _constants(meaning: Meaning) -> str:
    return f"TOP_K = {meaning.spec.aggregate.top_k}" if meaning.aggregate == "ssc" else ""


def _operator(meaning: Meaning) -> str:
    spec, inputs = meaning.spec, tensor_inputs(meaning)
    gates = ", ".join(spec.tensor_gates)
    return render(
        "op.py.jinja",
        inputs=", ".join(f'"{name}"' for name in inputs),
        lagged=lagged_inputs(meaning),
        kind=meaning.aggregate,
        key_dim=spec.head.key_dim,
        value_dim=spec.head.value_dim,
        gates_doc=f"; {gates}: (B, T, H)" if gates else "",
        saved_shapes=_saved_shapes(meaning),
        triton=False,
    )


def _saved_shapes(meaning: Meaning) -> str:
    shapes = {"o": "(B, H, T, V)", "r": "(B, H, T)", "pools": "(B, H, N, K)"}
    shapes |= {f"kept_{slot}": "(B, H, N, K, V)" for slot in kept_slots(meaning)}
    names = online(meaning) if meaning.reads_cached else online(meaning)[1:]
    return ", ".join(shapes[name] for name in names)


