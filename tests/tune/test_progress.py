"""How far work is, on standard error."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcgen.tune import progress
from mcgen.tune.progress import in_steps

ROOT = Path(__file__).parents[2]


def test_elsewhere_there_are_lines_at_once_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with in_steps("doing", 5) as advance:
        assert capsys.readouterr().err == "doing: 0 of 5, 0:00:00\n"
        advance()
        advance(3)
    assert capsys.readouterr().err == "doing: 4 of 5, 0:00:00\n"


def test_and_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with in_steps("doing", 2) as advance:
        advance()
        time.sleep(0.5)
    said = capsys.readouterr().err.splitlines()
    assert len(said) > 4 and set(said[2:]) == {"doing: 1 of 2, 0:00:00"}


def test_where_work_fails_the_last_line_says_how_far_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), in_steps("doing", 2) as advance:
        advance()
        raise ZeroDivisionError
    assert capsys.readouterr().err.splitlines()[-1] == "doing: 1 of 2, 0:00:00"


def test_it_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with in_steps("doing", 2, shown=False) as advance:
        advance()
        advance(2)
    assert capsys.readouterr().err == ""


WORK = """\
import time
from mcgen.tune.progress import in_steps
with in_steps("doing", 2) as advance:
    time.sleep(1)
    advance()
    time.sleep(1)
"""


def test_in_a_terminal_there_is_a_bar_from_the_first_second() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", WORK]
    with subprocess.Popen(command, stderr=theirs, cwd=ROOT, env=environment) as work:
        os.close(theirs)
        said = b""
        while b"0/2" not in said:
            said += os.read(ours, 4096)
        assert work.poll() is None  # it is still at the first step
        while b"1/2" not in said:
            said += os.read(ours, 4096)
        assert work.poll() is None
    os.close(ours)
    assert work.returncode == 0 and b"doing" in said
