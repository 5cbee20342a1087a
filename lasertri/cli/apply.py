"""`lasertri apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import app, print_result, reported
from lasertri.cli.loading import load


@app.command()
@reported
def apply(
    edit: Annotated[Path, typer.Argument(help="Folder with lasertri_config.json and lasertri_edit.safetensors.")],
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the edited checkpoint.")],
    revision: options.Revision = None,
    dtype: Annotated[options.DtypeName, typer.Option(help="Must be the edit's.")] = "auto",
    save: options.Save = "checkpoint",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write MODEL with a saved EDIT, and those found after it, as a plain Hugging Face checkpoint or with factors."""
    from lasertri.edit.edit import Edit, factored_edits
    from lasertri.factored.exchange import exchange
    from lasertri.model import checkpoint
    from lasertri.support.atomic_files import check_writable

    edits = [Edit.load(folder) for folder in (edit, *sorted(edit.glob("edit-*")))]
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = load(model, revision, dtype, "cpu")
    for found in edits:
        found.apply(loaded)
    if save == "factored":
        exchange(loaded, factored_edits(edits, loaded))
    checkpoint.save(loaded, output, tokenizer=tokenizer, overwrite=overwrite)
    first, *further = [found.candidate.to_dict() for found in edits]
    print_result({"edit": first, "further": further, "output": str(output)}, as_json, f"wrote {output}")
