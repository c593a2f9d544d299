"""A spec as YAML again, its defaults filled in."""

from __future__ import annotations

from typing import Any

import yaml

from mcgen.spec.spec import Spec

WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """Writes small mappings and lists in brackets, as specs are written by hand, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def spec_text(spec: Spec) -> str:
    """The spec as a file that loads to an equal one."""
    return yaml.dump(
        spec.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=None
    )
