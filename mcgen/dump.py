"""What every stage made, as numbered text files, where the environment variable MCGEN_DUMP names a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "MCGEN_DUMP"


@dataclass
class Dump:
    """Writes texts to `folder`, 001-spec.txt, 002-recurrence.txt and so on; without a folder nothing is even made.

    `last` is the file written last.
    """

    folder: Path | None
    last: Path | None = field(default=None, init=False)
    _count: int = field(default=0, repr=False)

    @classmethod
    def of(cls, name: str) -> Dump:
        """The dump of one spec: a folder of its name in the folder that MCGEN_DUMP names, emptied of earlier dumps."""
        root = os.environ.get(VARIABLE)
        folder = Path(root, name) if root else None
        for old in folder.glob("[0-9][0-9][0-9]-*.txt") if folder else ():
            old.unlink()
        return cls(folder)

    def __call__(self, title: str, text: Callable[[], str]) -> None:
        """Write the next text.

        Raises:
            OSError: the folder cannot be written to.
        """
        if self.folder is None:
            return
        self._count += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", title).strip("-")
        self.last = self.folder / f"{self._count:03}-{name}.txt"
        self.last.write_text(text().rstrip() + "\n", encoding="utf-8", errors="backslashreplace")


def tabulated(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text, its columns aligned."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)
