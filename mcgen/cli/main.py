"""The command `mcgen`: its commands, loaded when one is called, and what exit status an exception means."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

import mcgen
from mcgen import dump
from mcgen.errors import InternalError, SpecError, UnsupportedError

COMMANDS: dict[str, tuple[str, str]] = {
    "build": ("mcgen.cli.build:build", "Compile specs to Python modules."),
    "check": ("mcgen.cli.check:check", "Validate specs."),
    "explain": ("mcgen.cli.explain:explain", "Show what the compiler understood and did."),
    "tune": ("mcgen.cli.tune:tune", "Find launch configurations of kernels and keep them."),
    "verify": ("mcgen.cli.verify:verify", "Hold generated code against the token-by-token reference."),
    "new": ("mcgen.cli.new:new", "Write a commented spec to start from."),
    "list": ("mcgen.cli.list:list_", "List presets and shipped specs."),
    "refusals": ("mcgen.cli.refusals:refusals", "List what is refused, why, and what there is instead."),
    "targets": ("mcgen.cli.targets:targets_", "List the GPUs mcgen compiles for."),
    "schema": ("mcgen.cli.schema:schema", "Print the JSON schema of the spec language."),
}
"""Each command's function and its line in `mcgen --help`, in the order shown there."""

DONE, DOES_NOT_HOLD, USER_ERROR, FAULT = 0, 1, 2, 3
"""Exit statuses. A command that checks something returns `DOES_NOT_HOLD` for no; all else follows from exceptions."""

INTERRUPTED = 130
COLLECTED_AFTER = 50_000
"""Objects between two searches for dead cycles; after 700, as Python has it, they are a tenth of a short command."""


class LazyGroup(click.Group):
    """Imports a command's module when it is called, and turns exceptions into messages and exit statuses."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name][0].split(":")
        return getattr(import_module(module), function)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise click.UsageError(f"No such command `{args[0]}`.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> NoReturn:
        """Run a command and exit with its status; never lets a traceback through."""
        gc.set_threshold(COLLECTED_AFTER)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            status = super().main(*args, standalone_mode=False, **extra)
        except click.exceptions.Abort:
            status = INTERRUPTED
        except click.ClickException as error:
            error.show()
            status = USER_ERROR
        except Exception as error:  # the boundary: whatever it is, the user gets a message and a status
            status = report(error)
        sys.exit(status if isinstance(status, int) else DONE)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mcgen.__version__, package_name="mcgen", message="mcgen %(version)s")
def main() -> None:
    """Compile memory specs to fused kernels.

    \b
    Example:
      mcgen new my_memory --from decay
      mcgen check my_memory.yaml
    """


def report(error: Exception) -> int:
    """Show an exception on standard error and give its exit status."""
    if isinstance(error, SpecError | UnsupportedError):
        from mcgen.cli.output import show_diagnostics

        found = error.diagnostics
        if isinstance(error, SpecError):
            from mcgen.symbolic.diagnosis import diagnosis

            found = diagnosis(error)
        show_diagnostics(found)
        return USER_ERROR
    if isinstance(error, OSError) and error.filename is not None:
        click.echo(f"error: {click.format_filename(error.filename)}: {error.strerror}", err=True)
        return USER_ERROR
    click.echo(_fault_message(error), err=True)
    return FAULT


def _fault_message(error: Exception) -> str:
    stage = error.stage if isinstance(error, InternalError) else _stage_of(error)
    summary = str(error).strip().splitlines() or ["no message"]
    lines = [f"internal error in stage {stage}: {type(error).__name__}: {summary[0][:500]}"]
    kept = _keep_traceback(error)
    if isinstance(error, InternalError) and error.dump:
        lines.append(f"  the stage's input lies in {error.dump}")
    found = f"the traceback lies in {kept}, the stages' output beside it"
    lines.append(f"  {found}" if kept else f"  {dump.VARIABLE}=DIR keeps the stages' output there")
    return "\n".join([*lines, "  This is a fault of mcgen, not of your spec; please report it with the spec."])


def _stage_of(error: Exception) -> str:
    """The stage whose code is innermost in the traceback."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [module.split(".") for module in modules if module.startswith("mcgen.")]
    return ours[-1][1] if ours else "cli"


def _keep_traceback(error: Exception) -> Path | None:
    folder = os.environ.get(dump.VARIABLE)
    if not folder:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder, "traceback.txt")
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return path
