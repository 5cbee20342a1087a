"""The program: what every command shares of its start and its end."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lasertri.cli.grouped import grouped
from lasertri.cli.streams import failure_of_output, guard
from lasertri.cli.threads import wait_asleep
from lasertri.errors import LasertriError
from lasertri.version import __version__

wait_asleep()
app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Adapt a pretrained transformer to a task without training it: one backward pass over about 100 samples gives "
    "a step of all its layers, or says which matrix to truncate; it is kept if it is more than luck.",
    epilog="Example: lasertri demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Set up streams and logging for every command."""
    guard()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("lasertri").setLevel(logging.INFO)


def command(*examples: str, name: str | None = None) -> Callable[[Callable[..., None]], None]:
    """Register a command, whose --help ends with these examples, by its function's name or another."""
    epilog = "\n\n".join(f"Example: {example}" for example in examples)

    def register(function: Callable[..., None]) -> None:
        app.command(name, epilog=epilog)(_reported(grouped(function)))

    return register


def _reported(function: Callable[..., None]) -> Callable[..., None]:
    """Mistakes of the user end with one sentence and exit code 1; an interrupt with 130."""

    @functools.wraps(function)
    def wrapper(**given: Any) -> None:
        try:
            function(**given)
        except LasertriError as error:
            typer.echo(f"lasertri: {error}", err=True)
            raise typer.Exit(1) from error
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            typer.echo(
                "lasertri: the device is out of memory; choose a smaller --batch-size, or --device cpu",
                err=True,
            )
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("lasertri: interrupted; what had been finished is kept", err=True)
            raise typer.Exit(130) from None
        failure = failure_of_output()
        if failure is not None:
            if not isinstance(failure, BrokenPipeError):  # whoever closed it knows
                typer.echo(f"lasertri: standard output cannot be written: {failure}; what was saved is whole", err=True)
            raise typer.Exit(1)

    return wrapper


def print_result(result: dict[str, Any], as_json: bool, text: str) -> None:
    """To standard output, as one JSON object or as text."""
    print(json.dumps(result, allow_nan=False) if as_json else text)  # typer.echo goes round a stream's own encoding
