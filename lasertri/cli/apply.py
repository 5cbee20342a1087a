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
from lasertri.cli.pushing import Pushing, push
from lasertri.support.output_folder import OutputFolder


@command("lasertri apply adapted Qwen/Qwen3-0.6B -o again")
def apply(
    edit: Annotated[Path, typer.Argument(help="Folder that lasertri adapt wrote an edit to.", metavar="EDIT")],
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the edited checkpoint.")],
    loading: Annotated[Loading, Only("revision", "dtype")],
    pushing: Pushing,
    save: options.Save = "checkpoint",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write MODEL with a saved EDIT, and those found after it, as a plain Hugging Face checkpoint or with factors.

    An adapter is merged, rounded once to the weights' dtype. Give --dtype where
    the edit was found in another than the checkpoint's own.
    """
    from lasertri.cli.saved import card_of_edits, load_edits
    from lasertri.edit.truncation import factored_edits
    from lasertri.factored.exchange import exchange
    from lasertri.model import checkpoint

    folder = OutputFolder(output, overwrite=overwrite, inputs=[edit, model])
    repository = pushing.checked(model, overwrite=overwrite)
    edits = load_edits(edit)
    kinds = {str(found.to_dict()["kind"]) for found in edits}
    if save == "factored" and kinds != {"truncate"}:
        raise typer.BadParameter(f"--save factored goes with a truncation, not with a {kinds.pop()}")
    loaded, tokenizer = dataclasses.replace(loading, device="cpu").load(model, plain=True)
    folder.require(sum(p.nbytes for p in loaded.parameters()))
    checkpoint.rebuilt(loaded, tokenizer)
    for found in edits:
        found.apply(loaded)
    if save == "factored":
        exchange(loaded, factored_edits(edits, loaded))
    card = card_of_edits(edit, edits, loaded, save, folder.path.name, pushing.push or "")
    checkpoint.save(loaded, folder, tokenizer=tokenizer, card=card)
    first, *further = [found.to_dict() for found in edits]
    result = {"edit": first, "further": further, "output": str(output)}
    print_result(result, as_json, f"wrote {output}")
    push(repository, folder)
