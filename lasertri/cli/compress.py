"""`lasertri compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lasertri.cli import options
from lasertri.cli.app import command, print_result
from lasertri.cli.grouped import Only, usage
from lasertri.cli.loading import Loading
from lasertri.search.settings import Settings


@command("lasertri compress Qwen/Qwen3-0.6B -o smaller --energy 0.99", name="compress")
def compress_command(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint, for lasertri.load alone.")],
    loading: Loading,
    settings: Annotated[Settings, Only("targets", "memory_budget", "progress")],
    energy: Annotated[
        float | None, typer.Option(help="Share of its squared singular values that every block keeps, such as 0.99.")
    ] = None,
    rank: Annotated[
        float | None, typer.Option(help="Or the share ρ of their number: rank int(min(b, n) ρ).", metavar="RHO")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Number of row blocks K.")] = 1,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write MODEL with many matrices as factors of lower rank. It looks at no data: measure it with lasertri eval."""
    from lasertri.compression import Retention, compress
    from lasertri.model.checkpoint import rebuilt, save
    from lasertri.support.atomic_files import check_writable

    with usage():
        Retention(energy, rank)
    check_writable(output, overwrite=overwrite)
    loaded, tokenizer = loading.load(model)
    check_writable(output, needed=sum(p.nbytes for p in loaded.parameters()), overwrite=overwrite)
    rebuilt(loaded, tokenizer)
    result = compress(
        loaded,
        energy=energy,
        rank=rank,
        targets=settings.targets,
        blocks=blocks,
        memory_budget=settings.memory_budget,
        progress=settings.progress,
    )
    written = str(output) if result.count else None
    if written is not None:
        save(loaded, output, tokenizer=tokenizer, overwrite=overwrite)
    print_result(result.to_dict() | {"output": written}, as_json, str(result))
    typer.echo("nothing written: no factors would be smaller" if written is None else f"wrote {written}", err=True)
