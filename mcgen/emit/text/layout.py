"""The layout of a generated file: ruff's formatter, so that line breaks are nobody's business but a formatter's."""

from __future__ import annotations

import subprocess

from mcgen.emit.text.expressions import LINE_LENGTH
from mcgen.errors import InternalError


def laid_out(text: str) -> str:
    """Python source as `ruff format` leaves it, whatever configuration stands around."""
    from ruff.__main__ import find_ruff_bin

    command = [find_ruff_bin(), "format", "--isolated", f"--line-length={LINE_LENGTH}", "--target-version=py310", "-"]
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    if done.returncode:
        raise InternalError(f"what was generated is no Python: {done.stderr.decode().strip()}", stage="emit")
    return done.stdout.decode()
