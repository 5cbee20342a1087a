"""`lasertri compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.grouped import Only, usage
from lasertri.cli.loading import Loading
from lasertri.cli.pushing import Pushing, push
from lasertri.cli.samples import TextSource
from lasertri.cli.typed import command_line
from lasertri.data.files import Fields
from lasertri.search.settings import Settings
from lasertri.support.output_folder import OutputFolder


@command(
    "lasertri compress Qwen/Qwen3-0.6B -o smaller --keep 0.9",
    "lasertri compress Qwen/Qwen3-0.6B -o smaller --text mine.txt --max-kl 0.1",
    name="compress",
)
def compress_command(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint.")],
    source: TextSource,
    fields: Fields,
    loading: Loading,
    pushing: Pushing,
    settings: Annotated[Settings, Only("targets", "memory_budget", "progress")],
    keep: Annotated[
        float | None, typer.Option(help="Share of the targets' bytes to keep, over all of them; by default 0.9.")
    ] = None,
    rank: Annotated[
        float | None, typer.Option(help="Or the same rank int(min(b, n) ρ) in every block.", metavar="RHO")
    ] = None,
    factors: Annotated[
        Literal["whitened", "plain"],
        typer.Option(help="whitened: the least error of what layers give for the text; plain: of their weights."),
    ] = "whitened",
    max_kl: Annotated[
        float | None, typer.Option(help="Write nothing where predictions on the text move by more, in nats.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Number of row blocks K.")] = 1,
    overwrite: options.Overwrite = False,
    resume: options.Resume = True,
    as_json: options.Json = False,
) -> None:
    """Write MODEL with many matrices as factors of lower rank, and say what that does to its predictions on a text.

    lasertri eval measures how well it still does a task.
    """
    from lasertri.compression.compress import check_options, compress, room_for_layers
    from lasertri.factors.journals import journal_folder
    from lasertri.model.checkpoint import rebuilt, save
    from lasertri.result.card import Base, Made, compression_card
    from lasertri.support.environment import environment

    with usage():
        check_options(keep, rank, factors, max_kl)
    folder = OutputFolder(output, overwrite=overwrite, inputs=[model, *source.files])
    repository = pushing.checked(model, overwrite=overwrite)
    text = source.read(model, fields, revision=loading.revision)
    loaded, tokenizer = loading.load(model, plain=True)
    size = sum(parameter.nbytes for parameter in loaded.parameters())
    # what is new is on that disk as it was made, and once more in the checkpoint
    folder.require(size + room_for_layers(loaded, keep=keep, rank=rank, targets=settings.targets))
    rebuilt(loaded, tokenizer)
    result = compress(
        loaded,
        tokenizer,
        keep=keep,
        rank=rank,
        factors=factors,
        text=text,
        max_kl=max_kl,
        targets=settings.targets,
        blocks=blocks,
        memory_budget=settings.memory_budget,
        progress=settings.progress,
        journal=journal_folder(),
        resume=resume,
        scratch=folder.near,
    )
    written = None
    try:
        if result.count:
            made = Made(command_line(), source.name, source.datasets, pushing.push or "")
            card = compression_card(result.to_dict(), Base.of(loaded), made, folder.path.name, environment())
            save(loaded, folder, tokenizer=tokenizer, card=card)
            written = str(output)
        result.journal.delete()
    finally:  # the figures are worth as much without a folder
        print_result(result.to_dict() | {"output": written}, as_json, str(result))
    typer.echo("nothing written: no factors would be smaller" if written is None else f"wrote {written}", err=True)
    if written is not None:
        push(repository, folder)
