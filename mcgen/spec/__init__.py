"""The spec stage: a YAML file becomes a `Spec`, or a list of diagnostics that point into the file."""

from mcgen.spec.grammar import Expression, Span
from mcgen.spec.loading import load, loads
from mcgen.spec.model import Chunk, GateMap, GateSpec, PerHead
from mcgen.spec.presets import PRESETS, Preset
from mcgen.spec.spec import Gate, Spec, Step

__all__ = [
    "PRESETS",
    "Chunk",
    "Expression",
    "Gate",
    "GateMap",
    "GateSpec",
    "PerHead",
    "Preset",
    "Span",
    "Spec",
    "Step",
    "load",
    "loads",
]
