"""The JSON schema accepts what mcgen accepts and refuses what a schema can refuse."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from mcgen.errors import SpecError
from mcgen.spec import load, loads
from mcgen.spec.schema import json_schema
from mcgen.spec.shipped import shipped

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def spec(**sections: Any) -> dict[str, Any]:
    return {"mcgen": 1, "name": "a", "memory": {"kind": "matrix"}, "update": {"rule": "linear"}} | sections


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", shipped())
def test_accepts_shipped_specs_as_written_and_filled_in(name: str) -> None:
    VALIDATOR.validate(yaml.safe_load(shipped()[name].read_text(encoding="utf-8")))
    VALIDATOR.validate(load(shipped()[name]).to_dict())


def test_accepts_every_form_of_gate_and_gradient() -> None:
    gates = {"alpha": 1, "beta": {"per_head": "h"}, "lam": {"fn": "decay", "bias": -4, "from": "dt"}}
    VALIDATOR.validate(spec(update={"rule": "swla", "gates": gates, "gradient": {"chunk": 3}}))
    VALIDATOR.validate(spec(memory={"kind": "mlp", "layers": 3}, update={"rule": "titans", "gradient": "token"}))


WRONG: dict[str, dict[str, Any]] = {
    "version": {"mcgen": 2},
    "unknown field": {"segmnt": {}},
    "unknown inner field": {"segment": {"sise": 3}},
    "unknown rule": {"update": {"rule": "titan"}},
    "neither rule nor steps": {"update": {"gradient": "token"}},
    "rule and steps": {"update": {"rule": "linear", "steps": ["M = M"]}},
    "gate function": {"update": {"rule": "decay", "gates": {"alpha": {"fn": "sigmod"}}}},
    "gradient": {"update": {"rule": "delta", "gradient": 16}},
    "mlp field of a matrix": {"memory": {"kind": "matrix", "layers": 2}},
    "ssc without top_k": {"aggregate": {"kind": "ssc"}},
    "top_k elsewhere": {"aggregate": {"kind": "grm", "top_k": 2}},
    "top_k of the default": {"aggregate": {"top_k": 2}},
    "size of logarithmic": {"segment": {"mode": "logarithmic", "size": 3}},
    "head too large": {"head": {"key_dim": 257}},
    "text for a number": {"aggregate": {"scale": "1"}},
    "name": {"name": "a-b"},
}


@pytest.mark.parametrize("sections", WRONG.values(), ids=WRONG)
def test_refuses_what_mcgen_refuses(sections: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(spec(**sections))
    with pytest.raises(SpecError):
        loads(yaml.safe_dump(spec(**sections)))


def test_every_field_of_a_section_has_a_description() -> None:
    for name, definition in SCHEMA["$defs"].items():
        for field, schema in definition.get("properties", {}).items():
            assert "description" in schema, f"{name}.{field}"
