"""`lasertri reproduce`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.grouped import Only
from lasertri.cli.loading import Loading
from lasertri.errors import LasertriError
from lasertri.reproduce.plan import Plan


@command("lasertri reproduce --table 3 --tasks fever,bios-gender", name="reproduce")
def reproduce_command(
    plan: Plan,
    loading: Annotated[Loading, Only("dtype", "device")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder; by default reproduce-table-N. Runs go on in it.",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run a table of the paper, column by column, and print it with the published figures beside.

    Every column is a search by the papers' rules on one task: the first fifth
    of its samples calibrates (or 100 of them, where the column says so), the
    best candidate is taken without a test, and the rest of the samples, the
    test part, says what it is worth.

    The folder keeps each column as it finishes, and table-N.md and table-N.json.
    The same command goes on where it stopped and tries failed columns again;
    device, batch size and memory budget may change in between, other options may
    not. Tables that share columns may share a folder.
    """
    from lasertri.reproduce.folder import Folder
    from lasertri.reproduce.markdown import as_markdown
    from lasertri.reproduce.run import reproduce

    folder = Folder(output or Path(f"reproduce-table-{plan.table}"))
    folder.check(plan.rules)
    loaded, tokenizer = dataclasses.replace(loading, revision=plan.revision).load(plan.model)
    tell = functools.partial(typer.echo, err=True)
    tell(f"columns are kept in {folder.path} as they finish; the same command goes on from there")
    result = reproduce(plan, folder, loaded, tokenizer, tell=tell)
    print_result(result, as_json, as_markdown(result))
    asked = [row for row in result["rows"] if row["task"] in plan.tasks and row["column"] in plan.columns]
    failed = sum("error" in row for row in asked)
    if failed:
        raise LasertriError(f"{failed} of {len(asked)} columns failed; the same command tries them again")
