"""`lasertri compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.errors import LasertriError


@command("lasertri compare adapted other", "lasertri compare runs/* -o runs.html")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that lasertri adapt -o wrote.", metavar="OUT…")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File for a page with the same.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace that file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Put runs side by side: what was edited, and what that gives on held-out samples."""
    if output is not None and output.exists() and (output.is_dir() or not overwrite):
        there = "a folder" if output.is_dir() else "one that is there; name another, or give --overwrite"
        raise LasertriError(f"expected a new file for the page, got {output}, {there}")
    from lasertri.cli import tables
    from lasertri.result import compare as side_by_side
    from lasertri.result.report import require_report
    from lasertri.support.atomic_files import write_whole

    if output is not None:
        require_report()
    compared = side_by_side.compare(runs)
    if output is not None:
        write_whole(output, side_by_side.render_comparison(compared))
    columns, rows, notes = side_by_side.COLUMNS, side_by_side.rows(compared), side_by_side.notes(compared)
    text = "\n".join([tables.aligned(columns, rows), *notes])
    print_result(compared, as_json, text, lambda: tables.compared(columns, rows, notes))
    if output is not None:
        typer.echo(f"wrote {output}", err=True)
