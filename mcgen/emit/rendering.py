"""Jinja, as the generated files are printed with it: undefined values are errors, nothing is escaped."""

from __future__ import annotations

import functools
import re

import jinja2

from mcgen.emit.literal import literal
from mcgen.spec import refusals

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("mcgen.emit"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.globals["refusal"] = lambda name: literal(getattr(refusals, name).sentence())
"""The message of a refusal as a string literal, by its name in the registry."""


def render(template: str, **values: object) -> str:
    """The text of a template in emit/templates; everything it shows is decided by the caller."""
    return ENVIRONMENT.get_template(template).render(**values)


@functools.cache
def template_words() -> frozenset[str]:
    """Every word of the templates."""
    texts = (ENVIRONMENT.loader.get_source(ENVIRONMENT, name)[0] for name in ENVIRONMENT.list_templates())
    return frozenset(word for text in texts for word in re.findall(r"[A-Za-z_]\w*", text))
