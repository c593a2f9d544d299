"""The Pythons at hand, of the versions that mcgen runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MINORS = range(10, 15)


def interpreters() -> dict[str, Path]:
    """An interpreter of every version there is, by `3.10` and so on; the one that runs is among them."""
    found = {f"3.{sys.version_info.minor}": Path(sys.executable)}
    for minor in MINORS:
        version = f"3.{minor}"
        if version not in found:
            path = next((path for path in _candidates(version) if _runs(path, version)), None)
            found |= {version: path} if path else {}
    return dict(sorted(found.items(), key=lambda item: int(item[0][2:])))


def _candidates(version: str) -> Iterator[Path]:
    """Where one may lie: on the path, and where pyenv and uv keep theirs."""
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or Path.home() / ".local" / "share" / "uv" / "python")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    yield from sorted(uv.glob(f"cpython-{version}.*/bin/python"))


def _runs(path: Path, version: str) -> bool:
    """Whether it is what its name says: a version manager's stand-in may have nothing behind it."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-c", program], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version
