"""`lasertri apply`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.grouped import Only
from lasertri.cli.loading import Loading


@command("lasertri apply adapted Qwen/Qwen3-0.6B -o again")
def apply(
    edit: Annotated[Path, typer.Argument(help="Folder with lasertri_config.json and lasertri_edit.safetensors.")],
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the edited checkpoint.")],
    loading: Annotated[Loading, Only("revision", "dtype")],
    save: options.Save = "checkpoint",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write MODEL with a saved EDIT, and those found after it, as a plain Hugging Face checkpoint or with factors.

    --dtype must be the edit's, and is unless the edit was found in another than the checkpoint's own.
    """
    from lasertri.edit.edit import Edit
    from lasertri.edit.truncation import factored_edits
    from lasertri.factored.exchange import exchange
    from lasertri.model import checkpoint
    from lasertri.support.atomic_files import check_writable

    edits = [Edit.load(folder) for folder in (edit, *sorted(edit.glob("edit-*")))]
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = dataclasses.replace(loading, device="cpu").load(model)
    for found in edits:
        found.apply(loaded)
    if save == "factored":
        exchange(loaded, factored_edits(edits, loaded))
    checkpoint.save(loaded, output, tokenizer=tokenizer, overwrite=overwrite)
    first, *further = [found.to_dict() for found in edits]
    print_result({"edit": first, "further": further, "output": str(output)}, as_json, f"wrote {output}")
