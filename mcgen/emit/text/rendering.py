"""Jinja, as the generated files are printed with it: undefined values are errors, nothing is escaped."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

from mcgen.emit.text.literal import literal
from mcgen.spec import refusals

SYNTAX = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True, "autoescape": False}


class CompiledTemplates(jinja2.BytecodeCache):
    """Templates as Jinja compiled them, kept beside this module's own bytecode, where and when Python keeps any."""

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        return cache_from_source(str(Path(__file__).with_name(name.replace("/", "."))))

    def get_source_checksum(self, source: str) -> str:
        return super().get_source_checksum(f"{SYNTAX} {source}")

    def load_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):
            bucket.bytecode_from_string(Path(bucket.key).read_bytes())

    def dump_bytecode(self, bucket: Bucket) -> None:
        if not sys.dont_write_bytecode:
            SourceFileLoader(__name__, __file__).set_data(bucket.key, bucket.bytecode_to_string())


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("mcgen.emit"),
    bytecode_cache=CompiledTemplates(),
    undefined=jinja2.StrictUndefined,
    **SYNTAX,
)
ENVIRONMENT.filters["lines"] = lambda lines, indent: ("\n" + " " * indent).join(lines)
"""Statements, one a line, in a place that is indented so far; a line of none of them is left out (`render`)."""
ENVIRONMENT.globals["refusal"] = lambda name: literal(getattr(refusals, name).sentence())
"""The message of a refusal as a string literal, by its name in the registry."""


def render(template: str, **values: object) -> str:
    """The text of a template in emit/templates; everything it shows is decided by the caller."""
    return re.sub(r"^ +\n", "", ENVIRONMENT.get_template(template).render(**values), flags=re.MULTILINE)


@functools.cache
def template_words() -> frozenset[str]:
    """Every word of the templates."""
    texts = (ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0] for name in ENVIRONMENT.list_templates())
    return frozenset(word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text))
