"""The command's top level: what it loads, what exit status an exception means, and what the user sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mcgen.cli.main import COMMANDS, main
from mcgen.errors import Diagnostic, InternalError, SpecError, UnsupportedError


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcgen", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    """Seconds are the process's own, whatever else the machine does."""
    seconds = []
    for _ in range(3):
        before = os.times()
        done = run("--help", PYTHONPROFILEIMPORTTIME="1")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert 0 < min(seconds) < 0.3
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"pydantic", "yaml", "sympy", "torch", "triton", "jinja2", "rich", "numpy"}
    assert all(name in done.stdout and line in done.stdout for name, (_, line) in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert f"mcgen {name}" in done.output


def test_an_unknown_command_is_the_users_error() -> None:
    done = CliRunner().invoke(main, ["chek"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "No such command `chek`. Did you mean `check`?" in done.stderr


@pytest.mark.parametrize("arguments", [["check"], ["check", "--jsn", "a"], ["new", "a", "--from", "titan"], ["--what"]])
def test_wrong_usage_is_the_users_error(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.startswith("mcgen 0")


def raising(error: BaseException) -> click.Command:
    @click.command("fail")
    def fail() -> None:
        raise error

    return fail


FINDING = Diagnostic("error", "unknown field `b`", "a.yaml", 3, 2, " b: 1", 1, "did you mean `a`?")
EXPECTED: dict[str, tuple[BaseException, int, str]] = {
    "spec": (SpecError(FINDING), 2, FINDING.render() + "\n"),
    "unsupported": (UnsupportedError("no such kernel; write gradient: {chunk: 16}"), 2, "error: no such kernel; write"),
    "missing file": (FileNotFoundError(2, "No such file or directory", "x.yaml"), 2, "error: x.yaml: No such file"),
    "usage": (click.ClickException("no"), 2, "Error: no"),
    "internal": (InternalError("lost a slot", "symbolic", "dump/3.txt"), 3, "lies in dump/3.txt"),
    "fault": (ZeroDivisionError("division by zero"), 3, "ZeroDivisionError: division by zero"),
    "no message": (AssertionError(), 3, "AssertionError: no message"),
    "recursion": (RecursionError("too deep"), 3, "RecursionError"),
    "interrupt": (KeyboardInterrupt(), 130, ""),
}


@pytest.mark.parametrize(("error", "status", "message"), EXPECTED.values(), ids=EXPECTED)
def test_exceptions_become_a_message_and_a_status(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    monkeypatch.delenv("MCGEN_DUMP", raising=False)
    monkeypatch.setattr(main, "get_command", lambda ctx, name: raising(error))
    done = CliRunner().invoke(main, ["check"])
    assert (done.exit_code, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_names_its_stage_and_keeps_its_traceback_where_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("mcgen.spec.loading.read_document", broken)
    monkeypatch.setenv("MCGEN_DUMP", str(tmp_path / "dump"))
    done = CliRunner().invoke(main, ["check", "linear_grm"])
    assert done.exit_code == 3
    assert "internal error in stage spec: IndexError: list index out of range" in done.stderr
    assert str(tmp_path / "dump" / "traceback.txt") in done.stderr
    assert "read_document" in (tmp_path / "dump" / "traceback.txt").read_text()


def test_a_commands_status_is_the_process_status(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("mcgen: 1\n")
    done = run("check", str(tmp_path / "a.yaml"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: missing field `name`\n")
    assert run("check", "linear_grm").returncode == 0
