"""`--config run.toml`: a file with options by their names, which the command line overrides."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from lasertri.support.options import nearest


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in a file the defaults of the command; a value is read as if typed on the command line."""
    if path is None or context.resilient_parsing:
        return path
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"expected a TOML file, got {str(path)!r}: {error.strerror}") from error
    except ValueError as error:  # of its text or its bytes
        raise typer.BadParameter(f"{path}: expected TOML, such as count = 3 ({error})") from error
    names = {
        flag.lstrip("-").replace("-", "_"): parameter.name or ""
        for parameter in context.command.params
        for flag in parameter.opts
        if flag.startswith("--") or not flag.startswith("-")
        if parameter.name not in ("config", "help")
    }
    defaults = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in names:
            raise typer.BadParameter(
                f"{path}: expected the name of an option, got {key!r}"
                + (nearest(name, names) or f"; {context.command_path} --help lists them")
            )
        defaults[names[name]] = value if isinstance(value, str) else json.dumps(value, default=str)
    context.default_map = defaults
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        callback=read_config,
        is_eager=True,
        help="TOML file with options by their names, MODEL too; the command line wins over it.",
    ),
]
