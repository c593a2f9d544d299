"""The spec stage: a YAML file becomes a `Spec`, or a list of diagnostics that point into the file."""

from mcgen.spec.loading import load, loads
from mcgen.spec.model import Chunk, GateMap, PerHead
from mcgen.spec.presets import PRESETS, Preset
from mcgen.spec.spec import Gate, Spec, Step

__all__ = [
    "PRESETS",
    "Chunk",
    "Gate",
    "GateMap",
    "PerHead",
    "Preset",
    "Spec",
    "Step",
    "load",
    "loads",
]
