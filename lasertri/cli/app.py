"""The program: what every command shares of its start and its end."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lasertri.cli.grouped import grouped
from lasertri.cli.launched import rank, world_size
from lasertri.cli.streams import failure_of_output, guard
from lasertri.cli.threads import wait_asleep
from lasertri.cli.typed import Command
from lasertri.errors import RAISED_IN_ALL, LasertriError
from lasertri.support.interrupts import interrupted
from lasertri.support.memory import shortage
from lasertri.support.shown import printable, readable, reason
from lasertri.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType

wait_asleep()
app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Adapt a pretrained transformer to a task without training it: one backward pass over about 100 samples gives "
    "a step of all its MLPs, or says which matrix to truncate; it is kept if it is more than luck.",
    epilog="Example: lasertri demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Set up streams and logging for every command."""
    guard()
    if world_size() > 1 and context.invoked_subcommand != "adapt":
        raise typer.BadParameter(f"expected one process for {context.invoked_subcommand}, got {world_size()}")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_printable)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    logging.getLogger("lasertri").setLevel(logging.INFO)
    if rank() > 0:
        handler.setLevel(logging.ERROR)  # the first tells what others are warned of


def command(*examples: str, name: str | None = None) -> Callable[[Callable[..., None]], None]:
    """Register a command, whose --help ends with these examples, by its function's name or another."""
    epilog = "\n\n".join(f"Example: {example}" for example in examples)

    def register(function: Callable[..., None]) -> None:
        app.command(name, cls=Command, epilog=epilog)(_reported(grouped(function)))

    return register


def _reported(function: Callable[..., None]) -> Callable[..., None]:
    """Mistakes of the user end with one sentence and exit code 1; an interrupt with 130."""

    @functools.wraps(function)
    def wrapper(**given: Any) -> None:
        try:
            function(**given)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt) or interrupted():  # which may have become another error
                typer.echo("lasertri: interrupted; what had been finished is kept", err=True)
                raise typer.Exit(130) from None
            short = shortage(error)
            if short is not None:
                told = str(short)
            elif isinstance(error, OSError):  # a name that no file system takes, a disk that fails
                told = f"expected files that can be read and written: {reason(error)}"
            elif isinstance(error, LasertriError):
                told = str(error)
            else:
                raise
            if rank() == 0 or not getattr(error, RAISED_IN_ALL, False):
                who = "lasertri" if rank() == 0 else f"lasertri, process {rank()}"
                typer.echo(f"{who}: {readable(told)}", err=True)
            raise typer.Exit(1) from error
        failure = failure_of_output()
        if failure is not None:
            if not isinstance(failure, BrokenPipeError):  # whoever closed it knows
                typer.echo(f"lasertri: standard output cannot be written: {failure}; what was saved is whole", err=True)
            raise typer.Exit(1)

    return wrapper


def print_result(
    result: dict[str, Any], as_json: bool, text: str, drawn: Callable[[], RenderableType] | None = None
) -> None:
    """To standard output, as one JSON object or as text.

    Args:
        drawn: makes the same for a terminal.
    """
    if drawn is not None and not as_json and sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console

        Console(file=sys.stdout, highlight=False).print(drawn())
        return
    text = json.dumps(result, allow_nan=False) if as_json else printable(text)
    print(text)  # typer.echo goes round a stream's own encoding


def _printable(record: logging.LogRecord) -> bool:
    """Show names of elsewhere, which may hold anything, without what a terminal would obey."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True
